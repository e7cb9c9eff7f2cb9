"""A plain MLflow server in one process: MLflow's own web application on SQLite. It ends when its input closes."""

from __future__ import annotations

import os
import sys
import threading


def serve(folder: str) -> None:
    """Serves on a free port of this machine, whose number is the first line of the output."""
    from mlflow.server import app, handlers
    from werkzeug.serving import WSGIRequestHandler, make_server

    class SilentHandler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, type: str, message: str, *args: object) -> None:
            pass

    store = f"sqlite:///{folder}/mlflow.db"
    handlers.initialize_backend_stores(store, store, f"{folder}/artifacts")
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=SilentHandler)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever(poll_interval=0.1)


def _end_with_the_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1])
