"""Connections of ``request://``: the seed's three replies to the byte, its time limits, and everything that a client can do wrong."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import re
import struct
import types
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from laraman.config import Config
from laraman.errors import ConfigError, LocalProtocolError
from laraman.ipc_client import call
from laraman.net import peer
from laraman.net.address import parse_address
from laraman.net.request import RequestConnection, request_factory
from laraman.process.worker import Worker
from tests.net.serving import DEADLINE, a_worker, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = pytest.mark.anyio

#: The three replies as EasySwoole sends them, with their lengths.
NO_LENGTH = bytes.fromhex("00000023") + '{"res":"fail","msg":"长度有误"}'.encode()
OK = bytes.fromhex("00000021") + '{"res":"ok","msg":"长度相同"}'.encode()
SHORT_BODY = bytes.fromhex("00000026") + '{"res":"fail","msg":"长度不相等"}'.encode()
#: The request in its documentation.
SIAM = bytes.fromhex("0000000f") + b"my name is siam"


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def failed(message: str) -> bytes:
    return framed(f'{{"res":"fail","msg":"{message}"}}'.encode())


class Served:
    def __init__(self, path: Path, worker: Any) -> None:
        self.path = path
        self.worker = worker

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(str(self.path))

    async def exchange(self, *pieces: bytes, end: bool = False) -> bytes:
        """Send the pieces, and everything that comes until the server closes; with ``end`` the client says that there will be no more."""
        reader, writer = await self.connect()
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.01)
            if end:
                writer.write_eof()
            async with asyncio.timeout(DEADLINE):
                return await reader.read()
        finally:
            writer.transport.abort()

    @property
    def connection(self) -> RequestConnection:
        [connection] = self.worker.connections
        return connection


@pytest.fixture
def answering(tmp_path: Path) -> Callable[..., contextlib.AbstractAsyncContextManager[Served]]:
    """``async with answering(handler, timeout_keep_alive=30) as served``: the keywords are a Worker's."""

    @contextlib.asynccontextmanager
    async def answer(handler: Any, *, max_message: int | None = None, allow_users: Any = (), **options: Any) -> AsyncIterator[Served]:
        worker = a_worker()
        config = replace(Config(), timeout_write=options.pop("timeout_write", 60.0))
        vars(worker).update(config=config, options={"timeout_request_header": 30.0, "timeout_request_body": 30.0, **options})
        vars(worker).update(max_message=max_message, allow_users=allow_users, write_buffer=None)
        path = tmp_path / "app.sock"
        bind: Any = types.SimpleNamespace(address=parse_address(f"request+unix://{path}"))
        server = await asyncio.get_running_loop().create_unix_server(request_factory(worker, handler, bind), str(path))
        try:
            yield Served(path, worker)
        finally:
            server.close()
            for connection in tuple(worker.connections):
                connection.cancel()
            await until(lambda: not worker.connections)

    return answer


def silent(connection: Any, message: Any) -> None:
    pass


def echo(connection: Any, message: Any) -> Any:
    return message


async def later(connection: Any, message: Any) -> Any:
    await asyncio.sleep(0.001)
    return message


# The seed -------------------------------------------------------------------------------------------------------------------------


async def test_the_three_replies_to_the_byte(answering: Any) -> None:
    seen = []
    async with answering(lambda connection, message: seen.append(message)) as served:
        assert await served.exchange(SIAM) == OK
        assert await served.exchange(SIAM[:3], SIAM[3:9], SIAM[9:]) == OK
    async with answering(lambda connection, message: seen.append(message), timeout_request_header=0.3, timeout_request_body=0.3) as served:
        for short in (b"", b"\0\0", SIAM[:3]):
            assert await served.exchange(short) == NO_LENGTH
            assert await served.exchange(short, end=True) == NO_LENGTH
        for short in (SIAM[:4], SIAM[:-1], b"\0\0\0\x13my name is siam"):  # the last one's length counts itself, as Workerman's frames do
            assert await served.exchange(short) == SHORT_BODY
            assert await served.exchange(short, end=True) == SHORT_BODY
        assert seen == [b"my name is siam"] * 2


