"""1.10: HTTP/1.1, and what of 1.0 and 1.1 is seen there."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from typing import TYPE_CHECKING, Any

from tests.contract.client import answers, dial, exchange, fetch, fields, get, post, read_answer, recorded
from tests.contract.table import Row

if TYPE_CHECKING:
    from tests.contract.serving import Running

OK = "HTTP/1.1 200 OK"
ERROR = ("HTTP/1.1 500 Internal Server Error", "Internal Server Error")
INVALID = ("HTTP/1.1 400 Bad Request", "Invalid HTTP request received.")
BUSY = ("HTTP/1.1 503 Service Unavailable", "Service Unavailable")
LARGE = ("HTTP/1.1 431 Request Header Fields Too Large", "Request Header Fields Too Large")
HELLO = (OK, "hello")


def order(server: Running) -> Any:
    """The names of the first fields, in the order in which they come."""
    [answer] = exchange(server, get("/hello"))
    return [name for name, _ in answer.headers[:3]]


def server_name(server: Running) -> Any:
    return fields(get("/hello"), "server")(server)


def stays_open(data: bytes, seconds: float) -> Any:
    """What comes, and whether the connection is still open, when so many seconds have passed since this was sent."""

    def do(server: Running) -> Any:
        with contextlib.closing(dial(server)) as sock:
            sock.sendall(data)
            if not select.select([sock], [], [], seconds)[0]:
                return "open"
            return sock.recv(65536).partition(b"\r\n")[0].decode()

    return do


def kept(*requests: bytes) -> Any:
    """The answers to requests that follow each other on one connection, and whether the server then closes it by itself."""

    def do(server: Running) -> Any:
        with contextlib.closing(dial(server)) as sock, sock.makefile("rb") as file:
            found = []
            for request in requests:
                sock.sendall(request)
                answer = read_answer(file)
                assert answer is not None
                found.append(answer.body)
            return found, file.read(1)

    return do


def continues(server: Running, path: str) -> Any:
    """The status lines that come when a body is announced, and sent when it is asked for."""
    with contextlib.closing(dial(server)) as sock, sock.makefile("rb") as file:
        sock.sendall(get(path, "Content-Length: 4", "Expect: 100-continue", method="POST"))
        first = read_answer(file)
        assert first is not None
        if " 100 " not in first.line:
            return [first.line]
        sock.sendall(b"body")
        second = read_answer(file)
        assert second is not None
        return [first.line, second.line, second.body]


def leaves(server: Running) -> None:
    """A client that goes away in the middle of a response."""
    with contextlib.closing(dial(server)) as sock:
        sock.sendall(get("/leave?leave"))
        sock.recv(65536)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def held_back(server: Running) -> Any:
    """Whether the server goes on reading a body that nobody asks for."""
    size = 32 * 1024 * 1024
    with contextlib.closing(dial(server)) as sock, sock.makefile("rb") as file:
        sock.sendall(get("/back-pressure?pressed", f"Content-Length: {size}", method="POST"))
        sock.setblocking(False)
        sent = 0
        while select.select([], [sock], [], 0.5)[1]:
            sent += sock.send(bytes(min(65536, size - sent)))
            if sent == size:
                break
        sock.setblocking(True)
        exchange(server, get("/note?pressed"))
        if sent < size:
            sock.sendall(bytes(size - sent))
        answer = read_answer(file)
        assert answer is not None
        return ["everything is read" if sent == size else "held back", answer.body]


def crowd(server: Running) -> Any:
    """The answers on three connections, one after the other, where three are the limit."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(3):
            sock = stack.enter_context(contextlib.closing(dial(server)))
            sock.sendall(get("/hello", close=False))
            answer = read_answer(stack.enter_context(sock.makefile("rb")))
            assert answer is not None
            found.append((answer.line, answer.body, answer.get("connection")))
        return found


def split(data: bytes) -> list[bytes]:
    return [data[index : index + 1] for index in range(len(data))]


def wrong(kind: str) -> Any:
    """What the application saw of a message that is not allowed, and what the client."""

    def do(server: Running) -> Any:
        return recorded(f"/wrong?{kind}", 1, answers(get(f"/wrong?{kind}")))(server)

    return do


CUT = [(OK, "part<cut off>")]
MANY = [f"X-{number}: 1" for number in range(150)]
ASKED = ["HTTP/1.1 100 Continue", OK, "body"]

