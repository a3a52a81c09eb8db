"""How connections come to a worker: what is made of each, by which door, and what becomes of those that wait when it stops."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import TYPE_CHECKING, Any

from laraman.net.connection import Connection
from laraman.net.request import request_factory
from laraman.protocols import protocol_named

if TYPE_CHECKING:
    from collections.abc import Callable

    from laraman.net.bind import Bind
    from laraman.net.door import Door
    from laraman.process.worker import Worker


class Accepting:
    """What listens for a worker, whose handler has started."""

    def __init__(self, worker: Worker, handler: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.servers: list[asyncio.Server | Door] = []
        self._worker = worker
        self._handler = handler
        self._loop = loop

    def _factory(self, bind: Bind) -> Callable[[], Any]:
        worker, handler = self._worker, self._handler
        make = getattr(handler, "connection", None)
        if make is not None:
            return lambda: make(worker, bind)
        if bind.address.scheme == "request" and worker.protocol is None:
            return request_factory(worker, handler, bind)
        protocol = protocol_named(bind.address.scheme)
        return lambda: Connection(protocol(), handler, worker, write_timeout=worker.config.timeout_write)

    def _door(self, bind: Bind) -> Door | None:
        make = getattr(self._handler, "door", None)
        return None if make is None else make(self._worker, bind, self._factory(bind))

    async def start(self) -> None:
        for bind in self._worker.binds:
            await self._listen(bind)

    async def _listen(self, bind: Bind) -> None:
        assert bind.socket is not None
        # A copy, because the server closes it and the backlog is served after that.
        sock = bind.socket.dup()
        sock.setblocking(False)
        if (door := self._door(bind)) is not None:
            door.open(sock)
            self.servers.append(door)
            return
        # Started when it is known: whoever cancels this closes it.
        if sock.family == socket.AF_UNIX and not isinstance(self._loop, asyncio.BaseEventLoop):
            options: Any = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
            server = await self._loop.create_unix_server(self._factory(bind), sock=sock, backlog=bind.backlog, start_serving=False, **options)
        else:
            server = await self._loop.create_server(self._factory(bind), sock=sock, backlog=bind.backlog, start_serving=False)
        self.servers.append(server)
        await server.start_serving()

    async def stop(self) -> None:
        """Close the listening sockets. When the whole server stops, first take what the kernel has already accepted in our name."""
        if isinstance(self._loop, asyncio.SelectorEventLoop):
            # asyncio drops what it has accepted but not yet given a transport when its server is closed: first let it only stop looking.
            for listening in (sock for server in self.servers for sock in server.sockets):
                self._loop.remove_reader(listening.fileno())
            await self._turns()
        for server in self.servers:
            server.close()
        await self._turns()
        for bind in self._worker.binds if self.servers else ():
            accepted = _accept_backlog(bind) if self._worker.stop_reason == "stop" else []
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


def _accept_backlog(bind: Bind) -> list[socket.socket]:
    """Everything in the kernel's queue, but no more than fits into it: under load it fills as fast as it is emptied."""
    accepted: list[socket.socket] = []
    assert bind.socket is not None
    while len(accepted) < bind.backlog:
        try:
            sock, _ = bind.socket.accept()
        except ConnectionAbortedError:
            continue
        except OSError:  # nothing waits, or no descriptor is left
            break
        sock.setblocking(False)
        accepted.append(sock)
    return accepted
