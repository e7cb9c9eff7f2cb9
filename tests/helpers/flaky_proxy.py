"""An HTTP proxy in front of a real server, which loses requests or answers when it is told to."""

from __future__ import annotations

import base64
import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class FlakyProxy:
    """What goes wrong with requests whose path contains ``part``, one entry per request, in order.

    ``503`` and ``429`` (or any number): this answer, and the server never hears of the request.
    ``"lost"``: the server does what was asked, and the connection breaks before the answer.
    ``"half"``: the server does what was asked, and the connection breaks in the middle of the answer.
    """

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target)
        self.port = 0
        self.part = "log-batch"
        self.troubles: list[int | str] = []
        self.requests: list[str] = []
        self.credentials: set[str] = set()
        self.address = ""

    def next_trouble(self, path: str) -> int | str | None:
        """Returns what goes wrong with this request, or None."""
        self.requests.append(path)
        return self.troubles.pop(0) if self.part in path and self.troubles else None

    @contextmanager
    def running(self) -> Iterator[FlakyProxy]:
        """Serves on a free port of this machine; if it did so before, on the same one."""
        proxy = self

        class Handler(_Handler):
            flaky = proxy

        server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        server.daemon_threads = False
        self.port = server.server_port
        self.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    flaky: FlakyProxy

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind, _, encoded = (self.headers.get("Authorization") or "").partition(" ")
        if kind == "Basic":
            self.flaky.credentials.add(base64.b64decode(encoded).decode())
        trouble = self.flaky.next_trouble(self.path)
        if isinstance(trouble, int):
            self._answer(trouble, b"trouble")
            return
        target = self.flaky.target
        connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=30)
        headers = {"Content-Type": self.headers.get("Content-Type") or "application/json"}
        connection.request(self.command, self.path, body, headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        if trouble in ("lost", "half"):
            self.close_connection = True
            if trouble == "half":
                self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n{")
            return
        self._answer(response.status, content)

    do_GET = do_POST = do_PUT = do_PATCH = _forward

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Keeps the output of the tests clean."""
