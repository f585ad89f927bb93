//! Kernels beside candle's own operations, in one process, taken in turns.
//!
//! `cargo bench -p vgen-kernels [-- PART]`. Each figure is the median and the best of the rounds; the machine's own
//! limits (multiply-adds in registers, reading of memory) are measured in the same run, so shares are of what this
//! machine gave at that moment. With `RAYON_NUM_THREADS=1` and `--cpu-time`, time is what the process spent on the
//! CPU, which stays meaningful on a machine that is busy with other work.
#![allow(unsafe_code)] // the peak loop and the CPU clock
#![allow(clippy::print_stdout, clippy::unwrap_used)] // a report to the terminal, stopped by any failure

use std::sync::OnceLock;
use std::time::Instant;

use candle_core::{Device, Tensor};
use vgen_kernels::attention::{Heads, Inside, vision_attention};
use vgen_kernels::quant::BlockFormat;
use vgen_kernels::{Format, PackedLinear, threads};

fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32) / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// Seconds since some moment: on the wall, or spent by this process on the CPU.
fn now() -> f64 {
    static START: OnceLock<(bool, Instant)> = OnceLock::new();
    let (cpu, start) = START.get_or_init(|| (std::env::args().any(|a| a == "--cpu-time"), Instant::now()));
    if !cpu {
        return start.elapsed().as_secs_f64();
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec to be written.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Seconds of each contestant: `(median, best)`, run in turns.
fn contest(rounds: usize, runs: &mut [&mut dyn FnMut()]) -> Vec<(f64, f64)> {
    let mut times = vec![Vec::new(); runs.len()];
    for round in 0..=rounds {
        for (run, times) in runs.iter_mut().zip(&mut times) {
            let start = now();
            run();
            if round > 0 {
                times.push(now() - start);
            }
        }
    }
    times
        .into_iter()
        .map(|mut t| {
            t.sort_by(f64::total_cmp);
            (t[t.len() / 2], t[0])
        })
        .collect()
}

/// Multiply-adds in registers, `STEPS x 12` vectors of 16, on every thread.
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
        rayon::scope(|s| {
            for _ in 0..threads::limit() {
                // SAFETY: AVX-512F was detected above.
                s.spawn(|_| {
                    std::hint::black_box(unsafe { one() });
                });
            }
        });
    }
}

const STEPS: usize = 2_000_000;

/// GFLOP/s of [`spin`] done in this time.
fn peak(seconds: f64) -> f64 {
    (threads::limit() * STEPS * 12 * 16 * 2) as f64 / seconds / 1e9
}

/// Reading memory with every thread, in GB/s.
fn read_bandwidth() -> f64 {
    let data = vec![1u64; 64 << 20];
    let threads = threads::limit();
    let mut run = || {
        rayon::scope(|s| {
            for part in data.chunks(data.len() / threads) {
                s.spawn(move |_| {
                    let mut sums = [0u64; 32];
                    for chunk in part.chunks_exact(32) {
                        for (sum, v) in sums.iter_mut().zip(chunk) {
                            *sum = sum.wrapping_add(*v);
                        }
                    }
                    std::hint::black_box(sums);
                });
            }
        });
    };
    (data.len() * 8) as f64 / contest(5, &mut [&mut run])[0].1 / 1e9
}

struct Limits {
    gflops: f64,
    gbs: f64,
}

fn linear(limits: &Limits, format: Format, m: usize, n: usize, k: usize, candle: bool) {
    let (x, w) = (noise(m * k, 1), noise(n * k, 2));
    let packed = PackedLinear::pack(format, &w, n, k).unwrap();
    let x_t = Tensor::from_slice(&x, (m, k), &Device::Cpu).unwrap();
    let w_t = Tensor::from_slice(&w, (n, k), &Device::Cpu).unwrap().t().unwrap();
    let mut out = vec![0.0; m * n];
    let mut ours = || packed.forward(&x, m, &mut out, None).unwrap();
    let mut theirs = || drop(x_t.matmul(&w_t).unwrap());
    let mut spin = spin;
    let mut runs: Vec<&mut dyn FnMut()> = vec![&mut ours, &mut spin];
    if candle {
        runs.push(&mut theirs);
    }
    let rounds = ((2e10 / (m * n * k) as f64) as usize).clamp(5, 25);
    let times = contest(rounds, &mut runs);
    let (median, best) = times[0];
    let flops = 2.0 * (m * n * k) as f64;
    print!(
        "linear {format:?} {m:>5} x {k:>5} -> {n:>6}: {:>8.3} ms (best {:>8.3}), {:>6.1} GFLOP/s = {:>3.0} % of f32 peak then, weights {:>5.1} GB/s = {:>3.0} %",
        median * 1e3,
        best * 1e3,
        flops / best / 1e9,
        100.0 * flops / median / 1e9 / peak(times[1].0),
        packed.bytes() as f64 / best / 1e9,
        100.0 * packed.bytes() as f64 / best / 1e9 / limits.gbs,
    );
    if let Some((theirs, theirs_best)) = times.get(2) {
        print!("; candle f32 {:.3} ms: {:.2}x (best {:.2}x)", theirs * 1e3, theirs / median, theirs_best / best);
    }
    println!();
}

