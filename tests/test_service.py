"""Tests of the service: an answer to every photo, a clear refusal of everything else, and little memory for both."""

import concurrent.futures
import contextlib
import io
import json
import os
import re
import socket
import subprocess
import threading
from pathlib import Path

import jsonschema
import numpy as np
import psutil
import pytest
import requests
import service_helpers as helpers
from PIL import Image
from service_helpers import FORMATS, WHOLE, encode, images_of, png, running_server

import utils
from service import app, fence, photo

HEAD = b"POST /detect HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture
def client():
    return app.app.test_client()


@pytest.fixture(scope="module")
def server():
    with running_server() as (address, _, _):
        yield address


def post(client, data, name="photo.png", address="/detect"):
    return client.post(address, data={"image": (io.BytesIO(data), name)})


def connect(address):
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


# --- Answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_every_kind_of_file_gets_an_answer(client, form):
    response = post(client, WHOLE[form])
    assert response.status_code == 200, response.json
    assert sum(response.json["probabilities"].values()) == pytest.approx(1)


def test_ships_and_trucks_are_told_apart_and_cats_are_neither(client):
    def classes(name):
        return [post(client, encode(image)).json["class"] for image in images_of(name)[:10]]

    assert classes("ship").count("Ship") >= 8 and classes("truck").count("Truck") >= 8
    assert classes("cat").count(None) >= 8


def test_places_come_only_when_asked_for(client):
    data = encode(images_of("ship")[0])
    assert "places" not in post(client, data).json
    places = np.array(post(client, data, address="/detect?places").json["places"])
    assert places.shape == (4, 4) and places.max() == 1 and places.min() >= 0


def test_eight_clients_at_once_get_the_same_as_one(server):
    def ask(data):
        return requests.post(f"{server}/detect", files={"image": data}, timeout=60).json()

    photos = [encode(helpers.large_photo(image), "JPEG") for image in images_of("ship")[:8]]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, photos)) == [ask(data) for data in photos]


# --- Refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("query, there", [("?places", True), ("?places=True", True), ("?places=False", False)])
def test_places_may_be_asked_for_by_true_and_false(client, query, there):
    assert ("places" in post(client, WHOLE["PNG"], address="/detect" + query).json) == there


@pytest.mark.parametrize("name", ["image", "photo", "file"])
def test_the_only_file_is_taken_whatever_its_field_is_called(client, name):
    assert client.post("/detect", data={name: (io.BytesIO(WHOLE["PNG"]), "a.png")}).status_code == 200


@pytest.mark.parametrize("length", [len(WHOLE["PNG"]), 600_000])
def test_a_file_without_a_name_is_called_so(client, length):
    body = b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n%s\r\n--x--\r\n' % bytes(length)
    response = client.post("/detect", data=body, content_type="multipart/form-data; boundary=x")
    assert response.status_code == 400 and "curl -F image=@photo.jpg" in response.json["error"]
    assert "no file name" in response.json["error"] or "in place of a file" in response.json["error"]


