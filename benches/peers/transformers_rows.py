"""transformers on the rows of a JSON-lines file, in batches. Prints one JSON line. For benches/peers/run.py."""
import argparse
import json
import os
import time

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("rows")
parser.add_argument("--batch", type=int, default=4)
parser.add_argument("--new", type=int, default=16)
parser.add_argument("--dtype", default="bfloat16")
parser.add_argument("--threads", type=int, required=True)
arguments = parser.parse_args()

import torch
from PIL import Image
from transformers import AutoProcessor, MllamaForConditionalGeneration

torch.set_num_threads(arguments.threads)
model = MllamaForConditionalGeneration.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype)).eval()
processor = AutoProcessor.from_pretrained(arguments.model)
folder = os.path.dirname(os.path.abspath(arguments.rows))
with open(arguments.rows) as file:
    rows = [json.loads(line) for line in file]

# Loading is not counted; fetching, decoding and tiling of images is.
start = time.perf_counter()
tokens = 0
for at in range(0, len(rows), arguments.batch):
    batch = rows[at:at + arguments.batch]
    images = [[Image.open(os.path.join(folder, row["image"]))] for row in batch]
    texts = ["<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<|image|>" + row["instruction"]
             + "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n" for row in batch]
    inputs = processor(images=images, text=texts, return_tensors="pt", padding=True, add_special_tokens=False)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=arguments.new, min_new_tokens=arguments.new, do_sample=False)
    tokens += (out.shape[1] - inputs["input_ids"].shape[1]) * len(batch)
print(json.dumps({"seconds": time.perf_counter() - start, "tokens": tokens}))
