//! Every kernel by itself, in bytes or operations a second.
//!
//! `cargo bench --bench kernels [-- FILTER] [-- --quick]`; criterion's own options hold. Group `machine` is what this
//! machine gives at that moment, reading memory and multiplying in registers: the figures of the others are shares of it.
//! Products count the bytes of their weights up to 4 rows and operations (G for GFLOP) above, attention counts
//! operations, the rest the numbers they take.
#![allow(unsafe_code)] // the loop in registers
#![allow(clippy::unwrap_used)] // stopped by any failure

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use vgen_backends::local::Candidates;
use vgen_kernels::attention::{
    CausalSequence, CrossSpan, Heads, ImageKeys, Inside, causal_attention, cross_attention, vision_attention,
};
use vgen_kernels::norm::{Norm, layer_norm, rms_norm};
use vgen_kernels::quant::BlockFormat;
use vgen_kernels::{Epilogue, Format, PackedLinear, Product, activation, forward_each, rope, threads};

fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32) / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// Criterion has no unit for operations: its elements are those.
fn operations(count: usize) -> Throughput {
    Throughput::Elements(count as u64)
}

fn bytes(count: usize) -> Throughput {
    Throughput::Bytes(count as u64)
}

/// Multiply-adds in registers on every thread, of 12 vectors of 16.
const STEPS: usize = 200_000;

fn spin() {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        use std::arch::x86_64::*;
        #[target_feature(enable = "avx512f")]
        fn one() -> f32 {
            let x = _mm512_set1_ps(0.999);
            let mut sums = [_mm512_set1_ps(1.0); 12];
            for _ in 0..STEPS {
                for sum in &mut sums {
                    *sum = _mm512_fmadd_ps(*sum, x, x);
                }
            }
            _mm512_reduce_add_ps(sums.into_iter().reduce(|a, b| _mm512_add_ps(a, b)).unwrap_or(x))
        }
        std::thread::scope(|s| {
            for _ in 0..threads::limit() {
                // SAFETY: AVX-512F was detected above.
                s.spawn(|| black_box(unsafe { one() }));
            }
        });
    }
}

fn machine(c: &mut Criterion) {
    let mut group = c.benchmark_group("machine");
    group.throughput(operations(threads::limit() * STEPS * 12 * 16 * 2));
    if cfg!(target_arch = "x86_64") {
        group.bench_function("f32 in registers, AVX-512", |b| b.iter(spin));
    }
    let data = vec![1u64; 64 << 20];
    group.throughput(bytes(data.len() * 8));
    group.bench_function("read memory", |b| {
        b.iter(|| {
            std::thread::scope(|s| {
                for part in data.chunks(data.len().div_ceil(threads::limit())) {
                    s.spawn(move || {
                        let mut sums = [0u64; 32];
                        for chunk in part.chunks_exact(32) {
                            for (sum, v) in sums.iter_mut().zip(chunk) {
                                *sum = sum.wrapping_add(*v);
                            }
                        }
                        black_box(sums)
                    });
                }
            });
        });
    });
    group.finish();
}

const BLOCKS: [BlockFormat; 4] = [BlockFormat::Q8_0, BlockFormat::Q4_0, BlockFormat::Q4_1, BlockFormat::Q4K];

fn formats() -> impl Iterator<Item = Format> {
    [Format::F32, Format::Bf16, Format::Bf16Wide].into_iter().chain(BLOCKS.map(Format::Block))
}

fn name(format: Format) -> String {
    match format {
        Format::Block(block) => format!("{block:?}"),
        format => format!("{format:?}"),
    }
}

