"""An Http service in the test's own event loop, and a client that says exactly what it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import types
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from laraman.asgi.service import Http
from laraman.config import Config

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

    Send = Callable[[dict[str, Any]], Awaitable[None]]
    Receive = Callable[[], Awaitable[dict[str, Any]]]

#: Seconds after which a test gives up: far more than any of them needs.
DEADLINE = 10.0


class Server:
    """The service, its worker's counters, and the port it listens on."""

    def __init__(self, service: Http, port: int, tls: ssl.SSLContext | None) -> None:
        self.service = service
        self.worker: Any = service.worker
        self.port = port
        self._tls = tls

    async def connect(self) -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self._tls)
        return Client(reader, writer)

    async def ask(self, request: bytes) -> bytes:
        """Send ``request`` on a new connection and return everything until the server closes it."""
        client = await self.connect()
        try:
            client.write(request)
            return await client.read_all()
        finally:
            client.close()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    async def read_all(self) -> bytes:
        async with asyncio.timeout(DEADLINE):
            return await self.reader.read()

    async def read_until(self, end: bytes) -> bytes:
        async with asyncio.timeout(DEADLINE):
            return await self.reader.readuntil(end)

    async def read_response(self) -> tuple[int, dict[bytes, bytes], bytes]:
        """One response: status, fields (the last of each name), body as the framing has it."""
        head = await self.read_until(b"\r\n\r\n")
        line, *lines = head[:-4].split(b"\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (field.partition(b":") for field in lines)}
        body = b""
        async with asyncio.timeout(DEADLINE):
            if b"content-length" in fields:
                body = await self.reader.readexactly(int(fields[b"content-length"]))
            elif fields.get(b"transfer-encoding") == b"chunked":
                while size := int(await self.reader.readuntil(b"\r\n"), 16):
                    body += (await self.reader.readexactly(size + 2))[:-2]
                await self.reader.readexactly(2)
        return int(line.split()[1]), fields, body

    def close(self) -> None:
        self.writer.close()


@contextlib.asynccontextmanager
async def serve(app: Any, tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None, **options: Any) -> AsyncIterator[Server]:
    """Serve ``app`` with the configuration's defaults, all ASGI extensions, and ``options``.

    With ``tls``, contexts of the server and of clients, under TLS.
    """
    options.setdefault("access_log", False)
    options.setdefault("lifespan", "off")
    options.setdefault("asgi_extensions", "all")
    worker = types.SimpleNamespace(
        config=replace(Config(), **options),
        connections=set(),
        links=set(),
        requests=0,
        in_flight=0,
        stop_reason="stop",
        stopping=False,
        name="http",
        slot=0,
    )
    service = Http()
    service.worker = worker  # type: ignore[assignment]
    service.config = worker.config
    service.app = app
    loop = asyncio.get_running_loop()
    await service.on_start(worker)  # type: ignore[arg-type]
    listener = await loop.create_server(lambda: service.connection(worker, None), "127.0.0.1", 0, ssl=tls and tls[0])  # type: ignore[arg-type]
    try:
        yield Server(service, listener.sockets[0].getsockname()[1], tls and tls[1])
    finally:
        listener.close()
        await service.on_drain(worker, loop.time() + 0.5)  # type: ignore[arg-type]
        async with asyncio.timeout(DEADLINE):
            while worker.connections or service.running:
                await asyncio.sleep(0)
        await service.on_stop(worker)  # type: ignore[arg-type]


async def respond(send: Send, body: bytes = b"ok", status: int = 200, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers or []})
    await send({"type": "http.response.body", "body": body})


async def read_body(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("disconnected")
        body += message["body"]
        if not message["more_body"]:
            return body
