//! [`Vocabulary`]: what each token adds to a text, read once from the tokenizer and shared by all rows.
//!
//! A decoder of `tokenizer.json` is one of two forms. `ByteLevel` (Llama 3, GPT-2): each character of a token stands for
//! a byte. `ByteFallback` in a sequence (Llama 2, Gemma): tokens are texts with a sign for the space, and tokens named
//! `<0xE4>` are bytes. Any other is refused, because it can't be decoded token by token.

use std::collections::HashSet;

use serde_json::Value;
use tokenizers::Tokenizer;
use vgen_core::Fault;

/// Why a tokenizer can't be decoded token by token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VocabularyError {
    /// The decoder is none of the known forms.
    #[error("the tokenizer's decoder {0} is neither ByteLevel nor ByteFallback")]
    Decoder(String),
}

impl From<VocabularyError> for Fault {
    fn from(error: VocabularyError) -> Self {
        Fault::stop("tokenizer.decoder", error.to_string())
            .with_hint("use the tokenizer.json of a Llama model, or of another byte-level or byte-fallback model")
    }
}

/// How bytes of tokens become text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// All tokens are bytes; what is no UTF-8 becomes U+FFFD per maximal part.
    ByteLevel,
    /// Runs of byte tokens become text if the whole run is UTF-8, one U+FFFD per byte otherwise. That many spaces are
    /// taken from the start of the text.
    ByteFallback {
        /// Spaces taken from the start.
        strip: usize,
    },
}

const SPECIAL: u8 = 1;
const BYTE: u8 = 2;

/// What each token adds to a text.
#[derive(Debug)]
pub struct Vocabulary {
    form: Form,
    /// Token `i` is `bytes[ends[i - 1]..ends[i]]`.
    ends: Vec<u32>,
    bytes: Vec<u8>,
    flags: Vec<u8>,
}

impl Vocabulary {
    /// Reads the tokens of a tokenizer.
    ///
    /// # Errors
    /// [`VocabularyError::Decoder`] if the tokenizer's decoder is of an unknown form.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, VocabularyError> {
        let decoder = serde_json::to_value(tokenizer.get_decoder()).unwrap_or(Value::Null);
        let (form, space) = form_of(&decoder).ok_or_else(|| VocabularyError::Decoder(decoder.to_string()))?;
        let special: HashSet<String> = tokenizer
            .get_added_tokens_decoder()
            .into_values()
            .filter(|token| token.special)
            .map(|token| token.content)
            .collect();
        let size = tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        let mut vocabulary = Self {
            form,
            ends: Vec::with_capacity(size),
            bytes: Vec::with_capacity(size * 8),
            flags: Vec::with_capacity(size),
        };
        let table = byte_table();
        for id in 0..size as u32 {
            // A gap in the ids adds nothing, as in `Tokenizer::decode`.
            let token = tokenizer.id_to_token(id).unwrap_or_default();
            let mut flags = if special.contains(&token) { SPECIAL } else { 0 };
            match form {
                Form::ByteLevel => push_byte_level(&mut vocabulary.bytes, &token, &table),
                Form::ByteFallback { .. } => match byte_token(&token) {
                    Some(byte) => {
                        flags |= BYTE;
                        vocabulary.bytes.push(byte);
                    }
                    None => match &space {
                        Some(sign) => vocabulary.bytes.extend_from_slice(token.replace(sign, " ").as_bytes()),
                        None => vocabulary.bytes.extend_from_slice(token.as_bytes()),
                    },
                },
            }
            if flags & SPECIAL != 0 {
                // Specials are kept as their names, for `text`.
                let start = vocabulary.ends.last().map_or(0, |&end| end as usize);
                vocabulary.bytes.truncate(start);
                vocabulary.bytes.extend_from_slice(token.as_bytes());
            }
            vocabulary.ends.push(vocabulary.bytes.len() as u32);
            vocabulary.flags.push(flags);
        }
        Ok(vocabulary)
    }

    /// One more than the highest token id, `<|image|>` and other added tokens included.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The token's bytes: its part of a text, or the name of a special token. Empty for unknown ids.
    pub fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start as usize..end as usize]
    }

    /// The token alone as text, for log-probabilities; parts of characters become U+FFFD.
    pub fn text(&self, id: u32) -> String {
        String::from_utf8_lossy(self.bytes(id)).into_owned()
    }

    /// Whether the token is a control token that no text shows.
    pub fn is_special(&self, id: u32) -> bool {
        self.has(id, SPECIAL)
    }

    /// Whether the token is a single byte of the byte-fallback form.
    pub(crate) fn is_byte(&self, id: u32) -> bool {
        self.has(id, BYTE)
    }

    pub(crate) fn form(&self) -> Form {
        self.form
    }

    fn has(&self, id: u32, flag: u8) -> bool {
        self.flags.get(id as usize).is_some_and(|flags| flags & flag != 0)
    }
}

/// The decoder's form and the sign that stands for a space.
fn form_of(decoder: &Value) -> Option<(Form, Option<String>)> {
    let kind = |value: &Value| value["type"].as_str().map(str::to_owned);
    let steps = match kind(decoder)?.as_str() {
        "ByteLevel" => return Some((Form::ByteLevel, None)),
        "Sequence" => decoder["decoders"].as_array()?,
        _ => return None,
    };
    if let [only] = steps.as_slice() {
        return form_of(only);
    }
    let mut steps = steps.iter().peekable();
    let mut space = None;
    if let Some(step) = steps.next_if(|step| kind(step).as_deref() == Some("Replace")) {
        if step["content"].as_str()? != " " {
            return None;
        }
        space = Some(step["pattern"]["String"].as_str()?.to_owned());
    }
    steps.next_if(|step| kind(step).as_deref() == Some("ByteFallback"))?;
    let fused = steps.next_if(|step| kind(step).as_deref() == Some("Fuse")).is_some();
    let mut strip = 0;
    if fused && let Some(step) = steps.next_if(|step| kind(step).as_deref() == Some("Strip")) {
        if step["content"].as_str()? != " " || step["stop"].as_u64()? != 0 {
            return None;
        }
        strip = usize::try_from(step["start"].as_u64()?).ok()?;
    }
    steps.next().is_none().then_some((Form::ByteFallback { strip }, space))
}

/// `<0xE4>` as a byte, by the rule of the tokenizers library: six bytes long, two digits that parse as hexadecimal.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// The bytes of a byte-level token; the token's own UTF-8 if a character stands for no byte.
fn push_byte_level(bytes: &mut Vec<u8>, token: &str, table: &[Option<u8>]) {
    let start = bytes.len();
    for c in token.chars() {
        match table.get(c as usize).copied().flatten() {
            Some(byte) => bytes.push(byte),
            None => {
                bytes.truncate(start);
                bytes.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

/// GPT-2's alphabet of bytes, by character: printable Latin-1 characters stand for themselves, the other bytes are
/// counted on from U+0100.
fn byte_table() -> Vec<Option<u8>> {
    let mut table = vec![None; 0x100 + 68];
    let mut next = 0x100;
    for byte in 0..=255u8 {
        let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let at = if printable {
            usize::from(byte)
        } else {
            next += 1;
            next - 1
        };
        table[at] = Some(byte);
    }
    table
}
