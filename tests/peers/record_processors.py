#!/usr/bin/env python3
"""Records what transformers' logits processors do, for the tests of crates/backends/src/local.

Usage: record_processors.py [out.jsonl]        (needs torch and transformers 5)

Each line is a case: logits, prompt, answer so far, parameters, and after every processor which tokens are left and
how probable they are. The processors and their order are those that `GenerationMixin._get_logits_processor` returns.
The frequency and presence penalties, which transformers does not have, are given to it as a caller's processor and
written down here from vLLM's definition.

Arrays of float32 are base64 of little-endian bytes; "kept" is a bit mask in hexadecimal, token 0 its lowest bit;
"probs" lists kept tokens only.

torch.sort is made stable: which of several equal logits an unstable sort puts first depends on the machine.

A case is drawn again if double precision keeps other tokens than single precision does: its border is then within a
rounding error of a token, and which side the token falls on says nothing about the processor. (An example: a typical_p
of 0.9999999 where one token has 1 - 2e-7. Whether that is enough depends on the order of a sum in single precision.)
"""
import base64
import json
import os
import random
import struct
import sys
import types

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation import logits_process as lp
from transformers.generation.utils import GenerationMixin

CASES = 200
NAMES = {
    lp.SequenceBiasLogitsProcessor: "logit_bias",
    lp.RepetitionPenaltyLogitsProcessor: "repetition_penalty",
    lp.NoBadWordsLogitsProcessor: "bad_words",
    lp.MinNewTokensLengthLogitsProcessor: "min_new_tokens",
    lp.TemperatureLogitsWarper: "temperature",
    lp.TopKLogitsWarper: "top_k",
    lp.TopPLogitsWarper: "top_p",
    lp.MinPLogitsWarper: "min_p",
    lp.TypicalLogitsWarper: "typical_p",
}
unstable_sort = torch.sort


def stable_sort(tensor, descending=False):
    return unstable_sort(tensor, dim=-1, descending=descending, stable=True)


class FrequencyAndPresence(LogitsProcessor):
    """vLLM: logits -= frequency * count; logits -= presence * (count > 0), over the answer's tokens."""

    def __init__(self, prompt_length, frequency, presence):
        self.prompt_length, self.frequency, self.presence = prompt_length, frequency, presence

    def __call__(self, input_ids, scores):
        counts = torch.bincount(input_ids[0, self.prompt_length:], minlength=scores.shape[-1]).float()
        scores = scores - self.frequency * counts
        return scores - self.presence * (counts > 0).float()


NAMES[FrequencyAndPresence] = "frequency_and_presence"


def b64(values):
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def draw_logits(rng, n, form):
    scale = rng.choice([0.1, 1.0, 3.0, 10.0])
    logits = [rng.gauss(0, scale) for _ in range(n)]
    if form == "ties":
        logits = [round(x / scale * 2) / 2 for x in logits]
    elif form == "equal":
        logits = [1.5] * n
    elif form == "halves":
        # Probabilities 1/2, 1/4, 1/8, ... and many equal small ones.
        order = rng.sample(range(n), n)
        for rank, token in enumerate(order):
            logits[token] = -min(rank + 1, 7) * 0.6931471824645996
    elif form == "forbidden":
        for token in rng.sample(range(n), rng.randint(1, n - 2)):
            logits[token] = float("-inf")
    elif form == "one":
        left = rng.randrange(n)
        logits = [x if i == left else float("-inf") for i, x in enumerate(logits)]
    elif form == "peak":
        logits[rng.randrange(n)] = 40.0
    return torch.tensor(logits, dtype=torch.float32).tolist()


def draw_params(rng, n, i):
    """A case has one truncation alone, or several things at once."""
    p = {}
    truncations = {
        "top_k": lambda: rng.choice([1, 2, 5, 20, n - 1, n, 500]),
        "top_p": lambda: rng.choice([0.0, 1e-6, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.999, 0.9999999, 1.0]),
        "min_p": lambda: rng.choice([0.0, 0.01, 0.1, 0.5, 1.0]),
        "typical_p": lambda: rng.choice([1e-6, 0.2, 0.5, 0.9, 0.95, 0.9999999, 1.0]),
    }
    if i % 5 < 4:
        name = list(truncations)[i % 5]
        p[name] = truncations[name]()
        share = 0.25
    else:
        share = 0.6
        for name, draw in truncations.items():
            if rng.random() < share:
                p[name] = draw()
    if rng.random() < 0.6:
        p["temperature"] = rng.choice([0.1, 0.6, 0.7, 1.0, 1.3, 2.0])
    if rng.random() < share:
        p["repetition_penalty"] = rng.choice([0.8, 1.0, 1.1, 1.3, 2.0])
    if rng.random() < share:
        p["frequency_penalty"] = rng.choice([-2.0, -0.3, 0.3, 1.1])
    if rng.random() < share:
        p["presence_penalty"] = rng.choice([-1.5, 0.4, 2.0])
    if rng.random() < share:
        p["min_new_tokens"] = rng.choice([1, 4, 20])
    if rng.random() < share:
        bias = rng.sample(range(n), rng.randint(1, 4))
        p["logit_bias"] = {token: rng.choice([-100.0, -1.25, 0.7, 5.0]) for token in bias}
    return p


