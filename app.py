"""POST /detect: is it a ship or a truck? The service and its page, without TensorFlow.

    python app.py            serves on 127.0.0.1:8000
    PORT=5000 python app.py  serves on all interfaces, port 5000, as a host like Heroku asks for

Nothing of an upload is kept: it stays in memory, and the log has its size and the time it took.
"""

import base64
import hashlib
import io
import json
import logging
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import onnxruntime
import waitress.channel
import waitress.task
from flask import Flask, Request, Response, g, jsonify, request
from werkzeug.exceptions import (BadRequest, HTTPException, RequestEntityTooLarge, ServiceUnavailable,
                                 UnsupportedMediaType)

import photo

MAX_BYTES = 10_000_000  # of a photo
MAX_BODY = MAX_BYTES + 10_000  # of a request: the photo and its multipart headers
AT_ONCE = 2  # photos being decoded and classified; the others wait
PATIENCE = 10  # seconds that a photo waits before it is told that the service is overloaded

MESSAGES = {  # where Flask and the server have words of their own, which say less
    404: "There is nothing here. POST a photo to /detect, or open /.",
    405: "This address does not take that method. POST a photo to /detect, or open /.",
    413: f"Too large: at most {MAX_BYTES:,} bytes and {photo.MAX_PIXELS:,} pixels.",
    500: "The service failed at this request. That is its own fault, and stands in its log."}

SERVICE = Path(__file__).resolve().parent / "service"
PAGE = (SERVICE / "page.html").read_text(encoding="utf-8")
OPENAPI = json.loads((SERVICE / "openapi.json").read_text(encoding="utf-8"))


def content_security_policy(page):
    """Return a policy that lets the page run its own inline style and script, and nothing else."""
    sums = {tag: base64.b64encode(hashlib.sha256(re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1].encode())
                                  .digest()).decode() for tag in ("style", "script")}
    return (f"default-src 'none'; style-src 'sha256-{sums['style']}'; script-src 'sha256-{sums['script']}'; "
            "img-src blob: data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")


PAGE_POLICY = content_security_policy(PAGE)


class InMemoryRequest(Request):
    """A request whose uploads never touch the disk."""

    max_content_length = MAX_BODY
    max_form_memory_size = MAX_BODY
    max_form_parts = 20

    def _get_file_stream(self, *args, **kwargs):
        return io.BytesIO()


app = Flask(__name__, static_folder=None)
app.request_class = InMemoryRequest
app.logger.setLevel(logging.INFO)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1  # several photos at once make better use of the cores than several threads a photo
session = onnxruntime.InferenceSession(SERVICE / "model.onnx", options, providers=["CPUExecutionProvider"])
# Only these threads decode and classify, however many take requests: that bounds the memory.
lookers = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="looker")


def uploaded_photo():
    """Return the bytes of the one photo in the request. Raises what the client is told otherwise."""
    if request.mimetype != "multipart/form-data":
        raise UnsupportedMediaType("Send multipart/form-data with a photo in the field 'image'.")
    files = request.files.getlist("image")
    if len(files) != 1:
        raise BadRequest(f"Expected one photo in the field 'image', found {len(files)}.")
    data = files[0].read()
    if not data:
        raise BadRequest("The photo is empty: it has 0 bytes.")
    if len(data) > MAX_BYTES:
        raise RequestEntityTooLarge()
    return data


def look_at(data):
    """Decode and classify one photo; return the model's three outputs."""
    image = photo.to_thumbnail(photo.load_photo(data))
    return session.run(["probability", "strangeness", "places"], {"image": image[None]})


@app.post("/detect")
def detect():
    looking = lookers.submit(look_at, uploaded_photo())
    try:
        wait([looking], timeout=PATIENCE)
        if looking.cancel():  # nobody has begun
            raise ServiceUnavailable("Too many photos at the moment; try again in a few seconds.", retry_after=5)
        probability, strangeness, places = looking.result()
    except photo.TooLarge as error:
        raise RequestEntityTooLarge() from error
    except ValueError as error:
        raise BadRequest("This is not an image that can be read here, or it is damaged. "
                         "Send a JPEG, PNG, WebP, GIF, BMP or TIFF file.") from error
    result = photo.answer(probability[0, 0], strangeness[0, 0])
    if "places" in request.args:
        result["places"] = places[0].astype(float).round(3).tolist()
    return jsonify(result)


@app.get("/")
def page():
    return Response(PAGE, headers={"Content-Security-Policy": PAGE_POLICY})


@app.get("/healthz")
def healthz():
    return jsonify({"status": "ok", "model": OPENAPI["info"]["x-model"]})


@app.get("/openapi.json")
def openapi():
    return jsonify(OPENAPI)


@app.errorhandler(HTTPException)
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
    response.headers["Cache-Control"] = "no-store"
    app.logger.info("%s %d, %d bytes in, %.0f ms", request.url_rule or "no such address", response.status_code,
                    request.content_length or 0, 1000 * (time.perf_counter() - g.started))
    return response


class JsonError(waitress.task.ErrorTask):
    """What the server itself refuses, before Flask sees it: also as JSON."""

    def execute(self):
        error = self.request.error
        body = json.dumps({"error": MESSAGES.get(error.code, f"{error.reason}: {error.body}.")}).encode()
        self.status = f"{error.code} {error.reason}" if error.code < 500 else "400 Bad Request"
        self.response_headers = [("Content-Type", "application/json")]
        self.content_length = len(body)
        self.set_close_on_finish()
        self.write(body)


def main():
    waitress.channel.HTTPChannel.error_task_class = JsonError
    app.logger.handlers.clear()  # Flask's own would repeat what this one says
    logging.basicConfig(format="%(asctime)s %(message)s")
    port = int(os.environ.get("PORT", 8000))
    host = "0.0.0.0" if "PORT" in os.environ else "127.0.0.1"
    app.logger.info("ready on http://%s:%d", host, port)
    # Requests are held in memory (inbuf_overflow) and read to their end before a thread takes them, so that a slow
    # client keeps no thread busy; one that is silent for channel_timeout seconds is cut off.
    waitress.serve(app, host=host, port=port, threads=16, connection_limit=200, channel_timeout=30, ident=None,
                   max_request_body_size=MAX_BODY, inbuf_overflow=2 * MAX_BODY, clear_untrusted_proxy_headers=True)


if __name__ == "__main__":
    main()
