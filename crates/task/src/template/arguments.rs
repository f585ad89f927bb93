//! Arguments of filters, tests and methods, bound to parameter names as Python binds them, and the errors of doing
//! so.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use super::python::type_name;

/// An operation that Python would refuse with a `TypeError` or `ValueError`.
pub(crate) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// Arguments under the names of a function's parameters.
pub(crate) struct Arguments {
    function: &'static str,
    names: &'static [&'static str],
    values: Vec<Option<Value>>,
}

impl Arguments {
    /// Binds arguments by place and by name.
    ///
    /// # Errors
    /// Too many, unknown names, or one given twice.
    pub(crate) fn bind(function: &'static str, names: &'static [&'static str], given: &[Value]) -> Result<Self, Error> {
        let (positional, keywords) = match given.split_last() {
            Some((last, rest)) if last.is_kwargs() => (rest, Some(Kwargs::try_from(last.clone())?)),
            _ => (given, None),
        };
        if positional.len() > names.len() {
            return Err(Error::new(
                ErrorKind::TooManyArguments,
                format!("{function}() takes at most {} arguments, got {}", names.len(), positional.len()),
            ));
        }
        let mut values: Vec<Option<Value>> = positional.iter().cloned().map(Some).collect();
        values.resize(names.len(), None);
        if let Some(keywords) = keywords {
            for name in keywords.args() {
                let place = names.iter().position(|known| *known == name);
                match place {
                    Some(place) if values[place].is_none() => values[place] = Some(keywords.peek(name)?),
                    Some(_) => return Err(invalid(format!("{function}() got several values for {name:?}"))),
                    None => return Err(invalid(format!("{function}() has no parameter {name:?}"))),
                }
            }
        }
        Ok(Self { function, names, values })
    }

    /// The argument of a place, if it was given.
    pub(crate) fn get(&self, place: usize) -> Option<&Value> {
        self.values.get(place)?.as_ref()
    }

    /// The argument of a place, if it was given and is not None.
    pub(crate) fn some(&self, place: usize) -> Option<&Value> {
        self.get(place).filter(|value| !value.is_none())
    }

    /// The argument of a place, which must be there.
    pub(crate) fn need(&self, place: usize) -> Result<&Value, Error> {
        self.get(place).ok_or_else(|| {
            let name = self.names.get(place).copied().unwrap_or("an argument");
            Error::new(ErrorKind::MissingArgument, format!("{}() needs {name:?}", self.function))
        })
    }

    /// An integer with a default.
    pub(crate) fn integer(&self, place: usize, default: i64) -> Result<i64, Error> {
        match self.some(place) {
            None => Ok(default),
            Some(value) if value.is_integer() || value.kind() == ValueKind::Bool => i64::try_from(value.clone()),
            Some(value) => Err(self.wrong(place, "an integer", value)),
        }
    }

    /// A length from 0; negative numbers count as 0.
    pub(crate) fn length(&self, place: usize, default: usize) -> Result<usize, Error> {
        let number = self.integer(place, i64::try_from(default).unwrap_or(i64::MAX))?;
        Ok(usize::try_from(number).unwrap_or(0))
    }

    /// The truth of an argument.
    pub(crate) fn flag(&self, place: usize, default: bool) -> bool {
        self.get(place).map_or(default, Value::is_true)
    }

    /// A text, if it was given and is not None.
    pub(crate) fn text(&self, place: usize) -> Result<Option<&str>, Error> {
        match self.some(place) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| self.wrong(place, "a string", value)),
        }
    }

    fn wrong(&self, place: usize, expected: &str, value: &Value) -> Error {
        let name = self.names.get(place).copied().unwrap_or("the argument");
        invalid(format!("{}(): {name:?} must be {expected}, not {}", self.function, type_name(value)))
    }
}
