"""WSGI applications behind the service."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import TYPE_CHECKING, Any
from wsgiref.validate import validator

import pytest

from laraman import sandbox
from laraman.asgi.wsgi import WSGIMiddleware
from tests.asgi.service import DEADLINE, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.anyio


TEXT = [("Content-Type", "text/plain")]


def get(target: str = "/", *fields: str) -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", "host: a", *fields, "", ""]).encode()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.01)


class Endless:
    """Pieces without end, and whether they were closed."""

    def __init__(self, piece: bytes = b"x") -> None:
        self.piece = piece
        self.closed = threading.Event()
        self.ended: bool | None = None

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        if environ["PATH_INFO"] == "/ok":
            start_response("200 OK", [*TEXT, ("Content-Length", "2")])
            return iter([b"ok"])
        start_response("200 OK", [*TEXT, *([("Content-Length", "3")] if environ["PATH_INFO"] == "/long" else [])])
        return self._pieces()

    def _pieces(self) -> Iterator[bytes]:
        operation = sandbox.current()
        assert operation is not None
        try:
            while not self.closed.wait(0.001):
                yield self.piece
        finally:
            self.ended = operation.ended
            self.closed.set()


async def test_the_environ_and_the_rules_of_the_interface() -> None:
    """wsgiref's validator fails the request for anything that PEP 3333 does not allow a server."""
    seen: dict[str, Any] = {}

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.update(environ)
        start_response("201 Created", [*TEXT, ("X-One", "1"), ("X-One", "2")])
        return [b"caf\xc3\xa9"]

    async with serve(WSGIMiddleware(validator(app)), root_path="/shop") as server:
        client = await server.connect()
        client.write(get("/caf%C3%A9/%2Fx?q=%20", "x-two: a", "x-two: b", "x_real_ip: 6.6.6.6", "cookie: c=1", "content-type: t/t"))
        status, fields, body = await client.read_response()
        client.close()
    assert (status, fields[b"x-one"], body) == (201, b"2", b"caf\xc3\xa9")
    assert seen["SCRIPT_NAME"] == "/shop"
    assert seen["PATH_INFO"] == "/caf\xc3\xa9//x"  # PEP 3333: bytes, as if they were Latin-1
    assert (seen["QUERY_STRING"], seen["REQUEST_METHOD"], seen["SERVER_PROTOCOL"]) == ("q=%20", "GET", "HTTP/1.1")
    assert (seen["wsgi.url_scheme"], seen["SERVER_PORT"], seen["REMOTE_ADDR"]) == ("http", str(server.port), "127.0.0.1")
    assert (seen["HTTP_X_TWO"], seen["HTTP_COOKIE"], seen["CONTENT_TYPE"], seen["HTTP_HOST"]) == ("a,b", "c=1", "t/t", "a")
    assert "HTTP_X_REAL_IP" not in seen
    assert seen["wsgi.multithread"] is True


