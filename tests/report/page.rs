//! A report in headless Chromium. Skipped, with a word on standard error, where there is none.

use std::fmt::Write as _;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::browser::Browser;
use crate::contents::{config, png, scratch};
use crate::support::Scratch;

/// Nothing complained, and nothing but the file itself was asked for.
#[track_caller]
fn is_quiet(browser: &Browser, file: &Path) {
    assert_eq!(browser.complaints, [""; 0]);
    let own = format!("file://{}", file.display());
    let others: Vec<&String> = browser.requests.iter().filter(|url| **url != own && *url != "about:blank").collect();
    assert!(others.is_empty(), "{others:?}");
}

fn many(rows: usize) -> Scratch {
    let scratch = Scratch::new();
    let subjects = ["a harbour at dusk", "two children with a kite", "an empty street", "a red tram", "fields of rape"];
    let mut lines = String::new();
    for number in 0..60 {
        scratch.file(&format!("images/{number}.png"), png(number, 320, 200 + number * 2));
    }
    for row in 0..rows {
        let line = json!({"id": row, "instruction": format!("Question {row}: describe {}", subjects[row % 5]),
            "image": format!("images/{}.png", row % 60)});
        writeln!(lines, "{line}").unwrap();
    }
    scratch.file("rows.jsonl", lines);
    let mut more = String::new();
    for row in (0..rows).filter(|row| row % 97 == 5) {
        write!(
            more,
            "[[backend.faults]]\nrow = {row}\ncode = \"image.fetch\"\nmessage = \"no answer from the server\"\n"
        )
        .unwrap();
    }
    scratch.file(
        "run.toml",
        format!(
            "[input]\npath = \"rows.jsonl\"\n[output]\npath = \"out.jsonl\"\n\
             [backend]\nkind = \"mock\"\nanswer = \"Row {{row}} shows this: {{prompt}}\"\ndelays_ms = [1, 2, 3, 7]\nwindow = 32\n{more}"
        ),
    );
    scratch.run(&[]).exits(1);
    scratch
}

fn listed(browser: &mut Browser) -> i64 {
    let text = browser.eval("document.getElementById('count').textContent");
    let first = text.as_str().unwrap().split(' ').next().unwrap().replace(',', "");
    first.parse().unwrap()
}

#[test]
fn rows_are_searched_filtered_and_opened() {
    let Some(mut browser) = Browser::start() else { return };
    let scratch = scratch();
    scratch.run(&[]).exits(1);
    scratch.vgen(&["report", "out.jsonl"]).exits(0);
    let file = scratch.path("out.jsonl.html");
    browser.open(&file);
    assert_eq!(listed(&mut browser), 5);
    assert_eq!(browser.eval("document.querySelectorAll('.row').length"), 5);
    assert_eq!(browser.eval("document.querySelector('.row img').complete"), true);

    // Search.
    browser.eval("document.getElementById('search').focus()");
    for key in "ELSE".chars() {
        browser.press(&key.to_string());
    }
    browser.wait("document.getElementById('count').textContent === '1 of 5 rows'");
    assert_eq!(browser.eval("document.querySelector('.row mark').textContent"), "Else");
    browser.eval("document.getElementById('reset').click()");
    assert_eq!(listed(&mut browser), 5);

    // Filters, with counts beside them.
    let failed = "document.querySelector('[data-filter=\"error:mock.fault\"]')";
    assert_eq!(browser.eval(&format!("{failed}.querySelector('em').textContent")), "1");
    browser.eval(&format!("{failed}.click()"));
    assert_eq!(listed(&mut browser), 1);
    assert_eq!(browser.eval("document.querySelector('.row .answer').textContent"), "mock.fault: it was told to");
    browser.eval(&format!("{failed}.click()"));
    browser.eval("document.querySelector('.range input').value = '99'; document.querySelector('.range input').dispatchEvent(new Event('input'))");
    assert_eq!(listed(&mut browser), 0);
    browser.eval("document.getElementById('reset').click()");
    browser.eval("document.querySelector('.bars button').click()");
    assert_eq!(listed(&mut browser), 4);
    browser.eval("document.getElementById('reset').click()");

    // By keyboard alone: to a row, into it, to the next one, and back.
    browser.eval("document.querySelector('.row').focus()");
    browser.press("ArrowDown");
    browser.press("Enter");
    browser.wait("document.getElementById('detail').open");
    assert_eq!(browser.eval("document.querySelector('#detail h2').firstChild.textContent"), "Row 2");
    browser.press("ArrowLeft");
    browser.wait("document.querySelector('#detail h2').firstChild.textContent === 'Row 1'");
    let text = browser.eval("document.getElementById('detail').textContent");
    for part in ["row 0 says yes", "What is seen?", "Be brief.", "kept", "open the original", "900 × 600"] {
        assert!(text.as_str().unwrap().contains(part), "{part} in {text}");
    }
    browser.press("Escape");
    browser.wait("!document.getElementById('detail').open");
    assert_eq!(browser.eval("document.activeElement.className"), "row");
    is_quiet(&browser, &file);
}