@pytest.mark.parametrize(
    "data, status, reason",
    [
        (b"", 400, "not an image"),
        (b"just text", 400, "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 400, "not an image"),
        (png(0, 10), 400, ""),
        (png(300, 300, pixels=b""), 400, "damaged"),
        (encode(Image.new("F", (40, 40)), "TIFF"), 400, "black and white are not known"),
        (png(20_000, 20_000, pixels=b""), 413, "100,000,000"),
        *[(WHOLE[form][: len(WHOLE[form]) // 2], 400, "damaged") for form in ("JPEG", "PNG", "WEBP", "GIF")],
    ],
)
def test_what_is_no_photo_gets_a_plain_refusal(client, caplog, data, status, reason):
    response = post(client, data, "innocent.jpg")
    assert response.status_code == status
    assert set(response.json) == {"error"} and len(response.json["error"]) > 20 and reason in response.json["error"]
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    "request_, status",
    [
        ({"data": {}}, 415),
        ({"json": {"image": "x"}}, 415),
        ({"data": WHOLE["PNG"], "content_type": "image/png"}, 415),
        ({"data": {"image": "text in place of a file"}, "content_type": "multipart/form-data"}, 400),
        ({"data": {"image": [(io.BytesIO(WHOLE["PNG"]), "a.png"), (io.BytesIO(WHOLE["PNG"]), "b.png")]}}, 400),
        ({"data": b"--x\r\nbroken", "content_type": "multipart/form-data; boundary=x"}, 400),
    ],
)
def test_a_request_of_another_shape_is_refused(client, request_, status):
    response = client.post("/detect", **request_)
    assert response.status_code == status and response.json["error"]


@pytest.mark.parametrize(
    "method, path, status",
    [("GET", "/detect", 405), ("DELETE", "/", 405), ("GET", "/app.py", 404), ("GET", "/static/x", 404)],
)
def test_wrong_methods_and_addresses(client, method, path, status):
    response = client.open(path, method=method)
    assert response.status_code == status and "POST a photo to /detect" in response.json["error"]
    assert ("Allow" in response.headers) == (status == 405)


@pytest.mark.parametrize("part, name", [(photo, "answer"), (fence.Reader, "thumbnail")])
def test_a_fault_of_the_service_is_a_503_and_stands_in_the_log(client, monkeypatch, caplog, part, name):
    monkeypatch.setattr(part, name, lambda *_: {}["a cause"])
    response = post(client, WHOLE["PNG"])
    assert response.status_code == 503 and set(response.json) == {"error"}
    assert "a cause" not in response.text and "KeyError: 'a cause'" in caplog.text
    monkeypatch.undo()
    assert post(client, WHOLE["PNG"]).status_code == 200  # and it goes on


@pytest.mark.parametrize("name", ["../../etc/secret", "a\x00b secret.png", "x" * 5000 + "secret", "секрет secret.png"])
def test_file_names_mean_nothing_and_are_not_logged(client, name, caplog):
    caplog.set_level("INFO")
    assert post(client, WHOLE["PNG"], name).status_code == 200
    assert "secret" not in caplog.text
    assert re.fullmatch(r"/detect 200, \d+ bytes in, \d+ ms", caplog.messages[-1])


# --- The running server -------------------------------------------------------------------------


def test_it_loads_no_tensorflow():
    code = """if __name__ == "__main__":
        import sys
        from service import app
        print(*{name.split(".")[0] for name in sys.modules})"""
    done = subprocess.run([helpers.SERVE, "-c", code], cwd=utils.ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"tensorflow", "keras", "scipy", "sklearn", "matplotlib", "utils"}
    needed = (utils.ROOT / "service" / "requirements.txt").read_text(encoding="utf-8")
    assert {"flask", "waitress", "onnxruntime", "numpy"} <= set(re.findall(r"^(\w+)", needed, re.MULTILINE)) & loaded


@pytest.mark.parametrize("address", ["/", "/healthz", "/openapi.json", "/none", "/detect"])
def test_every_answer_has_its_headers(client, address):
    found = client.get(address).headers
    assert found["X-Content-Type-Options"] == "nosniff" and found["Cache-Control"] == "no-store"


def test_the_website_is_served_as_far_as_it_was_built(client, tmp_path, monkeypatch):
    monkeypatch.setattr(app, "WEBSITE", tmp_path)
    address = client.get("/").headers["Location"]
    missing = client.get(address)
    assert missing.status_code == 404 and "make site" in missing.json["error"]
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "index.html").write_text("the page", encoding="utf-8")
    assert client.get(address).text == "the page"
    assert client.get("/site/../utils.py").status_code == 404


def test_a_body_of_more_than_10_mb_is_refused_before_it_is_read(server):
    with connect(server) as connection:
        connection.sendall(HEAD % (app.MAX_BODY + 1))
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("environment", [{}, {"HOST": "127.0.0.2"}, {"HOST": "localhost"}])
def test_host_and_port_are_two_settings(environment):
    host = environment.get("HOST", "127.0.0.1")
    with running_server(**environment) as (address, _, log):
        port = address.rpartition(":")[2]
        assert f"ready on http://{host}:{port}" in log[0]
        assert requests.get(f"http://{host}:{port}/healthz", timeout=30).json()["status"] == "ok"
        taken = {**os.environ, "HOST": host, "PORT": port}
        command = [helpers.SERVE, "-m", "service"]
        second = subprocess.run(command, cwd=utils.ROOT, env=taken, capture_output=True, text=True, timeout=60)
    assert second.returncode == 1 and "ready on" not in second.stderr and "Traceback" not in second.stderr
    assert f"port {port}" in second.stderr and "choose others" in second.stderr


@contextlib.contextmanager
def all_readers_taken():
    with contextlib.ExitStack() as stack:
        for _ in range(app.AT_ONCE):
            stack.enter_context(app.fence.reader(timeout=10))
        yield


def test_an_upload_that_waits_too_long_is_told_so(client, monkeypatch):
    monkeypatch.setattr(app, "PATIENCE", 0.01)
    with all_readers_taken():
        response = post(client, WHOLE["PNG"])
    assert response.status_code == 503 and response.headers["Retry-After"] and "try again" in response.json["error"]
    assert post(client, WHOLE["PNG"]).status_code == 200


def test_healthz_answers_while_uploads_wait(monkeypatch):
    monkeypatch.setattr(app, "PATIENCE", 60)
    server = app.make_server("127.0.0.1", 0)
    threading.Thread(target=server.run, daemon=True).start()
    address = f"http://127.0.0.1:{server.effective_port}"

    def upload():
        return requests.post(f"{address}/detect", files={"image": WHOLE["PNG"]}, timeout=100)

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        with all_readers_taken():
            waiting = {pool.submit(upload) for _ in range(20)}
            refused = [next(done) for done in [concurrent.futures.as_completed(waiting, timeout=20)] for _ in range(8)]
            assert {future.result().status_code for future in refused} == {503}
            assert requests.get(f"{address}/healthz", timeout=20).json()["status"] == "ok"
            assert not any(future.done() for future in waiting - set(refused))
        assert {future.result().status_code for future in waiting - set(refused)} == {200}
    server.close()


def bombs():
    """Yield (name, file, status): many small pieces, or pixels that take far more memory than the file."""
    text = helpers.chunk(b"tEXt", b"a\0b")
    jpeg, plain = WHOLE["JPEG"], Image.new("RGBA", (5000, 5000), (1, 2, 3, 100))
    for count in (100_000, 530_000):
        yield f"PNG with {count:,} texts", png(4242, 4242, 8, 6, extra=text * count), 200
    yield "GIF with 1.9 million comments", helpers.gif_with_comments(1_900_000), 200
    yield "JPEG with 2.4 million segments", jpeg[:2] + b"\xff\xec\0\2" * 2_400_000 + jpeg[2:], 200
    yield "PNG of 100 million pixels", png(10_000, 10_000, 8, 0), 200
    yield "WebP of 40 bytes", encode(plain, "WEBP", lossless=True, method=0, quality=0), 413
    yield "WebP of 268 million pixels", helpers.webp_of_nothing(16_383), 413
    yield "JPEG in 883 scans", helpers.jpeg_in_scans(7000, 7000), 413
    yield "TIFF in 1.2 million strips", helpers.tiff_in_strips(1_200_000), 200


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="only Linux has this fence, and says what it took")
def test_its_memory_stays_within_the_promise_whatever_is_sent():
    def upload(data):
        return requests.post(f"{address}/detect", files={"image": data}, timeout=100)

    with running_server() as (address, process, _), contextlib.ExitStack() as stack:
        process = psutil.Process(process.pid)
        for _ in range(94):  # as many as it holds, but for the uploads below; each with a body that does not end
            stack.enter_context(connect(address)).sendall(HEAD % 1_000_000 + bytes(640_000))
        for name, data, status in bombs():
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                answers = list(pool.map(upload, [data, data]))
            assert [answer.status_code for answer in answers] == [status, status], name
            peak = [helpers.peak_memory(each.pid) for each in (process, *process.children())]
            print(f"{name}: {len(data):,} bytes twice at once, peak so far {[round(each / 1e6) for each in peak]} MB")
            assert peak[0] < 300e6 and max(peak[1:]) < 350e6, name
            assert upload(WHOLE["PNG"]).status_code == 200
        assert process.num_threads() < 40


def test_a_reader_that_was_killed_is_replaced(client):
    for reader in list(app.fence.idle.queue):
        reader.process.kill()
        reader.process.join()
    for _ in range(app.AT_ONCE):
        assert post(client, WHOLE["PNG"]).status_code == 200


def test_a_reader_killed_at_its_work_is_no_fault_of_the_photo(client, monkeypatch, caplog):
    monkeypatch.setattr(fence, "PATIENCE", 0)  # it is given up, and killed, before it can answer
    response = post(client, encode(Image.new("RGB", (9000, 9000)), "PNG", compress_level=1))
    assert response.status_code == 503 and "ended with -9" in caplog.text
    monkeypatch.undo()
    assert post(client, WHOLE["PNG"]).status_code == 200


def test_a_photo_that_takes_too_long_does_not_keep_others_waiting(client):
    slow = helpers.jpeg_in_scans(7000, 7000)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, client, slow)
        quick = [pool.submit(post, client, WHOLE["PNG"]).result().status_code for _ in range(3)]
        assert quick == [200, 200, 200] and first.result().status_code == 413


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="psutil finds orphans there")
def test_no_reader_outlives_the_service():
    with running_server() as (_, process, _):
        readers = psutil.Process(process.pid).children(recursive=True)
        assert len(readers) >= app.AT_ONCE
    assert not psutil.wait_procs(readers, timeout=30)[1]


