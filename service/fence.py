"""A fence around decoding: a photo is read in a process of its own, of which the system limits memory and time.

The limits hold on Linux. macOS has only that of time, Windows neither; everywhere photo.py limits the pixels.
"""

import contextlib
import multiprocessing
import os
import queue
import signal
import traceback

from service import photo

try:
    import resource
except ImportError:  # Windows
    resource = None

MEMORY = 300_000_000  # bytes that a process may have of its own
SECONDS = 1.5  # of processor time that a photo may take
PATIENCE = 30  # seconds after which a reader that does nothing is given up
TOO_MUCH = f"The file takes more than {MEMORY // 1_000_000} MB or {SECONDS} s to read; make it smaller."


def _read_photos(connection):
    """Turn photos into thumbnails, one after another, until the service is gone. This is what a process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is the service's business
    if resource:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(EOFError):
        while True:
            data = connection.recv_bytes()
            if resource:
                signal.setitimer(signal.ITIMER_PROF, SECONDS)  # the system ends the process when it has run out
            connection.send(_thumbnail_or_error(data))
            if resource:
                signal.setitimer(signal.ITIMER_PROF, 0)


def _thumbnail_or_error(data):
    try:
        return photo.to_thumbnail(photo.load_photo(data))
    except MemoryError:
        return photo.TooLarge(TOO_MUCH)
    except Exception as error:  # to be raised where the photo came from
        error.add_note(traceback.format_exc())
        return error


class Reader:
    """A process that reads photos, one at a time. A new one takes its place where it has died."""

    def __init__(self):
        self._start()

    def _start(self):
        context = multiprocessing.get_context("spawn")  # nothing of the service is in its memory
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_read_photos, args=[other], daemon=True)
        self.process.start()
        other.close()

    def thumbnail(self, data):
        """Return what the model sees of a photo, the bytes of a file.

        Raises photo.Unreadable, or RuntimeError where the reader ended for another reason than the limits.
        """
        if not self.process.is_alive():  # killed from outside
            self._start()
        try:
            self.connection.send_bytes(data)
            if not self.connection.poll(PATIENCE):
                self.process.kill()
            result = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            self._start()
            # The first is for time. The others are for memory: glib ends a process that gets none.
            if resource and -code in (signal.SIGPROF, signal.SIGABRT, signal.SIGTRAP):
                raise photo.TooLarge(TOO_MUCH) from None
            raise RuntimeError(f"a process that read a photo ended with {code}") from None
        if isinstance(result, Exception):
            raise result
        return result


class Fence:
    """So many readers, for whoever comes first."""

    def __init__(self, readers):
        # A thread for each core would be a stack and a heap for each.
        os.environ.update(VIPS_CONCURRENCY="1", OPENBLAS_NUM_THREADS="1")
        self.idle = queue.Queue()
        for _ in range(readers):
            self.idle.put(Reader())

    @contextlib.contextmanager
    def reader(self, timeout):
        """Hold one of the readers. Raises queue.Empty if none comes free in that many seconds."""
        reader = self.idle.get(timeout=timeout)
        try:
            yield reader
        finally:
            self.idle.put(reader)
