"""Measure the service: start, memory, one client on one core, eight clients at once. `make bench-serve` calls this.

    python bench_serve.py PYTHON   PYTHON: the interpreter of an environment with requirements-serve.txt

Locust sends the photos (640x480 JPEG files, enlarged test images). service/locustfile.py tells it how. The numbers go to
results/serve.json and into the README. Only Linux can hold a server to one core.
"""

import contextlib
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import requests
from PIL import Image

import utils

SECONDS = 20  # of load, each time
STARTS = 5


def save_photos(folder, count=50):
    """Write that many test images to a folder, as 640x480 JPEG files."""
    for number, image in enumerate(utils.load_ship_truck()[2][:count]):
        large = Image.fromarray(image).resize((640, 480), Image.Resampling.BICUBIC)
        large.save(Path(folder) / f"{number:02}.jpg", quality=90)


def free_port():
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def server(python, cores, photo):
    """Run app.py on the given processor cores, and let it answer one photo.

    Yields its address, its process and the seconds from its start to that answer.
    """
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    started = time.perf_counter()
    process = subprocess.Popen([python, "app.py"], env={**os.environ, "PORT": str(port)}, stderr=subprocess.DEVNULL,
                               preexec_fn=lambda: os.sched_setaffinity(0, cores))
    try:
        while True:
            try:
                requests.post(f"{address}/detect", files={"image": photo}, timeout=10).raise_for_status()
                break
            except requests.ConnectionError:
                if process.poll() is not None:
                    sys.exit(f"app.py ended with status {process.returncode}; run `{python} app.py` to see why")
                time.sleep(0.01)
        yield address, psutil.Process(process.pid), time.perf_counter() - started
    finally:
        process.terminate()
        process.wait()


def load(address, clients, folder):
    """Let Locust send photos; return {"clients", "requests", "failures", "median_ms", "p95_ms", "a_second"}."""
    done = subprocess.run([sys.executable, "-m", "locust", "-f", "service/locustfile.py", "--headless", "--json",
                           "--only-summary", "-u", str(clients), "-r", str(clients), "-t", f"{SECONDS}s", "-H", address],
                          capture_output=True, text=True, env={**os.environ, "PHOTOS": folder})
    if not done.stdout.strip():
        sys.exit(f"Locust failed: {done.stderr.strip().splitlines()[-1]}")
    found, = json.loads(done.stdout)
    times = sorted(int(ms) for ms, count in found["response_times"].items() for _ in range(count))
    return {"clients": clients, "requests": found["num_requests"], "failures": found["num_failures"],
            "median_ms": statistics.median(times), "p95_ms": times[int(0.95 * len(times))],
            "a_second": round(found["num_requests"] / SECONDS, 1)}


def main():
    python, cores, starts = sys.argv[1], sorted(psutil.Process().cpu_affinity()), []
    with tempfile.TemporaryDirectory() as folder:
        save_photos(folder)
        first = (Path(folder) / "00.jpg").read_bytes()
        for _ in range(STARTS):
            with server(python, cores, first) as (_, _, seconds):
                starts.append(seconds)
        with server(python, cores[:1], first) as (address, _, _):
            one = load(address, 1, folder)
        with server(python, cores, first) as (address, process, _):
            before = process.memory_info().rss
            eight = load(address, 8, folder)
            after = process.memory_info().rss
    found = {"machine": f"{len(cores)} cores, {platform.system()}, Python {platform.python_version()}",
             "start_seconds": starts, "rss_mb": [round(before / 1e6, 1), round(after / 1e6, 1)],
             "one_client_one_core": one, "eight_clients": eight}
    utils.save_json(utils.ROOT / "results" / "serve.json", found)
    table = ("|  | wanted | measured |\n| --- | ---: | ---: |\n"
             f"| process start to first answer, median of {STARTS} (slowest) | 2 s | {statistics.median(starts):.2f} s "
             f"({max(starts):.2f} s) |\n"
             f"| resident memory after the first answer / after 8 clients | 300 MB | {before / 1e6:.0f} / {after / 1e6:.0f} MB |\n"
             f"| one client, server on one core, median / 95th percentile of {one['requests']:,} | 60 ms | "
             f"{one['median_ms']:.0f} / {one['p95_ms']} ms |\n"
             f"| eight clients at once, lost | 0 | {eight['failures']} of {eight['requests']:,} |\n"
             f"| eight clients at once, median / 95th percentile |  | {eight['median_ms']:.0f} / {eight['p95_ms']} ms |\n"
             f"| eight clients at once, photos a second |  | {eight['a_second']} |\n\n"
             f"On {found['machine']}.\n")
    print(table)
    utils.replace_between(utils.ROOT / "README.md", "serve", table)


if __name__ == "__main__":
    main()
