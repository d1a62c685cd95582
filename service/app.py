"""POST /detect: is it a ship or a truck? The service, without TensorFlow; and the website, where `make site` built it.

    python -m service                         serves on 127.0.0.1:8000
    HOST=0.0.0.0 PORT=5000 python -m service  serves on all interfaces, port 5000

Nothing of an upload is kept, and the log has only its size and the time it took. To import this loads the model and
starts the readers.
"""

import contextlib
import json
import logging
import os
import queue
import sys
import threading
import time
from pathlib import Path

import onnxruntime
import waitress
from flask import Flask, g, jsonify, redirect, request, send_from_directory
from werkzeug import exceptions

from service import photo
from service.fence import Fence

SERVICE = Path(__file__).resolve().parent
WEBSITE = SERVICE.parent / "site" / "public"
MAX_BODY = 10_000_000  # bytes of a request
IN_MEMORY = 65_536  # bytes of a request; the rest of it goes to a temporary file
THREADS = 16  # that answer requests
UPLOADS = 12  # that may occupy a thread; the other threads answer the rest of requests, /healthz among them
AT_ONCE = 2  # uploads that are decoded, each in a process of its own, and classified; the others wait
PATIENCE = 10  # seconds that an upload waits before it is told that the service is overloaded

MESSAGES = {  # where Flask has words of its own, which say less
    404: "There is nothing here. POST a photo to /detect. `make site` builds the pages that / leads to.",
    405: "This address does not take that method. POST a photo to /detect.",
    500: "The service failed at this request. That is its own fault, and stands in its log.",
}
OPENAPI = json.loads((SERVICE / "openapi.json").read_text(encoding="utf-8"))
OUTPUTS = ["probability", "neither", "places"]


def load_model(path=SERVICE / "model.onnx"):
    """Return an ONNX Runtime session of the exported model. Ends the program with a sentence where it can't be used."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # several photos at once make better use of the cores than several threads a photo
    way_back = f"restore it with `git checkout -- service/{path.name}`, or make it anew with `make export`"
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no other base
        sys.exit(f"service/{path.name} can't be loaded ({str(error).splitlines()[0]}); {way_back}")
    found = [part.name for part in (*session.get_inputs(), *session.get_outputs())]
    if sorted(found) != sorted(["image", *OUTPUTS]):
        sys.exit(f"service/{path.name} has {found}, expected {['image', *OUTPUTS]}; {way_back}")
    return session


app = Flask(__name__, static_folder=None)
app.logger.setLevel(logging.INFO)
session = load_model()
uploads = threading.BoundedSemaphore(UPLOADS)
fence = Fence(AT_ONCE)


@contextlib.contextmanager
def place():
    """Hold a place among the uploads, and a reader of photos, which it yields. Raises ServiceUnavailable."""
    busy = exceptions.ServiceUnavailable("Too many photos at the moment; try again in a few seconds.", retry_after=5)
    if not uploads.acquire(timeout=0):
        raise busy
    try:
        with fence.reader(PATIENCE) as reader:
            yield reader
    except queue.Empty:
        raise busy from None
    finally:
        uploads.release()


def uploaded_photo():
    """Return the bytes of the one file in the request, whatever its field is called. Raises BadRequest."""
    how = "send one photo as a file, as `curl -F image=@photo.jpg` does."
    try:
        files = [file for _, file in request.files.items(multi=True)]
    except exceptions.RequestEntityTooLarge:
        raise exceptions.BadRequest(f"Found a long text, or many fields, in place of a file; {how}") from None
    if len(files) != 1:
        texts = f", and the field '{next(iter(request.form))}', which has no file name" if request.form else ""
        raise exceptions.BadRequest(f"Found {len(files)} files{texts}; {how}")
    return files[0].read()


@app.post("/detect")
def detect():
    if request.mimetype != "multipart/form-data":
        raise exceptions.UnsupportedMediaType("Send multipart/form-data with a photo in the field 'image'.")
    with place() as reader:
        try:
            thumbnail = reader.thumbnail(uploaded_photo())
        except photo.TooLarge as error:
            raise exceptions.RequestEntityTooLarge(str(error)) from error
        except photo.Unreadable as error:
            raise exceptions.BadRequest(str(error)) from error
        probability, neither, places = session.run(OUTPUTS, {"image": thumbnail[None]})
    result = photo.answer(probability[0, 0], neither[0, 0])
    if request.args.get("places", "false").lower() not in ("false", "0"):
        result["places"] = places[0].astype(float).round(3).tolist()
    return jsonify(result)


@app.get("/")
def start():
    return redirect("site/demo/index.html")


@app.get("/site/<path:name>")
def website(name):
    return send_from_directory(WEBSITE, name)


@app.get("/healthz")
def healthz():
    return jsonify({"status": "ok", "model": OPENAPI["info"]["x-model"]})


@app.get("/openapi.json")
def openapi():
    return jsonify(OPENAPI)


@app.errorhandler(exceptions.HTTPException)
def refuse(error):
    """Answer every refusal in JSON, in plain words."""
    response = jsonify({"error": MESSAGES.get(error.code, error.description)})
    response.headers.extend((key, value) for key, value in error.get_headers() if key in ("Allow", "Retry-After"))
    return response, 503 if error.code == 500 else error.code


@app.before_request
def start_clock():
    g.started = time.perf_counter()


@app.after_request
def finish(response):
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.setdefault("Cache-Control", "no-store")
    took = 1000 * (time.perf_counter() - g.started)
    route, size = request.url_rule or "no such address", request.content_length or 0
    app.logger.info("%s %d, %d bytes in, %.0f ms", route, response.status_code, size, took)
    return response


def make_server(host, port):
    """Return the Waitress server of this service, which listens already. Raises OSError or ValueError if it can't."""
    # Waitress refuses a body that is as large as its limit, too.
    limits = {"threads": THREADS, "max_request_body_size": MAX_BODY + 1, "inbuf_overflow": IN_MEMORY}
    return waitress.create_server(app, host=host, port=port, **limits)


def main():
    app.logger.handlers.clear()  # Flask's own would repeat what this one says
    logging.basicConfig(format="%(asctime)s %(message)s")
    host, port = os.environ.get("HOST", "127.0.0.1"), os.environ.get("PORT", "8000")
    try:
        server = make_server(host, port)
    except (OSError, ValueError) as error:
        sys.exit(f"can't listen on {host}, port {port}: {error}; choose others with HOST=127.0.0.1 PORT=8001")
    app.logger.info("ready on http://%s:%s", host, port)
    server.run()
