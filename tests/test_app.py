"""Tests of the service: the same answer as in a notebook, and a clear refusal of everything else."""

import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import numpy as np
import pytest
import requests
from conftest import encode, large_photo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

import app
import photo
import utils


@pytest.fixture
def client():
    return app.app.test_client()


def post(client, data, name="photo.png", **options):
    return client.post("/detect", data={"image": (io.BytesIO(data), name)}, **options)


@pytest.fixture
def committed_models(monkeypatch):
    """Let utils.detector() take the committed models, in the quick profile too."""
    monkeypatch.setattr(utils, "OUTPUT", utils.ROOT)
    utils.detector.cache_clear()
    yield
    utils.detector.cache_clear()


# --- The same answer everywhere ----------------------------------------------------------------


def test_the_exported_model_equals_keras_on_every_test_image(committed_models, test_images):
    options = app.onnxruntime.SessionOptions()
    session = app.onnxruntime.InferenceSession(app.SERVICE / "model.onnx", options)
    keras_says = utils.detector().predict(test_images, batch_size=100, verbose=0)
    batches = [session.run(["probability", "strangeness", "places"], {"image": test_images[start:start + 100]})
               for start in range(0, len(test_images), 100)]
    probability, strangeness, places = (np.concatenate(parts) for parts in zip(*batches))
    assert np.abs(probability - keras_says["probability"]).max() < 1e-4
    assert np.abs(strangeness - keras_says["strangeness"]).max() < 1e-3
    assert np.abs(places - keras_says["places"]).mean() < 1e-3


def test_the_whole_model_equals_its_parts(committed_models, test_images):
    x, evaluation = test_images[:100], json.loads((utils.ROOT / "results" / "evaluation.json").read_text())
    p = utils.load_model("vgg16_transfer").predict(x, verbose=0).astype("float64")
    logits = np.log(p / (1 - p)) / evaluation["calibration"]["vgg16_transfer"]["temperature"]
    assert np.abs(utils.detector().predict(x, verbose=0)["probability"] - 1 / (1 + np.exp(-logits))).max() < 1e-4


def test_a_notebook_and_the_server_agree_on_50_images(committed_models, server, test_images):
    small = [encode(image) for image in test_images[:30]]
    large = [encode(large_photo(image, size), form) for image, form, size in zip(
        test_images[30:50], ["JPEG", "PNG", "WEBP", "TIFF"] * 5, [(3000, 2000), (900, 1600), (333, 77), (640, 480)] * 5)]
    for data in small + large:
        over_http = requests.post(f"{server}/detect", files={"image": data}).json()
        here = utils.predict(data)
        assert over_http["class"] == here["class"] and over_http["model"] == here["model"]
        assert over_http["probabilities"] == pytest.approx(here["probabilities"], abs=1e-4)


def test_a_thumbnail_passes_unchanged(test_images):
    for image in test_images[:20]:
        assert (photo.to_thumbnail(photo.load_photo(encode(image))) == image).all()


def test_the_server_needs_no_tensorflow():
    needed = set(re.findall(r"^(\w+)", (utils.ROOT / "requirements-serve.txt").read_text(), re.MULTILINE))
    code = "import sys, app; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = set(subprocess.run([sys.executable, "-c", code], cwd=utils.ROOT, capture_output=True, text=True,
                                check=True).stdout.split())
    assert not loaded & {"tensorflow", "keras", "scipy", "sklearn", "matplotlib", "utils"}
    assert {"flask", "waitress", "onnxruntime", "numpy"} <= needed & loaded


# --- What a person is told ---------------------------------------------------------------------


def test_the_answer_names_a_class_or_says_why_not():
    truck, ship = photo.answer(0.9, -1), photo.answer(0.2, -1)
    assert (truck["class"], truck["confidence"]) == ("Truck", 0.9) and (ship["class"], ship["confidence"]) == ("Ship", 0.8)
    neither = photo.answer(0.9, 0.1)
    assert neither["class"] is None and neither["confidence"] is None and "neither" in neither["reason"]
    assert neither["probabilities"] == pytest.approx({"ship": 0.1, "truck": 0.9})


def test_cats_are_refused_and_ships_are_not(client, test_images):
    strangers = utils.read_arrays(utils.OTHER_FILE, utils.SHA256[utils.OTHER_FILE.name])
    cats = strangers["x_test"][strangers["y_test"] == utils.OTHER_CLASSES.index("cat")][:20]
    refused = sum(post(client, encode(image)).json["class"] is None for image in cats)
    kept = sum(post(client, encode(image)).json["class"] is not None for image in test_images[:20])
    assert refused >= 17 and kept >= 17


