"""Tests of the website in a real browser: its pages, and the page on which the model runs, from a plain file server."""

import base64
import csv
import functools
import http.server
import io
import os
import re
import subprocess
import sys
import threading
from urllib.parse import urljoin

import numpy as np
import pytest
from bs4 import BeautifulSoup
from helpers import NOTEBOOKS
from PIL import Image
from playwright.sync_api import Error, expect
from service_helpers import chunk, encode, images_of, large_photo, png, swapped_profile

import utils
from service import app, photo

SHIP = encode(large_photo(images_of("ship")[0]), "JPEG")
PAGES = [path.relative_to(utils.ROOT).with_suffix(".html").as_posix() for path in NOTEBOOKS]
UNSURE = 207  # of the trucks: the model's probability for it is far from 0 and 1


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(browser):
    """The website, newly built and served from a sub-path; yields the address of its start page."""
    if not (utils.ROOT / "site/node_modules").is_dir() and os.environ.get("SHIP_TRUCK_BROWSER") != "required":
        pytest.skip("ONNX Runtime for the browser is missing; `make test-all` has npm install it")
    done = subprocess.run([sys.executable, "site/build.py"], cwd=utils.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    handler = functools.partial(Quiet, directory=utils.ROOT / "site")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/public/"
        server.shutdown()


@pytest.fixture
def complaints():
    return []


@pytest.fixture
def page(browser, site, complaints, request):
    """A new tab. Nothing may be asked of another server or complained of in the console."""
    tab = browser.new_page(**getattr(request, "param", {}))
    tab.on("console", lambda text: complaints.append(text.text) if text.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda asked: complaints.append(asked.url) if asked.url.startswith("http") else None)
    tab.on("filechooser", lambda chooser: None)  # has the browser announce file choosers from the start
    yield tab
    tab.close()
    assert not [text for text in complaints if not text.startswith(site)]


@pytest.fixture
def demo(page, site):
    page.goto(site + "demo/index.html")
    expect(page.locator("#loading")).to_be_hidden()
    return page


# --- Pages -----------------------------------------------------------------------------------


def test_every_link_answers_and_every_notebook_is_reached(page, site):
    waiting, reached = [site + "index.html"], set()
    while waiting:
        address = waiting.pop()
        if address in reached:
            continue
        reached.add(address)
        response = page.request.get(address)
        assert response.ok, address
        if not address.endswith(".html"):
            continue
        soup = BeautifulSoup(response.text(), "html.parser")
        for tag in soup.select("a[href], img[src], link[href], script[src]"):
            target = urljoin(address, tag.get("href") or tag.get("src"))
            target, _, anchor = target.partition("#")
            if target == address and anchor:
                assert soup.find(id=anchor), f"{address}#{anchor}"
            if target.startswith(site):
                waiting.append(target)
    notebooks = {site + page for page in PAGES}
    assert notebooks | {site + "demo/index.html", site + "models/README.html"} <= reached


@pytest.mark.parametrize("page", [{"viewport": {"width": 390, "height": 844}}], indirect=True)
@pytest.mark.parametrize("path", ["index.html", *PAGES])
def test_a_page_shows_its_figures_and_fits_a_phone(page, site, path):
    page.goto(site + path)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert "$$" not in page.inner_text("main")
    images = page.evaluate("[...document.images].map(image => [image.naturalWidth > 0, image.alt])")
    assert images and all(shown and len(text) > 10 for shown, text in images)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(browser, site, scheme):
    for path in ("index.html", "demo/index.html"):
        tab = browser.new_page(color_scheme=scheme)
        tab.goto(site + path)
        corner = np.asarray(Image.open(io.BytesIO(tab.screenshot())).convert("L"))[-5:, :5].mean()
        tab.close()
        assert corner < 60 if scheme == "dark" else corner > 200


# --- The demo --------------------------------------------------------------------------------


def hand_over(page, event, data, kind="image/jpeg"):
    """Drop or paste a file, as the browser would hand it to the page."""
    script = """([event, data, kind]) => {
        const bytes = Uint8Array.from(atob(data), character => character.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "photo.jpg", {type: kind}));
        document.body.dispatchEvent(event === "paste"
            ? new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true})
            : new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
    }"""
    page.evaluate(script, [event, base64.b64encode(data).decode(), kind])


def in_browser(page, data):
    """Return what the page makes of a file: VGG16's probability of truck, its score of neither, the thumbnail, and the
    CNN's probability of truck."""
    script = """async data => {
        const {classify} = await import("./demo.js");
        const bytes = Uint8Array.from(atob(data), character => character.charCodeAt(0));
        const {cnn, vgg16, thumbnail} = await classify(new Blob([bytes]));
        return [vgg16.probability.data[0], vgg16.neither.data[0], [...thumbnail], cnn.probability.data[0]];
    }"""
    probability, neither, thumbnail, of_cnn = page.evaluate(script, base64.b64encode(data).decode())
    return probability, neither, np.array(thumbnail).reshape(32, 32, 3), of_cnn


def in_python(data):
    thumbnail = photo.to_thumbnail(photo.load_photo(data))
    probability, neither, _ = app.session.run(app.OUTPUTS, {"image": thumbnail[None]})
    return probability[0, 0], neither[0, 0], thumbnail


def expect_a_ship(page):
    for network in ("cnn", "vgg16"):
        expect(page.locator(f"#{network}-verdict")).to_contain_text("Ship, ")
        assert float(page.locator(f"#{network}-ship").evaluate("bar => bar.value")) > 0.9
    expect(page.locator("#photo")).to_be_visible()


def test_test_images_get_python_s_answers(demo):
    images, temperature = (
        utils.load_images()[2][:20],
        utils.load_result("calibration")["temperature"]["three_block_cnn"],
    )
    p = np.array(utils.load_result("three_block_cnn")["probability"]["test"][:20])
    for image, logit in zip(images, np.log(p / (1 - p)), strict=True):
        data = encode(Image.fromarray(image), "PNG")
        (probability, neither, thumbnail, of_cnn), expected = in_browser(demo, data), in_python(data)
        assert (thumbnail == image).all()
        assert abs(of_cnn - 1 / (1 + np.exp(-logit / temperature))) < 0.01
        assert abs(probability - expected[0]) < 1e-3 and abs(neither - expected[1]) < 1e-2


PRIMARIES = (31_270, 32_900, 70_800, 29_200, 17_000, 79_700, 13_100, 4_600)  # of BT.2020, and its white first


def with_chunk(data, kind, body):
    """Return a PNG file with a chunk behind its header."""
    return data[:33] + chunk(kind, body) + data[33:]


def files():
    """Return {what it is: bytes} of photographs in the formats and colour models that are met."""
    image = large_photo(images_of("truck")[UNSURE])
    turned = Image.Exif()
    turned[0x0112] = 6
    see_through = image.convert("RGBA")
    see_through.putalpha(Image.linear_gradient("L").resize(image.size))
    grey = (np.asarray(image.convert("L")).astype(np.uint16)) * 257
    return {
        "JPEG": encode(image, "JPEG", quality=92),
        "JPEG, turned": encode(image, "JPEG", quality=92, exif=turned),
        "JPEG, progressive": encode(image, "JPEG", quality=92, progressive=True),
        "JPEG, grey": encode(image.convert("L"), "JPEG"),
        "JPEG, CMYK": encode(image.convert("CMYK"), "JPEG", quality=92),
        "JPEG, another colour space": encode(image, "JPEG", quality=92, icc_profile=swapped_profile()),
        "PNG": encode(image, "PNG"),
        "PNG, transparent": encode(see_through, "PNG"),
        "PNG, 16 bits": encode(Image.fromarray(grey), "PNG"),
        "PNG, turned": encode(image, "PNG", exif=turned),
        "PNG, transparent, another colour space": encode(see_through, "PNG", icc_profile=swapped_profile()),
        "PNG, gamma": with_chunk(encode(image, "PNG"), b"gAMA", (100_000).to_bytes(4)),
        "PNG, primaries": with_chunk(encode(image, "PNG"), b"cHRM", b"".join(n.to_bytes(4) for n in PRIMARIES)),
        "PNG, HDR": with_chunk(encode(image, "PNG"), b"cICP", bytes([9, 16, 0, 1])),
        "PNG, grey, with a profile of colours": encode(image.convert("L"), "PNG", icc_profile=swapped_profile()),
        "JPEG, grey, with a profile of colours": encode(image.convert("L"), "JPEG", icc_profile=swapped_profile()),
        "WebP": encode(image, "WEBP", quality=90),
        "WebP, turned": encode(image, "WEBP", quality=90, exif=turned),
        "AVIF": encode(image, "AVIF", quality=90),
        "GIF": encode(image, "GIF"),
        "BMP": encode(image, "BMP"),
        "4031 pixels wide": encode(image.resize((4031, 1023), Image.Resampling.BICUBIC), "JPEG", quality=92),
        "3000 pixels wide": encode(image.resize((3000, 1999), Image.Resampling.BICUBIC), "JPEG", quality=92),
    }


@pytest.mark.parametrize("kind", files())
def test_a_file_of_every_kind_gets_python_s_answer(demo, kind):
    data = files()[kind]
    (probability, neither, thumbnail, _), expected = in_browser(demo, data), in_python(data)
    assert np.abs(thumbnail - expected[2].astype(int)).max() <= 3
    assert abs(probability - expected[0]) < 0.02 and (neither > 0) == (expected[1] > 0)


def differences():
    """Return {what it is: bytes} of files that page and service may treat differently; site/README.md has the table."""
    image = large_photo(images_of("truck")[UNSURE])
    jpeg, whole = encode(image, "JPEG"), encode(image, "PNG")
    return {
        "TIFF": encode(image, "TIFF"),
        "JPEG without its last two bytes": jpeg[:-2],
        "half a JPEG": jpeg[: len(jpeg) // 2],
        "half a PNG": whole[: len(whole) // 2],
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        "more than 100,000,000 pixels": png(10_001, 10_000, 8, 0),
    }


def test_what_only_one_of_page_and_service_reads_is_in_the_table(demo):
    rows = re.findall(
        r"^\| (.+?) \| (yes|no) \| (yes|no) \|$", (utils.ROOT / "site" / "README.md").read_text("utf-8"), re.M
    )
    found = {}
    for kind, data in differences().items():
        try:
            in_browser(demo, data)
            page = "yes"
        except Error as error:
            assert "no image that your browser can read" in str(error)
            page = "no"
        try:
            photo.load_photo(data)
            found[kind] = (page, "yes")
        except photo.Unreadable:
            found[kind] = (page, "no")
    assert {kind: tuple(rest) for kind, *rest in rows} == found


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_drop_or_paste_a_file(demo, event):
    hand_over(demo, event, SHIP)
    expect_a_ship(demo)


def test_an_example_is_answered_and_a_horse_is_neither(demo):
    demo.get_by_role("button", name="a ship").first.click()
    expect_a_ship(demo)
    demo.get_by_role("button", name="horse").click()
    expect(demo.locator("#vgg16-verdict")).to_have_text("Neither")


def test_a_bad_file_is_explained_and_the_next_one_works(demo):
    hand_over(demo, "drop", b"this is a text")
    expect(demo.locator("#message")).to_contain_text("no image that your browser can read")
    expect(demo.locator("#answers")).to_be_hidden()
    hand_over(demo, "drop", SHIP)
    expect_a_ship(demo)


def test_a_photo_of_100_megapixels_is_answered(demo):
    hand_over(demo, "drop", png(10_000, 10_000, 8, 0), "image/png")
    expect(demo.locator("#vgg16-verdict")).not_to_have_text("")
    hand_over(demo, "drop", SHIP)
    expect_a_ship(demo)


def test_nothing_is_asked_of_any_server_after_loading(demo, complaints):
    complaints.clear()
    hand_over(demo, "drop", SHIP)
    expect_a_ship(demo)
    assert complaints == []


@pytest.mark.parametrize("body", [b"<html>Log in to this network</html>", b"cut off"])
def test_wrong_bytes_are_explained_and_not_kept(page, site, body):
    page.route("**/vgg16.bin", lambda route: route.fulfill(status=200, body=body))
    page.goto(site + "demo/index.html")
    expect(page.locator("#state")).to_contain_text("could not be loaded")
    expect(page.locator("#state")).to_contain_text("log in")
    page.unroute("**/vgg16.bin")
    page.reload()
    expect(page.locator("#loading")).to_be_hidden()


def test_what_the_browser_keeps_is_checked_again(demo):
    demo.evaluate("""async () => {
        const [name] = (await caches.keys()).filter(name => name.startsWith("ship-truck-"));
        const store = await caches.open(name), {size} = await (await store.match("vgg16.bin")).blob();
        await store.put("vgg16.bin", new Response(new Uint8Array(size)));
    }""")
    demo.reload()
    expect(demo.locator("#loading")).to_be_hidden()


def test_opened_from_disk_it_says_what_it_needs(browser, site):
    tab = browser.new_page()
    tab.goto((utils.ROOT / "site" / "public" / "demo" / "index.html").as_uri())
    expect(tab.locator("#state")).to_contain_text("make serve")
    tab.close()


def test_a_browser_without_webassembly_is_told(page, site):
    page.add_init_script("delete globalThis.WebAssembly")
    page.goto(site + "demo/index.html")
    expect(page.locator("#state")).to_contain_text("this browser has no WebAssembly")


def test_the_model_comes_from_the_browser_s_cache_the_next_time(demo, complaints):
    complaints.clear()
    demo.reload()
    expect(demo.locator("#loading")).to_be_hidden()
    assert not [text for text in complaints if text.endswith(".bin")]


def test_keyboard_and_screen_reader(demo):
    expect(demo.get_by_role("heading", name="Ship or truck?")).to_be_visible()
    expect(demo.get_by_label("Drop a photo here, paste one, or choose it:")).to_be_visible()
    demo.keyboard.press("Tab")
    assert demo.evaluate("document.activeElement.id") == "file"
    with demo.expect_file_chooser() as chooser:
        demo.keyboard.press("Enter")
    chooser.value.set_files({"name": "a.jpg", "mimeType": "image/jpeg", "buffer": SHIP})
    expect_a_ship(demo)
    assert demo.locator("#vgg16-verdict").get_attribute("aria-live") == "polite"
    expect(demo.get_by_role("img", name="The photo you chose")).to_be_visible()
    expect(demo.locator("#map")).to_be_hidden()
    demo.locator("#show").focus()
    demo.keyboard.press("Space")
    expect(demo.locator("#map")).to_be_visible()


def test_sliders_change_the_answers_and_a_link_holds_them(demo, browser):
    demo.get_by_role("button", name="a ship").first.click()
    expect_a_ship(demo)
    before = demo.locator("#cnn-ship-value").inner_text()
    for slider, value in (("dark", 90), ("blur", 12), ("square", 40)):
        demo.locator(f"#{slider}").fill(str(value))
        expect(demo.locator(f"#{slider}-value")).to_have_text(str(value))
    expect(demo.locator("#cnn-ship-value")).not_to_have_text(before)
    demo.locator("#photo").scroll_into_view_if_needed()
    box = demo.locator("#photo").bounding_box()
    demo.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    demo.mouse.down()
    demo.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 4)
    demo.mouse.up()
    expect(demo).to_have_url(re.compile("dark=90.*x=25&y=25"))
    demo.wait_for_timeout(500)  # for the last answer
    answer = demo.locator("#cnn-ship-value").inner_text()
    again = browser.new_page()
    again.goto(demo.url)
    expect(again.locator("#cnn-ship-value")).to_have_text(answer)
    assert again.locator("#dark").input_value() == "90"
    again.close()
    demo.get_by_role("button", name="Reset").click()
    expect(demo.locator("#cnn-ship-value")).to_have_text(before)


def test_a_test_set_of_one_s_own(demo, tmp_path):
    shown = [("ship", 0), ("ship", 1), ("truck", 0), ("truck", UNSURE), ("dog", 2)]
    files = [
        {"name": f"{kind}, {n}.png", "mimeType": "image/png", "buffer": encode(images_of(kind)[n])} for kind, n in shown
    ]
    demo.locator("#file").set_input_files(files)
    for number, key in enumerate(["s", "s", "t", "s", " "], start=1):  # the fourth label is wrong
        expect(demo.locator("#progress")).to_have_text(f"Photo {number} of 5: what does it show?")
        demo.keyboard.press(key)
    expect(demo.locator("#accuracy")).to_contain_text(re.compile(r"CNN[34] of 4, "))
    expect(demo.locator("#confusion")).to_contain_text("neither")
    for name in ("my_photos.csv", "my_photos.png"):
        with demo.expect_download() as download:
            demo.locator("#save-table" if name.endswith("csv") else "#save-images").click()
        assert download.value.suggested_filename == name
        download.value.save_as(tmp_path / name)
    saved = np.asarray(Image.open(tmp_path / "my_photos.png").convert("RGB")).reshape(-1, 32, 32, 3)
    assert (saved == [images_of(kind)[n] for kind, n in shown]).all()
    with open(tmp_path / "my_photos.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["ship", "ship", "truck", "ship", "neither"]
    assert rows[0]["name"] == "ship, 0.png" and 0 <= float(rows[0]["vgg16"]) <= 1


@pytest.mark.parametrize("page", [{"viewport": {"width": 390, "height": 844}}], indirect=True)
def test_the_demo_fits_a_phone(demo):
    hand_over(demo, "drop", SHIP)
    expect_a_ship(demo)
    assert demo.evaluate("document.documentElement.scrollWidth") <= 390
