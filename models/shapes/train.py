#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Train and evaluate `shapes`, a very small Llama-3.2-Vision ("mllama") model.

The model looks at drawn scenes (a few coloured shapes, sometimes a printed
number) and answers short questions about them.  It has the exact network of
the large models (tiles, gated global vision layers, intermediate features,
gated cross-attention), so it exercises every part of an inference engine, yet
it trains in about an hour on one CPU core.

    python train.py --train --minutes 70        train from scratch, write the checkpoint
    python train.py --make-eval                 write eval.jsonl
    python train.py --make-samples              write samples/
    python train.py --evaluate                  exact-match accuracy on eval.jsonl
    python train.py --evaluate --blank          the same with the picture wiped out
    python train.py --check-golden M G I         compare the network with stored logits

Needs: torch, numpy, pillow, tokenizers, safetensors.
"""

import argparse
import base64
import hashlib
import io
import json
import math
import os
import random
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent

# ----------------------------------------------------------------------------
# 1. Configuration
# ----------------------------------------------------------------------------

TILE, PATCH, MAX_TILES = 64, 8, 4
RATIOS = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]  # [tiles high, tiles wide]
MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]

SPECIALS = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>", "<|finetune_right_pad_id|>", "<|step_id|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>",
]


def make_config(vocab_size, special_ids):
    """The hub's config.json of this model."""
    hidden, layers = 128, [1, 2]
    return {
        "architectures": ["MllamaForConditionalGeneration"],
        "model_type": "mllama",
        "image_token_index": vocab_size,
        "torch_dtype": "bfloat16",
        "text_config": {
            "model_type": "mllama_text_model",
            "vocab_size": vocab_size,
            "hidden_size": 128,
            "intermediate_size": 320,
            "num_hidden_layers": 6,
            "cross_attention_layers": [1, 3, 5],
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
            },
            "max_position_embeddings": 16384,
            "tie_word_embeddings": False,
            "dropout": 0,
            "initializer_range": 0.02,
            "use_cache": True,
            "bos_token_id": special_ids["<|begin_of_text|>"],
            "eos_token_id": eos_ids(special_ids),
            "pad_token_id": special_ids["<|finetune_right_pad_id|>"],
            "torch_dtype": "bfloat16",
        },
        "vision_config": {
            "model_type": "mllama_vision_model",
            "hidden_size": hidden,
            "attention_heads": 4,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "num_global_layers": 2,
            "image_size": TILE,
            "patch_size": PATCH,
            "num_channels": 3,
            "max_num_tiles": MAX_TILES,
            "norm_eps": 1e-5,
            "hidden_act": "gelu",
            "intermediate_layers_indices": layers,
            "vision_output_dim": hidden * (1 + len(layers)),
            "supported_aspect_ratios": RATIOS,
            "initializer_range": 0.02,
            "torch_dtype": "bfloat16",
        },
    }