def bad_words(rng, n, context):
    words = []
    for _ in range(rng.randint(1, 4)):
        before = rng.randint(0, 3)
        # Half of the words have begun.
        start = context[len(context) - before:] if rng.random() < 0.5 else [rng.randrange(n) for _ in range(before)]
        words.append(list(start) + [rng.randrange(n)])
    return words


def processors(case, prompt, params, ends):
    n = len(case)
    config = GenerationConfig(do_sample=True, **{
        k: v for k, v in params.items()
        if k in ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "min_new_tokens")})
    # Without these a parameter that is not given takes the default of the library.
    for name, off in (("top_k", 0), ("top_p", 1.0), ("temperature", 1.0), ("typical_p", 1.0)):
        if name not in params:
            setattr(config, name, off)
    if "logit_bias" in params:
        config.sequence_bias = [[[token], bias] for token, bias in params["logit_bias"].items()]
    if "bad_words" in params:
        config.bad_words_ids = params["bad_words"]
    config._eos_token_tensor = torch.tensor(ends)
    own = LogitsProcessorList()
    if "frequency_penalty" in params or "presence_penalty" in params:
        own.append(FrequencyAndPresence(
            len(prompt), params.get("frequency_penalty", 0.0), params.get("presence_penalty", 0.0)))
    model = types.SimpleNamespace(config=types.SimpleNamespace(is_encoder_decoder=False))
    model._merge_criteria_processor_list = types.MethodType(GenerationMixin._merge_criteria_processor_list, model)
    return GenerationMixin._get_logits_processor(
        model, config, input_ids_seq_length=len(prompt), logits_processor=own, device="cpu")


def keeps(processor, input_ids, scores):
    """The scores after a processor, and which tokens are left."""
    scores = processor(input_ids, scores)
    return scores, (scores[0] > float("-inf")).tolist()


def record(rng, i):
    n = rng.randint(64, 110)
    form = rng.choice(["plain", "plain", "ties", "equal", "halves", "forbidden", "one", "peak"])
    logits = draw_logits(rng, n, form)
    prompt = [rng.randrange(n) for _ in range(rng.randint(1, 12))]
    answer = [rng.randrange(n) for _ in range(rng.randint(0, 12))]
    answer += answer[:rng.randint(0, len(answer))]
    ends = sorted(rng.sample(range(n), rng.randint(1, 3)))
    params = draw_params(rng, n, i)
    if rng.random() < 0.25:
        words = bad_words(rng, n, prompt + answer)
        words = [word for word in words if word not in [[e] for e in ends]]
        if words:
            params["bad_words"] = words
    input_ids = torch.tensor([prompt + answer])
    scores = torch.tensor([logits])
    double = scores.double()
    stages = []
    for processor in processors(logits, prompt, params, ends):
        scores, left = keeps(processor, input_ids, scores)
        double, left_double = keeps(processor, input_ids, double)
        if not any(left):
            return "nothing is left"      # softmax of nothing is NaN
        if left != left_double:
            return f"{NAMES[type(processor)]} within rounding, {form}"
        probs = scores.softmax(dim=-1)[0].tolist()
        kept = sum(1 << token for token, keep in enumerate(left) if keep)
        stages.append({"name": NAMES[type(processor)], "kept": f"{kept:x}",
                       "probs": b64([p for p, keep in zip(probs, left) if keep])})
    if not stages:
        return "nothing to do"
    return {"form": form, "logits": b64(logits), "prompt": prompt, "answer": answer, "ends": ends,
            "params": params, "stages": stages}


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    out = sys.argv[1] if len(sys.argv) > 1 else os.path.join(here, "../fixtures/sampling/processors.jsonl")
    torch.set_num_threads(1)
    torch.sort = stable_sort
    rng = random.Random(20240925)
    cases, redrawn = [], []
    while len(cases) < CASES:
        case = record(rng, len(cases))
        (redrawn if isinstance(case, str) else cases).append(case)
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    with open(out, "w") as f:
        for case in cases:
            f.write(json.dumps(case, separators=(",", ":")) + "\n")
    stages = [stage["name"] for case in cases for stage in case["stages"]]
    print({name: stages.count(name) for name in sorted(set(stages))}, os.path.getsize(out), "bytes")
    print("drawn again:", {why: redrawn.count(why) for why in sorted(set(redrawn))})


if __name__ == "__main__":
    main()
