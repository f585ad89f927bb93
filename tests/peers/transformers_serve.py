#!/usr/bin/env python3
"""vgen's remote backend against `transformers serve`, a chat server that nobody here wrote.

    tests/peers/transformers_serve.py [--venv DIR] [--program target/debug/vgen] [--model models/shapes] [--rows 50]

Starts the server on the demo model (Llama-3.2-Vision in small), asks it 50 questions about images, two answers each,
directly and one at a time, and then again through `vgen run` with 8 requests in flight: once with whole answers, once
streamed. Every row must have the text, finish reason and token counts of the server's own answer, in the order of the
input. Without --venv, or with a folder that does not exist yet, the environment is made first (PyPI: torch, torchvision,
pillow, transformers[serving]).

Answers are greedy: the server sets torch's seed when a request arrives, not when its turn comes, so that sampled answers
depend on what else is in flight.

Read on 2026-11-23 with transformers 5.23.0 and torch 2.15.0 on the CPU: 100 of 100 answers are the server's own, whole and
streamed; 44 of the 50 are right.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TARGET = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
GENERATIONS = 2
SEED = 7
PACKAGES = ["torch", "torchvision", "pillow", "transformers[serving]"]
SERVE = "import sys; sys.argv[0] = 'transformers'; from transformers.cli.transformers import main; main()"


def environment(folder):
    """The interpreter of the environment, which is made if it does not exist."""
    python = os.path.join(folder, "bin", "python")
    if not os.path.exists(python):
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def start(python, model):
    """The running server and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [python, "-c", SERVE, "serve", model, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu",
               "--dtype", "float32"]
    server = subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1"},
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    deadline = time.time() + 600
    while time.time() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(url + "/health", timeout=5).read()
            return server, url
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(1)
    server.kill()
    sys.exit("the server did not start")


def ask(url, model, row, sample):
    """The server's own answer."""
    content = [{"type": "image_url", "image_url": {"url": row["image"]}}, {"type": "text", "text": row["instruction"]}]
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 32,
            "seed": SEED + sample, "stream": False}
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode(),
                                     {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as response:
        answer = json.load(response)
    choice, usage = answer["choices"][0], answer["usage"]
    return (choice["message"]["content"], choice["finish_reason"], usage["prompt_tokens"], usage["completion_tokens"])


def run(program, folder, url, model, rows, stream):
    """The same through vgen."""
    source, output = os.path.join(folder, "rows.jsonl"), os.path.join(folder, f"out-{stream}.jsonl")
    with open(source, "w") as file:
        for number, row in enumerate(rows):
            file.write(json.dumps({"id": number, "instruction": row["instruction"], "image": row["image"]}) + "\n")
    config = os.path.join(folder, "run.toml")
    with open(config, "w") as file:
        file.write(f"""[input]
path = {json.dumps(source)}
[output]
path = {json.dumps(output)}
[task]
num_generations = {GENERATIONS}
image_position = "first"
[sampling]
max_new_tokens = 32
seed = {SEED}
[backend]
kind = "inference-endpoints"
base_url = {json.dumps(url)}
model_id = {json.dumps(model)}
dialect = "transformers"
max_in_flight = 8
stream = {json.dumps(stream)}
""")
    subprocess.run([program, "run", config], check=True)
    with open(output) as file:
        return [json.loads(line) for line in file]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", help="an environment with transformers[serving], or where to make one")
    parser.add_argument("--program", default=os.path.join(TARGET, "debug", "vgen"))
    parser.add_argument("--model", default=os.path.join(ROOT, "models", "shapes"))
    parser.add_argument("--questions", default=os.path.join(ROOT, "models", "shapes", "eval.jsonl"))
    parser.add_argument("--rows", type=int, default=50)
    arguments = parser.parse_args()

    with open(arguments.questions) as file:
        rows = [json.loads(line) for line in file]
    # The file goes kind by kind; these are spread over all kinds.
    rows = [rows[place * len(rows) // arguments.rows] for place in range(arguments.rows)]
    with tempfile.TemporaryDirectory() as folder:
        python = environment(arguments.venv or os.path.join(folder, "venv"))
        versions = "import torch, transformers; print(f'transformers {transformers.__version__}, torch {torch.__version__}')"
        print(subprocess.run([python, "-c", versions], check=True, capture_output=True, text=True).stdout.strip())
        server, url = start(python, arguments.model)
        try:
            direct = [[ask(url, arguments.model, row, sample) for sample in range(GENERATIONS)] for row in rows]
            wrong = 0
            for stream in (False, True):
                out = run(arguments.program, folder, url, arguments.model, rows, stream)
                assert len(out) == len(rows) * GENERATIONS, f"{len(out)} rows came out"
                same = 0
                for place, row in enumerate(out):
                    number, sample = divmod(place, GENERATIONS)
                    counts = row["distilabel_metadata"]["statistics_text_generation_with_image_0"]
                    through = (row["generation"], row["finish_reason"], counts["input_tokens"], counts["output_tokens"])
                    if row["id"] == number and row["model_name"] == arguments.model and through == direct[number][sample]:
                        same += 1
                    else:
                        print(f"row {number}, answer {sample}: {through} is not {direct[number][sample]}")
                wrong += len(out) - same
                how = "streamed" if stream else "whole"
                print(f"{how}: {same} of {len(out)} answers are the server's own")
            right = sum(texts[0][0] == row["answer"] for texts, row in zip(direct, rows))
            texts = len({answer[0] for answers in direct for answer in answers})
            print(f"{right} of {len(rows)} answers of the model are right; {texts} different texts")
        finally:
            server.terminate()
            server.wait()
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
