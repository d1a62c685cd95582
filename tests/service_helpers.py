"""What the tests of photo.py, the service and its page share: photos, files meant to do harm, a running server."""

import contextlib
import functools
import io
import os
import re
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

from PIL import Image, ImageCms

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


def jpeg_in_scans(width, height):
    """Return a progressive JPEG file of one grey in 883 scans: each coefficient bit by bit. Small, and slow to read."""
    whole = encode(Image.new("L", (width, height), 200), "JPEG", progressive=True)
    # Pillow's scans of a grey picture: the mean of each block, then three of its other coefficients, here all 0.
    scans = [at for at in range(len(whole)) if whole[at : at + 2] == b"\xff\xda"]
    head, nothing = whole[: whole.index(b"\xff\xc4", scans[0])], whole[scans[-1] + 10 : -2]
    table = whole[whole.rindex(b"\xff\xc4") : scans[-1]]
    steps = [
        (place, place, 16 * (bit + 1 if bit < 13 else 0) + bit) for place in range(1, 64) for bit in range(13, -1, -1)
    ]
    return head + table + b"".join(b"\xff\xda\0\x08\1\1\0" + bytes(step) + nothing for step in steps) + b"\xff\xd9"


def gif_with_comments(count):
    """Return a GIF file with that many comments of one byte."""
    size = struct.pack("<HH", 64, 48)
    head = b"GIF89a" + size + b"\x80\0\0" + bytes(6)
    return head + b"\x21\xfe\1a\0" * count + b"," + bytes(4) + size + b"\0\2\2\x44\1\0;"


def webp_of_nothing(side):
    """Return the header of a lossless WebP file of side x side pixels, and some bytes."""
    size = (side - 1) | (side - 1) << 14
    body = b"\x2f" + struct.pack("<I", size) + bytes(40)
    return b"RIFF" + struct.pack("<I", 12 + len(body) + 1) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body + b"\0"


def peak_memory(pid):
    """Return the most bytes of memory that a process has taken so far, as Linux tells."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024


def swapped_profile():
    """Return an RGB profile whose red and blue primaries are sRGB's, exchanged: it turns orange to blue."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


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
        [SERVE, "-B", "-m", "service"],
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
        process.wait(30)
        reader.join(30)  # a reader of photos that outlived the service would hold the other end
