//! Jinja2's filters of text, with Python's rules for case, white space, JSON and URLs.

use std::fmt::Write as _;

use minijinja::value::ValueKind;
use minijinja::{Error, State, Value};
use regex::Regex;

use super::arguments::{Arguments, invalid};
use super::filters::Filter;
use super::json;
use super::methods::{self, capitalize, split_lines};
use super::python::{as_f64, escape_html, repr, repr_sorted, text, type_name};
use super::wrap::wrap;

pub(crate) const FILTERS: &[(&str, &[&str], Filter)] = &[
    ("capitalize", &["s"], |_, args| like(args, |s| capitalize(s))),
    ("center", &["value", "width"], center),
    ("e", &["s"], escape),
    ("escape", &["s"], escape),
    ("filesizeformat", &["value", "binary"], filesizeformat),
    ("forceescape", &["value"], |_, args| Ok(Value::from_safe_string(escape_html(&text(args.need(0)?))))),
    ("indent", &["s", "width", "first", "blank"], indent),
    ("lower", &["s"], |_, args| like(args, str::to_lowercase)),
    ("pprint", &["value"], |_, args| args.need(0).map(|value| Value::from(repr_sorted(value)))),
    ("replace", &["s", "old", "new", "count"], replace),
    ("string", &["object"], |_, args| like(args, str::to_owned)),
    ("striptags", &["value"], striptags),
    ("title", &["s"], |_, args| like(args, title)),
    ("tojson", &["value", "indent"], tojson),
    ("trim", &["value", "chars"], trim),
    ("truncate", &["s", "length", "killwords", "end", "leeway"], truncate),
    ("upper", &["s"], |_, args| like(args, str::to_uppercase)),
    ("urlencode", &["value"], urlencode),
    ("urlize", &["value", "trim_url_limit", "nofollow", "target", "rel", "extra_schemes"], urlize),
    ("wordcount", &["s"], wordcount),
    ("wordwrap", &["s", "width", "break_long_words", "wrapstring", "break_on_hyphens"], wordwrap),
    ("xmlattr", &["d", "autospace"], xmlattr),
];

/// The text of the first argument.
fn subject(args: &Arguments) -> Result<String, Error> {
    args.need(0).map(text)
}

/// A text made of the first argument, safe if that is.
fn like(args: &Arguments, make: impl Fn(&str) -> String) -> Result<Value, Error> {
    let made = make(&subject(args)?);
    Ok(if args.need(0)?.is_safe() { Value::from_safe_string(made) } else { Value::from(made) })
}

/// Jinja2's `title`, whose words start after white space, `-` and opening brackets only.
fn title(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    let mut start = true;
    for c in s.chars() {
        let separator = methods::is_space(c) || "-({[<".contains(c);
        if start && !separator {
            out.extend(c.to_uppercase());
        } else {
            out.extend(c.to_lowercase());
        }
        start = separator;
    }
    out
}

fn center(state: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    let width = Value::from(args.length(1, 80)?);
    let padding = Arguments::bind("center", &["width", "fillchar"], &[width])?;
    methods::pad(state, &subject(args)?, &padding, 1, 1).map(Value::from)
}

fn escape(_: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    let value = args.need(0)?;
    Ok(if value.is_safe() { value.clone() } else { Value::from_safe_string(escape_html(&text(value))) })
}

fn filesizeformat(_: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    let value = args.need(0)?;
    let size = match value.as_str() {
        Some(text) => {
            text.trim().parse().map_err(|_| invalid(format!("could not convert string to float: {text:?}")))?
        }
        None if value.is_number() => as_f64(value),
        None => return Err(invalid(format!("float() argument must not be '{}'", type_name(value)))),
    };
    let binary = args.flag(1, false);
    let base: f64 = if binary { 1024.0 } else { 1000.0 };
    if size == 1.0 {
        return Ok(Value::from("1 Byte"));
    }
    if size < base {
        return Ok(Value::from(format!("{} Bytes", size.trunc())));
    }
    let prefixes = if binary {
        ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"]
    } else {
        ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"]
    };
    let mut unit = base * base;
    let mut place = 0;
    while size >= unit && place + 1 < prefixes.len() {
        unit *= base;
        place += 1;
    }
    Ok(Value::from(format!("{:.1} {}", base * size / unit, prefixes[place])))
}

