"""mistral.rs on the rows of a JSON-lines file. Prints one JSON line. For benches/peers/run.py."""
import argparse
import base64
import json
import os
import time

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("rows")
parser.add_argument("--batch", type=int, default=4)
parser.add_argument("--new", type=int, default=16)
parser.add_argument("--dtype", default="F32")
parser.add_argument("--limit", type=int, help="only so many rows")
arguments = parser.parse_args()

import mistralrs as mr

which = mr.Which.MultimodalPlain(model_id=arguments.model, arch=mr.MultimodalArchitecture.VLlama,
                                 dtype=getattr(mr.ModelDType, arguments.dtype))
runner = mr.Runner(which=which, max_seqs=arguments.batch, no_paged_attn=True)
folder = os.path.dirname(os.path.abspath(arguments.rows))
with open(arguments.rows) as file:
    rows = [json.loads(line) for line in file][:arguments.limit]


def ask(row):
    with open(os.path.join(folder, row["image"]), "rb") as file:
        url = "data:image/png;base64," + base64.b64encode(file.read()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "<|image|>" + row["instruction"]}]
    request = mr.ChatCompletionRequest(model="default", messages=[{"role": "user", "content": content}],
                                       max_tokens=arguments.new, temperature=0.0)
    return runner.send_chat_completion_request(request)


start = time.perf_counter()
# One after the other: a call while another one waits fails with "Already borrowed".
answers = [ask(row) for row in rows]
seconds = time.perf_counter() - start
# What ended early counts for what it wrote.
print(json.dumps({"seconds": seconds, "rows": len(rows), "tokens": sum(answer.usage.completion_tokens for answer in answers)}))
