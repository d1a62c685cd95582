"""POST /detect: is it a ship or a truck? The service and its page, without TensorFlow.

    python service/app.py            serves on 127.0.0.1:8000
    PORT=5000 python service/app.py  serves on all interfaces, port 5000, as a host like Heroku asks for

Nothing of an upload is kept: it stays in memory, and the log has its size and the time it took.
"""

import base64
import hashlib
import io
import json
import logging
import os
import re
import select
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnxruntime
import waitress.channel
import waitress.parser
import waitress.server
import waitress.task
import waitress.utilities
from flask import Flask, Request, Response, g, jsonify, request
from werkzeug.exceptions import (BadRequest, HTTPException, RequestEntityTooLarge, ServiceUnavailable,
                                 UnsupportedMediaType)

SERVICE = Path(__file__).resolve().parent
sys.path.insert(0, str(SERVICE.parent))
import photo

MAX_BYTES = 10_000_000  # of a photo
MAX_BODY = MAX_BYTES + 10_000  # of a request: the photo and its multipart headers
MAX_HELD = 40_000_000  # bytes of all the requests that are not answered yet
AT_ONCE = 2  # photos being decoded and classified; the others wait
PATIENCE = 10  # seconds that a photo waits before it is told that the service is overloaded

OVERLOADED = "Too many photos at the moment; try again in a few seconds."
MESSAGES = {  # where Flask and the server have words of their own, which say less
    404: "There is nothing here. POST a photo to /detect, or open /.",
    405: "This address does not take that method. POST a photo to /detect, or open /.",
    413: f"Too large: at most {MAX_BYTES:,} bytes and {photo.MAX_PIXELS:,} pixels.",
    500: "The service failed at this request. That is its own fault, and stands in its log."}

PAGE = (SERVICE / "page.html").read_text(encoding="utf-8")
OPENAPI = json.loads((SERVICE / "openapi.json").read_text(encoding="utf-8"))
OUTPUTS = ["probability", "strangeness", "places"]


def content_security_policy(page):
    """Return a policy that lets the page run its own inline style and script, and nothing else."""
    sums = {tag: base64.b64encode(hashlib.sha256(re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1].encode())
                                  .digest()).decode() for tag in ("style", "script")}
    return (f"default-src 'none'; style-src 'sha256-{sums['style']}'; script-src 'sha256-{sums['script']}'; "
            "img-src blob: data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")


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
PAGE_POLICY = content_security_policy(PAGE)
session = load_model()
# However many threads take requests, only so many take one apart, and only these look at it: that bounds the memory.
seats = threading.BoundedSemaphore(AT_ONCE)
lookers = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="looker")


def uploaded_photo():
    """Return the bytes of the one photo in the request. Raises what the client is told otherwise."""
    files = request.files.getlist("image")
    if len(files) != 1:
        raise BadRequest(f"Expected one photo in the field 'image', found {len(files)}.")
    data = files[0].stream.getvalue()
    if not data:
        raise BadRequest("The photo is empty: it has 0 bytes.")
    if len(data) > MAX_BYTES:
        raise RequestEntityTooLarge()
    return data


def look_at(data):
    """Decode and classify one photo; return the model's three outputs."""
    thumbnail = photo.to_thumbnail(photo.load_photo(data))
    return session.run(OUTPUTS, {"image": thumbnail[None]})


@app.post("/detect")
def detect():
    if request.mimetype != "multipart/form-data":
        raise UnsupportedMediaType("Send multipart/form-data with a photo in the field 'image'.")
    if not seats.acquire(timeout=PATIENCE):
        raise ServiceUnavailable(OVERLOADED, retry_after=5)
    try:
        probability, strangeness, places = lookers.submit(look_at, uploaded_photo()).result()
    except photo.TooLarge as error:
        raise RequestEntityTooLarge() from error
    except photo.Unreadable as error:
        raise BadRequest("This is not an image that can be read here, or it is damaged. "
                         "Send a JPEG, PNG, WebP, GIF, BMP or TIFF file.") from error
    finally:
        seats.release()
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


# --- The server that holds it: Waitress ----------------------------------------------------------


class Overloaded(waitress.utilities.Error):
    code = 503
    reason = "Service Unavailable"


