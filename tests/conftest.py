"""A real browser, for the tests of the service's page and of JupyterLab."""

import os
import shutil

import pytest
from playwright.sync_api import expect, sync_playwright

PATIENCE = 120_000  # milliseconds: a busy machine takes long to load a model or to start a kernel, and is no mistake
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        message = "no Chromium here; on Debian: apt-get install chromium"
        if os.environ.get("SHIP_TRUCK_BROWSER") == "required":
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        expect.set_options(timeout=PATIENCE)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
