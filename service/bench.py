"""Measure the service: start, memory, one client on one core, eight at once. `make bench-serve` calls this.

    python service/bench.py PYTHON   PYTHON: the interpreter of an environment with service/requirements.txt

The photos are 640x480 JPEG files, enlarged test images, sent by threads of this process. The numbers go to
results/serve.json and service/README.md. What this system can't measure is left out, and said to be.
"""

import contextlib
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import psutil
import requests
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils

SERVICE = Path(__file__).resolve().parent
STARTS = 5
ROUNDS = 10  # in which each photo is sent once


def jpeg_photos(count=50):
    """Return that many test images as the bytes of 640x480 JPEG files."""
    photos = []
    for image in utils.load_images()[2][:count]:
        buffer = BytesIO()
        Image.fromarray(image).resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        photos.append(buffer.getvalue())
    return photos


def free_port():
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def server(python, photo, cores=None):
    """Run the service, on some processor cores only if they are given, and let it answer one photo.

    Yields its address, its process and the seconds from its start to that answer. Raises RuntimeError where it ends.
    """
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "HOST": "127.0.0.1", "PORT": str(port)}
    started = time.perf_counter()
    process = psutil.Popen([python, "-m", "service"], cwd=utils.ROOT, env=environment, stderr=subprocess.DEVNULL)
    try:
        if cores:
            process.cpu_affinity(cores)
        while True:
            try:
                requests.post(f"{address}/detect", files={"image": photo}, timeout=10).raise_for_status()
                break
            except requests.ConnectionError:
                if process.poll() is not None:
                    raise RuntimeError(
                        f"the service ended with status {process.returncode}; run `{python} -m service` to see why"
                    ) from None
                time.sleep(0.01)
        yield address, process, time.perf_counter() - started
    finally:
        process.terminate()
        process.wait()


def load(address, clients, photos):
    """Let that many clients post photos without a pause; return how many requests, how they went and their times."""
    with requests.Session() as session, ThreadPoolExecutor(clients) as pool:

        def post(data):
            started = time.perf_counter()
            answer = session.post(f"{address}/detect", files={"image": data}, timeout=60)
            return answer.status_code, 1000 * (time.perf_counter() - started)

        started = time.perf_counter()
        statuses, times = zip(*pool.map(post, photos * ROUNDS), strict=True)
        seconds = time.perf_counter() - started
    return {
        "clients": clients,
        "requests": len(times),
        "failures": sum(status != 200 for status in statuses),
        "median_ms": round(statistics.median(times)),
        "p95_ms": round(sorted(times)[int(0.95 * len(times))]),
        "a_second": round(len(times) / seconds, 1),
    }


def memory(process):
    """Return the megabytes of memory of the service and of each process that it has started, as [service, others …]."""
    return [round(each.memory_info().rss / 1e6) for each in (process, *process.children(recursive=True))]


def measure(python):
    """Return all measurements."""
    photos, starts, one = jpeg_photos(), [], None
    for _ in range(STARTS):
        with server(python, photos[0]) as (_, _, seconds):
            starts.append(round(seconds, 3))
    if hasattr(psutil.Process, "cpu_affinity"):  # not on macOS
        with server(python, photos[0], psutil.Process().cpu_affinity()[:1]) as (address, _, _):
            one = load(address, 1, photos)
    with server(python, photos[0]) as (address, process, _):
        before = memory(process)
        eight = load(address, 8, photos)
        after = memory(process)
    return {
        "machine": utils.machine()["processor"]
        + f", {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}",
        "start_seconds": starts,
        "memory_mb": {"first answer": before, "eight clients": after},
        "one_client_one_core": one,
        "eight_clients": eight,
    }


def table(found):
    """Return measurements as a Markdown table."""
    starts, one, eight = found["start_seconds"], found["one_client_one_core"], found["eight_clients"]
    start = f"{statistics.median(starts):.2f} s ({max(starts):.2f} s)"
    one_ms = f"{one['median_ms']} / {one['p95_ms']} ms" if one else "not on this system"
    before, after = (sum(found["memory_mb"][when]) for when in ("first answer", "eight clients"))
    return f"""|  | wanted | measured |
| --- | ---: | ---: |
| start to first answer, median (slowest) of {len(starts)} | 2 s | {start} |
| memory with its readers, after the first answer / after 8 clients | 500 MB | {before} / {after} MB |
| one client, server on one core, median / 95th percentile | 40 ms | {one_ms} |
| eight clients at once, lost | 0 | {eight["failures"]} of {eight["requests"]:,} |
| eight clients at once, median / 95th percentile |  | {eight["median_ms"]} / {eight["p95_ms"]} ms |
| eight clients at once, photos a second |  | {eight["a_second"]} |

On {found["machine"]}.
"""


def main():
    found = measure(sys.argv[1])
    readme = SERVICE / "README.md"
    text = readme.read_text(encoding="utf-8")
    filled = re.sub(r"(?<=<!-- serve -->\n).*(?=<!-- /serve -->)", lambda _: table(found), text, flags=re.DOTALL)
    for path, content in (
        (utils.ROOT / "results" / "serve.json", json.dumps(found, indent=1) + "\n"),
        (readme, filled),
    ):
        with utils.atomic_write(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
