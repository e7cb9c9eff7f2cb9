"""A CONNECT proxy: it tunnels the hosts it knows to ports of this machine and refuses every other host."""

from __future__ import annotations

import asyncio
import fnmatch
import socket
from collections.abc import Callable, Coroutine
from typing import Any, cast
from urllib.parse import urlsplit

REFUSAL = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
ACCEPTANCE = b"HTTP/1.1 200 Connection established\r\n\r\n"
LONGEST_HEAD = 64 * 1024


class _Pump(asyncio.Protocol):
    """One direction of a tunnel: what arrives here leaves through the peer's transport."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.peer: _Pump | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.write(data)
        _acknowledge(self.transport)

    def pause_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None and not self.peer.transport.is_closing():
            self.peer.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.close()
        self.transport = None


def _acknowledge(transport: asyncio.Transport | None) -> None:
    """Tells the sender now that its data have arrived.

    Clients collect small packets for a proxy (urllib3 leaves Nagle's algorithm on), so that each request would wait
    40 ms for the acknowledgement that Linux delays. Without a proxy, as in reality, there is no such delay.
    """
    connection = transport.get_extra_info("socket") if transport is not None else None
    if connection is not None and hasattr(socket, "TCP_QUICKACK"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def _host_and_port(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.hostname}:{parts.port or 80}"


class _ClientSide(_Pump):
    """The connection of a client: first the CONNECT request, then the tunnel."""

    def __init__(self, proxy: ConnectProxy) -> None:
        super().__init__()
        self.proxy = proxy
        self.head = b""
        self.is_answered = False
        self.host = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.proxy.clients.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.proxy.clients.discard(self)
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        if self.peer is not None:
            super().data_received(data)
            return
        self.head += data
        if not self.is_answered and (b"\r\n\r\n" in self.head or len(self.head) > LONGEST_HEAD):
            self.is_answered = True
            self._answer(self.head.split(b"\r\n", 1)[0].decode("latin1"))

    def _answer(self, line: str) -> None:
        method, target = (*line.split(" "), "", "")[:2]
        self.host = target.rpartition(":")[0].lower()
        port = self.proxy.port_for(self.host) if method == "CONNECT" else None
        if port is None:
            self.proxy.refused.append(target if method == "CONNECT" else _host_and_port(target))
            if self.transport is not None:
                self.transport.write(REFUSAL)
                self.transport.close()
            return
        self.proxy.tunnels.append(self.host)
        self.proxy.start(self._open_tunnel(port))

    async def _open_tunnel(self, port: int) -> None:
        try:
            _, server_side = await asyncio.get_running_loop().create_connection(_Pump, "127.0.0.1", port)
        except OSError:
            self.abort()
            return
        server_side.peer = self
        self.peer = server_side
        if self.transport is None:
            server_side.connection_lost(None)
        else:
            self.transport.write(ACCEPTANCE)

    def abort(self) -> None:
        """Cuts the connection as a lost network does."""
        if self.transport is not None:
            self.transport.abort()


class ConnectProxy:
    """The proxy, to be used inside one event loop.

    :param routes: Pattern of host names to a function that returns the port to tunnel to at that moment.
    """

    def __init__(self, routes: dict[str, Callable[[], int]]) -> None:
        self.routes = routes
        self.refused: list[str] = []
        self.tunnels: list[str] = []
        self.clients: set[_ClientSide] = set()
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def port_for(self, host: str) -> int | None:
        """Returns the port that stands in for a host, or None for a host that has to be refused."""
        for pattern, port in self.routes.items():
            if fnmatch.fnmatchcase(host, pattern):
                return port()
        return None

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs a coroutine and keeps hold of it until it is done."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def open(self) -> None:
        """Listens on a free port of this machine."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _ClientSide(self), "127.0.0.1", 0, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self, pattern: str) -> None:
        """Cuts all open tunnels to matching hosts."""
        for client in [client for client in self.clients if fnmatch.fnmatchcase(client.host, pattern)]:
            client.abort()
        # The connections are closed in the next round of the loop.
        await asyncio.sleep(0)

    async def close(self) -> None:
        """Ends all tunnels and stops listening."""
        if self._server is not None:
            self._server.close()
        await self.cut("*")
