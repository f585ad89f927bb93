//! Constraints: answers that are JSON of a schema, match a regular expression or are one of some texts.
//!
//! [`ConstraintCompiler`] is made once per model, compiles each different constraint once (before the run for the run's
//! own) and hands out a [`ConstraintState`] per sample, which forbids all tokens that lead out of the form. llguidance
//! does the parsing; the end of a sequence is allowed exactly where the form may end.
//!
//! JSON: between tokens of the JSON text at most one space, or one line break with up to 40 spaces, is allowed, so that
//! a model can indent but not pad for ever. A schema's own `x-guidance` options replace this.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use tokenizers::Tokenizer;
use vgen_core::{Constraint, Fault};
use vgen_kernels::token_mask;

use super::schema_place;
use super::vocabulary::Vocabulary;

/// How many compiled constraints are kept, for runs whose rows bring their own.
const KEPT: usize = 64;

/// Whitespace in JSON, once per place.
const WHITESPACE: &str = r" |\n {0,40}";

/// Why an answer can't be held to a form.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConstraintError {
    /// The constraint means nothing.
    #[error("{kind} constraint: {message}")]
    Invalid {
        /// JSON schema, regex or choice.
        kind: &'static str,
        /// What is wrong and where.
        message: String,
    },
    /// The tokenizer can't be used for constraints.
    #[error("constraints with this tokenizer: {0}")]
    Tokenizer(String),
    /// The form is too much for the parser, at some place of some answer.
    #[error("the constraint stopped at new token {step}: {message}")]
    Stopped {
        /// How many tokens the answer had.
        step: usize,
        /// What the parser said.
        message: String,
    },
    /// The answer ended before its form did.
    #[error("the answer ended after {tokens} tokens, before the form that the constraint asks for was complete")]
    Incomplete {
        /// How many tokens the answer has.
        tokens: usize,
    },
    /// A stop text or a stop token ended the answer before its form did, or was cut from it.
    #[error(
        "a stop text or token ended the answer after {tokens} tokens, without the form that the constraint asks for"
    )]
    Cut {
        /// How many tokens the answer has.
        tokens: usize,
    },
}

impl From<ConstraintError> for Fault {
    fn from(error: ConstraintError) -> Self {
        let message = error.to_string();
        match error {
            ConstraintError::Invalid { .. } => {
                Fault::stop("constraint.invalid", message).with_hint("correct the constraint, nothing was run with it")
            }
            ConstraintError::Tokenizer(_) => Fault::stop("constraint.tokenizer", message),
            ConstraintError::Stopped { .. } => {
                Fault::row("constraint.stopped", message).with_hint("make the schema or the expression simpler")
            }
            ConstraintError::Incomplete { .. } => Fault::row("constraint.incomplete", message)
                .with_hint("raise max_new_tokens, or bound strings and arrays in the schema"),
            ConstraintError::Cut { .. } => Fault::row("constraint.cut", message)
                .with_hint("leave out stop and stop_token_ids, or keep their text with include_stop"),
        }
    }
}

/// Compiles constraints for one model.
pub struct ConstraintCompiler {
    factory: ParserFactory,
    vocab_size: usize,
    /// By constraint, as JSON; in order of use, the latest last.
    entries: Mutex<Vec<(String, Entry)>>,
}

/// A constraint that was asked for: compiled by who asked first, without holding up those who ask for another.
type Entry = Arc<OnceLock<Result<Arc<Compiled>, ConstraintError>>>;

/// A constraint at the start of its form.
struct Compiled {
    matcher: Matcher,
    known: KnownMasks,
}

impl Compiled {
    /// Whether a whole text is of the form.
    fn accepts(&self, text: &str) -> bool {
        let mut matcher = self.matcher.clone();
        let Ok(env) = matcher.tok_env() else { return false };
        let tokens = env.tokenize(text);
        matcher.validate_tokens(&tokens).is_ok_and(|valid| valid == tokens.len())
            && matcher.consume_tokens(&tokens).is_ok()
            && is_complete(&mut matcher)
    }
}

/// The few tokens that are allowed after a beginning of an answer. Rows with the same constraint begin alike: with the
/// choices, or with the names of a schema.
#[derive(Default)]
struct KnownMasks(Mutex<MasksByTokens>);