async def test_a_length_and_a_body_have_a_second_each_when_nothing_else_is_said(answering: Any) -> None:
    loop = asyncio.get_running_loop()
    async with answering(silent) as served:
        served.worker.options.clear()
        bind: Any = types.SimpleNamespace(address=parse_address("request+unix:///run/app.sock"))
        terms = request_factory(served.worker, silent, bind)()._terms
        assert (terms.timeout_request_header, terms.timeout_request_body, terms.timeout_keep_alive) == (1, 1, 0)
    async with answering(silent, timeout_request_header=1.0, timeout_request_body=1.0) as served:
        begun = loop.time()
        reader, writer = await served.connect()
        await asyncio.sleep(0.5)
        writer.write(SIAM[:6])
        assert await reader.read() == SHORT_BODY
        assert loop.time() - begun >= 1.4  # the body's second began with the length
        writer.transport.abort()


async def test_a_client_that_does_not_wait_for_its_reply_is_served(answering: Any, caplog: pytest.LogCaptureFixture) -> None:
    done = []

    async def work(connection: Any, message: Any) -> None:
        await until(lambda: connection._ended or connection.error)  # it has hung up
        done.append(message)

    async with answering(work) as served:
        _, writer = await served.connect()
        writer.write(SIAM)
        await writer.drain()
        writer.close()
        await until(lambda: done and not served.worker.connections)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_what_stands_behind_the_one_request_is_not_read(answering: Any) -> None:
    for handler in (silent, lambda connection, message: asyncio.sleep(0.05)):
        async with answering(handler) as served:
            assert await served.exchange(SIAM + b"\n", end=True) == OK
            assert await served.exchange(SIAM + SIAM + b"\xff" * 100) == OK


# Replies --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handler", [echo, later, functools.partial(later)])
async def test_what_the_handler_returns_is_the_reply(answering: Any, handler: Any) -> None:
    async with answering(handler) as served:
        for body in (b'{"text":"\xe9\x95\xbf\xe5\xba\xa6"}', b"[]", b"0", b"false", b'""', b"no JSON \xff"):
            assert await served.exchange(framed(body)) == framed(body)
        assert await served.exchange(framed(b"null")) == OK
        assert await served.exchange(framed(b"")) == framed(b"")


async def test_an_object_answers_too_and_hears_of_connections(answering: Any) -> None:
    class Handler:
        def __init__(self) -> None:
            self.heard: list[str] = []

        async def on_connect(self, connection: Any) -> None:
            await asyncio.sleep(0.01)
            self.heard.append("connect")

        def on_message(self, connection: RequestConnection, message: Any) -> Any:
            assert connection.credentials is not None
            return list(connection.credentials)

        def on_close(self, connection: Any) -> None:
            self.heard.append("close")

    handler = Handler()
    async with answering(handler) as served:
        assert await served.exchange(SIAM) == framed(str([os.getpid(), os.getuid(), os.getgid()]).replace(" ", "").encode())
        await until(lambda: handler.heard == ["connect", "close"])


async def test_a_handler_that_raises_is_told_by_its_type_alone(answering: Any, caplog: pytest.LogCaptureFixture) -> None:
    def secret(connection: Any, message: Any) -> Any:
        raise KeyError("the password is 1234")

    async def secret_later(connection: Any, message: Any) -> Any:
        await asyncio.sleep(0)
        raise KeyError("the password is 1234")

    def link(connection: Any, message: Any) -> Any:
        raise LocalProtocolError("the password is 1234")

    async with answering(link) as served:
        assert await served.exchange(SIAM) == failed("the handler raised LocalProtocolError")
    # whose faults have faults
    clumsy = types.SimpleNamespace(on_message=secret, on_error=secret, on_close=lambda connection: secret(connection, None))
    for handler in (secret, secret_later, clumsy):
        for options in ({}, {"timeout_keep_alive": 30.0}):
            caplog.clear()
            async with answering(handler, **options) as served:
                assert await served.exchange(SIAM) == failed("the handler raised KeyError")
            assert "KeyError: 'the password is 1234'" in caplog.text  # in the log there is all of it
    async with answering(types.SimpleNamespace(on_connect=clumsy.on_close, on_message=silent)) as served:
        assert await asyncio.to_thread(call, str(served.path), "early") == {"res": "fail", "msg": "the handler raised KeyError"}


