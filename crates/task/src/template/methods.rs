//! Python's methods of `str`, `dict`, `list` and numbers, for templates that call them.

use std::sync::Arc;

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Object, ObjectRepr, Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use super::arguments::{Arguments, invalid};
use super::python::{Dict, List, View, as_f64, is_printable, repr, text, type_name};

const STR: &[&str] = &[
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
];
const DICT: &[&str] = &["copy", "get", "items", "keys", "values"];
const LIST: &[&str] = &["copy", "count", "index"];
const FLOAT: &[&str] = &["is_integer"];
const INT: &[&str] = &["bit_length"];

/// Names of the methods that a value has.
fn methods_of(value: &Value) -> &'static [&'static str] {
    match value.kind() {
        ValueKind::String => STR,
        ValueKind::Map => DICT,
        ValueKind::Seq => LIST,
        ValueKind::Number if value.is_integer() => INT,
        ValueKind::Number => FLOAT,
        _ => &[],
    }
}

/// A method taken off its value, to be called later: what `attr("upper")` gives.
#[derive(Debug)]
struct BoundMethod {
    value: Value,
    name: &'static str,
}

impl Object for BoundMethod {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        call(state, &self.value, self.name, args)
    }

    fn render(self: &Arc<Self>, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "<built-in method {} of {} object>", self.name, type_name(&self.value))
    }
}

/// A value's method, not yet called.
pub(crate) fn bound(value: &Value, name: &str) -> Option<Value> {
    let name = methods_of(value).iter().find(|known| **known == name)?;
    Some(Value::from_object(BoundMethod { value: value.clone(), name }))
}

/// Calls a method; the callback of the engine for methods that objects do not have themselves.
pub(crate) fn call(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(name) = methods_of(value).iter().copied().find(|known| *known == name) else {
        let message = format!("'{} object' has no attribute '{name}'", type_name(value));
        return Err(Error::new(ErrorKind::UnknownMethod, message));
    };
    match value.kind() {
        ValueKind::String => string(state, value.as_str().unwrap_or_default(), name, args),
        ValueKind::Map => dict(value, name, args),
        ValueKind::Seq => list(value, name, args),
        _ => number(value, name),
    }
}

pub(crate) fn list_of(items: impl IntoIterator<Item = Value>) -> Value {
    Value::from_object(List(items.into_iter().collect()))
}

pub(crate) fn pair(a: Value, b: Value) -> Value {
    Value::from(Tuple::from([a, b]))
}

fn view(name: &'static str, items: Vec<Value>) -> Value {
    Value::from_object(View { name, items })
}

fn dict(value: &Value, name: &'static str, args: &[Value]) -> Result<Value, Error> {
    let object = value.as_object().ok_or_else(|| invalid("no dict"))?;
    let pairs = || object.try_iter_pairs().into_iter().flatten();
    match name {
        "get" => {
            let args = Arguments::bind(name, &["key", "default"], args)?;
            let found = object.get_value(args.need(0)?);
            Ok(found.unwrap_or_else(|| args.get(1).cloned().unwrap_or_else(|| Value::from(()))))
        }
        _ => {
            Arguments::bind(name, &[], args)?;
            Ok(match name {
                "keys" => view("dict_keys", pairs().map(|(key, _)| key).collect()),
                "values" => view("dict_values", pairs().map(|(_, item)| item).collect()),
                "items" => view("dict_items", pairs().map(|(key, item)| pair(key, item)).collect()),
                _ => value.clone(),
            })
        }
    }
}

fn list(value: &Value, name: &'static str, args: &[Value]) -> Result<Value, Error> {
    let items = || value.try_iter().into_iter().flatten();
    match name {
        "count" => {
            let args = Arguments::bind(name, &["value"], args)?;
            let wanted = args.need(0)?;
            Ok(Value::from(items().filter(|item| item == wanted).count()))
        }
        "index" => {
            let args = Arguments::bind(name, &["value"], args)?;
            let wanted = args.need(0)?;
            let place = items().position(|item| item == *wanted);
            place.map(Value::from).ok_or_else(|| invalid(format!("{} is not in list", repr(wanted))))
        }
        _ => {
            Arguments::bind(name, &[], args)?;
            Ok(list_of(items()))
        }
    }
}

fn number(value: &Value, name: &'static str) -> Result<Value, Error> {
    Ok(match name {
        "is_integer" => Value::from(as_f64(value).fract() == 0.0),
        _ => {
            let number = i128::try_from(value.clone())?;
            Value::from(128 - number.unsigned_abs().leading_zeros())
        }
    })
}