def eos_ids(special_ids):
    return [special_ids[t] for t in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")]


# ----------------------------------------------------------------------------
# 2. Image preprocessing
# ----------------------------------------------------------------------------

def choose_canvas(h, w, tile=TILE, max_tiles=MAX_TILES):
    """Tiles (high, wide) of the canvas: least upscaling, else least downscaling."""
    grids = [(a, b) for a in range(1, max_tiles + 1) for b in range(1, max_tiles + 1) if a * b <= max_tiles]
    scales = [min(a * tile / h, b * tile / w) for a, b in grids]
    enlarging = [s for s in scales if s >= 1]
    best = min(enlarging) if enlarging else max(scales)
    return min((g for g, s in zip(grids, scales) if s == best), key=lambda g: g[0] * g[1])


def fitted_size(h, w, grid, tile=TILE):
    """Size of the picture inside its canvas (aspect ratio kept)."""
    th = min(max(h, tile), grid[0] * tile)
    tw = min(max(w, tile), grid[1] * tile)
    sh, sw = th / h, tw / w
    if sw < sh:
        return min(math.floor(h * sw) or 1, th), tw
    return th, min(math.floor(w * sh) or 1, tw)


def preprocess(image, tile=TILE, max_tiles=MAX_TILES):
    """RGB image -> (uint8 tiles [n, 3, tile, tile], grid); padding is 0 at the right and the bottom."""
    w, h = image.size
    grid = choose_canvas(h, w, tile, max_tiles)
    fh, fw = fitted_size(h, w, grid, tile)
    if (fh, fw) != (h, w):
        image = image.resize((fw, fh), Image.BILINEAR)
    canvas = np.zeros((grid[0] * tile, grid[1] * tile, 3), np.uint8)
    canvas[:fh, :fw] = np.asarray(image)
    tiles = canvas.reshape(grid[0], tile, grid[1], tile, 3).transpose(0, 2, 4, 1, 3)
    return tiles.reshape(-1, 3, tile, tile), grid


def normalise(tiles):
    """uint8 [..., 3, s, s] -> f32; unused tiles never pass here, they are 0.0 by definition."""
    x = tiles.to(torch.float64).mul(1 / 255).to(torch.float32)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (x - mean) / std


# ----------------------------------------------------------------------------
# 3. Scenes
# ----------------------------------------------------------------------------

SHAPES = ["circle", "square", "triangle", "star", "cross"]
PLURAL = {"circle": "circles", "square": "squares", "triangle": "triangles", "star": "stars", "cross": "crosses"}
COLOURS = ["red", "green", "blue", "yellow", "purple", "orange"]
RGB = {"red": (214, 32, 40), "green": (36, 150, 62), "blue": (40, 80, 214), "yellow": (236, 208, 24),
       "purple": (138, 48, 168), "orange": (242, 134, 24)}
SIZES = ["small", "large"]
PLACES = [["top left", "top", "top right"], ["left", "centre", "right"], ["bottom left", "bottom", "bottom right"]]

# 5x7 dot-matrix digits, one string of 5-bit rows each.
DIGITS = {
    "0": "01110 10001 10011 10101 11001 10001 01110", "1": "00100 01100 00100 00100 00100 00100 01110",
    "2": "01110 10001 00001 00110 01000 10000 11111", "3": "11111 00010 00100 00010 00001 10001 01110",
    "4": "00010 00110 01010 10010 11111 00010 00010", "5": "11111 10000 11110 00001 00001 10001 01110",
    "6": "00110 01000 10000 11110 10001 10001 01110", "7": "11111 00001 00010 00100 01000 01000 01000",
    "8": "01110 10001 10001 01110 10001 10001 01110", "9": "01110 10001 10001 01111 00001 00010 01100",
}
DOT = 2                                    # one dot of a digit, in fitted pixels
DIGIT_W, DIGIT_H = 6 * DOT, 7 * DOT        # advance and height of a digit


@dataclass
class Shape:
    shape: str
    colour: str
    size: str
    x: float           # centre and diameter in fitted pixels, i.e. as the model sees them
    y: float
    d: float
    rgb: tuple


@dataclass
class Scene:
    size: tuple        # (height, width) of the image file
    fitted: tuple      # (height, width) after the resize of the preprocessing
    grid: tuple        # tiles high, tiles wide
    mode: str          # exact, between, up, down
    background: tuple
    shapes: list = field(default_factory=list)   # sorted from left to right
    number: str = ""
    number_xy: tuple = (0, 0)
    ink: tuple = (30, 30, 30)

    def key(self):
        """Hash of the full description; no training scene may share one with an evaluation scene."""
        text = repr((self.size, self.background, [vars(s) for s in self.shapes], self.number, self.number_xy))
        return hashlib.sha256(text.encode()).hexdigest()


def sample_size(rng, grid):
    """A file size whose canvas is `grid`; a share needs resizing up or down."""
    a, b = grid
    for _ in range(200):
        mode = rng.choices(["exact", "between", "up", "down"], [5, 4, 2, 4])[0]
        if mode == "exact":
            h, w = a * TILE, b * TILE
        elif mode == "between":
            h, w = (rng.randint((n - 1) * TILE + 1 if n > 1 else 46, n * TILE) for n in grid)
        elif mode == "up":
            if grid != (1, 1):
                continue
            h, w = rng.randint(40, 63), rng.randint(40, 63)
        else:
            if grid == (1, 1):     # a picture larger than one tile always gets more tiles
                continue
            f = rng.uniform(1.1, 2.6)
            h, w = (int(n * TILE * f * rng.uniform(0.85, 1)) for n in grid)
        if choose_canvas(h, w) != grid:
            continue
        fitted = fitted_size(h, w, grid)
        if min(fitted) < 46:
            continue
        if mode == "between" and fitted != (h, w):
            mode = "up"
        if mode == "up" and fitted == (h, w):
            mode = "between"
        return (h, w), fitted, mode
    return (a * TILE, b * TILE), (a * TILE, b * TILE), "exact"


def sample_scene(rng, grid, level=1.0, size=None):
    """A random scene on `grid`; `level` in 0..1 raises the number of shapes (curriculum)."""
    if size is None:
        size, (fh, fw), mode = sample_size(rng, grid)
    else:
        (fh, fw), mode = fitted_size(*size, grid), "given"
    base = rng.randint(228, 252)
    scene = Scene(size, (fh, fw), grid, mode, tuple(min(255, base + rng.randint(-5, 5)) for _ in range(3)))
    boxes = []

    def free(x0, y0, x1, y1, gap=3):
        return all(x1 + gap <= p or q + gap <= x0 or y1 + gap <= r or s + gap <= y0 for p, r, q, s in boxes)

    area = fh * fw / TILE ** 2
    most = min(3 if area < 1.2 else 4, round(2 + 2 * level))
    count = rng.randint(1, most)
    if rng.random() < 0.4:
        digits = rng.randint(2, 3)
        nw, nh = digits * DIGIT_W - DOT, DIGIT_H
        if nw + 4 <= fw:
            scene.number = str(rng.randint(10 ** (digits - 1), 10 ** digits - 1))
            x, y = rng.randint(2, fw - nw - 2), rng.randint(2, fh - nh - 2)
            scene.number_xy = (x, y)
            scene.ink = tuple(rng.randint(15, 60) for _ in range(3))
            boxes.append((x, y, x + nw, y + nh))
            count = min(count, 2 if area < 1.2 else 3)
            if rng.random() < 0.1:
                count = 0
    for _ in range(count):
        shape, colour, size_name = rng.choice(SHAPES), rng.choice(COLOURS), rng.choice(SIZES)
        # A repeated shape or colour now and then makes counting worth asking.
        if scene.shapes and rng.random() < 0.25:
            shape = rng.choice(scene.shapes).shape
        if scene.shapes and rng.random() < 0.2:
            colour = rng.choice(scene.shapes).colour
        for _ in range(40):
            d = rng.uniform(12, 14.5) if size_name == "small" else rng.uniform(21, 25)
            r = d / 2 + 1.5
            x, y = round(rng.uniform(r, fw - r), 1), round(rng.uniform(r, fh - r), 1)
            # Left-to-right order must be plain, because descriptions follow it.
            if any(abs(x - s.x) < 8 for s in scene.shapes) or not free(x - d / 2, y - d / 2, x + d / 2, y + d / 2):
                continue
            boxes.append((x - d / 2, y - d / 2, x + d / 2, y + d / 2))
            rgb = tuple(max(0, min(255, c + rng.randint(-10, 10))) for c in RGB[colour])
            scene.shapes.append(Shape(shape, colour, size_name, x, y, round(d, 1), rgb))
            break
    if not scene.shapes and not scene.number:
        return sample_scene(rng, grid, level, size)
    scene.shapes.sort(key=lambda s: s.x)
    return scene


def outline(shape, x, y, r):
    """Polygon of a shape (not of the circle) with half-size r."""
    if shape == "square":
        q = r * 0.94
        return [(x - q, y - q), (x + q, y - q), (x + q, y + q), (x - q, y + q)]
    if shape == "triangle":
        return [(x, y - r), (x + r, y + r), (x - r, y + r)]
    if shape == "cross":
        q = r * 0.32
        return [(x - q, y - r), (x + q, y - r), (x + q, y - q), (x + r, y - q), (x + r, y + q), (x + q, y + q),
                (x + q, y + r), (x - q, y + r), (x - q, y + q), (x - r, y + q), (x - r, y - q), (x - q, y - q)]
    points = []
    for k in range(10):                                        # five-pointed star
        radius, angle = (r * 1.1, r * 0.46)[k % 2], math.pi * (k / 5 - 0.5)
        points.append((x + radius * math.cos(angle), y + radius * math.sin(angle)))
    return points


def draw(scene):
    """Render at file size; drawn larger and reduced, so edges are smooth."""
    h, w = scene.size
    ss = 3 if max(h, w) <= 200 else 2
    fy, fx = ss * h / scene.fitted[0], ss * w / scene.fitted[1]
    image = Image.new("RGB", (w * ss, h * ss), scene.background)
    pen = ImageDraw.Draw(image)
    for s in scene.shapes:
        x, y, r = s.x * fx, s.y * fy, s.d / 2 * (fx + fy) / 2
        if s.shape == "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=s.rgb)
        else:
            pen.polygon(outline(s.shape, x, y, r), fill=s.rgb)
    for k, digit in enumerate(scene.number):
        for row, bits in enumerate(DIGITS[digit].split()):
            for col, bit in enumerate(bits):
                if bit == "1":
                    x = (scene.number_xy[0] + k * DIGIT_W + col * DOT) * fx
                    y = (scene.number_xy[1] + row * DOT) * fy
                    pen.rectangle((round(x), round(y), round(x + DOT * fx) - 1, round(y + DOT * fy) - 1), fill=scene.ink)
    return image.reduce(ss)


# ----------------------------------------------------------------------------
# 4. Questions
# ----------------------------------------------------------------------------

WORDINGS = {
    "count_all": ["How many shapes are there?", "How many shapes are in the image?", "How many shapes can you see?",
                  "Count the shapes."],
    "count_shape": ["How many {} are there?", "How many {}?", "How many {} can you see?", "Count the {}."],
    "count_colour": ["How many {} shapes are there?", "How many shapes are {}?", "Count the {} shapes."],
    "colour": ["What colour is the {}?", "Which colour is the {}?", "What is the colour of the {}?"],
    "shape": ["What shape is {}?", "Which shape is {}?", "What is the {} shape?"],
    "left": ["What is left of the {}?", "What is to the left of the {}?", "Which shape is left of the {}?"],
    "right": ["What is right of the {}?", "What is to the right of the {}?", "Which shape is right of the {}?"],
    "above": ["What is above the {}?", "Which shape is above the {}?"],
    "below": ["What is below the {}?", "Which shape is below the {}?"],
    "exists": ["Is there {} {}?", "Do you see {} {}?", "Can you see {} {}?", "Is {} {} in the image?"],
    "size": ["How big is the {}?", "What size is the {}?", "Is the {} small or large?"],
    "position": ["Where is the {}?", "In which part of the image is the {}?"],
    "number": ["What number is printed?", "Which number is printed?", "What number is shown?", "Read the number."],
    "describe": ["Describe the image.", "Describe this image.", "What is in the image?", "What do you see?"],
}
KINDS = list(WORDINGS)
GAP = 12.0        # smallest difference of coordinates (fitted pixels) that a question about order relies on


def article(word):
    return ("an " if word[0] in "aeiou" else "a ") + word


def neighbour(scene, s, direction):
    """The next shape in the given direction by its centre's x (left, right) or y (above, below).

    Returns (True, shape or None), or (False, None) if the order is too close to call."""
    axis, sign = {"left": ("x", -1), "right": ("x", 1), "above": ("y", -1), "below": ("y", 1)}[direction]
    ahead = []
    for o in scene.shapes:
        if o is not s:
            delta = sign * (getattr(o, axis) - getattr(s, axis))
            if abs(delta) < GAP:
                return False, None
            if delta > 0:
                ahead.append((delta, o))
    ahead.sort(key=lambda t: t[0])
    if len(ahead) > 1 and ahead[1][0] - ahead[0][0] < GAP:
        return False, None
    return True, ahead[0][1] if ahead else None


def place(scene, s):
    """One of nine parts of the image, or None near a border between two of them."""
    cells = []
    for v, extent in ((s.y, scene.fitted[0]), (s.x, scene.fitted[1])):
        if any(abs(v - extent * k / 3) < max(4.0, 0.05 * extent) for k in (1, 2)):
            return None
        cells.append(int(3 * v / extent))
    return PLACES[cells[0]][cells[1]]


def reference_names(scene):
    """(shape, name) for every shape that its name alone identifies."""
    names = []
    for s in scene.shapes:
        same = [o for o in scene.shapes if o.shape == s.shape]
        if len(same) == 1:
            names.append((s, s.shape))
        if sum(o.colour == s.colour for o in scene.shapes) == 1:
            names.append((s, f"{s.colour} shape"))
    return names


def describe(scene):
    parts = [f"a {s.size} {s.colour} {s.shape}" for s in scene.shapes]
    if scene.number:
        parts.append(f"the number {scene.number}")
    return ", ".join(parts)


def ask(scene, rng, kind):
    """(question, answer), or None if the scene does not allow a clear question of this kind."""
    text = rng.choice(WORDINGS[kind])
    shapes = scene.shapes
    if kind == "describe":
        return text, describe(scene)
    if kind == "number":
        return text, scene.number or "none"
    if kind == "count_all":
        return text, str(len(shapes))
    if kind == "count_shape":
        shape = rng.choice(shapes).shape if shapes and rng.random() < 0.7 else rng.choice(SHAPES)
        return text.format(PLURAL[shape]), str(sum(s.shape == shape for s in shapes))
    if kind == "count_colour":
        colour = rng.choice(shapes).colour if shapes and rng.random() < 0.7 else rng.choice(COLOURS)
        return text.format(colour), str(sum(s.colour == colour for s in shapes))
    if not shapes:
        return None
    if kind == "exists":
        s = rng.choice(shapes)
        colour, shape = s.colour, s.shape
        if rng.random() < 0.55:     # a near miss: one property is there, or both on different shapes
            how = rng.random()
            if how < 0.35:
                colour = rng.choice(COLOURS)
            elif how < 0.7:
                shape = rng.choice(SHAPES)
            else:
                colour = rng.choice(shapes).colour
        return text.format(article(colour), shape), "yes" if any(
            o.colour == colour and o.shape == shape for o in shapes) else "no"
    if kind == "shape":
        once = [s for s in shapes if sum(o.colour == s.colour for o in shapes) == 1]
        if not once:
            return None
        s = rng.choice(once)
        return text.format(s.colour), s.shape
    names = reference_names(scene)
    if kind == "colour":            # a name with the colour in it would give the answer away
        names = [n for n in names if " " not in n[1]]
    if not names:
        return None
    s, name = rng.choice(names)
    if kind == "colour":
        return text.format(name), s.colour
    if kind == "size":
        return text.format(name), s.size
    if kind == "position":
        cell = place(scene, s)
        return cell and (text.format(name), cell)
    clear, other = neighbour(scene, s, kind)
    if not clear or (other is None and rng.random() < 0.5):   # fewer "nothing" answers
        return None
    return text.format(name), f"{article(other.colour)} {other.shape}" if other else "nothing"


# ----------------------------------------------------------------------------
# 5. Tokenizer
# ----------------------------------------------------------------------------

LLAMA3_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def corpus(count=4000):
    """Text for the byte-pair merges.  Numbers are left out, so every digit stays a token of its own."""
    rng = random.Random(12345)
    for _ in range(count):
        scene = sample_scene(rng, tuple(rng.choice(RATIOS)))
        for kind in KINDS:
            pair = ask(scene, rng, kind)
            for text in pair or ():
                yield "".join(c for c in text if not c.isdigit())
        yield "user\n\n"
        yield "assistant\n\n"
        yield "system\n\n"


def build_tokenizer(out):
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    tok = Tokenizer(models.BPE(ignore_merges=True))
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=2000, min_frequency=2, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    names = list(SPECIALS)
    k = 2
    while (tok.get_vocab_size() + len(names)) % 32:          # a round vocabulary; the image token follows it
        names.append(f"<|reserved_special_token_{k}|>")
        k += 1
    tok.add_special_tokens([AddedToken(n, normalized=False, special=True) for n in names + ["<|image|>"]])
    bos = "<|begin_of_text|>"
    tok.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1",
                                      special_tokens=[(bos, tok.token_to_id(bos))])])
    out.mkdir(parents=True, exist_ok=True)
    tok.save(str(out / "tokenizer.json"))
    special = {n: tok.token_to_id(n) for n in names + ["<|image|>"]}
    write_json(out / "config.json", make_config(special["<|image|>"], special))
    write_json(out / "generation_config.json", {
        "bos_token_id": special[bos], "do_sample": False, "eos_token_id": eos_ids(special),
        "pad_token_id": special["<|finetune_right_pad_id|>"], "max_new_tokens": 64})
    write_json(out / "preprocessor_config.json", {
        "do_convert_rgb": True, "do_normalize": True, "do_pad": True, "do_rescale": True, "do_resize": True,
        "image_mean": MEAN, "image_processor_type": "MllamaImageProcessor", "image_std": STD,
        "max_image_tiles": MAX_TILES, "resample": 2, "rescale_factor": 1 / 255, "size": {"height": TILE, "width": TILE}})
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    write_json(out / "special_tokens_map.json", {
        "bos_token": {"content": bos, **plain}, "eos_token": {"content": "<|eot_id|>", **plain},
        "pad_token": {"content": "<|finetune_right_pad_id|>", **plain}})
    template = out / "chat_template.json"
    settings = {
        "added_tokens_decoder": {str(i): {"content": n, **plain, "special": True} for n, i in special.items()},
        "bos_token": bos, "eos_token": "<|eot_id|>", "pad_token": "<|finetune_right_pad_id|>",
        "clean_up_tokenization_spaces": False, "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 16384, "tokenizer_class": "PreTrainedTokenizerFast"}
    if template.exists():
        settings["chat_template"] = json.loads(template.read_text())["chat_template"]
    write_json(out / "tokenizer_config.json", settings)
    return tok


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load_tokenizer(path):
    from tokenizers import Tokenizer
    return Tokenizer.from_file(str(path / "tokenizer.json"))


PREFIX = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<|image|>"
MIDDLE = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"


class Encoder:
    """Text -> ids with a cache, because the same few questions come up again and again."""

    def __init__(self, tok):
        self.tok, self.cache = tok, {}
        self.prefix, self.middle, self.end = self(PREFIX), self(MIDDLE), self("<|eot_id|>")

    def __call__(self, text):
        ids = self.cache.get(text)
        if ids is None:
            ids = self.tok.encode(text, add_special_tokens=False).ids
            if len(self.cache) < 100_000:
                self.cache[text] = ids
        return ids


# ----------------------------------------------------------------------------
# 6. The network.  Attribute names give the tensor names of the hub's checkpoints.
# ----------------------------------------------------------------------------

def param(*shape, value=0.0):
    return nn.Parameter(torch.full(shape, float(value)))


def linear(n_in, n_out, bias=False, gain=1.0):
    layer = nn.Linear(n_in, n_out, bias=bias)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(n_in))
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def holder(**children):
    """A module that only groups others under a name."""
    module = nn.Module()
    for name, child in children.items():
        setattr(module, name, child)
    return module


