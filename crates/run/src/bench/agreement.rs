//! [`Agreement`]: whether two backends give the same answers to the same rows.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strsim::normalized_levenshtein;

/// An answer to a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Answer {
    pub(super) row: u64,
    pub(super) text: String,
    /// Ids of the tokens, where the backend tells.
    pub(super) tokens: Option<Vec<u32>>,
}

/// Text to the ids of its tokens; `None` if it has none.
pub type Tokenize = dyn Fn(&str) -> Option<Vec<u32>> + Send + Sync;

/// A backend's answers beside those of the first one. Rows that one of them failed are left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Agreement {
    /// The backend that is compared with.
    pub base: String,
    /// The backend that is compared.
    pub target: String,
    /// Pairs of answers.
    pub compared: u64,
    /// Equal to the byte.
    pub exact: u64,
    /// Equal but for case, white space and punctuation at the ends.
    pub normalised: u64,
    /// One minus the Levenshtein distance by the longer length, mean over pairs.
    pub similarity: f64,
    /// What `first_difference` counts, of all rows: `tokens` by the ids that both backends tell, else `tokens` of a local
    /// backend's tokenizer, else `words`.
    pub counted_in: CountedIn,
    /// Where the answers of differing pairs part, from 0: the median of the first differing tokens or words.
    pub first_difference: Option<f64>,
    /// Rows of which a pair differs, each once, the least similar first.
    pub differing: Vec<Differing>,
}

/// What a place in an answer is counted in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CountedIn {
    /// Tokens.
    Tokens,
    /// Words between white space.
    #[default]
    Words,
}

impl CountedIn {
    /// One of them, in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tokens => "token",
            Self::Words => "word",
        }
    }
}

/// A row whose answers differ: its least similar pair.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Differing {
    /// The row's number.
    pub row: u64,
    /// Pairs of its answers that differ: a row may be asked about in each reading.
    pub pairs: u64,
    /// The first differing token or word, from 0.
    pub first_difference: usize,
    /// As in [`Agreement`].
    pub similarity: f64,
    /// The answer of the base.
    pub base: String,
    /// The answer of the other.
    pub target: String,
}

fn normalised(text: &str) -> String {
    let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
    words.join(" ").trim_matches(|c: char| c.is_ascii_punctuation() || c.is_whitespace()).to_owned()
}

fn first_difference<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// How the answers of all differing pairs are counted, so that they can be put beside each other.
enum Count<'a> {
    Ids,
    Tokenized(&'a Tokenize),
    Words,
}

impl<'a> Count<'a> {
    fn of(pairs: &[&(Answer, Answer)], tokenize: Option<&'a Tokenize>) -> Self {
        if pairs.iter().all(|(a, b)| a.tokens.is_some() && b.tokens.is_some()) {
            return Self::Ids;
        }
        let readable = |answer: &Answer| tokenize.is_some_and(|tokenize| tokenize(&answer.text).is_some());
        match tokenize {
            Some(tokenize) if pairs.iter().all(|(a, b)| readable(a) && readable(b)) => Self::Tokenized(tokenize),
            _ => Self::Words,
        }
    }

    fn first_difference(&self, a: &Answer, b: &Answer) -> usize {
        fn words(text: &str) -> Vec<&str> {
            text.split_whitespace().collect()
        }
        match self {
            Self::Ids => first_difference(a.tokens.as_deref().unwrap_or(&[]), b.tokens.as_deref().unwrap_or(&[])),
            Self::Tokenized(tokenize) => {
                let tokens = |answer: &Answer| tokenize(&answer.text).unwrap_or_default();
                first_difference(&tokens(a), &tokens(b))
            }
            Self::Words => first_difference(&words(&a.text), &words(&b.text)),
        }
    }
}

