"""Requests to the services of a workspace, to a server of this machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from health_ml.azure.rest import Patience, RestClient


class Credential:
    def get_token(self, *scopes: str) -> Any:
        return SimpleNamespace(token="ours", expires_on=2**40)


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    """Returns a server that answers with the header by which a request is signed, after one broken answer."""

    class Handler(BaseHTTPRequestHandler):
        broken = 1

        def do_GET(self) -> None:
            self.send_response(200)
            if Handler.broken:
                Handler.broken -= 1
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"5\r\nab")
                return
            body = f'{{"header": "{self.headers["Authorization"]}"}}'.encode()
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_password_for_the_host_does_not_replace_the_token(
    server: HTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with RestClient(f"http://127.0.0.1:{server.server_port}", Credential(), Patience(pause=0.01)) as rest:
        assert rest.get("/") == {"header": "Bearer ours"}, "and the answer that broke off was asked for again"
