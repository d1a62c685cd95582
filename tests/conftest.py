"""What several test files share: a running server, and photos to send it."""

import io
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import requests
from PIL import Image

import utils
from bench_serve import free_port


def encode(image, form="PNG", **options):
    """Return the bytes of a Pillow image or an array (height, width, 3) in a file format."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def large_photo(image, size=(640, 480)):
    """Return a test image enlarged to the size of a photo."""
    return Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="session")
def test_images():
    return utils.load_ship_truck()[2]


@pytest.fixture(scope="session")
def server():
    """Start app.py as `make serve` does; yield its address. It may not write a single byte to a file."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-B", "app.py"], cwd=utils.ROOT, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "PORT": str(port)},
                               preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)))
    try:
        assert "ready" in process.stderr.readline()
        address = f"http://127.0.0.1:{port}"
        session = requests.Session()
        session.mount("http://", requests.adapters.HTTPAdapter(
            max_retries=requests.adapters.Retry(connect=20, backoff_factor=0.05)))
        assert session.get(f"{address}/healthz").json()["status"] == "ok"
        yield address
        assert process.poll() is None, "the server ended by itself"
    finally:
        process.terminate()
        process.communicate()