def attend(q, k, v, bias=None):
    """Softmax attention spelled out: on a CPU its backward pass in bf16 is much faster than the fused kernel's."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    return scores.softmax(-1).to(v.dtype) @ v


class VisionAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (linear(width, width) for _ in range(3))
        self.o_proj = linear(width, width, gain=0.5)

    def forward(self, x, bias):
        b, n, width = x.shape
        w = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        q, k, v = F.linear(x, w).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = attend(q, k, v, bias)
        return self.o_proj(y.transpose(1, 2).reshape(b, n, width))


class VisionLayer(nn.Module):
    def __init__(self, width, heads, inner, eps, gated):
        super().__init__()
        self.self_attn = VisionAttention(width, heads)
        self.mlp = holder(fc1=linear(width, inner, True), fc2=linear(inner, width, True, gain=0.5))
        self.input_layernorm = nn.LayerNorm(width, eps)
        self.post_attention_layernorm = nn.LayerNorm(width, eps)
        self.gated = gated
        if gated:
            self.gate_attn, self.gate_ffn = param(1, value=1.0), param(1, value=1.0)

    def forward(self, x, bias):
        y = self.self_attn(self.input_layernorm(x), bias)
        x = x + (self.gate_attn.tanh() * y if self.gated else y)
        y = self.mlp.fc2(F.gelu(self.mlp.fc1(self.post_attention_layernorm(x))))
        return x + (self.gate_ffn.tanh() * y if self.gated else y)


class GatedTable(nn.Module):
    """Embedding per aspect ratio, viewed [tiles, ...], with a tanh gate."""

    def __init__(self, rows, width, gate):
        super().__init__()
        self.embedding = nn.Embedding(rows, width)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.gate = param(1, value=gate)


class Vision(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        width, self.tiles = cfg["hidden_size"], cfg["max_num_tiles"]
        self.patch, self.taps = cfg["patch_size"], cfg["intermediate_layers_indices"]
        self.ratios = cfg["supported_aspect_ratios"]
        rows, self.count = len(self.ratios) + 1, (cfg["image_size"] // cfg["patch_size"]) ** 2 + 1
        self.filler = -self.count % 8            # the reference pads every tile to a multiple of 8 tokens
        self.class_embedding = nn.Parameter(torch.randn(width) * 0.3)
        self.patch_embedding = holder(weight=nn.Parameter(
            0.4 * torch.randn(width, 3, self.patch, self.patch) / math.sqrt(3 * self.patch ** 2)))
        self.gated_positional_embedding = nn.Module()
        self.gated_positional_embedding.gate = param(1, value=0.5)
        self.gated_positional_embedding.embedding = nn.Parameter(torch.randn(self.count, width) * 0.3)
        self.gated_positional_embedding.tile_embedding = nn.Embedding(rows, self.tiles * self.count * width)
        self.gated_positional_embedding.tile_embedding.weight.data.copy_(self.places(width, rows))
        self.pre_tile_positional_embedding = GatedTable(rows, self.tiles * width, 1.0)
        self.post_tile_positional_embedding = GatedTable(rows, self.tiles * width, 1.0)
        self.layernorm_pre, self.layernorm_post = nn.LayerNorm(width), nn.LayerNorm(width)
        args = (width, cfg["attention_heads"], cfg["intermediate_size"], cfg["norm_eps"])
        self.transformer = holder(layers=nn.ModuleList(
            VisionLayer(*args, gated=False) for _ in range(cfg["num_hidden_layers"])))
        self.global_transformer = holder(layers=nn.ModuleList(
            VisionLayer(*args, gated=True) for _ in range(cfg["num_global_layers"])))

    def places(self, width, rows):
        """Start of the tile embedding: sines of the place on the whole canvas, strong enough to stand beside the
        picture content.  Learning places from small random numbers takes most of the training time instead."""
        g = math.isqrt(self.count - 1)
        period = torch.logspace(math.log10(4), math.log10(128), width // 4)
        table = torch.zeros(rows, self.tiles, self.count, width)

        def waves(v):
            angle = 2 * math.pi * torch.as_tensor(v, dtype=torch.float32)[:, None] / period
            return torch.cat([angle.sin(), angle.cos()], -1)

        for i, (a, b) in enumerate(self.ratios):
            for t in range(a * b):
                y, x = (t // b) * g, (t % b) * g
                centre = [(y + g / 2, x + g / 2)]       # the class token
                spots = centre + [(y + r + 0.5, x + c + 0.5) for r in range(g) for c in range(g)]
                table[i + 1, t] = torch.cat([waves([s[0] for s in spots]), waves([s[1] for s in spots])], -1)
        return 2.2 * table.view(rows, -1)

    def clear_unused(self):
        """Zero the tile embeddings that an aspect ratio does not use, as in the released weights.

        All unused tiles are then equal, and one of them can stand for all (see forward)."""
        with torch.no_grad():
            for table in (self.gated_positional_embedding.tile_embedding,
                          self.pre_tile_positional_embedding.embedding,
                          self.post_tile_positional_embedding.embedding):
                slots = table.weight.view(len(self.ratios) + 1, self.tiles, -1)
                slots[0] = 0
                for i, (a, b) in enumerate(self.ratios):
                    slots[i + 1, a * b:] = 0

    def bias(self, n, fill_keys):
        """Additive attention bias of the shortened sequence
        [tokens of n used tiles | one unused tile | representatives of the filler tokens].

        Equal keys are kept once, with log(multiplicity) added to their score: the same softmax for a
        fraction of the work.  Padding (unused tile or filler) does not attend to padding."""
        unused = self.tiles - n
        keys = [0.0] * (n * self.count) + ([math.log(unused)] * self.count if unused else [])
        keys += [math.log(m) for m in fill_keys]
        bias = torch.tensor(keys).repeat(len(keys), 1)
        bias[n * self.count:, n * self.count:] = -1e9
        return bias

    def forward(self, pixels, ratio_id):
        """pixels [b, n, 3, s, s] of the used tiles only, one aspect ratio per batch -> [b, n*count, width*(1+taps)]"""
        b, n, _, s, _ = pixels.shape
        p, count, unused = self.patch, self.count, self.tiles - n
        width, g = self.class_embedding.shape[0], s // p
        x = pixels.view(b, n, 3, g, p, g, p).permute(0, 1, 3, 5, 2, 4, 6).reshape(b, n, g * g, 3 * p * p)
        x = F.linear(x, self.patch_embedding.weight.view(width, -1))
        table = self.pre_tile_positional_embedding
        x = x + table.gate.tanh() * table.embedding.weight[ratio_id].view(self.tiles, 1, width)[:n]
        x = torch.cat([self.class_embedding.to(x.dtype).expand(b, n, 1, width), x], 2)
        pos = self.gated_positional_embedding
        gate = pos.gate.tanh()
        x = x + (1 - gate) * pos.embedding + gate * pos.tile_embedding.weight[ratio_id].view(self.tiles, count, width)[:n]
        parts = [self.layernorm_pre(x).view(b, n * count, width)]
        if unused:      # pixels and tile embeddings are zero there, only class token and position remain
            zero = torch.cat([self.class_embedding.view(1, width), torch.zeros(count - 1, width)])
            parts.append(self.layernorm_pre(zero + (1 - gate) * pos.embedding).expand(b, count, width))
        parts.append(torch.zeros(b, 1, width))      # filler tokens start as zeros: one for all tiles
        x = torch.cat(parts, 1)

        seen = []
        bias = self.bias(n, [self.filler * self.tiles])
        for i, layer in enumerate(self.transformer.layers):
            if i in self.taps:
                seen.append(x[:, :n * count])        # the state that enters layer i
            x = layer(x, bias)

        x = self.layernorm_post(x)
        table = self.post_tile_positional_embedding
        post = table.gate.tanh() * table.embedding.weight[ratio_id].view(self.tiles, 1, width)[:n]
        used = (x[:, :n * count].view(b, n, count, width) + post).view(b, n * count, width)
        fill = x[:, -1:]
        parts = [used, x[:, n * count:-1], fill + post.view(1, n, width)] + ([fill] if unused else [])
        x = torch.cat(parts, 1)
        bias = self.bias(n, [self.filler] * n + ([self.filler * unused] if unused else []))
        for layer in self.global_transformer.layers:
            x = layer(x, bias)
        x = x[:, :n * count]
        return torch.cat([x, torch.stack(seen, -1).flatten(-2)], -1)


class RMSNorm(nn.Module):
    def __init__(self, width, eps, value=1.0):
        super().__init__()
        self.weight, self.eps = param(width, value=value), eps

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return y.to(x.dtype) * self.weight


def rope_tables(cfg, length):
    dim = cfg["hidden_size"] // cfg["num_attention_heads"]
    s = cfg["rope_scaling"]
    inv = 1.0 / cfg["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    wave = 2 * math.pi / inv
    old = s["original_max_position_embeddings"]
    t = (old / wave - s["low_freq_factor"]) / (s["high_freq_factor"] - s["low_freq_factor"])
    mixed = inv * ((1 - t) / s["factor"] + t)
    inv = torch.where(wave > old / s["low_freq_factor"], inv / s["factor"],
                      torch.where(wave < old / s["high_freq_factor"], inv, mixed))
    angle = torch.arange(length).float()[:, None] * inv
    return torch.cat([angle.cos(), angle.cos()], -1), torch.cat([angle.sin(), angle.sin()], -1)


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class TextAttention(nn.Module):
    def __init__(self, cfg, cross):
        super().__init__()
        width = cfg["hidden_size"]
        self.heads, self.kv = cfg["num_attention_heads"], cfg["num_key_value_heads"]
        dim = width // self.heads
        self.q_proj, self.o_proj = linear(width, width), linear(width, width, gain=0.5)
        self.k_proj, self.v_proj = linear(width, self.kv * dim), linear(width, self.kv * dim)
        self.cross = cross
        if cross:       # unit-norm queries and keys need some extra scale to point at single patches
            self.q_norm = RMSNorm(dim, cfg["rms_norm_eps"], 1.4)
            self.k_norm = RMSNorm(dim, cfg["rms_norm_eps"], 1.4)

    def forward(self, x, source, rope, mask):
        b, t, width = x.shape
        m = source.shape[1]
        q = self.q_proj(x).view(b, t, self.heads, -1)
        kv = F.linear(source, torch.cat([self.k_proj.weight, self.v_proj.weight]))
        k, v = kv.view(b, m, 2, self.kv, -1).unbind(2)
        if self.cross:
            q, k = self.q_norm(q), self.k_norm(k)
            if self.training:       # for the pointing loss
                self.kept = q, k
        else:
            q, k = rotate(q, *rope), rotate(k, *rope)
        repeat = self.heads // self.kv
        q = q.transpose(1, 2).to(v.dtype)
        k = k.to(v.dtype).transpose(1, 2).repeat_interleave(repeat, 1)
        v = v.transpose(1, 2).repeat_interleave(repeat, 1)
        y = attend(q, k, v, mask)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, width))


class TextLayer(nn.Module):
    def __init__(self, cfg, cross):
        super().__init__()
        width, inner = cfg["hidden_size"], cfg["intermediate_size"]
        self.cross = cross
        if cross:
            self.cross_attn = TextAttention(cfg, True)
            self.cross_attn_attn_gate, self.cross_attn_mlp_gate = param(1, value=1.0), param(1, value=1.0)
        else:
            self.self_attn = TextAttention(cfg, False)
        self.mlp = holder(gate_proj=linear(width, inner), up_proj=linear(width, inner),
                          down_proj=linear(inner, width, gain=0.5))
        self.input_layernorm = RMSNorm(width, cfg["rms_norm_eps"])
        self.post_attention_layernorm = RMSNorm(width, cfg["rms_norm_eps"])

    def feed(self, x):
        x = self.post_attention_layernorm(x)
        gate, up = F.linear(x, torch.cat([self.mlp.gate_proj.weight, self.mlp.up_proj.weight])).chunk(2, -1)
        return self.mlp.down_proj(F.silu(gate) * up)

    def forward(self, x, vision, rope, mask, keep):
        h = self.input_layernorm(x)
        if not self.cross:
            x = x + self.self_attn(h, h, rope, mask)
            return x + self.feed(x)
        # Rows before the image token see no image; the layer leaves them as they are.
        x = x + self.cross_attn_attn_gate.tanh() * keep * self.cross_attn(h, vision, None, None)
        return x + self.cross_attn_mlp_gate.tanh() * keep * self.feed(x)


class Mllama(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg, text = cfg, cfg["text_config"]
        width, vocab = text["hidden_size"], text["vocab_size"]
        embed = nn.Embedding(vocab + 8, width)
        nn.init.normal_(embed.weight, std=0.3)
        self.language_model = holder(
            model=holder(embed_tokens=embed, norm=RMSNorm(width, text["rms_norm_eps"]), layers=nn.ModuleList(
                TextLayer(text, i in text["cross_attention_layers"]) for i in range(text["num_hidden_layers"]))),
            lm_head=linear(width, vocab, gain=0.3))
        self.multi_modal_projector = linear(cfg["vision_config"]["vision_output_dim"], width, True)
        self.vision_model = Vision(cfg["vision_config"])
        self.vision_model.clear_unused()
        self.rope = rope_tables(text, 256)

    def encode(self, pixels, ratio_id):
        """Projected vision tokens, and the raw ones for the training-only heads."""
        raw = self.vision_model(pixels, ratio_id)
        return self.multi_modal_projector(raw), raw

    def hidden(self, ids, positions, mask, keep, vision):
        x = self.language_model.model.embed_tokens(ids)
        rope = tuple(t[positions].unsqueeze(-2) for t in self.rope)
        for layer in self.language_model.model.layers:
            x = layer(x, vision, rope, mask, keep)
        return self.language_model.model.norm(x)

    def logits(self, ids, vision):
        """Plain causal pass over right-padded prompts with one image each."""
        b, t = ids.shape
        mask = torch.full((t, t), -1e9).triu(1)
        keep = (ids == self.cfg["image_token_index"]).cumsum(1).clamp(max=1).unsqueeze(-1).float()
        return self.language_model.lm_head(
            self.hidden(ids, torch.arange(t).expand(b, t), mask, keep, vision))


# ----------------------------------------------------------------------------
# 7. Training data: batches of one aspect ratio, many questions per image
# ----------------------------------------------------------------------------

TEXT_LEN = 144      # tokens per image: a shared prefix, then as many question/answer pairs as fit
KIND_WEIGHTS = {"count_all": 0.8, "count_shape": 3, "count_colour": 0.5, "colour": 0.4, "shape": 0.4, "left": 1.4,
                "right": 1.4, "above": 3, "below": 2.4, "exists": 2, "size": 0.6, "position": 1}

# Training-only labels of every patch that lies on a shape or a digit.  They teach the vision layers what to look
# for long before the answers alone would.
HEADS = {"what": 2 + len(SHAPES), "colour": len(COLOURS), "size": 2, "rank_x": 5, "rank_y": 5, "place": 9,
         "digit": 10, "digit_left": 4, "digit_right": 4}
for _d in ("left", "right", "above", "below"):
    HEADS[f"{_d}_shape"], HEADS[f"{_d}_colour"] = len(SHAPES) + 1, len(COLOURS) + 1
HEAD_WEIGHTS = {"what": 5.0, "digit": 2.0, "size": 2.0}
COUNT_HEADS = ["all"] + SHAPES + COLOURS        # 0..5 of each, asked of every tile's class token
IGNORE = -100


def patch_labels(scene):
    """int [heads, n * patches] in the model's token order (tile by tile, row by row, without class tokens)."""
    a, b = scene.grid
    g = TILE // PATCH
    names = list(HEADS)
    grid = np.full((len(names), a * g, b * g), IGNORE, np.int64)
    grid[0] = 0

    def cover(x0, y0, x1, y1, labels):
        c0, c1 = math.ceil(x0 / PATCH - 0.5), math.floor(x1 / PATCH - 0.5) + 1
        r0, r1 = math.ceil(y0 / PATCH - 0.5), math.floor(y1 / PATCH - 0.5) + 1
        for name, value in labels.items():
            grid[names.index(name), max(r0, 0):r1, max(c0, 0):c1] = value

    by_y = sorted(scene.shapes, key=lambda s: s.y)
    for i, s in enumerate(scene.shapes):
        labels = {"what": 1 + SHAPES.index(s.shape), "colour": COLOURS.index(s.colour), "size": SIZES.index(s.size),
                  "rank_x": i, "rank_y": by_y.index(s)}
        cell = place(scene, s)
        if cell:
            labels["place"] = [c for row in PLACES for c in row].index(cell)
        for d in ("left", "right", "above", "below"):
            clear, other = neighbour(scene, s, d)
            if clear:
                labels[f"{d}_shape"] = SHAPES.index(other.shape) if other else len(SHAPES)
                labels[f"{d}_colour"] = COLOURS.index(other.colour) if other else len(COLOURS)
        cover(s.x - s.d / 2, s.y - s.d / 2, s.x + s.d / 2, s.y + s.d / 2, labels)
    for k, digit in enumerate(scene.number):
        x, y = scene.number_xy[0] + k * DIGIT_W - DOT / 2, scene.number_xy[1]
        cover(x, y, x + DIGIT_W - 0.01, y + DIGIT_H, {
            "what": 1 + len(SHAPES), "digit": int(digit), "digit_left": k, "digit_right": len(scene.number) - 1 - k})
    return grid.reshape(len(names), a, g, b, g).transpose(0, 1, 3, 2, 4).reshape(len(names), -1)


