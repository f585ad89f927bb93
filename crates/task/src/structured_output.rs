//! A row's own form of answer, from its `structured_output` column.
//!
//! The column's objects are distilabel's `{"format", "schema"}`, with `"choice"` as a third format. A text that is
//! such an object in JSON does too, since CSV and most Parquet files hold nothing else.

use serde::Deserialize;
use serde_json::Value;
use vgen_core::{Constraint, Fault, Row, SamplingParams};

use crate::task::TextGenerationWithImage;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StructuredOutput {
    format: Format,
    schema: Value,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Format {
    Json,
    Regex,
    Choice,
}

impl StructuredOutput {
    fn constraint(self) -> Result<Constraint, String> {
        Ok(match (self.format, self.schema) {
            (Format::Json, schema @ Value::Object(_)) => Constraint::JsonSchema(schema),
            (Format::Json, Value::String(text)) => match serde_json::from_str(&text) {
                Ok(schema @ Value::Object(_)) => Constraint::JsonSchema(schema),
                Ok(_) => return Err("its schema is no JSON object".to_owned()),
                Err(error) => return Err(format!("its schema is no JSON: {error}")),
            },
            (Format::Json, _) => return Err("its schema is no JSON object".to_owned()),
            (Format::Regex, Value::String(regex)) => Constraint::Regex(regex),
            (Format::Regex, _) => return Err("the schema of format \"regex\" is no text".to_owned()),
            (Format::Choice, schema) => match serde_json::from_value::<Vec<String>>(schema) {
                Ok(texts) => Constraint::Choice(texts),
                Err(_) => return Err("the schema of format \"choice\" is no list of texts".to_owned()),
            },
        })
    }
}

/// `None` for null and for an empty text, which is what CSV has for it.
fn constraint(value: &str) -> Result<Option<Constraint>, String> {
    let object = match serde_json::from_str(value) {
        Ok(Value::Null) => return Ok(None),
        Ok(Value::String(text)) if text.trim().is_empty() => return Ok(None),
        Ok(Value::String(text)) => {
            serde_json::from_str(&text).map_err(|error| format!("its text is no JSON: {error}"))?
        }
        Ok(object) => object,
        Err(error) => return Err(error.to_string()),
    };
    let given: StructuredOutput = serde_json::from_value(object).map_err(|error| error.to_string())?;
    given.constraint().map(Some)
}

impl TextGenerationWithImage {
    /// The run's sampling parameters with the row's own form of answer; `None` where the row has none, so that the
    /// run's holds.
    ///
    /// # Errors
    /// `row.structured_output`, a fault of the row, if the column holds something else.
    pub fn sampling(&self, row: &Row, run: &SamplingParams) -> Result<Option<SamplingParams>, Fault> {
        let Some(column) = &self.structured_output_column else { return Ok(None) };
        let name = self.input_name(column);
        let Some(value) = row.get(name) else { return Ok(None) };
        let own = constraint(value.get()).map_err(|reason| {
            Fault::row("row.structured_output", format!("column {name:?}: {reason}"))
                .with_hint(r#"give {"format": "json", "schema": {...}}, or format "regex" or "choice", or null"#)
        })?;
        Ok(own.map(|constraint| SamplingParams { constraint: Some(constraint), ..run.clone() }))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use super::*;
    use serde_json::json;

    fn task() -> TextGenerationWithImage {
        TextGenerationWithImage::builder().structured_output_column("form").build().unwrap()
    }

    fn of(form: &Value) -> Result<Option<Constraint>, Fault> {
        let mut row = Row::new();
        row.set("form", form).unwrap();
        let run = SamplingParams { top_k: Some(3), ..SamplingParams::default() };
        let own = task().sampling(&row, &run)?;
        Ok(own.map(|own| {
            assert_eq!(own.top_k, Some(3));
            own.constraint.unwrap()
        }))
    }

    #[test]
    fn forms_of_a_row() {
        let schema = json!({"type": "object"});
        let json = Some(Constraint::JsonSchema(schema.clone()));
        assert_eq!(of(&json!({"format": "json", "schema": schema})), Ok(json.clone()));
        assert_eq!(of(&json!({"format": "json", "schema": schema.to_string()})), Ok(json.clone()));
        assert_eq!(of(&json!(json!({"format": "json", "schema": schema}).to_string())), Ok(json));
        let regex = Some(Constraint::Regex("a+".to_owned()));
        assert_eq!(of(&json!({"format": "regex", "schema": "a+"})), Ok(regex));
        let choice = Some(Constraint::Choice(vec!["cat".to_owned(), "dog".to_owned()]));
        assert_eq!(of(&json!({"format": "choice", "schema": ["cat", "dog"]})), Ok(choice));
    }

    #[test]
    fn rows_without_one_take_the_runs() {
        assert_eq!(of(&Value::Null), Ok(None));
        assert_eq!(of(&json!(" ")), Ok(None));
        assert_eq!(task().sampling(&Row::new(), &SamplingParams::default()), Ok(None));
        let deaf = TextGenerationWithImage::builder().build().unwrap();
        let row = Row::from_json(r#"{"form": 1}"#).unwrap();
        assert_eq!(deaf.sampling(&row, &SamplingParams::default()), Ok(None));
    }

    #[test]
    fn what_is_no_form_is_named() {
        for bad in [
            json!(3),
            json!("{"),
            json!({"format": "xml", "schema": "a"}),
            json!({"format": "json", "schema": "{"}),
            json!({"format": "json", "schema": 1}),
            json!({"format": "regex", "schema": {}}),
            json!({"format": "choice", "schema": "a"}),
            json!({"format": "json", "schema": {}, "mode": "tool"}),
            json!({"schema": {}}),
        ] {
            let fault = of(&bad).unwrap_err();
            assert_eq!(fault.code, "row.structured_output");
            assert!(fault.message.contains("\"form\""), "{}", fault.message);
        }
    }
}