fn products(c: &mut Criterion) {
    for format in formats() {
        let mut group = c.benchmark_group(format!("product {}", name(format)));
        for (rows, k, n) in [
            (1, 4096, 14336),
            (4, 4096, 14336),
            (16, 4096, 14336),
            (64, 4096, 14336),
            (1608, 1280, 5120),
            (1608, 5120, 1280),
        ] {
            let id = BenchmarkId::new(format!("{k} to {n}"), format!("{rows} rows"));
            let row_bytes = match format {
                Format::F32 => 4 * k,
                Format::Bf16 | Format::Bf16Wide => 2 * k,
                Format::Block(block) => block.row_bytes(k),
            };
            group.throughput(if rows <= 4 { bytes(n * row_bytes) } else { operations(2 * rows * k * n) });
            bench_product(&mut group, id, format, (rows, k, n));
        }
        group.finish();
    }
    // Queries, keys and values of a norm, in one call and in four.
    let mut group = c.benchmark_group("norm and three products Q4K");
    let (k, sizes) = (4096, [4096, 1024, 1024]);
    for rows in [1, 16] {
        let x = noise(rows * k, 1);
        let weight = noise(k, 2);
        let norm = Norm::Rms { weight: &weight, eps: 1e-5 };
        let linears =
            sizes.map(|n| PackedLinear::pack(Format::Block(BlockFormat::Q4K), &noise(n * k, 3), n, k).unwrap());
        let mut outs = sizes.map(|n| vec![0.0; rows * n]);
        group.throughput(bytes(linears.iter().map(PackedLinear::bytes).sum()));
        group.bench_function(BenchmarkId::new("one call", format!("{rows} rows")), |b| {
            b.iter(|| {
                let product = |(linear, out)| Product { linear, out, epilogue: Epilogue::None };
                let outs = outs.iter_mut().map(Vec::as_mut_slice);
                forward_each(&x, rows, Some(norm), &mut linears.iter().zip(outs).map(product).collect::<Vec<_>>())
                    .unwrap();
            });
        });
        let mut normed = vec![0.0; x.len()];
        group.bench_function(BenchmarkId::new("four calls", format!("{rows} rows")), |b| {
            b.iter(|| {
                rms_norm(&x, &weight, 1e-5, &mut normed).unwrap();
                for (linear, out) in linears.iter().zip(&mut outs) {
                    linear.forward(&normed, rows, out, None).unwrap();
                }
            });
        });
    }
    group.finish();
}

type Group<'a> = criterion::BenchmarkGroup<'a, criterion::measurement::WallTime>;

/// Weights are packed only if the filter lets the bench run.
fn bench_product(group: &mut Group<'_>, id: BenchmarkId, format: Format, (rows, k, n): (usize, usize, usize)) {
    let mut packed = None;
    group.bench_function(id, |b| {
        let (x, mut out) = (noise(rows * k, 1), vec![0.0; rows * n]);
        let row = noise(k, 2);
        let linear = packed.get_or_insert_with(|| {
            // Any weights take as long as others: rows are one row turned.
            let turned = |r: usize, to: &mut [f32]| {
                to.copy_from_slice(&row);
                to.rotate_left(r % k);
            };
            PackedLinear::pack_rows(format, n, k, turned).unwrap()
        });
        b.iter(|| linear.forward(&x, rows, &mut out, None).unwrap());
    });
}

fn attention(c: &mut Criterion) {
    let mut group = c.benchmark_group("attention");
    for inside in [Inside::F32, Inside::Bf16] {
        for tokens in [1608, 3202] {
            let shape = Heads::full(16, 80).inside(inside);
            let [q, k, v] = [1, 2, 3].map(|seed| noise(tokens * 16 * 80, seed));
            let mut out = vec![0.0; q.len()];
            group.throughput(operations(4 * tokens * tokens * 16 * 80));
            group.bench_function(format!("vision {inside:?} {tokens} x 16 x 80"), |b| {
                b.iter(|| vision_attention(&q, &k, &v, &shape, None, None, &mut out).unwrap());
            });
        }
    }
    // 32 query heads over 8 of keys, as in the 11B text layers.
    let heads = Heads::grouped(32, 8, 128);
    let narrow = |len: usize, seed| -> Vec<bf16> { noise(len, seed).into_iter().map(bf16::from_f32).collect() };
    for (what, q_len, past_len) in [("prefill", 512, 0), ("decode", 1, 2048)] {
        let keys = past_len + q_len;
        let (k, v) = (narrow(keys * 8 * 128, 1), narrow(keys * 8 * 128, 2));
        let q = noise(q_len * 32 * 128, 3);
        let mut out = vec![0.0; q.len()];
        let pairs = q_len * past_len + q_len * (q_len + 1) / 2;
        group.throughput(operations(4 * pairs * 32 * 128));
        group.bench_function(format!("text {what} {q_len} over {keys} keys"), |b| {
            let sequence = CausalSequence { q_start: 0, q_len, past_len, k: &k, v: &v };
            b.iter(|| causal_attention(&q, &[sequence], &heads, &mut out).unwrap());
        });
    }
    let tokens = 1601;
    let (k, v) = (narrow(tokens * 8 * 128, 1), narrow(tokens * 8 * 128, 2));
    for q_len in [1, 16, 64] {
        let q = noise(q_len * 32 * 128, 3);
        let mut out = vec![0.0; q.len()];
        group.throughput(operations(4 * q_len * tokens * 32 * 128));
        group.bench_function(format!("cross {q_len} over one tile"), |b| {
            let images = [ImageKeys { k: &k, v: &v }];
            let spans = [CrossSpan { q_start: 0, q_len, images: &images }];
            b.iter(|| cross_attention(&q, &spans, &heads, &mut out).unwrap());
        });
    }
    group.finish();
}

