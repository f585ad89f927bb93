//! Python's `json.dumps` with sorted keys, made safe for HTML: what Jinja2's `tojson` prints.

use std::fmt::Write as _;

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::arguments::invalid;
use super::python::{as_f64, float, type_name};

/// The JSON text of a value, indented by `indent` for each level if given.
pub(crate) fn dumps(value: &Value, indent: Option<&str>) -> Result<String, Error> {
    let mut out = String::new();
    write(&mut out, value, indent, 0)?;
    Ok(out)
}

fn write(out: &mut String, value: &Value, indent: Option<&str>, level: usize) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number if value.is_integer() => {
            let _ = write!(out, "{value}");
        }
        ValueKind::Number => out.push_str(&number(as_f64(value))),
        ValueKind::String => string(out, value.as_str().unwrap_or_default()),
        ValueKind::Map => {
            let pairs = value.as_object().and_then(|object| object.try_iter_pairs());
            let mut members = Vec::new();
            for (key, item) in pairs.into_iter().flatten() {
                members.push((key_text(&key)?, item));
            }
            members.sort_by(|a, b| a.0.cmp(&b.0));
            container(out, ['{', '}'], &members, indent, level, |out, (key, item)| {
                string(out, key);
                out.push_str(": ");
                write(out, item, indent, level + 1)
            })?;
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            container(out, ['[', ']'], &items, indent, level, |out, item| write(out, item, indent, level + 1))?;
        }
        // A long integer prints its digits; nothing else is JSON.
        _ => match value.to_string() {
            digits if digits.trim_start_matches('-').bytes().all(|b| b.is_ascii_digit()) && !digits.is_empty() => {
                out.push_str(&digits);
            }
            _ => return Err(invalid(format!("Object of type {} is not JSON serializable", type_name(value)))),
        },
    }
    Ok(())
}

fn container<T>(
    out: &mut String,
    brackets: [char; 2],
    items: &[T],
    indent: Option<&str>,
    level: usize,
    mut item: impl FnMut(&mut String, &T) -> Result<(), Error>,
) -> Result<(), Error> {
    let newline = |out: &mut String, level: usize| {
        if let Some(indent) = indent {
            out.push('\n');
            (0..level).for_each(|_| out.push_str(indent));
        }
    };
    out.push(brackets[0]);
    for (i, value) in items.iter().enumerate() {
        if i > 0 {
            out.push_str(if indent.is_some() { "," } else { ", " });
        }
        newline(out, level + 1);
        item(out, value)?;
    }
    if !items.is_empty() {
        newline(out, level);
    }
    out.push(brackets[1]);
    Ok(())
}

fn number(number: f64) -> String {
    if number.is_nan() {
        "NaN".to_owned()
    } else if number.is_infinite() {
        if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()
    } else {
        float(number)
    }
}

fn key_text(key: &Value) -> Result<String, Error> {
    Ok(match key.kind() {
        ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
        ValueKind::None => "null".to_owned(),
        ValueKind::Bool => if key.is_true() { "true" } else { "false" }.to_owned(),
        ValueKind::Number if key.is_integer() => key.to_string(),
        ValueKind::Number => number(as_f64(key)),
        _ => return Err(invalid(format!("keys must be str, int, float, bool or None, not {}", type_name(key)))),
    })
}

fn string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ' '..='~' if !matches!(c, '<' | '>' | '&' | '\'') => out.push(c),
            _ => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    out.push('"');
}
