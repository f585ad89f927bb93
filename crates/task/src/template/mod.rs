//! Prompt templates: Jinja2 by minijinja, with Python's values, printing, filters and methods.
//!
//! A template comes from a user and sees only the listed columns: there is no loader, so nothing can be read or
//! included, and every step costs fuel, so none runs for ever.

mod analysis;
mod arguments;
mod filters;
mod json;
mod methods;
mod operators;
mod python;
mod rewrite;
mod text_filters;
mod wrap;

use minijinja::machinery::{self, Span};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Rest;
use minijinja::{AutoEscape, Environment, ErrorKind, Output, State, UndefinedBehavior, Value};
use serde_json::value::RawValue;

use crate::config::Undefined;
use crate::error::{TemplateError, TemplateErrorKind};

pub(crate) use analysis::Variable;
pub(crate) use python::python_text;

const NAME: &str = "prompt";

/// A compiled template.
#[derive(Debug)]
pub(crate) struct Template {
    environment: Environment<'static>,
    /// The text with the newlines that the engine sees.
    source: String,
    variables: Vec<Variable>,
}

impl Template {
    /// Parses, checks and compiles a template.
    pub(crate) fn new(source: &str, undefined: Undefined, fuel: u64) -> Result<Self, TemplateError> {
        // Jinja2 reads every kind of newline as LF.
        let source = operators::without_unary_plus(&source.replace("\r\n", "\n").replace('\r', "\n"));
        let mut environment = Environment::new();
        environment.set_debug(true);
        environment.set_fuel(Some(fuel));
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_undefined_behavior(match undefined {
            Undefined::Strict => UndefinedBehavior::SemiStrict,
            Undefined::Lenient => UndefinedBehavior::Lenient,
        });
        environment.set_formatter(print);
        environment.set_unknown_method_callback(methods::call);
        filters::install(&mut environment);
        filters::install_tests(&mut environment);
        operators::install(&mut environment);
        environment.add_function("cycler", |items: Rest<Value>| minijinja_contrib::globals::cycler(items.0));
        environment.add_function("joiner", minijinja_contrib::globals::joiner);
        let parsed =
            machinery::parse(&source, NAME, SyntaxConfig::default()).map_err(|error| explain(&error, &source))?;
        let exists = |what: &'static str, name: &str| {
            environment.empty_state().perform_test(what, &[Value::from(name)]).unwrap_or(false)
        };
        let found = analysis::analyse(&parsed, &exists);
        drop(parsed);
        if let Some(unknown) = found.unknown {
            return Err(at(
                TemplateErrorKind::UnknownFilter,
                format!("there is no {} {:?}", unknown.what, unknown.name),
                &source,
                unknown.span,
            ));
        }
        Ok(Self { environment, source, variables: found.variables })
    }

    /// The free variables in the order of their first use.
    pub(crate) fn variables(&self) -> &[Variable] {
        &self.variables
    }

    /// Renders the template over columns.
    pub(crate) fn render<'a>(
        &self,
        columns: impl IntoIterator<Item = (&'a str, &'a RawValue)>,
    ) -> Result<String, TemplateError> {
        let context = Value::from_pairs(columns.into_iter().map(|(name, raw)| (name, python::value_of(raw))));
        self.evaluate(context).map_err(|error| explain(&error, &self.source))
    }

    /// Parses, rewrites and runs the template. Doing all of it for each row takes microseconds, and saves a structure
    /// that borrows from itself.
    fn evaluate(&self, context: Value) -> Result<String, minijinja::Error> {
        let parsed = machinery::parse(&self.source, NAME, SyntaxConfig::default())?;
        let mut generator = machinery::CodeGenerator::new(NAME, &self.source);
        generator.compile_stmt(&rewrite::rewrite(&parsed));
        let (instructions, blocks) = generator.finish();
        let mut text = String::new();
        let mut out = machinery::make_string_output(&mut text);
        machinery::eval(&self.environment, &instructions, context, &blocks, &mut out, AutoEscape::None)?;
        drop(out);
        Ok(text)
    }
}

/// Writes a printed value.
fn print(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), minijinja::Error> {
    if value.is_undefined() {
        return match state.undefined_behavior() {
            UndefinedBehavior::Strict | UndefinedBehavior::SemiStrict => {
                Err(minijinja::Error::new(ErrorKind::UndefinedError, "a value that is not there is printed"))
            }
            _ => Ok(()),
        };
    }
    let text = python::text(value);
    let escaped = matches!(state.auto_escape(), AutoEscape::Html) && !value.is_safe();
    out.write_str(&if escaped { python::escape_html(&text) } else { text }).map_err(Into::into)
}

/// distilabel's search for a column in the template's text: a print of nothing but the name, or a tag on one line
/// with the name in it as a word.
pub(crate) fn text_mentions(source: &str, column: &str) -> bool {
    let name = regex::escape(column);
    [format!(r"\{{\{{\s*{name}\s*\}}\}}"), format!(r"\{{%.*\b{name}\b.*%\}}")]
        .iter()
        .any(|pattern| regex::Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(source)))
}

/// The engine's error in our words.
fn explain(error: &minijinja::Error, source: &str) -> TemplateError {
    let message = match error.detail() {
        Some(detail) => detail.to_owned(),
        None => error.kind().to_string(),
    };
    let kind = match error.kind() {
        ErrorKind::SyntaxError if message.starts_with("block ") && message.ends_with("defined twice") => {
            TemplateErrorKind::DuplicateBlock
        }
        ErrorKind::SyntaxError | ErrorKind::BadEscape => TemplateErrorKind::Syntax,
        ErrorKind::UndefinedError | ErrorKind::UnknownFunction | ErrorKind::UnknownMethod => {
            TemplateErrorKind::Undefined
        }
        ErrorKind::OutOfFuel => TemplateErrorKind::Fuel,
        _ if message.contains("undefined") => TemplateErrorKind::Undefined,
        _ => TemplateErrorKind::Runtime,
    };
    match error.range().filter(|range| source.get(range.clone()).is_some()) {
        Some(range) => placed(kind, message, source, range),
        None => {
            let line = error.line();
            let excerpt = line.and_then(|line| source.lines().nth(line.saturating_sub(1))).map(shorten);
            TemplateError { kind, message, line, column: None, excerpt }
        }
    }
}

fn at(kind: TemplateErrorKind, message: String, source: &str, span: Span) -> TemplateError {
    placed(kind, message, source, span.start_offset as usize..span.end_offset as usize)
}

fn placed(kind: TemplateErrorKind, message: String, source: &str, range: std::ops::Range<usize>) -> TemplateError {
    let before = source.get(..range.start).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    let words = source.get(range).unwrap_or_default();
    // A place between two words says little; the line says more.
    let excerpt = if words.trim().is_empty() { source.lines().nth(line - 1).unwrap_or_default() } else { words };
    TemplateError { kind, message, line: Some(line), column: Some(column), excerpt: Some(shorten(excerpt)) }
}

fn shorten(text: &str) -> String {
    const LIMIT: usize = 80;
    let text = text.trim();
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None if line.len() < text.len() => format!("{line}..."),
        None => line.to_owned(),
    }
}
