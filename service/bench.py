"""Measure the service: start, memory, one client on one core, eight at once, slow ones. `make bench-serve` calls this.

    python service/bench.py PYTHON   PYTHON: the interpreter of an environment with service/requirements.txt

The photos are 640x480 JPEG files, enlarged test images, sent by threads of this process. The numbers go to
results/serve.json, service/README.md and README.md. What this system can't measure is left out, and said to be.
"""

import contextlib
import os
import platform
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
from scripts import figures

APP = Path(__file__).resolve().parent / "app.py"
SECONDS = 20  # of load, each time
STARTS = 5
SLOW_CLIENTS, SLOW_BYTES = 200, 9_500_000


def jpeg_photos(count=50):
    """Return that many test images as the bytes of 640x480 JPEG files."""
    photos = []
    for image in utils.load_images(utils.DATA / "ship_truck.npz")[2][:count]:
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
    started = time.perf_counter()
    process = subprocess.Popen([python, APP], env={**os.environ, "PORT": str(port)}, stderr=subprocess.DEVNULL,
                               preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None)
    try:
        while True:
            try:
                requests.post(f"{address}/detect", files={"image": photo}, timeout=10).raise_for_status()
                break
            except requests.ConnectionError:
                if process.poll() is not None:
                    raise RuntimeError(f"the service ended with status {process.returncode}; "
                                       f"run `{python} service/app.py` to see why") from None
                time.sleep(0.01)
        yield address, psutil.Process(process.pid), time.perf_counter() - started
    finally:
        process.terminate()
        process.wait()


def load(address, clients, photos, seconds=SECONDS):
    """Let clients post photos without a pause.

    Returns {"clients", "requests", "failures", "median_ms", "p95_ms", "a_second"}.
    """
    until = time.perf_counter() + seconds

    def client(number):
        times, failures = [], 0
        with requests.Session() as session:
            while time.perf_counter() < until:
                started, data = time.perf_counter(), photos[(number + len(times)) % len(photos)]
                try:
                    answer = session.post(f"{address}/detect", files={"image": data}, timeout=60)
                    failures += answer.status_code != 200 or "probabilities" not in answer.json()
                except requests.RequestException:
                    failures += 1
                times.append(1000 * (time.perf_counter() - started))
        return times, failures

    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(client, range(clients)))
    times = sorted(time for times, _ in found for time in times)
    return {"clients": clients, "requests": len(times), "failures": sum(failures for _, failures in found),
            "median_ms": round(statistics.median(times)), "p95_ms": round(times[int(0.95 * len(times))]),
            "a_second": round(len(times) / seconds, 1)}


def slow_clients(address, process, photo, seconds=10):
    """Let many clients send large photos that don't come to their end, for some seconds; then send a proper photo.

    Returns {"clients", "sent_mb", "rss_mb": the most that the process held meanwhile, "answered_ms" or None}.
    """
    host, port = address.removeprefix("http://").split(":")
    head = (b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            b"Content-Length: 10000000\r\n\r\n--x\r\n")
    most = sent = 0
    with contextlib.ExitStack() as stack:
        left = {stack.enter_context(socket.create_connection((host, int(port)))): memoryview(head + bytes(SLOW_BYTES))
                for _ in range(SLOW_CLIENTS)}
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            for connection, data in list(left.items()):
                connection.setblocking(False)
                try:
                    count = connection.send(data[:1_000_000]) if data else 0
                    left[connection], sent = data[count:], sent + count
                except BlockingIOError:  # the service does not read it at the moment
                    pass
                except OSError:  # it has ended this upload
                    del left[connection]
            most = max(most, process.memory_info().rss)
        started = time.perf_counter()
        answer = requests.post(f"{address}/detect", files={"image": photo}, timeout=60)
        answered = round(1000 * (time.perf_counter() - started)) if answer.status_code == 200 else None
        return {"clients": SLOW_CLIENTS, "sent_mb": round(sent / 1e6), "answered_ms": answered,
                "rss_mb": round(max(most, process.memory_info().rss) / 1e6)}


def measure(python):
    """Return all measurements."""
    photos, starts = jpeg_photos(), []
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None  # Linux only
    for _ in range(STARTS):
        with server(python, photos[0]) as (_, _, seconds):
            starts.append(round(seconds, 3))
    one = None
    if cores:
        with server(python, photos[0], cores[:1]) as (address, _, _):
            one = load(address, 1, photos)
    with server(python, photos[0]) as (address, process, _):
        before = process.memory_info().rss
        eight = load(address, 8, photos)
        after = process.memory_info().rss
    with server(python, photos[0]) as (address, process, _):
        slow = slow_clients(address, process, photos[0])
    return {"machine": f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}",
            "start_seconds": starts, "rss_mb": [round(before / 1e6), round(after / 1e6)],
            "one_client_one_core": one, "eight_clients": eight, "slow_clients": slow}


def table(found):
    """Return measurements as a Markdown table."""
    one, eight, slow = found["one_client_one_core"], found["eight_clients"], found["slow_clients"]
    rows = [("", "wanted", "measured"), ("---", "---:", "---:"),
            (f"process start to first answer, median of {len(found['start_seconds'])} (slowest)", "2 s",
             f"{statistics.median(found['start_seconds']):.2f} s ({max(found['start_seconds']):.2f} s)"),
            ("resident memory after the first answer / after 8 clients", "300 MB",
             "{} / {} MB".format(*found["rss_mb"])),
            ("one client, server on one core, median / 95th percentile" + (f" of {one['requests']:,}" if one else ""),
             "60 ms", f"{one['median_ms']} / {one['p95_ms']} ms" if one else "not on this system"),
            ("eight clients at once, lost", "0", f"{eight['failures']} of {eight['requests']:,}"),
            ("eight clients at once, median / 95th percentile", "", f"{eight['median_ms']} / {eight['p95_ms']} ms"),
            ("eight clients at once, photos a second", "", f"{eight['a_second']}"),
            (f"memory, while {slow['clients']} clients send {slow['sent_mb']:,} MB and don't finish", "300 MB",
             f"{slow['rss_mb']} MB"),
            ("a proper photo meanwhile, answered after", "",
             "not answered" if slow["answered_ms"] is None else f"{slow['answered_ms']} ms")]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows) + f"\nOn {found['machine']}.\n"


def main():
    exported = utils.read_json(utils.ROOT / "results" / "export.json", made_by="make export")
    found = measure(sys.argv[1]) | {"settings": exported["settings"]}
    utils.save_json(utils.OUTPUT / "results" / "serve.json", found)
    print(table(found))
    figures.fill_in("service/README.md", "serve", table(found))
    figures.fill_in_serve()


if __name__ == "__main__":
    main()
