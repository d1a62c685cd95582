"""A real browser, for the tests of the website."""

import os
import shutil

import pytest
from helpers import PATIENCE
from playwright.sync_api import expect, sync_playwright

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