type MasksByTokens = HashMap<Box<[u32]>, Arc<[u32]>>;

/// Longest beginning whose mask is kept, in tokens.
const KEPT_TOKENS: usize = 64;
/// Most tokens of a mask that is kept.
const KEPT_ALLOWED: usize = 256;
/// Most masks that are kept for a constraint.
const KEPT_MASKS: usize = 4096;

impl KnownMasks {
    fn get(&self, tokens: &[u32]) -> Option<Arc<[u32]>> {
        if tokens.len() > KEPT_TOKENS {
            return None;
        }
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(tokens).cloned()
    }

    fn keep(&self, tokens: &[u32], allowed: &[u32]) {
        if tokens.len() > KEPT_TOKENS || allowed.len() > KEPT_ALLOWED {
            return;
        }
        let mut masks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if masks.len() < KEPT_MASKS {
            masks.insert(tokens.into(), allowed.into());
        }
    }
}

impl std::fmt::Debug for ConstraintCompiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConstraintCompiler").field("vocab_size", &self.vocab_size).finish_non_exhaustive()
    }
}

impl ConstraintCompiler {
    /// Builds what all constraints share. `vocab_size` is the length of the model's logits, the tokens in `eos_ids` end
    /// its generations. Takes about a second for a vocabulary of 128 k.
    ///
    /// # Errors
    /// [`ConstraintError::Tokenizer`] if there is no end token, or it is not in the model's vocabulary.
    pub fn new(
        tokenizer: &Tokenizer,
        vocabulary: &Vocabulary,
        vocab_size: usize,
        eos_ids: &[u32],
    ) -> Result<Self, ConstraintError> {
        let Some(&first) = eos_ids.first() else {
            return Err(ConstraintError::Tokenizer("the model has no end-of-sequence token".to_owned()));
        };
        if let Some(id) = eos_ids.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(ConstraintError::Tokenizer(format!("end token {id} is not in the vocabulary of {vocab_size}")));
        }
        let words: Vec<Vec<u8>> = (0..vocab_size as u32)
            .map(|id| {
                let bytes = vocabulary.bytes(id);
                if vocabulary.is_special(id) || bytes.is_empty() {
                    // No text leads to a word that starts with the marker. Ids keep nameless words apart.
                    let mut word = vec![TokTrie::SPECIAL_TOKEN_MARKER];
                    if bytes.is_empty() {
                        word.extend_from_slice(format!("<[{id}]>").as_bytes());
                    }
                    word.extend_from_slice(bytes);
                    word
                } else {
                    bytes.to_vec()
                }
            })
            .collect();
        let trie = TokTrie::from(&TokRxInfo::new(vocab_size as u32, first), &words).with_eos_tokens(eos_ids);
        // Names of special tokens in a form are text; they must not be forced as the tokens themselves.
        let mut tokenizer = tokenizer.clone();
        tokenizer.set_encode_special_tokens(true);
        let env: TokEnv = Arc::new(Tokens { trie, tokenizer });
        let mut factory = ParserFactory::new(
            &env,
            InferenceCapabilities::default(),
            &llguidance::earley::SlicedBiasComputer::general_slices(),
        )
        .map_err(|error| ConstraintError::Tokenizer(error.to_string()))?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(Self { factory, vocab_size, entries: Mutex::default() })
    }

    /// A state at the start of the constraint's form. The first call for a constraint compiles it, later ones copy.
    ///
    /// # Errors
    /// [`ConstraintError::Invalid`] with what is wrong and where.
    pub fn start(&self, constraint: &Constraint) -> Result<ConstraintState, ConstraintError> {
        let entry = self.entry(serde_json::to_string(constraint).unwrap_or_default());
        let compiled = entry.get_or_init(|| self.compile(constraint).map(Arc::new)).clone()?;
        Ok(ConstraintState { matcher: compiled.matcher.clone(), compiled, tokens: Vec::new() })
    }

    /// The entry of a constraint, compiled or not; the one that was not used for the longest time makes room for a new.
    fn entry(&self, name: String) -> Entry {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let found = match entries.iter().position(|(other, _)| *other == name) {
            Some(at) => entries.remove(at),
            None => (name, Entry::default()),
        };
        if entries.len() == KEPT {
            entries.remove(0);
        }
        let entry = Arc::clone(&found.1);
        entries.push(found);
        entry
    }

    fn compile(&self, constraint: &Constraint) -> Result<Compiled, ConstraintError> {
        let (kind, grammar) = grammar(constraint)?;
        let matcher = self.matcher(grammar).map_err(|message| {
            let place = match constraint {
                Constraint::JsonSchema(schema) => self.place(schema, &message),
                _ => None,
            };
            let message = place.map_or_else(|| message.clone(), |place| format!("{message} at {place}"));
            ConstraintError::Invalid { kind, message }
        })?;
        Ok(Compiled { matcher, known: KnownMasks::default() })
    }

    fn matcher(&self, grammar: TopLevelGrammar) -> Result<Matcher, String> {
        let parser = self.factory.create_parser(grammar).map_err(|error| one_line(&error.to_string()))?;
        let mut matcher = Matcher::new(Ok(parser));
        // The first mask finds what compiling does not: a form that no token can start.
        matcher.compute_mask().map_err(|error| one_line(&error.to_string()))?;
        Ok(matcher)
    }

    /// The JSON pointer of what compiling a schema fails at with this message.
    fn place(&self, schema: &Value, message: &str) -> Option<String> {
        schema_place::find(schema, |changed| {
            let grammar = with_whitespace(changed).map(TopLevelGrammar::from_json_schema);
            grammar.is_ok_and(|grammar| self.matcher(grammar).is_err_and(|other| other == message))
        })
    }
}

