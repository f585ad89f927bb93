//! A plain Llama from a GGUF file on given tokens: what it thinks of a text, what it answers, and how fast.
//!
//! `cargo bench --bench gguf -- MODEL.gguf TOKENS.json [f32]`, where the JSON holds `text` (token ids) and `prompts` (lists
//! of them). Weights are taken as stored with keys and values in f16, or with `f32` all as 32-bit floats. Prints one line of
//! JSON. `tests/peers/llama_cpp.py` calls it and compares with llama.cpp.
#![allow(clippy::print_stdout, clippy::unwrap_used)] // a report to the terminal, stopped by any failure

use std::time::Instant;

use serde_json::{Value, json};
use vgen_mllama::{Checkpoint, DType, LoadOptions, Model, Sequence, WeightType, WeightTypes};

/// Logits `[wanted, vocabulary]` after some more tokens of a text.
fn step(model: &Model, kv: &mut vgen_mllama::SelfKv, ids: &[u32], wanted: &[u32]) -> Vec<Vec<f32>> {
    let visible = vec![0..0; ids.len()];
    let mut sequences = [Sequence { kv, images: &[], visible: &visible }];
    model.forward(ids, &mut sequences, wanted).unwrap().to_vec2().unwrap()
}

fn greedy(logits: &[f32]) -> u32 {
    logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(id, _)| id as u32)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let (Some(file), Some(tokens)) = (args.next(), args.next()) else { return };
    let tokens: Value = serde_json::from_str(&std::fs::read_to_string(tokens).unwrap()).unwrap();
    let start = Instant::now();
    // As llama.cpp: weights as stored, keys and values in f16.
    let (weights, kv_dtype) = match args.next().as_deref() {
        None => (WeightTypes::default(), DType::F16),
        Some("f32") => (WeightType::F32.into(), DType::F32),
        Some(other) => panic!("{other}: only f32 can be asked for"),
    };
    let options = LoadOptions { weights, kv_dtype, ..LoadOptions::default() };
    let model = Model::load(&Checkpoint::gguf(file).unwrap(), &options, &|_, _| {}).unwrap();
    let load = start.elapsed().as_secs_f64();

    let text = ids(&tokens["text"]);
    let wanted: Vec<u32> = (0..text.len() as u32 - 1).collect();
    let mut kv = model.self_kv(text.len()).unwrap();
    let logits = step(&model, &mut kv, &text, &wanted);
    let surprise: f64 = logits
        .iter()
        .zip(&text[1..])
        .map(|(row, &next)| {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|x| f64::from(x - max).exp()).sum();
            sum.ln() - f64::from(row[next as usize] - max)
        })
        .sum();

    const ANSWER: usize = 24;
    let answers: Vec<Vec<u32>> = tokens["prompts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|prompt| {
            let mut next = ids(prompt);
            let mut kv = model.self_kv(next.len() + ANSWER).unwrap();
            (0..ANSWER)
                .map(|_| {
                    let logits = step(&model, &mut kv, &next, &[next.len() as u32 - 1]);
                    next = vec![greedy(&logits[0])];
                    next[0]
                })
                .collect()
        })
        .collect();

    let text = &text[..text.len().min(512)];
    const DECODED: usize = 64;
    let time = |run: &mut dyn FnMut() -> f64| median((0..6).map(|_| run()).skip(1).collect());
    let prefill = time(&mut || {
        let mut kv = model.self_kv(text.len()).unwrap();
        let start = Instant::now();
        step(&model, &mut kv, text, &[text.len() as u32 - 1]);
        start.elapsed().as_secs_f64()
    });
    let decode = time(&mut || {
        let mut kv = model.self_kv(32 + DECODED).unwrap();
        step(&model, &mut kv, &text[..32], &[31]);
        let start = Instant::now();
        for id in &text[32..32 + DECODED] {
            step(&model, &mut kv, &[*id], &[0]);
        }
        start.elapsed().as_secs_f64()
    });
    println!(
        "{}",
        json!({
            "load_s": load,
            "perplexity": (surprise / wanted.len() as f64).exp(),
            "answers": answers,
            "prefill_tok_s": text.len() as f64 / prefill,
            "decode_tok_s": DECODED as f64 / decode,
        })
    );
}
