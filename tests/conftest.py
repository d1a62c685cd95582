"""What several test files share: a running server, photos to send it, and a look at what the tests leave behind."""

import contextlib
import hashlib
import io
import os
import resource
import shutil
import subprocess
import sys
import threading

import pytest
import requests
from PIL import Image
from playwright.sync_api import sync_playwright
from xdist.scheduler import LoadScopeScheduling

import utils
from service.bench import free_port

SERVE = os.environ.get("SHIP_TRUCK_SERVE", sys.executable)  # the interpreter of an environment that serves


def pytest_xdist_make_scheduler(config, log):
    """Let each file stay with one worker, and all notebooks, which need each other, with one, in their order."""
    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::")[0]
            return "notebooks" if file.endswith(".ipynb") else file

    return ByFile(config, log)


def pytest_collection_modifyitems(items):
    """Put the notebooks first, which take longest."""
    items.sort(key=lambda item: item.path.suffix != ".ipynb")


def repository_state():
    """Return what git says of this folder and a sum over all changes in it; None where it is no repository."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        status, changes = (subprocess.run(["git", *command], cwd=utils.ROOT, capture_output=True, check=True).stdout
                           for command in (("status", "--porcelain"), ("diff", "HEAD")))
        return status.decode(), hashlib.sha256(changes).hexdigest()


def pytest_sessionstart(session):
    if not hasattr(session.config, "workerinput"):  # once, not in every worker
        session.config.found = repository_state()


def pytest_sessionfinish(session):
    if hasattr(session.config, "workerinput"):
        return
    left = repository_state()
    if left != session.config.found:
        print(f"\nThe tests changed the working tree, which they must leave as they find it:\n{left[0]}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def encode(image, form="PNG", **options):
    """Return the bytes of a Pillow image or an array (height, width, 3) in a file format."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def large_photo(image, size=(640, 480)):
    """Return a test image enlarged to the size of a photo."""
    return Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def output(tmp_path, monkeypatch):
    """Send everything that a run writes into a temporary folder."""
    monkeypatch.setattr(utils, "OUTPUT", tmp_path)
    monkeypatch.setattr(utils, "CACHE", tmp_path / "cache")
    return tmp_path


def git(folder, *command):
    return subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *command], cwd=folder, check=True,
                          capture_output=True, text=True).stdout


def copy_project(folder, commit=False):
    """Copy notebooks, scripts, results and README into a folder, with a link to the data; return the folder.

    commit: make it a repository in which all of it is committed.
    """
    for name in ("utils.py", "photo.py", "README.md"):
        folder.mkdir(exist_ok=True)
        shutil.copy(utils.ROOT / name, folder)
    for name in ("notebooks", "scripts", "results"):
        shutil.copytree(utils.ROOT / name, folder / name, ignore=shutil.ignore_patterns("runs*", "__pycache__", ".*"))
    (folder / "data").symlink_to(utils.ROOT / "data")
    if commit:
        shutil.copy(utils.ROOT / ".gitignore", folder)
        for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "as it was"]):
            git(folder, *command)
    return folder


@pytest.fixture(scope="session")
def test_images():
    return utils.load_images(utils.DATA / "ship_truck.npz")[2]


@pytest.fixture(scope="session")
def stranger_images():
    """{class: its test images} of CIFAR-10's other classes."""
    x, y = utils.load_images(utils.DATA / "other_classes.npz")[2:]
    names = utils.definitions("07_strangers_and_damage")["OTHER_CLASSES"]
    return {name: x[y == label] for label, name in enumerate(names)}


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        message = "no Chromium here; on Debian: apt-get install chromium"
        if os.environ.get("SHIP_TRUCK_BROWSER") == "required":
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def running_server(app="service/app.py", **environment):
    """Start the service as `make serve` does; yield its address, its process and the lines that it logs.

    It may not write a single byte to a file.
    """
    port = free_port()
    process = subprocess.Popen([SERVE, "-B", app], cwd=utils.ROOT, stderr=subprocess.PIPE, encoding="utf-8",
                               env={**os.environ, "PORT": str(port), **environment},
                               preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)))
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


@pytest.fixture(scope="session")
def server():
    with running_server() as (address, _, _):
        assert requests.get(f"{address}/healthz").json()["status"] == "ok"
        yield address
