"""A plain MLflow server in one process: MLflow's own web application on SQLite. It ends when its input closes."""

from __future__ import annotations

import os
import sys
import threading
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128

    def server_bind(self) -> None:
        # The base class looks up the machine's full name, which can take seconds.
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "localhost", self.socket.getsockname()[1]
        self.setup_environ()


class _SilentHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


class _Application:
    """MLflow's web application; the first request loads it, so that sessions that log nothing do not pay for it."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._loaded: Any = None

    def __call__(self, variables: dict[str, Any], start_response: Any) -> Any:
        with self._lock:
            if self._loaded is None:
                from mlflow.server import app, handlers

                store = f"sqlite:///{self._folder}/mlflow.db"
                handlers.initialize_backend_stores(store, store, f"{self._folder}/artifacts")
                self._loaded = app
        return self._loaded(variables, start_response)


def serve(folder: str) -> None:
    """Serves on a free port of this machine, whose number is the first line of the output."""
    server = _Server(("127.0.0.1", 0), _SilentHandler)
    server.set_app(_Application(folder))
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever(poll_interval=0.1)


def _end_with_the_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1])
