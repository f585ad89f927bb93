//! Formats in and out: Parquet with images, CSV, folders of images, standard input.

use std::fs;
use std::io::Write;

use serde_json::{Value, json};

use crate::support::{Scratch, ended, parse, rows};

fn png(shade: u8) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::GrayImage::from_pixel(3, 2, image::Luma([shade])).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// A folder `photos` with three images in it, and one in a folder in that.
fn photos() -> Scratch {
    let scratch = Scratch::with("", "answer = \"{row} {prompt}\"\n");
    for (name, shade) in [("b.png", 1), ("a.PNG", 2), ("sub/c.png", 3), (".hidden.png", 4)] {
        scratch.file(&format!("photos/{name}"), png(shade));
    }
    scratch.file("photos/notes.md", "no image");
    scratch
}

/// All rows of an output, through the program's own reading of it.
fn read_back(scratch: &Scratch, name: &str) -> Vec<Value> {
    let args =
        ["run", "run.toml", "--input", name, "--output", "-", "--quiet", "--template", "{{ id }}", "--columns", "id"];
    let more =
        ["--output-mapping", "generation=g2", "--output-mapping", "error=e2", "--output-mapping", "finish_reason=f2"];
    let ended = scratch.vgen(&[&args[..], &more].concat());
    parse(&ended.stdout)
}

#[test]
fn parquet_has_a_schema_from_the_first_row_on_and_rows_that_do_not_fit_lose_nothing() {
    let mut text = rows(1200);
    text.push_str("{\"id\": \"late\", \"instruction\": \"odd\", \"new\": [1, {\"x\": null}]}\n");
    text.push_str("broken\n");
    let scratch = Scratch::with(text, "");
    scratch.run(&["--output", "out.parquet", "--row-group-rows", "100"]).exits(1);
    let back = read_back(&scratch, "out.parquet");
    assert_eq!(back.len(), 1202);
    assert_eq!(
        (&back[7]["id"], &back[7]["generation"], &back[7]["error"]),
        (&7.into(), &"answer to row 7".into(), &Value::Null)
    );
    assert_eq!(back[1200]["id"], Value::Null);
    let unfit: Value = serde_json::from_str(back[1200]["vgen_unfit"].as_str().unwrap()).unwrap();
    assert_eq!(unfit, json!({"id": "late", "new": [1, {"x": null}]}));
    let error = &back[1201]["error"];
    assert_eq!((&error["code"], &error["attempts"]), (&"row.json".into(), &1.into()));
}

#[test]
fn parquet_with_images_in_it_is_read_and_written() {
    let scratch = photos();
    scratch.file("rows.jsonl", "{\"id\": 1, \"instruction\": \"what\", \"image\": \"photos/b.png\"}\n{\"id\": 2, \"instruction\": \"how\", \"image\": null}\n");
    scratch.run(&["--output", "embedded.parquet", "--output-images", "embed"]).exits(0);
    // The images are in the file: it can go anywhere.
    fs::create_dir(scratch.path("far")).unwrap();
    fs::rename(scratch.path("embedded.parquet"), scratch.path("far/embedded.parquet")).unwrap();
    let input = ["--input", "far/embedded.parquet"];
    scratch.run(&[&input[..], &["--output", "again.parquet"]].concat()).exits(0);
    let back = read_back(&scratch, "again.parquet");
    assert_eq!(back[0]["image"]["path"], "photos/b.png");
    use base64::Engine;
    let bytes = base64::engine::general_purpose::STANDARD.decode(back[0]["image"]["bytes"].as_str().unwrap()).unwrap();
    assert_eq!(bytes, png(1));
    assert_eq!(back[1]["image"], Value::Null);
    scratch.run(&[&input[..], &["--output", "short.parquet", "--output-images", "reference"]].concat()).exits(0);
    assert_eq!(read_back(&scratch, "short.parquet")[0]["image"], "photos/b.png");
    // Rendered, the bytes are an image under the name that they came with.
    let ended = scratch.vgen(&["render", "--input", "far/embedded.parquet", "--limit", "1"]).exits(0);
    assert_eq!(parse(&ended.stdout)[0]["messages"][0]["content"][0]["image_url"]["url"], "photos/b.png");
}

