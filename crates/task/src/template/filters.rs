//! Jinja2's filters where the engine has none or prints otherwise than Python: numbers, sequences and the table of
//! all. Those of text are in [`super::text_filters`].

use std::cmp::Ordering;

use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, UndefinedBehavior, Value};

use super::arguments::{Arguments, invalid};
use super::methods::{attribute, list_of, pair};
use super::python::{as_f64, text, type_name};
use super::text_filters;

/// A filter: the first argument is the value in front of the bar.
pub(crate) type Filter = fn(&mut State<'_, '_>, &Arguments) -> Result<Value, Error>;

const FILTERS: &[(&str, &[&str], Filter)] = &[
    ("abs", &["x"], abs),
    ("attr", &["obj", "name"], attr),
    ("batch", &["value", "linecount", "fill_with"], batch),
    ("d", &["value", "default_value", "boolean"], default),
    ("default", &["value", "default_value", "boolean"], default),
    ("dictsort", &["value", "case_sensitive", "by", "reverse"], dictsort),
    ("float", &["value", "default"], float),
    ("int", &["value", "default", "base"], int),
    ("items", &["value"], items),
    ("join", &["value", "d", "attribute"], join),
    ("list", &["value"], list),
    ("max", &["value", "case_sensitive", "attribute"], max),
    ("min", &["value", "case_sensitive", "attribute"], min),
    ("reverse", &["value"], reverse),
    ("round", &["value", "precision", "method"], round),
    ("slice", &["value", "slices", "fill_with"], slice),
    ("sort", &["value", "reverse", "case_sensitive", "attribute"], sort),
    ("unique", &["value", "case_sensitive", "attribute"], unique),
];

/// Filters of the engine that Jinja2 does not have; a template with them would not run in distilabel.
const NOT_JINJA: [&str; 5] = ["bool", "chain", "lines", "split", "zip"];

/// Puts the filters into an environment.
pub(crate) fn install(environment: &mut Environment<'static>) {
    for name in NOT_JINJA {
        environment.remove_filter(name);
    }
    for &(name, names, filter) in FILTERS.iter().chain(text_filters::FILTERS) {
        environment.add_filter(name, move |state: &mut State<'_, '_>, given: Rest<ValueOrKwargs>| {
            let args = Arguments::bind(name, names, &given.into_values())?;
            if args.get(0).is_some_and(Value::is_undefined) && is_strict(state) && !matches!(name, "d" | "default") {
                return Err(Error::new(ErrorKind::UndefinedError, format!("{name}() of a value that is not there")));
            }
            filter(state, &args)
        });
    }
}

/// Jinja2's tests that the engine lacks.
pub(crate) fn install_tests(environment: &mut Environment<'static>) {
    environment.add_test("callable", |value: Value| {
        // Macros, functions and methods are objects that are neither lists nor dicts.
        value.kind() == ValueKind::Plain
    });
    environment.add_test("sequence", |value: Value| {
        // What has a length and takes an index: texts and dicts, too.
        matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined)
    });
}

fn is_strict(state: &State<'_, '_>) -> bool {
    matches!(state.undefined_behavior(), UndefinedBehavior::Strict | UndefinedBehavior::SemiStrict)
}

/// The items of an argument, each paid for.
fn sequence(state: &State<'_, '_>, args: &Arguments) -> Result<Vec<Value>, Error> {
    let value = args.need(0)?;
    if value.is_undefined() {
        return Ok(Vec::new());
    }
    let items = value.try_iter().map_err(|_| invalid(format!("'{}' object is not iterable", type_name(value))))?;
    let mut list = Vec::new();
    for item in items.checked() {
        state.consume_fuel(1)?;
        list.push(item?);
    }
    Ok(list)
}

/// What an `attribute` argument such as `"a.b.0"` or `1` takes from an item.
fn at_path(item: &Value, path: Option<&Value>) -> Result<Value, Error> {
    let Some(path) = path else { return Ok(item.clone()) };
    let Some(names) = path.as_str() else { return item.get_item(path) };
    let mut value = item.clone();
    for name in names.split('.') {
        value = match name.parse::<i64>() {
            Ok(index) => value.get_item(&Value::from(index))?,
            Err(_) => value.get_item(&Value::from(name))?,
        };
    }
    Ok(value)
}