def test_places_come_only_when_asked_for(client, test_images):
    data = encode(test_images[0])
    assert "places" not in post(client, data).json
    places = np.array(client.post("/detect?places", data={"image": (io.BytesIO(data), "a.png")}).json["places"])
    assert places.shape == (6, 6) and places.max() == 1 and places.min() >= 0


# --- Photos of every kind ----------------------------------------------------------------------


def test_a_colour_profile_is_obeyed():
    plain = Image.new("RGB", (40, 40), (200, 100, 50))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))  # of another colour model: the photo goes without
    assert (photo.load_photo(encode(plain, icc_profile=profile.tobytes())) == (200, 100, 50)).all()
    assert (photo.load_photo(encode(plain, icc_profile=b"not a profile")) == (200, 100, 50)).all()
    srgb = bytearray(ImageCms.ImageCmsProfile(photo.SRGB).tobytes())
    assert np.abs(photo.load_photo(encode(plain, icc_profile=bytes(srgb))).astype(int) - (200, 100, 50)).max() <= 1
    # Red and blue primaries exchanged: a profile that is obeyed turns orange to blue.
    for tag, other in ((b"rXYZ", b"bXYZ"),):
        red, blue = srgb.index(tag), srgb.index(other)
        srgb[red:red + 4], srgb[blue:blue + 4] = other, tag
    swapped = photo.load_photo(encode(plain, icc_profile=bytes(srgb)))
    assert swapped[0, 0, 2] > swapped[0, 0, 0]


def test_a_large_photo_is_averaged_not_sampled():
    stripes = np.zeros((2000, 3000, 3), np.uint8)
    stripes[:, ::2] = 255
    thumbnail = photo.to_thumbnail(photo.load_photo(encode(stripes, compress_level=1)))
    assert np.abs(thumbnail.astype(int) - 127).max() <= 2


def test_a_large_jpeg_is_read_unless_it_would_be_held_in_full():
    large = Image.new("RGB", (6000, 5000), "navy")
    assert max(photo.load_photo(encode(large, "JPEG")).shape) <= photo.LONG_SIDE
    with pytest.raises(photo.TooLarge, match="25,000,000"):
        photo.load_photo(encode(large, "JPEG", progressive=True))


def jpeg_of(mode, colour):
    return encode(Image.new(mode, (50, 40), colour), "JPEG")


def animated():
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("navy", "white")]
    return encode(frames[0], "GIF", save_all=True, append_images=frames[1:])


def rotated(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(Image.new("RGB", (40, 30), "navy"), "JPEG", exif=exif)


@pytest.mark.parametrize("data", [
    jpeg_of("L", 90), jpeg_of("CMYK", (9, 80, 70, 0)), encode(Image.new("RGBA", (40, 40), (1, 2, 3, 90))),
    encode(Image.new("P", (40, 40), 3)), encode(Image.new("P", (40, 40), 3), transparency=3),
    encode(Image.new("I;16", (40, 40), 40000)), encode(Image.new("LA", (40, 40), (9, 9))),
    encode(Image.new("1", (40, 40), 1)), encode(Image.new("F", (40, 40), 0.5), "TIFF"), animated(),
    encode(Image.new("RGB", (1, 1))), encode(Image.new("RGB", (5000, 1))),
    encode(Image.new("RGB", (40, 40)), "BMP"), encode(Image.new("RGBA", (40, 40)), "WEBP"),
    *[rotated(orientation) for orientation in range(1, 9)]])
def test_every_kind_of_photo_gets_an_answer(client, data):
    response = post(client, data)
    assert response.status_code == 200, response.json
    assert sum(response.json["probabilities"].values()) == pytest.approx(1)


# --- Hostile input -----------------------------------------------------------------------------


def png_that_claims(width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))


def a_zip():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("photo.jpg", b"x")
    return buffer.getvalue()