#[test]
fn csv_is_read_and_written_with_quotes_and_broken_lines() {
    let scratch = Scratch::with("", "answer = \"{prompt}, \\\"{row}\\\"\"\n");
    scratch.file("rows.csv", "\u{feff}id,instruction\n1,\"a, \"\"b\"\"\nc\"\n2\n3,d\n");
    scratch.run(&["--input", "rows.csv", "--output", "out.csv"]).exits(1).says("1 values for 2 columns");
    let text = scratch.read("out.csv");
    assert!(
        text.starts_with("id,instruction,generation,distilabel_metadata,model_name,finish_reason,error,vgen_unfit\n"),
        "{text}"
    );
    let back = read_back(&scratch, "out.csv");
    assert_eq!(back[0]["generation"], "a, \"b\"\nc, \"0\"");
    let error: Value = serde_json::from_str(back[1]["error"].as_str().unwrap()).unwrap();
    assert_eq!(error["code"], "row.csv");
    assert_eq!(back[2]["id"], "3");
}

#[test]
fn a_folder_of_images_is_an_input_and_text_files_beside_them_an_output() {
    let scratch = photos();
    let folder = ["--input", "photos", "--instruction", "Describe it."];
    let ended = scratch.run(&[&folder[..], &["--output", "-"]].concat()).exits(0);
    let images: Vec<_> = parse(&ended.stdout).iter().map(|row| row["image"].clone()).collect();
    assert_eq!(images, ["a.PNG", "b.png", "sub/c.png"]);
    scratch.run(&[&folder[..], &["--glob", "sub/*.png", "--output", "-"]].concat()).exits(0).says("1 rows");
    let sidecars = ["--output", "photos", "--output-format", "sidecar"];
    scratch.run(&[&folder[..], &sidecars].concat()).exits(0);
    assert_eq!(scratch.read("photos/sub/c.txt"), "2 Describe it.\n");
    scratch.run(&[&folder[..], &sidecars].concat()).exits(0).says("nothing is left to do");
    // Into another folder, with instructions of their own.
    scratch.file("photos/b.prompt", "And this?\n");
    let own = ["--instruction-suffix", ".prompt", "--output", "captions", "--output-format", "sidecar"];
    scratch.run(&[&folder[..], &own].concat()).exits(0);
    assert_eq!(scratch.read("captions/b.txt"), "1 And this?\n");
    assert_eq!(scratch.read("captions/sub/c.txt"), "2 Describe it.\n");
    // What is there already is not written over.
    scratch.file("photos/sub/c.cap", "mine");
    let other = ["--output", "photos", "--output-format", "sidecar", "--sidecar-suffix", ".cap", "--overwrite=false"];
    let _ = fs::remove_dir_all(scratch.path("photos.run"));
    scratch.run(&[&folder[..], &other].concat()).exits(2).says("output photos/sub/c.cap exists already");
    scratch.file("photos/b.jpg", png(9));
    scratch
        .run(&[&folder[..], &["--output", "x", "--output-format", "sidecar"]].concat())
        .exits(2)
        .says("would have the same text file");
}

#[test]
fn images_without_answers_have_no_text_file_and_are_done_again_on_demand() {
    let scratch = photos();
    scratch.config("answer = \"{row}\"\n[[backend.faults]]\nrow = 1\n");
    let args = ["--input", "photos", "--instruction", "x", "--output", "photos", "--output-format", "sidecar"];
    scratch.run(&args).exits(1);
    assert!(scratch.path("photos/a.txt").exists() && !scratch.path("photos/b.txt").exists());
    scratch.config("answer = \"{row}\"\n");
    scratch.run(&[&args[..], &["--retry-failed"]].concat()).exits(0);
    assert_eq!(scratch.read("photos/b.txt"), "1\n");
}

