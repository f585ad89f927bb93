//! Tests of sampling, detokenising, stopping and constraining, and the tokenizers that they share.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests stop at the first surprise")]

mod constrain;
mod detokenize;
mod recorded;
mod sampler;
mod sampling;
mod shortlist;
mod stop;

use std::sync::Arc;

use serde_json::json;
use tokenizers::Tokenizer;
use vgen_core::SamplingParams;

use super::{GenerationDefaults, ResolvedSampling};

/// The tokenizer of the tiny checkpoint: 512 byte-level tokens and 33 special ones.
pub(super) fn tiny() -> Tokenizer {
    include_str!("../../../../../tests/fixtures/mllama/tiny/tokenizer.json").parse().unwrap()
}

/// `params` without defaults for a vocabulary of `vocab_size` whose token 0 ends generations.
pub(super) fn resolved(params: &SamplingParams, vocab_size: usize) -> Arc<ResolvedSampling> {
    let defaults = GenerationDefaults::default();
    Arc::new(ResolvedSampling::resolve(params, &defaults, &[0], vocab_size, &byte_level()).unwrap())
}

/// A byte-level tokenizer: all bytes, some pieces that end or start inside a character, added tokens.
pub(super) fn byte_level() -> Tokenizer {
    let mut vocab = serde_json::Map::new();
    let mut next = 0x100;
    let mut letters = Vec::new();
    for byte in 0..=255u32 {
        let printable = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
        let c = if printable { byte } else { next };
        next += u32::from(!printable);
        letters.push(char::from_u32(c).unwrap().to_string());
        vocab.insert(letters[byte as usize].clone(), json!(byte));
    }
    let join = |bytes: &[u8]| bytes.iter().map(|&b| letters[usize::from(b)].as_str()).collect::<String>();
    let pieces: [&[u8]; 9] = [
        b" the",
        b"Hello",
        "é".as_bytes(),
        &[0xE4, 0xBD],
        &[0xA0, 0xE5],
        &[0xF0, 0x9F],
        b"\n\n",
        &[0x98, 0x80, b'!'],
        b" ",
    ];
    for piece in pieces {
        let id = vocab.len();
        vocab.entry(join(piece)).or_insert(json!(id));
    }
    let size = vocab.len() as u32;
    let added = |id: u32, content: &str, special: bool| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": special})
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        // The ids from `size + 3` on leave a gap of one.
        "added_tokens": [added(size, "<|end|>", true), added(size + 1, "<tool>", false),
                         added(size + 2, "a b\u{4F60}", false)],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
                  "vocab": vocab, "merges": []},
    });
    tokenizer.to_string().parse().unwrap()
}

/// A byte-fallback tokenizer as Llama 2's.
pub(super) fn byte_fallback(strip: usize) -> Tokenizer {
    let mut vocab = serde_json::Map::new();
    vocab.insert("<unk>".to_owned(), json!(0));
    for byte in 0..=255u32 {
        vocab.insert(format!("<0x{byte:02X}>"), json!(byte + 1));
    }
    for piece in ["▁", "▁▁", "▁the", "Hello", "é", "你", "<0x1>", "<0xZZ>"] {
        let id = vocab.len();
        vocab.insert(piece.to_owned(), json!(id));
    }
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if strip > 0 {
        decoders.push(json!({"type": "Strip", "content": " ", "start": strip, "stop": 0}));
    }
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [{"id": 0, "content": "<unk>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "pre_tokenizer": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                  "vocab": vocab, "merges": []},
    });
    tokenizer.to_string().parse().unwrap()
}