WHOLE = {form: encode(large_photo(np.arange(32 * 32 * 3, dtype=np.uint32).reshape(32, 32, 3).astype(np.uint8), (96, 80)),
                      form) for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")}


@pytest.mark.parametrize("data, status", [
    (b"", 400), (b"just text", 400), (a_zip(), 400), (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 400),
    (b"<!doctype html><script>alert(1)</script>", 400), (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 400),
    (png_that_claims(50_000, 50_000), 413), (png_that_claims(6_000, 6_000), 413), (png_that_claims(0, 10), 400),
    (png_that_claims(300, 300), 400), (bytes(app.MAX_BYTES + 1), 413),
    *[(WHOLE[form][:len(WHOLE[form]) // 2], 400) for form in ("JPEG", "PNG", "WEBP", "GIF")]])
def test_what_is_no_photo_gets_a_plain_refusal(client, data, status):
    response = post(client, data, "innocent.jpg")
    assert response.status_code == status
    assert set(response.json) == {"error"} and len(response.json["error"]) > 20


@pytest.mark.parametrize("request_, status", [
    (dict(data={}), 415), (dict(json={"image": "x"}), 415), (dict(data=WHOLE["PNG"], content_type="image/png"), 415),
    (dict(data={"photo": (io.BytesIO(WHOLE["PNG"]), "a.png")}), 400),
    (dict(data={"image": "text in place of a file"}, content_type="multipart/form-data"), 400),
    (dict(data={"image": [(io.BytesIO(WHOLE["PNG"]), "a.png"), (io.BytesIO(WHOLE["PNG"]), "b.png")]}), 400),
    (dict(data=b"--x\r\nbroken", content_type="multipart/form-data; boundary=x"), 400),
    (dict(data=b"", content_type="multipart/form-data"), 400),
    (dict(data={f"field{number}": "x" for number in range(50)}, content_type="multipart/form-data"), 413)])
def test_a_request_of_another_shape_is_refused(client, request_, status):
    response = client.post("/detect", **request_)
    assert response.status_code == status and response.json["error"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "a\x00b\r\nX-Evil: 1.png", "x" * 5000, "", "фото.png", "C:\\a.png"])
def test_file_names_mean_nothing(client, name, caplog):
    response = post(client, WHOLE["PNG"], name or "empty")
    assert response.status_code == (400 if "\r" in name else 200)  # the line break breaks the multipart header
    assert "passwd" not in caplog.text and "Evil" not in caplog.text


@pytest.mark.parametrize("method, path, status", [
    ("GET", "/detect", 405), ("PUT", "/detect", 405), ("DELETE", "/", 405), ("POST", "/healthz", 405),
    ("GET", "/../app.py", 404), ("GET", "/service/model.onnx", 404), ("GET", "/static/x", 404)])
def test_wrong_methods_and_addresses(client, method, path, status):
    response = client.open(path, method=method)
    assert response.status_code == status and response.json["error"]


def test_nothing_of_an_upload_is_written_or_logged(client, monkeypatch, caplog):
    def refuse(*_, **__):
        raise AssertionError("a temporary file")
    for name in ("TemporaryFile", "SpooledTemporaryFile", "NamedTemporaryFile", "mkstemp"):
        monkeypatch.setattr(tempfile, name, refuse)
    with caplog.at_level("INFO"):
        data = encode(np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8))  # 2 MB
        assert post(client, data, "secret-name.png").status_code == 200
    assert "secret-name" not in caplog.text
    assert re.fullmatch(r"/detect 200, \d{7} bytes in, \d+ ms", caplog.messages[-1])


def test_an_overloaded_service_says_so(client, monkeypatch):
    monkeypatch.setattr(app, "PATIENCE", 0)
    release = threading.Event()
    busy = [app.lookers.submit(release.wait) for _ in range(app.AT_ONCE)]
    try:
        response = post(client, WHOLE["PNG"])
        assert response.status_code == 503 and response.headers["Retry-After"] and "try again" in response.json["error"]
    finally:
        release.set()
    assert all(future.result() for future in busy)
    monkeypatch.undo()
    assert post(client, WHOLE["PNG"]).status_code == 200


def test_a_fault_of_the_service_gives_no_stack_trace(client, monkeypatch):
    monkeypatch.setattr(photo, "to_thumbnail", lambda image: 1 / 0)
    monkeypatch.setitem(app.app.config, "PROPAGATE_EXCEPTIONS", False)
    response = post(client, WHOLE["PNG"])
    assert response.status_code == 503 and "ZeroDivision" not in response.text
    monkeypatch.undo()
    assert post(client, WHOLE["PNG"]).status_code == 200  # its thread lives on


FUZZ = int(os.environ.get("SHIP_TRUCK_FUZZ", 300))
byte_changes = st.lists(st.tuples(st.sampled_from(["set", "cut", "insert", "repeat", "end"]), st.floats(0, 1),
                                  st.integers(1, 64), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6)


def damage(data, changes):
    """Change, cut out, insert or repeat bytes of a file, or end it early."""
    data = bytearray(data)
    for what, where, length, new in changes:
        start = int(where * len(data))
        if what == "set":
            data[start:start + len(new)] = new
        elif what == "cut":
            del data[start:start + length]
        elif what == "insert":
            data[start:start] = new
        elif what == "repeat":
            data[start:start] = data[start:start + length]
        else:
            del data[max(start, 1):]
    return bytes(data)


@settings(max_examples=FUZZ, deadline=None, derandomize=FUZZ == 300, database=None,
          suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(WHOLE)), byte_changes)
def test_damaged_photos_never_break_it(form, changes):
    response = post(app.app.test_client(), damage(WHOLE[form], changes))
    assert response.status_code in (200, 400, 413)
    if response.status_code == 200:
        assert response.json["class"] in ("Ship", "Truck", None)
    else:
        assert set(response.json) == {"error"}


# --- The running server ------------------------------------------------------------------------


def raw_answer(server, request_):
    """Send bytes that no HTTP library would; return all that comes back until the server closes."""
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(request_)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_body_of_100_mb_is_refused_before_it_is_read(server):
    answer = raw_answer(server, b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n"
                                b"Content-Type: multipart/form-data; boundary=x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413") and b'{"error": "Too large' in answer


@pytest.mark.parametrize("raw, status", [
    (b"NONSENSE\r\n\r\n", b"400"), (b"POST /detect HTTP/1.1\r\nTransfer-Encoding: strange\r\n\r\n", b"400"),
    (b"GET / HTTP/1.1\r\nX: " + b"a" * 262_140 + b"\r\n\r\n", b"431"),
    (b"POST /detect HTTP/1.1\r\nContent-Length: minus one\r\n\r\n", b"400")])
def test_what_is_hardly_http_gets_json_too(server, raw, status):
    answer = raw_answer(server, raw)
    assert answer.split(b" ")[1] == status and b"application/json" in answer and b'{"error": ' in answer


def test_slow_clients_do_not_keep_others_waiting(server):
    host, port = server.removeprefix("http://").split(":")
    slow = [socket.create_connection((host, int(port)), timeout=30) for _ in range(40)]
    try:
        for connection in slow:  # more than the server has threads, each with a body that does not end
            connection.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
                               b"Content-Length: 5000\r\n\r\n--x")
        assert requests.post(f"{server}/detect", files={"image": WHOLE["PNG"]}, timeout=30).status_code == 200
    finally:
        for connection in slow:
            connection.close()


def test_eight_clients_at_once_lose_nothing(server, test_images):
    photos = [encode(large_photo(image), "JPEG") for image in test_images[:40]]
    alone = [requests.post(f"{server}/detect", files={"image": data}).json() for data in photos]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: requests.post(f"{server}/detect", files={"image": data}).json(), photos))
    assert together == alone


# --- The description ---------------------------------------------------------------------------


def test_the_description_names_every_route():
    routes = {(rule.rule, method.lower()) for rule in app.app.url_map.iter_rules()
              for method in rule.methods - {"HEAD", "OPTIONS"}}
    assert routes == {(path, method) for path, methods in app.OPENAPI["paths"].items() for method in methods}


def conforms(value, schema):
    """Validate a value against a schema of the description; OpenAPI 3.0's nullable becomes JSON Schema's null."""
    def translate(part):
        if isinstance(part, dict):
            part = {key: translate(value) for key, value in part.items()}
            if part.pop("nullable", False):
                part["type"] = [part["type"], "null"]
        elif isinstance(part, list):
            part = [translate(value) for value in part]
        return part
    jsonschema.validate(value, translate(app.OPENAPI["components"]["schemas"][schema]))


def test_answers_conform_to_the_description(client, test_images):
    documented = app.OPENAPI["paths"]["/detect"]["post"]["responses"]
    strange = utils.read_arrays(utils.OTHER_FILE, utils.SHA256[utils.OTHER_FILE.name])["x_test"]
    for image in [*test_images[:5], *strange[:10]]:
        conforms(client.post("/detect?places", data={"image": (io.BytesIO(encode(image)), "a")}).json, "Answer")
    for response in (post(client, b"x"), client.get("/detect"), client.post("/detect"),
                     post(client, bytes(app.MAX_BYTES + 1))):
        assert str(response.status_code) in documented
        conforms(response.json, "Error")
    conforms(client.get("/healthz").json, "Health")
    assert client.get("/openapi.json").json == app.OPENAPI


def test_the_description_states_the_limits():
    text = json.dumps(app.OPENAPI)
    assert f"{app.MAX_BYTES:,} bytes" in text and f"{photo.MAX_PIXELS:,} pixels" in text


def test_the_page_needs_nothing_from_outside(client):
    response = client.get("/")
    assert response.status_code == 200 and not re.search(r"https?://|src=\"(?!data)", response.text)
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
