//! [`Secret`]: a text that is sent and never shown.

use std::fmt;

/// An access token or API key. Neither printed nor serialised; [`Secret::expose`] is the only way to its text.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a text as it was read from a variable or file. White space around it goes; an empty text is no secret.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    /// The text, for the header that carries it and nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// `text` with every occurrence of the secret blotted out, for messages that came from elsewhere.
    pub fn redact(&self, text: &str) -> String {
        text.replace(&self.0, "<secret>")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_trimmed_and_never_shown() {
        assert_eq!(Secret::new(" \n"), None);
        let Some(secret) = Secret::new("hf_abc\r\n") else { unreachable!("not empty") };
        assert_eq!(secret.expose(), "hf_abc");
        assert_eq!(format!("{secret:?}"), "<secret>");
        assert_eq!(secret.redact("key hf_abc was refused"), "key <secret> was refused");
    }
}
