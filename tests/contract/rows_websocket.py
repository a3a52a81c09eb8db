"""1.11: websockets."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from tests.conftest import DEADLINE
from tests.contract.client import answers, close_frame, exchange, frame, frames, get, handshake, recorded, upgrade, websocket
from tests.contract.table import Row

if TYPE_CHECKING:
    from tests.contract.serving import Running

SWITCHED = "HTTP/1.1 101 Switching Protocols"


def accepted(*names: str, headers: tuple[str, ...] = (), path: str = "/echo?accepted") -> Any:
    """The status of the handshake, and the values of these fields."""

    def do(server: Running) -> Any:
        sock, answer = handshake(server, path, *headers)
        with contextlib.closing(sock):
            sock.sendall(close_frame(1000))
            known = {name.lower(): value for name, value in answer.headers}
            return [answer.line, *(known.get(name) for name in names)]

    return do


def date_and_server(server: Running) -> Any:
    sock, answer = handshake(server, "/echo?date")
    with contextlib.closing(sock):
        return sorted(name.lower() for name, _ in answer.headers if name.lower() in ("date", "server"))


def echoed(*messages: str | bytes, **options: Any) -> Any:
    def do(server: Running) -> Any:
        with websocket(server, "/echo?echo", **options) as client:
            for message in messages:
                client.send(message)
            return [client.recv(DEADLINE) for _ in messages]

    return do


def closed(path: str) -> Any:
    """The code and the reason with which the server closes."""

    def do(server: Running) -> Any:
        with websocket(server, path) as client:
            with contextlib.suppress(Exception):
                while True:
                    client.recv(DEADLINE)
            return client.close_code, client.close_reason

    return do


def ended(path: str, how: Any) -> Any:
    """What the application receives when the client ends in this way: all after ``websocket.connect``."""

    def do(server: Running) -> Any:
        return recorded(path, 2, how)(server)[1:]

    return do


def closes(path: str, code: int, reason: str) -> Any:
    def do(server: Running) -> None:
        with websocket(server, path) as client:
            client.close(code, reason)

    return do


def vanishes(path: str) -> Any:
    def do(server: Running) -> None:
        sock, _ = handshake(server, path)
        sock.close()

    return do


def closes_empty(path: str) -> Any:
    def do(server: Running) -> None:
        sock, _ = handshake(server, path)
        with contextlib.closing(sock):
            sock.sendall(frame(8, b""))
            sock.recv(100)

    return do


def crowded(server: Running) -> Any:
    """Whether a client can send without end to an application that does not read."""
    sock, _ = handshake(server, "/slow?slow")
    with contextlib.closing(sock):
        sock.setblocking(False)
        piece, sent = frame(2, bytes(60000)), 0
        import select

        rest = b""
        while sent < 800 and select.select([], [sock], [], 0.5)[1]:
            rest = rest or piece
            rest = rest[sock.send(rest) :]
            sent += not rest
        sock.setblocking(True)
        exchange(server, get("/note?slow"))
        return "everything is read" if sent == 800 else "held back"


def denied(path: str, *names: str) -> Any:
    def do(server: Running) -> Any:
        [answer] = exchange(server, upgrade(path))
        known = {name.lower(): value for name, value in answer.headers}
        return [answer.line, answer.body, *(known.get(name) for name in names)]

    return do


def compression(server: Running) -> Any:
    with websocket(server, "/echo?deflate", compression="deflate") as client:
        client.send("x" * 1000)
        return [client.recv(DEADLINE) == "x" * 1000, client.response.headers.get("Sec-WebSocket-Extensions")]


def disconnect(code: int, reason: str = "") -> dict[str, Any]:
    return {"type": "websocket.disconnect", "code": code, **({"reason": reason} if reason else {})}


def unanswered_pings(server: Running) -> Any:
    """The opcode of each frame, and the payload of the last, when nothing is answered."""
    found = frames("/echo?silent")(server)
    return [*dict.fromkeys(opcode for opcode, _ in found)], found[-1]


ERROR = ["HTTP/1.1 500 Internal Server Error", "Internal Server Error"]
HI = frame(1, b"hi")
DEFLATE = "permessage-deflate; server_max_window_bits=12; client_max_window_bits=12"

ROWS = [
    Row("1.11 upgrade", "accepted", accepted("sec-websocket-accept", "x-accept"), [SWITCHED, "BACScCJPNqyz+UBoqMH89VmURoA=", "1"]),
    Row(
        "1.11 upgrade",
        "tokens in any case, among others",
        answers(upgrade("/deny?case").replace(b"n: Upgrade", b"n: keep-alive, UPGRADE").replace(b"e: websocket", b"e: WebSocket")),
        ("HTTP/1.1 403 Forbidden", ""),
    ),
    Row(
        "1.11 upgrade",
        "HTTP/1.1 pipelined in front",
        lambda server: [line for line, _ in answers(get("/hello", close=False) + upgrade("/deny?pipelined"))(server)],
        ["HTTP/1.1 200 OK", "HTTP/1.1 403 Forbidden"],
    ),
    Row(
        "1.11 upgrade",
        "no key",
        lambda server: answers(get("/echo?nokey", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", close=False))(server)[0],
        "HTTP/1.1 400 Bad Request",
    ),
    Row(
        "1.11 upgrade",
        "another version",
        lambda server: answers(upgrade("/echo?version").replace(b"Version: 13", b"Version: 12"))(server)[0],
        "HTTP/1.1 400 Bad Request",
        "HTTP/1.1 426 Upgrade Required",
        "statuses",
        back="HTTP/1.1 426 Upgrade Required",
    ),
    Row("1.11 accept headers, 1.0 13", "date and server", date_and_server, ["date", "server"]),
    Row("1.11 accept headers, 1.0 13", "subprotocol", accepted("sec-websocket-protocol", headers=("Sec-WebSocket-Protocol: a, b",)), [SWITCHED, "a"]),
    Row("1.11 accept headers", "no subprotocol asked for", accepted("sec-websocket-protocol"), [SWITCHED, None]),
    Row("1.11 deflate, 1.0 13", "as asked by the usual client", compression, [True, DEFLATE]),
    Row("1.11 deflate", "none asked for", accepted("sec-websocket-extensions"), [SWITCHED, None]),
    Row(
        "1.11 deflate, 1.1 --ws-per-message-deflate",
        "switched off",
        accepted("sec-websocket-extensions", headers=("Sec-WebSocket-Extensions: permessage-deflate",)),
        [SWITCHED, None],
        on="odd",
    ),
    Row("1.11 messages", "text and bytes", echoed("hi", b"\x00\xff", "", "ä" * 1000), ["hi", b"\x00\xff", "", "ä" * 1000]),
    Row("1.11 messages", "a large one", lambda server: len(echoed("x" * 1_000_000, compression=None)(server)[0]), 1_000_000),
    Row("1.11 messages", "their keys", recorded("/keys?keys", 2, frames("/keys?keys", HI, frame(2, b"hi"))), [["text", "type"], ["bytes", "type"]]),
    Row(
        "1.11 messages",
        "in fragments, with a ping between",
        frames("/echo?parts", frame(1, b"h", first=0), frame(9, b"p"), frame(0, b"i"), count=2),
        [(10, b"p"), (1, b"hi")],
    ),
    Row("1.11 deny, 1.0 13", "before accept", denied("/deny?deny", "connection", "content-length"), ["HTTP/1.1 403 Forbidden", "", "close", "0"]),
    Row(
        "1.11 deny",
        "what the application receives",
        recorded("/deny?told", 2, denied("/deny?told")),
        [{"type": "websocket.connect"}, disconnect(1006)],
    ),
    Row("1.11 websocket.http.response, 1.0 13", "", denied("/response", "x-own"), ["HTTP/1.1 401 Unauthorized", "nope", "1"]),
    Row("1.11 application", "returns without accept", denied("/return"), ERROR),
    Row("1.11 application", "raises before accept", denied("/raises"), ERROR),
    Row("1.11 application", "raises after accept", closed("/raises-later"), (1006, ""), (1011, ""), "websocket ends", back=(1011, "")),
    Row("1.11 application", "returns after accept", closed("/returns-later"), (1006, ""), (1000, ""), "websocket ends", back=(1000, "")),
    Row(
        "1.11 application",
        "sends out of order",
        recorded("/wrong?wrong", 2, closed("/wrong?wrong")),
        [
            "RuntimeError: Expected ASGI message 'websocket.accept', 'websocket.close' or 'websocket.http.response.start' but got 'websocket.send'.",
            "RuntimeError: Expected ASGI message 'websocket.send' or 'websocket.close', but got 'websocket.accept'.",
        ],
    ),
    Row("1.11 back-pressure", "", crowded, "held back"),
    Row("1.11 close codes, 1.0 13", "1000", closed("/close?plain"), (1000, "")),
    Row("1.11 close codes", "the application's", closed("/close?code=4001&reason=why"), (4001, "why")),
    Row("1.11 close codes", "what is sent after", recorded("/close?x=1", 2, closed("/close?x=1")), ["RuntimeError", disconnect(1000)]),
    Row("1.11 disconnect codes", "the client's", ended("/echo?c", closes("/echo?c", 4002, "bye")), [disconnect(4002, "bye")]),
    Row("1.11 disconnect codes", "a close without a code", ended("/echo?e", closes_empty("/echo?e")), [disconnect(1005)]),
    Row("1.11 disconnect codes", "the connection is lost", ended("/echo?v", vanishes("/echo?v")), [disconnect(1005)]),
    Row(
        "1.11 ClientDisconnected, 1.0 13",
        "send after the client has closed",
        recorded("/late?late", 2, closes("/late?late", 1000, "")),
        [disconnect(1000), ["ClientDisconnected", True]],
    ),
    Row("1.11 protocol errors", "invalid UTF-8", lambda server: frames("/echo?utf", frame(1, b"\xff"))(server)[0][1][:2], (1007).to_bytes(2, "big")),
    Row(
        "1.11 protocol errors",
        "invalid UTF-8, told",
        lambda server: ended("/echo?utf2", frames("/echo?utf2", frame(1, b"\xff")))(server)[0]["code"],
        1007,
    ),
    Row(
        "1.11 protocol errors, 1.1 --ws-max-size",
        "too big",
        lambda server: frames("/echo?big", frame(1, b"x" * 101))(server)[0][1][:2],
        (1009).to_bytes(2, "big"),
        on="odd",
    ),
    Row("1.11 protocol errors, 1.1 --ws-max-size", "just fits", frames("/echo?fits", frame(1, b"x" * 100), count=1), [(1, b"x" * 100)], on="odd"),
    Row(
        "1.11 protocol errors",
        "a frame without a mask",
        lambda server: frames("/echo?mask", b"\x81\x02hi")(server)[0][1][:2],
        (1002).to_bytes(2, "big"),
    ),
    Row(
        "1.11 pings, 1.0 13, 1.1 --ws-ping-interval, 1.1 --ws-ping-timeout",
        "not answered",
        unanswered_pings,
        ([9, 8], (8, (1011).to_bytes(2, "big") + b"keepalive ping timeout")),
        on="odd",
    ),
    Row("1.11 pings", "of the client", frames("/echo?ping", frame(9, b"p"), count=1), [(10, b"p")]),
]
