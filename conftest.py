"""What all tests share, in tests/ and notebooks/ alike, however they are started: the quick profile above all."""

import contextlib
import hashlib
import os
import subprocess

# Before utils is imported, here or in a notebook's kernel. In the full profile a test would train for minutes and
# overwrite what a full run made.
os.environ["SHIP_TRUCK_PROFILE"] = "quick"
os.environ.pop("SHIP_TRUCK_OUTPUT", None)

import pytest

import utils


@pytest.hookimpl(optionalhook=True)  # xdist comes with `make test` only
def pytest_xdist_make_scheduler(config, log):
    """Let each file stay with one worker, and all notebooks, which need each other, with one, in their order."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::")[0]
            return "notebooks" if file.endswith(".ipynb") else file

    return ByFile(config, log)


def pytest_collection_modifyitems(items):
    """Put the notebooks first, which take longest."""
    items.sort(key=lambda item: item.path.suffix != ".ipynb")


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
    monkeypatch.setattr(utils, "CACHE", tmp_path / "cache")
    return tmp_path
