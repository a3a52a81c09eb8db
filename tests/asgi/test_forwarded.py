from __future__ import annotations

import ast
import asyncio
import ipaddress
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laraman.asgi.forwarded import ProxyHeadersMiddleware, TrustedHosts, host_and_port, parse_forwarded, reader
from tests.asgi.service import respond, serve

if TYPE_CHECKING:
    from tests.asgi.service import Server

uvicorn = pytest.importorskip("uvicorn.middleware.proxy_headers")


def scope_of(headers: list[tuple[bytes, bytes]], kind: str = "http", client: tuple[str, int] | None = ("127.0.0.1", 5000)) -> dict[str, Any]:
    return {"type": kind, "scheme": "http" if kind == "http" else "ws", "client": client, "headers": headers}


def corrected(middleware: Any, scope: dict[str, Any]) -> tuple[Any, str]:
    """Client and scheme as the application behind the middleware sees them."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        seen.append((scope["client"], scope["scheme"]))

    seen: list[tuple[Any, str]] = []
    asyncio.run(middleware(app)({**scope, "headers": list(scope["headers"])}, None, None))
    return seen[0]


# Who is trusted -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hosts", "trusted", "others"),
    [
        ("127.0.0.1,::1", ["127.0.0.1", "::1", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1"], ["127.0.0.2", "::2", None, "", "localhost"]),
        ("*", ["127.0.0.1", "anything", None, ""], []),
        ("10.0.0.0/8, fd00::/8", ["10.1.2.3", "fd12::1", "::ffff:10.0.0.1"], ["11.0.0.1", "fe80::1", "::ffff:11.0.0.1"]),
        (["2001:db8::1"], ["2001:db8::1", "2001:DB8:0::1"], ["2001:db8::2"]),
        ("unix,proxy.example", ["unix", "proxy.example"], ["proxy", "*"]),
        ("10.0.0.1/8", ["10.0.0.1/8"], ["10.0.0.1"]),
        ("*,10.0.0.1", ["10.0.0.1", "*"], ["10.0.0.2", None]),
        ("", [], ["127.0.0.1", None, ""]),
        ([], [], ["127.0.0.1"]),
    ],
)
def test_trust(hosts: str | list[str], trusted: list[str | None], others: list[str | None]) -> None:
    found = TrustedHosts(hosts)
    assert [host in found for host in trusted] == [True] * len(trusted)
    assert [host in found for host in others] == [False] * len(others)


def test_what_is_remembered_of_peers_is_bounded() -> None:
    trusted = TrustedHosts("10.0.0.0/8")
    assert "x" * 300 not in trusted
    assert trusted._is_trusted.cache_info().currsize == 0, "no address is that long"
    for number in range(5000):
        assert (str(ipaddress.ip_address(number + (11 << 24))) in trusted) is False
    info = trusted._is_trusted.cache_info()
    assert (info.currsize, info.maxsize) == (4096, 4096)


# X-Forwarded-*, beside uvicorn's own --------------------------------------------------------------------------------------------------

XFF = b"x-forwarded-for"
XFP = b"x-forwarded-proto"


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize("client", [("127.0.0.1", 5000), ("192.0.2.1", 5000), None])
@pytest.mark.parametrize("trusted", ["127.0.0.1,::1", "*", "127.0.0.1,10.0.0.0/8", "192.0.2.1", ""])
def test_the_middleware_does_what_uvicorn_s_does(trusted: str, client: tuple[str, int] | None, kind: str) -> None:
    rows: list[list[tuple[bytes, bytes]]] = [
        [],
        [(b"host", b"x"), (XFP, b"https")],
        [(XFP, b"http"), (XFP, b"https")],
        [(XFP, b" wss ")],
        [(XFP, b"https, http")],
        [(XFP, b"HTTPS")],
        [(XFP, b"")],
        [(XFP, b"\xff")],
        [(XFF, b"203.0.113.9")],
        [(XFF, b"203.0.113.9:1234"), (XFP, b"https")],
        [(XFF, b"203.0.113.9, 10.0.0.1")],
        [(XFF, b"203.0.113.9"), (XFF, b"10.0.0.1, 127.0.0.1")],
        [(XFF, b"10.0.0.1, 127.0.0.1")],
        [(XFF, b"")],
        [(XFF, b" , 127.0.0.1")],
        [(XFF, b"[2001:db8::1]:443, 10.0.0.1")],
        [(XFF, b"[2001:db8::1]")],
        [(XFF, b"2001:db8::1")],
        [(XFF, b"[2001:db8::1")],
        [(XFF, b"[2001:db8::1]x")],
        [(XFF, b"[2001:db8::1]:x")],
        [(XFF, b"unknown")],
        [(XFF, b"203.0.113.9:x")],
        [(b"forwarded", b"for=203.0.113.9;proto=https")],
        [(b"x-forwarded-host", b"evil"), (b"x-forwarded-port", b"1"), (b"x-real-ip", b"203.0.113.9")],
    ]
    for headers in rows:
        scope = scope_of(headers, kind, client)
        expected = corrected(lambda app: uvicorn.ProxyHeadersMiddleware(app, trusted), scope)
        assert corrected(lambda app: ProxyHeadersMiddleware(app, trusted), scope) == expected, headers


HOST = st.one_of(
    st.sampled_from(["127.0.0.1", "10.0.0.1", "10.9.9.9", "::1", "[::1]", "unknown", "", "[", "a:b", "[::1]:", "1:2:3", "127.0.0.1:80", "[::1]:80"]),
    st.ip_addresses().map(str),
    st.text("0123456789abcdef:.[]", max_size=12),
).filter(lambda text: len(text.rpartition(":")[2]) <= 5)
LISTS = st.lists(st.lists(HOST, max_size=4).map(", ".join), max_size=3)


PROTOS = st.lists(st.sampled_from(["http", "https", "ws", "wss", "", "HTTP", "https,http"]), max_size=2)


@given(LISTS, PROTOS, st.sampled_from(["*", "127.0.0.1,::1", "10.0.0.0/8,127.0.0.1"]))
def test_the_middleware_does_what_uvicorn_s_does_with_anything(lists: list[str], protos: list[str], trusted: str) -> None:
    scope = scope_of([(XFF, text.encode()) for text in lists] + [(XFP, text.encode()) for text in protos])
    expected = corrected(lambda app: uvicorn.ProxyHeadersMiddleware(app, trusted), scope)
    assert corrected(lambda app: ProxyHeadersMiddleware(app, trusted), scope) == expected


def test_the_middleware_lets_lifespans_pass() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)

    asyncio.run(ProxyHeadersMiddleware(app, ["*"])({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == [{"type": "lifespan"}]


@pytest.mark.parametrize("text", ["1.2.3.4:" + "9" * 50, "1.2.3.4:+80", "1.2.3.4: 80", "1.2.3.4:\u0661"])
def test_a_port_is_a_short_number(text: str) -> None:
    assert host_and_port(text) == (text, 0)


# Forwarded ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "elements"),
    [
        ("for=192.0.2.60;proto=http;by=203.0.113.43", [{"for": "192.0.2.60", "proto": "http", "by": "203.0.113.43"}]),
        ('For="[2001:db8:cafe::17]:4711"', [{"for": "[2001:db8:cafe::17]:4711"}]),
        ('for=192.0.2.43, for="[2001:db8::1]"', [{"for": "192.0.2.43"}, {"for": "[2001:db8::1]"}]),
        ("for=192.0.2.43:80", [{"for": "192.0.2.43:80"}]),
        ('for="a\\"b\\\\c,d;e"', [{"for": 'a"b\\c,d;e'}]),
        ('for=""', [{"for": ""}]),
        (" for=a ;  proto=b ,, ; , by=c;", [{"for": "a", "proto": "b"}, {"by": "c"}]),
        ("", []),
        ("for=a;for=b", []),
        ("for=a, for", []),
        ("for=a, for=", []),
        ('for="a', []),
        ("for=a b", []),
        ("for =a", []),
        ("for=a\nproto=b", []),
    ],
)
def test_forwarded_is_taken_apart(text: str, elements: list[dict[str, str]]) -> None:
    assert parse_forwarded(text) == elements


@pytest.mark.parametrize("text", [" " * 120000 + "x", "for=" + '"' + "\\a" * 30000, "," * 60000 + "=", "for=a;" * 10000 + " " * 1000 + "!"])
def test_a_long_forwarded_takes_no_time(text: str) -> None:
    started = time.process_time()
    assert parse_forwarded(text) == []
    assert time.process_time() - started < 5, "quadratic: it would take minutes"


@pytest.mark.parametrize(
    ("fields", "trusted", "client", "scheme"),
    [
        (["for=203.0.113.9;proto=https"], "127.0.0.1", ("203.0.113.9", 0), "https"),
        (['for="203.0.113.9:81";Proto=HTTPS'], "127.0.0.1", ("203.0.113.9", 81), "https"),
        (['for="[2001:db8::1]:4711"'], "127.0.0.1", ("2001:db8::1", 4711), "http"),
        (["for=203.0.113.9;proto=https, for=10.0.0.1;proto=http"], "127.0.0.1,10.0.0.0/8", ("203.0.113.9", 0), "https"),
        (["for=203.0.113.9;proto=https", "for=10.0.0.1"], "127.0.0.1,10.0.0.0/8", ("203.0.113.9", 0), "https"),
        (["for=6.6.6.6;proto=https, for=203.0.113.9"], "127.0.0.1", ("203.0.113.9", 0), "http"),
        (["for=10.0.0.2;proto=https, for=10.0.0.1"], "127.0.0.1,10.0.0.0/8", ("10.0.0.2", 0), "https"),
        (["for=6.6.6.6, for=7.7.7.7;proto=https"], "*", ("6.6.6.6", 0), "http"),
        (["for=unknown;proto=https"], "127.0.0.1", ("unknown", 0), "https"),
        (["for=6.6.6.6, for=_hidden, for=10.0.0.1"], "127.0.0.1,10.0.0.0/8", ("_hidden", 0), "http"),
        (["proto=https"], "127.0.0.1", ("127.0.0.1", 5000), "https"),
        (["for=6.6.6.6, proto=https"], "127.0.0.1", ("127.0.0.1", 5000), "https"),
        (["for=203.0.113.9;proto=gopher"], "127.0.0.1", ("203.0.113.9", 0), "http"),
        (["for=203.0.113.9;proto=https, for"], "127.0.0.1", ("127.0.0.1", 5000), "http"),
        ([], "127.0.0.1", ("127.0.0.1", 5000), "http"),
    ],
)
def test_forwarded_is_read_from_the_right(fields: list[str], trusted: str, client: tuple[str, int], scheme: str) -> None:
    # What the other family of fields says does not count.
    headers = [(XFF, b"9.9.9.9"), (XFP, b"wss"), *((b"forwarded", field.encode()) for field in fields)]
    for kind in ("http", "websocket"):
        scope = scope_of(headers, kind)
        reader(TrustedHosts(trusted), forwarded=True)(scope)
        assert (scope["client"], scope["scheme"]) == (client, scheme if kind == "http" else scheme.replace("http", "ws"))


# In the server ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def anyio_backend() -> Any:
    return "asyncio", {"use_uvloop": True}


async def tell(scope: Any, receive: Any, send: Any) -> None:
    told = repr((scope["client"][0], scope["scheme"])).encode()
    if scope["type"] == "http":
        await respond(send, told)
        return
    await send({"type": "websocket.accept", "headers": [(b"told", told)]})
    await send({"type": "websocket.close"})


UPGRADE = b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"


async def asked(server: Server, fields: bytes) -> tuple[Any, Any]:
    """What the application sees of a request with these fields and of a websocket."""
    client = await server.connect()
    client.write(b"GET / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n")
    _, _, body = await client.read_response()
    client.write(b"GET / HTTP/1.1\r\nHost: a\r\n" + fields + UPGRADE + b"\r\n")
    head = await client.read_until(b"\r\n\r\n")
    client.close()
    (told,) = (line.partition(b": ")[2] for line in head.split(b"\r\n") if line.startswith(b"told: "))
    return ast.literal_eval(body.decode()), ast.literal_eval(told.decode())


X = b"X-Forwarded-For: 203.0.113.9, 127.0.0.1\r\nX-FORWARDED-PROTO: https\r\n"
F = b"Forwarded: for=198.51.100.7;proto=https\r\n"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("options", "fields", "client", "scheme"),
    [
        ({}, X + F, "203.0.113.9", "https"),
        ({}, F, "127.0.0.1", "http"),
        ({}, b"", "127.0.0.1", "http"),
        ({"http": "h11"}, X, "203.0.113.9", "https"),
        ({"forwarded_allow_ips": "*"}, X, "203.0.113.9", "https"),
        ({"forwarded_allow_ips": "192.0.2.1"}, X, "127.0.0.1", "http"),
        ({"proxy_headers": False}, X + F, "127.0.0.1", "http"),
        ({"forwarded": True}, X + F, "198.51.100.7", "https"),
        ({"forwarded": True}, X, "127.0.0.1", "http"),
        ({"forwarded": True, "proxy_headers": False}, X + F, "198.51.100.7", "https"),
        ({"forwarded": True, "forwarded_allow_ips": "192.0.2.1"}, X + F, "127.0.0.1", "http"),
    ],
)
async def test_the_server_believes_trusted_proxies(options: dict[str, Any], fields: bytes, client: str, scheme: str) -> None:
    async with serve(tell, **options) as server:
        assert await asked(server, fields) == ((client, scheme), (client, scheme.replace("http", "ws")))
        assert await asked(server, b"") == (("127.0.0.1", "http"), ("127.0.0.1", "ws")), "the next request is another one"


@pytest.mark.anyio
async def test_the_access_line_and_the_list_of_connections_have_the_client(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "uvicorn.access")
    rows: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        rows.extend(connection.row() for connection in server.worker.connections)
        await respond(send)

    async with serve(app, access_log=True) as server:
        await server.ask(b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Forwarded-For: [2001:db8::1]:5\r\n\r\n")
        await server.ask(b"GET /y HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    lines = [record.getMessage() for record in caplog.records if record.name == "uvicorn.access"]
    assert lines[0] == '2001:db8::1:5 - "GET /x HTTP/1.1" 200', "as uvicorn writes it"
    assert [(row["client"], row["peer"].startswith("127.0.0.1:")) for row in rows] == [("[2001:db8::1]:5", True), (rows[1]["peer"], True)]


@pytest.mark.anyio
async def test_a_network_that_is_none_is_said(caplog: pytest.LogCaptureFixture) -> None:
    async with serve(tell, forwarded_allow_ips="127.0.0.1,10.0.0.1/8,proxy"):
        assert [record.getMessage() for record in caplog.records] == ["--forwarded-allow-ips: 10.0.0.1/8 is no network, so nobody is in it"]
