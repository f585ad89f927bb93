#!/usr/bin/env python3
"""Image files to the vision tower's tiles: vgen beside Pillow and transformers' image processor, per core.

    benches/preprocess.py [--python PYTHON] [--megapixels 1 4 12] [--repeat 5] [--out benches/results/FILE.json]

PYTHON has torch, transformers and pillow (torchvision for its fast processor); without it this interpreter. Makes JPEGs
of photograph-like content (quality 90, 4:2:0), and times each engine on one thread, in turns: vgen (`cargo bench --bench
preprocess`), Pillow's own decoding and resizing (which no Python processor can beat), and MllamaImageProcessor of
transformers from file to tensor: the one that computes with Pillow, whose pixels are the reference, and the one that
computes with torchvision, which rounds otherwise. Medians. Then it compares values: the largest and the mean difference of
vgen's tiles from transformers', in levels of 255. Exits with 1 if a value differs from the reference by more than rounding
(a thousandth of a level), or vgen is not 3 times as fast as it.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
REFERENCE = "MllamaImageProcessorPil"

PEER = r"""
import json, os, sys, time
os.environ["OMP_NUM_THREADS"] = "1"
import numpy as np, torch
from PIL import Image
import transformers
torch.set_num_threads(1)
folder, rounds, dump, files = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:]
processors = {}
for name in ("MllamaImageProcessorPil", "MllamaImageProcessor"):
    try:
        made = getattr(transformers, name).from_pretrained(folder)
        # Without torchvision the second one is the first.
        processors.setdefault(type(made).__name__, made)
    except Exception as error:
        print(f"{name}: {error}"[:200], file=sys.stderr)
def median(run):
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter(); result = run(); times.append(time.perf_counter() - start)
    return sorted(times[1:])[rounds // 2], result
for number, file in enumerate(files):
    found = {"file": file}
    def pillow():
        image = Image.open(file).convert("RGB")
        scale = min(1120 / image.width, 1120 / image.height)
        return image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BILINEAR)
    found["pillow"] = median(pillow)[0]
    for name, processor in processors.items():
        seconds, out = median(lambda: processor(images=[[Image.open(file)]], return_tensors="pt"))
        tiles = int(out["num_tiles"][0][0]) if "num_tiles" in out else int(out["aspect_ratio_mask"][0][0].sum())
        path = os.path.join(dump, f"{name}-{number}.f32")
        out["pixel_values"][0, 0, :tiles].to(torch.float32).numpy().tofile(path)
        found[name] = {"seconds": seconds, "values": path, "aspect_ratio_id": int(out["aspect_ratio_ids"][0][0])}
    print(json.dumps(found), flush=True)
"""


def make_images(folder, megapixels):
    import numpy as np
    from PIL import Image
    rng = np.random.default_rng(0)
    files = []
    for size in megapixels:
        height = int((size * 1e6 * 3 / 4) ** 0.5)
        width = height * 4 // 3
        # Soft shapes and grain, as a camera gives them.
        small = rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)
        soft = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
        grain = rng.normal(0, 6, (height, width, 1)).astype(np.int16)
        path = os.path.join(folder, f"{size}mp.jpg")
        Image.fromarray(np.clip(soft + grain, 0, 255).astype(np.uint8)).save(path, quality=90, subsampling="4:2:0")
        files.append(path)
    return files


def lines(command, **options):
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, **options)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="interpreter that has torch, transformers and pillow")
    parser.add_argument("--megapixels", type=float, nargs="+", default=[1, 4, 12])
    parser.add_argument("--rounds", type=int, default=5, help="of each file in one go")
    parser.add_argument("--repeat", type=int, default=3, help="turns")
    parser.add_argument("--vgen", help="the built bench (target/release/deps/preprocess-...) instead of cargo")
    parser.add_argument("--out", help="where the figures go, as JSON")
    arguments = parser.parse_args()
    import numpy as np
    with tempfile.TemporaryDirectory() as folder:
        config = {"model_type": "mllama", "vision_config": {"image_size": 560, "max_num_tiles": 4}}
        processor = {"do_convert_rgb": True, "do_normalize": True, "do_pad": True, "do_rescale": True, "do_resize": True,
                     "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
                     "image_processor_type": "MllamaImageProcessor", "max_image_tiles": 4, "resample": 2,
                     "rescale_factor": 1 / 255, "size": {"height": 560, "width": 560}}
        for name, content in (("config.json", config), ("preprocessor_config.json", processor)):
            with open(os.path.join(folder, name), "w") as file:
                json.dump(content, file)
        files = make_images(folder, arguments.megapixels)
        own = [arguments.vgen] if arguments.vgen else ["cargo", "bench", "--quiet", "--bench", "preprocess", "--"]
        rest = [folder, str(arguments.rounds), folder, *files]
        one = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
        turns = []
        for turn in range(arguments.repeat):
            runs = [lambda: lines(own + rest, cwd=ROOT, env=one), lambda: lines([arguments.python, "-c", PEER] + rest, env=one)]
            mine, theirs = (runs[0](), runs[1]()) if turn % 2 == 0 else reversed((runs[1](), runs[0]()))
            turns.append((mine, theirs))
        failed, results = False, []
        print("| JPEG | engine | ms | vgen is | largest difference, levels | mean |\n|---|---|---|---|---|---|")
        for at, size in enumerate(arguments.megapixels):
            median = lambda of: statistics.median(of(mine[at], theirs[at]) for mine, theirs in turns)
            vgen = median(lambda m, t: m["seconds"])
            decode, resize = median(lambda m, t: m["decode"]), median(lambda m, t: m["resize"])
            print(f"| {size:g} megapixels | vgen | {vgen * 1e3:.1f} (decode {decode * 1e3:.1f}, resize {resize * 1e3:.1f}) | | | |")
            pillow = median(lambda m, t: t["pillow"])
            print(f"| | Pillow, decode and resize only | {pillow * 1e3:.1f} | {pillow / vgen:.2f} x | | |")
            result = {"megapixels": size, "vgen": vgen, "decode": decode, "resize": resize, "pillow": pillow}
            values = np.fromfile(turns[0][0][at]["values"], dtype=np.float32)
            if REFERENCE not in turns[0][1][at]:
                sys.exit(f"{arguments.python} has no {REFERENCE}")
            for name in [name for name in turns[0][1][at] if name.startswith("Mllama")]:
                seconds = median(lambda m, t: t[name]["seconds"])
                peer = turns[0][1][at][name]
                theirs = np.fromfile(peer["values"], dtype=np.float32)
                same = peer["aspect_ratio_id"] == turns[0][0][at]["aspect_ratio_id"] and theirs.shape == values.shape
                # A level is 1/255 before the channel's standard deviation divides it.
                std = np.repeat(processor["image_std"], 560 * 560)
                levels = np.abs((theirs - values).reshape(-1, 3 * 560 * 560) * std) * 255 if same else np.array([np.inf])
                print(f"| | transformers, {name} | {seconds * 1e3:.1f} | {seconds / vgen:.2f} x | {levels.max():.2f} | {levels.mean():.4f} |")
                result[name] = {"seconds": seconds, "largest": float(levels.max()), "mean": float(levels.mean())}
                if name == REFERENCE:
                    failed |= seconds < 3 * vgen or bool(levels.max() > 1e-3)
            results.append(result)
        if arguments.out:
            with open(arguments.out, "w") as file:
                json.dump({"command": " ".join(sys.argv), "results": results}, file, indent=1)
        sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