fn grammar(constraint: &Constraint) -> Result<(&'static str, TopLevelGrammar), ConstraintError> {
    Ok(match constraint {
        Constraint::JsonSchema(schema) => ("json_schema", TopLevelGrammar::from_json_schema(with_whitespace(schema)?)),
        Constraint::Regex(pattern) => ("regex", TopLevelGrammar::from_regex(whole(pattern)?)),
        Constraint::Choice(choices) => {
            let invalid = |message: &str| ConstraintError::Invalid { kind: "choice", message: message.to_owned() };
            if choices.is_empty() {
                return Err(invalid("there is nothing to choose from"));
            }
            if let Some(at) = choices.iter().position(String::is_empty) {
                return Err(invalid(&format!("choice {at} is empty")));
            }
            let escaped: Vec<String> = choices.iter().map(|choice| regex_syntax::escape(choice)).collect();
            ("choice", TopLevelGrammar::from_regex(&format!("(?:{})", escaped.join("|"))))
        }
    })
}

fn with_whitespace(schema: &Value) -> Result<Value, ConstraintError> {
    let mut schema = schema.clone();
    match &mut schema {
        Value::Object(object) => {
            object.entry("x-guidance").or_insert_with(|| json!({"whitespace_pattern": WHITESPACE}));
        }
        Value::Bool(_) => {}
        _ => {
            let message = "a schema is an object, true or false".to_owned();
            return Err(ConstraintError::Invalid { kind: "json_schema", message });
        }
    }
    Ok(schema)
}

/// The pattern without anchors at its ends, which a match of the whole text has anyway.
fn whole(pattern: &str) -> Result<&str, ConstraintError> {
    let invalid = |message| ConstraintError::Invalid { kind: "regex", message };
    if let Err(error) = regex_syntax::parse(pattern) {
        let (what, at) = match &error {
            regex_syntax::Error::Parse(error) => (error.kind().to_string(), Some(error.span().start.offset)),
            regex_syntax::Error::Translate(error) => (error.kind().to_string(), Some(error.span().start.offset)),
            other => (one_line(&other.to_string()), None),
        };
        let mut message = format!("{what} in {pattern:?}");
        if let Some(at) = at {
            // Writing to a string can't fail.
            let _ = write!(message, " at byte {at}");
        }
        return Err(invalid(message));
    }
    let pattern = pattern.strip_prefix('^').unwrap_or(pattern);
    let escapes = |text: &str| text.bytes().rev().take_while(|&byte| byte == b'\\').count();
    Ok(match pattern.strip_suffix('$') {
        Some(rest) if escapes(rest) % 2 == 0 => rest,
        _ => pattern,
    })
}

