"""HTTP/1.1 over real sockets, on asyncio and on uvloop, with both parsers."""

from __future__ import annotations

import asyncio
import contextvars
import decimal
import logging
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from laraman.asgi.extensions import OFFERED
from tests.asgi.service import DEADLINE, read_body, respond, serve

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Send = Callable[[dict[str, Any]], Awaitable[None]]
    Receive = Callable[[], Awaitable[dict[str, Any]]]

pytestmark = pytest.mark.anyio

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


async def hello(scope: Any, receive: Receive, send: Send) -> None:
    await respond(send, b"hello")


async def echo(scope: Any, receive: Receive, send: Send) -> None:
    await respond(send, await read_body(receive))


async def path(scope: Any, receive: Receive, send: Send) -> None:
    await respond(send, scope["path"].encode())


def fields(response: bytes) -> list[bytes]:
    return response.partition(b"\r\n\r\n")[0].lower().split(b"\r\n")[1:]


# The request ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("http", ["httptools", "h11"])
async def test_scope_field_by_field(http: str) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await respond(send)

    async with serve(app, http=http, root_path="/api") as server:
        client = await server.connect()
        client.write(b"GET /a%20b%2Fc?q=%41 HTTP/1.1\r\nHost: x\r\nX-Multi: 1\r\nx-multi: 2\r\n\r\n")
        await client.read_response()
        peer = client.writer.get_extra_info("sockname")
        client.close()
    (scope,) = seen
    assert scope == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", server.port),
        "client": peer,
        "scheme": "http",
        "method": "GET",
        "root_path": "/api",
        "path": "/api/a b/c",
        "raw_path": b"/api/a%20b%2Fc",
        "query_string": b"q=%41",
        "headers": [(b"host", b"x"), (b"x-multi", b"1"), (b"x-multi", b"2")],
        "state": {},
        "extensions": {name: {} for name in OFFERED["all"]},
    }


async def test_state_is_a_copy_for_each_request() -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        before = scope["state"].get("user", "nobody")
        scope["state"]["user"] = "alice"
        await respond(send, f"{before} {scope['state']['shared']}".encode())

    async with serve(app) as server:
        server.service.state["shared"] = "pool"
        assert (await server.ask(GET + LAST)).count(b"nobody pool") == 2


async def test_byte_by_byte() -> None:
    async with serve(echo) as server:
        client = await server.connect()
        request = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        for index in range(len(request)):
            client.write(request[index : index + 1])
            await client.writer.drain()
            await asyncio.sleep(0)
        assert (await client.read_response())[2] == b"abcde"
        client.close()


async def test_empty_lines_before_a_request_are_ignored() -> None:
    async with serve(hello) as server:
        assert (await server.ask(b"\r\n\r\n" + GET + b"\r\n" + LAST)).count(b"hello") == 2


@pytest.mark.parametrize("http", ["httptools", "h11"])
@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: x\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET /" + b"a" * 70000, 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 70000, 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 70000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 101 + b"\r\n", 431),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000000\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    ],
)
async def test_refusals(http: str, request_: bytes, status: int) -> None:
    async with serve(echo, http=http) as server:
        response = await server.ask(request_)
        assert response.startswith(b"HTTP/1.1 %d " % status)
        assert b"connection: close" in fields(response)
        assert b"Traceback" not in response
        assert (await server.ask(LAST)).startswith(b"HTTP/1.1 200")


async def test_a_refusal_reaches_a_client_that_is_still_sending() -> None:
    async with serve(echo, limit_request_body=1000) as server:
        client = await server.connect()
        client.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        for _ in range(20):
            client.write(b"x" * 50000)
        assert (await client.read_response())[0] == 413
        client.close()


async def test_a_chunked_body_is_limited_while_it_arrives() -> None:
    async with serve(echo, limit_request_body=1000) as server:
        chunk = b"200\r\n" + b"x" * 512 + b"\r\n"
        assert (await server.ask(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 4)).startswith(b"HTTP/1.1 413")


async def test_a_body_stays_a_body_beside_an_upgrade() -> None:
    async with serve(echo) as server:
        request = b"POST / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 4\r\n\r\nbody"
        response = await server.ask(request + LAST)
        assert response.count(b"HTTP/1.1 200") == 2
        assert b"\r\n\r\nbodyHTTP/1.1" in response


