"""Tests in JupyterLab itself, in a real browser: a parameter is changed there, and every notebook is opened."""

import os
import re
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest
from helpers import NOTEBOOKS, PATIENCE, copy_project
from playwright.sync_api import expect

from service.bench import free_port


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    """JupyterLab in a copy of the project, in the quick profile; yields its address and the copy."""
    folder, home = copy_project(tmp_path_factory.mktemp("lab") / "copy"), tmp_path_factory.mktemp("home")
    settings = home / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"windowingMode": "none"}', encoding="utf-8")  # cells out of sight are in the page, too
    port = free_port()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "jupyterlab",
            "--no-browser",
            f"--port={port}",
            "--IdentityProvider.token=",
            f"--ServerApp.root_dir={folder}",
            "--allow-root",
            "--LabApp.news_url=",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        ],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "JUPYTERLAB_SETTINGS_DIR": str(home), "JUPYTER_CONFIG_DIR": str(home)},
    )
    address = f"http://127.0.0.1:{port}/lab"
    try:
        while True:
            try:
                urllib.request.urlopen(address, timeout=10).close()
                break
            except OSError:
                assert process.poll() is None, "JupyterLab ended by itself"
                time.sleep(0.1)
        yield address, folder
    finally:
        process.kill()  # asked to end, it may wait for a kernel; a kernel ends when its server is gone
        process.wait()


@pytest.fixture
def tab(browser, lab):
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.set_default_timeout(PATIENCE)
    yield page
    page.close()


def open_notebook(page, lab, name):
    """Open a notebook; return its panel when all its cells are there."""
    page.goto(f"{lab[0]}/tree/notebooks/{name}?reset")
    panel = page.locator(".jp-NotebookPanel")
    cells = nbformat.read(lab[1] / "notebooks" / name, as_version=4).cells
    expect(panel.locator(".jp-Notebook .jp-Cell")).to_have_count(len(cells))
    return panel, cells


def test_a_parameter_is_changed_and_the_run_stands_in_the_table(lab, tab):
    panel, cells = open_notebook(tab, lab, "03_vgg16_transfer_learning.ipynb")
    number = next(number for number, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", []))
    panel.locator(".jp-Cell").nth(number).locator(".cm-content").click()
    tab.keyboard.press("Control+a")
    tab.keyboard.insert_text(re.sub(r"hidden_units: int = \d+", "hidden_units: int = 31", cells[number].source))
    # The status bar speaks of the notebook once it has been clicked. Before it is connected to its kernel, JupyterLab
    # drops "Run All Cells" without a word.
    expect(tab.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible()
    tab.get_by_role("menuitem", name="Run", exact=True).click()
    tab.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    table = panel.locator(".jp-OutputArea-output", has_text="the committed one")
    expect(table).to_contain_text("hidden_units 31 (not ", timeout=600_000)  # it trains
    assert len(list((lab[1] / "scratch" / "results" / "runs").iterdir())) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_opens_as_it_was_saved(lab, tab, path):
    (lab[1] / "notebooks" / path.name).write_bytes(path.read_bytes())
    panel, cells = open_notebook(tab, lab, path.name)
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    expect(panel.locator(".jp-Cell .jp-OutputArea-output")).to_have_count(len(outputs))
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    expect(panel.locator(".jp-RenderedImage img")).to_have_count(pictures)
    assert panel.locator("[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    assert panel.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0
    assert tab.locator(".jp-Dialog").count() == 0
