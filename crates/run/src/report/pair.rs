//! Which rows are shown, and which rows of two runs belong together.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::Value;
use vgen_core::{Fault, Row};

use super::Pairing;
use super::output::{Output, next_or_end};
use super::row::Side;

/// Columns that name a row, if they differ in all rows.
const NAMING: [&str; 5] = ["custom_id", "id", "row_id", "uuid", "key"];
/// Longer texts are compared at their beginnings.
const MOST_COMPARED: usize = 20_000;

/// The rows that are shown: for each output the row's place in it.
pub(super) struct Choice {
    pub(super) lines: Vec<[Option<usize>; 2]>,
    pub(super) pairing: Option<Pairing>,
}

impl Choice {
    /// From places in an output to lines.
    pub(super) fn places(&self, side: usize) -> HashMap<usize, usize> {
        self.lines.iter().enumerate().filter_map(|(line, places)| Some((places[side]?, line))).collect()
    }
}

/// What is known of a row before it is read for good.
struct Known {
    failed: bool,
    naming: Option<u64>,
    columns: u64,
}

/// Reads all outputs once, pairs their rows and chooses at most `most` lines: failed ones first, of the others every
/// n-th.
pub(super) fn choose(outputs: &mut [Output], key: Option<&str>, most: usize) -> Result<Choice, Fault> {
    let common = common_columns(outputs)?;
    let naming = match (key, outputs.len()) {
        (Some(key), 2) => Some(key.to_owned()),
        (None, 2) => NAMING.iter().find(|name| common.contains(**name)).map(|name| (*name).to_owned()),
        _ => None,
    };
    let mut known = Vec::with_capacity(outputs.len());
    for output in outputs.iter_mut() {
        known.push(look(output, &common, naming.as_deref())?);
    }
    let (mut lines, pairing) = match known.as_slice() {
        [a, b] => {
            let (by, lines) = paired(a, b, naming.as_deref(), key.is_some());
            let both = lines.iter().filter(|line| line[0].is_some() && line[1].is_some()).count();
            let only = [a.len() - both, b.len() - both];
            (lines, Some(Pairing { by, paired: both, only }))
        }
        _ => (known.iter().flat_map(|rows| 0..rows.len()).map(|at| [Some(at), None]).collect(), None),
    };
    let failed = |line: &[Option<usize>; 2]| {
        line.iter().zip(&known).any(|(at, rows)| at.and_then(|at| rows.get(at)).is_some_and(|row| row.failed))
    };
    if lines.len() > most {
        let all = lines.len();
        let (bad, good): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| failed(line));
        lines = spread(bad, most);
        let rest = most - lines.len();
        lines.extend(spread(good, rest));
        lines.sort_by_key(|line| (line[0].or(line[1]), line[0].is_none()));
        if let Some(output) = outputs.first_mut() {
            output
                .warnings
                .push(format!("{most} of {all} rows are shown: those that failed, and of the others every n-th"));
        }
    }
    Ok(Choice { lines, pairing })
}

/// At most `most`, evenly over the whole.
fn spread<T>(all: Vec<T>, most: usize) -> Vec<T> {
    let count = all.len();
    if count <= most {
        return all;
    }
    // Where i * most / count grows, one is taken: `most` times in all.
    let taken = |at: usize| (at + 1) * most / count > at * most / count;
    all.into_iter().enumerate().filter(|(at, _)| taken(*at)).map(|(_, item)| item).collect()
}

/// Columns of the input that all outputs have, by their first rows.
fn common_columns(outputs: &[Output]) -> Result<HashSet<String>, Fault> {
    let mut common: Option<HashSet<String>> = None;
    if outputs.len() < 2 {
        return Ok(HashSet::new());
    }
    for output in outputs {
        let first = output.source()?.next_row()?.and_then(|row| row.row.ok()).unwrap_or_default();
        let own: HashSet<String> =
            first.names().filter(|name| !output.names.is_written(name)).map(str::to_owned).collect();
        common = Some(match common {
            None => own,
            Some(other) => other.intersection(&own).cloned().collect(),
        });
    }
    // What only one of the tasks writes over is no longer the input's.
    let written = |name: &String| outputs.iter().any(|output| output.names.is_written(name));
    Ok(common.unwrap_or_default().into_iter().filter(|name| !written(name)).collect())
}

