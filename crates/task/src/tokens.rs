//! [`Tokenizer`]: text to token ids and back, with special tokens only where the caller wants them.

use std::collections::HashSet;

use aho_corasick::{AhoCorasick, MatchKind};
use thiserror::Error;
use vgen_core::Fault;

/// Rows that the embedding has beyond the model's vocabulary, for tokens that are read but never written.
const EXTRA_EMBEDDINGS: usize = 8;

/// Why a tokenizer can't be used with a model. Each ends the run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// `tokenizer.json` isn't one.
    #[error("tokenizer.json can't be read: {0}")]
    Read(String),
    /// The tokenizer isn't the model's.
    #[error("the tokenizer is not the model's: {0}")]
    Mismatch(String),
    /// A special token that swallows its neighbourhood.
    #[error("special token {0} strips spaces or asks for whole words, which is not supported")]
    Unsupported(String),
    /// A text or ids that the tokenizer fails at.
    #[error("the tokenizer fails: {0}")]
    Failed(String),
}

impl From<TokenizerError> for Fault {
    fn from(error: TokenizerError) -> Self {
        let message = error.to_string();
        match error {
            TokenizerError::Read(_) => {
                Fault::stop("tokenizer.read", message).with_hint("download the checkpoint's files again")
            }
            TokenizerError::Mismatch(_) => Fault::stop("tokenizer.mismatch", message)
                .with_hint("take tokenizer.json and config.json from the same checkpoint"),
            TokenizerError::Unsupported(_) => Fault::stop("tokenizer.unsupported", message)
                .with_hint("use the tokenizer.json that the model was published with"),
            TokenizerError::Failed(_) => {
                Fault::row("tokenizer.failed", message).with_hint("look for unusual characters in the row's text")
            }
        }
    }
}

/// What of the model's configuration concerns its tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenIds {
    /// Ids that the model can write: 0 to this.
    pub vocab_size: usize,
    /// The id that stands for an image; `None` for a model without eyes.
    pub image: Option<u32>,
    /// The id that begins a text. A model that sees images has one and begins every prompt with it.
    pub bos: Option<u32>,
}

/// A checkpoint's tokenizer, checked against its model.
pub struct Tokenizer {
    /// Set never to recognise special tokens itself.
    inner: tokenizers::Tokenizer,
    ids: TokenIds,
    /// Empty if there is none.
    bos: String,
    /// Empty if there is none.
    image: String,
    /// Finds special tokens in text; the ids are those of `special_ids`.
    finder: AhoCorasick,
    special_ids: Vec<u32>,
    special_texts: Vec<String>,
    /// The characters that special tokens begin with.
    special_starts: Vec<char>,
    special_set: HashSet<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("ids", &self.ids).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads the contents of `tokenizer.json` and checks that it has no token that the model can't read, and for a
    /// model that sees images one for every id that it can write and an image token. (Embeddings of text models are
    /// often padded to a round size.)
    ///
    /// # Errors
    /// [`TokenizerError`], all but `Failed`.
    pub fn from_json(tokenizer_json: &[u8], ids: TokenIds) -> Result<Self, TokenizerError> {
        let mut inner = tokenizers::Tokenizer::from_bytes(tokenizer_json)
            .map_err(|error| TokenizerError::Read(error.to_string()))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| TokenizerError::Read(error.to_string()))?;
        inner.set_encode_special_tokens(true);

