//! Which operation exists where: everything that the portable path is made of, checked against the source of candle
//! 0.11.1 (`candle-core/src/{cpu,cuda,metal}_backend`, `candle-nn/src/{ops,rotary_emb}.rs`, `candle-kernels/src/*.cu`,
//! `candle-metal-kernels/src/metal_src/*.metal`, `candle-flash-attn`).
//!
//! Activations are f32 on the CPU, and bf16, f16 or f32 ("all three") on a GPU. On NVIDIA GPUs before compute capability
//! 8.0 candle has no kernels for bf16; `vgen_backends::local::devices` refuses that before anything is loaded.
//!
//! | operation | used for | types | CPU | CUDA | Metal |
//! |---|---|---|---|---|---|
//! | `matmul` of two and three axes, right side transposed or not | linear layers, scores, sums of values | all three | `gemm`, f32 and f16 | cuBLAS `gemm_strided_batched` | `gemm` of MLX, `gemv` |
//! | `QMatMul`, Q8_0, Q4_K, Q4_1 | quantised linear layers | f32 in and out | `vec_dot`, repacked | `mmvq_gguf`, `mmq_gguf`, or dequantised | `kernel_mul_mv_*`, `kernel_mul_mm_*` |
//! | `rms_norm` | norms of text | all three | `RmsNorm` | `rmsnorm_*` | `rmsnorm_*` |
//! | `layer_norm` | norms of the tower | all three | `LayerNorm` | `layernorm_*` | `layernorm_*` |
//! | `rope_thd` | rotary positions | all three | `RotaryEmbThd` | `rope_thd_*` | `rope_thd_*` |
//! | `softmax_last_dim` | attention | f32 | `SoftmaxLastDim` | `softmax_f32` | `softmax_f32` |
//! | `flash_attn` | attention within images | bf16, f16 | – | feature `flash-attn` | – |
//! | `flash_attn_varlen_paged_windowed` | text over text and over images, all rows in one kernel | bf16, f16 | – | feature `flash-attn` | – |
//! | `sdpa` | attention of one sequence, heads of 32, 64, 72, 80, 96, 128, 256; of one query 32, 64, 96, 128, 256 | all three | – | – | `sdpa_full`, `sdpa_vector`, with two passes |
//! | `index_select` by u32 | embeddings, places of keys and values, rows that see images | all three | yes | `is_u32_*` | `is_u32_*` |
//! | `scatter_set` by u32, in place | new keys and values | all three | yes | `s_u32_*` | `s_u32_*` |
//! | `slice_set`, in place | keys and values of an image, copies of pages | all three | `copy2d` | `copy2d_*` | copy of 2-d blocks |
//! | `cat`, `stack`, `pad_with_zeros` | joins of parts, rows filled up | all three | `copy2d` | `copy2d_*` | copy of 2-d blocks |
//! | `zeros`, `ones` | stores, padding patches | all three | yes | `memset`, `const_set_*` | `fill_*`, blit |
//! | `contiguous` of a view | heads before tokens, an index spread over a row | all three, u32 | yes | `ucopy_*` | `copy_*_strided` |
//! | `to_dtype` | scores in f32, keys of another type, logits | between all three | yes | `cast_*` | `cast_*` |
//! | `+`, `*`, with `broadcast` | sums, biases, masks, gated layers | all three | yes | `badd_*`, `bmul_*` | `badd_*`, `bmul_*` |
//! | `broadcast_mul`, `broadcast_add` | places of heads | u32 | yes | `bmul_u32`, `badd_u32` | `bmul_u32`, `badd_u32` |
//! | `affine` | scales, gates | all three | yes | `affine_*` | `affine_*` |
//! | `silu` | SwiGLU | all three | yes | `usilu_*` | `usilu_*` |
//! | `gelu_erf` | the tower's layers | all three | yes | `ugelu_erf_*` | `ugelu_erf_*` |
//! | `max_keepdim`, `min`, `sum` over the last axis | the highest logits | f32 | yes | `fast_max_f32`, `fast_min_f32`, `fast_sum_f32` | the same |
//! | `eq`, `broadcast_eq` | the highest logits | f32 to u8 | yes | `eq_f32` | `beq_f32` |
//! | `where_cond` by u8 | the highest logits | f32 | yes | `where_u8_f32` | `where_u8_f32` |
//! | `broadcast_sub`, `broadcast_div`, `exp` | the highest logits with a temperature | f32 | yes | `bsub_f32`, `bdiv_f32`, `uexp_f32` | the same |
//! | `arg_sort_last_dim`, up to 1024 wide | the highest logits | f32 to u32 | yes | `asort_desc_f32` | `asort_desc_f32`, a thread for each value |
//! | `gather` by u32 | the highest logits | f32 | yes | `gather_u32_f32` | `gather_u32_f32` |
//! | `to_dtype` | places of the highest logits | u32 to f32 | yes | `cast_u32_f32` | `cast_u32_f32` |
//!
//! What is not used because a device lacks it or does it otherwise: `argmax` (which of equal logits it takes depends on
//! the device), products of bf16 on the CPU (there are none), `where_cond` and `max` in half types, `cumsum`, sorts of more
//! than 1024 values (Metal has no more threads in a group), and convolutions (the patch embedding is a product of unfolded
//! patches).
//!
//! The norms, the rotation, the softmax, the quantised product and attention over pages are behind `crate::operations`,
//! with their plain formulas beside them; tests hold the two to each other. `flash_attn` takes no bias, and `sdpa` one of
//! the half type or, of one query, none. The exact treatment of padding needs one in f32: it is folded into more places of
//! each head (80 becomes 88, on Metal 96), as a sum of three numbers of the half type. What `sdpa` has no size for is
//! computed by products and the softmax.
//!
//! Nothing in the path asks for the values of a tensor but the last step: `Model::highest` copies a number a row,
//! `Model::top` half a kilobyte, and `Model::logits` the rows that need all. Loading looks at embeddings of unused tiles
//! once.