/// The key that a filter compares by: lower case unless told otherwise.
fn key(item: &Value, path: Option<&Value>, case_sensitive: bool) -> Result<Value, Error> {
    let value = at_path(item, path)?;
    Ok(match value.as_str() {
        Some(text) if !case_sensitive => Value::from(text.to_lowercase()),
        _ => value,
    })
}

/// Python's `<` and `>`: numbers with numbers, texts with texts, lists with lists; all else is an error.
pub(crate) fn compare(a: &Value, b: &Value) -> Result<Ordering, Error> {
    let number = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    let same = match (a.kind(), b.kind()) {
        (ValueKind::String, ValueKind::String) => true,
        (ValueKind::Seq | ValueKind::Iterable, ValueKind::Seq | ValueKind::Iterable) => {
            for (x, y) in a.try_iter()?.zip(b.try_iter()?) {
                if x != y {
                    return compare(&x, &y);
                }
            }
            return Ok(a.len().cmp(&b.len()));
        }
        (ValueKind::Undefined, _) | (_, ValueKind::Undefined) => {
            return Err(Error::new(ErrorKind::UndefinedError, "a value that is not there is compared"));
        }
        _ => number(a) && number(b),
    };
    if same {
        Ok(a.cmp(b))
    } else {
        let (a, b) = (type_name(a), type_name(b));
        Err(invalid(format!("'<' not supported between instances of '{a}' and '{b}'")))
    }
}

/// A stable merge sort that stops at the first pair that can't be compared.
fn sort_by_key(mut items: Vec<(Value, Value)>, reverse: bool) -> Result<Vec<(Value, Value)>, Error> {
    if items.len() < 2 {
        return Ok(items);
    }
    let right = sort_by_key(items.split_off(items.len() / 2), reverse)?;
    let mut right = right.into_iter().peekable();
    let mut sorted = Vec::with_capacity(items.len() * 2);
    for left in sort_by_key(items, reverse)? {
        while let Some(next) = right.peek() {
            let order = compare(&next.0, &left.0)?;
            if order != (if reverse { Ordering::Greater } else { Ordering::Less }) {
                break;
            }
            sorted.extend(right.next());
        }
        sorted.push(left);
    }
    sorted.extend(right);
    Ok(sorted)
}

fn sort(state: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    let case_sensitive = args.flag(2, false);
    let paths: Vec<Value> = match args.some(3) {
        Some(path) => match path.as_str() {
            Some(paths) => paths.split(',').map(|path| Value::from(path.trim())).collect(),
            None => vec![path.clone()],
        },
        None => Vec::new(),
    };
    let mut keyed = Vec::new();
    for item in sequence(state, args)? {
        let key = match paths.as_slice() {
            [] => key(&item, None, case_sensitive)?,
            [path] => key(&item, Some(path), case_sensitive)?,
            paths => {
                let keys: Result<Vec<_>, _> = paths.iter().map(|path| key(&item, Some(path), case_sensitive)).collect();
                list_of(keys?)
            }
        };
        keyed.push((key, item));
    }
    Ok(list_of(sort_by_key(keyed, args.flag(1, false))?.into_iter().map(|(_, item)| item)))
}

fn dictsort(_: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    let place = match args.text(2)?.unwrap_or("key") {
        "key" => 0,
        "value" => 1,
        _ => return Err(invalid("You can only sort by either \"key\" or \"value\"")),
    };
    let case_sensitive = args.flag(1, false);
    let value = args.need(0)?;
    let pairs = value.as_object().filter(|_| value.kind() == ValueKind::Map).and_then(|o| o.try_iter_pairs());
    let pairs = pairs.ok_or_else(|| Error::new(ErrorKind::UndefinedError, no_attribute(value, "items")))?;
    let mut keyed = Vec::new();
    for (name, item) in pairs {
        let by = if place == 0 { &name } else { &item };
        keyed.push((key(by, None, case_sensitive)?, pair(name, item)));
    }
    Ok(list_of(sort_by_key(keyed, args.flag(3, false))?.into_iter().map(|(_, item)| item)))
}

fn no_attribute(value: &Value, name: &str) -> String {
    format!("'{} object' has no attribute '{name}'", type_name(value))
}