/// `str.isspace` and what `strip` takes off: Unicode's white space and the four separators of ASCII.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn strip<'a>(s: &'a str, chars: Option<&str>, left: bool, right: bool) -> &'a str {
    let out = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let s = if left { s.trim_start_matches(out) } else { s };
    if right { s.trim_end_matches(out) } else { s }
}

/// `str.capitalize`.
pub(crate) fn capitalize(s: &str) -> String {
    let mut chars = s.chars();
    let mut out = String::with_capacity(s.len());
    if let Some(first) = chars.next() {
        titlecase(&mut out, first);
    }
    out.push_str(&chars.as_str().to_lowercase());
    out
}

/// A character's title case: of those that have several capital letters only the first is one.
fn titlecase(out: &mut String, c: char) {
    // The digraphs are single characters with a title case of their own.
    if let Some(title) = match c {
        'Ǆ'..='ǆ' => Some('ǅ'),
        'Ǉ'..='ǉ' => Some('ǈ'),
        'Ǌ'..='ǌ' => Some('ǋ'),
        'Ǳ'..='ǳ' => Some('ǲ'),
        _ => None,
    } {
        out.push(title);
        return;
    }
    let mut upper = c.to_uppercase();
    out.extend(upper.next());
    out.extend(upper.flat_map(char::to_lowercase));
}

/// `str.title`: a word starts after anything that has no case.
fn title(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    let mut inside = false;
    for c in s.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            titlecase(&mut out, c);
        }
        inside = c.is_lowercase() || c.is_uppercase();
    }
    out
}

fn casefold(s: &str) -> String {
    // Full case folding: sharp s and the ligatures unfold when raised, all others are lowered.
    s.chars().flat_map(|c| c.to_uppercase().collect::<Vec<_>>()).collect::<String>().to_lowercase()
}

/// `str.splitlines`.
pub(crate) fn split_lines(s: &str, keep_ends: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = s;
    while !rest.is_empty() {
        let end = rest.find(|c: char| {
            matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
        });
        let Some(end) = end else {
            lines.push(rest);
            break;
        };
        let mut next = end + rest[end..].chars().next().map_or(1, char::len_utf8);
        if rest[end..].starts_with("\r\n") {
            next = end + 2;
        }
        lines.push(if keep_ends { &rest[..next] } else { &rest[..end] });
        rest = &rest[next..];
    }
    lines
}

fn split<'a>(s: &'a str, separator: Option<&str>, limit: i64, from_right: bool) -> Result<Vec<&'a str>, Error> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut parts = Vec::new();
    let Some(separator) = separator else {
        let mut rest = strip(s, None, true, true);
        if from_right {
            while parts.len() < limit
                && let Some((at, c)) = rest.char_indices().rev().find(|(_, c)| is_space(*c))
            {
                parts.push(&rest[at + c.len_utf8()..]);
                rest = strip(&rest[..at], None, false, true);
            }
        } else {
            // The last part keeps its own spaces at the end, as it does in Python.
            rest = strip(s, None, true, false);
            while parts.len() < limit
                && let Some(at) = rest.find(is_space)
            {
                parts.push(&rest[..at]);
                rest = strip(&rest[at..], None, true, false);
            }
        }
        if !rest.is_empty() {
            parts.push(rest);
        }
        if from_right {
            parts.reverse();
        }
        return Ok(parts);
    };
    if separator.is_empty() {
        return Err(invalid("empty separator"));
    }
    if from_right {
        parts.extend(s.rsplitn(limit.saturating_add(1), separator));
        parts.reverse();
    } else {
        parts.extend(s.splitn(limit.saturating_add(1), separator));
    }
    Ok(parts)
}

/// The part of `s` between two places counted in characters, which may be negative, with its start in bytes.
fn window<'a>(s: &'a str, args: &Arguments) -> Result<(&'a str, usize), Error> {
    let length = i64::try_from(s.chars().count()).unwrap_or(i64::MAX);
    let clamp = |place: i64| if place < 0 { (length + place).max(0) } else { place.min(length) };
    let start = clamp(args.integer(1, 0)?);
    let end = clamp(args.integer(2, length)?).max(start);
    let byte = |place: i64| s.char_indices().nth(usize::try_from(place).unwrap_or(0)).map_or(s.len(), |(at, _)| at);
    Ok((&s[byte(start)..byte(end)], byte(start)))
}

/// Pads to a width counted in characters.
pub(crate) fn pad(state: &State<'_, '_>, s: &str, args: &Arguments, left: u8, right: u8) -> Result<String, Error> {
    let width = args.length(0, 0)?;
    let fill = args.text(1)?.unwrap_or(" ");
    let count = s.chars().count();
    let missing = width.saturating_sub(count);
    state.consume_fuel((missing / 64) as u64)?;
    if fill.chars().count() != 1 {
        return Err(invalid("the fill character must be exactly one character long"));
    }
    let before = match (left, right) {
        (1, 1) => missing / 2 + (missing & width & 1),
        (1, _) => missing,
        _ => 0,
    };
    Ok(format!("{}{s}{}", fill.repeat(before), fill.repeat(missing - before)))
}

