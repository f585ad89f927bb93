"""llama.cpp on the rows of a JSON-lines file without images, one after the other. Prints one JSON line. For
benches/peers/run.py."""
import argparse
import itertools
import json
import time

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("rows")
parser.add_argument("--batch", type=int, default=1, help="as for the others; not used")
parser.add_argument("--new", type=int, default=16)
parser.add_argument("--threads", type=int, required=True)
arguments = parser.parse_args()

from llama_cpp import Llama

model = Llama(arguments.model, n_ctx=2048, n_threads=arguments.threads, n_threads_batch=arguments.threads, n_batch=512,
              verbose=False)
with open(arguments.rows) as file:
    rows = [json.loads(line) for line in file]
FORM = "<|im_start|>user\n%s<|im_end|>\n<|im_start|>assistant\n"
start = time.perf_counter()
tokens = 0
for row in rows:
    prompt = model.tokenize((FORM % row["instruction"]).encode(), add_bos=False, special=True)
    # The generator goes on behind the end of the text, so that all engines write the same number of tokens.
    tokens += sum(1 for _ in itertools.islice(model.generate(prompt, temp=0.0), arguments.new))
print(json.dumps({"seconds": time.perf_counter() - start, "tokens": tokens}))