fn extreme(state: &State<'_, '_>, args: &Arguments, wanted: Ordering) -> Result<Value, Error> {
    let path = args.some(2);
    let mut best: Option<(Value, Value)> = None;
    for item in sequence(state, args)? {
        let key = key(&item, path, args.flag(1, false))?;
        let better = match &best {
            None => true,
            Some((known, _)) => compare(&key, known)? == wanted,
        };
        if better {
            best = Some((key, item));
        }
    }
    Ok(best.map(|(_, item)| item).unwrap_or_default())
}

fn min(state: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    extreme(state, args, Ordering::Less)
}

fn max(state: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    extreme(state, args, Ordering::Greater)
}

fn unique(state: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    let mut seen = std::collections::HashSet::new();
    let mut kept = Vec::new();
    for item in sequence(state, args)? {
        let key = key(&item, args.some(2), args.flag(1, false))?;
        if matches!(key.kind(), ValueKind::Map) || (key.kind() == ValueKind::Seq && type_name(&key) == "list") {
            return Err(invalid(format!("unhashable type: '{}'", type_name(&key))));
        }
        if seen.insert(key) {
            kept.push(item);
        }
    }
    Ok(list_of(kept))
}

fn items(_: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    let value = args.need(0)?;
    if value.is_undefined() {
        return Ok(list_of([]));
    }
    let pairs = value.as_object().filter(|_| value.kind() == ValueKind::Map).and_then(|o| o.try_iter_pairs());
    let pairs = pairs.ok_or_else(|| invalid("Can only get item pairs from a mapping."))?;
    Ok(list_of(pairs.map(|(name, item)| pair(name, item))))
}

fn list(state: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    Ok(list_of(sequence(state, args)?))
}

fn reverse(state: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    let value = args.need(0)?;
    if let Some(text) = value.as_str() {
        return Ok(Value::from(text.chars().rev().collect::<String>()));
    }
    let mut items = sequence(state, args)?;
    items.reverse();
    Ok(list_of(items))
}

fn join(state: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    let separator = args.some(1).map(text).unwrap_or_default();
    let mut out = String::new();
    for (i, item) in sequence(state, args)?.iter().enumerate() {
        if i > 0 {
            out.push_str(&separator);
        }
        let item = text(&at_path(item, args.some(2))?);
        state.consume_fuel(((separator.len() + item.len()) / 64) as u64)?;
        out.push_str(&item);
    }
    Ok(Value::from(out))
}

fn batch(state: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    let size = args.length(1, 0)?.max(1);
    let items = sequence(state, args)?;
    let chunks = items.chunks(size).map(|chunk| {
        let mut chunk = chunk.to_vec();
        if let Some(fill) = args.some(2) {
            // Only the last can be short, and of at least one item.
            chunk.resize(size.min(chunk.len().saturating_add(1 << 16)), fill.clone());
        }
        list_of(chunk)
    });
    Ok(list_of(chunks))
}

fn slice(state: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    let count = args.length(1, 0)?;
    if count == 0 {
        return Err(invalid("integer division or modulo by zero"));
    }
    state.consume_fuel(count as u64)?;
    let items = sequence(state, args)?;
    let (per, longer) = (items.len() / count, items.len() % count);
    let mut rest = items.as_slice();
    let mut slices = Vec::new();
    for number in 0..count {
        let (part, after) = rest.split_at(per + usize::from(number < longer));
        rest = after;
        let mut part = part.to_vec();
        if let Some(fill) = args.some(2)
            && number >= longer
        {
            part.push(fill.clone());
        }
        slices.push(list_of(part));
    }
    Ok(list_of(slices))
}

fn abs(_: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    let value = args.need(0)?;
    match value.kind() {
        ValueKind::Bool => Ok(Value::from(i64::from(value.is_true()))),
        ValueKind::Number => minijinja::filters::abs(value.clone()),
        _ => Err(invalid(format!("bad operand type for abs(): '{}'", type_name(value)))),
    }
}

fn default(_: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    let value = args.need(0)?;
    let missing = value.is_undefined() || (args.flag(2, false) && !value.is_true());
    Ok(if missing { args.get(1).cloned().unwrap_or_else(|| Value::from("")) } else { value.clone() })
}

fn attr(_: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    Ok(attribute(args.need(0)?, &text(args.need(1)?)))
}

