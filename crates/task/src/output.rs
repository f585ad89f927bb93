//! From answers to output rows, in distilabel's columns and ours.
//!
//! A row is the input row, then `generation`, `distilabel_metadata`, `llm_<name>_<extra>`, `model_name`, and then
//! what distilabel does not have: `finish_reason` and `error`. These two are in every row, null when there is nothing
//! to say, so that the schema of a file is fixed. With `group_generations`, `generation`, `distilabel_metadata`, the
//! extras and `finish_reason` are lists over the answers, and so is `error` if any answer failed.
//!
//! A row that failed as a whole gives one row, grouped or not, with a null `generation` and `model_name`: every input
//! row is found again in the output.

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use vgen_core::{Fault, FinishReason, Generation, Response, Row, TokenLogprob, TopLogprob};

use crate::render::{Rendered, raw};
use crate::task::TextGenerationWithImage;

/// One answer in the words of the output columns.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The `generation` column.
    pub text: Option<String>,
    /// The `finish_reason` column.
    pub finish_reason: Option<FinishReason>,
    /// The `statistics_*` metadata; left out if empty.
    pub statistics: Map<String, Value>,
    /// What the backend gave besides, each the column `llm_<name>_<key>`.
    pub extras: Map<String, Value>,
    /// The `error` column.
    pub error: Option<Fault>,
}

impl From<&Result<Generation, Fault>> for Answer {
    fn from(result: &Result<Generation, Fault>) -> Self {
        match result {
            Err(fault) => Self { error: Some(fault.clone()), ..Self::default() },
            Ok(generation) => {
                let mut answer =
                    Self { text: generation.text.clone(), finish_reason: generation.finish_reason, ..Self::default() };
                if let Some(usage) = &generation.usage {
                    answer.statistics.insert("input_tokens".to_owned(), usage.input_tokens.into());
                    answer.statistics.insert("output_tokens".to_owned(), usage.output_tokens.into());
                    if let Some(tokens) = usage.vision_tokens {
                        answer.statistics.insert("vision_tokens".to_owned(), tokens.into());
                    }
                }
                if let Some(tokens) = &generation.logprobs {
                    let tokens: Vec<_> = tokens.iter().map(alternatives).collect();
                    if let Ok(value) = serde_json::to_value(tokens) {
                        answer.extras.insert("logprobs".to_owned(), value);
                    }
                }
                if let Some(calls) = &generation.tool_calls {
                    answer.extras.insert("tool_calls".to_owned(), calls.clone());
                }
                if let Some(reasoning) = &generation.reasoning {
                    answer.extras.insert("reasoning".to_owned(), reasoning.as_str().into());
                }
                answer
            }
        }
    }
}

/// distilabel's form: for each token the list of its alternatives. distilabel loses the sampled token if it is not
/// among them; here it then comes first.
fn alternatives(token: &TokenLogprob) -> Vec<TopLogprob> {
    let mut list = token.top_logprobs.clone();
    if !list.iter().any(|other| other.token == token.token) {
        list.insert(0, TopLogprob { token: token.token.clone(), logprob: token.logprob });
    }
    list
}

impl TextGenerationWithImage {
    /// The output rows of an input row: one for each answer, or one for all with `group_generations`; one if the row
    /// failed as a whole. `rendered` is `None` if rendering failed.
    pub fn output_rows(&self, row: &Row, rendered: Option<&Rendered>, outcome: &Result<Response, Fault>) -> Vec<Row> {
        match outcome {
            Err(fault) => vec![self.failed_row(row, fault)],
            Ok(response) => {
                let answers: Vec<_> = response.generations.iter().map(Answer::from).collect();
                self.rows_of(row, rendered, &response.model_name, &answers)
            }
        }
    }