impl Agreement {
    /// Compares pairs of answers to the same rows. Tokens that a backend doesn't tell are those that `tokenize` gives.
    pub(super) fn of(base: &str, target: &str, pairs: &[(Answer, Answer)], tokenize: Option<&Tokenize>) -> Self {
        let differing: Vec<&(Answer, Answer)> = pairs.iter().filter(|(a, b)| a.text != b.text).collect();
        let exact = (pairs.len() - differing.len()) as u64;
        let count = Count::of(&differing, tokenize);
        let (mut alike, mut total, mut firsts) = (exact, exact as f64, Vec::new());
        let mut rows: BTreeMap<u64, Differing> = BTreeMap::new();
        for (a, b) in differing {
            alike += u64::from(normalised(&a.text) == normalised(&b.text));
            let similarity = normalized_levenshtein(&a.text, &b.text);
            total += similarity;
            let first_difference = count.first_difference(a, b);
            firsts.push(first_difference as f64);
            let pair = Differing {
                row: a.row,
                pairs: 1,
                first_difference,
                similarity,
                base: a.text.clone(),
                target: b.text.clone(),
            };
            match rows.entry(a.row) {
                Entry::Vacant(place) => {
                    place.insert(pair);
                }
                Entry::Occupied(mut known) => {
                    let pairs = known.get().pairs + 1;
                    if similarity < known.get().similarity {
                        known.insert(pair);
                    }
                    known.get_mut().pairs = pairs;
                }
            }
        }
        firsts.sort_by(f64::total_cmp);
        let mut differing: Vec<Differing> = rows.into_values().collect();
        differing.sort_by(|a, b| a.similarity.total_cmp(&b.similarity));
        Self {
            base: base.to_owned(),
            target: target.to_owned(),
            compared: pairs.len() as u64,
            exact,
            normalised: alike,
            similarity: if pairs.is_empty() { 0.0 } else { total / pairs.len() as f64 },
            counted_in: match count {
                Count::Ids | Count::Tokenized(_) if !differing.is_empty() => CountedIn::Tokens,
                _ => CountedIn::Words,
            },
            first_difference: super::statistics::quantile(&firsts, 0.5),
            differing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(row: u64, text: &str, tokens: Option<&[u32]>) -> Answer {
        Answer { row, text: text.to_owned(), tokens: tokens.map(<[u32]>::to_vec) }
    }

    #[test]
    fn measures_of_agreement() {
        let pairs = [
            (answer(1, "a red cat", None), answer(1, "a red cat", None)),
            (answer(2, "A red  cat.", None), answer(2, "a red cat", None)),
            (answer(3, "a red cat", Some(&[1, 2, 3])), answer(3, "a dog", Some(&[1, 9]))),
            (answer(4, "one two three", None), answer(4, "one two four", None)),
        ];
        let found = Agreement::of("x", "y", &pairs, None);
        assert_eq!((found.compared, found.exact, found.normalised), (4, 1, 2));
        // Not all tell ids, so all are counted in words.
        assert_eq!((found.counted_in, found.first_difference), (CountedIn::Words, Some(1.0)));
        let firsts = |found: &Agreement| -> Vec<_> {
            found.differing.iter().map(|one| (one.row, one.first_difference)).collect()
        };
        assert_eq!(firsts(&found), [(3, 1), (4, 2), (2, 0)]);
        assert!(found.similarity > 0.5 && found.similarity < 1.0);
        let ids = Agreement::of("x", "y", &pairs[2..3], None);
        assert_eq!((ids.counted_in, ids.first_difference), (CountedIn::Tokens, Some(1.0)));
        // A tokenizer counts all in tokens; here, each byte is one.
        let bytes = |text: &str| Some(text.bytes().map(u32::from).collect::<Vec<u32>>());
        let tokens = Agreement::of("x", "y", &pairs, Some(&bytes));
        assert_eq!((tokens.counted_in, firsts(&tokens)), (CountedIn::Tokens, vec![(3, 2), (4, 8), (2, 0)]));
    }

    #[test]
    fn a_row_that_differs_again_and_again_is_there_once() {
        let mut pairs: Vec<_> =
            (0..200).map(|at| (answer(at % 100, "one two", None), answer(at % 100, "one", None))).collect();
        pairs.push((answer(7, "one two", None), answer(7, "three", None)));
        let found = Agreement::of("x", "y", &pairs, None);
        assert_eq!((found.compared, found.differing.len()), (201, 100));
        let least = &found.differing[0];
        assert_eq!((least.row, least.pairs, &*least.target), (7, 3, "three"));
        assert!(found.differing[1..].iter().all(|one| one.pairs == 2));
    }
}