class JsonError(waitress.task.ErrorTask):
    """What the server itself refuses, before Flask sees it: also as JSON."""

    def execute(self):
        error = self.request.error
        text = error.body if isinstance(error, Overloaded) else f"{error.reason}: {error.body}."
        body = json.dumps({"error": MESSAGES.get(error.code, text)}).encode()
        self.status = {500: "503 Service Unavailable", 501: "400 Bad Request"}.get(
            error.code, f"{error.code} {error.reason}")
        self.response_headers = [("Content-Type", "application/json")]
        self.content_length = len(body)
        self.set_close_on_finish()
        self.write(body)


class Upload(waitress.parser.HTTPRequestParser):
    """A request on its way in. Its body is read only after it was admitted."""

    admitted = False

    def __init__(self, adj):
        super().__init__(adj)
        self.since = time.monotonic()

    def size(self):
        """Return how many bytes its body may come to have."""
        return self.body_bytes_received if self.completed else MAX_BODY if self.chunked else self.content_length


class Channel(waitress.channel.HTTPChannel):
    """A connection, whose client may be slow."""

    error_task_class = JsonError
    parser_class = Upload

    def readable(self):
        return super().readable() and not self.waits()

    def waits(self):
        """Whether there is a body to come that is not admitted yet."""
        return self.request is not None and self.request.body_rcv is not None and not self.request.admitted

    def is_slow(self):
        """Whether an admitted upload keeps others waiting: silent for a second, or going on for five."""
        return (self.request is not None and self.request.admitted
                and (time.time() - self.last_activity > 1 or time.monotonic() - self.request.since > 5))

    def held(self):
        """Return how many bytes of bodies this connection holds or has been promised."""
        requests = [*self.requests, *([self.request] if self.request and self.request.admitted else [])]
        return sum(part.size() for part in requests if not part.error)

    def give_up(self):
        """End the upload with an answer that says why."""
        with self.requests_lock:
            upload, self.request = self.request, None
            upload.close()
            upload.error, upload.completed = Overloaded(OVERLOADED), True
            self.requests.append(upload)
            if len(self.requests) == 1:
                self.server.add_task(self)


class Server(waitress.server.TcpWSGIServer):
    """Waitress, which by itself would take in as much at once as is sent."""

    channel_class = Channel

    def readable(self):
        """Called once in each turn of the server's loop."""
        self.admit()
        return super().readable()

    def admit(self):
        """Let uploads go on while all bodies fit in MAX_HELD, the newest first; where they don't, end slow ones."""
        channels = list(self.active_channels.values())
        waiting = sorted(filter(Channel.waits, channels), key=lambda channel: -channel.request.since)
        held = sum(channel.held() for channel in channels) if waiting else 0
        for channel in waiting:
            size = channel.request.size()
            for slow in filter(Channel.is_slow, channels):
                if held + size > MAX_HELD:
                    held -= slow.held()
                    slow.give_up()
            if held + size > MAX_HELD:
                break
            channel.request.admitted = True
            channel.request.since = time.monotonic()
            held += size


def main():
    missing = photo.missing_decoders()
    if missing:
        sys.exit(f"Pillow was built without {', '.join(missing)}; install one with it")
    app.logger.handlers.clear()  # Flask's own would repeat what this one says
    logging.basicConfig(format="%(asctime)s %(message)s")
    port, host = os.environ.get("PORT", "8000"), "0.0.0.0" if "PORT" in os.environ else "127.0.0.1"
    # Requests are held in memory (inbuf_overflow) and read to their end before a thread takes them, so that a slow
    # client keeps no thread busy; one that is silent for channel_timeout seconds, or not admitted, is cut off.
    settings = {"threads": 8, "connection_limit": 500, "asyncore_use_poll": hasattr(select, "poll"),
                "channel_timeout": 30, "max_request_header_size": 16384,
                "max_request_body_size": MAX_BODY, "inbuf_overflow": 2 * MAX_BODY, "ident": None,
                "clear_untrusted_proxy_headers": True}
    try:
        server = Server(app, host=host, port=port, **settings)
    except (OSError, ValueError) as error:
        sys.exit(f"can't listen on {host}, port {port}: {error}; choose another with PORT=8001")
    app.logger.info("ready on http://%s:%s", host, port)
    server.run()


if __name__ == "__main__":
    main()