def count_labels(scene):
    values = [len(scene.shapes)] + [sum(s.shape == n for s in scene.shapes) for n in SHAPES]
    return values + [sum(s.colour == n for s in scene.shapes) for n in COLOURS]


def pack(scene, rng, enc):
    """One row: the prefix once, then questions with their answers.  Each question sees the prefix and itself only,
    so the result equals separate prompts at a fraction of the cost."""
    ids = list(enc.prefix)
    pos, seg = list(range(len(ids))), [0] * len(ids)
    target, weight = [IGNORE] * len(ids), [0.0] * len(ids)
    start, block = len(ids), 0

    def add(pair):
        nonlocal block
        question, answer = enc(pair[0]) + enc.middle, enc(pair[1]) + enc.end
        row = question + answer[:-1]
        if len(ids) + len(row) > TEXT_LEN:
            return False
        block += 1
        ids.extend(row)
        pos.extend(range(start, start + len(row)))
        seg.extend([block] * len(row))
        silent = len(question) - 1
        target.extend([IGNORE] * silent + answer)
        weight.extend([0.0] * silent + [1 / len(answer)] * len(answer))
        return True

    add(ask(scene, rng, "describe"))
    if scene.number or rng.random() < 0.25:
        add(ask(scene, rng, "number"))
    kinds, weights = list(KIND_WEIGHTS), list(KIND_WEIGHTS.values())
    misses, asked = 0, set()
    while misses < 6:
        pair = ask(scene, rng, rng.choices(kinds, weights)[0])
        if pair is None or pair in asked or not add(pair):
            misses += 1
        else:
            asked.add(pair)
    rest = TEXT_LEN - len(ids)
    return (ids + [0] * rest, pos + [0] * rest, seg + [-1] * rest, target + [IGNORE] * rest, weight + [0.0] * rest)


