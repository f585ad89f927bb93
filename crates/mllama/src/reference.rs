//! Which of three numerically different references the network follows.

use std::fmt;
use std::str::FromStr;

/// Which of three numerically different implementations of Llama-3.2-Vision the network follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reference {
    /// Meta's own code, `llama_models`, with which the released weights were trained: a text token that sees no image
    /// passes a cross-attention layer unchanged.
    #[default]
    Meta,
    /// transformers 4.45 to 4.53: such a token attends to every vision token of its row, but skips the MLP.
    Hf4,
    /// transformers since 4.57: as `Hf4`, and the intermediate vision states are taken one layer later.
    Hf5,
}

impl Reference {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Meta, Self::Hf4, Self::Hf5];

    /// Whether intermediate vision state `i` is the output of local layer `i` rather than its input.
    pub(crate) fn takes_layer_output(self) -> bool {
        self == Self::Hf5
    }

    /// Whether a text token that sees no image attends to all vision tokens of its row.
    pub(crate) fn unseeing_rows_attend(self) -> bool {
        self != Self::Meta
    }

    /// The name on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Hf4 => "hf4",
            Self::Hf5 => "hf5",
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|r| r.name() == text)
            .ok_or_else(|| format!("{text:?} is no reference: meta, hf4 and hf5 are"))
    }
}
