//! [`Selected`]: some rows of a source: without the first ones, a random sample, a shard, a number of them.
//!
//! Rows keep the numbers that they have in the source, so a row's answer does not depend on what was selected with it.
//! Of the source, first [`Selection::skip`] rows are left out, then the sample is drawn, then [`Selection::limit`] rows
//! are kept, and these are dealt to the shards one by one.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use vgen_core::Fault;

use crate::columns::Column;
use crate::{RowSource, Skipped, SourceRow};

/// One of several equal parts of the rows: `1/4` is the first of four.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Which, from 1.
    pub index: u64,
    /// Of how many.
    pub count: u64,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected a shard like 1/4, the first of four, got {text:?}");
        let (index, count) = text.split_once('/').ok_or_else(wrong)?;
        let shard = Self {
            index: index.trim().parse().map_err(|_| wrong())?,
            count: count.trim().parse().map_err(|_| wrong())?,
        };
        if (1..=shard.count).contains(&shard.index) { Ok(shard) } else { Err(wrong()) }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

/// Which rows of a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Leave out so many rows at the start.
    pub skip: u64,
    /// A random sample of so many rows, in their order in the source, and the seed that decides which.
    pub sample: Option<(u64, u64)>,
    /// At most so many rows.
    pub limit: Option<u64>,
    /// One of several parts of them.
    pub shard: Option<Shard>,
}

impl Selection {
    /// Whether it is all rows.
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }
}

/// Some rows of a source.
pub struct Selected<S> {
    source: S,
    selection: Selection,
    /// The numbers of the sample's rows, in order.
    sample: Option<Vec<u64>>,
    /// The number of the source's next row.
    next: u64,
    /// Rows of the selection, of all shards, that are behind.
    taken: u64,
}

impl<S: RowSource> Selected<S> {
    /// Selects. A sample needs the number of rows behind the skipped ones, which `count` finds out.
    ///
    /// # Errors
    /// What `count` says.
    pub fn new(source: S, selection: Selection, count: impl FnOnce() -> Result<u64, Fault>) -> Result<Self, Fault> {
        let sample = match selection.sample {
            None => None,
            Some((rows, seed)) => {
                let total = count()?.saturating_sub(selection.skip);
                Some(draw(rows, total, seed).into_iter().map(|row| row + selection.skip).collect())
            }
        };
        Ok(Self { source, selection, sample, next: 0, taken: 0 })
    }

    /// The number in the source of the selection's row at `place`, all shards counted; `None` behind the last one.
    fn number(&self, place: u64) -> Option<u64> {
        if self.selection.limit.is_some_and(|limit| place >= limit) {
            return None;
        }
        match &self.sample {
            Some(sample) => sample.get(usize::try_from(place).ok()?).copied(),
            None => Some(self.selection.skip + place),
        }
    }

    /// The place of the next row of this shard, at or behind `taken`.
    fn place(&self) -> u64 {
        match self.selection.shard {
            None => self.taken,
            Some(Shard { index, count }) => {
                let behind = self.taken % count;
                self.taken - behind + (index - 1) + if behind > index - 1 { count } else { 0 }
            }
        }
    }

    /// Passes over the source's rows up to `number`; false if it ends before.
    fn advance(&mut self, number: u64) -> Result<bool, Fault> {
        if self.next < number {
            let skipped = self.source.skip(number - self.next)?;
            self.next += skipped.rows;
        }
        Ok(self.next == number)
    }

    fn share(&self, of_source: Option<f64>) -> Option<f64> {
        let whole = match (&self.sample, self.selection.limit) {
            (Some(sample), Some(limit)) => Some(limit.min(sample.len() as u64)),
            (Some(sample), None) => Some(sample.len() as u64),
            (None, limit) => limit,
        };
        let of_limit = whole.map(|whole| (self.taken as f64 / whole.max(1) as f64).min(1.0));
        match (of_limit, of_source) {
            (Some(a), Some(b)) if self.sample.is_none() => Some(a.max(b)),
            (a, b) => a.or(b),
        }
    }
}

/// `rows` of the numbers below `total`, each set of them equally likely, in order (Floyd).
fn draw(rows: u64, total: u64, seed: u64) -> Vec<u64> {
    let rows = rows.min(total);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut drawn = std::collections::HashSet::new();
    for last in total - rows..total {
        let candidate = random.u64(..=last);
        if !drawn.insert(candidate) {
            drawn.insert(last);
        }
    }
    let mut drawn: Vec<u64> = drawn.into_iter().collect();
    drawn.sort_unstable();
    drawn
}