async def test_a_handler_that_is_cancelled_keeps_no_client_waiting(answering: Any) -> None:
    async def give_up(connection: Any, message: Any) -> Any:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(30)

    for options in ({}, {"timeout_keep_alive": 30.0}):
        async with answering(give_up, **options) as served:
            assert await served.exchange(SIAM) == b""
            await until(lambda: not served.worker.connections)


async def test_a_reply_that_is_no_json_or_too_long(answering: Any) -> None:
    async with answering(lambda connection, message: {1, 2}) as served:
        assert b'"msg":"a message must be bytes or JSON: Object of type set' in await served.exchange(SIAM)
    async with answering(lambda connection, message: "x" * 1000, max_message=100) as served:
        assert b"1002 bytes is larger" in await served.exchange(SIAM)


# Many per connection --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handler", [echo, later])
async def test_many_requests_on_one_connection_in_their_order(answering: Any, handler: Any) -> None:
    async with answering(handler, timeout_keep_alive=30.0) as served:
        bodies = [b'{"n":%d}' % n for n in range(200)]
        assert await served.exchange(*map(framed, bodies[:3]), b"".join(map(framed, bodies[3:])), end=True) == b"".join(map(framed, bodies))


async def test_the_next_request_has_its_time_from_the_reply_on(answering: Any) -> None:
    async with answering(echo, timeout_keep_alive=1.0, timeout_request_body=0.3) as served:
        reader, writer = await served.connect()
        for _ in range(3):
            await asyncio.sleep(0.5)
            writer.write(SIAM)
            assert await reader.readexactly(len(SIAM)) == SIAM
        writer.write(SIAM[:5])
        assert await reader.read() == SHORT_BODY
        assert await served.exchange(SIAM) == SIAM  # and without the next one it ends, without a word
        writer.transport.abort()


async def test_while_a_handler_runs_its_client_is_in_no_hurry(answering: Any) -> None:
    async def slow(connection: Any, message: Any) -> Any:
        await asyncio.sleep(0.4)
        return message

    async with answering(slow, timeout_keep_alive=0.2, timeout_request_header=0.2, timeout_request_body=0.2) as served:
        assert await served.exchange(SIAM + SIAM[:7]) == SIAM + SHORT_BODY


# Bad input ------------------------------------------------------------------------------------------------------------------------


async def test_a_length_that_cannot_be_is_refused_at_once(answering: Any) -> None:
    async with answering(echo, max_message=1000) as served:
        for length, data in ((1001, struct.pack(">I", 1001)), (15 << 24, struct.pack("<I", 15)), (0x47455420, b"GET / HTTP/1.1\r\n")):
            assert await served.exchange(data) == failed(f"frame length {length} is outside 0..1000")
        assert await served.exchange(framed(b"x" * 1000)) == framed(b"x" * 1000)


async def test_a_frame_that_is_wrong_behind_a_request_that_runs_is_not_answered_in_its_place(answering: Any) -> None:
    async def slow(connection: Any, message: Any) -> Any:
        await asyncio.sleep(30)

    async with answering(slow, timeout_keep_alive=30.0) as served:
        assert await served.exchange(SIAM, b"\xff\xff\xff\xff") == b""


async def test_a_client_that_reads_nothing_holds_its_own_requests_back(answering: Any) -> None:
    async with answering(lambda connection, message: "x" * 100_000, timeout_keep_alive=30.0) as served:
        reader, writer = await served.connect()
        count = 500
        writer.write(SIAM * count)
        await until(lambda: served.worker.connections and served.connection.writing_paused)
        await asyncio.sleep(0.1)
        assert served.connection.messages_out < 100  # of 50 MB of replies
        read = 0
        async with asyncio.timeout(DEADLINE):
            while read < count * 100_006:
                read += len(await reader.read(1 << 20))
        writer.transport.abort()


@pytest.mark.parametrize("handler", [silent, later])
async def test_a_client_that_reads_nothing_for_too_long_is_cut_off(answering: Any, handler: Any, caplog: pytest.LogCaptureFixture) -> None:
    def much(connection: Any, message: Any) -> Any:
        return handler(connection, "x" * 100_000) or "x" * 100_000

    async with answering(much, timeout_keep_alive=30.0, timeout_write=0.2) as served:
        _, writer = await served.connect()
        writer.write(SIAM * 50)
        await until(lambda: "the peer has read nothing for 0.2 seconds" in caplog.text)
        await until(lambda: not served.worker.connections)
        assert served.worker.in_flight == 0
        writer.transport.abort()