@pytest.mark.parametrize(
    "damage, complaint",
    [
        (lambda data: data[:1000], "can't be loaded"),
        (None, "can't be loaded"),
        (lambda data: data.replace(b"neither", b"neithor"), "has .*neithor.*expected"),
    ],
)
def test_a_damaged_model_ends_in_a_sentence(tmp_path, damage, complaint):
    path = tmp_path / "model.onnx"
    if damage:
        path.write_bytes(damage((utils.ROOT / "service" / "model.onnx").read_bytes()))
    with pytest.raises(SystemExit, match=complaint + ".*git checkout -- service/model.onnx.*make export"):
        app.load_model(path)


# --- The description ----------------------------------------------------------------------------


def nullable(part):
    """Turn OpenAPI 3.0's nullable into JSON Schema's null."""
    return part | {"type": [part["type"], "null"]} if part.get("nullable") else part


def conforms(value, schema):
    text = json.dumps(app.OPENAPI["components"]["schemas"][schema])
    jsonschema.validate(value, json.loads(text, object_hook=nullable))


def test_answers_conform_to_the_description(client):
    rules = [rule for rule in app.app.url_map.iter_rules() if not rule.rule.startswith("/site/")]  # files, no answers
    routes = {(rule.rule, method) for rule in rules for method in rule.methods & {"GET", "POST"}}
    assert routes == {(path, method.upper()) for path, methods in app.OPENAPI["paths"].items() for method in methods}
    for image in [*images_of("ship")[:5], *images_of("dog")[:10]]:
        conforms(post(client, encode(image), address="/detect?places").json, "Answer")
    for response in (
        post(client, b"x"),
        client.get("/detect"),
        client.post("/detect"),
        post(client, png(20_000, 20_000, pixels=b"")),
    ):
        assert str(response.status_code) in app.OPENAPI["paths"]["/detect"]["post"]["responses"]
        conforms(response.json, "Error")
    conforms(client.get("/healthz").json, "Health")
    assert client.get("/openapi.json").json == app.OPENAPI


def test_the_description_states_the_limits():
    text, readme = json.dumps(app.OPENAPI), (utils.ROOT / "service" / "README.md").read_text(encoding="utf-8")
    memory, pixels = f"{fence.MEMORY // 1_000_000} MB", f"{photo.MAX_PIXELS:,} pixels"
    for stated in (f"{app.MAX_BODY:,} bytes", pixels, f"{fence.SECONDS} s"):
        assert stated in text
    for stated in (f"Up to {app.UPLOADS} uploads", f"{app.PATIENCE} seconds", memory, pixels, f"{fence.SECONDS} s"):
        assert stated in readme