class Batches(torch.utils.data.IterableDataset):
    """Endless batches; fully determined by the seed and the curriculum level, which the main process sets."""

    def __init__(self, seed, out, level, batch, banned, record):
        self.seed, self.out, self.level, self.batch, self.banned, self.record = seed, out, level, batch, banned, record

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        torch.set_num_threads(1)
        rng = random.Random(f"train-{self.seed}-{worker.id if worker else 0}")
        enc = Encoder(load_tokenizer(self.out))
        record = open(self.record, "ab", buffering=0)     # hashes of all scenes drawn, for make_eval's check
        while True:
            level = self.level.value
            tiles = rng.choices([1, 2, 3, 4], [1.8 + 2 * (1 - level), 1.4, 0.7 * level, level])[0]
            grid = tuple(rng.choice([r for r in RATIOS if r[0] * r[1] == tiles]))
            scenes, rows, pixels, patches, counts, keys = [], [], [], [], [], []
            while len(rows) < self.batch:
                scene = sample_scene(rng, grid, level)
                key = scene.key()
                if key in self.banned:
                    continue
                keys.append(key[:16])
                scenes.append(scene)
                pixels.append(preprocess(draw(scene))[0])
                patches.append(patch_labels(scene))
                counts.append(count_labels(scene))
                rows.append(pack(scene, rng, enc))
            record.write(bytes.fromhex("".join(keys)))
            yield (RATIOS.index(list(grid)) + 1, torch.from_numpy(np.stack(pixels)),
                   torch.from_numpy(np.stack(patches, 1)), torch.tensor(counts),
                   *(torch.tensor(c) for c in zip(*rows)), scenes)