        let has = |id: usize| u32::try_from(id).ok().and_then(|id| inner.id_to_token(id)).is_some();
        let size = inner.get_vocab_size(true);
        let missing = (0..ids.vocab_size).filter(|&id| !has(id)).count();
        if missing > 0 && (ids.image.is_some() || missing == ids.vocab_size) {
            let what = format!(
                "it has {size} tokens and none for {missing} of the {} ids that the model writes",
                ids.vocab_size
            );
            return Err(TokenizerError::Mismatch(what));
        }
        let most = ids.vocab_size + if ids.image.is_some() { EXTRA_EMBEDDINGS } else { 0 };
        if size > most {
            return Err(TokenizerError::Mismatch(format!("it has {size} tokens, the model reads at most {most}")));
        }
        let mut special: Vec<(u32, String)> = Vec::new();
        for (id, token) in inner.get_added_tokens_decoder() {
            if token.special && !token.content.is_empty() {
                if token.lstrip || token.rstrip || token.single_word {
                    return Err(TokenizerError::Unsupported(token.content));
                }
                special.push((id, token.content));
            }
        }
        special.sort_unstable();
        let (special_ids, special_texts): (Vec<_>, Vec<_>) = special.into_iter().unzip();
        let special_text = |id: u32, what: &str| {
            let index = special_ids.iter().position(|&special| special == id);
            index.map(|index: usize| special_texts[index].clone()).ok_or_else(|| {
                TokenizerError::Mismatch(format!("the model's {what} token {id} is not a special token of it"))
            })
        };
        let (bos, image) = match (ids.image, ids.bos) {
            (Some(image), Some(bos)) => (special_text(bos, "beginning-of-text")?, special_text(image, "image")?),
            (Some(_), None) => {
                return Err(TokenizerError::Mismatch("the model has no beginning-of-text token".to_owned()));
            }
            (None, bos) => (bos.and_then(|id| inner.id_to_token(id)).unwrap_or_default(), String::new()),
        };
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(&special_texts)
            .map_err(|error| TokenizerError::Read(error.to_string()))?;
        let special_set = special_ids.iter().copied().collect();
        let mut special_starts: Vec<char> = special_texts.iter().filter_map(|text| text.chars().next()).collect();
        special_starts.sort_unstable();
        special_starts.dedup();
        Ok(Self { inner, ids, bos, image, finder, special_ids, special_texts, special_starts, special_set })
    }

    /// The ids of `text`, in which the texts of special tokens are special tokens. Adds nothing.
    ///
    /// # Errors
    /// [`TokenizerError::Failed`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode_with(text, |segment, ids| self.encode_into(segment, ids))
    }

    /// The ids of `text`, in which the texts of special tokens are plain text. Adds nothing.
    ///
    /// # Errors
    /// [`TokenizerError::Failed`].
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::new();
        self.encode_into(text, &mut ids)?;
        Ok(ids)
    }

    /// The ids of a raw prompt, in which the texts of special tokens are special tokens: the beginning-of-text token
    /// follows the leading image tokens, unless the text has one somewhere.
    ///
    /// # Errors
    /// [`TokenizerError::Failed`].
    pub fn encode_raw(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = self.encode(text)?;
        if let Some(bos) = self.ids.bos
            && !text.contains(&self.bos)
        {
            let images = ids.iter().take_while(|&&id| Some(id) == self.ids.image).count();
            ids.insert(images, bos);
        }
        Ok(ids)
    }

    /// Whether the tokenizer's own post-processing begins a text with the beginning-of-text token.
    pub(crate) fn adds_bos(&self) -> bool {
        let added = self.inner.encode_fast("", true);
        self.ids.bos.is_some() && added.is_ok_and(|added| added.get_ids().first().copied() == self.ids.bos)
    }

    /// As [`encode`](Self::encode) without the `fence`s, which keep the texts around them from being special tokens.
    pub(crate) fn encode_fenced(&self, text: &str, fence: Fence) -> Result<Vec<u32>, TokenizerError> {
        self.encode_with(text, |segment, ids| self.encode_into(&fence.remove(segment), ids))
    }

    fn encode_with(
        &self,
        text: &str,
        mut plain: impl FnMut(&str, &mut Vec<u32>) -> Result<(), TokenizerError>,
    ) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::new();
        let mut done = 0;
        for found in self.finder.find_iter(text) {
            plain(&text[done..found.start()], &mut ids)?;
            ids.push(self.special_ids[found.pattern().as_usize()]);
            done = found.end();
        }
        plain(&text[done..], &mut ids)?;
        Ok(ids)
    }

    fn encode_into(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        if !text.is_empty() {
            let encoding =
                self.inner.encode_fast(text, false).map_err(|error| TokenizerError::Failed(error.to_string()))?;
            ids.extend_from_slice(encoding.get_ids());
        }
        Ok(())
    }

    /// A fence that none of `texts` and no special token contains.
    pub(crate) fn fence<'a>(&self, texts: impl IntoIterator<Item = &'a str>) -> Fence {
        let mut used: HashSet<char> = self.special_texts.iter().flat_map(|text| text.chars()).collect();
        used.extend(texts.into_iter().flat_map(str::chars));
        // 6400 and 131 068 private characters: a text that has all of them is over half a megabyte of nonsense, whose
        // last private character then is not kept.
        let mut private = ('\u{e000}'..='\u{f8ff}').chain('\u{f0000}'..='\u{10fffd}');
        Fence(private.find(|mark| !used.contains(mark)).unwrap_or('\u{10fffd}'))
    }

    /// `text` such that no special token is found in it, however it is combined with other texts.
    pub(crate) fn fenced(&self, text: &str, Fence(mark): Fence) -> String {
        let mut fenced = String::with_capacity(text.len());
        for letter in text.chars() {
            fenced.push(letter);
            // A special token that begins in this text is broken after its first character.
            if self.special_starts.contains(&letter) {
                fenced.push(mark);
            }
        }
        fenced
    }

    /// The text of `ids`, with or without special tokens. An incomplete character at the end becomes U+FFFD.
    ///
    /// # Errors
    /// [`TokenizerError::Failed`].
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        self.inner.decode(ids, skip_special).map_err(|error| TokenizerError::Failed(error.to_string()))
    }

    /// The bytes that token `id` stands for in text; `None` for an id without a token.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let token = self.inner.id_to_token(id)?;
        if self.is_special(id) {
            return Some(token.into_bytes());
        }
        let mut bytes = Vec::with_capacity(token.len());
        for letter in token.chars() {
            match byte_of(letter) {
                Some(byte) => bytes.push(byte),
                None => bytes.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        Some(bytes)
    }

    /// The id of the token whose text is `token`.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The text of token `id` as in `tokenizer.json`.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether `id` is a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.special_set.contains(&id)
    }

    /// The special tokens' ids, ascending.
    pub fn special_ids(&self) -> &[u32] {
        &self.special_ids
    }

    /// The tokenizer of the tokenizers crate; set not to recognise special tokens in text.
    pub fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }

    /// The model's ids that this tokenizer was checked with.
    pub fn ids(&self) -> &TokenIds {
        &self.ids
    }

    /// The text of the beginning-of-text token; empty if there is none.
    pub fn bos_text(&self) -> &str {
        &self.bos
    }

    /// The text of the image token; empty if there is none.
    pub fn image_text(&self) -> &str {
        &self.image
    }
}

/// A character that marks text that isn't to hold special tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fence(char);

impl Fence {
    /// `text` without its fences.
    pub(crate) fn remove(self, text: &str) -> String {
        text.replace(self.0, "")
    }
}

/// The byte that a character of a byte-level vocabulary stands for: printable Latin-1 for itself, the other bytes in
/// ascending order from U+0100.
fn byte_of(letter: char) -> Option<u8> {
    match u32::from(letter) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character() {
        let mut bytes: Vec<u8> = ('\0'..='\u{143}').filter_map(byte_of).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
    }
}
