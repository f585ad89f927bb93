//! Whether a structured answer has the form that was asked for. Servers differ in how much of a schema they keep, some
//! ignore it; what comes out of a run either has the form or says why not.

use std::sync::{Arc, Mutex};

use jsonschema::Validator;
use serde_json::{Value, json};
use vgen_core::{Constraint, SamplingParams};

use super::RemoteError;
use super::limit::lock;

/// How much of an answer a message quotes.
const QUOTED: usize = 80;

/// A form to check answers against.
#[derive(Debug)]
pub(super) struct Form {
    rule: Rule,
}

#[derive(Debug)]
enum Rule {
    /// JSON that the schema accepts.
    Json(Validator),
    /// Text that the schema accepts as a string: a regular expression.
    Text(Validator),
    Choice(Vec<String>),
}

impl Form {
    /// The form that a constraint asks for.
    ///
    /// # Errors
    /// If schema or expression can't be meant.
    fn of_constraint(constraint: &Constraint) -> Result<Self, RemoteError> {
        let rule = match constraint {
            Constraint::JsonSchema(schema) => Rule::Json(validator(schema)?),
            Constraint::Regex(regex) => Rule::Text(validator(&whole_text(regex))?),
            Constraint::Choice(texts) => Rule::Choice(texts.clone()),
        };
        Ok(Self { rule })
    }

    /// The form that a `response_format` asks for, as far as it is one that somebody knows.
    fn of_response_format(format: &Value) -> Result<Option<Self>, RemoteError> {
        let rule = match format.get("type").and_then(Value::as_str) {
            Some("json_object") => Rule::Json(validator(&json!({"type": "object"}))?),
            Some("json_schema") => match format.pointer("/json_schema/schema") {
                Some(schema) => Rule::Json(validator(schema)?),
                None => return Ok(None),
            },
            // TGI's words.
            Some("json") => Rule::Json(validator(format.get("value").unwrap_or(&Value::Null))?),
            Some("regex") => Rule::Text(validator(&whole_text(format["value"].as_str().unwrap_or_default()))?),
            _ => return Ok(None),
        };
        Ok(Some(Self { rule }))
    }

    /// Why an answer does not have the form.
    pub(super) fn violation(&self, text: &str) -> Option<String> {
        let reason = match &self.rule {
            Rule::Choice(texts) if texts.iter().any(|choice| choice == text) => return None,
            Rule::Choice(_) => "it is none of the choices".to_owned(),
            Rule::Text(validator) => match validator.is_valid(&Value::from(text)) {
                true => return None,
                false => "it does not match the regular expression".to_owned(),
            },
            Rule::Json(validator) => match serde_json::from_str::<Value>(text) {
                Err(error) => format!("it is no JSON: {error}"),
                Ok(value) => match validator.validate(&value) {
                    Ok(()) => return None,
                    Err(error) => {
                        let place = error.instance_path().as_str().to_owned();
                        let place = if place.is_empty() { String::new() } else { format!("at {place}: ") };
                        format!("{place}{}", super::error::short(&error.masked().to_string()))
                    }
                },
            },
        };
        let start: String = text.chars().take(QUOTED).collect();
        Some(format!("{reason}; it begins {start:?}"))
    }
}

fn validator(schema: &Value) -> Result<Validator, RemoteError> {
    jsonschema::validator_for(schema).map_err(|error| RemoteError::BadForm {
        reason: super::error::short(&match error.instance_path().as_str() {
            "" => error.to_string(),
            place => format!("at {place}: {error}"),
        }),
    })
}

/// A schema of the texts that an expression matches as a whole.
fn whole_text(regex: &str) -> Value {
    json!({"type": "string", "pattern": format!("^(?:{regex})$")})
}

/// The forms of one backend: a run asks for the same one again and again.
#[derive(Debug, Default)]
pub(super) struct Forms {
    /// What every answer must be if no constraint says otherwise.
    format: Option<Arc<Form>>,
    last: Mutex<Option<(Constraint, Arc<Form>)>>,
}

