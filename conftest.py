"""What all tests share, in tests/ and notebooks/ alike: notebooks load what was trained, and write to a temporary folder."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile

# Before utils is imported, here or in a notebook's kernel.
os.environ["SHIP_TRUCK_TRAIN"] = "0"
os.environ["SHIP_TRUCK_OUTPUT"] = tempfile.mkdtemp(prefix="ship_truck_")

import pytest

import utils


@pytest.hookimpl(optionalhook=True)  # xdist comes with `make test` only
def pytest_xdist_make_scheduler(config, log):
    """Let each file stay with one worker: the cells of a notebook need each other."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


def repository_state():
    """Return what git says of this folder and a sum over all changes in it; None where git can't say."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        status, changes = (
            subprocess.run(["git", *command], cwd=utils.ROOT, capture_output=True, check=True).stdout
            for command in (("status", "--porcelain"), ("diff", "HEAD"))
        )
        return status.decode(), hashlib.sha256(changes).hexdigest()


def pytest_sessionstart(session):
    if not hasattr(session.config, "workerinput"):  # once, not in every worker
        session.config.state_before = repository_state()


def pytest_sessionfinish(session):
    shutil.rmtree(os.environ["SHIP_TRUCK_OUTPUT"], ignore_errors=True)
    if hasattr(session.config, "workerinput"):
        return
    state = repository_state()
    if state != session.config.state_before:
        print(f"\nThe tests changed the working tree, which they must leave as they find it:\n{state}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def output(tmp_path, monkeypatch):
    """Send everything that a run writes into a temporary folder."""
    monkeypatch.setattr(utils, "OUTPUT", tmp_path)
    return tmp_path