fn indent(state: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    let subject = subject(args)?;
    let indention = match args.some(1) {
        Some(width) if width.as_str().is_some() => text(width),
        _ => " ".repeat(args.length(1, 4)?.min(1 << 16)),
    };
    // Jinja2 puts a newline behind the text, so that one at its end stays.
    let subject = format!("{subject}\n");
    let lines = split_lines(&subject, false);
    state.consume_fuel((lines.len() * indention.len() / 64) as u64)?;
    let blank = args.flag(3, false);
    let mut out = String::new();
    for (i, line) in lines.iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        let wanted = if i == 0 { args.flag(2, false) } else { blank || !line.is_empty() };
        if wanted {
            out.push_str(&indention);
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

fn replace(state: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    let (old, new) = (text(args.need(1)?), text(args.need(2)?));
    methods::replace(state, &subject(args)?, &old, &new, args.integer(3, -1)?)
}

fn trim(_: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    let chars = args.text(1)?;
    like(args, |s| s.trim_matches(|c| chars.map_or_else(|| methods::is_space(c), |set| set.contains(c))).to_owned())
}

fn truncate(_: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    let subject = subject(args)?;
    let length = args.length(1, 255)?;
    let end = args.some(3).map_or_else(|| "...".to_owned(), text);
    let leeway = args.length(4, 5)?;
    let room = length
        .checked_sub(end.chars().count())
        .ok_or_else(|| invalid(format!("expected length >= {}, got {length}", end.chars().count())))?;
    if subject.chars().count() <= length.saturating_add(leeway) {
        return Ok(Value::from(subject));
    }
    let cut: String = subject.chars().take(room).collect();
    let kept =
        if args.flag(2, false) { cut.as_str() } else { cut.rsplit_once(' ').map_or(cut.as_str(), |(kept, _)| kept) };
    Ok(Value::from(format!("{kept}{end}")))
}

fn wordcount(_: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    let subject = subject(args)?;
    let words = subject.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty());
    Ok(Value::from(words.count()))
}

fn wordwrap(_: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    let width = args.length(1, 79)?;
    if width == 0 {
        return Err(invalid("invalid width 0 (must be > 0)"));
    }
    let newline = args.some(3).map_or_else(|| "\n".to_owned(), text);
    let subject = subject(args)?;
    let lines: Vec<String> = split_lines(&subject, false)
        .into_iter()
        .map(|line| wrap(line, width, args.flag(2, true), args.flag(4, true)).join(&newline))
        .collect();
    Ok(Value::from(lines.join(&newline)))
}

fn tojson(_: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    let indent = match args.some(1) {
        None => None,
        Some(text) if text.as_str().is_some() => text.as_str().map(str::to_owned),
        Some(_) => Some(" ".repeat(args.length(1, 0)?.min(64))),
    };
    json::dumps(args.need(0)?, indent.as_deref()).map(Value::from_safe_string)
}

fn quote(s: &str, query: bool) -> String {
    let mut out = String::new();
    for byte in s.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => out.push(char::from(byte)),
            b'/' if !query => out.push('/'),
            b' ' if query => out.push('+'),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

fn urlencode(_: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    let value = args.need(0)?;
    let pair = |name: &Value, item: &Value| format!("{}={}", quote(&text(name), true), quote(&text(item), true));
    let pairs: Vec<String> = match value.kind() {
        ValueKind::Map => {
            let pairs = value.as_object().and_then(|object| object.try_iter_pairs());
            pairs.into_iter().flatten().map(|(name, item)| pair(&name, &item)).collect()
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let mut pairs = Vec::new();
            for entry in value.try_iter()? {
                let entry: Vec<Value> = entry.try_iter()?.collect();
                let [name, item] = entry.as_slice() else { return Err(invalid("expected pairs to encode")) };
                pairs.push(pair(name, item));
            }
            pairs
        }
        _ => return Ok(Value::from(quote(&text(value), false))),
    };
    Ok(Value::from(pairs.join("&")))
}

fn xmlattr(_: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    let value = args.need(0)?;
    let mut out = String::new();
    for (name, item) in value.as_object().and_then(|object| object.try_iter_pairs()).into_iter().flatten() {
        if item.is_none() || item.is_undefined() {
            continue;
        }
        let name = text(&name);
        if name.contains([' ', '\t', '\n', '\u{c}', '\r', '/', '>', '=']) {
            return Err(invalid(format!("Invalid character in attribute name: {}", repr(&Value::from(name)))));
        }
        if !out.is_empty() || args.flag(1, true) {
            out.push(' ');
        }
        let _ = write!(out, "{}=\"{}\"", escape_html(&name), escape_html(&text(&item)));
    }
    Ok(Value::from_safe_string(out))
}

fn striptags(_: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    let mut rest = subject(args)?;
    for (open, close) in [("<!--", "-->"), ("<", ">")] {
        while let Some(start) = rest.find(open)
            && let Some(length) = rest[start..].find(close)
        {
            rest.replace_range(start..start + length + close.len(), "");
        }
    }
    let words: Vec<&str> = rest.split(methods::is_space).filter(|word| !word.is_empty()).collect();
    Ok(Value::from(unescape(&words.join(" "))))
}

/// `html.unescape` of numbers and of the names that occur in running text.
fn unescape(s: &str) -> String {
    let mut out = String::new();
    let mut rest = s;
    while let Some(start) = rest.find('&') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let end = rest.find(';').filter(|end| *end <= 10);
        let Some((end, c)) = end.and_then(|end| Some((end, entity(&rest[1..end])?))) else {
            out.push('&');
            rest = &rest[1..];
            continue;
        };
        out.push(c);
        rest = &rest[end + 1..];
    }
    out.push_str(rest);
    out
}

fn entity(name: &str) -> Option<char> {
    if let Some(number) = name.strip_prefix('#') {
        let code = match number.strip_prefix(['x', 'X']) {
            Some(hex) => u32::from_str_radix(hex, 16).ok()?,
            None => number.parse().ok()?,
        };
        return char::from_u32(code);
    }
    Some(match name {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        "nbsp" => '\u{a0}',
        "copy" => '©',
        "reg" => '®',
        "trade" => '™',
        "hellip" => '…',
        "mdash" => '—',
        "ndash" => '–',
        "lsquo" => '‘',
        "rsquo" => '’',
        "ldquo" => '“',
        "rdquo" => '”',
        "laquo" => '«',
        "raquo" => '»',
        "bull" => '•',
        "middot" => '·',
        "deg" => '°',
        "euro" => '€',
        "times" => '×',
        "eacute" => 'é',
        "auml" => 'ä',
        "ouml" => 'ö',
        "uuml" => 'ü',
        "szlig" => 'ß',
        _ => return None,
    })
}

/// A URL as Jinja2 knows one in running text.
const URL: &str = r"(?i)^((https?://|www\.)(([\w%-]+\.)+)?([a-z]{2,63}|xn--[\w%]{2,59})|([\w%-]{2,63}\.)+(com|net|int|edu|gov|org|info|mil)|https?://((\d{1,3}(\.\d{1,3}){3})|(\[([\da-f]{0,4}:){2}([\da-f]{0,4}:?){1,6}\])))(:\d{1,5})?([/?#]\S*)?$";
const EMAIL: &str = r"^\S+@\w[\w.-]*\.\w+$";

fn urlize(_: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    let pattern = |text: &str| Regex::new(text).map_err(|error| invalid(error.to_string()));
    let (url, email) = (pattern(URL)?, pattern(EMAIL)?);
    let (head, tail, parts) = (pattern(r"^([(<]|&lt;)+")?, pattern(r"([)>.,\n]|&gt;)+$")?, pattern(r"\s+|\S+")?);
    let limit = args.some(1).map(|_| args.length(1, 0)).transpose()?.filter(|limit| *limit > 0);
    let mut rel: Vec<String> = args.text(4)?.unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    if args.flag(2, false) {
        rel.push("nofollow".to_owned());
    }
    rel.push("noopener".to_owned());
    rel.sort();
    rel.dedup();
    let mut attributes = format!(" rel=\"{}\"", escape_html(&rel.join(" ")));
    if let Some(target) = args.text(3)? {
        let _ = write!(attributes, " target=\"{}\"", escape_html(target));
    }
    let schemes: Vec<String> = match args.some(5) {
        Some(list) => list.try_iter()?.map(|scheme| text(&scheme)).collect(),
        None => Vec::new(),
    };
    let shown = |url: &str| match limit {
        Some(limit) if url.chars().count() > limit => url.chars().take(limit).collect::<String>() + "...",
        _ => url.to_owned(),
    };
    let escaped = escape_html(&subject(args)?);
    let mut out = String::new();
    for word in parts.find_iter(&escaped) {
        let word = word.as_str();
        let start = head.find(word).map_or(0, |found| found.end());
        let end = tail.find(&word[start..]).map_or(word.len(), |found| start + found.start());
        let mut middle = word[start..end].to_owned();
        let mut after = word[end..].to_owned();
        for (open, close) in [("(", ")"), ("<", ">"), ("&lt;", "&gt;")] {
            let opened = middle.matches(open).count();
            if opened <= middle.matches(close).count() {
                continue;
            }
            for _ in 0..opened.min(after.matches(close).count()) {
                let Some(at) = after.find(close) else { break };
                middle.extend(after.drain(..at + close.len()));
            }
        }
        let bare = middle.strip_prefix("mailto:").unwrap_or(&middle).to_owned();
        let link = if url.is_match(&middle) {
            let href = if middle.starts_with("https://") || middle.starts_with("http://") {
                middle.clone()
            } else {
                format!("https://{middle}")
            };
            Some((href, shown(&middle)))
        } else if middle.starts_with("mailto:") && email.is_match(&bare) {
            Some((middle.clone(), bare))
        } else if middle.contains('@')
            && !middle.starts_with("www.")
            && !middle.contains(':')
            && email.is_match(&middle)
        {
            Some((format!("mailto:{middle}"), middle.clone()))
        } else if schemes.iter().any(|scheme| middle != *scheme && middle.starts_with(scheme.as_str())) {
            Some((middle.clone(), middle.clone()))
        } else {
            None
        };
        out.push_str(&word[..start]);
        match link {
            // Addresses of mail carry no rel, as in Jinja2.
            Some((href, label)) if href.starts_with("mailto:") => {
                let _ = write!(out, "<a href=\"{href}\">{label}</a>");
            }
            Some((href, label)) => {
                let _ = write!(out, "<a href=\"{href}\"{attributes}>{label}</a>");
            }
            None => out.push_str(&middle),
        }
        out.push_str(&after);
    }
    Ok(Value::from(out))
}
