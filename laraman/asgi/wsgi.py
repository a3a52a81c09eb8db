"""A WSGI application (PEP 3333) as one of ASGI 3: a2wsgi calls it in a thread, and what that leaves open is settled here.

Of the two adapters that people keep, asgiref's ``WsgiToAsgi`` has one thread for all requests of a process, knows neither lifespan nor websockets,
and does not call the response's ``close()``. a2wsgi has a pool of threads with a limit, streams both ways and waits for slow clients; it is the one
that uvicorn recommends and uses. Around it, here:

- A body that breaks off is an OSError, not a shorter body. It is read as it comes, and ``readline(limit)`` does not end early.
- The head goes out with the first piece of the body, so a late ``start_response(..., exc_info)`` can still be a 500 (PEP 3333, start_response).
- A response whose client has gone is closed, and its thread is free again.
- Where sending fails or the request is cancelled, its thread does not wait for a queue that nobody empties; the request is over when its thread
  is, so that what belongs to the operation is not taken away under running code.
- ``wsgi.errors`` is stderr. Header names with an underscore are dropped: ``X_Real_IP`` would be taken for ``X-Real-IP``, which proxies set.
"""

from __future__ import annotations

import asyncio
import io
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, cast

import anyio
from a2wsgi import WSGIMiddleware as Adapter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from laraman.asgi.app import Message, Receive, Scope, Send

#: Threads of one process, as in uvicorn and a2wsgi.
THREADS = 10
#: Bytes that are read ahead of ``readline``.
READ_AHEAD = 65536


class ClientGone(OSError):
    """The client has left while its request was read."""


class WSGIMiddleware:
    """``app`` in at most ``workers`` threads at a time; requests beyond that wait."""

    def __init__(self, app: Callable[..., Any], workers: int = THREADS) -> None:
        self.app = app
        self._adapter: Any = Adapter(cast("Any", self._respond), workers=workers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._adapter(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        _exchange.set(exchange)
        fields = [field for field in scope["headers"] if b"_" not in field[0]]
        work = asyncio.create_task(self._adapter({**scope, "headers": fields}, receive, exchange.send))
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError:
            exchange.leave()
            await asyncio.wait({work})
            if isinstance(work.exception(), ClientGone | None):
                raise
        finally:
            exchange.stop_watching()
        raised = work.exception()
        error = exchange.error or raised
        if error is not None and not isinstance(error, ClientGone):
            raise error

    def _respond(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        """The application's response, in a thread of the adapter."""
        exchange = _exchange.get()
        environ["wsgi.input"] = io.BufferedReader(_Body(exchange), READ_AHEAD)
        environ["wsgi.input_terminated"] = True  # it has an end of its own, also where no Content-Length tells it
        environ["wsgi.errors"] = sys.stderr
        head = _Head(start_response)
        pieces = self.app(environ, head)
        try:
            for piece in pieces:
                if piece:
                    head.send()
                    yield piece
                if exchange.gone:
                    return
            head.send()
        finally:
            if hasattr(pieces, "close"):
                pieces.close()


class _Exchange:
    """One request and its response, on the side of the loop. ``gone``: what is still sent goes nowhere."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fields = dict(scope["headers"])
        #: More of the body than has been received may come.
        self.has_more = b"transfer-encoding" in fields or fields.get(b"content-length", b"0") != b"0"
        self.loop = asyncio.get_running_loop()
        self.gone = False
        self.error: Exception | None = None
        self._receive = receive
        self._send = send
        self._pieces = 0
        self._watch: asyncio.Task[None] | None = None
        #: Around what is waited for.
        self._waits: set[anyio.CancelScope] = set()

    def leave(self) -> None:
        """Wait for the client no more."""
        self.gone = True
        for wait in self._waits:
            wait.cancel()

    async def _wait(self, coming: Awaitable[Any], otherwise: Any = None) -> Any:
        with anyio.CancelScope() as scope:
            self._waits.add(scope)
            try:
                return await coming
            finally:
                self._waits.discard(scope)
        return otherwise

    async def receive(self) -> Message:
        gone = {"type": "http.disconnect"}
        return gone if self.gone else await self._wait(self._receive(), gone)

    async def send(self, message: Message) -> None:
        if self.gone:
            return
        try:
            await self._wait(self._send(message))
        except Exception as exc:
            self.error = exc
            self.gone = True
            return
        self._pieces += bool(message.get("more_body"))
        if self._pieces > 1 and self._watch is None and not self.has_more:
            self._watch = asyncio.create_task(self._wait_until_gone())

    async def _wait_until_gone(self) -> None:
        """Nobody reads the body any more, so that what can be received is its end and the client's."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.gone = True

    def stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()


#: Of the request that the calling thread works for: the adapter calls it with a copy of the request's context.
_exchange: ContextVar[_Exchange] = ContextVar("laraman_wsgi_exchange")


class _Body(io.RawIOBase):
    """The request's body as it comes, read in the application's thread."""

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Wait for at least a byte, or the end. Raises ClientGone when it breaks off."""
        exchange = self._exchange
        while not self._rest and exchange.has_more:
            message = asyncio.run_coroutine_threadsafe(exchange.receive(), exchange.loop).result()
            if message["type"] == "http.disconnect":
                exchange.gone = True
                raise ClientGone("the client has left before its request was complete")
            self._rest = memoryview(message.get("body", b""))
            exchange.has_more = message.get("more_body", False)
        taken = self._rest[: len(buffer)]
        self._rest = self._rest[len(taken) :]
        buffer[: len(taken)] = taken
        return len(taken)


class _Head:
    """``start_response`` for the application; ``send`` lets the adapter have what was said last."""

    def __init__(self, start_response: Callable[..., Any]) -> None:
        self._start_response = start_response
        self._said: tuple[str, list[tuple[str, str]]] | None = None
        self._write: Callable[[bytes], Any] | None = None  # once it is sent

    def __call__(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], None]:
        if exc_info is None:
            if self._said is not None:
                raise RuntimeError("start_response() was called again without exc_info.")
        elif self._write is not None:
            try:
                raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # a traceback that holds its own frame
        self._said = (status, headers)
        return self.write

    def send(self) -> Callable[[bytes], Any]:
        if self._write is None:
            if self._said is None:
                raise RuntimeError("The WSGI application did not call start_response().")
            self._write = self._start_response(*self._said)
        return self._write

    def write(self, data: bytes) -> None:
        """What PEP 3333 has for applications that cannot return their body."""
        write = self.send()
        if data:
            write(data)
