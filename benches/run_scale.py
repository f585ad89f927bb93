#!/usr/bin/env python3
"""A million rows, and rows with large images, through `vgen run` with the mock backend: rows a second with durable output,
the largest memory, and how soon an interrupted run does new work. With --peers, the same rendering of 20,000 rows by
distilabel 1.5.3 and by datasets.map.

    cargo build --release --bins
    python3 benches/run_scale.py --work /some/folder/with/40GB
    python3 benches/run_scale.py --work /some/folder --peers      # needs: pip install distilabel==1.5.3 datasets requests

Prints Markdown.
"""

import argparse
import base64
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

CONFIG = """
[input]
path = "{rows}"
[output]
path = "{out}"
[task]
system_prompt = "Answer in one sentence."
template = "Question {{{{ id }}}}: {{{{ instruction }}}}"
columns = ["id", "instruction"]
[backend]
kind = "mock"
answer = "an answer to {{row}}"
[run]
window = {window}
"""


def write_rows(path, count, image_bytes):
    if os.path.exists(path):
        return
    blob = random.Random(1)
    with open(path + ".part", "w") as file:
        for number in range(count):
            if image_bytes:
                data = base64.b64encode(blob.randbytes(image_bytes)).decode()
                image = "data:image/jpeg;base64," + data
            else:
                image = f"https://example.com/images/{number}.jpg"
            row = {"id": number, "instruction": f"What is in picture {number}?", "image": image}
            file.write(json.dumps(row) + "\n")
    os.rename(path + ".part", path)


def memory(pid):
    try:
        with open(f"/proc/{pid}/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


def run(command, cwd, until=None):
    """Seconds, largest memory in MB and exit code; `until` is asked often and interrupts the run."""
    begun, peak = time.monotonic(), 0.0
    child = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while child.poll() is None:
        peak = max(peak, memory(child.pid))
        if until and until():
            child.send_signal(signal.SIGINT)
            until = None
        time.sleep(0.01)
    error = child.stderr.read().decode()
    if child.returncode not in (0, 1, 130):
        sys.exit(error)
    return time.monotonic() - begun, peak, child.returncode


def vgen(work, name, count, image_bytes, window, out_name):
    rows = os.path.join(work, f"{name}.jsonl")
    write_rows(rows, count, image_bytes)
    out = os.path.join(work, out_name)
    for path in (out, out + ".run"):
        shutil.rmtree(path, ignore_errors=True) if os.path.isdir(path) else os.path.exists(path) and os.remove(path)
    with open(os.path.join(work, "run.toml"), "w") as file:
        file.write(CONFIG.format(rows=rows, out=out, window=window))
    command = [VGEN, "run", "run.toml", "--quiet"]
    seconds, peak, _ = run(command, work)
    print(f"| {name}, {out_name} | {count} | {seconds:.1f} | {count / seconds:.0f} | {peak:.0f} |", flush=True)
    return command, out


def resume(work, command, out, count):
    """Interrupts when nine tenths are written, then measures how soon the file grows again."""
    size = os.path.getsize(out)
    for path in (out, out + ".run"):
        shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
    run(command, work, until=lambda: os.path.exists(out) and os.path.getsize(out) > 0.9 * size)
    before = os.path.getsize(out)
    begun = time.monotonic()
    child = subprocess.Popen(command, cwd=work, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while os.path.getsize(out) <= before and child.poll() is None:
        time.sleep(0.002)
    first = time.monotonic() - begun
    child.wait()
    lines = sum(1 for _ in open(out))
    assert lines == count, f"{lines} lines of {count}"
    print(f"\nNew rows {first:.2f} s after the start of a run of {count} rows that was interrupted at nine tenths.")


def peers(work, count):
    rows = os.path.join(work, "peers.jsonl")
    write_rows(rows, count, 0)
    vgen(work, "peers", count, 0, 256, "peers-out.jsonl")
    for name, script in (("distilabel 1.5.3", DISTILABEL), ("datasets.map", DATASETS)):
        out = os.path.join(work, "peer-out.jsonl")
        if os.path.exists(out):
            os.remove(out)
        seconds, peak, code = run([sys.executable, "-c", script, rows, out], work)
        written = sum(1 for _ in open(out)) if os.path.exists(out) else 0
        if code or written != count:
            sys.exit(f"{name} ended with {code} and wrote {written} of {count} rows")
        print(f"| {name} | {count} | {seconds:.1f} | {count / seconds:.0f} | {peak:.0f} |", flush=True)


DISTILABEL = """
import sys, json
from distilabel.models.llms.base import LLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGenerationWithImage

class Fixed(LLM):
    def load(self): super().load()
    @property
    def model_name(self): return "fixed"
    def generate(self, inputs, num_generations=1):
        return [{"generations": ["an answer"], "statistics": {"input_tokens": [1], "output_tokens": [2]}} for _ in inputs]

if __name__ == "__main__":
    rows = [json.loads(line) for line in open(sys.argv[1])]
    with Pipeline("bench") as pipeline:
        load = LoadDataFromDicts(data=rows, batch_size=500)
        task = TextGenerationWithImage(llm=Fixed(), image_type="url", system_prompt="Answer in one sentence.",
            template="Question {{ id }}: {{ instruction }}", columns=["id", "instruction"], input_batch_size=500,
            add_raw_input=False)
        load >> task
    result = pipeline.run(use_cache=False)
    result["default"]["train"].to_json(sys.argv[2])
"""

DATASETS = """
import sys
from datasets import load_dataset
from jinja2 import Template
template = Template("Question {{ id }}: {{ instruction }}")
def render(row):
    text = template.render(**row)
    messages = [{"role": "system", "content": "Answer in one sentence."}, {"role": "user", "content": [
        {"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": row["image"]}}]}]
    return {"messages": str(messages), "generation": "an answer", "model_name": "fixed"}
data = load_dataset("json", data_files=sys.argv[1], split="train")
data.map(render).to_json(sys.argv[2])
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, help="a folder for inputs and outputs")
    parser.add_argument("--vgen", default=os.path.join(ROOT, "target", "release", "vgen"), help="the program")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--image-rows", type=int, default=100_000)
    parser.add_argument("--peers", action="store_true", help="the peers on 20,000 rows instead")
    args = parser.parse_args()
    VGEN = os.path.abspath(args.vgen)
    os.makedirs(args.work, exist_ok=True)
    print("| run | rows | seconds | rows/s | largest memory, MB |\n|---|---|---|---|---|")
    if args.peers:
        peers(args.work, 20_000)
    else:
        vgen(args.work, "urls", args.rows, 0, 256, "urls-out.parquet")
        vgen(args.work, "images", args.image_rows, 75_000, 16, "images-out.jsonl")
        command, out = vgen(args.work, "urls", args.rows, 0, 256, "urls-out.jsonl")
        resume(args.work, command, out, args.rows)
