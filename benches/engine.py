#!/usr/bin/env python3
"""Times the local engine beside transformers and mistral.rs, on the same rows, and says where its time goes.

    benches/engine.py --vgen target/release/vgen-local --tokenizer DIR [--model DIR] [--peer-hf PYTHON]
                      [--peer-mistralrs PYTHON] [--repeat 5] [--rows 16] [--quick] [--out benches/results/NAME]

Without --model a random checkpoint of preset `small` (benches/make_model.py) is made in a temporary folder, with the
tokenizer of --tokenizer (a folder with tokenizer.json, tokenizer_config.json, chat_template.json). The peers are
optional: each is the interpreter of a virtual environment that has it (`torch transformers pillow`,
`mistralrs==0.9.0 numpy pillow`). All run one after the other, and each scenario is repeated as a whole (vgen, peer,
peer, vgen, ...), so that a machine that gets slower doesn't favour one of them; medians are reported. Needs pillow and
numpy itself.

Writes NAME.json (every reading) and NAME.md (tables of medians). Quote ratios of one run, on a quiet machine.
"""
import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
QUESTION = "What is in this image? Describe it in detail."
TIMES = ["prepare", "encode", "prefill", "decode", "sample", "wait"]


def scenarios(rows, quick):
    """name, rows, batch, new tokens, kind of rows; peers take part where they can do the same."""
    batches, new = ([1, 4], [4]) if quick else ([1, 4, 16, 32], [16, 128])
    for tokens in new:
        for batch in batches:
            yield dict(name=f"images, {tokens} new tokens, batch {batch}", rows=max(rows, batch) if not quick else rows,
                       batch=batch, new=tokens, kind="images", peers=True)
    prompts = 4 if quick else 16
    yield dict(name=f"one image x {prompts} prompts", rows=prompts, batch=prompts, new=new[0], kind="one image", peers=False)
    yield dict(name="every other row without an image", rows=rows, batch=batches[-1], new=new[0], kind="mixed", peers=False)


def write_rows(folder, scenario, size):
    import numpy as np
    from PIL import Image
    rng = np.random.default_rng(0)
    path = os.path.join(folder, "rows.jsonl")
    with open(path, "w") as out:
        for n in range(scenario["rows"]):
            row = {"instruction": QUESTION}
            one = scenario["kind"] == "one image"
            if one:
                row["instruction"] = f"{QUESTION} Question {n}."
            if scenario["kind"] != "mixed" or n % 2 == 0:
                name = "image0.png" if one else f"image{n}.png"
                if not os.path.exists(os.path.join(folder, name)):
                    pixels = rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(os.path.join(folder, name))
                row["image"] = name
            out.write(json.dumps(row) + "\n")
    return path


def vgen(arguments, model, scenario, folder):
    rows = os.path.join(folder, "rows.jsonl")
    stats = os.path.join(folder, "stats.json")
    command = [arguments.vgen, "--model", model, "--input", rows, "--output", os.path.join(folder, "out.jsonl"),
               "--overwrite", "--temperature", "0", "--max-new-tokens", str(scenario["new"]), "--ignore-eos",
               "--batch-size", str(scenario["batch"]), "--image-required=false", "--stats", stats, "--quiet"]
    command += ["--dtype", arguments.dtype] + (["--threads", str(arguments.threads)] if arguments.threads else [])
    run(command)
    with open(stats) as file:
        found = json.load(file)
    if found["failed_rows"]:
        sys.exit(f"{found['failed_rows']} rows failed in {scenario['name']}")
    engine = found["backend"]
    return {"seconds": found["seconds"], "rows_per_second": found["rows_per_second"],
            "tokens_per_second": found["tokens_per_second"], "command": " ".join(command),
            **{f"{name}_seconds": engine[f"{name}_seconds"] for name in TIMES}}


def transformers(arguments, model, scenario, folder):
    return peer(arguments.peer_hf, "engine_peers/transformers_rows.py", arguments.hf_dtype, model, scenario, folder)


def mistralrs(arguments, model, scenario, folder):
    return peer(arguments.peer_mistralrs, "engine_peers/mistralrs_rows.py", arguments.mistralrs_dtype, model, scenario, folder)


def peer(python, script, dtype, model, scenario, folder):
    command = [python, os.path.join(HERE, script), model, os.path.join(folder, "rows.jsonl"), "--batch", str(scenario["batch"]),
               "--new", str(scenario["new"]), "--dtype", dtype]
    found = json.loads(run(command).strip().splitlines()[-1])
    return {"seconds": found["seconds"], "rows_per_second": scenario["rows"] / found["seconds"],
            "tokens_per_second": found["tokens"] / found["seconds"], "command": " ".join(command)}


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def machine():
    name = platform.processor()
    try:
        with open("/proc/cpuinfo") as file:
            name = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {os.cpu_count()} cores"