fn look(output: &mut Output, common: &HashSet<String>, naming: Option<&str>) -> Result<Vec<Known>, Fault> {
    let mut source = output.source()?;
    let mut rows = Vec::new();
    while let Some(row) = next_or_end(&mut *source, rows.len(), &mut output.warnings)? {
        let row = row.unwrap_or_default();
        let mut columns = DefaultHasher::new();
        for (name, _) in row.iter().filter(|(name, _)| common.contains(*name)) {
            (name, plain(&row, name)).hash(&mut columns);
        }
        let named = naming.filter(|name| row.contains(name)).map(|name| {
            let mut hasher = DefaultHasher::new();
            plain(&row, name).hash(&mut hasher);
            hasher.finish()
        });
        let error = plain(&row, &output.names.error);
        rows.push(Known {
            failed: row.is_empty() || !matches!(error.as_str(), "" | "null"),
            naming: named,
            columns: columns.finish(),
        });
    }
    output.rows = rows.len();
    Ok(rows)
}

/// A value as text that is the same whatever format it was written in.
fn plain(row: &Row, name: &str) -> String {
    let Some(raw) = row.get(name) else { return String::new() };
    let text = row.text(name).map_or_else(|| raw.get().to_owned(), |text| text.into_owned());
    if text == "null" {
        return String::new();
    }
    match text.starts_with(['{', '[']).then(|| serde_json::from_str::<Value>(&text)) {
        Some(Ok(value)) => value.to_string(),
        _ => text,
    }
}

/// By the column that names rows, else by equal columns of the input, else by place. The n-th row of a key belongs to
/// the n-th.
fn paired(a: &[Known], b: &[Known], naming: Option<&str>, told: bool) -> (String, Vec<[Option<usize>; 2]>) {
    let unique = |rows: &[Known]| {
        let mut seen = HashSet::new();
        rows.iter().all(|row| row.naming.is_some_and(|naming| seen.insert(naming)))
    };
    if let Some(naming) = naming.filter(|_| told || (unique(a) && unique(b))) {
        return (format!("column {naming:?}"), by_key(a, b, |row| row.naming));
    }
    let lines = by_key(a, b, |row| Some(row.columns));
    let both = lines.iter().filter(|line| line[0].is_some() && line[1].is_some()).count();
    if both == 0 && a.len() == b.len() {
        return ("place in the output".to_owned(), (0..a.len()).map(|at| [Some(at), Some(at)]).collect());
    }
    ("equal columns of the input".to_owned(), lines)
}

fn by_key(a: &[Known], b: &[Known], key: impl Fn(&Known) -> Option<u64>) -> Vec<[Option<usize>; 2]> {
    let mut places: HashMap<u64, VecDeque<usize>> = HashMap::new();
    for (at, row) in b.iter().enumerate() {
        if let Some(key) = key(row) {
            places.entry(key).or_default().push_back(at);
        }
    }
    let mut used = vec![false; b.len()];
    let mut lines = Vec::with_capacity(a.len());
    for (at, row) in a.iter().enumerate() {
        let other = key(row).and_then(|key| places.get_mut(&key)?.pop_front());
        if let Some(other) = other {
            used[other] = true;
        }
        lines.push([Some(at), other]);
    }
    lines.extend(used.iter().enumerate().filter(|(_, used)| !**used).map(|(at, _)| [None, Some(at)]));
    lines
}

/// How alike the answers are, if there are two: 1 for equal ones.
pub(super) fn alike(sides: &[Option<Side>]) -> Option<f64> {
    let [Some(a), Some(b)] = sides else { return None };
    let (Some(a), Some(b)) = (a.answer.as_deref(), b.answer.as_deref()) else { return None };
    if a == b {
        return Some(1.0);
    }
    let clip = |text: &str| text.chars().take(MOST_COMPARED).collect::<String>();
    // Only equal answers are wholly alike.
    Some(strsim::sorensen_dice(&clip(a), &clip(b)).min(0.999))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(keys: &[u64]) -> Vec<Known> {
        keys.iter().map(|key| Known { failed: false, naming: None, columns: *key }).collect()
    }

    #[test]
    fn rows_of_a_key_are_paired_one_by_one_and_none_is_lost() {
        let (by, lines) = paired(&known(&[1, 2, 1, 3]), &known(&[1, 1, 4, 2]), None, false);
        assert_eq!(by, "equal columns of the input");
        assert_eq!(
            lines,
            [[Some(0), Some(0)], [Some(1), Some(3)], [Some(2), Some(1)], [Some(3), None], [None, Some(2)]]
        );
        let (by, lines) = paired(&known(&[1, 2]), &known(&[3, 4]), None, false);
        assert_eq!((by.as_str(), lines), ("place in the output", vec![[Some(0), Some(0)], [Some(1), Some(1)]]));
    }

    #[test]
    fn a_choice_is_spread_over_the_whole() {
        assert_eq!(spread((0..10).collect(), 3), [3, 6, 9]);
        assert_eq!(spread((0..4).collect(), 9).len(), 4);
        assert_eq!(spread((0..1000).collect::<Vec<_>>(), 77).len(), 77);
    }
}
