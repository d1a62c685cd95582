"""What the tests of photo.py, the service and its page share: photos, files meant to do harm, a running server."""

import contextlib
import functools
import io
import os
import struct
import subprocess
import sys
import threading
import zlib

from PIL import Image

import utils
from service.bench import free_port

SERVE = os.environ.get("SHIP_TRUCK_SERVE", sys.executable)  # the interpreter of an environment that serves
OTHER_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse")


@functools.cache
def images_of(name):
    """Return CIFAR-10's test images of a class, (n, 32, 32, 3) uint8."""
    if name in OTHER_CLASSES:
        x, y = utils.load_images(utils.ROOT / "data" / "other_classes.npz")[2:]
        return x[y == OTHER_CLASSES.index(name)]
    x, y = utils.load_images()[2:]
    return x[y == ("ship", "truck").index(name)]


def encode(image, form="PNG", **options):
    """Return the bytes of a Pillow image or an array (height, width, 3) in a file format."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
WHOLE = {form: encode(images_of("ship")[0].repeat(3, axis=0), form) for form in FORMATS}  # an undamaged file of each


def large_photo(image, size=(640, 480)):
    """Return a test image enlarged to the size of a photo."""
    return Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)


def chunk(kind, body):
    """Return a chunk of a PNG file."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, bits=8, colours=2, pixels=None, extra=b""):
    """Return a PNG file of zeros, or with these bytes in place of its compressed pixels, and with extra chunks."""
    if pixels is None:
        row = bytes(1 + width * bits // 8 * {0: 1, 2: 3, 4: 2, 6: 4}[colours])
        compressor = zlib.compressobj()
        pixels = b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def jpeg_in_scans(width, height, scans=3):
    """Return a sequential JPEG file with a scan for each of three components, the first repeated."""
    grey = encode(Image.new("L", (width, height), 200), "JPEG")
    frame, scan = grey.index(b"\xff\xc0"), grey.index(b"\xff\xda")
    size = grey[frame + 4 : frame + 9]
    components = b"".join(bytes([number, 0x11, 0]) for number in (1, 2, 3))
    head = grey[:frame] + b"\xff\xc0" + struct.pack(">H", 17) + size + b"\3" + components + grey[frame + 13 : scan]
    pixels = grey[scan + 10 : -2]
    order = [1] * (scans - 2) + [2, 3]
    return head + b"".join(b"\xff\xda\0\x08\1" + bytes([n, 0, 0, 63, 0]) + pixels for n in order) + b"\xff\xd9"


def gif_of_nothing(side):
    """Return a GIF file without pixels, for whose background Pillow allocates when it opens it."""
    size = struct.pack("<HH", side, side)
    control, frame = b"\x21\xf9\4\x08\0\0\0\0", b"," + bytes(4) + size + b"\0\2\2\x44\1\0"
    return b"GIF89a" + size + b"\x80\0\0" + bytes(6) + control + frame + b";"


def tiff_in_strips(count, kind=4):
    """Return a TIFF file with that many offsets of strips, all of them wrong; kind: 4 (integers) or 1 (bytes)."""
    end = 8 + 2 + 12 * 9 + 4
    tags = [(256, 64), (257, 64), (258, 8), (259, 1), (262, 1), (273, end), (277, 1), (278, 1), (279, end)]
    many = (273, 279)
    entries = [
        struct.pack("<HHII", tag, kind if tag in many else 4, count if tag in many else 1, value) for tag, value in tags
    ]
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + bytes(4) + struct.pack("<I", end) * count


@contextlib.contextmanager
def running_server(**environment):
    """Start the service as `make serve` does; yield its address, its process and the lines that it logs."""
    port = free_port()
    process = subprocess.Popen(
        [SERVE, "-B", "service/app.py"],
        cwd=utils.ROOT,
        env={key: value for key, value in os.environ.items() if key != "HOST"} | {"PORT": str(port)} | environment,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    log, ready = [], threading.Event()

    def read():
        for line in process.stderr:  # to its end: a pipe that nobody empties would hang the server
            log.append(line)
            if "ready" in line:
                ready.set()
        ready.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert ready.wait(60) and process.poll() is None, "".join(log)
        yield f"http://127.0.0.1:{port}", process, log
        assert process.poll() is None, "the server ended by itself: " + "".join(log[-20:])
    finally:
        process.terminate()
        process.wait()
        reader.join()
