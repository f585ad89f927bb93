//! [`Rows`]: what is asked. The same rows for every backend.

use std::borrow::Cow;
use std::collections::BTreeMap;

use sha2::{Digest, Sha256};
use vgen_core::{Content, ImageRef, Message, Part, SamplingParams};

use super::workload::Workload;

/// A row as it is asked about.
#[derive(Clone, Debug)]
pub struct BenchRow {
    /// Its number; decides the random stream of its answer.
    pub number: u64,
    /// The conversation.
    pub messages: Vec<Message>,
    /// How it is answered, where it says so itself.
    pub sampling: Option<Box<SamplingParams>>,
}

impl BenchRow {
    /// A row that is answered like all others.
    pub fn new(number: u64, messages: Vec<Message>) -> Self {
        Self { number, messages, sampling: None }
    }

    /// How many images it has.
    pub fn images(&self) -> u64 {
        self.messages.iter().map(|message| message.images().count() as u64).sum()
    }
}

/// The rows of a bench.
#[derive(Clone, Debug)]
pub enum Rows {
    /// Always the same, however often they are asked about: caches will know them.
    Fixed {
        /// Where they come from.
        name: String,
        /// The rows.
        rows: Vec<BenchRow>,
        /// Rows that can't be asked about, by what is wrong with them.
        left_out: BTreeMap<String, u64>,
    },
    /// Drawn anew for each reading, so that no cache knows them.
    Drawn {
        /// Of which kind.
        workload: Workload,
        /// How many.
        count: usize,
        /// Which.
        seed: u64,
    },
}

impl Rows {
    /// What they are called.
    pub fn name(&self) -> &str {
        match self {
            Self::Fixed { name, .. } => name,
            Self::Drawn { workload, .. } => workload.name(),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Fixed { rows, .. } => rows.len(),
            Self::Drawn { count, .. } => *count,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What rows say of their answers themselves, with the rows' numbers.
    pub(super) fn own_sampling(&self) -> impl Iterator<Item = (u64, &SamplingParams)> {
        let rows: &[BenchRow] = match self {
            Self::Fixed { rows, .. } => rows,
            Self::Drawn { .. } => &[],
        };
        rows.iter().filter_map(|row| Some((row.number, row.sampling.as_deref()?)))
    }

    /// The rows of a draw: all backends get the same ones.
    pub(super) fn draw(&self, draw: u64) -> Cow<'_, [BenchRow]> {
        match self {
            Self::Fixed { rows, .. } => Cow::Borrowed(rows),
            Self::Drawn { workload, count, seed } => Cow::Owned(workload.rows(*count, *seed, draw)),
        }
    }
}

/// A hash of what is asked: equal for equal rows. Images behind paths and URLs count by their address.
pub(super) fn digest(rows: &[BenchRow], hash: &mut Sha256) {
    let mut add = |kind: u8, bytes: &[u8]| {
        hash.update([kind]);
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    for row in rows {
        add(b'#', &row.number.to_le_bytes());
        if let Some(sampling) = &row.sampling {
            add(b's', serde_json::to_string(sampling).unwrap_or_default().as_bytes());
        }
        for message in &row.messages {
            add(b'@', &[message.role as u8]);
            match &message.content {
                Content::Text(text) => add(b't', text.as_bytes()),
                Content::Parts(parts) => parts.iter().for_each(|part| match part {
                    Part::Text(text) => add(b't', text.as_bytes()),
                    Part::Image(ImageRef::Bytes { bytes, .. }) => add(b'b', bytes),
                    Part::Image(ImageRef::Url(url)) => add(b'u', url.as_bytes()),
                    Part::Image(ImageRef::Path(path)) => add(b'p', path.to_string_lossy().as_bytes()),
                    Part::Image(_) => add(b'?', &[]),
                }),
            }
        }
    }
}
