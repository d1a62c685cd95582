"""Tests of the page in a real browser: Chromium, driven by Playwright, against the running server."""

import base64
import io

import numpy as np
import pytest
from conftest import encode, large_photo
from PIL import Image
from playwright.sync_api import expect

import utils


@pytest.fixture
def page(browser, server):
    """The page, newly opened. Nothing may be asked of another server or complained of in the console."""
    page = browser.new_page(viewport={"width": 800, "height": 900})
    complaints = []
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url)
            if not request.url.startswith((server, "blob:", "data:")) else None)
    page.on("filechooser", lambda chooser: None)  # has the browser announce file choosers from the start
    page.goto(server)
    yield page
    page.close()
    assert not [text for text in complaints if "400 (BAD REQUEST)" not in text]


@pytest.fixture(scope="module")
def ship():
    x_test, y_test = utils.load_images(utils.DATA / "ship_truck.npz")[2:]
    return encode(large_photo(x_test[y_test == 0][0]), "JPEG")


def hand_over(page, event, data, kind="image/jpeg"):
    """Drop or paste a file, as the browser would hand it to the page."""
    page.evaluate("""([event, data, kind]) => {
        const bytes = Uint8Array.from(atob(data), character => character.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "photo", {type: kind}));
        document.body.dispatchEvent(event === "paste"
            ? new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true})
            : new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
    }""", [event, base64.b64encode(data).decode(), kind])


def expect_a_ship(page):
    expect(page.get_by_role("status")).to_contain_text("Ship, ")
    expect(page.locator("#photo")).to_be_visible()
    assert float(page.get_by_role("progressbar", name="Ship").evaluate("bar => bar.value")) > 0.9


def test_choose_a_file(page, ship):
    page.set_input_files("#file", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": ship})
    expect_a_ship(page)


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_drop_or_paste_a_file(page, ship, event):
    hand_over(page, event, ship)
    expect_a_ship(page)


def test_a_broken_file_is_explained_and_the_next_one_works(page, ship):
    hand_over(page, "drop", ship[:len(ship) // 2])
    expect(page.locator("#verdict")).to_contain_text("damaged")
    expect(page.locator("#bars")).to_be_hidden()
    hand_over(page, "drop", ship)
    expect_a_ship(page)


def test_a_stranger_is_neither(page, stranger_images):
    hand_over(page, "drop", encode(stranger_images["horse"][0]), "image/png")
    expect(page.locator("#verdict")).to_have_text("Neither")
    expect(page.locator("#reason")).to_contain_text("neither a ship nor a truck")


def test_keyboard_only(page, ship):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files({"name": "a.jpg", "mimeType": "image/jpeg", "buffer": ship})
    expect_a_ship(page)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "show"
    expect(page.locator("#map")).to_be_hidden()
    page.keyboard.press("Space")
    expect(page.locator("#map")).to_be_visible()


def test_a_screen_reader_is_told(page, ship):
    expect(page.get_by_role("heading", name="Ship or truck?")).to_be_visible()
    expect(page.get_by_label("Drop a photo here, paste one, or choose it:")).to_be_visible()
    hand_over(page, "drop", ship)
    expect(page.get_by_role("status")).to_contain_text("Ship")
    expect(page.get_by_role("img", name="The photo you chose")).to_be_visible()
    assert page.locator("[role=status]").get_attribute("aria-live") == "polite"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(browser, server, ship, scheme):
    page = browser.new_page(color_scheme=scheme)
    page.goto(server)
    hand_over(page, "drop", ship)
    expect_a_ship(page)
    corner = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"))[-5:, -5:].mean()
    page.close()
    assert corner > 200 if scheme == "light" else corner < 60
