"""How connections come to a worker: what is made of each, by which door, and what becomes of those that wait when it stops."""

from __future__ import annotations

import asyncio
import math
import socket
import sys
from typing import TYPE_CHECKING, Any

from laraman.config.options import did_you_mean
from laraman.errors import BootError, ConfigError
from laraman.net.accepted import websocket_factory
from laraman.net.connection import Connection
from laraman.net.datagrams import DatagramServer
from laraman.net.door import Door, Places
from laraman.net.request import request_factory
from laraman.net.tls import Tls
from laraman.process.naming import resolve
from laraman.protocols import PROTOCOLS, protocol_named

if TYPE_CHECKING:
    from collections.abc import Callable

    from laraman.net.bind import Bind
    from laraman.process.worker import Worker

#: Seconds between two looks at the files of TLS.
LOOK = 1.0


class Accepting:
    """What listens for a worker, whose handler has started."""

    def __init__(self, worker: Worker, handler: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.servers: list[asyncio.Server | Door | DatagramServer] = []
        self._worker = worker
        self._handler = handler
        self._loop = loop
        self._tls: Tls | None = None
        self._places: Places | None = None
        self._looking: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Raises ConfigError for a protocol or a certificate that cannot be had, and where nobody would handle what comes."""
        if not hasattr(self._handler, "connection"):
            self._secure()
        if self._worker.max_connections is not None:
            self._places = self._worker.connections = Places(self._worker.max_connections)
        for bind in self._worker.binds:
            await self._listen(bind)

    def _secure(self) -> None:
        config = self._worker.config
        secured = next((bind for bind in self._worker.binds if bind.address.tls), None)
        if secured is None:
            return
        if not config.ssl_certfile and config.ssl_context_factory is None:
            raise ConfigError(f"worker {self._worker.name!r}: {secured.address} needs a certificate, ssl_certfile")
        self._tls = Tls(config)
        self._look()

    def _look(self) -> None:
        assert self._tls is not None
        self._looking = self._loop.call_later(LOOK, self._look)
        self._tls.look()

    # What is made of a connection ------------------------------------------------------------------------------------------------

    def _factory(self, bind: Bind) -> Callable[[], Any]:
        worker, handler = self._worker, self._handler
        make = getattr(handler, "connection", None)
        if make is not None:
            return lambda: make(worker, bind)
        if bind.address.scheme == "request" and worker.protocol is None:
            return request_factory(worker, handler, bind)
        if bind.address.scheme == "websocket" and worker.protocol is None:
            return websocket_factory(worker, handler)
        protocol, patience, buffer = self._protocol(bind), worker.config.timeout_write, worker.write_buffer
        return lambda: Connection(protocol(), handler, worker, write_timeout=patience, write_buffer=buffer)

    def _protocol(self, bind: Bind) -> Callable[[], Any]:
        """What makes a connection's codec: the declaration's, or the one that the address names."""
        worker = self._worker
        if worker.protocol is None:
            return self._named(bind)
        protocol: Callable[[], Any] = resolve(worker.protocol, "protocol") if isinstance(worker.protocol, str) else worker.protocol
        if not callable(protocol) or not all(hasattr(protocol(), method) for method in ("receive_data", "send")):
            raise ConfigError(f"worker {worker.name!r}: its protocol {worker.protocol!r} makes nothing with receive_data and send")
        return protocol

    def _named(self, bind: Bind) -> Callable[[], Any]:
        scheme = bind.address.scheme
        if scheme not in PROTOCOLS:
            known = [*PROTOCOLS, "websocket", "http"]
            hint = did_you_mean(scheme, known) or f"; there are {', '.join(sorted(known))}"
            if scheme == "ws":
                hint = "; where one listens it is websocket://"
            raise ConfigError(f"worker {self._worker.name!r}: {bind.address}: there is no protocol {scheme!r}{hint}")
        return protocol_named(scheme, self._worker.max_message)

    def _door(self, bind: Bind) -> Door | None:
        make = getattr(self._handler, "door", None)
        if make is not None:
            made: Door | None = make(self._worker, bind, self._factory(bind))
            return made
        tls = self._tls if bind.address.tls else None
        if tls is None and self._places is None:
            return None
        patience = self._worker.config.timeout_request_header or math.inf
        return Door(self._worker, self._factory(bind), tls=tls, timeout=patience, places=self._places)

    # Listening -------------------------------------------------------------------------------------------------------------------

    async def _listen(self, bind: Bind) -> None:
        server: DatagramServer | Door | None
        server = DatagramServer(self._worker, self._handler, self._protocol(bind)) if bind.datagrams else self._door(bind)
        factory = None if server is not None else self._factory(bind)
        if self._handler is None:
            raise ConfigError(f"worker {self._worker.name!r}: {bind.address} needs a handler")
        if bind.socket is None:
            raise BootError(f"nothing listens on {bind.address}: a restart that wanted it was refused")
        # A copy, because the server closes it and the backlog is served after that.
        sock = bind.socket.dup()
        sock.setblocking(False)
        if server is not None:
            server.open(sock)
            self.servers.append(server)
        else:
            await self._serve(sock, factory, bind.backlog)

    async def _serve(self, sock: socket.socket, factory: Any, backlog: int) -> None:
        """With the loop's own server. It is started when it is known: whoever cancels this closes it."""
        if sock.family == socket.AF_UNIX and not isinstance(self._loop, asyncio.BaseEventLoop):
            options: Any = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
            server = await self._loop.create_unix_server(factory, sock=sock, backlog=backlog, start_serving=False, **options)
        else:
            server = await self._loop.create_server(factory, sock=sock, backlog=backlog, start_serving=False)
        self.servers.append(server)
        await server.start_serving()

    async def stop(self) -> None:
        """Close the listening sockets. Where nobody else will take it, first take what the kernel has already accepted in our name."""
        if self._looking is not None:
            self._looking.cancel()
        if isinstance(self._loop, asyncio.SelectorEventLoop):
            # asyncio drops what it has accepted but not yet given a transport when its server is closed: first let it only stop looking.
            for listening in (sock for server in self.servers for sock in server.sockets):
                self._loop.remove_reader(listening.fileno())
            await self._turns()
        for server in self.servers:
            if isinstance(server, DatagramServer) and self._worker.stop_reason in ("stop", "scale"):
                server.drain()
            server.close()
        await self._turns()
        for bind in self._worker.binds if self.servers else ():
            await self._take_backlog(bind)

    async def _take_backlog(self, bind: Bind) -> None:
        reason = self._worker.stop_reason
        alone = reason == "scale" and bind.reuse_port  # this slot's queue has nobody else
        if alone:
            bind.turn_away()
        room = bind.backlog if self._places is None else self._places.free
        accepted = _accept_backlog(bind, room) if (alone or reason == "stop") and not bind.datagrams else []
        bind.close()
        door = self._door(bind) if accepted else None
        for sock in accepted:
            if door is not None:
                door.take(sock)
                continue
            try:
                await self._loop.connect_accepted_socket(self._factory(bind), sock)
            except OSError:  # its client has given up
                sock.close()

    async def _turns(self) -> None:
        """As many turns of the loop as it takes until what it has accepted is among the worker's connections."""
        for _ in range(3):
            await asyncio.sleep(0)


def _accept_backlog(bind: Bind, room: int) -> list[socket.socket]:
    """What is in the kernel's queue, but no more than ``room``, at most what fits into it: under load it fills as fast as it is emptied."""
    accepted: list[socket.socket] = []
    assert bind.socket is not None
    while len(accepted) < room:
        try:
            sock, _ = bind.socket.accept()
        except ConnectionAbortedError:
            continue
        except OSError:  # nothing waits, or no descriptor is left
            break
        sock.setblocking(False)
        accepted.append(sock)
    return accepted