/// Attention of one image, against candle's products and softmax on whole score matrices.
fn vision(tokens: usize, heads: usize, d: usize, inside: Inside) {
    let shape = Heads::full(heads, d).inside(inside);
    let len = tokens * heads * d;
    let (q, k, v) = (noise(len, 1), noise(len, 2), noise(len, 3));
    let tensor = |x: &[f32]| {
        let x = Tensor::from_slice(x, (tokens, heads, d), &Device::Cpu).unwrap();
        x.transpose(0, 1).unwrap().contiguous().unwrap()
    };
    let (qt, kt, vt) = (tensor(&q), tensor(&k), tensor(&v));
    let mut out = vec![0.0; len];
    let mut ours = || vision_attention(&q, &k, &v, &shape, None, None, &mut out).unwrap();
    let mut theirs = || {
        let s = (qt.matmul(&kt.t().unwrap()).unwrap() * f64::from(shape.scale)).unwrap();
        let max = s.max_keepdim(2).unwrap();
        let p = s.broadcast_sub(&max).unwrap().exp().unwrap();
        let p = p.broadcast_div(&p.sum_keepdim(2).unwrap()).unwrap();
        drop(p.matmul(&vt).unwrap());
    };
    let mut spin = spin;
    let times = contest(5, &mut [&mut ours, &mut spin, &mut theirs]);
    let flops = 4.0 * (tokens * tokens * heads * d) as f64;
    println!(
        "attention vision {inside:?} {tokens} x {heads} x {d}: {:.1} ms, {:.1} GFLOP/s = {:.0} % of f32 peak then; candle unfused f32 {:.1} ms: {:.2}x",
        times[0].0 * 1e3,
        flops / times[0].0 / 1e9,
        100.0 * flops / times[0].0 / 1e9 / peak(times[1].0),
        times[2].0 * 1e3,
        times[2].0 / times[0].0,
    );
}

fn main() {
    let filter = std::env::args().nth(1).filter(|a| !a.starts_with("--")).unwrap_or_default();
    let wanted = |part: &str| part.contains(&filter);
    let limits = Limits { gflops: peak(contest(5, &mut [&mut spin])[0].1), gbs: read_bandwidth() };
    println!("{} threads, f32 peak {:.0} GFLOP/s, reading {:.1} GB/s", threads::limit(), limits.gflops, limits.gbs);
    if wanted("attention") {
        for inside in [Inside::F32, Inside::Bf16] {
            vision(1608, 16, 80, inside);
            vision(3202, 16, 80, inside);
        }
    }
    let rows: Option<usize> = std::env::args().skip_while(|a| a != "--rows").nth(1).and_then(|rows| rows.parse().ok());
    let blocks = [BlockFormat::Q8_0, BlockFormat::Q4_0, BlockFormat::Q4K].map(Format::Block);
    for format in [Format::F32, Format::Bf16, Format::Bf16Wide].into_iter().chain(blocks) {
        if wanted(&format!("linear {format:?}")) {
            for (m, n, k) in [
                (1, 14336, 4096),
                (4, 14336, 4096),
                (16, 14336, 4096),
                (64, 14336, 4096),
                (1608, 5120, 1280),
                (1608, 1280, 5120),
            ] {
                if rows.is_some_and(|rows| rows != m) {
                    continue;
                }
                linear(&limits, format, m, n, k, true);
            }
        }
    }
}