async def test_bodies_as_they_come() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        stream = environ["wsgi.input"]
        start_response("200 OK", TEXT)
        if environ["PATH_INFO"] == "/lines":
            return [b"|".join([stream.readline(4), stream.readline(), *stream])]
        total = 0
        while piece := stream.read(100_000):
            total += len(piece)
        assert stream.read() == b""
        return [str(total).encode()]

    async with serve(WSGIMiddleware(app)) as server:
        client = await server.connect()
        client.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5000000\r\n\r\n" + b"x" * 5_000_000)
        assert (await client.read_response())[2] == b"5000000"
        client.write(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        assert (await client.read_response())[2] == b"5"
        client.write(b"POST /lines HTTP/1.1\r\nhost: a\r\ncontent-length: 12\r\n\r\none")
        await asyncio.sleep(0)
        client.write(b"two\nthree")
        assert (await client.read_response())[2] == b"onet|wo\n|three"
        client.close()


async def test_a_body_that_breaks_off_is_an_error_and_not_a_short_body(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        try:
            environ["wsgi.input"].read()
        except OSError as exc:
            seen.append(str(exc))
            raise
        raise AssertionError("it was read to its end")

    async with serve(WSGIMiddleware(app)) as server:
        client = await server.connect()
        client.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc")
        await until(lambda: server.service.running)
        client.close()
        await until(lambda: not server.service.running)
    assert seen == ["the client has left before its request was complete"]
    assert not caplog.records  # nobody of ours has made a mistake


async def test_a_client_that_leaves_ends_the_response_and_frees_its_thread() -> None:
    app = Endless()
    async with serve(WSGIMiddleware(app, workers=1)) as server:
        client = await server.connect()
        client.write(get())
        await client.read_until(b"x\r\n")
        client.close()
        await until(app.closed.is_set)
        assert app.ended is False
        assert (await server.ask(get("/ok", "connection: close"))).endswith(b"ok")


async def test_a_body_longer_than_it_says_is_an_error_and_frees_its_thread(caplog: pytest.LogCaptureFixture) -> None:
    app = Endless()
    async with serve(WSGIMiddleware(app, workers=1)) as server:
        assert (await server.ask(get("/long"))).endswith(b"\r\n\r\nxxx")
        await until(app.closed.is_set)
        assert "Content-Length" in caplog.text
        assert (await server.ask(get("/ok", "connection: close"))).endswith(b"ok")


@pytest.mark.parametrize("waits_for", ["nothing", "a client that does not read", "a client that does not write"])
async def test_a_request_that_is_cancelled_is_over_when_its_thread_is(waits_for: str) -> None:
    endless = Endless(b"x" * 100_000 if waits_for == "a client that does not read" else b"x")
    ended: list[bool] = []

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        operation = sandbox.current()
        assert operation is not None
        try:
            environ["wsgi.input"].read()
            yield from endless(environ, start_response)
        finally:
            ended.append(operation.ended)

    async with serve(WSGIMiddleware(app, workers=1)) as server:
        client = await server.connect()
        client.write(get("/", *(["content-length: 5"] if waits_for == "a client that does not write" else [])))
        await until(lambda: server.service.running)
        if waits_for == "nothing":
            await client.read_until(b"x\r\n")
        if waits_for == "a client that does not read":
            await until(lambda: server.service.writing)
        for exchange in list(server.service.running):
            exchange.cancel()
        await until(lambda: not server.service.running)
        assert ended == [False]
        client.close()


async def test_errors_before_and_after_the_head(caplog: pytest.LogCaptureFixture) -> None:
    closed = []

    class Body:
        def __init__(self, *pieces: bytes) -> None:
            self.pieces = pieces

        def __iter__(self) -> Iterator[bytes]:
            yield from self.pieces
            raise KeyError("late")

        def close(self) -> None:
            closed.append(self.pieces)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        match environ["PATH_INFO"]:
            case "/raises":
                raise KeyError("early")
            case "/silent":
                return [b"no head"]
            case "/twice":
                start_response("200 OK", TEXT)
                start_response("200 OK", TEXT)
        start_response("200 OK", TEXT)
        return Body(b"", b"piece") if environ["PATH_INFO"] == "/late" else Body(b"")

    def handled(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        """What frameworks and middleware do about errors: the classic page, if it is not too late."""
        pieces = app(environ, start_response)
        try:
            yield from pieces
        except KeyError:
            start_response("503 Sorry", TEXT, sys.exc_info())
            yield b"sorry"
        finally:
            pieces.close()

    async with serve(WSGIMiddleware(app)) as server:
        for target in ("/raises", "/silent", "/twice", "/early"):
            assert (await server.ask(get(target))).startswith(b"HTTP/1.1 500 "), target
        late = await server.ask(get("/late"))
        assert late.startswith(b"HTTP/1.1 200 ")
        assert late.endswith(b"5\r\npiece\r\n")  # no end: the client can tell
    assert closed == [(b"",), (b"", b"piece")]
    for said in ("KeyError: 'early'", "did not call start_response()", "start_response() was called again", "KeyError: 'late'"):
        assert said in caplog.text
    async with serve(WSGIMiddleware(handled)) as server:
        assert b"503 Sorry" not in (early := await server.ask(get("/early", "connection: close")))  # the reason is the server's
        assert early.startswith(b"HTTP/1.1 503 ")
        assert b"sorry" in early
        assert (await server.ask(get("/late"))).endswith(b"5\r\npiece\r\n")
    assert len(closed) == 4


async def test_write_and_wsgi_errors(capsys: pytest.CaptureFixture[str]) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        write = start_response("200 OK", [("Content-Length", "9")])
        print("said", file=environ["wsgi.errors"])
        for piece in (b"one", b"", b"two"):
            write(piece)
        return [b"end"]

    async with serve(WSGIMiddleware(app)) as server:
        assert (await server.ask(get("/", "connection: close"))).endswith(b"\r\n\r\nonetwoend")
    assert capsys.readouterr().err == "said\n"


async def test_so_many_threads_and_no_more() -> None:
    inside: set[str] = set()
    release = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        inside.add(environ["PATH_INFO"])
        assert release.wait(DEADLINE)
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    async with serve(WSGIMiddleware(app, workers=2)) as server:
        asked = [asyncio.create_task(server.ask(get(f"/{number}", "connection: close"))) for number in range(5)]
        await until(lambda: len(server.service.running) == 5 and len(inside) == 2)
        release.set()
        assert all(answer.endswith(b"ok") for answer in await asyncio.gather(*asked))
    assert len(inside) == 5


async def test_each_request_has_its_own_instances() -> None:
    class Cart(list[str]):
        def close(self) -> None:
            closed.append(tuple(self))

    closed: list[tuple[str, ...]] = []
    cart = sandbox.local(Cart)

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        cart().append(environ["PATH_INFO"])
        start_response("200 OK", TEXT)
        yield b""
        cart().append("body")
        yield "+".join(cart()).encode()

    async with serve(WSGIMiddleware(app, workers=1)) as server:
        for target in ("/a", "/b"):
            assert f"{target}+body".encode() in await server.ask(get(target, "connection: close"))
        await until(lambda: len(closed) == 2)
    assert closed == [("/a", "body"), ("/b", "body")]


async def test_the_lifespan_is_there_and_a_websocket_is_refused() -> None:
    async with serve(WSGIMiddleware(Endless()), lifespan="on") as server:
        upgrade = ("connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13", "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==")
        assert (await server.ask(get("/", *upgrade))).startswith(b"HTTP/1.1 403 ")