#[test]
fn ten_thousand_rows_open_and_scroll() {
    let Some(mut browser) = Browser::start() else { return };
    let scratch = many(10_000);
    scratch.vgen(&["report", "out.jsonl"]).exits(0);
    let file = scratch.path("out.jsonl.html");
    let took = browser.open(&file);
    eprintln!("10,000 rows, {} bytes: open after {took:?}", file.metadata().unwrap().len());
    assert!(took.as_secs() < 20, "{took:?}");
    assert_eq!(listed(&mut browser), 10_000);
    let drawn = browser.eval("document.querySelectorAll('.row').length").as_i64().unwrap();
    assert!((1..60).contains(&drawn), "{drawn} rows exist at a time");
    browser.eval("window.scrollTo(0, document.getElementById('list').offsetTop + 5000 * 118)");
    browser.wait("[...document.querySelectorAll('.row')].some((row) => row.getAttribute('aria-posinset') === '5001')");
    browser.eval("document.querySelector('[data-filter=\"error:image.fetch\"]').click()");
    assert_eq!(listed(&mut browser), (0..10_000).filter(|row| row % 97 == 5).count() as i64);
    is_quiet(&browser, &file);
}

#[test]
fn hostile_texts_are_texts() {
    let Some(mut browser) = Browser::start() else { return };
    let evil = "</script><script>window.evil=1</script><img src=x onerror='window.evil=2'>\u{2028}\u{2029}<!-- & \u{202e}abc {{7*7}} ${alert(1)} \u{0}";
    let scratch = Scratch::new();
    let image = format!("data:image/png;base64,{}", STANDARD.encode(png(1, 20, 20)));
    let rows = [
        json!({"instruction": evil, "image": image, evil: evil}),
        json!({"instruction": "x", "image": "javascript:window.evil=3"}),
        json!({"instruction": "x", "image": "http://127.0.0.1:9/\"onload=\"window.evil=4"}),
        json!({"instruction": "x", "image": "data:text/html,<script>window.evil=5</script>"}),
        json!({"instruction": "x", "image": {"bytes": "AAAA", "path": evil}}),
    ];
    scratch.file("</script><b>rows.jsonl", rows.map(|row| row.to_string()).join("\n"));
    let quoted = serde_json::to_string(evil).unwrap();
    scratch.file(
        "run.toml",
        format!(
            "[input]\npath = '</script><b>rows.jsonl'\n[output]\npath = 'out<script>.jsonl'\n[backend]\nkind = 'mock'\n\
             answer = '{{prompt}}'\nmodel_name = {}\n[[backend.faults]]\nrow = 1\ncode = '<i>'\nmessage = {}\n",
            quoted.replace("\\u0000", "\\u0001"),
            quoted.replace("\\u0000", "\\u0001"),
        ),
    );
    scratch.file("out.sh", "");
    let ended = scratch.run(&[]);
    assert!(ended.code <= 1, "{}", ended.stderr);
    scratch.vgen(&["report", "out<script>.jsonl", "-o", "evil.html"]).exits(0);
    let file = scratch.path("evil.html");
    let html = scratch.read("evil.html");
    assert!(!html.contains("window.evil") && !html.contains('\u{2028}'));
    browser.open(&file);
    for row in 0..5 {
        browser.eval(&format!("document.querySelectorAll('.row')[{row}].click()"));
        browser.wait("document.getElementById('detail').open");
        let addresses = browser.eval("[...document.querySelectorAll('a[href]')].map((link) => link.protocol).join()");
        assert!(!addresses.as_str().unwrap().contains("javascript"), "{addresses}");
        if row == 0 {
            let text = browser.eval("document.querySelector('#detail .text').textContent");
            assert!(text.as_str().unwrap().starts_with("</script><script>window.evil=1"), "{text}");
        }
        assert_eq!(
            browser.eval("document.querySelectorAll('#detail script, #detail b b, main img[onerror]').length"),
            0
        );
        browser.press("Escape");
        browser.wait("!document.getElementById('detail').open");
    }
    assert_eq!(browser.eval("typeof window.evil"), "undefined");
    is_quiet(&browser, &file);
}