fn affix(args: &Arguments, test: impl Fn(&str) -> bool) -> Result<Value, Error> {
    let wanted = args.need(0)?;
    if let Some(text) = wanted.as_str() {
        return Ok(Value::from(test(text)));
    }
    if wanted.downcast_object_ref::<Tuple>().is_none() {
        return Err(invalid(format!("first arg must be str or a tuple of str, not {}", type_name(wanted))));
    }
    Ok(Value::from(wanted.try_iter()?.any(|item| item.as_str().is_some_and(&test))))
}

fn string(state: &mut State<'_, '_>, s: &str, name: &'static str, given: &[Value]) -> Result<Value, Error> {
    const CHARS: &[&str] = &["chars"];
    const FIND: &[&str] = &["sub", "start", "end"];
    const SPLIT: &[&str] = &["sep", "maxsplit"];
    const PAD: &[&str] = &["width", "fillchar"];
    let all = |test: fn(char) -> bool| Value::from(!s.is_empty() && s.chars().all(test));
    let cased = |wanted: fn(&char) -> bool, other: fn(&char) -> bool| {
        Value::from(s.chars().any(|c| wanted(&c)) && !s.chars().any(|c| other(&c)))
    };
    let texts = |parts: Vec<&str>| list_of(parts.into_iter().map(Value::from));
    Ok(match name {
        "strip" | "lstrip" | "rstrip" => {
            let args = Arguments::bind(name, CHARS, given)?;
            Value::from(strip(s, args.text(0)?, name != "rstrip", name != "lstrip"))
        }
        "split" | "rsplit" => {
            let args = Arguments::bind(name, SPLIT, given)?;
            texts(split(s, args.text(0)?, args.integer(1, -1)?, name == "rsplit")?)
        }
        "splitlines" => {
            let args = Arguments::bind(name, &["keepends"], given)?;
            texts(split_lines(s, args.flag(0, false)))
        }
        "partition" | "rpartition" => {
            let args = Arguments::bind(name, &["sep"], given)?;
            let separator = args.text(0)?.ok_or_else(|| invalid("must be str"))?;
            let at = if name == "partition" { s.find(separator) } else { s.rfind(separator) };
            let parts = match at {
                Some(at) => [&s[..at], separator, &s[at + separator.len()..]],
                None if name == "partition" => [s, "", ""],
                None => ["", "", s],
            };
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "replace" => {
            let args = Arguments::bind(name, &["old", "new", "count"], given)?;
            replace(
                state,
                s,
                args.text(0)?.ok_or_else(|| invalid("replace() needs a string"))?,
                args.text(1)?.ok_or_else(|| invalid("replace() needs two strings"))?,
                args.integer(2, -1)?,
            )?
        }
        "startswith" | "endswith" => {
            let args = Arguments::bind(name, FIND, given)?;
            let (part, _) = window(s, &args)?;
            let start = name == "startswith";
            affix(&args, |text| if start { part.starts_with(text) } else { part.ends_with(text) })?
        }
        "removeprefix" | "removesuffix" => {
            let args = Arguments::bind(name, &["affix"], given)?;
            let affix = args.text(0)?.unwrap_or_default();
            let rest = if name == "removeprefix" { s.strip_prefix(affix) } else { s.strip_suffix(affix) };
            Value::from(rest.unwrap_or(s))
        }
        "find" | "index" | "rfind" | "rindex" => {
            let args = Arguments::bind(name, FIND, given)?;
            let wanted = args.text(0)?.ok_or_else(|| invalid(format!("{name}() needs a string")))?;
            let (part, offset) = window(s, &args)?;
            let at = if name.starts_with('r') { part.rfind(wanted) } else { part.find(wanted) };
            match at {
                Some(at) => Value::from(s[..offset + at].chars().count()),
                None if name.ends_with("index") => return Err(invalid("substring not found")),
                None => Value::from(-1),
            }
        }
        "count" => {
            let args = Arguments::bind(name, FIND, given)?;
            let wanted = args.text(0)?.ok_or_else(|| invalid("count() needs a string"))?;
            let (part, _) = window(s, &args)?;
            // str::matches finds the empty text between all characters, as Python does.
            Value::from(part.matches(wanted).count())
        }
        "join" => {
            let args = Arguments::bind(name, &["iterable"], given)?;
            let mut out = String::new();
            for (i, item) in args.need(0)?.try_iter()?.enumerate() {
                let Some(text) = item.as_str() else {
                    let found = type_name(&item);
                    return Err(invalid(format!("sequence item {i}: expected str instance, {found} found")));
                };
                if i > 0 {
                    out.push_str(s);
                }
                state.consume_fuel(((s.len() + text.len()) / 64) as u64)?;
                out.push_str(text);
            }
            Value::from(out)
        }
        "format" => Value::from(format(FormatStyle::StrFormat, s, given)?),
        "format_map" => {
            let args = Arguments::bind(name, &["mapping"], given)?;
            let pairs = args.need(0)?.as_object().and_then(|object| object.try_iter_pairs());
            let keywords: minijinja::value::Kwargs =
                pairs.into_iter().flatten().map(|(key, value)| (text(&key), value)).collect();
            Value::from(format(FormatStyle::StrFormat, s, &[Value::from(keywords)])?)
        }
        "center" | "ljust" | "rjust" => {
            let args = Arguments::bind(name, PAD, given)?;
            Value::from(pad(state, s, &args, u8::from(name != "ljust"), u8::from(name != "rjust"))?)
        }
        "zfill" => {
            let args = Arguments::bind(name, &["width"], given)?;
            let (sign, digits) = s.split_at(usize::from(s.starts_with(['+', '-'])));
            let missing = args.length(0, 0)?.saturating_sub(s.chars().count());
            state.consume_fuel((missing / 64) as u64)?;
            Value::from(format!("{sign}{}{digits}", "0".repeat(missing)))
        }
        "expandtabs" => {
            let args = Arguments::bind(name, &["tabsize"], given)?;
            let size = args.length(0, 8)?.min(1024);
            let mut out = String::new();
            let mut column = 0;
            for c in s.chars() {
                match c {
                    '\t' if size == 0 => {}
                    '\t' => {
                        let step = size - column % size;
                        out.push_str(&" ".repeat(step));
                        column += step;
                    }
                    _ => {
                        out.push(c);
                        column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
                    }
                }
            }
            Value::from(out)
        }
        _ => {
            Arguments::bind(name, &[], given)?;
            match name {
                "upper" => Value::from(s.to_uppercase()),
                "lower" => Value::from(s.to_lowercase()),
                "capitalize" => Value::from(capitalize(s)),
                "title" => Value::from(title(s)),
                "casefold" => Value::from(casefold(s)),
                "swapcase" => Value::from(swapcase(s)),
                "islower" => cased(|c| c.is_lowercase(), |c| c.is_uppercase()),
                "isupper" => cased(|c| c.is_uppercase(), |c| c.is_lowercase()),
                "istitle" => Value::from(s.chars().any(|c| c.is_lowercase() || c.is_uppercase()) && title(s) == s),
                "isalpha" => all(char::is_alphabetic),
                "isalnum" => all(char::is_alphanumeric),
                "isdecimal" => all(decimal),
                "isdigit" => {
                    all(|c| decimal(c) || matches!(c, '²' | '³' | '¹' | '⁰' | '⁴'..='⁹' | '₀'..='₉' | '①'..='⑨'))
                }
                "isnumeric" => all(char::is_numeric),
                "isspace" => all(is_space),
                "isascii" => Value::from(s.is_ascii()),
                "isprintable" => Value::from(s.chars().all(is_printable)),
                // isidentifier
                _ => Value::from(
                    s.chars().next().is_some_and(|c| c.is_alphabetic() || c == '_')
                        && s.chars().all(|c| c.is_alphanumeric() || c == '_'),
                ),
            }
        }
    })
}

/// A decimal digit of any script.
fn decimal(c: char) -> bool {
    use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};
    c.general_category() == GeneralCategory::DecimalNumber
}

fn swapcase(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for c in s.chars() {
        if c.is_uppercase() {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
    }
    out
}

/// `str.replace`, paid for before it grows.
pub(crate) fn replace(state: &State<'_, '_>, s: &str, old: &str, new: &str, count: i64) -> Result<Value, Error> {
    let matches = s.len() / old.len().max(1) + 1;
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let growth = matches.min(count).saturating_mul(new.len().saturating_sub(old.len()));
    state.consume_fuel((growth / 64) as u64)?;
    Ok(Value::from(s.replacen(old, new, count)))
}

/// An attribute as Python's `getattr` finds it: a method of the value, but no key of a dict.
pub(crate) fn attribute(value: &Value, name: &str) -> Value {
    if value.downcast_object_ref::<Dict>().is_some() || value.kind() == ValueKind::Map {
        return bound(value, name).unwrap_or_default();
    }
    bound(value, name).or_else(|| value.get_attr(name).ok()).unwrap_or_default()
}
