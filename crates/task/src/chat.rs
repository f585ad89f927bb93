//! [`ChatTemplate`]: messages to prompt text, by the checkpoint's own Jinja template.

use std::fmt::Write as _;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::{Map, Value as Json};
use thiserror::Error as ThisError;
use vgen_core::{Content, Fault, Message, Part, Role};

/// Instructions and output that one rendering may cost; a long prompt with tools takes a thousandth.
const FUEL: u64 = 50_000_000;
const NAME: &str = "chat_template";

/// Why a chat template can't be used.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum ChatError {
    /// The file isn't the JSON it should be.
    #[error("{file} can't be read: {source}")]
    Json {
        /// The file.
        file: &'static str,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The template isn't valid Jinja.
    #[error("the chat template is not valid: {0}")]
    Syntax(String),
    /// No template of the wanted name.
    #[error("tokenizer_config.json has no chat template named {wanted}, only {available}")]
    Name {
        /// The name.
        wanted: String,
        /// The names there are.
        available: String,
    },
    /// The template refuses these messages.
    #[error("the chat template refuses the messages: {0}")]
    Refused(String),
    /// The template fails on these messages.
    #[error("the chat template fails: {0}")]
    Failed(String),
}

impl From<ChatError> for Fault {
    fn from(error: ChatError) -> Self {
        let message = error.to_string();
        match error {
            ChatError::Json { .. } | ChatError::Syntax(_) => Fault::stop("chat_template.invalid", message)
                .with_hint("use the chat template that the model was published with"),
            ChatError::Name { .. } => {
                Fault::stop("chat_template.name", message).with_hint("choose one of the names, or none for the default")
            }
            ChatError::Refused(_) => {
                Fault::row("chat_template.refused", message).with_hint("the model was not made for such messages")
            }
            ChatError::Failed(_) => Fault::row("chat_template.failed", message)
                .with_hint("use the chat template that the model was published with"),
        }
    }
}

/// A checkpoint's chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// [`ChatError::Syntax`].
    pub fn new(source: &str) -> Result<Self, ChatError> {
        let syntax_error = |error: Error| ChatError::Syntax(describe(&error));
        let mut environment = Environment::new();
        // As transformers sets Jinja up.
        let mut syntax = minijinja::syntax::SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        environment.set_syntax(syntax.build().map_err(syntax_error)?);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment.add_template_owned(NAME, source.to_owned()).map_err(syntax_error)?;
        Ok(Self { environment })
    }

    /// The template of a checkpoint: `chat_template` holds the contents of `chat_template.json` or
    /// `chat_template.jinja`; without it `tokenizer_config` is looked at, which may have several templates, told
    /// apart by `name` (`None`: the default one). `None` if the checkpoint has no template.
    ///
    /// # Errors
    /// [`ChatError::Json`], [`ChatError::Syntax`], [`ChatError::Name`].
    pub fn from_files(
        chat_template: Option<&str>,
        tokenizer_config: Option<&str>,
        name: Option<&str>,
    ) -> Result<Option<Self>, ChatError> {
        let template = match (chat_template, tokenizer_config) {
            // A Jinja template begins with "{" too, but is no JSON object.
            (Some(text), _) => match serde_json::from_str::<Map<String, Json>>(text) {
                Ok(mut object) => object.remove("chat_template"),
                Err(_) => Some(Json::String(text.to_owned())),
            },
            (None, Some(text)) => serde_json::from_str::<Map<String, Json>>(text)
                .map_err(|source| ChatError::Json { file: "tokenizer_config.json", source })?
                .remove("chat_template"),
            (None, None) => None,
        };
        match template {
            None | Some(Json::Null) => Ok(None),
            Some(Json::String(source)) => Self::new(&source).map(Some),
            Some(Json::Array(templates)) => {
                let named: Vec<(&str, &str)> = templates
                    .iter()
                    .filter_map(|entry| entry.get("name")?.as_str().zip(entry.get("template")?.as_str()))
                    .collect();
                let wanted = name.unwrap_or("default");
                match named.iter().find(|(name, _)| *name == wanted) {
                    Some((_, source)) => Self::new(source).map(Some),
                    None => Err(ChatError::Name {
                        wanted: wanted.to_owned(),
                        available: named.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
                    }),
                }
            }
            Some(other) => Err(ChatError::Syntax(format!("{other} is neither a text nor a list of texts"))),
        }
    }

    /// Sets a name that the template knows in every rendering, such as `bos_token`.
    pub fn set_global(&mut self, name: &str, text: &str) {
        self.environment.add_global(name.to_owned(), text);
    }

    /// The prompt text of `messages`, an array in the form of transformers (`{"type": "image"}` for an image).
    /// `variables` are the template's other names: `add_generation_prompt`, `date_string`, `tools`, ...
    /// `text` may change each string of both before the template sees it.
    ///
    /// # Errors
    /// [`ChatError::Refused`] where the template raises, [`ChatError::Failed`] where it goes wrong.
    pub fn render(
        &self,
        messages: &Json,
        variables: &Map<String, Json>,
        text: &dyn Fn(&str) -> String,
    ) -> Result<String, ChatError> {
        let context = variables.iter().map(|(name, value)| (name.as_str(), to_value(value, text)));
        let context = context.chain([("messages", to_value(messages, text))]);
        let template = self.environment.get_template(NAME).map_err(|error| ChatError::Failed(describe(&error)))?;
        template.render(Value::from_pairs(context)).map_err(|error| match raised(&error) {
            Some(message) => ChatError::Refused(message),
            None => ChatError::Failed(describe(&error)),
        })
    }
}