#[test]
fn two_runs_agree_and_differ() {
    let Some(mut browser) = Browser::start() else { return };
    let scratch = scratch();
    scratch.run(&[]).exits(1);
    scratch.file("other.toml", "");
    config(&scratch, "other.toml", "other.jsonl", "row {row} says no");
    scratch.vgen(&["run", "other.toml", "--limit", "3"]).exits(0);
    scratch.vgen(&["report", "out.jsonl", "other.jsonl", "-o", "both.html"]).exits(0);
    let file = scratch.path("both.html");
    browser.open(&file);
    assert_eq!(listed(&mut browser), 5);
    browser.eval("document.querySelector('[data-filter=\"agreement:differs\"]').click()");
    assert_eq!(listed(&mut browser), 3);
    browser.eval("document.querySelector('.row').click()");
    browser.wait("document.getElementById('detail').open");
    assert_eq!(browser.eval("document.querySelector('#detail del').textContent"), "yes");
    assert_eq!(browser.eval("document.querySelector('#detail ins').textContent"), "no");
    is_quiet(&browser, &file);
}

#[test]
fn it_is_light_or_dark_as_the_reader_likes() {
    let Some(mut browser) = Browser::start() else { return };
    let scratch = many(300);
    scratch.vgen(&["report", "out.jsonl"]).exits(0);
    let file = scratch.path("out.jsonl.html");
    browser.open(&file);
    let mut paper = Vec::new();
    for scheme in ["light", "dark"] {
        browser.scheme(scheme);
        browser.eval("document.getElementById('rows').scrollIntoView()");
        browser.wait("document.querySelector('.row img').complete");
        let shot = browser.screenshot();
        if let Some(folder) = std::env::var_os("REPORT_SCREENSHOTS") {
            std::fs::write(Path::new(&folder).join(format!("{scheme}.png")), &shot).unwrap();
        }
        let picture = image::load_from_memory(&shot).unwrap().into_rgb8();
        let sum = |pixel: &image::Rgb<u8>| pixel.0.iter().map(|part| u32::from(*part)).sum::<u32>();
        paper.push(sum(picture.get_pixel(3, 500)));
        // Thumbnails and texts are there: the page is not one colour.
        let colours: std::collections::HashSet<_> = picture.pixels().map(|pixel| pixel.0).collect();
        assert!(colours.len() > 500, "{scheme}: {} colours", colours.len());
        // Text stands out from paper, as WCAG asks of ordinary text.
        let contrast = browser.eval(
            "(() => { const light = (text) => { const of = text.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)\
             .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));\
             return 0.2126 * of[0] + 0.7152 * of[1] + 0.0722 * of[2]; };\
             const paper = light(getComputedStyle(document.body).backgroundColor);\
             return Math.min(...[...document.querySelectorAll('.answer, .prompt, .filters legend, .fact span')].map((node) => {\
             const ink = light(getComputedStyle(node).color); return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05); })); })()",
        );
        assert!(contrast.as_f64().unwrap() >= 4.5, "{scheme}: contrast {contrast}");
        let wide = browser.eval("document.documentElement.scrollWidth <= window.innerWidth");
        assert_eq!(wide, true, "{scheme}: the page is wider than the window");
    }
    assert!(paper[0] > 700 && paper[1] < 120, "{paper:?}");
    is_quiet(&browser, &file);
}