#[test]
fn standard_input_goes_to_formats_with_a_schema_and_can_be_gone_on_with() {
    for output in ["out.csv", "out.parquet"] {
        let scratch = Scratch::with("", "");
        let feed = |count: usize| {
            let mut child = scratch.start(&["--input", "-", "--output", output]);
            child.stdin.take().unwrap().write_all(rows(count).as_bytes()).unwrap();
            ended(child.wait_with_output().unwrap()).exits(0)
        };
        feed(5);
        feed(9);
        assert_eq!(read_back(&scratch, output).len(), 9);
    }
}

#[test]
fn a_batch_file_is_answered_as_openai_answers_it() {
    let request = |id: &str, body: Value| {
        json!({"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": body}).to_string() + "\n"
    };
    let asked = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": [
        {"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]}]);
    let mut text = request("a", json!({"model": "x", "messages": asked, "max_tokens": 7, "n": 2}));
    text.push_str(&request("b", json!({"model": "x", "messages": [{"role": "user", "content": "hi"}], "audio": {}})));
    text.push_str(&request("c", json!({"model": "x", "messages": [{"role": "user", "content": "hi"}], "top_k": 5})));
    let many = json!({"model": "x", "messages": [{"role": "user", "content": "hi"}], "n": u32::MAX});
    text.push_str(&request("d", many));
    let scratch = Scratch::new();
    scratch.file("batch.jsonl", text);
    let config = "[input]\npath = \"batch.jsonl\"\n[output]\npath = \"out.jsonl\"\n[backend]\nkind = \"mock\"\n\
        answer = \"{prompt} {images} {sample}\"\nrefuse = [\"top_k\"]\n";
    scratch.file("run.toml", config);
    scratch.run(&[]).exits(1).says("batch.request: 2").says("sampling.unsupported: 1");
    let out = scratch.rows("out.jsonl");
    assert_eq!((&out[0]["custom_id"], &out[0]["error"]), (&"a".into(), &Value::Null));
    let body = &out[0]["response"]["body"];
    assert_eq!(body["choices"][1]["message"]["content"], "What is it? 1 1");
    assert_eq!((&body["choices"][0]["finish_reason"], &body["object"]), (&"stop".into(), &"chat.completion".into()));
    assert_eq!((&out[1]["response"], &out[1]["error"]["code"]), (&Value::Null, &"batch.request".into()));
    assert!(out[1]["error"]["message"].as_str().unwrap().contains("audio"));
    assert_eq!(out[2]["error"]["code"], "sampling.unsupported");
    assert_eq!(out[3]["error"]["message"], "the body's n can't be 4294967295");
    scratch.run(&[]).exits(1).says("nothing is left to do");
    scratch.run(&["--output", "out.parquet"]).exits(2).says("the answers to a batch file are JSON lines");
    scratch
        .run(&["--input-format", "openai_batch", "--system-prompt", "x", "--output", "y.jsonl"])
        .exits(2)
        .says("has no effect");
}

/// A file that holds a text.
fn holds(scratch: &Scratch, name: &str, text: &str) -> bool {
    fs::read(scratch.path(name)).unwrap().windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn parquet_says_to_hugging_face_what_its_columns_are() {
    let scratch = photos();
    scratch.file("rows.jsonl", "{\"id\": 1, \"instruction\": \"what\", \"image\": \"photos/b.png\"}\n");
    scratch.run(&["--output", "out.parquet", "--output-images", "embed"]).exits(0);
    assert!(holds(&scratch, "out.parquet", "huggingface"));
    for feature in [r#""image":{"_type":"Image"}"#, r#""id":{"dtype":"int64","_type":"Value"}"#] {
        assert!(holds(&scratch, "out.parquet", feature), "{feature}");
    }
    // As pyarrow wrote it: names of classes, which only the features tell, and images whose bytes have no name.
    let fixture = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/features.parquet");
    scratch.file("features.parquet", fs::read(fixture).unwrap());
    scratch.run(&["--input", "features.parquet", "--output", "again.parquet"]).exits(0);
    let back = read_back(&scratch, "again.parquet");
    assert_eq!((&back[1]["label"], &back[0]["image"]["path"]), (&1.into(), &Value::Null), "{back:?}");
    assert!(back[0]["image"]["bytes"].as_str().unwrap().starts_with("iVBORw0KGgo"), "{back:?}");
    for feature in [r#""names":["cat","dog"]"#, r#""image":{"_type":"Image"}"#] {
        assert!(holds(&scratch, "again.parquet", feature), "{feature}");
    }
}

#[test]
fn images_from_the_network_are_embedded_and_fetched_once() {
    let photo = image_of_the_fixtures();
    let sent = photo.clone();
    let server = vgen_loopback::Server::start(move |request| match request.path.as_str() {
        "/none.png" => vgen_loopback::Answer::status(404),
        _ => vgen_loopback::Answer::body("image/png", sent.clone()),
    })
    .unwrap();
    let model = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mllama/tiny-hublike");
    let scratch = Scratch::new();
    let row = |name: &str| format!("{{\"instruction\": \"what\", \"image\": \"{}/{name}\"}}\n", server.url());
    scratch.file("rows.jsonl", ["a.png", "b.png", "a.png", "none.png"].map(row).concat());
    let args = ["--model", model.to_str().unwrap(), "--input", "rows.jsonl", "--output", "out.parquet"];
    let more =
        ["--output-images", "embed", "--allow-private-addresses", "--max-new-tokens", "2", "--prepare-threads", "1"];
    scratch.vgen_local(&[&args[..], &more].concat()).exits(1);
    let back = read_back_with(&scratch, "out.parquet");
    use base64::Engine;
    for row in &back[..3] {
        let bytes = base64::engine::general_purpose::STANDARD.decode(row["image"]["bytes"].as_str().unwrap()).unwrap();
        assert!(bytes == photo, "{}", row["image"]["path"]);
    }
    assert_eq!((&back[3]["image"]["bytes"], &back[3]["error"]["code"]), (&Value::Null, &"image.http_status".into()));
    assert!(back[3]["image"]["path"].as_str().unwrap().ends_with("/none.png"));
    let paths: Vec<_> = server.received().into_iter().map(|request| request.path).collect();
    assert_eq!(paths, ["/a.png", "/b.png", "/none.png"]);

    // A backend that fetches nothing: the output does, once for each; and other formats hold images, too.
    scratch.config("");
    let run =
        ["--output", "out.jsonl", "--output-images", "embed", "--allow-private-addresses", "--image-position", "first"];
    scratch.run(&run).exits(0);
    let rows = scratch.rows("out.jsonl");
    assert_eq!(rows[0]["image"], back[0]["image"]);
    assert_eq!(server.requests(), 6);
    scratch.run(&["--output", "-", "--output-images", "reference"]).exits(0).says("done");
}

fn image_of_the_fixtures() -> Vec<u8> {
    let path = "tests/fixtures/mllama/public/images/raw_text_first_0.png";
    fs::read(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// All rows of a file as they are, through `vgen run` with a backend that repeats nothing.
fn read_back_with(scratch: &Scratch, name: &str) -> Vec<Value> {
    scratch.config("");
    read_back(scratch, name)
}

#[test]
fn an_image_that_was_edited_under_a_finished_row_is_seen() {
    let scratch = photos();
    let run = |more: &[&str]| {
        let args = ["--input", "photos", "--instruction", "Describe it.", "--output", "out.jsonl"];
        scratch.run(&[&args[..], more].concat())
    };
    run(&["--limit", "2"]).exits(0);
    run(&["--limit", "2"]).exits(0).says("nothing is left to do");
    // As many bytes as before.
    let edited = fs::read(scratch.path("photos/a.PNG")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    scratch.file("photos/a.PNG", edited);
    run(&[]).exits(3).says("are not what they were");
    run(&["--overwrite"]).exits(0);
    // An image behind the finished rows may change.
    let scratch = photos();
    let args = ["--input", "photos", "--instruction", "Describe it.", "--output", "out.jsonl"];
    scratch.run(&[&args[..], &["--limit", "2"]].concat()).exits(0);
    scratch.file("photos/sub/c.png", png(9));
    scratch.run(&args).exits(0).says("3 rows");
}