/// `messages` in the form that chat templates take: content parts are `{"type": "text", "text": ...}` and
/// `{"type": "image"}`; content without an image is a text.
pub fn template_messages(messages: &[Message]) -> Json {
    Json::Array(messages.iter().map(template_message).collect())
}

fn template_message(message: &Message) -> Json {
    let role = match message.role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
    };
    let content = match &message.content {
        Content::Text(text) => Json::from(text.as_str()),
        // Templates trim a system message's text, which a list of parts doesn't have.
        Content::Parts(parts) if message.images().next().is_none() => {
            let texts = parts.iter().filter_map(|part| match part {
                Part::Text(text) => Some(text.as_str()),
                Part::Image(_) => None,
            });
            Json::from(texts.collect::<String>())
        }
        Content::Parts(parts) => Json::Array(parts.iter().map(template_part).collect()),
    };
    serde_json::json!({ "role": role, "content": content })
}

fn template_part(part: &Part) -> Json {
    match part {
        Part::Text(text) => serde_json::json!({ "type": "text", "text": text }),
        Part::Image(_) => serde_json::json!({ "type": "image" }),
    }
}

fn to_value(json: &Json, text: &dyn Fn(&str) -> String) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(value), _) => Value::from(value),
            (None, Some(value)) => Value::from(value),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(value) => Value::from(text(value)),
        Json::Array(values) => values.iter().map(|value| to_value(value, text)).collect(),
        Json::Object(entries) => {
            Value::from_pairs(entries.iter().map(|(key, value)| (text(key), to_value(value, text))))
        }
    }
}

const RAISED: &str = "raised: ";

fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
}

fn raised(error: &Error) -> Option<String> {
    Some(error.detail()?.strip_prefix(RAISED)?.to_owned())
}

fn describe(error: &Error) -> String {
    let message = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{message} (line {line})"),
        None => message,
    }
}

fn strftime_now(format: &str) -> Result<String, Error> {
    let mut text = String::new();
    write!(text, "{}", chrono::Local::now().format(format))
        .map_err(|_| Error::new(ErrorKind::InvalidOperation, format!("{format} is not a date format")))?;
    Ok(text)
}

/// `json.dumps(value, ensure_ascii=False, indent=indent)` of Python, which is what transformers puts in the place of
/// Jinja's filter: nothing is escaped for HTML.
fn to_json(state: &State, value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    if ensure_ascii == Some(true) {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson with ensure_ascii is not supported"));
    }
    let mut writer = JsonWriter { out: String::new(), indent, sort_keys: sort_keys == Some(true) };
    writer.write(value, 0)?;
    state.consume_fuel(writer.out.len() as u64 / 64)?;
    Ok(Value::from(writer.out))
}

struct JsonWriter {
    out: String,
    indent: Option<usize>,
    sort_keys: bool,
}

impl JsonWriter {
    fn write(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::Undefined | ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&value.to_string()),
            ValueKind::String => self.write_string(value.as_str().unwrap_or_default())?,
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.write_items('{', '}', depth, &keys, |writer, key| {
                    writer.write_string(&key.to_string())?;
                    writer.out.push_str(": ");
                    writer.write(&value.get_item(key)?, depth + 1)
                })?;
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.write_items('[', ']', depth, &items, |writer, item| writer.write(item, depth + 1))?;
            }
            other => {
                return Err(Error::new(ErrorKind::InvalidOperation, format!("tojson doesn't take {other}")));
            }
        }
        Ok(())
    }

    fn write_items(
        &mut self,
        open: char,
        close: char,
        depth: usize,
        items: &[Value],
        mut write: impl FnMut(&mut Self, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.out.push_str(if self.indent.is_some() { "," } else { ", " });
            }
            self.new_line(depth + 1);
            write(self, item)?;
        }
        if !items.is_empty() {
            self.new_line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn write_string(&mut self, text: &str) -> Result<(), Error> {
        let quoted =
            serde_json::to_string(text).map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))?;
        self.out.push_str(&quoted);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