def word_table(enc, vocab):
    """Token id -> 1 + index of the shape or colour it names, 0 for all other tokens."""
    table = torch.zeros(vocab + 8, dtype=torch.long)
    for i, words in enumerate([(s, PLURAL[s]) for s in SHAPES] + [(c,) for c in COLOURS]):
        for word in words:
            token, = enc(" " + word)
            table[token] = 1 + i
    return table


def pointing_loss(attentions, words, seg, target, patches, tokens):
    """Training-only: tell half of the cross-attention heads where to look.

    In the first cross-attention layer a shape or colour word of a question looks at the patches of such shapes.  In
    the second one the last token of the prompt looks at what fits all the words of its question, or at the class
    tokens if nothing does.  Finding these look-ups by the answers alone takes very long."""
    labels = dict(zip(HEADS, patches))
    shape, colour, count = labels["what"] - 1, labels["colour"], len(SHAPES)

    def look(attention, row, at, match):
        q, k = attention.kept
        q = q[row, at, :attention.heads // 2].float()
        k = k[:, :, :attention.kv // 2].float().repeat_interleave(attention.heads // attention.kv, 2)[row]
        scores = torch.einsum("nhd,nmhd->nhm", q, k) * q.shape[-1] ** -0.5
        inside = scores.masked_fill(~match[:, None], -1e9).logsumexp(-1)
        return (scores.logsumexp(-1) - inside).mean()

    def with_class(match, value):
        """Add the class token of every tile; without a patch that matches, `value` marks it."""
        match = match.view(len(match), -1, tokens - 1)
        first = (value & ~match.flatten(1).any(1))[:, None, None].expand(-1, match.shape[1], 1)
        return torch.cat([first, match], 2).flatten(1)

    row, at = words.nonzero(as_tuple=True)
    word = words[row, at] - 1
    match = torch.where((word < count)[:, None], shape[row] == word[:, None], colour[row] == (word - count)[:, None])
    some = match.any(1)
    loss = look(attentions[0], row[some], at[some], with_class(match[some], torch.tensor(False)))

    named = torch.full((2, words.shape[0], int(seg.max()) + 2), -1)      # shape and colour of every question
    is_shape = word < count
    named[0].index_put_((row[is_shape], seg[row, at][is_shape]), word[is_shape])
    named[1].index_put_((row[~is_shape], seg[row, at][~is_shape]), word[~is_shape] - count)
    first = (target != IGNORE) & (target.roll(1, 1) == IGNORE)
    row, at = first.nonzero(as_tuple=True)
    s, c = named[:, row, seg[row, at]].unsqueeze(-1)
    asked = ((s >= 0) | (c >= 0)).squeeze(1)
    match = ((s < 0) | (shape[row] == s)) & ((c < 0) | (colour[row] == c))
    return loss + look(attentions[1], row[asked], at[asked], with_class(match[asked], torch.tensor(True)))


class Helpers(nn.Module):
    """Training-only classifiers on the vision tower's final state; never exported."""

    def __init__(self, width):
        super().__init__()
        self.patch = linear(width, sum(HEADS.values()), True, gain=0.3)
        self.count = linear(width, 6 * len(COUNT_HEADS), True, gain=0.3)
        self.width = width

    def forward(self, raw, patches, counts, tokens):
        b = raw.shape[0]
        x = raw[..., :self.width].reshape(b, -1, tokens, self.width)
        out = self.patch(x[:, :, 1:].reshape(-1, self.width)).float()
        total, report, at = 0.0, {}, 0
        for labels, (name, classes) in zip(patches, HEADS.items()):
            labels = labels.reshape(-1)
            index = (labels != IGNORE).nonzero().squeeze(1)
            if len(index):
                # Most patches are empty; what lies on the others is the hard part.
                balance = torch.tensor([0.1] + [1.0] * (classes - 1)) if name == "what" else None
                loss = F.cross_entropy(out[index, at:at + classes], labels[index], weight=balance)
                total = total + loss * HEAD_WEIGHTS.get(name, 0.5)
                report[name] = loss.detach()
            at += classes
        count = self.count(x[:, :, 0]).float().view(b, -1, len(COUNT_HEADS), 6)
        goal = counts[:, None].expand(b, count.shape[1], len(COUNT_HEADS))
        loss = F.cross_entropy(count.reshape(-1, 6), goal.reshape(-1))
        report["count"] = loss.detach()
        return total + 2.0 * loss, report


# ----------------------------------------------------------------------------
# 8. Optimisation
# ----------------------------------------------------------------------------

class Muon:
    """Momentum with orthogonalised updates for the matrices of the layers.

    It needs far fewer steps than AdamW on them; embeddings, norms, gates and heads stay with AdamW."""

    def __init__(self, params, momentum=0.95, decay=0.02):
        self.groups = defaultdict(list)
        for p in params:
            self.groups[p.shape].append(p)
        self.state = {shape: torch.zeros(len(ps), *shape) for shape, ps in self.groups.items()}
        self.momentum, self.decay = momentum, decay

    @torch.no_grad()
    def step(self, lr):
        for shape, params in self.groups.items():
            grad = torch.stack([p.grad for p in params])
            buf = self.state[shape]
            buf.lerp_(grad, 1 - self.momentum)
            u = orthogonalise(grad.lerp(buf, self.momentum))
            u *= lr * 0.2 * math.sqrt(max(shape))       # about the update size of Adam
            for p, d in zip(params, u):
                p.mul_(1 - lr * self.decay).sub_(d)


def orthogonalise(g):
    """Push the singular values of each matrix towards 1 (Newton-Schulz iteration on an odd quintic)."""
    tall = g.shape[1] > g.shape[2]
    x = g.transpose(1, 2) if tall else g
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()     # rough is good enough here
    for _ in range(5):
        a = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.transpose(1, 2) if tall else x).float()


def is_layer_matrix(name, p):
    return p.ndim == 2 and ("layers." in name or name.startswith("multi_modal_projector"))


def schedule(progress, warm=0.02):
    """Warm-up, then cosine to (almost) nothing."""
    if progress < warm:
        return progress / warm + 1e-3
    t = (progress - warm) / (1 - warm)
    return 0.5 * (1 + math.cos(math.pi * min(t, 1))) * 0.99 + 0.01


def train(args):
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    out = args.model
    if not (out / "tokenizer.json").exists():
        build_tokenizer(out)
    cfg = json.loads((out / "config.json").read_text())
    banned = {scene.key() for scene, *_ in eval_rows(args.eval_rows)}
    model, heads = Mllama(cfg), Helpers(cfg["vision_config"]["hidden_size"])
    log(f"{sum(p.numel() for p in model.parameters())} parameters, vocabulary {cfg['text_config']['vocab_size']}")
    named = list(model.named_parameters())
    muon = {tower: Muon([p for n, p in named if is_layer_matrix(n, p) and n.startswith("vision") == (tower == "vision")])
            for tower in ("vision", "text")}
    rest = [p for n, p in named if not is_layer_matrix(n, p)] + list(heads.parameters())
    # Gates move slowly: otherwise they close while the layers behind them are still random.
    gates = [p for n, p in named if p.numel() == 1]
    adam = torch.optim.AdamW([{"params": [p for p in rest if p.numel() > 1], "scale": 1.0},
                              {"params": gates, "scale": 0.2}], lr=0, betas=(0.9, 0.98), weight_decay=0.0)
    ema = {n: p.detach().clone() for n, p in named}
    start_step, spent = 0, 0.0
    args.state.parent.mkdir(parents=True, exist_ok=True)
    if args.resume and args.state.exists():
        state = torch.load(args.state)
        model.load_state_dict(state["model"]), heads.load_state_dict(state["heads"])
        ema, start_step, spent = state["ema"], state["step"], state["spent"]
        if args.from_average:
            model.load_state_dict(ema)
        else:
            adam.load_state_dict(state["adam"])
            for tower in muon:
                muon[tower].state = state["muon"][tower]

    import multiprocessing
    level = multiprocessing.Value("d", 0.0)
    data = iter(torch.utils.data.DataLoader(
        Batches(f"{args.seed}-{start_step}", out, level, args.batch, banned, args.state.with_name("scenes.bin")),
        batch_size=None, num_workers=1, prefetch_factor=6))
    tokens = model.vision_model.count
    enc = Encoder(load_tokenizer(out))
    words = word_table(enc, cfg["text_config"]["vocab_size"])
    crossing = [model.language_model.model.layers[i].cross_attn for i in cfg["text_config"]["cross_attention_layers"]]

    def loss_of(batch, aux_weight, look):
        ratio_id, pixels, patches, counts, ids, pos, seg, target, weight, scenes = batch
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            if look:
                raw = model.vision_model(normalise(pixels), ratio_id)
                pool.append((ratio_id, raw.detach(), patches, counts, scenes))
            else:
                raw = pixels
            vision = model.multi_modal_projector(raw)
            t = ids.shape[1]
            open_ = (seg[:, None] == 0) | (seg[:, None] == seg[:, :, None])
            open_ &= torch.ones(t, t, dtype=torch.bool).tril()
            mask = torch.zeros(open_.shape).masked_fill(~open_, -1e9)[:, None]
            if args.bf16:
                mask = mask.bfloat16()
            keep = (pos >= pos.new_tensor(model.prefix_image)).float()[..., None]
            x = model.hidden(ids, pos, mask, keep, vision)
            chosen = (target != IGNORE).nonzero(as_tuple=True)
            logits = model.language_model.lm_head(x[chosen]).float()
            aux, report = heads(raw, patches, counts, tokens) if look else (0.0, {})
            asked_words = words[ids] * ((target == IGNORE) & (seg > 0))
            point = pointing_loss(crossing, asked_words, seg, target, patches, tokens)
        report["point"] = point.detach()
        goal, w = target[chosen], weight[chosen]
        each = F.cross_entropy(logits, goal, reduction="none")
        loss = (each * w).sum() / w.sum()
        report["lm"] = loss.detach()
        report["hit"] = (logits.argmax(-1) == goal).float().mean()
        # A question counts as answered if all its tokens are right (that is what greedy decoding needs).
        wrong = torch.zeros(ids.shape[0], int(seg.max()) + 1)
        wrong.index_put_((chosen[0], seg[chosen]), (logits.argmax(-1) != goal).float(), accumulate=True)
        asked = torch.zeros_like(wrong).index_put_((chosen[0], seg[chosen]), torch.ones(len(goal)))
        report["exact"] = ((wrong == 0) & (asked > 0)).sum() / asked.sum()
        return loss + 0.3 * point + aux_weight * aux, report

    model.prefix_image = len(enc.prefix) - 1
    began, step = time.time() - spent, start_step
    pool, rng = deque(maxlen=100), random.Random(f"pool-{args.seed}")
    saved, shown, sums, seen = time.time(), time.time(), defaultdict(float), 0
    while True:
        spent = time.time() - began
        progress = step / args.steps if args.steps else spent / (60 * args.minutes)
        if progress >= 1 or (args.stop_after and step >= args.stop_after):
            break
        level.value = min(1.0, progress / args.curriculum)
        rate = schedule(progress)
        for group in adam.param_groups:
            group["lr"] = args.adam_lr * rate * group["scale"]
        # The auxiliary tasks lead at first and step back as the answers take over.
        look = step % args.vision_every == 0 or len(pool) < args.vision_every
        if look:
            batch = next(data)
        else:       # new questions about pictures that were encoded a moment ago
            *entry, scenes = rng.choice(pool)
            batch = (*entry, *(torch.tensor(c) for c in zip(*(pack(s, rng, enc) for s in scenes))), scenes)
        loss, report = loss_of(batch, 0.2 * (1 - progress) + 0.02, look)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(rest, 1.0)
        if look:
            muon["vision"].step(args.muon_lr * args.vision_scale * rate)
        muon["text"].step(args.muon_lr * rate)
        adam.step()
        model.vision_model.clear_unused()
        for p in model.parameters():
            p.grad = None
        for p in heads.parameters():
            p.grad = None
        step += 1
        keep = min(0.998, (step + 1) / (step + 20))
        torch._foreach_lerp_(list(ema.values()), [p.detach() for _, p in named], 1 - keep)
        for k, v in report.items():
            sums[k] += float(v)
            sums["#" + k] += 1
        seen += 1
        if time.time() - shown > args.log_every:
            text = " ".join(f"{k} {sums[k] / sums['#' + k]:.3f}" for k in sums
                            if k in ("lm", "hit", "exact", "what", "digit", "size", "count", "place", "left_shape", "point"))
            log(f"step {step} progress {progress:.3f} level {level.value:.2f} "
                f"{(time.time() - shown) / seen * 1000:.0f} ms/step  {text}")
            shown, sums, seen = time.time(), defaultdict(float), 0
        if time.time() - saved > args.save_every:
            save_state(args, model, heads, adam, muon, ema, step, time.time() - began)
            saved = time.time()
    save_state(args, model, heads, adam, muon, ema, step, time.time() - began)
    log(f"done: {step} steps, {step * args.batch} images, {(time.time() - began) / 60:.1f} minutes")


def save_state(args, model, heads, adam, muon, ema, step, spent):
    part = args.state.with_suffix(".part")
    torch.save({"model": model.state_dict(), "heads": heads.state_dict(), "adam": adam.state_dict(),
                "muon": {t: m.state for t, m in muon.items()}, "ema": ema, "step": step, "spent": spent}, part)
    os.replace(part, args.state)
    export(ema, args.model)
    log(f"saved at step {step}")


def export(weights, out):
    """Rounded to bf16; replaced in one move, so a reader never sees half a file."""
    part = out / "model.safetensors.part"
    save_file({k: v.to(torch.bfloat16).contiguous() for k, v in weights.items()}, part, metadata={"format": "pt"})
    os.replace(part, out / "model.safetensors")


def log(text):
    print(time.strftime("%H:%M:%S"), text, flush=True)


# ----------------------------------------------------------------------------
# 9. Evaluation
# ----------------------------------------------------------------------------

EVAL_GRIDS = [(1, 1), (1, 1), (1, 1), (1, 2), (1, 2), (2, 1), (2, 1), (2, 2), (1, 3), (3, 1), (2, 2), (1, 4), (4, 1)]


def eval_rows(per_kind, trained=frozenset()):
    """Held-out (scene, question, answer, kind); the generator's seed space is apart from training's.

    `trained` holds the hashes of scenes that a training run has drawn: those are passed over as well."""
    rng = random.Random("evaluation-1")
    rows, used = [], set()
    for kind in KINDS:
        made = 0
        while made < per_kind:
            scene = sample_scene(rng, EVAL_GRIDS[len(rows) % len(EVAL_GRIDS)])
            if kind == "number" and not scene.number and rng.random() < 0.9:
                continue
            pair = ask(scene, rng, kind)
            if pair is None or (pair[1] == "nothing" and rng.random() < 0.3) or scene.key() in used:
                continue
            if scene.key()[:16] in trained:
                continue
            used.add(scene.key())
            rows.append((scene, *pair, kind))
            made += 1
    return rows


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def load_model(path):
    model = Mllama(json.loads((path / "config.json").read_text()))
    weights = {}
    for file in sorted(path.glob("*.safetensors")):
        weights.update(load_file(file))
    missing, extra = model.load_state_dict({k: v.float() for k, v in weights.items()}, strict=True)
    assert not missing and not extra
    return model.eval()


@torch.no_grad()
def answer(model, tok, rows, blank=False, limit=64):
    """Greedy answers for [(image, question)], one batch per aspect ratio."""
    enc, eos = Encoder(tok), set(model.cfg["text_config"]["eos_token_id"])
    prepared = defaultdict(list)
    for i, (image, question) in enumerate(rows):
        tiles, grid = preprocess(image)
        if blank:       # same size, nothing to see
            tiles, grid = preprocess(Image.new("RGB", image.size, (240, 240, 240)))
        prepared[grid].append((i, tiles, enc.prefix + enc(question) + enc.middle))
    texts = [""] * len(rows)
    for grid, group in prepared.items():
        for at in range(0, len(group), 32):
            part = group[at:at + 32]
            pixels = normalise(torch.from_numpy(np.stack([t for _, t, _ in part])))
            vision, _ = model.encode(pixels, RATIOS.index(list(grid)) + 1)
            ids = [list(p) for *_, p in part]
            lengths, active = [len(p) for p in ids], list(range(len(ids)))
            for _ in range(limit):
                width = max(len(ids[k]) for k in active)
                batch = torch.tensor([ids[k] + [0] * (width - len(ids[k])) for k in active])
                logits = model.logits(batch, vision[active])
                for row, k in zip(logits, list(active)):
                    token = int(row[len(ids[k]) - 1].argmax())
                    if token in eos:
                        active.remove(k)
                    else:
                        ids[k].append(token)
                if not active:
                    break
            for (i, *_), p, n in zip(part, ids, lengths):
                texts[i] = tok.decode(p[n:], skip_special_tokens=False)
    return texts


def read_image(row, base):
    source = row["image"]
    if source.startswith("data:"):
        return Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))).convert("RGB")
    return Image.open(base / source).convert("RGB")


