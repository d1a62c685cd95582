"""Tests of the service: an answer to every photo, and a clear refusal of everything else."""

import contextlib
import io
import json
import os
import re
import socket
import struct
import subprocess
import tempfile
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import numpy as np
import pytest
import requests
from conftest import SERVE, encode, large_photo, running_server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import photo
import utils
from service import app, bench


@pytest.fixture
def client():
    return app.app.test_client()


def post(client, data, name="photo.png", **options):
    return client.post("/detect", data={"image": (io.BytesIO(data), name)}, **options)


# --- The same answer everywhere ----------------------------------------------------------------


def test_a_thumbnail_passes_unchanged(test_images):
    for image in test_images[:20]:
        assert (photo.to_thumbnail(photo.load_photo(encode(image))) == image).all()


def test_the_server_needs_no_tensorflow():
    code = "import sys; sys.path.insert(0, 'service'); import app; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([SERVE, "-c", code], cwd=utils.ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"tensorflow", "keras", "scipy", "sklearn", "matplotlib", "utils"}
    needed = (utils.ROOT / "service" / "requirements.txt").read_text(encoding="utf-8")
    assert {"flask", "waitress", "onnxruntime", "numpy"} <= set(re.findall(r"^(\w+)", needed, re.MULTILINE)) & loaded


# --- What a person is told ---------------------------------------------------------------------


def test_cats_are_refused_and_ships_are_not(client, test_images, stranger_images):
    refused = sum(post(client, encode(image)).json["class"] is None for image in stranger_images["cat"][:20])
    kept = sum(post(client, encode(image)).json["class"] is not None for image in test_images[:20])
    assert refused >= 17 and kept >= 17


def test_places_come_only_when_asked_for(client, test_images):
    data = encode(test_images[0])
    assert "places" not in post(client, data).json
    places = np.array(client.post("/detect?places", data={"image": (io.BytesIO(data), "a.png")}).json["places"])
    assert places.shape == (6, 6) and places.max() == 1 and places.min() >= 0


# --- Photos of every kind ----------------------------------------------------------------------


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
    monkeypatch.setattr(app, "PATIENCE", 0.01)
    for _ in range(app.AT_ONCE):
        app.seats.acquire()
    try:
        response = post(client, WHOLE["PNG"])
        assert response.status_code == 503 and response.headers["Retry-After"] and "try again" in response.json["error"]
    finally:
        for _ in range(app.AT_ONCE):
            app.seats.release()
    assert post(client, WHOLE["PNG"]).status_code == 200


def broken_pillow(monkeypatch):
    monkeypatch.delattr(Image.core, "zip_decoder")


def renamed_input(monkeypatch):
    def run(outputs, inputs):
        raise ValueError("Required inputs (['picture']) are missing from input feed (['image']).")
    monkeypatch.setattr(app, "session", type("Session", (), {"run": staticmethod(run)}))


def no_memory(monkeypatch):
    def full(data):
        raise MemoryError("no memory left")
    monkeypatch.setattr(photo, "load_photo", full)


def broken_thumbnail(monkeypatch):
    monkeypatch.setattr(photo, "to_thumbnail", lambda image: 1 / 0)


@pytest.mark.parametrize("fault, cause", [
    (broken_pillow, "decoder zip not available"), (renamed_input, "Required inputs"), (no_memory, "no memory left"),
    (broken_thumbnail, "ZeroDivisionError")])
def test_a_fault_of_the_service_is_a_503_and_stands_in_the_log(client, monkeypatch, caplog, fault, cause):
    fault(monkeypatch)
    monkeypatch.setitem(app.app.config, "PROPAGATE_EXCEPTIONS", False)
    response = post(client, WHOLE["PNG"])
    assert response.status_code == 503 and set(response.json) == {"error"}
    assert cause not in response.text and cause in caplog.text and "Traceback" in caplog.text
    monkeypatch.undo()
    assert post(client, WHOLE["PNG"]).status_code == 200  # and it goes on


def test_a_client_s_fault_leaves_no_traceback(client, caplog):
    assert post(client, WHOLE["PNG"][:200]).status_code == 400
    assert "Traceback" not in caplog.text


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
    (b"GET / HTTP/1.1\r\nX: " + b"a" * (16_384 - 23) + b"\r\n\r\n", b"431"),
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


@pytest.mark.parametrize("size", [9_500_000, 190_000])
def test_unfinished_uploads_are_held_within_bounds(test_images, monkeypatch, size):
    monkeypatch.setattr(bench, "SLOW_BYTES", size)
    with running_server() as (address, process, _):
        found = bench.slow_clients(address, bench.psutil.Process(process.pid), encode(test_images[0]), seconds=2)
    assert found["clients"] == 200 and found["answered_ms"] is not None and found["rss_mb"] < 300


def test_an_upload_that_is_given_up_is_told_why():
    """Five uploads of 10 MB each promise more than is held; the first is silent when the last wants to come in."""
    with running_server() as (address, _, _):
        host, port = address.removeprefix("http://").split(":")
        head = (b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
                b"Content-Length: 10000000\r\n\r\n--x")
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(socket.create_connection((host, int(port)), timeout=30)) for _ in range(5)]
            for connection in connections:
                connection.sendall(head)
            answer = b"".join(iter(lambda: connections[0].recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 503") and b'{"error": "Too many photos' in answer


def test_ready_is_logged_when_it_can_be_reached_and_not_before():
    with running_server() as (address, _, log):
        assert requests.get(f"{address}/healthz").status_code == 200 and "ready on http" in "".join(log)
        port = address.rpartition(":")[2]
        second = subprocess.run([SERVE, "service/app.py"], cwd=utils.ROOT, env={**os.environ, "PORT": port},
                                capture_output=True, text=True, timeout=60)
    assert second.returncode == 1 and "ready on" not in second.stderr and "Traceback" not in second.stderr
    assert f"port {port}" in second.stderr and "choose another" in second.stderr


@pytest.mark.parametrize("damage, complaint", [
    (lambda data: data[:1000], "can't be loaded"), (None, "can't be loaded"),
    (lambda data: data.replace(b"strangeness", b"strangenoss"), "has .*strangenoss.*expected")])
def test_a_damaged_model_ends_in_a_sentence(tmp_path, damage, complaint):
    path = tmp_path / "model.onnx"
    if damage:
        path.write_bytes(damage((utils.ROOT / "service" / "model.onnx").read_bytes()))
    with pytest.raises(SystemExit, match=complaint + ".*git checkout -- service/model.onnx.*make export"):
        app.load_model(path)


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


def test_answers_conform_to_the_description(client, test_images, stranger_images):
    documented = app.OPENAPI["paths"]["/detect"]["post"]["responses"]
    for image in [*test_images[:5], *stranger_images["dog"][:10]]:
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
