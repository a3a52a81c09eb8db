"""Proxies for tests: HTTP CONNECT and SOCKS5, which do what they are told to and note what they were asked."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Dialogue = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Proxy:
    """``asked`` are the destinations, as they were written. Names are looked up here, and all of them are this machine."""

    def __init__(self, user: str = "", password: str = "") -> None:
        self.credentials = (user, password) if user else None
        self.asked: list[str] = []
        self.port = 0

    async def http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, target, version = head.partition("\r\n")[0].split(" ")
        assert (method, version) == ("CONNECT", "HTTP/1.1")
        assert f"Host: {target}\r\n" in head
        if self.credentials is not None:
            token = base64.b64encode(":".join(self.credentials).encode()).decode()
            if f"Proxy-Authorization: Basic {token}\r\n" not in head:
                writer.write(b'HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm="x"\r\nContent-Length: 0\r\n\r\n')
                return
        self.asked.append(target)
        await self._relay(reader, writer, int(target.rpartition(":")[2]), b"HTTP/1.0 200 Connection established\r\nProxy-Agent: test\r\n\r\n")

    async def socks(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        version, count = await reader.readexactly(2)
        assert version == 5
        methods = await reader.readexactly(count)
        wanted = 0 if self.credentials is None else 2
        writer.write(bytes((5, wanted if wanted in methods else 0xFF)))
        if wanted not in methods:
            return
        if wanted == 2 and not await self._accepts(reader, writer):
            return
        version, command, reserved, kind = await reader.readexactly(4)
        assert (version, command, reserved) == (5, 1, 0)
        if kind == 3:
            host = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
        else:
            family, length = {1: (socket.AF_INET, 4), 4: (socket.AF_INET6, 16)}[kind]
            host = socket.inet_ntop(family, await reader.readexactly(length))
        port = int.from_bytes(await reader.readexactly(2), "big")
        self.asked.append(f"{host}:{port}")
        await self._relay(reader, writer, port, b"\x05\x00\x00\x03\x04host\x00\x00")

    async def _accepts(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        said = []
        assert await reader.readexactly(1) == b"\x01"
        for _ in range(2):
            said.append((await reader.readexactly((await reader.readexactly(1))[0])).decode())
        accepted = tuple(said) == self.credentials
        writer.write(bytes((1, 0 if accepted else 7)))
        return accepted

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int, answer: bytes) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        writer.write(answer)
        try:
            await asyncio.gather(_pass_on(reader, back), _pass_on(there, writer))
        finally:
            back.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.close()


@contextlib.asynccontextmanager
async def listening(dialogue: Dialogue, path: Path | None = None, **options: object) -> AsyncIterator[int]:
    """The port of a server that has this dialogue with each client, or 0 for one at a unix socket; nothing of it is left behind."""
    tasks: list[asyncio.Task[None]] = []
    writers: list[asyncio.StreamWriter] = []

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        tasks.append(asyncio.ensure_future(serve(reader, writer)))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
            await dialogue(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    if path is None:
        server = await asyncio.start_server(accept, "127.0.0.1", 0, **options)  # type: ignore[arg-type]
    else:
        server = await asyncio.start_unix_server(accept, path, **options)  # type: ignore[arg-type]
    try:
        yield server.sockets[0].getsockname()[1] if path is None else 0
    finally:
        asyncio.get_running_loop().remove_reader(server.sockets[0].fileno())
        for _ in range(3):  # until what has been accepted is among them: asyncio loses it when its server is closed before that
            await asyncio.sleep(0)
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:  # a task that is cancelled before its first step has closed nothing
            with contextlib.suppress(AttributeError):  # the transport of TLS of Python 3.11.2, when it has ended already
                writer.transport.abort()
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def proxying(scheme: str, user: str = "", password: str = "") -> AsyncIterator[Proxy]:
    proxy = Proxy(user, password)
    async with listening(proxy.http if scheme == "http" else proxy.socks) as proxy.port:
        yield proxy


def says(*answers: bytes) -> Dialogue:
    """A server that reads something and answers, so often, then hangs until it is hung up on."""

    async def dialogue(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.read(65536)
            writer.write(answer)
        await reader.read()

    return dialogue


async def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
