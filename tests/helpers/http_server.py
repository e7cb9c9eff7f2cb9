"""A real HTTP server on 127.0.0.1 whose manners each test decides."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Behaviour = Callable[[BaseHTTPRequestHandler, int], None]


@dataclass
class Server:
    """A running server: its address, and the headers of each request so far."""

    url: str
    requests: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def serving(behave: Behaviour) -> Iterator[Server]:
    """Runs a server that calls ``behave(handler, index of the request)`` for each GET."""
    server_facts = Server(url="")
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with lock:
                index = len(server_facts.requests)
                server_facts.requests.append({"path": self.path, **dict(self.headers.items())})
            self.close_connection = True
            behave(self, index)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    server_facts.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield server_facts
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def send(
    handler: BaseHTTPRequestHandler, body: bytes, *, status: int = 200, announce: int | None = None, **headers: str
) -> None:
    """Sends an answer; ``announce`` is the Content-Length if it is not the truth, -1 for none at all."""
    handler.send_response(status)
    if announce != -1:
        handler.send_header("Content-Length", str(len(body) if announce is None else announce))
    handler.send_header("Connection", "close")
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)
    handler.wfile.flush()