def evaluate(args):
    torch.set_num_threads(args.threads)
    model, tok = load_model(args.model), load_tokenizer(args.model)
    rows = [json.loads(line) for line in args.eval_file.read_text().splitlines()]
    texts = answer(model, tok, [(read_image(r, args.eval_file.parent), r["instruction"]) for r in rows], args.blank)
    for key in ("kind", "tiles", "resize"):
        tally = defaultdict(lambda: [0, 0])
        for row, text in zip(rows, texts):
            if key in row:
                tally[row[key]][0] += text == row["answer"]
                tally[row[key]][1] += 1
        for name, (right, total) in tally.items():
            print(f"{key:8} {name!s:14} {right:4}/{total:<4} {100 * right / total:6.1f} %")
    right = sum(t == r["answer"] for r, t in zip(rows, texts))
    print(f"total {right}/{len(rows)} = {100 * right / len(rows):.2f} %" + (" with blank images" if args.blank else ""))
    if not args.blank:
        same = sum(t == r["reference"] for r, t in zip(rows, texts) if "reference" in r)
        print(f"same as the stored reference answers: {same}")
    if args.show_wrong:
        for r, t in zip(rows, texts):
            if t != r["answer"]:
                print(f"{r['kind']:12} {r['tiles']} {r['resize']:8} {r['instruction']!r} want {r['answer']!r} got {t!r}")


