//! The goldens through the engine: all prompts of a checkpoint in mixed batches, for all three references.

use std::sync::mpsc;

use serde_json::Value as Json;
use vgen_backends::local::{DTypeChoice, DeviceChoice, KvDTypeChoice, LocalBackend, LocalOptions, ModelSource};
use vgen_core::{Backend, Content, Message, Part, Request, Role, SamplingParams};
use vgen_mllama::Reference;
use vgen_task::encode_image;

use crate::On;
use crate::fixtures::{Case, Golden, cases, checkpoint_names, checkpoints};
use crate::inputs::reference_pixels;

/// Largest difference of a log-probability that counts as equal.
const TOLERANCE: f64 = 1e-3;

/// The case's conversation, with its images' recorded pixels; `None` for a raw prompt or one with tools.
fn messages(case: &Case) -> Option<Vec<Message>> {
    if case.tools.is_some() {
        return None;
    }
    let golden = Golden::of("tiny", &case.name);
    let mut images = case.images.iter().enumerate().map(|(index, image)| {
        let recorded = golden.as_ref().and_then(|golden| golden.u8(&format!("decoded_u8.{index}")));
        Part::Image(encode_image(&reference_pixels(image, recorded).into()).unwrap())
    });
    let mut part = |part: &Json| match part["type"].as_str() {
        Some("image") => images.next(),
        _ => Some(Part::Text(part["text"].as_str()?.to_owned())),
    };
    let message = |message: &Json| {
        let role = match message["role"].as_str()? {
            "system" => Role::System,
            "assistant" => Role::Assistant,
            "user" => Role::User,
            _ => return None,
        };
        let content = match &message["content"] {
            Json::String(text) => Content::Text(text.clone()),
            Json::Array(parts) => Content::Parts(parts.iter().map(&mut part).collect::<Option<_>>()?),
            _ => return None,
        };
        Some(Message { role, content })
    };
    case.messages.as_ref()?.as_array()?.iter().map(message).collect()
}

/// Logarithm of the probability of `token`.
fn logprob(logits: &[f32], token: u32) -> f64 {
    let highest = logits.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    let norm = logits.iter().map(|logit| f64::from(logit - highest).exp()).sum::<f64>().ln();
    f64::from(logits[token as usize] - highest) - norm
}

on_all_paths!(goldens_hold_in_mixed_batches);

fn goldens_hold_in_mixed_batches(on: On) {
    for checkpoint in checkpoint_names() {
        for reference in Reference::ALL {
            let mut options =
                LocalOptions::new(ModelSource::Named(checkpoints().join(&checkpoint).to_str().unwrap().to_owned()));
            // Some wait for others, and prompts are read in pieces beside running answers.
            (options.batch_size, options.step_tokens) = (7, 40);
            (options.reference, options.portable) = (reference, on == On::Portable);
            options.device = match on {
                On::Gpu(choice) => choice,
                _ => DeviceChoice::Cpu,
            };
            (options.dtype, options.kv_dtype) = (DTypeChoice::F32, KvDTypeChoice::F32);
            let backend = LocalBackend::load(options, |_| {}).unwrap();
            let recorded: Vec<_> = cases()
                .into_iter()
                .filter_map(|case| Some((messages(&case)?, Golden::of(&checkpoint, &case.name)?, case)))
                .collect();
            assert!(recorded.len() > 10, "{checkpoint} has {} conversations", recorded.len());
            let (send, receive) = mpsc::channel();
            for (row, (messages, ..)) in recorded.iter().enumerate() {
                let sampling = SamplingParams {
                    max_new_tokens: Some(32),
                    temperature: Some(0.0),
                    ignore_eos: true,
                    logprobs: true,
                    ..SamplingParams::default()
                };
                let send = send.clone();
                let done = move |result| send.send((row, result)).unwrap();
                backend.submit(Request::new(row as u64, messages.clone(), sampling), Box::new(done));
            }
            drop(send);
            for (row, result) in receive {
                let (_, golden, case) = &recorded[row];
                let what = format!("{checkpoint} {reference} {}", case.name);
                let generation =
                    result.unwrap_or_else(|fault| panic!("{what}: {fault}")).generations.remove(0).unwrap();
                let (_, expected) = golden.i64(&format!("tokens.{reference}")).unwrap();
                let found = generation.token_ids.unwrap();
                assert_eq!(found.iter().map(|token| i64::from(*token)).collect::<Vec<_>>(), expected, "{what}");
                let logprobs = generation.logprobs.unwrap();
                if let Some((shape, logits)) = golden.f32(&format!("decode_logits.{reference}")) {
                    for (step, logits) in logits.chunks(*shape.last().unwrap()).enumerate() {
                        let expected = logprob(logits, found[step]);
                        let difference = (f64::from(logprobs[step].logprob) - expected).abs();
                        assert!(difference < TOLERANCE, "{what} step {step}: off by {difference}");
                    }
                }
            }
        }
    }
}
