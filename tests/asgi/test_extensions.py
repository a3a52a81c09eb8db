"""ASGI's extensions other than files, what of them scopes offer, and the options of uvicorn that change what a request runs in."""

from __future__ import annotations

import contextvars
import types
from typing import TYPE_CHECKING, Any

import pytest

from laraman.asgi.extensions import OFFERED
from tests.asgi.service import respond, serve

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    Send = Callable[[dict[str, Any]], Awaitable[None]]
    Receive = Callable[[], Awaitable[dict[str, Any]]]

pytestmark = pytest.mark.anyio

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
TRAILERS = b"GET / HTTP/1.1\r\nHost: x\r\nTE: gzip;q=0.5, Trailers\r\nConnection: close\r\n\r\n"
PLAIN: Any = {"server_header": False, "date_header": False}


def hint(*links: bytes) -> dict[str, Any]:
    return {"type": "http.response.early_hint", "links": links}


def piece(data: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def trailers(*headers: tuple[bytes, bytes], more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.trailers", "headers": list(headers), "more_trailers": more}


def sender(*messages: dict[str, Any]) -> Any:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


def start(*headers: tuple[bytes, bytes], **more: Any) -> dict[str, Any]:
    return {"type": "http.response.start", "status": 200, "headers": list(headers), **more}


# What is offered ------------------------------------------------------------------------------------------------------------------


async def test_what_a_middleware_does_to_them_is_nobody_elses() -> None:
    seen = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        seen.append(set(scope["extensions"]))
        scope["extensions"].clear()
        scope["extensions"]["mine"] = {}
        await respond(send)

    async with serve(app) as server:
        await server.ask(GET + LAST)
    assert seen == [set(OFFERED["all"])] * 2
    assert "http.response.debug" not in OFFERED["all"]


async def test_pathsend_has_to_be_asked_for() -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        assert [name.rpartition(".")[2] for name in scope["extensions"]] == ["early_hint", "trailers", "zerocopysend"]
        await send(start())
        with pytest.raises(RuntimeError, match=r"Expected ASGI message 'http\.response\.body', but got 'http\.response\.pathsend'"):
            await send({"type": "http.response.pathsend", "path": __file__})
        await send(piece(b"ok", more=False))

    async with serve(app, asgi_extensions="explicit") as server:
        assert (await server.ask(LAST)).endswith(b"\r\n\r\nok")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (hint(b"</a>"), "body"),
        (trailers(), "body"),
        ({"type": "http.response.pathsend", "path": "/etc/passwd"}, "body"),
        ({"type": "http.response.zerocopysend", "file": 0}, "body"),
    ],
)
async def test_without_them_it_is_as_under_uvicorn(message: dict[str, Any], expected: str) -> None:
    said = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        assert "extensions" not in scope
        for first in (None, start(trailers=True)):
            if first is not None:
                await send(first)
            with pytest.raises(RuntimeError) as caught:
                await send(message)
            said.append(str(caught.value))
        await send(piece(b"ok", more=False))
        with pytest.raises(RuntimeError) as caught:
            await send(message)
        said.append(str(caught.value))

    async with serve(app, asgi_extensions="none") as server:
        assert (await server.ask(TRAILERS)).endswith(b"\r\n\r\nok")
    kind = message["type"]
    assert said == [
        f"Expected ASGI message 'http.response.start', but got '{kind}'.",
        f"Expected ASGI message 'http.response.body', but got '{kind}'.",
        f"Unexpected ASGI message '{kind}' sent, after response already completed.",
    ]


@pytest.mark.parametrize("message", [{"type": "http.response.debug", "info": {}}, {"type": "http.response.push", "path": "/"}])
async def test_others_are_no_messages(message: dict[str, Any]) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        with pytest.raises(RuntimeError, match=f"^Expected ASGI message 'http.response.start', but got '{message['type']}'"):
            await send(message)
        await send(start())
        with pytest.raises(RuntimeError, match=f"^Expected ASGI message 'http.response.body', but got '{message['type']}'"):
            await send(message)
        await send(piece(b"ok", more=False))

    async with serve(app) as server:
        assert (await server.ask(LAST)).endswith(b"\r\n\r\nok")


# Early hints ----------------------------------------------------------------------------------------------------------------------


async def test_hints_go_before_the_head() -> None:
    """Before the start message, as Starlette sends them, and behind it while its head waits, as the specification has it."""
    app = sender(hint(b"</a.css>; rel=preload", b"</b>"), hint(), start(), hint(b"</c>"), piece(b"one"), hint(b"</late>"), piece(b"two", more=False))
    async with serve(app, **PLAIN) as server:
        assert await server.ask(LAST) == (
            b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\nlink: </b>\r\n\r\n"
            b"HTTP/1.1 103 Early Hints\r\nlink: </c>\r\n\r\n"
            b"HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
        )


async def test_an_old_client_gets_no_hints() -> None:
    app = sender(hint(b"</a>"), start(), piece(b"ok", more=False))
    async with serve(app, **PLAIN) as server:
        assert (await server.ask(b"GET / HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_a_hint_is_no_place_for_other_fields() -> None:
    async with serve(sender(hint(b"</a>\r\nset-cookie: a=b"))) as server:
        answer = await server.ask(LAST)
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert b"set-cookie" not in answer


# Trailers -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [(b"one",), (b"one", b""), (b"one", b"two"), (b"",)])
async def test_trailers_follow_the_last_chunk(pieces: tuple[bytes, ...]) -> None:
    bodies = [piece(data, more=index + 1 < len(pieces)) for index, data in enumerate(pieces)]
    app = sender(start((b"trailer", b"x-sum"), trailers=True), *bodies, trailers((b"x-sum", b"1"), more=True), trailers((b"X-Time", b"2")))
    async with serve(app, **PLAIN) as server:
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(data), data) for data in pieces if data)
        head = b"HTTP/1.1 200 OK\r\ntrailer: x-sum\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        assert await server.ask(TRAILERS) == head + chunks + b"0\r\nx-sum: 1\r\nx-time: 2\r\n\r\n"


