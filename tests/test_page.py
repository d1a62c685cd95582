"""Tests of the page in a real browser: Chromium, driven by Playwright, against the running server."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect
from service_helpers import encode, images_of, large_photo, running_server

SHIP = encode(large_photo(images_of("ship")[0]), "JPEG")


@pytest.fixture(scope="module")
def server():
    with running_server() as (address, _, _):
        yield address


@pytest.fixture(params=["light"])
def page(browser, server, request):
    """The page, newly opened. Nothing may be asked of another server or complained of in the console."""
    page = browser.new_page(viewport={"width": 800, "height": 900}, color_scheme=request.param)
    complaints = []
    page.on("console", lambda text: complaints.append(text.text) if text.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: complaints.append(asked.url) if asked.url.startswith("http") else None)
    page.on("filechooser", lambda chooser: None)  # has the browser announce file choosers from the start
    page.goto(server)
    yield page
    page.close()
    own = (server, "Failed to load resource: the server responded with a status of 4")
    assert not [text for text in complaints if not text.startswith(own)]


def hand_over(page, event, data, kind="image/jpeg"):
    """Drop or paste a file, as the browser would hand it to the page."""
    script = """([event, data, kind]) => {
        const bytes = Uint8Array.from(atob(data), character => character.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "photo", {type: kind}));
        document.body.dispatchEvent(event === "paste"
            ? new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true})
            : new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
    }"""
    page.evaluate(script, [event, base64.b64encode(data).decode(), kind])


def expect_a_ship(page):
    expect(page.get_by_role("status")).to_contain_text("Ship, ")
    expect(page.locator("#photo")).to_be_visible()
    assert float(page.get_by_role("progressbar", name="Ship").evaluate("bar => bar.value")) > 0.9


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_drop_or_paste_a_file(page, event):
    hand_over(page, event, SHIP)
    expect_a_ship(page)


def test_a_broken_file_is_explained_and_the_next_one_works(page):
    hand_over(page, "drop", SHIP[: len(SHIP) // 2])
    expect(page.locator("#verdict")).to_contain_text("damaged")
    expect(page.locator("#bars")).to_be_hidden()
    hand_over(page, "drop", SHIP)
    expect_a_ship(page)


def test_a_stranger_is_neither(page):
    hand_over(page, "drop", encode(images_of("horse")[0]), "image/png")
    expect(page.locator("#verdict")).to_have_text("Neither")
    expect(page.locator("#reason")).to_contain_text("neither a ship nor a truck")


def test_keyboard_only(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files({"name": "a.jpg", "mimeType": "image/jpeg", "buffer": SHIP})
    expect_a_ship(page)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "show"
    expect(page.locator("#map")).to_be_hidden()
    page.keyboard.press("Space")
    expect(page.locator("#map")).to_be_visible()


def test_a_screen_reader_is_told(page):
    expect(page.get_by_role("heading", name="Ship or truck?")).to_be_visible()
    expect(page.get_by_label("Drop a photo here, paste one, or choose it:")).to_be_visible()
    hand_over(page, "drop", SHIP)
    expect(page.get_by_role("status")).to_contain_text("Ship")
    expect(page.get_by_role("img", name="The photo you chose")).to_be_visible()
    assert page.locator("[role=status]").get_attribute("aria-live") == "polite"


@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
def test_light_and_dark(page):
    hand_over(page, "drop", SHIP)
    expect_a_ship(page)
    corner = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"))[-5:, -5:].mean()
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert corner < 60 if dark else corner > 200
