//! [`verify`]: runs rows of a finished run again, alone and beside each other, and compares.
//!
//! A row's answer must not depend on its neighbours, so a row alone gives the output rows that the run wrote, byte for
//! byte; and the same tokens with the same log-probabilities in every company.

use std::collections::BTreeMap;
use std::sync::mpsc;

use vgen_core::{Backend, Fault, Generation, Request, Response, Row, SamplingParams};
use vgen_task::Rendered;

use crate::Task;

/// A row that was answered, with what was written of it.
#[derive(Clone, Debug)]
pub struct Sampled {
    /// Its number in the source.
    pub number: u64,
    /// The input row.
    pub row: Row,
    /// What was asked about it.
    pub rendered: Rendered,
    /// Its output rows.
    pub written: Vec<Row>,
}

/// A row whose answer is not what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Number of the row in its source.
    pub row: u64,
    /// How many rows were in work at a time.
    pub together: usize,
    /// What differs, and how.
    pub what: String,
}

/// What came out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// How many rows were run again.
    pub rows: usize,
    /// How many rows were in work at a time, in each pass over the sample.
    pub passes: Vec<usize>,
    /// Tokens that were compared.
    pub tokens: u64,
    /// By row and pass.
    pub differences: Vec<Difference>,
}

/// Tokens and bits of log-probabilities of each answer.
type Bits = Vec<(Option<Vec<u32>>, Option<Vec<u32>>)>;

/// Runs the sample once for each of `passes`, with that many rows in work at a time, and compares with what was
/// written and with the first pass. No pass finds anything that an earlier one left, so that images and beginnings of
/// prompts are computed in each company, too.
///
/// # Errors
/// A fault that concerns more than a row.
pub fn verify(
    sample: &[Sampled],
    task: &dyn Task,
    backend: &dyn Backend,
    sampling: &SamplingParams,
    passes: &[usize],
) -> Result<Verified, Fault> {
    backend.check(sampling, task.num_generations())?;
    let asked: Vec<(SamplingParams, u32)> = sample
        .iter()
        .map(|sampled| {
            let own = task.own_sampling(&sampled.row, sampling)?;
            Ok(own.unwrap_or_else(|| (sampling.clone(), task.num_generations())))
        })
        .collect::<Result<_, Fault>>()?;
    let mut verified = Verified { rows: sample.len(), passes: passes.to_vec(), ..Verified::default() };
    let mut first: BTreeMap<u64, Bits> = BTreeMap::new();
    for (pass, &together) in passes.iter().enumerate() {
        backend.forget();
        for (at, mut result) in answers(sample, &asked, backend, together, pass) {
            let sampled = &sample[at];
            let bits = result.as_ref().map(bits).unwrap_or_default();
            verified.tokens += bits.iter().filter_map(|(tokens, _)| Some(tokens.as_ref()?.len() as u64)).sum::<u64>();
            if !asked[at].0.logprobs
                && let Ok(response) = &mut result
            {
                response.generations.iter_mut().flatten().for_each(|generation| generation.logprobs = None);
            }
            let rows = task.output_rows(&sampled.row, Some(&sampled.rendered), &result);
            let what = match (rows_differ(&sampled.written, &rows), first.get(&sampled.number)) {
                (Some(what), _) => Some(what),
                (None, Some(alone)) => bits_differ(alone, &bits),
                (None, None) => None,
            };
            if let Some(what) = what {
                verified.differences.push(Difference { row: sampled.number, together, what });
            }
            first.entry(sampled.number).or_insert(bits);
        }
    }
    verified.differences.sort_by_key(|difference| (difference.row, difference.together));
    Ok(verified)
}

/// One pass over the sample; every other pass goes backwards, so that rows have other neighbours.
fn answers(
    sample: &[Sampled],
    asked: &[(SamplingParams, u32)],
    backend: &dyn Backend,
    together: usize,
    pass: usize,
) -> Vec<(usize, Result<Response, Fault>)> {
    let mut order: Vec<usize> = (0..sample.len()).collect();
    if pass % 2 == 1 {
        order.reverse();
    }
    let (send, receive) = mpsc::channel();
    let mut waiting = order.into_iter();
    let mut in_work = 0;
    let mut results = Vec::with_capacity(sample.len());
    loop {
        for at in waiting.by_ref().take(together.max(1) - in_work) {
            let sampled = &sample[at];
            let (sampling, num_generations) = &asked[at];
            let sampling = SamplingParams { logprobs: true, ..sampling.clone() };
            let request = Request {
                num_generations: *num_generations,
                ..Request::new(sampled.number, sampled.rendered.messages.clone(), sampling)
            };
            let send = send.clone();
            in_work += 1;
            // The receiver outlives all replies.
            backend.submit(request, Box::new(move |result| drop(send.send((at, result)))));
        }
        if in_work == 0 {
            return results;
        }
        match receive.recv() {
            Ok(result) => results.push(result),
            Err(_) => return results,
        }
        in_work -= 1;
    }
}

fn bits(response: &Response) -> Bits {
    let one = |generation: &Generation| {
        let logprobs = generation.logprobs.as_ref();
        (
            generation.token_ids.clone(),
            logprobs.map(|tokens| tokens.iter().map(|token| token.logprob.to_bits()).collect()),
        )
    };
    response.generations.iter().map(|generation| generation.as_ref().map(one).unwrap_or_default()).collect()
}

/// The first difference between what was written and what comes now.
fn rows_differ(written: &[Row], now: &[Row]) -> Option<String> {
    if written.len() != now.len() {
        return Some(format!("{} output rows were written, now there are {}", written.len(), now.len()));
    }
    for (at, (written, now)) in written.iter().zip(now).enumerate() {
        let names = written.names().chain(now.names().filter(|name| !written.contains(name)));
        for name in names {
            let text = |row: &Row| row.get(name).map_or_else(|| "nothing".to_owned(), |value| value.get().to_owned());
            let (then, now) = (text(written), text(now));
            if then != now {
                let sample = if at > 0 { format!(" of answer {at}") } else { String::new() };
                return Some(format!("{name}{sample}: {} was written, now it is {}", short(&then), short(&now)));
            }
        }
    }
    None
}

fn bits_differ(alone: &Bits, now: &Bits) -> Option<String> {
    let different = alone.iter().zip(now).position(|(a, b)| a != b)?;
    let ((tokens, logprobs), (other_tokens, other_logprobs)) = (&alone[different], &now[different]);
    let place = |a: &Option<Vec<u32>>, b: &Option<Vec<u32>>| {
        let (a, b) = (a.as_deref().unwrap_or_default(), b.as_deref().unwrap_or_default());
        a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(a.len().min(b.len()))
    };
    Some(if tokens == other_tokens {
        format!("log-probability of token {} of answer {different}", place(logprobs, other_logprobs))
    } else {
        format!("token {} of answer {different}", place(tokens, other_tokens))
    })
}

/// Long values end in an ellipsis.
fn short(value: &str) -> String {
    const MOST: usize = 120;
    if value.chars().count() <= MOST {
        return value.to_owned();
    }
    value.chars().take(MOST).chain(['…']).collect()
}
