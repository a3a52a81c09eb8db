from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laraman.errors import RemoteProtocolError
from laraman.protocols.http1 import ChunkedBody, HeadParser, status_line


@pytest.fixture(params=["httptools", "h11"])
def heads(request: pytest.FixtureRequest) -> HeadParser:
    return HeadParser(max_line=100, max_fields=10, engine=request.param)


def head(*lines: str) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def test_reads_a_plain_request(heads: HeadParser) -> None:
    heads.parse(head("GET /a%20b/%2F?x=1&y HTTP/1.1", "Host: example.org:8000", "X-Thing:  spaced out \t ", "x-thing: again"))
    assert (heads.method, heads.version) == ("GET", "1.1")
    assert (heads.path, heads.raw_path, heads.query) == ("/a b//", b"/a%20b/%2F", b"x=1&y")
    assert heads.headers == [(b"host", b"example.org:8000"), (b"x-thing", b"spaced out"), (b"x-thing", b"again")]
    assert heads.keep_alive
    assert not heads.chunked
    assert heads.content_length == 0


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", b""),
        ("/?", "/", b""),
        ("//x//y", "//x//y", b""),
        ("/%C3%A9", "/é", b""),
        ("/%FF", "/�", b""),
        ("http://other.example?x", "/", b"x"),
        ("http://other.example/p?x=/?y", "/p", b"x=/?y"),
        ("HTTP://other.example:80/p", "/p", b""),
    ],
)
def test_accepts_origin_and_absolute_targets(heads: HeadParser, target: str, path: str, query: bytes) -> None:
    heads.parse(head(f"GET {target} HTTP/1.1", "Host: example.org"))
    assert (heads.path, heads.query) == (path, query)


def test_the_authority_of_an_absolute_target_replaces_the_host(heads: HeadParser) -> None:
    heads.parse(head("GET http://real.example/ HTTP/1.1", "Host: fake.example", "A: b"))
    assert heads.headers == [(b"host", b"real.example"), (b"a", b"b")]


def test_asterisk_belongs_to_options(heads: HeadParser) -> None:
    heads.parse(head("OPTIONS * HTTP/1.1", "Host: x"))
    assert heads.path == "*"
    with pytest.raises(RemoteProtocolError):
        heads.parse(head("GET * HTTP/1.1", "Host: x"))