    /// As [`TextGenerationWithImage::output_rows`], of answers in the output's own words.
    pub fn rows_of(&self, row: &Row, rendered: Option<&Rendered>, model_name: &str, answers: &[Answer]) -> Vec<Row> {
        if answers.is_empty() {
            let fault = Fault::row("backend.no_answer", "the backend gave no answer");
            return vec![self.failed_row(row, &fault)];
        }
        let raw_input = rendered.and_then(|rendered| rendered.raw_input.as_deref());
        let old = OldMetadata::of(row.get(self.output_name("distilabel_metadata")));
        let metadata: Vec<_> = answers
            .iter()
            .enumerate()
            .map(|(i, answer)| {
                let own = self.metadata(answer, raw_input);
                if own.is_empty() { None } else { Some(old.merged(i, answers.len(), self.group_generations, own)) }
            })
            .collect();
        let extras: Vec<&String> = {
            let mut names: Vec<&String> = answers.iter().flat_map(|answer| answer.extras.keys()).collect();
            let mut seen = std::collections::HashSet::new();
            names.retain(|name| seen.insert(*name));
            names
        };
        if self.group_generations {
            let mut out = row.clone();
            self.put(&mut out, "generation", &answers.iter().map(|a| &a.text).collect::<Vec<_>>());
            if metadata.iter().any(Option::is_some) {
                let empty = Row::new();
                let list: Vec<_> = metadata.iter().map(|object| object.as_ref().unwrap_or(&empty)).collect();
                self.put(&mut out, "distilabel_metadata", &list);
            }
            for name in extras {
                let list: Vec<_> = answers.iter().map(|answer| answer.extras.get(name)).collect();
                out.set_raw(self.extra_column(name), raw(&list));
            }
            self.put(&mut out, "model_name", model_name);
            self.put(&mut out, "finish_reason", &answers.iter().map(|a| a.finish_reason).collect::<Vec<_>>());
            let faults: Vec<_> = answers.iter().map(|answer| &answer.error).collect();
            let any = faults.iter().any(|fault| fault.is_some());
            self.put(&mut out, "error", &any.then_some(faults));
            return vec![out];
        }
        let mut rows = Vec::with_capacity(answers.len());
        for (answer, metadata) in answers.iter().zip(metadata) {
            let mut out = row.clone();
            self.put(&mut out, "generation", &answer.text);
            if let Some(metadata) = metadata {
                self.put(&mut out, "distilabel_metadata", &metadata);
            }
            for name in &extras {
                out.set_raw(self.extra_column(name), raw(&answer.extras.get(*name)));
            }
            self.put(&mut out, "model_name", model_name);
            self.put(&mut out, "finish_reason", &answer.finish_reason);
            self.put(&mut out, "error", &answer.error);
            rows.push(out);
        }
        rows
    }

    fn failed_row(&self, row: &Row, fault: &Fault) -> Row {
        let mut out = row.clone();
        self.put(&mut out, "generation", &());
        self.put(&mut out, "model_name", &());
        let mut own = Row::new();
        if self.add_raw_output {
            own.set_raw(format!("raw_output_{}", self.name), raw(&()));
        }
        if self.add_raw_input {
            own.set_raw(format!("raw_input_{}", self.name), raw(&()));
        }
        if !own.is_empty() {
            let merged = OldMetadata::of(row.get(self.output_name("distilabel_metadata"))).merged(0, 1, false, own);
            self.put(&mut out, "distilabel_metadata", &merged);
        }
        self.put(&mut out, "finish_reason", &());
        self.put(&mut out, "error", fault);
        out
    }

    fn metadata(&self, answer: &Answer, raw_input: Option<&RawValue>) -> Row {
        let mut own = Row::new();
        if self.add_raw_output {
            own.set_raw(format!("raw_output_{}", self.name), raw(&answer.text));
        }
        if self.add_raw_input {
            own.set_raw(format!("raw_input_{}", self.name), raw(&raw_input));
        }
        if !answer.statistics.is_empty() {
            own.set_raw(format!("statistics_{}", self.name), raw(&answer.statistics));
        }
        own
    }

    fn put<T: Serialize + ?Sized>(&self, row: &mut Row, column: &str, value: &T) {
        row.set_raw(self.output_name(column), raw(value));
    }
}

/// The metadata of earlier steps, which distilabel throws away.
enum OldMetadata<'a> {
    None,
    Object(Row),
    /// Of an earlier step that grouped its answers.
    List(Vec<Row>, &'a RawValue),
}

impl<'a> OldMetadata<'a> {
    fn of(value: Option<&'a RawValue>) -> Self {
        let Some(value) = value else { return Self::None };
        if let Ok(object) = serde_json::from_str(value.get()) {
            return Self::Object(object);
        }
        match serde_json::from_str(value.get()) {
            Ok(list) => Self::List(list, value),
            Err(_) => Self::None,
        }
    }

    /// The i-th of n answers' metadata, put over what was there. A list that does not fit the answers one by one is
    /// kept whole under `previous`.
    fn merged(&self, i: usize, n: usize, grouped: bool, own: Row) -> Row {
        let mut merged = match self {
            Self::None => return own,
            Self::Object(object) => object.clone(),
            Self::List(list, _) if grouped && list.len() == n => list[i].clone(),
            Self::List(_, whole) => {
                let mut row = Row::new();
                row.set_raw("previous", (*whole).to_owned());
                row
            }
        };
        for (name, value) in own.iter() {
            merged.set_raw(name, value.to_owned());
        }
        merged
    }
}