async def test_a_large_body_is_read_no_faster_than_the_application_takes_it() -> None:
    go = asyncio.Event()

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await go.wait()
        await respond(send, b"%d" % len(await read_body(receive)))

    async with serve(app) as server:
        client = await server.connect()
        size = 20_000_000
        client.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
        client.write(b"x" * size)
        async with asyncio.timeout(DEADLINE):
            while not server.worker.connections or not next(iter(server.worker.connections))._reading_paused:
                await asyncio.sleep(0)
        taken = next(iter(server.worker.connections)).bytes_in
        assert taken < 1_000_000
        go.set()
        assert (await client.read_response())[2] == b"%d" % size
        client.close()


async def test_100_continue_is_sent_when_the_application_asks_for_the_body() -> None:
    asked = asyncio.Event()
    go = asyncio.Event()

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        asked.set()
        await go.wait()
        await respond(send, await read_body(receive))

    async with serve(app) as server:
        client = await server.connect()
        client.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        await asked.wait()
        go.set()
        assert await client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.write(b"body")
        assert (await client.read_response())[2] == b"body"
        client.close()


async def test_no_100_continue_where_it_does_not_belong() -> None:
    async with serve(hello) as server:
        answer = await server.ask(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200")  # never asked for, so never invited,
        assert b"connection: close" in fields(answer)  # and then the connection cannot be kept
    async with serve(echo) as server:
        answer = await server.ask(b"POST / HTTP/1.0\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\nbody")
        assert answer.startswith(b"HTTP/1.1 200")
        answer = await server.ask(b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\nbody")
        assert answer.startswith(b"HTTP/1.1 200")


async def test_a_request_that_was_not_read_does_not_become_the_next_one() -> None:
    async with serve(hello) as server:
        response = await server.ask(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 27\r\n\r\n" + b"GET /evil HTTP/1.1\r\nHost: " + LAST)
        assert response.count(b"HTTP/1.1 200") == 2
        assert server.worker.requests == 2


# Pipelining and keep-alive --------------------------------------------------------------------------------------------------------


async def test_pipelined_answers_are_in_order() -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        for _ in range(5 if scope["path"] == "/0" else 0):
            await asyncio.sleep(0)
        await respond(send, scope["path"].encode())

    async with serve(app) as server:
        requests = b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(50))
        response = await server.ask(requests + LAST)
        bodies = [part.partition(b"\r\n\r\n")[2] for part in response.split(b"HTTP/1.1 200 OK")[1:]]
        assert bodies == [b"/%d" % number for number in range(50)] + [b"/"]


async def test_pipelined_bodies() -> None:
    async with serve(echo) as server:
        chunked = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\n"
        sized = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\ntwo"
        response = await server.ask((chunked + sized) * 3 + LAST)
        assert response.count(b"HTTP/1.1 200") == 7
        assert response.count(b"\r\n\r\none") == response.count(b"\r\n\r\ntwo") == 3


async def test_unread_answers_stop_the_reading_of_requests() -> None:
    async with serve(hello) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.setblocking(False)
            sent = 0
            idle = 0
            while idle < 200:
                try:
                    sent += client.send(GET * 1000)
                    idle = 0
                except BlockingIOError:
                    idle += 1
                    await asyncio.sleep(0.001)
            (connection,) = server.worker.connections
            assert connection.transport.get_write_buffer_size() < 2_000_000
            assert len(connection._buffer or b"") < 1_000_000


@pytest.mark.parametrize(
    ("version", "option", "kept"),
    [("1.1", None, True), ("1.1", "close", False), ("1.1", "Foo, CLOSE", False), ("1.0", None, False), ("1.0", "Keep-Alive, Foo", True)],
)
async def test_connection_header_is_honest(version: str, option: str | None, kept: bool) -> None:
    async with serve(hello) as server:
        client = await server.connect()
        client.write(f"GET / HTTP/{version}\r\nHost: x\r\n{f'Connection: {option}' + chr(13) + chr(10) if option else ''}\r\n".encode())
        _, got, body = await client.read_response()
        assert body == b"hello"
        assert got.get(b"connection") == (None if kept and version == "1.1" else b"keep-alive" if kept else b"close")
        if kept:
            client.write(LAST)
            await client.read_response()
        assert await client.read_all() == b""
        client.close()


async def test_an_application_may_close_the_connection() -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await respond(send, headers=[(b"Connection", b"Close")])

    async with serve(app) as server:
        response = await server.ask(GET)
        assert fields(response).count(b"connection: close") == 1


# The response ---------------------------------------------------------------------------------------------------------------------


async def test_default_headers_come_first_and_can_be_replaced() -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await respond(send, headers=[(b"X-A", b"1"), (b"Server", b"mine"), (b"set-cookie", b"a"), (b"set-cookie", b"b")])

    async with serve(hello) as server:
        got = fields(await server.ask(LAST))
        assert [field.split(b":")[0] for field in got[:2]] == [b"date", b"server"]
    async with serve(app, header=("x-extra: 2",)) as server:
        got = fields(await server.ask(LAST))
        assert got[0].startswith(b"date: ")
        assert got[1:] == [b"x-extra: 2", b"x-a: 1", b"server: mine", b"set-cookie: a", b"set-cookie: b", b"content-length: 2", b"connection: close"]
    async with serve(hello, date_header=False, server_header=False) as server:
        assert fields(await server.ask(LAST)) == [b"content-length: 5", b"connection: close"]


async def test_fields_are_in_the_applications_order() -> None:
    """Content-Length where the application has put it, names in lower case, what the server adds behind them: as uvicorn does."""

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await respond(send, headers=[(b"Content-Length", b"2"), (b"Content-Type", b"a/b")], status=int(scope["path"][1:]))

    async with serve(app, date_header=False, server_header=False) as server:
        for target, connection, method in ((b"/200", b"close", b"GET"), (b"/200", b"close", b"HEAD"), (b"/200", b"keep-alive", b"GET")):
            client = await server.connect()
            client.write(b"%b %b HTTP/1.1\r\nHost: x\r\nConnection: %b\r\n\r\n" % (method, target, connection))
            head = await client.read_until(b"\r\n\r\n")
            client.close()
            closes = b"connection: close\r\n" if connection == b"close" else b""
            assert head == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: a/b\r\n" + closes + b"\r\n"
        assert (await server.ask(b"GET /204 HTTP/1.0\r\n\r\n")) == b"HTTP/1.1 204 No Content\r\ncontent-type: a/b\r\nconnection: close\r\n\r\n"


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize("status", [200, 204, 205, 304, 404, 599])
@pytest.mark.parametrize("length", [None, b"4"])
@pytest.mark.parametrize("pieces", [1, 2])
async def test_every_response_has_one_framing(version: bytes, method: bytes, status: int, length: bytes | None, pieces: int) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        headers = [] if length is None else [(b"Content-Length", length)]
        await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"transfer-encoding", b"chunked")]})
        for index in range(pieces):
            piece = b"body"[index * 4 // pieces : (index + 1) * 4 // pieces]
            await send({"type": "http.response.body", "body": piece, "more_body": index + 1 < pieces})

    async with serve(app) as server:
        response = await server.ask(method + b" / HTTP/" + version + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert response.startswith(b"HTTP/1.1 %d" % status)
        body = response.partition(b"\r\n\r\n")[2]
        got = fields(response)
        framing = [field for field in got if field.startswith((b"content-length", b"transfer-encoding"))]
        assert len(framing) <= 1
        assert got.count(b"connection: close") == 1
        if status in (204, 304):
            assert body == b""
            assert framing == ([b"content-length: 4"] if status == 304 and length else [])
        elif method == b"HEAD":
            assert body == b""
            assert framing or version == b"1.0"
        elif framing == [b"transfer-encoding: chunked"]:
            assert version == b"1.1"
            assert body == b"2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n"
        else:
            assert body == b"body"
            assert framing == [b"content-length: 4"] or version == b"1.0"


async def test_a_head_is_not_kept_back_from_a_slow_body() -> None:
    go = asyncio.Event()

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await go.wait()
        await send({"type": "http.response.body", "body": b"late"})

    async with serve(app) as server:
        client = await server.connect()
        client.write(GET)
        assert b"transfer-encoding: chunked" in await client.read_until(b"\r\n\r\n")
        go.set()
        assert await client.read_until(b"0\r\n\r\n") == b"4\r\nlate\r\n0\r\n\r\n"
        client.close()


async def test_a_slow_reader_slows_the_application() -> None:
    sent = 0

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(400):
            await send({"type": "http.response.body", "body": b"x" * 50_000, "more_body": True})
            sent += 50_000
        await send({"type": "http.response.body", "body": b""})

    async with serve(app) as server:
        client = await server.connect()
        client.write(GET)
        async with asyncio.timeout(DEADLINE):
            while not (server.worker.connections and next(iter(server.worker.connections)).writing_paused):
                await asyncio.sleep(0)
        assert sent < 20_000_000
        assert len((await client.read_response())[2]) == 20_000_000
        client.close()


@pytest.mark.parametrize(
    "headers",
    [[(b"a", b"b\r\nc: d")], [(b"a", b"b\nc")], [(b"a", b"b\rc")], [(b"a", b"b\0c")], [(b"a b", b"c")], [(b"a\r\nb", b"c")], [(b"", b"c")],
     [("a", b"c")], [(b"content-length", b"1"), (b"Content-Length", b"1")], [(b"content-length", b"-1")], [(b"content-length", b"one")]],
)  # fmt: skip
async def test_headers_of_the_application_are_checked(headers: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await respond(send, headers=headers)

    async with serve(app) as server:
        response = await server.ask(GET)
        assert response.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
        assert b"c: d" not in response


@pytest.mark.parametrize("when", ["before", "start", "body"])
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_an_exception_ends_its_own_request_only(when: str, version: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        if scope["path"] == "/":
            return await respond(send)
        if when != "before":
            await send({"type": "http.response.start", "status": 200, "headers": []})
        if when == "body":
            await send({"type": "http.response.body", "body": b"part", "more_body": True})
        raise ZeroDivisionError("secret")

    async with serve(app) as server:
        neighbour = await server.connect()
        neighbour.write(GET)
        await neighbour.read_response()
        try:
            response = await server.ask(b"GET /fail HTTP/" + version + b"\r\nHost: x\r\n\r\n")
        except ConnectionResetError:
            response = b""
        if when != "body":
            assert response.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
            assert response.endswith(b"\r\n\r\nInternal Server Error")
        else:
            assert not response.endswith(b"0\r\n\r\n")
        assert b"secret" not in response
        neighbour.write(GET)
        assert (await neighbour.read_response())[0] == 200
        neighbour.close()
    assert "Exception in ASGI application" in caplog.text
    assert "ZeroDivisionError: secret" in caplog.text


@pytest.mark.parametrize(
    ("messages", "line"),
    [
        ([], "ASGI callable returned without starting response."),
        ([{"type": "http.response.start", "status": 200}], "ASGI callable returned without completing response."),
        ([{"type": "http.response.body"}], "Expected ASGI message 'http.response.start', but got 'http.response.body'."),
        ([{"type": "http.response.start", "status": 200}] * 2, "Expected ASGI message 'http.response.body', but got 'http.response.start'."),
        ([{"type": "http.response.start", "status": 99}], "Invalid HTTP status 99."),
        ([{"type": "http.response.start", "status": 101}], "Invalid HTTP status 101."),
        ([{"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]}, {"type": "http.response.body", "body": b"two"}],
         "Response content longer than Content-Length"),
        ([{"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]}, {"type": "http.response.body", "body": b"two"}],
         "Response content shorter than Content-Length"),
    ],
)  # fmt: skip
async def test_what_an_application_does_wrong_is_said_and_is_a_500(messages: Any, line: str, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    async with serve(app) as server:
        assert (await server.ask(GET)).startswith(b"HTTP/1.1 500 ")
    assert line in caplog.text


async def test_sending_after_the_end_raises(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await respond(send)
        await send({"type": "http.response.body", "body": b"more"})

    async with serve(app) as server:
        assert (await server.ask(LAST)).endswith(b"\r\n\r\nok")
    assert "Unexpected ASGI message 'http.response.body' sent, after response already completed." in caplog.text


# Disconnects and deadlines --------------------------------------------------------------------------------------------------------


async def test_receive_tells_that_the_client_left() -> None:
    seen: asyncio.Queue[Any] = asyncio.Queue()

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        seen.put_nowait(await receive())
        seen.put_nowait(await receive())
        await respond(send)  # a no-op, not an error
        seen.put_nowait("sent")

    async with serve(app) as server, asyncio.timeout(DEADLINE):
        client = await server.connect()
        client.write(GET)
        assert (await seen.get())["type"] == "http.request"
        client.close()
        assert await seen.get() == {"type": "http.disconnect"}
        assert await seen.get() == "sent"


async def test_receive_tells_that_the_response_is_complete() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await respond(send)
        seen.append(await receive())

    async with serve(app) as server:
        await server.ask(LAST)
    assert seen == [{"type": "http.disconnect"}]


async def test_a_client_that_closes_its_sending_side_still_gets_its_answer() -> None:
    go = asyncio.Event()

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await go.wait()
        await respond(send, b"answer")

    async with serve(app) as server:
        client = await server.connect()
        client.write(GET)
        client.writer.write_eof()
        async with asyncio.timeout(DEADLINE):
            while not server.service.running:
                await asyncio.sleep(0)
        go.set()
        assert (await client.read_all()).endswith(b"answer")
        client.close()


async def test_a_body_that_ends_early_is_a_disconnect(caplog: pytest.LogCaptureFixture) -> None:
    ended: asyncio.Queue[str] = asyncio.Queue()

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        try:
            await read_body(receive)
        except ConnectionError as exc:
            ended.put_nowait(str(exc))

    async with serve(app) as server, asyncio.timeout(DEADLINE):
        client = await server.connect()
        client.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
        client.writer.write_eof()
        assert await ended.get() == "disconnected"
        client.close()


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"", b""),
        (b"GET / HTTP/1.1\r\nHost:", b"HTTP/1.1 408 Request Timeout\r\n"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc", b"HTTP/1.1 408 Request Timeout\r\n"),
    ],
)
async def test_slow_clients_run_out_of_time(request_: bytes, answer: bytes) -> None:
    async with serve(echo, timeout_request_header=0.2, timeout_request_body=0.2) as server:
        begin = time.monotonic()
        assert (await server.ask(request_)).startswith(answer)
        assert 0.15 < time.monotonic() - begin < 5


async def test_an_idle_connection_is_closed_after_the_keep_alive_time() -> None:
    async with serve(hello, timeout_keep_alive=0.2) as server:
        begin = time.monotonic()
        assert (await server.ask(GET)).endswith(b"hello")
        assert 0.15 < time.monotonic() - begin < 5


async def test_a_client_that_never_reads_is_cut_off() -> None:
    ended = asyncio.Event()

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(1000):
                await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
        finally:
            ended.set()

    async with serve(app, timeout_write=0.2) as server, asyncio.timeout(DEADLINE):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.send(GET)
            await ended.wait()


async def test_limit_concurrency_answers_503(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="uvicorn.access")
    go = asyncio.Event()

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await go.wait()
        await respond(send)

    async with serve(app, limit_concurrency=2, access_log=True) as server:
        server.service.access_log = True
        first = await server.connect()
        first.write(GET)
        async with asyncio.timeout(DEADLINE):
            while not server.service.running:
                await asyncio.sleep(0)
        refused = await server.ask(GET)
        assert refused.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert refused.endswith(b"\r\n\r\nService Unavailable")
        assert [record.args[2:] for record in caplog.records if record.name == "uvicorn.access"] == [("/", "1.1", 503)]  # type: ignore[index]
        assert "Exceeded concurrency limit." in caplog.messages
        go.set()
        assert (await first.read_response())[0] == 200
        first.close()


# Draining -------------------------------------------------------------------------------------------------------------------------


async def test_draining_finishes_requests_and_closes_idle_connections(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="uvicorn.error")
    go = asyncio.Event()

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await go.wait()
        await respond(send)

    async with serve(app) as server:
        idle = await server.connect()
        busy = await server.connect()
        busy.write(GET)
        async with asyncio.timeout(DEADLINE):
            while not server.service.running:
                await asyncio.sleep(0)
        drained = asyncio.create_task(server.service.on_drain(server.worker, asyncio.get_running_loop().time() + 5))
        assert await idle.read_all() == b""
        assert not drained.done()
        go.set()
        status, got, _ = await busy.read_response()
        assert (status, got[b"connection"]) == (200, b"close")
        async with asyncio.timeout(DEADLINE):
            await drained
        assert caplog.messages == ["Shutting down", "Waiting for connections to close. (CTRL+C to force quit)"]
        idle.close()
        busy.close()


async def test_work_behind_the_response_is_waited_for_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="uvicorn.error")
    go = asyncio.Event()

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await respond(send)
        await go.wait()

    async with serve(app) as server:
        await server.ask(LAST)
        drained = asyncio.create_task(server.service.on_drain(server.worker, asyncio.get_running_loop().time() + 5))
        async with asyncio.timeout(DEADLINE):
            while len(caplog.messages) < 2:
                await asyncio.sleep(0.01)
        assert not drained.done()
        go.set()
        async with asyncio.timeout(DEADLINE):
            await drained
    assert caplog.messages[:2] == ["Shutting down", "Waiting for background tasks to complete. (CTRL+C to force quit)"]


async def test_a_request_on_its_way_when_draining_begins_is_answered() -> None:
    async with serve(hello) as server:
        client = await server.connect()
        client.write(GET)
        await client.read_response()
        drained = asyncio.create_task(server.service.on_drain(server.worker, asyncio.get_running_loop().time() + 5))
        await asyncio.sleep(0)
        client.write(GET)
        status, got, _ = await client.read_response()
        assert (status, got[b"connection"]) == (200, b"close")
        async with asyncio.timeout(DEADLINE):
            await drained
        client.close()


async def test_draining_ends_streams_within_its_deadline() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        if scope["path"] == "/polite":
            while (await receive())["type"] != "http.disconnect":
                pass
            seen.append("told")
        else:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise

    async with serve(app) as server:
        clients = [await server.connect() for _ in range(2)]
        clients[0].write(b"GET /polite HTTP/1.1\r\nHost: x\r\n\r\n")
        clients[1].write(GET)
        for client in clients:
            await client.read_until(b"x\r\n")
        begin = asyncio.get_running_loop().time()
        await server.service.on_drain(server.worker, begin + 1.0)
        assert asyncio.get_running_loop().time() - begin < 3
        assert sorted(seen) == ["cancelled", "told"]
        for client in clients:
            client.close()


# Isolation ------------------------------------------------------------------------------------------------------------------------

user: contextvars.ContextVar[str | None] = contextvars.ContextVar("user", default=None)


@pytest.mark.parametrize("pipelined", [True, False])
@pytest.mark.parametrize("body", [b"", b"x" * 300_000])
async def test_context_variables_do_not_pass_to_the_next_request(pipelined: bool, body: bytes) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        before = user.get()
        user.set(scope["path"])
        await read_body(receive)  # pausing and resuming is what makes other servers hand the context on
        await respond(send, repr(before).encode())

    async with serve(app) as server:
        client = await server.connect()
        requests = [b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (number, len(body), body) for number in range(3)]
        seen = []
        if pipelined:
            client.write(b"".join(requests))
        for request in requests:
            if not pipelined:
                client.write(request)
            seen.append((await client.read_response())[2])
        client.close()
    assert seen == [b"None"] * 3


async def test_what_startup_set_is_visible_but_not_changeable() -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            user.set("startup")
            decimal.getcontext().prec = 7
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        before = f"{user.get()} {decimal.getcontext().prec}"
        user.set("request")
        decimal.getcontext().prec = 3
        await respond(send, before.encode())

    async with serve(app, lifespan="on") as server:
        assert (await server.ask(GET + LAST)).count(b"startup 7") == 2


async def test_access_lines_have_uvicorns_arguments(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "uvicorn.access")
    async with serve(path, root_path="/r") as server:
        server.service.access_log = True
        await server.ask(b"GET /a%0ab?q=%20 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    (record,) = [record for record in caplog.records if record.name == "uvicorn.access"]
    assert isinstance(record.args, tuple)
    assert record.args[1:] == ("GET", "/r/a%0Ab?q=%20", "1.1", 200)
    assert record.getMessage().endswith('- "GET /r/a%0Ab?q=%20 HTTP/1.1" 200')