async def test_trailers_behind_a_file_and_the_next_request(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789" * 20_000)
    app = sender(start(trailers=True), {"type": "http.response.pathsend", "path": str(path)}, trailers((b"x-sum", b"1")))
    async with serve(app, **PLAIN) as server:
        answer = await server.ask(TRAILERS.replace(b"Connection: close\r\n", b"") + TRAILERS)
        assert answer.count(b"0123456789\r\n0\r\nx-sum: 1\r\n\r\n") == 2
        assert len(answer) < 2 * 200_200


@pytest.mark.parametrize(
    ("request_", "first"),
    [
        (LAST, start(trailers=True)),
        (TRAILERS, start()),
        (TRAILERS, start((b"content-length", b"2"), trailers=True)),
        (b"GET / HTTP/1.0\r\nTE: trailers\r\n\r\n", start(trailers=True)),
        (TRAILERS.replace(b"GET", b"HEAD"), start(trailers=True)),
    ],
)
async def test_where_no_place_is_for_trailers_they_are_dropped(request_: bytes, first: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    async with serve(sender(first, piece(b"ok", more=False), trailers((b"x-sum", b"1")))) as server:
        answer = await server.ask(request_)
        assert answer.endswith(b"\r\n\r\n" if request_.startswith(b"HEAD") else b"\r\n\r\nok")
        assert b"x-sum" not in answer
    assert not caplog.records


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ((trailers(),), "Expected ASGI message 'http.response.body', but got 'http.response.trailers'."),
        ((piece(b"a", more=False), piece(b"b", more=False)), "Expected ASGI message 'http.response.trailers', but got 'http.response.body'."),
        ((piece(b"a", more=False), hint(b"x")), "Expected ASGI message 'http.response.trailers', but got 'http.response.early_hint'."),
        ((piece(b"a", more=False), trailers((b"Content-Length", b"1"))), "'Content-Length' must not be a trailer."),
        ((piece(b"a", more=False), trailers((b"host", b"1"))), "'host' must not be a trailer."),
        ((piece(b"a", more=False), trailers((b"x y", b"1"))), "Invalid HTTP header name."),
        ((piece(b"a", more=False), trailers((b"x", b"1\r\n"))), "Invalid HTTP header value."),
        ((piece(b"a", more=False), trailers(), trailers()), None),
    ],
)
async def test_trailers_out_of_place(messages: tuple[Any, ...], error: str | None, caplog: pytest.LogCaptureFixture) -> None:
    async with serve(sender(start(trailers=True), *messages)) as server:
        answer = await server.ask(TRAILERS)
    if error is None:
        assert answer.endswith(b"0\r\n\r\n")
        assert not caplog.records
    else:
        assert error in caplog.text
        assert not answer.endswith(b"0\r\n\r\n")


async def test_a_response_without_the_trailers_it_has_promised_is_not_complete(caplog: pytest.LogCaptureFixture) -> None:
    async with serve(sender(start(trailers=True), piece(b"a", more=False))) as server:
        assert (await server.ask(TRAILERS)).endswith(b"1\r\na\r\n0\r\n")
    assert "ASGI callable returned without completing response." in caplog.text


# What the guard sees --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [None, False])
async def test_a_strict_guard_looks_before_a_file_ends_the_response(tmp_path: Path, more: bool | None) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    looked = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send(start())
        await send(piece(b"", more=True))
        if more is None:
            await send({"type": "http.response.pathsend", "path": str(path)})
        else:
            with path.open("rb") as file:
                await send({"type": "http.response.zerocopysend", "file": file, "more_body": True, "count": 0})
                await send({"type": "http.response.zerocopysend", "file": file, "more_body": more})

    guard: Any = types.SimpleNamespace(check=looked.append, look=lambda operation: None, every=False, since=[], due=9)
    async with serve(app, guard="strict") as server:
        server.service.sandbox.guard = guard
        assert b"content" in await server.ask(LAST)
    assert len(looked) == 1


# Options of uvicorn ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reset", "body"), [(False, b"startup"), (True, b"nothing")])
async def test_reset_contextvars_hides_what_startup_has_set(reset: bool, body: bytes) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            variable.set("startup")
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
        else:
            before = variable.get()
            variable.set("request")
            await respond(send, before.encode())

    async with serve(app, reset_contextvars=reset, lifespan="on") as server:
        assert (await server.ask(GET + LAST)).count(b"\r\n\r\n" + body) == 2


@pytest.mark.parametrize("http", ["httptools", "h11"])
async def test_h11_max_incomplete_event_size_is_the_limit_of_a_head(http: str) -> None:
    async with serve(sender(start(), piece(b"ok", more=False)), http=http, h11_max_incomplete_event_size=200_000) as server:
        large = b"GET / HTTP/1.1\r\nHost: x\r\nA: %b\r\nConnection: close\r\n\r\n"
        assert (await server.ask(large % (b"a" * 199_000))).startswith(b"HTTP/1.1 200 ")
        assert (await server.ask(large % (b"a" * 201_000))).startswith(b"HTTP/1.1 431 ")
