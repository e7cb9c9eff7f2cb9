"""A small HTTP/1.1 server over TLS, with requests, answers and routes as plain values.

Connections live in one event loop; handlers are plain functions that run in a fixed pool of threads, started
beforehand, so that no thread appears in the middle of a test.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

POOL_SIZE = 12
LIMIT = 1 << 20


@dataclass
class Request:
    """One request: header names are in lower case, the path is decoded, ``parameters`` are those of the route."""

    method: str
    host: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    target: str
    parameters: dict[str, str] = field(default_factory=dict)

    @property
    def json(self) -> Any:
        """The body as JSON, an empty object if there is none."""
        return json.loads(self.body) if self.body else {}


@dataclass
class Answer:
    """One answer; a body that is not bytes is sent as JSON."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    is_connection_closed: bool = False
    """True if the connection breaks instead of an answer."""

    def encoded(self) -> tuple[dict[str, str], bytes]:
        """Returns the headers and the bytes of the body."""
        if isinstance(self.body, bytes):
            return dict(self.headers), self.body
        return {"Content-Type": "application/json; charset=utf-8", **self.headers}, json.dumps(self.body).encode()


Handler = Callable[[Any, Request], Answer]


class Routes:
    """A table of handlers by method and path; ``{name}`` matches one part of a path, ``{name...}`` the rest."""

    def __init__(self) -> None:
        self._table: list[tuple[str, re.Pattern[str], Handler]] = []

    def add(self, methods: str, *templates: str) -> Callable[[Handler], Handler]:
        """Returns a decorator that registers a handler for methods (``"GET"``, ``"GET|POST"``) and paths."""

        def register(handler: Handler) -> Handler:
            for template in templates:
                pattern = re.sub(r"\\{(\w+)\\.\\.\\.\\}", r"(?P<\1>.+)", re.escape(template))
                pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", pattern)
                # AzureML spells resourceGroups in three ways.
                self._table.append((f"|{methods}|", re.compile(pattern, re.IGNORECASE), handler))
            return handler

        return register

    def include(self, other: Routes) -> None:
        """Adds the routes of another table."""
        self._table.extend(other._table)

    def find(self, request: Request) -> Handler | None:
        """Returns the handler for a request, whose parameters are filled in, or None."""
        for methods, pattern, handler in self._table:
            match = pattern.fullmatch(request.path) if f"|{request.method}|" in methods else None
            if match:
                request.parameters = match.groupdict()
                return handler
        return None


class WebServer:
    """Serves a function from Request to Answer on two free ports of this machine, with and without TLS."""

    def __init__(self, respond: Callable[[Request], Answer], context: ssl.SSLContext) -> None:
        self._respond = respond
        self._context = context
        self._pool = ThreadPoolExecutor(POOL_SIZE, thread_name_prefix="azureml-stand-in")
        self._writers: set[asyncio.StreamWriter] = set()
        self._servers: list[asyncio.Server] = []
        self.port = 0
        self.plain_port = 0

    async def open(self) -> None:
        """Starts all threads and listens."""
        everyone = threading.Barrier(POOL_SIZE + 1)
        for _ in range(POOL_SIZE):
            self._pool.submit(everyone.wait)
        everyone.wait()
        self.port = await self._listen(self._context)
        self.plain_port = await self._listen(None)

    async def _listen(self, context: ssl.SSLContext | None) -> int:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context, limit=LIMIT, backlog=512)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Breaks all connections and ends the threads."""
        for server in self._servers:
            server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        self._pool.shutdown(wait=False, cancel_futures=True)
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while (request := await _read_request(reader, writer)) is not None:
                answer = await asyncio.get_running_loop().run_in_executor(self._pool, self._respond, request)
                if answer.is_connection_closed:
                    writer.transport.abort()
                    break
                writer.write(_head(request, answer))
                await writer.drain()
                if request.headers.get("connection", "").lower() == "close":
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ssl.SSLError, RuntimeError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin1").rstrip("\r\n").split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    parts = urlsplit(target)
    return Request(
        method=method,
        host=headers.get("host", "").partition(":")[0],
        path=unquote(parts.path),
        query=dict(parse_qsl(parts.query, keep_blank_values=True)),
        headers=headers,
        body=await _read_body(reader, headers),
        target=target,
    )


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(headers.get("content-length", 0)))
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
    return body


def _head(request: Request, answer: Answer) -> bytes:
    headers, body = answer.encoded()
    is_bodyless = request.method == "HEAD" or answer.status in (204, 304)
    if answer.status != 204:
        headers.setdefault("Content-Length", str(len(body)))
    phrase = HTTPStatus(answer.status).phrase if answer.status in HTTPStatus._value2member_map_ else "Unknown"
    lines = [f"HTTP/1.1 {answer.status} {phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin1") + (b"" if is_bodyless else body)
