#!/usr/bin/env python3
"""Write a random-weight Llama-3.2-Vision (mllama) checkpoint of a chosen size, for speed and memory work.

    benches/make_model.py PRESET OUT_DIR --tokenizer DIR [--dtype bf16|f32] [--seed N]

PRESET: small (0.5 B), 1b (1.8 B), 3b (4.1 B), 11b (10.7 B: the real Llama-3.2-11B-Vision shapes, 21 GB on disk).
DIR holds tokenizer.json, tokenizer_config.json and, if present, chat_template.json (they are copied).
The weights are random and scaled so that activations stay finite: the speed is real, the text is noise.
Needs numpy only. The layout on disk is the hub's: config.json, preprocessor_config.json, generation_config.json,
model-0000x-of-0000y.safetensors and model.safetensors.index.json.
"""
import argparse, json, math, os, shutil, struct, sys
import numpy as np

RATIOS = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]
PRESETS = {
    "small": dict(D=1024, F=2816, L=12, X=[2, 5, 8, 11], heads=16, kv=4, H=640, I=2560, VL=6, VG=2, mid=[1, 2, 3, 4, 5], vheads=8),
    "1b": dict(D=2048, F=8192, L=16, X=[3, 7, 11, 15], heads=32, kv=8, H=1280, I=5120, VL=8, VG=2, mid=[1, 3, 4, 5, 7], vheads=16),
    "3b": dict(D=3072, F=8192, L=28, X=[3, 8, 13, 18, 23], heads=24, kv=8, H=1280, I=5120, VL=16, VG=4, mid=[1, 3, 7, 11, 15], vheads=16),
    "11b": dict(D=4096, F=14336, L=40, X=[3, 8, 13, 18, 23, 28, 33, 38], heads=32, kv=8, H=1280, I=5120, VL=32, VG=8, mid=[3, 7, 15, 23, 30], vheads=16),
}
VOCAB, IMG, PATCH, SIZE, TILES = 128256, 128256, 14, 560, 4


def config(p, dtype):
    out = p["H"] * (1 + len(p["mid"]))
    return {
        "architectures": ["MllamaForConditionalGeneration"], "image_token_index": IMG, "model_type": "mllama", "torch_dtype": dtype,
        "text_config": {
            "bos_token_id": 128000, "cross_attention_layers": p["X"], "dropout": 0, "eos_token_id": [128001, 128008, 128009],
            "hidden_act": "silu", "hidden_size": p["D"], "initializer_range": 0.02, "intermediate_size": p["F"],
            "max_position_embeddings": 131072, "model_type": "mllama_text_model", "num_attention_heads": p["heads"],
            "num_hidden_layers": p["L"], "num_key_value_heads": p["kv"], "pad_token_id": 128004, "rms_norm_eps": 1e-05,
            "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                             "original_max_position_embeddings": 8192, "rope_type": "llama3"},
            "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": dtype, "use_cache": True, "vocab_size": VOCAB},
        "vision_config": {
            "attention_heads": p["vheads"], "hidden_act": "gelu", "hidden_size": p["H"], "image_size": SIZE, "initializer_range": 0.02,
            "intermediate_layers_indices": p["mid"], "intermediate_size": p["I"], "max_num_tiles": TILES,
            "model_type": "mllama_vision_model", "norm_eps": 1e-05, "num_channels": 3, "num_global_layers": p["VG"],
            "num_hidden_layers": p["VL"], "patch_size": PATCH, "supported_aspect_ratios": RATIOS, "torch_dtype": dtype,
            "vision_output_dim": out}}