fn round(_: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    let value = args.need(0)?;
    let precision = args.integer(1, 0)?.clamp(-400, 400);
    let method = args.text(2)?.unwrap_or("common");
    if !matches!(method, "common" | "ceil" | "floor") {
        return Err(invalid("method must be common, ceil or floor"));
    }
    if !matches!(value.kind(), ValueKind::Number | ValueKind::Bool) {
        return Err(invalid(format!("type {} doesn't define __round__ method", type_name(value))));
    }
    let number =
        as_f64(&if value.kind() == ValueKind::Bool { Value::from(i64::from(value.is_true())) } else { value.clone() });
    let power = 10f64.powi(i32::try_from(precision).unwrap_or(0));
    if method != "common" {
        let scaled = number * power;
        return Ok(Value::from(if method == "ceil" { scaled.ceil() } else { scaled.floor() } / power));
    }
    if type_name(value) != "float" {
        if precision >= 0 {
            return Ok(if value.kind() == ValueKind::Bool {
                Value::from(i64::from(value.is_true()))
            } else {
                value.clone()
            });
        }
        let unit = 10i128.checked_pow(u32::try_from(-precision).unwrap_or(u32::MAX));
        let (Some(unit), Ok(number)) = (unit, i128::try_from(value.clone())) else { return Ok(Value::from(0)) };
        let (floor, rest) = (number.div_euclid(unit), number.rem_euclid(unit));
        // Half goes to the even neighbour.
        let up = rest * 2 > unit || (rest * 2 == unit && floor % 2 != 0);
        return Ok(Value::from((floor + i128::from(up)) * unit));
    }
    if !number.is_finite() {
        return Ok(Value::from(number));
    }
    if precision >= 0 {
        // Rust prints the exact value correctly rounded, half to even, as Python's round does.
        let digits = usize::try_from(precision).unwrap_or(0);
        return Ok(Value::from(format!("{number:.digits$}").parse::<f64>().unwrap_or(number)));
    }
    Ok(Value::from((number * power).round_ties_even() / power))
}

/// What Python's `int(text, base)` takes.
fn parse_integer(text: &str, base: u32) -> Option<i128> {
    let text = text.trim().replace('_', "");
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", text.strip_prefix('+').unwrap_or(&text)),
    };
    let lower = digits.to_ascii_lowercase();
    let prefixed = |prefix: &str, its: u32| lower.strip_prefix(prefix).filter(|_| base == its || base == 0);
    let (digits, base) = if let Some(rest) = prefixed("0x", 16) {
        (rest, 16)
    } else if let Some(rest) = prefixed("0o", 8) {
        (rest, 8)
    } else if let Some(rest) = prefixed("0b", 2) {
        (rest, 2)
    } else {
        (lower.as_str(), if base == 0 { 10 } else { base })
    };
    if !(2..=36).contains(&base) || digits.starts_with(['+', '-']) {
        return None;
    }
    i128::from_str_radix(&format!("{sign}{digits}"), base).ok()
}

fn parse_float(text: &str) -> Option<f64> {
    text.trim().replace('_', "").parse().ok()
}

fn int(_: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    let value = args.need(0)?;
    let truncated = |number: f64| number.is_finite().then(|| Value::from(number.trunc() as i128));
    let base = u32::try_from(args.integer(2, 10)?).unwrap_or(1);
    let number = match value.kind() {
        ValueKind::Bool => Some(Value::from(i64::from(value.is_true()))),
        ValueKind::Number if value.is_integer() => Some(value.clone()),
        ValueKind::Number => truncated(as_f64(value)),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            parse_integer(text, base).map(Value::from).or_else(|| truncated(parse_float(text)?))
        }
        _ => None,
    };
    Ok(number.unwrap_or_else(|| args.get(1).cloned().unwrap_or_else(|| Value::from(0))))
}

fn float(_: &mut State<'_, '_>, args: &Arguments) -> Result<Value, Error> {
    let value = args.need(0)?;
    let number = match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => Some(as_f64(value)),
        ValueKind::String => parse_float(value.as_str().unwrap_or_default()),
        _ => None,
    };
    Ok(number.map(Value::from).unwrap_or_else(|| args.get(1).cloned().unwrap_or_else(|| Value::from(0.0))))
}
