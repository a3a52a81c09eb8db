"""The load that wrk cannot make: websocket echoes, a thousand websockets that are told the news, thousands of idle connections.

Run by run.py as processes of their own, pinned to another CPU than the server: ``python -m benchmarks.clients echo PORT SECONDS``.
"""

from __future__ import annotations

import base64
import json
import os
import select
import socket
import sys
import time
from functools import partial

PAYLOAD = bytes(range(32))
MASK = b"\x12\x34\x56\x78"
#: RFC 6455 section 5.2: a final binary frame of 32 bytes; a client masks, a server does not.
QUESTION = b"\x82" + bytes([0x80 | len(PAYLOAD)]) + MASK + bytes(byte ^ MASK[at % 4] for at, byte in enumerate(PAYLOAD))
ANSWER = b"\x82" + bytes([len(PAYLOAD)]) + PAYLOAD

NEWS = b"\x82\x40" + b"n" * 64
LISTENERS = 1000
#: Broadcasts that are asked for at once in a burst.
BURST = 20

PACE = 500  # requests per second

CONNECTIONS = 32
WINDOW = 32  # messages on their way per connection
SOURCES = 8  # 127.0.0.1 ... 127.0.0.8: each has its own ephemeral ports


def connect(port: int, source: int = 1) -> socket.socket:
    connection = socket.socket()
    connection.settimeout(10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if source > 1:
        connection.bind((f"127.0.0.{source}", 0))
    connection.connect(("127.0.0.1", port))
    return connection


def read_head(connection: socket.socket) -> tuple[bytes, bytes]:
    """The response head, and what came after it."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError(f"closed after {received!r}")
        received += piece
    head, _, rest = received.partition(b"\r\n\r\n")
    return head, rest


def frame(payload: bytes) -> bytes:
    """A final binary frame of a client, with at most 125 bytes."""
    return b"\x82" + bytes([0x80 | len(payload)]) + MASK + bytes(byte ^ MASK[at % 4] for at, byte in enumerate(payload))


def upgrade(port: int, source: int = 1) -> socket.socket:
    """An open websocket."""
    connection = connect(port, source)
    key = base64.b64encode(os.urandom(16)).decode()
    connection.sendall(
        f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
    )
    head, rest = read_head(connection)
    if b" 101 " not in head.split(b"\r\n")[0] or rest:
        raise ConnectionError(f"no upgrade: {head!r}")
    return connection


def upgraded(port: int) -> socket.socket:
    """An open websocket that has been seen to echo."""
    connection = upgrade(port)
    connection.sendall(QUESTION)
    answer = b""
    while len(answer) < len(ANSWER):
        answer += connection.recv(65536)
    if answer != ANSWER:
        raise ConnectionError(f"not an echo: {answer!r}")
    return connection


def echo(port: int, seconds: float) -> dict[str, float]:
    """Keep WINDOW messages on their way on each connection for ``seconds``, and count the answers."""
    poller = select.epoll()
    connections = {}
    for connection in (upgraded(port) for _ in range(CONNECTIONS)):
        connections[connection.fileno()] = connection
        poller.register(connection, select.EPOLLIN)
    received = dict.fromkeys(connections, 0)  # bytes
    questions = [QUESTION * count for count in range(WINDOW + 1)]
    began = time.monotonic()
    for connection in connections.values():
        connection.sendall(questions[WINDOW])
    while (now := time.monotonic()) - began < seconds:
        for fd, _ in poller.poll(1):
            piece = connections[fd].recv(65536)
            if not piece:
                raise ConnectionError("the server closed a connection")
            before = received[fd]
            received[fd] = before + len(piece)
            connections[fd].sendall(questions[received[fd] // len(ANSWER) - before // len(ANSWER)])
    answered = sum(total // len(ANSWER) for total in received.values())
    return {"messages": answered, "seconds": now - began}


def ping_pong(port: int, seconds: float) -> dict[str, float]:
    """One message on its way on each of 64 websockets, for ``seconds``: how many were answered, and how fast."""
    poller = select.epoll()
    connections = {}
    for connection in (upgraded(port) for _ in range(64)):
        connections[connection.fileno()] = connection
        poller.register(connection, select.EPOLLIN)
    sent = dict.fromkeys(connections, time.monotonic())
    took = []
    began = time.monotonic()
    for connection in connections.values():
        connection.sendall(QUESTION)
    while (now := time.monotonic()) - began < seconds:
        for fd, _ in poller.poll(1):
            if connections[fd].recv(65536) != ANSWER:
                raise ConnectionError("not one whole answer")
            now = time.monotonic()
            took.append(now - sent[fd])
            sent[fd] = now
            connections[fd].sendall(QUESTION)
    took.sort()
    return {"messages": len(took), "seconds": now - began, "p99_ms": took[len(took) * 99 // 100] * 1000}


def steady(port: int, seconds: float) -> dict[str, float]:
    """HTTP requests at a steady pace on one connection, each sent when its time has come: how late the answers were, counted from that time."""
    request = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    connection = connect(port)
    took = []
    began = time.monotonic()
    for number in range(int(seconds * PACE)):
        due = began + number / PACE
        time.sleep(max(0.0, due - time.monotonic()))
        connection.sendall(request)
        read_head(connection)
        took.append(time.monotonic() - due)
    took.sort()
    return {"messages": len(took), "p99_ms": took[len(took) * 99 // 100] * 1000, "max_ms": took[-1] * 1000}


def fan_out(port: int, seconds: float, batch: int = 1) -> dict[str, float]:
    """LISTENERS websockets and one that asks for news: how many messages arrived at all of them together.

    ``batch`` broadcasts are asked for at once, and as many again when half of them have arrived everywhere.
    """
    poller = select.epoll()
    connections = {}
    for connection in (upgrade(port, 1 + number % SOURCES) for number in range(LISTENERS)):
        connections[connection.fileno()] = connection
        poller.register(connection, select.EPOLLIN)
    asker = upgraded(port)
    connections[asker.fileno()] = asker
    poller.register(asker, select.EPOLLIN)
    received = asked = 0
    per_batch = batch * len(connections) * len(NEWS)
    began = time.monotonic()
    while (now := time.monotonic()) - began < seconds:
        while asked * per_batch - received <= per_batch // 2:
            asker.sendall(frame(b"#%d" % batch))
            asked += 1
        for fd, _ in poller.poll(1):
            piece = connections[fd].recv(65536)
            if not piece:
                raise ConnectionError("the server closed a connection")
            received += len(piece)
    return {"messages": received / len(NEWS), "seconds": now - began}


def websockets(port: int, count: int) -> None:
    """Open ``count`` websockets, say so, and hold them until stdin closes."""
    hold([upgrade(port, 1 + number % SOURCES) for number in range(count)])


def idle(port: int, count: int) -> None:
    """Open ``count`` keep-alive connections that make one request each, say so, and hold them until stdin closes."""
    request = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    connections = []
    for number in range(count):
        connection = connect(port, 1 + number % SOURCES)
        connection.sendall(request)
        read_head(connection)
        connections.append(connection)
    hold(connections)


def hold(connections: list[socket.socket]) -> None:
    print(json.dumps({"open": len(connections)}), flush=True)
    sys.stdin.read()
    print(json.dumps({"open": sum(map(is_open, connections))}), flush=True)


def is_open(connection: socket.socket) -> bool:
    """Whether the server has not closed it: rest of a response may be there, the end of the stream may not."""
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


if __name__ == "__main__":
    kind, port, number = sys.argv[1:]
    timed = {"echo": echo, "ping-pong": ping_pong, "steady": steady, "fan-out": fan_out, "burst": partial(fan_out, batch=BURST)}
    if kind in timed:
        print(json.dumps(timed[kind](int(port), float(number))))
    else:
        {"idle": idle, "websockets": websockets}[kind](int(port), int(number))