def tensors(p):
    """(hub name, shape, std, mean) in hub order: language model, projector, vision."""
    D, F, H, I = p["D"], p["F"], p["H"], p["I"]
    hd = D // p["heads"]; KV = hd * p["kv"]; P = (SIZE // PATCH) ** 2 + 1; A = len(RATIOS) + 1
    lin = lambda name, o, i: (name, (o, i), 1 / math.sqrt(i), 0.0)
    one = lambda name, n: (name, (n,), 0.1, 1.0)
    zero = lambda name, n: (name, (n,), 0.05, 0.0)
    lm = "language_model."
    yield (lm + "lm_head.weight", (VOCAB, D), 4 / math.sqrt(D), 0.0)
    yield (lm + "model.embed_tokens.weight", (VOCAB + 8, D), 1.0, 0.0)
    for i in range(p["L"]):
        q = f"{lm}model.layers.{i}."; x = i in p["X"]; a = q + ("cross_attn." if x else "self_attn.")
        yield lin(a + "q_proj.weight", D, D); yield lin(a + "k_proj.weight", KV, D)
        yield lin(a + "v_proj.weight", KV, D); yield lin(a + "o_proj.weight", D, D)
        if x:
            yield one(a + "q_norm.weight", hd); yield one(a + "k_norm.weight", hd)
            yield (q + "cross_attn_attn_gate", (1,), 0.1, 0.7); yield (q + "cross_attn_mlp_gate", (1,), 0.1, 0.7)
        yield lin(q + "mlp.gate_proj.weight", F, D); yield lin(q + "mlp.up_proj.weight", F, D); yield lin(q + "mlp.down_proj.weight", D, F)
        yield one(q + "input_layernorm.weight", D); yield one(q + "post_attention_layernorm.weight", D)
    yield one(lm + "model.norm.weight", D)
    out = H * (1 + len(p["mid"]))
    yield lin("multi_modal_projector.weight", D, out); yield zero("multi_modal_projector.bias", D)
    v = "vision_model."
    yield zero(v + "class_embedding", H)
    yield (v + "patch_embedding.weight", (H, 3, PATCH, PATCH), 1 / math.sqrt(3 * PATCH * PATCH), 0.0)
    yield (v + "gated_positional_embedding.embedding", (P, H), 0.05, 0.0)
    yield (v + "gated_positional_embedding.gate", (1,), 0.1, 0.5)
    yield (v + "gated_positional_embedding.tile_embedding.weight", (A, TILES * P * H), 0.05, 0.0)
    for k in ("pre", "post"):
        yield (f"{v}{k}_tile_positional_embedding.embedding.weight", (A, TILES * H), 0.05, 0.0)
        yield (f"{v}{k}_tile_positional_embedding.gate", (1,), 0.1, 0.5)
        yield one(f"{v}layernorm_{k}.weight", H); yield zero(f"{v}layernorm_{k}.bias", H)
    for stack, n in (("transformer", p["VL"]), ("global_transformer", p["VG"])):
        for i in range(n):
            q = f"{v}{stack}.layers.{i}."
            for c in "qkvo": yield lin(f"{q}self_attn.{c}_proj.weight", H, H)
            yield lin(q + "mlp.fc1.weight", I, H); yield zero(q + "mlp.fc1.bias", I)
            yield lin(q + "mlp.fc2.weight", H, I); yield zero(q + "mlp.fc2.bias", H)
            for ln in ("input_layernorm", "post_attention_layernorm"):
                yield one(q + ln + ".weight", H); yield zero(q + ln + ".bias", H)
            if stack == "global_transformer":
                yield (q + "gate_attn", (1,), 0.1, 0.5); yield (q + "gate_ffn", (1,), 0.1, 0.5)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("preset", choices=PRESETS); ap.add_argument("out"); ap.add_argument("--tokenizer", required=True)
    ap.add_argument("--dtype", choices=["bf16", "f32"], default="bf16"); ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--shard-gb", type=float, default=4.5)
    a = ap.parse_args()
    p = PRESETS[a.preset]; os.makedirs(a.out, exist_ok=True)
    item, tag = (2, "BF16") if a.dtype == "bf16" else (4, "F32")
    dump = lambda o, n: json.dump(o, open(os.path.join(a.out, n), "w"), indent=1)
    dump(config(p, "bfloat16" if a.dtype == "bf16" else "float32"), "config.json")
    dump({"bos_token_id": 128000, "do_sample": True, "eos_token_id": [128001, 128008, 128009], "pad_token_id": 128004,
          "temperature": 0.6, "top_p": 0.9}, "generation_config.json")
    dump({"do_convert_rgb": True, "do_normalize": True, "do_pad": True, "do_rescale": True, "do_resize": True,
          "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
          "image_processor_type": "MllamaImageProcessor", "max_image_tiles": TILES, "resample": 2,
          "rescale_factor": 0.00392156862745098, "size": {"height": SIZE, "width": SIZE}}, "preprocessor_config.json")
    for n in ("tokenizer.json", "tokenizer_config.json", "chat_template.json", "special_tokens_map.json"):
        if os.path.exists(os.path.join(a.tokenizer, n)): shutil.copy(os.path.join(a.tokenizer, n), a.out)
    todo = list(tensors(p)); cap = int(a.shard_gb * 1e9)
    shards, size = [[]], 0
    for t in todo:
        b = math.prod(t[1]) * item
        if size + b > cap and shards[-1]: shards.append([]); size = 0
        shards[-1].append(t); size += b
    rng = np.random.default_rng(a.seed)
    block = rng.standard_normal(1 << 24, dtype=np.float32)      # one block of noise, read at a fresh offset for each piece
    wm, total = {}, 0
    for k, shard in enumerate(shards):
        name = f"model-{k + 1:05d}-of-{len(shards):05d}.safetensors"; head, off = {"__metadata__": {"format": "pt"}}, 0
        for n, shape, _, _ in shard:
            b = math.prod(shape) * item
            head[n] = {"dtype": tag, "shape": list(shape), "data_offsets": [off, off + b]}; off += b; wm[n] = name
        total += off
        h = json.dumps(head).encode(); h += b" " * (-len(h) % 8)
        with open(os.path.join(a.out, name), "wb") as f:
            f.write(struct.pack("<Q", len(h))); f.write(h)
            for _, shape, std, mean in shard:
                left = math.prod(shape)
                while left:
                    at = int(rng.integers(0, block.size // 2)); m = min(left, block.size - at)
                    x = block[at:at + m] * np.float32(std) + np.float32(mean)
                    f.write(x.tobytes() if item == 4 else (x.view(np.uint32) >> 16).astype(np.uint16).tobytes()); left -= m
    dump({"metadata": {"total_size": total}, "weight_map": wm}, "model.safetensors.index.json")
    print(f"{a.out}: {sum(math.prod(t[1]) for t in todo) / 1e9:.2f} B parameters, {total / 1e9:.2f} GB, {len(shards)} shards")


if __name__ == "__main__":
    sys.exit(main())
