"""A small web server on 127.0.0.1 that plays a mirror: a good one, or one with a given fault."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Mirror(ThreadingHTTPServer):
    """Serves `files`; `requests` records (name, Range header) of each request."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.requests: list[tuple[str, str | None]] = []
        self.break_after: list[int] = []  # how many bytes to send before hanging up; one entry per answer
        self.ranges = True
        self.announce_length = True
        self.delay = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/files"


class _Handler(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        name = self.path.removeprefix("/files/")
        requested = self.headers.get("Range")
        self.server.requests.append((name, requested))
        time.sleep(self.server.delay)
        content = self.server.files.get(name)
        if content is None:
            self.send_error(404)
            return
        start = 0
        if requested is not None and self.server.ranges:
            start = int(requested.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if self.server.announce_length:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        rest = content[start:]
        if self.server.break_after:
            rest = rest[: self.server.break_after.pop(0)]
        self.wfile.write(rest)

    def log_message(self, format: str, *values: object) -> None:
        """Silent."""


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Mirror]:
    mirror = Mirror(files)
    thread = threading.Thread(target=mirror.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield mirror
    finally:
        mirror.shutdown()
        mirror.server_close()
        thread.join()
