"""What all tests share, in tests/ and notebooks/ alike: notebooks load what was trained, and write to a temporary folder."""

import os
import shutil
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


def pytest_sessionfinish(session):
    shutil.rmtree(os.environ["SHIP_TRUCK_OUTPUT"], ignore_errors=True)


@pytest.fixture
def output(tmp_path, monkeypatch):
    """Send everything that a run writes into a temporary folder."""
    monkeypatch.setattr(utils, "OUTPUT", tmp_path)
    return tmp_path
