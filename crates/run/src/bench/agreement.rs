//! [`Agreement`]: whether two backends give the same answers to the same rows.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strsim::normalized_levenshtein;

/// Rows that differ which a report shows; the others are counted.
const SHOWN: usize = 50;

/// An answer to a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Answer {
    pub(super) row: u64,
    pub(super) text: String,
    /// Ids of the tokens, where the backend tells.
    pub(super) tokens: Option<Vec<u32>>,
}

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
    /// Where the answers of differing rows part, from 0: the median of the first differing tokens, by ids where both
    /// backends tell them, else by words.
    pub first_difference: Option<f64>,
    /// Rows that differ, the least similar first, at most 50.
    pub differing: Vec<Differing>,
}

/// A row whose answers differ.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Differing {
    /// The row's number.
    pub row: u64,
    /// The first differing token, from 0.
    pub first_difference: usize,
    /// Whether that counts `tokens` or `words`.
    pub counted_in: String,
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

impl Agreement {
    /// Compares pairs of answers to the same rows.
    pub(super) fn of<'a>(base: &str, target: &str, pairs: impl Iterator<Item = (&'a Answer, &'a Answer)>) -> Self {
        let mut found = Self { base: base.to_owned(), target: target.to_owned(), ..Self::default() };
        let mut total = 0.0;
        for (a, b) in pairs {
            found.compared += 1;
            if a.text == b.text {
                found.exact += 1;
                found.normalised += 1;
                total += 1.0;
                continue;
            }
            found.normalised += u64::from(normalised(&a.text) == normalised(&b.text));
            let similarity = normalized_levenshtein(&a.text, &b.text);
            total += similarity;
            let (first, counted_in) = match (&a.tokens, &b.tokens) {
                (Some(a), Some(b)) => (first_difference(a, b), "tokens"),
                _ => {
                    let words = |text: &'a str| text.split_whitespace().collect::<Vec<_>>();
                    (first_difference(&words(&a.text), &words(&b.text)), "words")
                }
            };
            found.differing.push(Differing {
                row: a.row,
                first_difference: first,
                counted_in: counted_in.to_owned(),
                similarity,
                base: a.text.clone(),
                target: b.text.clone(),
            });
        }
        found.similarity = if found.compared == 0 { 0.0 } else { total / found.compared as f64 };
        let mut firsts: Vec<f64> = found.differing.iter().map(|row| row.first_difference as f64).collect();
        firsts.sort_by(f64::total_cmp);
        found.first_difference = super::statistics::quantile(&firsts, 0.5);
        found.differing.sort_by(|a, b| a.similarity.total_cmp(&b.similarity));
        found.differing.truncate(SHOWN);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str, tokens: Option<&[u32]>) -> Answer {
        Answer { row: 7, text: text.to_owned(), tokens: tokens.map(<[u32]>::to_vec) }
    }

    #[test]
    fn measures_of_agreement() {
        let pairs = [
            (answer("a red cat", None), answer("a red cat", None)),
            (answer("A red  cat.", None), answer("a red cat", None)),
            (answer("a red cat", Some(&[1, 2, 3])), answer("a dog", Some(&[1, 9]))),
            (answer("one two three", None), answer("one two four", None)),
        ];
        let found = Agreement::of("x", "y", pairs.iter().map(|(a, b)| (a, b)));
        assert_eq!((found.compared, found.exact, found.normalised), (4, 1, 2));
        assert_eq!(found.differing.len(), 3);
        assert_eq!((found.differing[0].first_difference, &*found.differing[0].counted_in), (1, "tokens"));
        assert_eq!(found.first_difference, Some(1.0));
        let words: Vec<_> = found.differing.iter().filter(|row| row.counted_in == "words").collect();
        assert_eq!(words.iter().map(|row| row.first_difference).max(), Some(2));
        assert!(found.similarity > 0.5 && found.similarity < 1.0);
    }
}
