//! Python's `%`, `~` and comparisons: the functions that [`super::rewrite`] calls, and the unary plus, which the
//! engine's parser does not have.

use std::cmp::Ordering;

use minijinja::formatting::{FormatStyle, format};
use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Tuple, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior, Value};

use super::arguments::invalid;
use super::filters::compare;
use super::python::{as_f64, escape_html, text, type_name};
use super::rewrite;

/// Puts the functions into an environment.
pub(crate) fn install(environment: &mut Environment<'static>) {
    environment.add_function(rewrite::MODULO, |a: Value, b: Value| modulo(&a, &b));
    environment.add_function(rewrite::CONCAT, |state: &State<'_, '_>, a: Value, b: Value| concat(state, &a, &b));
    environment.add_function(rewrite::LESS, |a: Value, b: Value| order(&a, &b, "<", Ordering::is_lt));
    environment.add_function(rewrite::LESS_EQUAL, |a: Value, b: Value| order(&a, &b, "<=", Ordering::is_le));
    environment.add_function(rewrite::GREATER, |a: Value, b: Value| order(&a, &b, ">", Ordering::is_gt));
    environment.add_function(rewrite::GREATER_EQUAL, |a: Value, b: Value| order(&a, &b, ">=", Ordering::is_ge));
    environment.add_function(rewrite::ITERATE, |value: Value| {
        if value.is_none() { Err(invalid("'NoneType' object is not iterable")) } else { Ok(value) }
    });
}

fn defined(values: [&Value; 2]) -> Result<(), Error> {
    if values.iter().any(|value| value.is_undefined()) {
        return Err(Error::new(ErrorKind::UndefinedError, "a value that is not there is computed with"));
    }
    Ok(())
}

fn order(a: &Value, b: &Value, sign: &str, wanted: fn(Ordering) -> bool) -> Result<bool, Error> {
    defined([a, b])?;
    let float = |value: &Value| type_name(value) == "float";
    if (float(a) && as_f64(a).is_nan()) || (float(b) && as_f64(b).is_nan()) {
        return Ok(false);
    }
    match compare(a, b) {
        Ok(order) => Ok(wanted(order)),
        Err(error) if error.kind() == ErrorKind::UndefinedError => Err(error),
        Err(_) => {
            let (a, b) = (type_name(a), type_name(b));
            Err(invalid(format!("'{sign}' not supported between instances of '{a}' and '{b}'")))
        }
    }
}

fn concat(state: &State<'_, '_>, a: &Value, b: &Value) -> Result<Value, Error> {
    if matches!(state.undefined_behavior(), UndefinedBehavior::Strict | UndefinedBehavior::SemiStrict) {
        defined([a, b])?;
    }
    let safe = matches!(state.auto_escape(), AutoEscape::Html) && (a.is_safe() || b.is_safe());
    let part = |value: &Value| if safe && !value.is_safe() { escape_html(&text(value)) } else { text(value) };
    let (a, b) = (part(a), part(b));
    state.consume_fuel(((a.len() + b.len()) / 64) as u64)?;
    let joined = a + &b;
    Ok(if safe { Value::from_safe_string(joined) } else { Value::from(joined) })
}

fn integer(value: &Value) -> Option<i128> {
    match value.kind() {
        ValueKind::Bool => Some(i128::from(value.is_true())),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => None,
    }
}

fn modulo(a: &Value, b: &Value) -> Result<Value, Error> {
    defined([a, b])?;
    if let Some(template) = a.as_str() {
        return percent(template, b).map(Value::from);
    }
    if let (Some(a), Some(b)) = (integer(a), integer(b)) {
        // The rest has the sign of the divisor.
        let rest = a.checked_rem(b).ok_or_else(|| invalid("integer modulo by zero"))?;
        return Ok(Value::from(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }));
    }
    let number = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    if !number(a) || !number(b) {
        let (a, b) = (type_name(a), type_name(b));
        return Err(invalid(format!("unsupported operand type(s) for %: '{a}' and '{b}'")));
    }
    let float = |value: &Value| integer(value).map_or_else(|| as_f64(value), |number| number as f64);
    let (a, b) = (float(a), float(b));
    if b == 0.0 {
        return Err(invalid("float modulo by zero"));
    }
    let rest = a % b;
    Ok(Value::from(if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }))
}

/// `template % value`: a tuple gives several values, a dict named ones.
fn percent(template: &str, value: &Value) -> Result<String, Error> {
    let values: Vec<Value> = match value.downcast_object_ref::<Tuple>() {
        Some(tuple) => tuple.iter().cloned().collect(),
        None if value.kind() == ValueKind::Map && template.contains("%(") => {
            let pairs = value.as_object().and_then(|object| object.try_iter_pairs());
            let named: Kwargs = pairs.into_iter().flatten().map(|(name, item)| (text(&name), item)).collect();
            vec![Value::from(named)]
        }
        None => vec![value.clone()],
    };
    format(FormatStyle::Printf, template, &values)
}

/// Blanks unary plus signs out, which do nothing, keeping every other character in its place.
pub(crate) fn without_unary_plus(source: &str) -> String {
    let mut clean = source.to_owned();
    let mut operand_before = false;
    for (token, span) in tokenize(source, false, SyntaxConfig::default()).map_while(Result::ok) {
        let place = span.start_offset as usize..span.end_offset as usize;
        if matches!(token, Token::Plus) && !operand_before && source.get(place.clone()) == Some("+") {
            clean.replace_range(place, " ");
        }
        operand_before = match token {
            Token::Ident(word) => {
                !matches!(word, "and" | "or" | "not" | "in" | "is" | "if" | "elif" | "else" | "recursive")
            }
            Token::Str(_) | Token::String(_) | Token::Int(_) | Token::Int128(_) | Token::Float(_) => true,
            Token::BracketClose | Token::ParenClose | Token::BraceClose => true,
            _ => false,
        };
    }
    clean
}