async def test_who_is_not_allowed_is_told_so_and_nothing_of_his_is_handled(answering: Any, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Any] = []
    handler = types.SimpleNamespace(on_connect=heard.append, on_message=lambda *given: heard.append(given), on_close=heard.append)
    async with answering(handler, allow_users=[os.getuid() + 1]) as served:
        assert await served.exchange(SIAM) == failed(f"user {os.getuid()} is not allowed")
        await until(lambda: not served.worker.connections)
        assert heard == []
    assert re.search(rf"<RequestConnection \d+ pid {os.getpid()}, uid {os.getuid()} OPEN>: user {os.getuid()} is not allowed", caplog.text)
    async with answering(handler, allow_users=["root", str(os.getuid())]) as served:
        assert await served.exchange(SIAM) == OK


def test_declarations_that_nobody_can_serve() -> None:
    def bind(address: str) -> Any:
        return types.SimpleNamespace(address=parse_address(address))

    def worker(**words: Any) -> Any:
        return types.SimpleNamespace(**{"name": "r", "allow_users": (), "options": {}, "max_message": None, **words})

    with pytest.raises(ConfigError, match=r"worker 'r': its handler is no function and has no on_message, so nobody answers request\+unix:///run/x"):
        request_factory(worker(), object(), bind("request+unix:///run/x"))
    with pytest.raises(ConfigError, match="worker 'r': allow_users is for request"):
        Worker("r", "text+unix:///run/x", allow_users=["root"])
    with pytest.raises(ConfigError, match="allow_users: there is no user 'nobody-of-this-name'"):
        request_factory(worker(allow_users=["nobody-of-this-name"]), echo, bind("request+unix:///run/x"))
    with pytest.raises(ConfigError, match=r"allow_users is for unix sockets, on Linux, not for request://127\.0\.0\.1:9"):
        request_factory(worker(allow_users=["root"]), echo, bind("request://127.0.0.1:9"))


# Its end --------------------------------------------------------------------------------------------------------------------------


async def test_a_worker_that_stops_still_hears_what_has_begun(answering: Any) -> None:
    async with answering(echo, timeout_keep_alive=30.0) as served:
        begun, idle = await served.connect(), await served.connect()
        for _, writer in (begun, idle):
            writer.write(SIAM)
        for reader, _ in (begun, idle):
            assert await reader.readexactly(len(SIAM)) == SIAM
        begun[1].write(SIAM[:9])
        await until(lambda: sum(connection.bytes_in for connection in served.worker.connections) == 2 * len(SIAM) + 9)
        for connection in tuple(served.worker.connections):
            connection.shutdown()
        assert await idle[0].read() == b""
        begun[1].write(SIAM[9:])
        assert await begun[0].read() == SIAM
        for _, writer in (begun, idle):
            writer.transport.abort()


async def test_a_worker_that_stops_hears_also_who_is_still_being_welcomed(answering: Any) -> None:
    welcomed = asyncio.Event()

    async def welcome(connection: Any) -> None:
        await welcomed.wait()

    for options in ({}, {"timeout_keep_alive": 30.0}):
        welcomed.clear()
        async with answering(types.SimpleNamespace(on_connect=welcome, on_message=echo), **options) as served:
            reader, writer = await served.connect()
            await until(lambda: served.worker.connections)
            served.connection.shutdown()
            welcomed.set()
            await until(lambda: served.connection.running is None)
            writer.write(SIAM)
            assert await reader.read() == SIAM
            writer.transport.abort()


async def test_nothing_of_a_connection_stays(answering: Any) -> None:
    async with answering(silent) as served:
        _, writer = await served.connect()
        await until(lambda: served.worker.connections)
        connection = served.connection
        assert (connection._timer is not None, connection.row()["peer"]) == (True, f"pid {os.getpid()}, uid {os.getuid()}")
        writer.transport.abort()
        await until(lambda: not served.worker.connections)
        assert connection._timer is None


def test_users_by_name_and_number() -> None:
    assert peer.user_ids(["root", 7, "8"]) == {0, 7, 8}