ROWS = [
    Row("1.10 response headers, 1.0 18", "date, server, then the application's", order, ["date", "server", "x-own"]),
    Row("1.10 response headers, 1.0 18", "server", server_name, [["uvicorn"]], [["laraman"]], "server"),
    Row(
        "1.10 response headers, 1.1 --header",
        "several, of a server that says nothing else",
        fields(get("/hello")),
        [("connection", "close"), ("content-length", "5"), ("x-a", "1"), ("x-b", "2"), ("x-own", "1")],
        on="odd",
    ),
    Row("1.10 response headers, 1.1 --no-date-header, 1.1 --no-server-header", "none", fields(get("/hello"), "date", "server"), [[], []], on="odd"),
    Row("1.10 response headers", "an application's own", fields(get("/headers?server=mine&date=today&x-a=1&x-a=2"), "x-a"), [["1", "2"]]),
    Row(
        "1.10 response headers",
        "an application's own Server",
        lambda server: len(fields(get("/headers?server=mine"), "server")(server)[0]),
        2,
        1,
        "twice",
        back=1,
    ),
    Row(
        "1.10 keep-alive",
        "three requests on a connection",
        kept(get("/hello", close=False), post("/echo", "a", close=False), get("/hello")),
        (["hello", "a", "hello"], b""),
    ),
    Row(
        "1.10 keep-alive, 1.1 --timeout-keep-alive", "the server closes after the time", kept(get("/hello", close=False)), (["hello"], b""), on="odd"
    ),
    Row("1.10 keep-alive", "HTTP/1.0 is not kept", kept(get("/hello", version="1.0")), (["hello"], b"")),
    Row("1.10 keep-alive", "HTTP/1.0 with keep-alive", kept(get("/hello", "Connection: keep-alive", version="1.0")), (["hello"], b"")),
    Row("1.10 keep-alive", "what the application says", kept(get("/headers?connection=close", close=False)), (["ok"], b"")),
    Row("1.10 Connection: close", "is mirrored", fields(get("/hello"), "connection"), [["close"]]),
    Row("1.10 slow head, 1.13 7", "a silent client", stays_open(b"", 3.5), "open", "", "slow head", on="slow"),
    Row(
        "1.10 slow head, 1.13 7",
        "half a head",
        stays_open(b"GET / HTTP/1.1\r\nHost: a\r\n", 3.5),
        "open",
        "HTTP/1.1 408 Request Timeout",
        "slow head",
        on="slow",
    ),
    Row("1.10 limits, 1.13 7", "a head of 200 KB", answers(get("/hello", f"X: {'x' * 200000}")), HELLO, LARGE, "limits"),
    Row("1.10 limits", "150 fields", answers(get("/hello", *MANY)), HELLO, LARGE, "limits"),
    Row(
        "1.10 limits",
        "a long request line",
        answers(get(f"/hello?{'x' * 10000}")),
        HELLO,
        ("HTTP/1.1 414 Request-URI Too Long", "Request-URI Too Long"),
        "limits",
    ),
    Row("1.10 limits", "a body of 200 KB", lambda server: len(answers(post("/echo", "x" * 200000))(server)[1]), 200000),
    Row(
        "1.10 pipelining, 1.0 14",
        "in order",
        answers(get("/hello", close=False) * 2 + post("/echo", "a", close=False) + get("/stream")),
        [HELLO, HELLO, (OK, "a"), (OK, "onetwo")],
    ),
    Row("1.10 pipelining", "byte by byte", answers(*split(get("/hello", close=False) + post("/echo", "a"))), [HELLO, (OK, "a")]),
    Row("1.10 framing", "chunked without a length", fields(get("/stream"), "transfer-encoding", "content-length"), [["chunked"], []]),
    Row(
        *("1.10 framing", "in one piece, without a length", fields(get("/status?200"), "transfer-encoding", "content-length")),
        *([["chunked"], []], [[], ["4"]], "whole", [[], ["4"]]),
    ),
    Row("1.10 framing", "what is in the chunks", answers(get("/stream")), (OK, "onetwo")),
    Row(
        "1.10 framing",
        "HTTP/1.0 has no chunks",
        fields(get("/stream", version="1.0"), "transfer-encoding"),
        [["chunked"]],
        [[]],
        "HTTP/1.0",
        back=[[]],
    ),
    Row("1.10 framing", "HTTP/1.0: the body", answers(get("/stream", version="1.0")), (OK, "onetwo")),
    Row("1.10 framing, 1.0 14", "HEAD has no body", answers(get("/hello", method="HEAD"), method="HEAD"), (OK, "")),
    Row("1.10 framing", "HEAD keeps the length", fields(get("/hello", method="HEAD"), "content-length", method="HEAD"), [["5"]]),
    Row(
        "1.10 framing",
        "HEAD of a stream",
        fields(get("/stream", method="HEAD"), "transfer-encoding", method="HEAD"),
        [[]],
        [["chunked"]],
        "head",
        back=[["chunked"]],
    ),
    Row("1.10 framing", "204", fields(get("/status?204"), "transfer-encoding", "content-length"), [[], []]),
    Row("1.10 framing", "304", fields(get("/status?304"), "transfer-encoding", "content-length"), [[], []]),
    Row("1.10 request bodies", "with a length", answers(post("/echo", "a body")), (OK, "a body")),
    Row(
        "1.10 request bodies",
        "chunked",
        answers(get("/echo", "Transfer-Encoding: chunked", method="POST", body="1\r\na\r\n2;x=y\r\nbc\r\n0\r\nX: 1\r\n\r\n")),
        (OK, "abc"),
    ),
    Row("1.10 request bodies", "that nobody reads", answers(post("/ignore-body", "a body", close=False) + get("/hello")), [(OK, "ignored"), HELLO]),
    Row(
        "1.10 request bodies, 1.0 14",
        "length and chunks",
        answers(get("/echo", "Content-Length: 3", "Transfer-Encoding: chunked", method="POST", body="0\r\n\r\n")),
        INVALID,
    ),
    Row("1.10 request bodies", "two lengths", answers(get("/echo", "Content-Length: 3", "Content-Length: 4", method="POST", body="abcd")), INVALID),
    Row(
        "1.10 disconnect",
        "receive",
        recorded("/after?after", 4, answers(get("/after?after"))),
        [{"type": "http.request", "body": {"bytes": ""}, "more_body": False}, "waits", {"type": "http.disconnect"}, {"type": "http.disconnect"}],
    ),
    Row("1.10 disconnect, 1.0 6", "the client leaves", recorded("/leave?leave", 2, leaves), ["http.disconnect", "send is silent"]),
    Row("1.10 100-continue, 1.0 14", "when the application asks", lambda server: continues(server, "/echo"), ASKED),
    Row("1.10 100-continue", "an application that does not ask", lambda server: continues(server, "/ignore-body"), [OK]),
    Row("1.10 body back-pressure, 1.0 14", "", held_back, ["held back", str(32 * 1024 * 1024)]),
    Row("1.10 send checks", "the name of a field", wrong("name"), ["RuntimeError: Invalid HTTP header name."]),
    Row("1.10 send checks", "the value of a field", wrong("value"), ["RuntimeError: Invalid HTTP header value."]),
    Row("1.10 send checks, 1.0 14", "more than the length", wrong("too-long"), ["RuntimeError: Response content longer than Content-Length"]),
    Row("1.10 send checks, 1.0 14", "less than the length", wrong("too-short"), ["RuntimeError: Response content shorter than Content-Length"]),
    Row("1.10 exceptions, 1.0 19", "before the start", answers(get("/raises")), ERROR),
    Row(
        "1.10 exceptions, 1.0 19",
        "close the connection",
        fields(get("/raises", close=False)),
        [("connection", "close"), ("content-length", "21"), ("content-type", "text/plain; charset=utf-8")],
    ),
    Row("1.10 exceptions", "after the start", answers(get("/raises-after-start")), (OK, "part<cut off>")),
    Row("1.10 exceptions", "no response", answers(get("/nothing")), ERROR),
    Row("1.10 exceptions", "a head without a body", answers(get("/start-only")), (OK, "<cut off>"), ERROR, "start only", back=ERROR),
    Row("1.10 exceptions", "a result", answers(get("/result")), (OK, "result")),
    Row(
        "1.10 message order",
        "body first",
        wrong("body-first"),
        ["RuntimeError: Expected ASGI message 'http.response.start', but got 'http.response.body'."],
    ),
    Row(
        "1.10 message order",
        "start twice",
        wrong("start-twice"),
        ["RuntimeError: Expected ASGI message 'http.response.body', but got 'http.response.start'."],
    ),
    Row(
        "1.10 message order",
        "after the end",
        wrong("after-end"),
        ["RuntimeError: Unexpected ASGI message 'http.response.body' sent, after response already completed."],
    ),
    Row(
        "1.10 message order",
        "an unknown one",
        wrong("unknown"),
        ["RuntimeError: Expected ASGI message 'http.response.body', but got 'http.response.nonsense'."],
    ),
    Row("1.10 invalid requests, 1.0 19", "no HTTP", answers(b"nonsense\r\n\r\n"), INVALID),
    Row(
        "1.10 invalid requests",
        "close the connection",
        lambda server: fields(b"nonsense\r\n\r\n", "connection", "content-type")(server),
        [["close"], ["text/plain; charset=utf-8"]],
    ),
    Row("1.10 invalid requests", "a version that nobody speaks", answers(get("/hello", version="3.0")), INVALID),
    Row(
        "1.10 upgrade",
        "another protocol is served as HTTP",
        kept(get("/hello", "Upgrade: h2c", "Connection: Upgrade", close=False), get("/hello")),
        (["hello", "hello"], b""),
    ),
    Row(
        "1.10 upgrade, 1.1 --ws",
        "websockets switched off",
        kept(get("/hello", "Upgrade: websocket", "Connection: Upgrade", close=False), get("/hello")),
        (["hello", "hello"], b""),
        on="off",
    ),
    Row(
        "1.10 limit-concurrency, 1.0 17, 1.1 --limit-concurrency",
        "the connection that reaches it",
        crowd,
        [(*HELLO, []), (*HELLO, []), (*BUSY, ["close"])],
        on="off",
    ),
    Row("1.10 reason phrases", "", answers(get("/status?418")), ("HTTP/1.1 418 I'm a Teapot", "body")),
    Row("1.10 reason phrases", "a status without one", lambda server: answers(get("/status?599"))(server)[0].strip(), "HTTP/1.1 599"),
    Row("1.10 serves", "after all that", lambda server: fetch(server, "/records?nobody"), []),
]