/// The message without line breaks and what comes after an empty line (a dump of the parser's state).
fn one_line(message: &str) -> String {
    let mut text = String::new();
    for line in message.lines().map(str::trim).take_while(|line| !line.is_empty() && *line != "<backtrace>") {
        if !text.is_empty() {
            text.push_str("; ");
        }
        text.push_str(line);
    }
    text
}

/// The tokenizer as llguidance wants it.
struct Tokens {
    trie: TokTrie,
    tokenizer: Tokenizer,
}

impl TokenizerEnv for Tokens {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| match self.tokenizer.encode_fast(text, false) {
            Ok(encoding) => encoding.get_ids().to_vec(),
            Err(_) => self.trie.greedy_tokenize(text.as_bytes()),
        })
    }
}

/// Where an answer stands in its form. Cheap to clone for several samples.
#[derive(Clone)]
pub struct ConstraintState {
    matcher: Matcher,
    compiled: Arc<Compiled>,
    /// The answer so far.
    tokens: Vec<u32>,
}

/// More allowed tokens than this are not listed.
const FEW: usize = 2048;

impl std::fmt::Debug for ConstraintState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConstraintState").field("step", &self.tokens.len()).finish_non_exhaustive()
    }
}

impl ConstraintState {
    /// What may come next: few tokens are listed in `few`, ascending, and the logits left alone; otherwise the logits of
    /// `[vocab_size]` that lead out of the form become minus infinity and `few` stays empty. End tokens are allowed
    /// exactly where the form may end.
    ///
    /// # Errors
    /// [`ConstraintError::Stopped`] if the parser gives up.
    pub fn allow(&mut self, logits: &mut [f32], few: &mut Vec<u32>) -> Result<(), ConstraintError> {
        few.clear();
        if let Some(known) = self.compiled.known.get(&self.tokens) {
            few.extend_from_slice(&known);
            return Ok(());
        }
        let allowed = self.matcher.compute_mask_or_eos().map_err(|error| self.stopped(&error.to_string()))?;
        let words = allowed.as_slice();
        if (1..=FEW).contains(&token_mask::count(words)) {
            for (at, &word) in words.iter().enumerate() {
                let mut rest = word;
                while rest != 0 {
                    few.push(32 * at as u32 + rest.trailing_zeros());
                    rest &= rest - 1;
                }
            }
            few.retain(|&id| (id as usize) < logits.len());
            self.compiled.known.keep(&self.tokens, few);
            return Ok(());
        }
        token_mask::forbid_others(logits, words);
        Ok(())
    }

    /// Takes the chosen token.
    ///
    /// # Errors
    /// [`ConstraintError::Stopped`] if the token leads out of the form or the parser gives up.
    pub fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        if self.is_finished() {
            // The form is complete; only an end token was left to choose.
            return Ok(());
        }
        self.matcher.consume_token(token).map_err(|error| self.stopped(&error.to_string()))?;
        self.tokens.push(token);
        Ok(())
    }

    /// Whether the form is complete and nothing can follow, so that the answer ends here.
    pub fn is_finished(&self) -> bool {
        is_finished(&self.matcher)
    }

    /// Whether the form may end here.
    pub fn is_complete(&mut self) -> bool {
        is_complete(&mut self.matcher)
    }

    /// Whether an answer that ends here, for whatever reason, is of its form. `text` is what is shown of it: a stop text
    /// or the text of a stop token may be cut from it, though they are part of the form.
    pub fn is_form_of(&mut self, text: &str) -> bool {
        if self.read().is_some_and(|read| read == text.as_bytes()) {
            self.is_complete()
        } else {
            self.compiled.accepts(text)
        }
    }

    /// The bytes of the answer so far; end tokens have none.
    fn read(&self) -> Option<Vec<u8>> {
        Some(self.matcher.tok_env().ok()?.tok_trie().decode_ext(&self.tokens, false))
    }

    fn stopped(&self, message: &str) -> ConstraintError {
        ConstraintError::Stopped { step: self.tokens.len(), message: one_line(message) }
    }
}

fn is_finished(matcher: &Matcher) -> bool {
    matcher.is_stopped() && !matcher.is_error()
}

fn is_complete(matcher: &mut Matcher) -> bool {
    is_finished(matcher) || matcher.is_accepting().unwrap_or(false)
}

/// Compiled constraints are shared between threads.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<ConstraintCompiler>();
    shared::<ConstraintState>();
};
