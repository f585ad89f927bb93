//! [`MaxErrors`]: when a run is systematically wrong.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use vgen_core::Fault;

use crate::progress::Tally;
use crate::record::RecordError;

/// A share of failed rows is not looked at before so many rows.
const ENOUGH_ROWS: u64 = 100;

/// How many rows may fail in a session before it ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MaxErrors {
    /// So many.
    Count(u64),
    /// So many of a hundred, once 100 rows are done.
    Percent(f64),
}

impl FromStr for MaxErrors {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected a number of rows like 100, or a share like 5%, got {text:?}");
        match text.trim().strip_suffix('%') {
            None => text.trim().parse().map(Self::Count).map_err(|_| wrong()),
            Some(share) => match share.trim().parse::<f64>() {
                Ok(share) if (0.0..=100.0).contains(&share) => Ok(Self::Percent(share)),
                _ => Err(wrong()),
            },
        }
    }
}

impl fmt::Display for MaxErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(share) => write!(f, "{share}%"),
        }
    }
}

/// Counts the failed rows of a session.
pub(crate) struct ErrorCount {
    max: Option<MaxErrors>,
    rows: u64,
    failed: u64,
    codes: BTreeMap<String, u64>,
}

impl ErrorCount {
    pub(crate) fn new(max: Option<MaxErrors>) -> Self {
        Self { max, rows: 0, failed: 0, codes: BTreeMap::new() }
    }

    /// Counts a row of this session; an error when there are too many.
    pub(crate) fn count(&mut self, tally: &Tally) -> Result<(), Fault> {
        let Some(max) = self.max.filter(|_| !tally.known) else { return Ok(()) };
        self.rows += 1;
        if tally.codes.is_empty() {
            return Ok(());
        }
        self.failed += 1;
        for code in &tally.codes {
            *self.codes.entry(code.clone()).or_default() += 1;
        }
        let too_many = match max {
            MaxErrors::Count(count) => self.failed > count,
            MaxErrors::Percent(share) => {
                self.rows >= ENOUGH_ROWS && self.failed as f64 > self.rows as f64 * share / 100.0
            }
        };
        if !too_many {
            return Ok(());
        }
        let most = self.codes.iter().max_by_key(|(_, count)| **count).map(|(code, _)| code.clone()).unwrap_or_default();
        Err(RecordError::MaxErrors { failed: self.failed, rows: self.rows, allowed: max.to_string(), most }.into())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_shares_are_read() {
        assert_eq!("7".parse(), Ok(MaxErrors::Count(7)));
        assert_eq!("2.5%".parse(), Ok(MaxErrors::Percent(2.5)));
        for text in ["", "x", "-1", "101%", "%"] {
            assert!(text.parse::<MaxErrors>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_share_is_looked_at_once_there_are_enough_rows() {
        let failed = || Tally { codes: vec!["x.y".to_owned()], ..Tally::default() };
        let mut count = ErrorCount::new(Some(MaxErrors::Percent(10.0)));
        (0..99).for_each(|_| count.count(&failed()).unwrap());
        assert_eq!(count.count(&failed()).unwrap_err().code, "run.max_errors");
        let mut count = ErrorCount::new(Some(MaxErrors::Count(1)));
        count.count(&failed()).unwrap();
        assert!(count.count(&failed()).is_err());
    }
}
