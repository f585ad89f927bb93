#!/usr/bin/env python3
"""What the remote client costs, beside huggingface_hub's AsyncInferenceClient on the same server in the same run.

    cargo build --release -p vgen-backends --example remote_load
    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install huggingface_hub
    /tmp/venv/bin/python benches/remote_load.py [--seconds 5] [--out benches/results/remote_load.json]

An echo server on loopback answers every chat request at once, so that all time measured is the clients' (and the
server's, which is the same for both). Both clients send the same messages with an image of the same size, already in
memory; both encode it anew for each request, as a run over different images has to.
"""

import argparse
import asyncio
import base64
import json
import os
import platform
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TARGET = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))


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
    }


def bytes_per_second(work, size, seconds=0.3):
    """How fast `work` goes through `size` bytes on one core."""
    rounds, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        work()
        rounds += 1
    return rounds * size / (time.perf_counter() - begun)


def loopback_bytes_per_second(size=256 << 20):
    """What one connection on loopback carries, both ends on this machine."""
    import socket
    import threading

    listener = socket.create_server(("127.0.0.1", 0))

    def drain():
        connection, _ = listener.accept()
        while connection.recv(1 << 20):
            pass

    thread = threading.Thread(target=drain)
    thread.start()
    sender = socket.create_connection(listener.getsockname())
    block, begun = bytes(1 << 20), time.perf_counter()
    for _ in range(size >> 20):
        sender.sendall(block)
    sender.close()
    thread.join()
    return size / (time.perf_counter() - begun)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=os.path.join(TARGET, "release/examples/remote_load"))
    parser.add_argument("--seconds", type=float, default=5.0, help="about how long each measurement takes")
    parser.add_argument("--flat", type=int, default=0, help="requests of a last run that looks at memory only")
    parser.add_argument("--out", help="write the results there, too")
    arguments = parser.parse_args()

    import huggingface_hub

    server = subprocess.Popen([arguments.program, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    url = server.stdout.readline().strip()

    def ask(requests, in_flight, size):
        line = subprocess.run(
            [arguments.program, "ask", url, str(requests), str(in_flight), str(size)],
            check=True, capture_output=True, text=True,
        ).stdout
        return json.loads(line)

    results = []
    print(f"{'client':16} {'image':>8} {'in flight':>9} {'requests/s':>11} {'p50 ms':>8} {'p99 ms':>8} {'MiB':>7}")
    for size in (10_000, 500_000):
        for in_flight in (1, 8, 64, 512):
            pair = []
            for client in (ask, lambda *row: asyncio.run(hub_client(url, *row))):
                # As many requests as fit into the time, judged by a short run.
                rate = client(max(200, in_flight * 2), in_flight, size)["requests_per_second"]
                row = client(max(200, in_flight * 4, int(rate * arguments.seconds)), in_flight, size)
                pair.append(row)
                memory = f"{row['resident_kib'] / 1024:7.0f}" if "resident_kib" in row else ""
                print(f"{row['client']:16} {size:8} {in_flight:9} {row['requests_per_second']:11.0f} "
                      f"{row['p50_ms']:8.2f} {row['p99_ms']:8.2f} {memory}", flush=True)
            pair[0]["times_huggingface_hub"] = pair[0]["requests_per_second"] / pair[1]["requests_per_second"]
            results += pair
    if arguments.flat:
        results.append(ask(arguments.flat, 64, 10_000))
        print(json.dumps(results[-1]))
    server.stdin.close()
    server.wait()

    data = image(500_000)
    text = base64.b64encode(data).decode()
    limits = {
        "loopback_bytes_per_second": loopback_bytes_per_second(),
        "python_base64_bytes_per_second": bytes_per_second(lambda: base64.b64encode(data), len(data)),
        "python_json_bytes_per_second": bytes_per_second(lambda: json.dumps(text), len(text)),
    }
    report = {
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(),
                    "load_before": os.getloadavg()[0], "python": platform.python_version(),
                    "huggingface_hub": huggingface_hub.__version__},
        "limits": limits,
        "results": results,
    }
    print(json.dumps(limits))
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump(report, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    sys.exit(main())