def make_eval(args):
    """eval.jsonl, with the answers of this script's own network beside the true ones."""
    torch.set_num_threads(args.threads)
    model, tok = load_model(args.model), load_tokenizer(args.model)
    record = args.state.with_name("scenes.bin")
    data = record.read_bytes() if record.exists() else b""
    trained = {data[i:i + 8].hex() for i in range(0, len(data), 8)}
    log(f"{len(trained)} recorded training scenes")
    rows = eval_rows(args.eval_rows, trained)
    images = [draw(scene) for scene, *_ in rows]
    texts = answer(model, tok, [(image, question) for image, (_, question, *_) in zip(images, rows)])
    with open(args.eval_file, "w", encoding="utf-8") as f:
        for (scene, question, truth, kind), image, text in zip(rows, images, texts):
            f.write(json.dumps({
                "instruction": question, "image": "data:image/png;base64," + base64.b64encode(png(image)).decode(),
                "answer": truth, "kind": kind, "reference": text, "tiles": f"{scene.grid[0]}x{scene.grid[1]}",
                "resize": scene.mode, "scene": scene.key()[:16]}) + "\n")
    log(f"{len(rows)} rows, {sum(t == r[2] for r, t in zip(rows, texts))} right")


SAMPLES = [     # file name, tiles, file size (width, height), kinds of questions
    ("square", (1, 1), (64, 64), ["describe", "count_all"]),
    ("small", (1, 1), (48, 46), ["colour"]),
    ("wide", (1, 2), (256, 128), ["left", "exists"]),
    ("tall", (2, 1), (128, 256), ["number", "above"]),
    ("big", (2, 2), (320, 320), ["describe", "position"]),
    ("banner", (1, 3), (384, 128), ["count_shape", "size"]),
    ("column", (3, 1), (64, 192), ["shape"]),
    ("ribbon", (1, 4), (512, 128), ["right", "number"]),
]


def make_samples(args):
    """A few pictures for demonstrations.  Scenes are drawn until the model answers all their questions right."""
    torch.set_num_threads(args.threads)
    model, tok = load_model(args.model), load_tokenizer(args.model)
    rng, lines = random.Random("samples-1"), []
    folder = args.model / "samples"
    folder.mkdir(exist_ok=True)
    for name, grid, (w, h), kinds in SAMPLES:
        assert choose_canvas(h, w) == grid
        while True:
            scene = sample_scene(rng, grid, size=(h, w))
            pairs = [ask(scene, rng, kind) for kind in kinds]
            if None in pairs or len(scene.shapes) < (2 if grid == (1, 1) else 3) or ("number" in kinds) != bool(scene.number):
                continue
            if any(a in ("nothing", "0") for _, a in pairs):
                continue
            image = draw(scene)
            if answer(model, tok, [(image, q) for q, _ in pairs]) == [a for _, a in pairs]:
                break
        (folder / f"{name}.png").write_bytes(png(image))
        lines += [json.dumps({"instruction": q, "image": f"{name}.png"}) + "\n" for q, _ in pairs]
        log(f"{name} {pairs}")
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")


def check_golden(model_dir, goldens, inputs):
    """Compare with stored logits of the reference implementation (single-image cases)."""
    model = load_model(model_dir)
    cfg = model.cfg
    for file in sorted(goldens.glob("*.safetensors")):
        data = {**load_file(inputs / file.name), **load_file(file)}
        key = next((k for k in ("last_logits.meta", "logits.meta") if k in data), None)
        if key is None or data["pixel_values"].shape[1] != 1:
            continue
        n = int(data["aspect_ratio_mask"].sum())
        with torch.no_grad():
            vision, _ = model.encode(data["pixel_values"][0, :, :n], int(data["aspect_ratio_ids"].flatten()[0]))
            ids = data["input_ids"].view(1, -1).long()
            got = model.logits(ids, vision)[0, -1]
            want = data[key].reshape(-1, cfg["text_config"]["vocab_size"])[-1]
            tokens = []
            for _ in range(len(data["tokens.meta"].flatten())):
                tokens.append(int(model.logits(ids, vision)[0, -1].argmax()))
                ids = torch.cat([ids, torch.tensor([[tokens[-1]]])], 1)
        same = tokens == data["tokens.meta"].flatten().tolist()
        print(f"{file.stem:24} {key} max difference {float((got - want).abs().max()):.2e}  tokens {'same' if same else 'DIFFER'}")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--train", action="store_true")
    p.add_argument("--make-eval", action="store_true")
    p.add_argument("--make-samples", action="store_true")
    p.add_argument("--evaluate", action="store_true")
    p.add_argument("--blank", action="store_true", help="evaluate with blank pictures of the same sizes")
    p.add_argument("--show-wrong", action="store_true")
    p.add_argument("--check-golden", nargs=3, type=Path, metavar=("MODEL", "GOLDENS", "INPUTS"))
    p.add_argument("--model", type=Path, default=HERE, help="folder of the checkpoint")
    p.add_argument("--state", type=Path, default=HERE / "state" / "state.pt", help="training state, for --resume")
    p.add_argument("--eval-file", type=Path, default=HERE / "eval.jsonl")
    p.add_argument("--eval-rows", type=int, default=32, help="rows per question kind")
    p.add_argument("--minutes", type=float, default=70, help="length of the training run")
    p.add_argument("--steps", type=int, default=0, help="length in steps instead, for a repeatable schedule")
    p.add_argument("--stop-after", type=int, default=0)
    p.add_argument("--resume", action="store_true")
    p.add_argument("--batch", type=int, default=16, help="images per step")
    p.add_argument("--from-average", action="store_true", help="with --resume: go on from the averaged weights")
    p.add_argument("--vision-every", type=int, default=1, help="new pictures, and training of the vision tower, on every n-th step only; the others\n"
                   "ask new questions about pictures that are encoded already")
    p.add_argument("--vision-scale", type=float, default=1.0, help="factor on the vision tower's learning rate")
    p.add_argument("--muon-lr", type=float, default=0.004)
    p.add_argument("--adam-lr", type=float, default=0.001)
    p.add_argument("--curriculum", type=float, default=0.12, help="share of the run until scenes are at full difficulty")
    p.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--log-every", type=float, default=20)
    p.add_argument("--save-every", type=float, default=300)
    args = p.parse_args()
    if args.check_golden:
        check_golden(*args.check_golden)
    if args.train:
        train(args)
    if args.make_eval:
        make_eval(args)
    if args.make_samples:
        make_samples(args)
    if args.evaluate:
        evaluate(args)


if __name__ == "__main__":
    main()