def table(results, engines):
    lines = ["| rows | engine | seconds | rows/s | tokens/s | vgen is |", "|---|---|---|---|---|---|"]
    for result in results:
        median = {e: medians(result["readings"][e]) for e in engines if e in result["readings"]}
        for engine, m in median.items():
            ratio = "" if engine == "vgen" else f"{median['vgen']['rows_per_second'] / m['rows_per_second']:.2f} x as fast"
            lines.append(f"| {result['name']} | {engine} | {m['seconds']:.2f} | {m['rows_per_second']:.3f} "
                         f"| {m['tokens_per_second']:.1f} | {ratio} |")
    lines += ["", "Where vgen's time goes, in seconds. Preparation runs beside the rest, on threads of its own.", "",
              "| rows | " + " | ".join(TIMES) + " |", "|---|" + "---|" * len(TIMES)]
    for result in results:
        m = medians(result["readings"]["vgen"])
        lines.append(f"| {result['name']} | " + " | ".join(f"{m[name + '_seconds']:.3f}" for name in TIMES) + " |")
    return lines


def medians(readings):
    return {key: statistics.median(r[key] for r in readings) for key in readings[0] if key != "command"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vgen", required=True, help="the program vgen-local, a release build")
    parser.add_argument("--tokenizer", help="folder with the tokenizer for the random checkpoint")
    parser.add_argument("--model", help="folder of a checkpoint to use instead of a random one")
    parser.add_argument("--preset", default="small", help="of the random checkpoint")
    parser.add_argument("--peer-hf", help="interpreter that has transformers")
    parser.add_argument("--peer-mistralrs", help="interpreter that has mistralrs 0.9.0")
    parser.add_argument("--dtype", default="auto", help="of vgen")
    parser.add_argument("--hf-dtype", default="bfloat16")
    parser.add_argument("--mistralrs-dtype", default="F32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--size", type=int, nargs=2, default=[500, 400], help="width and height of the images")
    parser.add_argument("--quick", action="store_true", help="tiny settings, to see that it works")
    parser.add_argument("--out", help="path of the results without an ending")
    arguments = parser.parse_args()
    if not arguments.model and not arguments.tokenizer:
        parser.error("give --model or --tokenizer")
    if arguments.quick:
        arguments.rows, arguments.repeat = min(arguments.rows, 3), min(arguments.repeat, 2)
    engines = {"vgen": vgen}
    if arguments.peer_hf:
        engines["transformers"] = transformers
    if arguments.peer_mistralrs:
        engines["mistral.rs"] = mistralrs

    results = []
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if not model:
            model = os.path.join(folder, "model")
            run([sys.executable, os.path.join(HERE, "make_model.py"), arguments.preset, model, "--tokenizer", arguments.tokenizer])
        for scenario in scenarios(arguments.rows, arguments.quick):
            with tempfile.TemporaryDirectory() as rows:
                write_rows(rows, scenario, arguments.size)
                readings = {}
                for turn in range(arguments.repeat):
                    order = [e for e in engines if e == "vgen" or scenario["peers"]]
                    for engine in order if turn % 2 == 0 else order[::-1]:
                        reading = engines[engine](arguments, model, scenario, rows)
                        readings.setdefault(engine, []).append(reading)
                        print(f"{scenario['name']}, {engine}: {reading['rows_per_second']:.3f} rows/s", file=sys.stderr)
                results.append({**scenario, "readings": readings})

    day = datetime.date.today().isoformat()
    out = arguments.out or os.path.join(HERE, "results", f"{day}-engine")
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    with open(out + ".json", "w") as file:
        json.dump({"date": day, "machine": machine(), "repeat": arguments.repeat, "size": arguments.size,
                   "command": " ".join(sys.argv), "results": results}, file, indent=1)
        file.write("\n")
    lines = [f"# {day}, {machine()}", "",
             f"Medians of {arguments.repeat}, images of {arguments.size[0]}x{arguments.size[1]} pixels, greedy. vgen in "
             f"{arguments.dtype}, transformers in {arguments.hf_dtype}, mistral.rs in {arguments.mistralrs_dtype}.", ""]
    lines += table(results, list(engines)) + ["", "    " + " ".join(sys.argv), ""]
    with open(out + ".md", "w") as file:
        file.write("\n".join(lines))
    print(out + ".md")


if __name__ == "__main__":
    main()