impl Forms {
    pub(super) fn new(response_format: Option<&Value>) -> Result<Self, RemoteError> {
        let format = response_format.map(Form::of_response_format).transpose()?.flatten();
        Ok(Self { format: format.map(Arc::new), last: Mutex::default() })
    }

    /// The form of the answers to a request.
    pub(super) fn of(&self, sampling: &SamplingParams) -> Result<Option<Arc<Form>>, RemoteError> {
        let Some(constraint) = &sampling.constraint else { return Ok(self.format.clone()) };
        let mut last = lock(&self.last);
        if let Some((known, form)) = last.as_ref()
            && known == constraint
        {
            return Ok(Some(Arc::clone(form)));
        }
        let form = Arc::new(Form::of_constraint(constraint)?);
        *last = Some((constraint.clone(), Arc::clone(&form)));
        Ok(Some(form))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

    use super::*;

    fn violation(constraint: Constraint, text: &str) -> Option<String> {
        Form::of_constraint(&constraint).unwrap().violation(text)
    }

    #[test]
    fn json_has_to_match_its_schema() {
        let schema = json!({"type": "object", "required": ["n"], "additionalProperties": false,
            "properties": {"n": {"$ref": "#/$defs/count"}}, "$defs": {"count": {"type": "integer", "minimum": 0}}});
        let with = |text: &str| violation(Constraint::JsonSchema(schema.clone()), text);
        assert_eq!(with(" {\"n\": 3}\n"), None);
        assert!(with("{\"n\": 3").unwrap().starts_with("it is no JSON: EOF"), "{:?}", with("{\"n\": 3"));
        let wrong = with("{\"n\": \"x\"}").unwrap();
        assert!(wrong.starts_with("at /n: ") && wrong.ends_with("it begins \"{\\\"n\\\": \\\"x\\\"}\""), "{wrong}");
        assert!(with("{}").is_some() && with("{\"n\": 1, \"m\": 2}").is_some() && with("").is_some());
    }

    #[test]
    fn texts_have_to_match_as_a_whole() {
        let regex = || Constraint::Regex("[a-c]+|x".to_owned());
        assert_eq!((violation(regex(), "abc"), violation(regex(), "x")), (None, None));
        for text in ["", "abcd", "xa", "abc\n"] {
            assert!(violation(regex(), text).is_some(), "{text:?}");
        }
        let choice = || Constraint::Choice(vec!["yes".to_owned(), "no".to_owned()]);
        assert_eq!(violation(choice(), "no"), None);
        assert!(violation(choice(), "No").is_some());
    }

    #[test]
    fn what_can_not_be_meant_is_refused() {
        for constraint in [
            Constraint::JsonSchema(json!({"type": "integr"})),
            Constraint::JsonSchema(json!({"$ref": "https://example.com/schema.json"})),
            Constraint::Regex("(".to_owned()),
        ] {
            let error = Form::of_constraint(&constraint).unwrap_err();
            assert_eq!(error.code(), "constraint.invalid", "{error}");
        }
    }

    #[test]
    fn formats_in_the_servers_words() {
        let with = |format: Value, text: &str| {
            let form = Form::of_response_format(&format).unwrap();
            form.map(|form| form.violation(text).is_none())
        };
        assert_eq!(with(json!({"type": "json_object"}), "{}"), Some(true));
        assert_eq!(with(json!({"type": "json_object"}), "[]"), Some(false));
        let named = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "string"}}});
        assert_eq!((with(named.clone(), "\"a\""), with(named, "1")), (Some(true), Some(false)));
        assert_eq!(with(json!({"type": "json", "value": {"type": "null"}}), "null"), Some(true));
        assert_eq!(with(json!({"type": "regex", "value": "a"}), "ab"), Some(false));
        assert_eq!(with(json!({"type": "text"}), "ab"), None);
    }
}