@pytest.mark.parametrize(
    "target", ["/a#b", "x", "?a=b", "/\x7f", "/\xe9", "ftp://x/", "http://user@x/", "http://", "http:///p", "https://x y/", "/a b", ""]
)
def test_refuses_other_targets(heads: HeadParser, target: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        heads.parse(head(f"GET {target} HTTP/1.1", "Host: x"))
    assert caught.value.status_hint == 400


def test_refuses_connect(heads: HeadParser) -> None:
    with pytest.raises(RemoteProtocolError):
        heads.parse(head("CONNECT x:80 HTTP/1.1", "Host: x"))


@pytest.mark.parametrize("version", ["HTTP/0.9", "HTTP/1.2", "HTTP/2.0", "HTTP/3", "http/1.1", "HTTP/1.1.1", "RTSP/1.0", ""])
def test_speaks_only_1_0_and_1_1(heads: HeadParser, version: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        heads.parse(head(f"GET / {version}".rstrip(), "Host: x"))
    assert caught.value.status_hint in (400, 505)


def test_a_method_of_another_protocol_is_refused(heads: HeadParser) -> None:
    for line in ("DESCRIBE / RTSP/1.0", "SOURCE / ICE/1.0", "PRI * HTTP/2.0"):
        with pytest.raises(RemoteProtocolError):
            heads.parse(head(line, "Host: x"))
    heads.parse(head("GET /after HTTP/1.1", "Host: x"))
    assert heads.path == "/after"


def test_a_method_llhttp_does_not_know_is_still_a_method(heads: HeadParser) -> None:
    heads.parse(head("FROBNICATE /x HTTP/1.1", "Host: x", "A: 1 "))
    assert heads.method == "FROBNICATE"
    assert heads.headers == [(b"host", b"x"), (b"a", b"1")]


@pytest.mark.parametrize("host", ["a.example", "a.example:80", "1.2.3.4:5", "[::1]", "[::1]:8000", "a_b.example", "x%20y", "", "xn--bcher-kva.de"])
def test_accepts_valid_hosts(heads: HeadParser, host: str) -> None:
    heads.parse(head("GET / HTTP/1.1", f"Host: {host}"))


@pytest.mark.parametrize("host", ["a b", "a/b", "user@a", "a:b", "a:80:80", "[::1", "::1", "a\\b", "é", "http://a", "a?b", "a#b", "%zz"])
def test_refuses_invalid_hosts(heads: HeadParser, host: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        heads.parse(head("GET / HTTP/1.1", f"Host: {host}"))
    assert caught.value.status_hint == 400


def test_host_is_mandatory_and_single_on_1_1(heads: HeadParser) -> None:
    for fields in ([], ["Host: a", "Host: a"], ["Host: a", "host: b"]):
        with pytest.raises(RemoteProtocolError) as caught:
            heads.parse(head("GET / HTTP/1.1", *fields))
        assert caught.value.status_hint == 400
    heads.parse(head("GET / HTTP/1.0"))
    assert heads.version == "1.0"


@pytest.mark.parametrize(
    ("version", "connection", "kept"),
    [
        ("1.1", None, True),
        ("1.1", "close", False),
        ("1.1", "CLOSE", False),
        ("1.1", "keep-alive", True),
        ("1.1", "te, close", False),
        ("1.1", "x-close", True),
        ("1.1", "closed", True),
        ("1.1", "keep-alive, close", False),
        ("1.0", None, False),
        ("1.0", "keep-alive", True),
        ("1.0", "Keep-Alive, TE", True),
        ("1.0", "close", False),
        ("1.0", "keep-alive, close", False),
    ],
)
def test_keep_alive_is_a_matter_of_tokens(heads: HeadParser, version: str, connection: str | None, kept: bool) -> None:
    heads.parse(head(f"GET / HTTP/{version}", "Host: x", *([f"Connection: {connection}"] if connection else [])))
    assert heads.keep_alive is kept


def test_connection_fields_are_one_list(heads: HeadParser) -> None:
    heads.parse(head("GET / HTTP/1.1", "Host: x", "Connection: upgrade", "Upgrade: WebSocket", "Connection: close"))
    assert not heads.keep_alive
    assert heads.upgrade == b"websocket"
    heads.parse(head("GET / HTTP/1.1", "Host: x", "Upgrade: websocket"))
    assert heads.upgrade == b""
    heads.parse(head("GET / HTTP/1.0", "Host: x", "Upgrade: websocket", "Connection: upgrade"))
    assert heads.upgrade == b""


def test_reads_how_the_body_is_framed(heads: HeadParser) -> None:
    heads.parse(head("POST / HTTP/1.1", "Host: x", "Content-Length: 12", "Expect: 100-Continue"))
    assert (heads.content_length, heads.chunked, heads.expects_continue) == (12, False, True)
    heads.parse(head("POST / HTTP/1.1", "Host: x", "Transfer-Encoding: Chunked"))
    assert (heads.content_length, heads.chunked, heads.expects_continue) == (0, True, False)
    heads.parse(head("POST / HTTP/1.1", "Host: x", "Upgrade: y", "Connection: upgrade", "Content-Length: 5"))
    assert (heads.content_length, heads.upgrade) == (5, b"y")
    heads.parse(head("GET / HTTP/1.1", "Host: x"))
    assert (heads.content_length, heads.chunked) == (0, False)


@pytest.mark.parametrize(
    "fields",
    [
        ["Content-Length: 3", "Content-Length: 4"],
        ["Content-Length: 3, 4"],
        ["Content-Length: +3"],
        ["Content-Length: -3"],
        ["Content-Length: 0x3"],
        ["Content-Length: 3 3"],
        ["Content-Length:"],
        ["Content-Length: 99999999999999999999999"],
        ["Content-Length: 3", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: gzip, chunked"],
        ["Transfer-Encoding: chunked, gzip"],
        ["Transfer-Encoding: identity"],
        ["Transfer-Encoding:"],
        ["Transfer-Encoding: \x0bchunked"],
    ],
)
def test_refuses_ambiguous_bodies(heads: HeadParser, fields: list[str]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        heads.parse(head("POST / HTTP/1.1", "Host: x", *fields))
    assert caught.value.status_hint in (400, 501)
    heads.parse(head("GET /next HTTP/1.1", "Host: x"))
    assert heads.path == "/next"


def test_refuses_chunks_from_http_1_0(heads: HeadParser) -> None:
    with pytest.raises(RemoteProtocolError):
        heads.parse(head("POST / HTTP/1.0", "Transfer-Encoding: chunked"))


@pytest.mark.parametrize(
    "lines",
    [["Host : x"], ["Host: x", "no colon"], [": x"], ["Host: x", "A: b\0c"], ["Host: x", "A(: b"], ["Host: x", "A: b\rC: d"]],
)
def test_refuses_malformed_fields(heads: HeadParser, lines: list[str]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        heads.parse(head("GET / HTTP/1.1", *lines))
    assert caught.value.status_hint == 400


def test_limits(heads: HeadParser) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        heads.parse(head("GET /" + "x" * 100 + " HTTP/1.1", "Host: x"))
    assert caught.value.status_hint == 414
    heads.parse(head("GET / HTTP/1.1", "Host: x", *["A: b"] * 9))
    with pytest.raises(RemoteProtocolError) as caught:
        heads.parse(head("GET / HTTP/1.1", "Host: x", *["A: b"] * 10))
    assert caught.value.status_hint == 431


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_garbage_is_refused_and_nothing_else(garbage: bytes) -> None:
    for engine in ("httptools", "h11"):
        parser = HeadParser(engine=engine)
        with contextlib.suppress(RemoteProtocolError):
            parser.parse(garbage.replace(b"\r\n\r\n", b"") + b"\r\n\r\n")
        parser.parse(b"GET /after HTTP/1.1\r\nHost: x\r\n\r\n")
        assert parser.path == "/after"


@pytest.mark.parametrize(
    "line",
    ["GET  / HTTP/1.1", "GET /  HTTP/1.1", "GET\t/ HTTP/1.1", "GET / HTTP/1.1 ", " GET / HTTP/1.1", "GET / HTTP/1.1\r", "FOO / HTTP/1.1\r", "GET /"],
)
def test_refuses_loose_request_lines(heads: HeadParser, line: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        heads.parse(head(line, "Host: x"))
    assert caught.value.status_hint in (400, 505)


@pytest.mark.parametrize("method", ["GET", "FOO"])  # the latter is read by h11 with either engine
@pytest.mark.parametrize(
    "lines",
    ["\nHost: x\n\nGET /evil HTTP/1.1\r\nHost: x", "\r\nHost: x\nA: b", "\r\nHost: x\r\nA: b\rc", "\r\nHost: x\r\n A: b",
     "\r\nHost: x\r\nA: \x01",
     "\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 3", "\r\nHost: x\r\nContent-Length: 3, 3", "\r\nHost: x\r\nA:b\r\n\tc"],
)  # fmt: skip
def test_both_engines_refuse_what_can_be_read_in_two_ways(heads: HeadParser, method: str, lines: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        heads.parse(f"{method} / HTTP/1.1{lines}\r\n\r\n".encode("latin-1"))
    assert caught.value.status_hint == 400


def test_connect_is_refused_each_time(heads: HeadParser) -> None:
    heads.parse(head("GET / HTTP/1.1", "Host: x"))
    for target in ("/", "x:80"):
        with pytest.raises(RemoteProtocolError) as caught:
            heads.parse(head(f"CONNECT {target} HTTP/1.1", "Host: x"))
        assert caught.value.status_hint == 400


_PIECES = st.sampled_from(
    ["Proxy-Connection: close", "Proxy-Connection: upgrade", "Connection: close", "Connection: upgrade", "Upgrade: h2c", "Upgrade: websocket",
     "Content-Length: 3", "Transfer-Encoding: chunked", "Transfer-Encoding: gzip", "Host: y", "A", " folded", "Expect: 100-continue",
     "Keep-Alive: 1", "A:"]
)  # fmt: skip
_LINES = st.sampled_from(
    ["GET / HTTP/1.1", "POST /p HTTP/1.1", "HEAD / HTTP/1.0", "CONNECT / HTTP/1.1", "FOO / HTTP/1.1", "SOURCE / HTTP/1.1", "PRI * HTTP/2.0", "GET /",
     "GET / HTTP/2.0", "OPTIONS * HTTP/1.1", "GET http://h/ HTTP/1.1", "DESCRIBE / RTSP/1.0", "GET  / HTTP/1.1"]
)  # fmt: skip


def outcome(heads: HeadParser, request: bytes) -> tuple[object, ...]:
    try:
        heads.parse(request)
    except RemoteProtocolError as exc:
        return (exc.status_hint, str(exc))
    return (
        heads.method,
        heads.version,
        heads.target,
        heads.headers,
        heads.keep_alive,
        heads.content_length,
        heads.chunked,
        heads.upgrade,
        heads.path,
    )


@given(st.lists(st.tuples(_LINES, st.lists(_PIECES, max_size=3)), min_size=1, max_size=5), st.sampled_from(["httptools", "h11"]))
@settings(max_examples=300, deadline=None)
def test_a_head_is_read_as_if_no_other_had_come_before_it(requests: list[tuple[str, list[str]]], engine: str) -> None:
    shared = HeadParser(engine=engine)
    for line, fields in requests:
        request = head(line, "Host: x", *fields)
        assert outcome(shared, request) == outcome(HeadParser(engine=engine), request)
        assert outcome(shared, head("GET /after HTTP/1.1", "Host: x"))[:3] == ("GET", "1.1", b"/after")


def test_status_lines() -> None:
    assert status_line(404) == b"HTTP/1.1 404 Not Found\r\n"
    assert status_line(599) == b"HTTP/1.1 599 \r\n"


# Chunked bodies


def encode(parts: list[bytes], trailers: bytes = b"") -> bytes:
    return b"".join(b"%x;ext=1\r\n%b\r\n" % (len(part), part) for part in parts if part) + b"0\r\n" + trailers + b"\r\n"


@given(st.lists(st.binary(max_size=40), max_size=6), st.lists(st.integers(1, 12), max_size=80), st.binary(max_size=10))
def test_chunks_in_any_pieces(parts: list[bytes], cuts: list[int], tail: bytes) -> None:
    wire = encode(parts, b"X-Sum: 1\r\n") + tail
    body = ChunkedBody()
    got = rest = b""
    position = 0
    for cut in [*cuts, len(wire)]:
        piece = wire[position : position + cut]
        position += cut
        if body.done:
            rest += piece
        elif piece:
            data, behind = body.receive_data(piece)
            got += data
            rest += behind
    assert body.done
    assert got == b"".join(parts)
    assert rest == tail


@pytest.mark.parametrize(
    "wire",
    [
        b"x\r\n",
        b"-1\r\n",
        b"+1\r\na\r\n",
        b"0x1\r\na\r\n",
        b" 1\r\na\r\n",
        b"1\na\r\n",
        b"1\r\nab\r\n",
        b"1\r\na\n\n0\r\n\r\n",
        b"ffffffffffffffff\r\n",
        b"\r\n",
        b"1;" + b"x" * 2000,
        b"1;a\0b\r\na\r\n",
        b"0\r\nbad trailer\r\n\r\n",
        b"0\r\n: x\r\n\r\n",
        b"0\r\nA: \0\r\n\r\n",
    ],
)
def test_refuses_malformed_chunks(wire: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        ChunkedBody().receive_data(wire)
    body = ChunkedBody()

    def feed_bytes() -> None:
        for index in range(len(wire)):
            body.receive_data(wire[index : index + 1])

    with pytest.raises(RemoteProtocolError):
        feed_bytes()


def test_trailers_are_bounded() -> None:
    body = ChunkedBody(max_trailers=100)
    with pytest.raises(RemoteProtocolError) as caught:
        body.receive_data(b"0\r\n" + b"A: b\r\n" * 50)
    assert caught.value.status_hint == 431


def test_chunk_extensions_are_limited_in_all() -> None:
    body = ChunkedBody()
    chunk = b"1;" + b"x" * 500 + b"\r\na\r\n"
    body.receive_data(chunk * 30)
    with pytest.raises(RemoteProtocolError):
        body.receive_data(chunk * 10)
    body = ChunkedBody()
    for _ in range(10_000):
        body.receive_data(b"1\r\na\r\n")


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.binary(max_size=10), st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_chunked_body_is_the_same_however_it_is_split(pieces: list[bytes], rest: bytes, extended: bool) -> None:
    wire = b"".join(b"%x%b\r\n%b\r\n" % (len(piece), b";a=b" if extended else b"", piece) for piece in pieces) + b"0\r\nT: v\r\n\r\n"
    for cut in range(len(wire) + 1):
        body = ChunkedBody()
        got, left = body.receive_data(wire[:cut])
        if cut < len(wire):
            assert (left, body.done) == (b"", False)
            more, left = body.receive_data(wire[cut:] + rest)
            got += more
            assert left == rest
        assert body.done
        assert got == b"".join(pieces)


def test_fields_of_proxies_are_noted(heads: HeadParser) -> None:
    for name in ("X-Forwarded-For", "x-forwarded-proto", "FORWARDED"):
        heads.parse(head("GET / HTTP/1.1", "Host: a", f"{name}: 192.0.2.1", f"{name}: 192.0.2.2"))
        assert heads.forwarded is True
        assert [value for field, value in heads.headers if field == name.lower().encode()] == [b"192.0.2.1", b"192.0.2.2"]
        heads.parse(head("GET / HTTP/1.1", "Host: a", "X-Forwarded-Host: b"))
        assert heads.forwarded is False