fn element_wise(c: &mut Criterion) {
    let mut group = c.benchmark_group("element-wise");
    let (rows, width) = (1608, 1280);
    let (x, up, weight, bias) = (noise(rows * width, 1), noise(rows * width, 2), noise(width, 3), noise(width, 4));
    let mut out = x.clone();
    group.throughput(operations(x.len()));
    group.bench_function("RMSNorm", |b| b.iter(|| rms_norm(&x, &weight, 1e-5, &mut out).unwrap()));
    group.bench_function("LayerNorm", |b| b.iter(|| layer_norm(&x, &weight, &bias, 1e-5, &mut out).unwrap()));
    group.bench_function("gelu", |b| b.iter(|| activation::gelu_erf(&mut out)));
    group.bench_function("silu times up", |b| b.iter(|| activation::silu_mul(&x, &up, &mut out).unwrap()));
    group.bench_function("gated residual", |b| {
        b.iter(|| activation::add_gated(&mut out, &x, 1e-3, width, None).unwrap());
    });
    let (tokens, heads, d) = (512, 32, 128);
    let mut q = noise(tokens * heads * d, 5);
    let (cos, sin) = (noise(tokens * d / 2, 6), noise(tokens * d / 2, 7));
    let positions: Vec<u32> = (0..tokens as u32).collect();
    group.throughput(operations(q.len()));
    group.bench_function("RoPE", |b| b.iter(|| rope::rope(&mut q, heads, d, &cos, &sin, &positions).unwrap()));
    group.finish();
}

fn sampling(c: &mut Criterion) {
    let mut group = c.benchmark_group("sampling of 128256 logits");
    let vocabulary = 128_256;
    group.throughput(operations(vocabulary));
    let flat: Vec<f32> = noise(vocabulary, 1).iter().map(|v| v * 0.02).collect();
    let mut peaked: Vec<f32> = noise(vocabulary, 2).iter().map(|v| v * 6.0).collect();
    peaked[5000] += 14.0;
    for (shape, logits) in [("flat", flat), ("peaked", peaked)] {
        for (ways, top_k, top_p) in [("top-k 50", 50, 1.0), ("top-p 0.9", 0, 0.9), ("both", 50, 0.9)] {
            let mut candidates = Candidates::new();
            group.bench_function(format!("{ways}, {shape}"), |b| {
                b.iter(|| {
                    candidates.start(&logits, top_k);
                    candidates.top_p(top_p);
                    candidates.draw(0.5)
                });
            });
        }
    }
    group.finish();
}

fn quantisation(c: &mut Criterion) {
    let mut group = c.benchmark_group("quantise on one thread");
    let row = noise(14336, 1);
    group.throughput(bytes(row.len() * 4));
    for format in BLOCKS {
        let mut blocks = vec![0; format.row_bytes(row.len())];
        group.bench_function(format!("{format:?}"), |b| b.iter(|| format.quantize_row(&row, &mut blocks).unwrap()));
    }
    group.finish();
    // From the bf16 of a checkpoint to packed panels, on all threads; bytes are those of the file.
    let mut group = c.benchmark_group("pack 1024 x 4096");
    let (n, k) = (1024, 4096);
    let weights: Vec<bf16> = noise(n * k, 2).into_iter().map(bf16::from_f32).collect();
    group.throughput(bytes(2 * n * k));
    for format in formats() {
        group.bench_function(name(format), |b| b.iter(|| PackedLinear::pack(format, &weights, n, k).unwrap()));
    }
    group.finish();
}

criterion_group! {
    name = kernels;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .without_plots();
    targets = machine, products, attention, element_wise, sampling, quantisation
}
criterion_main!(kernels);
