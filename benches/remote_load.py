#!/usr/bin/env python3
"""What the remote client costs, beside huggingface_hub's AsyncInferenceClient on the same server in the same run.

    cargo build --release --workspace --example remote_load
    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install huggingface_hub
    /tmp/venv/bin/python benches/remote_load.py --flat 100000 --out benches/results/remote_load.json

An echo server on loopback takes every request's bytes and answers at once, so that all time measured is the client's and
the loopback's: the latencies are what a client adds to a server's own. Both clients send the same messages with an image
of the same size, already in memory; both encode it anew for each request, as a run over different images has to. Every
measurement is a process of its own; the peak of its memory is the system's count.

The limits at the end are the machine's: bytes through one loopback connection, base64 and JSON on one core. `of loopback`
is the share of the first that a measurement reached with its bodies alone.
"""

import argparse
import asyncio
import base64
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TARGET = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
SIZES = (10_000, 500_000)
IN_FLIGHT = (1, 8, 64, 512)


def image(size):
    return bytes([137, 80, 78, 71, 13, 10, 26, 10]) + bytes(place * 31 & 255 for place in range(8, size))


async def hub_client(url, requests, in_flight, size):
    """The same questions through huggingface_hub, `in_flight` at a time."""
    from huggingface_hub import AsyncInferenceClient

    client = AsyncInferenceClient(base_url=url, api_key="x")
    data = image(size)
    latencies = []
    rows = iter(range(requests))

    async def worker():
        for row in rows:
            begun = time.perf_counter()
            encoded = "data:image/png;base64," + base64.b64encode(data).decode()
            content = [
                {"type": "text", "text": f"row {row}"},
                {"type": "image_url", "image_url": {"url": encoded}},
            ]
            answer = await client.chat_completion(model="tgi", messages=[{"role": "user", "content": content}])
            assert answer.choices[0].message.content
            latencies.append(time.perf_counter() - begun)

    begun = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(in_flight)))
    seconds = time.perf_counter() - begun
    latencies.sort()
    return {
        "client": "huggingface_hub",
        "requests": requests,
        "in_flight": in_flight,
        "image_bytes": size,
        "requests_per_second": requests / seconds,
        "p50_ms": latencies[len(latencies) // 2] * 1e3,
        "p99_ms": latencies[len(latencies) * 99 // 100] * 1e3,
        "peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def measure(command, url, seconds, in_flight, size):
    """As many requests as fit into the time, judged by a short run."""

    def once(requests):
        line = [*command, url, str(requests), str(in_flight), str(size)]
        return json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout)

    rate = once(max(200, in_flight * 2))["requests_per_second"]
    return once(max(200, in_flight * 4, int(rate * seconds)))


def main():
    if sys.argv[1:2] == ["hub"]:
        url, *numbers = sys.argv[2:]
        print(json.dumps(asyncio.run(hub_client(url, *map(int, numbers)))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=os.path.join(TARGET, "release/examples/remote_load"))
    parser.add_argument("--seconds", type=float, default=5.0, help="about how long each measurement takes")
    parser.add_argument("--flat", type=int, default=0, help="requests of a last run that looks at memory only")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="bytes of the image")
    parser.add_argument("--in-flight", type=int, nargs="*", default=IN_FLIGHT)
    parser.add_argument("--out", help="write the results there, too")
    arguments = parser.parse_args()

    import huggingface_hub

    load_before = os.getloadavg()[0]
    limits = json.loads(subprocess.run([arguments.program, "limits"], check=True, stdout=subprocess.PIPE).stdout)
    server = subprocess.Popen([arguments.program, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    url = server.stdout.readline().strip()
    ours, theirs = [arguments.program, "ask"], [sys.executable, os.path.abspath(__file__), "hub"]

    results = []
    print(f"{'client':16} {'image':>8} {'in flight':>9} {'requests/s':>11} {'p50 ms':>8} {'p99 ms':>8} {'peak MiB':>9}"
          f" {'of loopback':>12} {'times':>6}")
    for size, in_flight in itertools.product(arguments.sizes, arguments.in_flight):
        # vgen before and after the other: what drifts in between shows.
        turns = [measure(command, url, arguments.seconds, in_flight, size) for command in (ours, theirs, ours)]
        for row in turns:
            body = (size + 2) // 3 * 4
            row["share_of_loopback"] = row["requests_per_second"] * body / limits["loopback_bytes_per_second"]
            row["times_huggingface_hub"] = row["requests_per_second"] / turns[1]["requests_per_second"]
            print(f"{row['client']:16} {size:8} {in_flight:9} {row['requests_per_second']:11.0f} {row['p50_ms']:8.2f} "
                  f"{row['p99_ms']:8.2f} {row['peak_kib'] / 1024:9.0f} {row['share_of_loopback']:12.2f} "
                  f"{row['times_huggingface_hub']:6.1f}", flush=True)
        results += turns
    flat = None
    if arguments.flat:
        line = [*ours, url, str(arguments.flat), "64", "10000"]
        flat = json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout)
        print(f"{arguments.flat} requests: {flat['resident_kib_after_a_tenth'] / 1024:.1f} MiB after a tenth, "
              f"{flat['resident_kib'] / 1024:.1f} MiB at the end, {flat['peak_kib'] / 1024:.1f} MiB at most")
    server.stdin.close()
    server.wait()

    print(json.dumps(limits))
    report = {
        "machine": {"cpu": cpu(), "cores": os.cpu_count(), "load_before": load_before,
                    "python": platform.python_version(), "huggingface_hub": huggingface_hub.__version__},
        "limits": limits,
        "results": results,
        "flat": flat,
    }
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump(report, file, indent=1)
            file.write("\n")


def cpu():
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


if __name__ == "__main__":
    main()
