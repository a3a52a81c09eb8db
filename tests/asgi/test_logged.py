"""Lines at the end of responses: one for each request, with its true status and sizes, and responses that are the same as without them."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from laraman.asgi.http import HttpConnection
from tests.asgi.service import DEADLINE, read_body, respond, serve

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Send = Callable[[dict[str, Any]], Awaitable[None]]
    Receive = Callable[[], Awaitable[dict[str, Any]]]

pytestmark = pytest.mark.anyio

START: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": []}
LENGTH = {**START, "headers": [(b"content-length", b"3")]}
HINT = {"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload"]}


class Lines:
    """The records of the access log, and what they say."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "uvicorn.access")
        self._caplog = caplog

    @property
    def records(self) -> list[logging.LogRecord]:
        return [record for record in self._caplog.records if record.name == "uvicorn.access"]

    def forget(self) -> None:
        self._caplog.clear()

    async def wait(self, count: int = 1) -> list[dict[str, Any]]:
        async with asyncio.timeout(DEADLINE):
            while len(self.records) < count:
                await asyncio.sleep(0.01)
        assert len(self.records) == count
        return [json.loads(record.getMessage()) for record in self.records]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    return Lines(caplog)


def body(data: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def sends(*messages: dict[str, Any]) -> Any:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await read_body(receive)
        for message in messages:
            await send(message)

    return app


def get(version: str = "1.1", method: str = "GET", fields: str = "") -> bytes:
    return f"{method} /x HTTP/{version}\r\nHost: a\r\nConnection: close\r\n{fields}\r\n".encode()


TRAILERS = {"type": "http.response.trailers", "headers": [(b"x-sum", b"1")], "more_trailers": False}


@pytest.mark.parametrize(
    ("messages", "request_head", "size"),
    [
        ([LENGTH, body(b"abc")], get(), 3),
        ([START, body(b"abc")], get(), 3),
        ([START, body(b"abc", True), body(b"")], get(), len(b"3\r\nabc\r\n0\r\n\r\n")),
        ([START, body(b"abc", True), body(b"d")], get("1.0"), 4),
        ([START, body(b"x" * 100_000)], get(), 100_000),
        ([LENGTH, body(b"x" * 3)], get(method="HEAD"), 0),
        ([{**START, "status": 204}, body(b"")], get(), 0),
        ([HINT, LENGTH, body(b"abc")], get(), 3),
        ([START, HINT, body(b"abc")], get(), 3),
        (
            [{**START, "trailers": True}, body(b"abc"), TRAILERS],
            get(fields="TE: trailers\r\n"),
            len(b"3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n"),
        ),
    ],
)
async def test_responses_are_the_same_and_their_size_is_that_of_the_body(
    lines: Lines, messages: list[dict[str, Any]], request_head: bytes, size: int
) -> None:
    async with serve(sends(*messages), date_header=False) as server:
        plain = await server.ask(request_head)
    lines.forget()
    async with serve(sends(*messages), date_header=False, access_log=True, access_log_format="json") as server:
        assert await server.ask(request_head) == plain
    (line,) = await lines.wait()
    assert line["response_bytes"] == size == len(plain.rpartition(b"HTTP/1.1")[2].partition(b"\r\n\r\n")[2])


async def test_requests_of_one_connection(lines: Lines) -> None:
    kept = b"POST /kept HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab"
    for size in (3, 100_000):
        app = sends({**START, "headers": [(b"content-length", b"%d" % size)]}, body(b"x" * size))
        lines.forget()
        async with serve(app, access_log=True, access_log_format="json") as server:
            assert (await server.ask(kept + kept + get())).count(b" 200 OK") == 3
        found = await lines.wait(3)
        assert [(line["path"], line["status"], line["request_bytes"], line["response_bytes"]) for line in found] == [
            *[("/kept", 200, 2, size)] * 2,
            ("/x", 200, 0, size),
        ]


async def test_arguments_are_uvicorns(lines: Lines) -> None:
    async with serve(sends(START, body(b"")), access_log_format="json", access_log=True) as server:
        await server.ask(b"GET /a%20b?c=%20d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        await lines.wait()
    (record,) = lines.records
    assert isinstance(record.args, tuple)
    assert record.args[0].startswith("127.0.0.1:")  # type: ignore[union-attr]
    assert record.args[1:] == ("GET", "/a%20b?c=%20d", "1.1", 200)


async def test_without_a_format_other_classes_serve(lines: Lines) -> None:
    for options in ({}, {"access_log_format": "json", "access_log": False}):
        logging.getLogger("uvicorn.access").disabled = bool(options)
        try:
            async with serve(sends(START, body(b"")), **options) as server:
                assert type(server.service.connection(server.worker, None)) is HttpConnection  # type: ignore[arg-type]
        finally:
            logging.getLogger("uvicorn.access").disabled = False


async def test_a_format_without_identifiers_leaves_the_state_alone(lines: Lines) -> None:
    seen: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        seen.append(scope["state"])
        await respond(send)

    for text in ("%(path)s", "%(request_id)s"):
        async with serve(app, access_log=True, access_log_format=text) as server:
            await server.ask(get(fields="X-Request-ID: mine\r\n"))
    assert seen == [{}, {"request_id": "mine"}]


async def test_answers_in_the_applications_place(lines: Lines) -> None:
    async with serve(sends(START, body(b"")), access_log=True, access_log_format="json", limit_concurrency=1) as server:
        assert b" 503 " in await server.ask(get())
    async with serve(sends(START, body(b"")), access_log=True, access_log_format="json", limit_request_body=5) as server:
        assert b" 413 " in await server.ask(get(method="POST", fields="Content-Length: 6\r\n"))
        assert b" 431 " in await server.ask(get(fields=f"X: {'x' * 100_000}\r\n"))
    found = await lines.wait(3)
    assert [(line["status"], line["method"], line["path"]) for line in found] == [(503, "GET", "/x"), (413, "POST", "/x"), (431, "-", "-")]
    assert [line["response_bytes"] for line in found] == [len("Service Unavailable"), len("Request Entity Too Large"), 31]


async def test_what_is_too_slow(lines: Lines) -> None:
    times = {"timeout_request_header": 0.1, "timeout_request_body": 0.1}
    async with serve(sends(START, body(b"")), access_log=True, access_log_format="json", **times) as server:
        assert b" 408 " in await server.ask(b"GET / HTT")
        assert b" 408 " in await server.ask(b"POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab")
    found = await lines.wait(2)
    assert [(line["status"], line["path"], line["request_bytes"]) for line in found] == [(408, "-", 0), (408, "/body", 2)]


async def test_what_the_stop_cancels(lines: Lines) -> None:
    running = asyncio.Event()

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        running.set()
        await asyncio.Event().wait()

    async with serve(app, access_log=True, access_log_format="json") as server:
        client = await server.connect()
        client.write(get())
        await running.wait()
    (line,) = await lines.wait()
    assert (line["status"], line["path"]) == (503, "/x")
    client.close()


async def test_a_response_that_breaks_off(lines: Lines) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send(LENGTH)
        await send(body(b"a", True))
        raise RuntimeError("on purpose")

    async with serve(app, access_log=True, access_log_format="json") as server:
        assert (await server.ask(get())).endswith(b"\r\n\r\na")
        (line,) = await lines.wait()
    assert (line["status"], line["response_bytes"]) == (200, 1)


async def test_a_client_that_leaves_before_the_head(lines: Lines) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async with serve(app, access_log=True, access_log_format="json") as server:
        client = await server.connect()
        client.write(get())
        async with asyncio.timeout(DEADLINE):
            while not server.service.running:
                await asyncio.sleep(0)
        client.writer.transport.abort()
        (line,) = await lines.wait()
    assert (line["status"], line["response_bytes"]) == (499, 0)