impl<S: RowSource> RowSource for Selected<S> {
    fn name(&self) -> &str {
        self.source.name()
    }

    fn folder(&self) -> Option<&Path> {
        self.source.folder()
    }

    fn next_row(&mut self) -> Result<Option<SourceRow>, Fault> {
        let place = self.place();
        let Some(number) = self.number(place) else { return Ok(None) };
        if !self.advance(number)? {
            return Ok(None);
        }
        let Some(mut row) = self.source.next_row()? else { return Ok(None) };
        self.next += 1;
        self.taken = place + 1;
        row.share = self.share(row.share);
        Ok(Some(row))
    }

    fn skip(&mut self, rows: u64) -> Result<Skipped, Fault> {
        let mut skipped = Skipped::default();
        if self.sample.is_none() && self.selection.shard.is_none() {
            // Rows one behind the other: the source may have a quick way.
            let rows = self.selection.limit.map_or(rows, |limit| rows.min(limit.saturating_sub(self.taken)));
            if rows > 0 && self.advance(self.selection.skip + self.taken)? {
                skipped = self.source.skip(rows)?;
                self.next += skipped.rows;
                self.taken += skipped.rows;
            }
            return Ok(skipped);
        }
        while skipped.rows < rows {
            let place = self.place();
            let Some(number) = self.number(place) else { break };
            if !self.advance(number)? {
                break;
            }
            let one = self.source.skip(1)?;
            if one.rows == 0 {
                break;
            }
            self.next += 1;
            self.taken = place + 1;
            skipped = Skipped { rows: skipped.rows + 1, digest: one.digest };
        }
        Ok(skipped)
    }

    fn columns(&self) -> Option<Vec<Column>> {
        self.source.columns()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use super::*;
    use crate::JsonlSource;

    fn numbers(selection: Selection, skip: u64) -> Vec<u64> {
        let text: String = (0..20).map(|id| format!("{{\"id\":{id}}}\n")).collect();
        let source = JsonlSource::from_reader(std::io::Cursor::new(text), "rows.jsonl");
        let mut selected = Selected::new(source, selection, || Ok(20)).unwrap();
        selected.skip(skip).unwrap();
        std::iter::from_fn(|| selected.next_row().unwrap()).map(|row| row.number).collect()
    }

    #[test]
    fn shards_deal_the_selected_rows_among_them() {
        let base = Selection { skip: 3, limit: Some(11), ..Selection::default() };
        assert_eq!(numbers(base, 0), (3..14).collect::<Vec<_>>());
        let shard = |index| numbers(Selection { shard: Some(Shard { index, count: 3 }), ..base }, 0);
        assert_eq!((shard(1), shard(2), shard(3)), (vec![3, 6, 9, 12], vec![4, 7, 10, 13], vec![5, 8, 11]));
    }

    #[test]
    fn skipping_is_reading_without_looking() {
        for selection in [
            Selection::default(),
            Selection { skip: 2, limit: Some(9), ..Selection::default() },
            Selection { sample: Some((8, 5)), ..Selection::default() },
            Selection { sample: Some((9, 5)), skip: 4, shard: Some("2/2".parse().unwrap()), limit: Some(7) },
        ] {
            let all = numbers(selection, 0);
            for skip in 0..all.len() + 2 {
                assert_eq!(numbers(selection, skip as u64), all[skip.min(all.len())..], "{selection:?} {skip}");
            }
        }
    }

    #[test]
    fn samples_are_drawn_from_the_seed() {
        let sample = |seed| numbers(Selection { sample: Some((6, seed)), ..Selection::default() }, 0);
        assert_eq!(sample(1), sample(1));
        assert_ne!(sample(1), sample(2));
        assert_eq!(sample(3).len(), 6);
        assert!(sample(3).is_sorted());
        assert_eq!(numbers(Selection { sample: Some((99, 1)), ..Selection::default() }, 0).len(), 20);
    }

    #[test]
    fn shards_that_do_not_exist_are_refused() {
        for text in ["0/4", "5/4", "1", "a/b", "1/0"] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
    }
}
