"""What applications may do with ``receive`` and ``send``, and what they do wrong."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from tests.asgi.service import DEADLINE, read_body, respond, serve

if TYPE_CHECKING:
    from tests.asgi.service import Receive, Send

pytestmark = pytest.mark.anyio

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
START = {"type": "http.response.start", "status": 200, "headers": []}


def part(body: Any, more: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


# receive --------------------------------------------------------------------------------------------------------------------------


async def test_several_tasks_may_wait_for_the_disconnect() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        async def listen() -> None:
            seen.append((await receive())["type"])

        await read_body(receive)
        tasks = [asyncio.create_task(listen()) for _ in range(3)]
        await asyncio.sleep(0)
        tasks.pop().cancel()  # one that stops waiting does not stop the others
        await respond(send)
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*tasks)

    async with serve(app) as server:
        await server.ask(LAST)
        async with asyncio.timeout(DEADLINE):
            while server.service.running:
                await asyncio.sleep(0)
    assert seen == ["http.disconnect"] * 2


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_cancelled_receive_loses_nothing(chunked: bool) -> None:
    body = bytes(range(256)) * 4

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        got, more = b"", True
        while more:
            message: Any = None
            with anyio.move_on_after(0):
                message = await receive()
            await asyncio.sleep(0)
            if message is not None:
                got += message["body"]
                more = message["more_body"]
        await respond(send, got)

    async with serve(app) as server:
        client = await server.connect()
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
        client.write(b"POST / HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n")
        for start in range(0, len(body), 64):
            piece = body[start : start + 64]
            client.write(b"40\r\n" + piece + b"\r\n" if chunked else piece)
            await client.writer.drain()
            await asyncio.sleep(0)
        if chunked:
            client.write(b"0\r\n\r\n")
        assert (await client.read_response())[2] == body
        client.close()


async def test_who_no_longer_waits_for_the_body_has_no_deadline() -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        with anyio.move_on_after(0.01):
            await receive()
        await asyncio.sleep(0.5)
        await respond(send)

    async with serve(app, timeout_request_body=0.1) as server:
        client = await server.connect()
        client.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
        assert (await client.read_response())[0] == 200
        client.close()


async def test_framing_without_a_body_is_no_progress() -> None:
    async with serve(lambda scope, receive, send: read_body(receive), timeout_request_body=0.2) as server:
        client = await server.connect()
        client.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        await asyncio.sleep(0.05)
        client.write(b"5")
        assert (await client.read_response())[0] == 408
        client.close()


async def test_a_body_that_was_refused_with_its_head_starts_nothing() -> None:
    started = False

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        nonlocal started
        started = True

    async with serve(app) as server:
        answer = await server.ask(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab\r\n\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert not started


async def test_a_body_that_came_uninvited_keeps_the_connection() -> None:
    async with serve(lambda scope, receive, send: respond(send)) as server:
        client = await server.connect()
        client.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\nab")
        assert b"connection" not in (await client.read_response())[1]
        client.write(b"cd" + LAST)
        assert (await client.read_response())[0] == 200
        client.close()


async def test_a_stream_goes_on_without_the_body_it_did_not_ask_for() -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send(START)
        await send(part(b"a", True))
        with anyio.move_on_after(0.5):
            await receive()  # as Starlette does, to hear of the disconnect
        await send(part(b"b", False))

    async with serve(app, timeout_request_body=0.1) as server:
        answer = await server.ask(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n")


async def test_too_much_body_to_be_dropped_closes_the_connection_honestly() -> None:
    async with serve(lambda scope, receive, send: respond(send)) as server:
        client = await server.connect()
        client.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n")
        client.write(b"x" * 10000000)
        status, got, body = await client.read_response()
        assert (status, got[b"connection"], body) == (200, b"close", b"ok")
        client.close()


# send -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("length", [None, b"6"])
@pytest.mark.parametrize("pieces", [1, 2])
async def test_bytes_like_values(kind: Any, length: bytes | None, pieces: int) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        headers = [(kind(b"x-a"), kind(b"b"))] + ([] if length is None else [(b"content-length", kind(length))])
        await send({"type": "http.response.start", "status": HTTPStatus.CREATED, "headers": (list(field) for field in headers)})
        body = bytearray(b"abcdef")
        for index in range(pieces):
            piece = body[index * 6 // pieces : (index + 1) * 6 // pieces]
            await send(part(kind(piece), index + 1 < pieces))

    async with serve(app) as server:
        client = await server.connect()
        client.write(GET)
        status, got, body = await client.read_response()
        assert (status, got[b"x-a"], body) == (201, b"b", b"abcdef")
        client.close()


async def test_a_view_of_larger_items_is_counted_in_bytes() -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await respond(send, memoryview(b"abcdefgh").cast("Q"))  # type: ignore[arg-type]

    async with serve(app) as server:
        assert (await server.ask(LAST)).endswith(b"content-length: 8\r\nconnection: close\r\n\r\nabcdefgh")


@pytest.mark.parametrize("body", ["text", 5, None, ["a"]])
async def test_other_bodies_are_a_500(body: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with serve(lambda scope, receive, send: respond(send, body)) as server:
        assert (await server.ask(GET)).startswith(b"HTTP/1.1 500 ")
    assert "TypeError" in caplog.text


async def test_the_least_an_application_can_send() -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})

    async with serve(app) as server:
        assert (await server.ask(LAST)).endswith(b"content-length: 0\r\nconnection: close\r\n\r\n")


async def test_an_empty_first_piece() -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send(START)
        await send(part(b"", True))
        await send(part(b"ab", True))
        await send(part(b"", True))
        await send(part(b"", False))

    async with serve(app) as server:
        assert (await server.ask(LAST)).endswith(b"transfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n")


@pytest.mark.parametrize("wait", [False, True])
@pytest.mark.parametrize("wrong", [part(b"too long", False), part(b"abc", False)])
async def test_an_application_that_survives_its_mistake_sends_one_head(wait: bool, wrong: Any) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send({**START, "headers": [(b"content-length", b"5")]})
        with pytest.raises(RuntimeError):
            await send(wrong)
        for _ in range(3 if wait else 0):
            await asyncio.sleep(0)
        await send(part(b"hello", False))

    async with serve(app) as server:
        answer = await server.ask(LAST)
    assert answer.count(b"content-length") == answer.count(b"connection") == 1
    assert answer.endswith(b"\r\n\r\nhello")


@pytest.mark.parametrize(("pieces", "answer"), [([b"abc", b"def"], b"abc"), ([b"ab", b"c"], b"ab"), ([b"abc", b""], b"abc")])
async def test_nothing_beyond_the_content_length_is_written(pieces: list[bytes], answer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send({**START, "headers": [(b"content-length", b"5")]})
        for index, piece in enumerate(pieces):
            await send(part(piece, index + 1 < len(pieces)))

    async with serve(app) as server:
        got = await server.ask(GET + GET)  # the second is not answered on a connection whose framing is broken
    assert got.endswith(b"\r\n\r\n" + answer)
    assert "Response content " in caplog.text


async def test_concurrent_sends_wait_for_the_same_client() -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send(START)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(20):
                tasks.create_task(send(part(b"x" * 200_000, True)))  # type: ignore[arg-type]
        await send(part(b"", False))

    async with serve(app) as server:
        client = await server.connect()
        client.write(GET)
        assert len((await client.read_response())[2]) == 4_000_000
        client.close()


# The end --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [SystemExit(1), KeyboardInterrupt(), BaseExceptionGroup("group", [SystemExit()]), asyncio.CancelledError(), ExceptionGroup("e", [ValueError()])],
)
async def test_no_exception_takes_the_worker_down(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        if scope["path"] != "/":
            raise error
        await respond(send)

    async with serve(app) as server:
        assert (await server.ask(b"GET /fail HTTP/1.1\r\nHost: x\r\n\r\n")).startswith(b"HTTP/1.1 500 ")
        assert (await server.ask(LAST)).startswith(b"HTTP/1.1 200 ")
    assert "Exception in ASGI application" in caplog.text


async def test_an_error_after_the_response_changes_nothing_for_the_client(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await respond(send)
        await asyncio.sleep(0)
        raise ZeroDivisionError

    async with serve(app) as server:
        assert (await server.ask(GET + LAST)).count(b"HTTP/1.1 200 OK") == 2
    assert "ZeroDivisionError" in caplog.text


async def test_work_after_the_response_does_not_delay_the_next_request() -> None:
    go = asyncio.Event()
    done = 0

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        nonlocal done
        await respond(send)
        await go.wait()
        done += 1

    async with serve(app) as server:
        assert (await server.ask(GET + LAST)).count(b"HTTP/1.1 200 OK") == 2
        assert len(server.service.running) == 2
        go.set()
    assert done == 2


@pytest.mark.parametrize("started", [False, True])
async def test_the_access_line_says_what_the_client_got(started: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        if started:
            await send(START)
        raise ZeroDivisionError

    caplog.set_level(logging.INFO, "uvicorn.access")
    async with serve(app) as server:
        server.service.access_log = True
        assert (await server.ask(GET)).startswith(b"HTTP/1.1 500 ")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "uvicorn.access"]
    assert line.endswith('"GET / HTTP/1.1" 500')


@pytest.mark.parametrize(
    "request_",
    [GET, LAST, GET * 3 + LAST, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nx", b"bad\r\n\r\n", b"GET / HT"],
)
async def test_a_reset_is_no_error_and_leaves_nothing(request_: bytes, caplog: pytest.LogCaptureFixture) -> None:
    go = asyncio.Event()

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await go.wait()
        await respond(send, b"x" * 100_000)

    async with serve(app) as server:
        for _ in range(20):
            client = socket.create_connection(("127.0.0.1", server.port))
            client.send(request_)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await asyncio.sleep(0.001)
            asyncio.get_running_loop().call_soon(go.set)
            client.close()
        async with asyncio.timeout(1.5):  # less than any deadline
            while server.worker.connections or server.service.running or server.service.writing:
                await asyncio.sleep(0.01)
        assert server.worker.in_flight == 0
    assert "Exception" not in caplog.text


async def test_a_client_that_has_ended_is_not_waited_for() -> None:
    go = asyncio.Event()

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await go.wait()
        await respond(send)

    async with serve(app) as server:
        client = await server.connect()
        client.write(GET * 3)
        client.writer.write_eof()
        async with asyncio.timeout(1.5):
            while not (server.service.running and next(iter(server.worker.connections)).is_closing):
                await asyncio.sleep(0)
            go.set()
            assert b"connection: close" in (await client.read_all())
            while server.worker.connections:
                await asyncio.sleep(0)
        client.close()


async def test_a_stream_that_ends_because_the_client_did_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send({**START, "headers": [(b"content-length", b"5")]})
        await send(part(b"ab", True))
        while (await receive())["type"] != "http.disconnect":
            pass
        await send(part(b"", False))

    async with serve(app) as server:
        client = await server.connect()
        client.write(GET)
        await client.read_until(b"\r\n\r\nab")
        client.writer.write_eof()
        assert await client.read_all() == b""
        client.close()
    assert not caplog.records


async def test_timeouts_of_zero(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await respond(send, await read_body(receive))

    async with serve(app, timeout_keep_alive=0, timeout_request_header=0, timeout_request_body=0, timeout_write=0) as server:
        client = await server.connect()
        for piece in (b"POST / HTTP/1.1\r\nHost: x\r\nContent-", b"Length: 4\r\n\r\nbo", b"dy"):
            await asyncio.sleep(0.15)
            client.write(piece)
        status, got, body = await client.read_response()
        assert (status, got[b"connection"], body) == (200, b"close", b"body")
        assert await client.read_all() == b""
        client.close()
