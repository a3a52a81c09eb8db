"""The application that both servers run. It imports nothing of either, and what it does depends only on the path: each path is one row's."""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
from urllib.parse import parse_qs

VARIABLE = contextvars.ContextVar("VARIABLE", default="unset")
RECORDS: dict[str, list] = {}


def record(scope, what) -> None:
    """For ``/records?<query string>`` to show. An empty reason is none: ASGI lets a server leave it out."""
    if isinstance(what, dict):
        what = {key: shown(value) for key, value in what.items() if (key, value) != ("reason", "")}
    RECORDS.setdefault(scope["query_string"].decode(), []).append(what)


def shown(value):
    """As JSON that keeps the types apart."""
    if isinstance(value, bytes):
        return {"bytes": value.decode("latin-1")}
    if isinstance(value, tuple):
        return {"tuple": [shown(item) for item in value]}
    if isinstance(value, list):
        return [shown(item) for item in value]
    if isinstance(value, dict):
        return {str(key): shown(item) for key, item in value.items()}
    return value if isinstance(value, str | int | float | bool | None) else type(value).__name__


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
        return None
    name = scope["path"].removeprefix(scope["root_path"]).strip("/").partition("/")[0].replace("-", "_")
    table = WEBSOCKETS if scope["type"] == "websocket" else PAGES
    return await table.get(name, show_scope if scope["type"] == "http" else websocket_scope)(scope, receive, send)


LIFESPAN: dict[str, object] = {}


async def lifespan(scope, receive, send):
    LIFESPAN.update(shown(scope))
    VARIABLE.set("lifespan")
    scope["state"]["shared"] = ["from startup"]
    scope["state"]["number"] = 1
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    if path := os.environ.get("CONTRACT_MARKS"):
        mark(path, "lifespan shutdown")
    await send({"type": "lifespan.shutdown.complete"})


def mark(path, word):
    with open(path, "a") as file:
        file.write(f"{word}\n")


async def respond(send, body=b"", status=200, headers=()):
    length = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *length]})
    await send({"type": "http.response.body", "body": body})


async def as_json(send, value):
    await respond(send, json.dumps(value).encode(), headers=[(b"content-type", b"application/json")])


async def show_scope(scope, receive, send):
    await as_json(send, shown(scope))


async def show_lifespan(scope, receive, send):
    await as_json(send, LIFESPAN)


async def records(scope, receive, send):
    await as_json(send, RECORDS.get(scope["query_string"].decode(), []))


async def pid(scope, receive, send):
    await as_json(send, os.getpid())


async def hello(scope, receive, send):
    await respond(send, b"hello", headers=[(b"x-own", b"1")])


async def state(scope, receive, send):
    """What earlier requests have left in it, and whether it is one's own."""
    seen = shown(scope["state"])
    scope["state"]["number"] += 1
    scope["state"]["shared"].append("more")
    await as_json(send, seen)


async def context(scope, receive, send):
    """What the variable is before this request sets it; after a pause, so that a pipelined one is there."""
    seen = VARIABLE.get()
    VARIABLE.set(scope["query_string"].decode())
    while (await receive()).get("more_body"):
        pass
    await respond(send, seen.encode())


async def echo(scope, receive, send):
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await respond(send, body)


async def ignore_body(scope, receive, send):
    await respond(send, b"ignored")


async def raises(scope, receive, send):
    raise ValueError("of the application")


async def raises_after_start(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"part", "more_body": True})
    raise ValueError("of the application")


async def nothing(scope, receive, send):
    pass


async def start_only(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def result(scope, receive, send):
    await respond(send, b"result")
    return "something"


async def wrong(scope, receive, send):
    """Messages out of order or ill-formed, by the query; answers with what was raised."""
    kind = scope["query_string"].decode()
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]}
    body = {"type": "http.response.body", "body": b"1234"}
    steps = {
        "body-first": [body],
        "start-twice": [start, start],
        "after-end": [start, body, body],
        "too-long": [start, {**body, "body": b"12345"}],
        "too-short": [start, {**body, "body": b"1"}],
        "name": [{**start, "headers": [(b"bad name", b"1")]}],
        "value": [{**start, "headers": [(b"x", b"a\r\nb")]}],
        "unknown": [start, {"type": "http.response.nonsense"}],
    }[kind]
    try:
        for step in steps:
            await send(step)
    except Exception as exc:
        record(scope, f"{type(exc).__name__}: {exc}")
        if kind in ("body-first", "name", "value"):
            await respond(send, b"caught")
        elif kind != "after-end":
            await send(body)
    else:
        record(scope, "nothing raised")


async def stream(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    for piece in (b"one", b"", b"two"):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body"})


async def status(scope, receive, send):
    code = int(scope["query_string"])
    await send({"type": "http.response.start", "status": code, "headers": []})
    await send({"type": "http.response.body", "body": b"" if code in (204, 304) else b"body"})


async def headers(scope, receive, send):
    """Those that the query asks for."""
    pairs = [(name.encode(), value.encode()) for name, values in parse_qs(scope["query_string"].decode()).items() for value in values]
    await respond(send, b"ok", headers=pairs)


async def after(scope, receive, send):
    """What ``receive`` says when the body is at its end and, from the response's end on."""
    first = await receive()
    waiting = asyncio.ensure_future(receive())
    await asyncio.sleep(0)
    record(scope, first)
    record(scope, "waits" if not waiting.done() else "does not wait")
    await respond(send, b"ok")
    record(scope, await waiting)
    record(scope, await receive())


async def leave(scope, receive, send):
    """The client leaves in the middle of the response."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"part", "more_body": True})
    await receive()
    record(scope, (await receive())["type"])
    try:
        await send({"type": "http.response.body", "body": b"more", "more_body": True})
        await send({"type": "http.response.body"})
        record(scope, "send is silent")
    except Exception as exc:
        record(scope, f"send raised {type(exc).__name__}")


async def wait(scope, receive, send):
    """A request that takes as long as its client waits for it, or the stop."""
    record(scope, "begun")
    try:
        await asyncio.sleep(float(scope["query_string"].partition(b"=")[2] or 60))
    except asyncio.CancelledError:
        record(scope, "cancelled")
        raise
    await respond(send, b"waited")


async def back_pressure(scope, receive, send):
    """How much of a body is here before it is asked for; the client sends a megabyte and the word when it cannot send more."""
    while scope["query_string"].decode() not in RECORDS:
        await asyncio.sleep(0.01)
    message = await receive()
    total = len(message["body"])
    while message.get("more_body"):
        message = await receive()
        total += len(message["body"])
    await as_json(send, total)


async def note(scope, receive, send):
    record(scope, "noted")
    await respond(send, b"noted")


async def websocket_scope(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": json.dumps(shown(scope))})
    await receive()


async def websocket_echo(scope, receive, send):
    """Echoes until the end, and records that."""
    record(scope, await receive())
    await send({"type": "websocket.accept", "subprotocol": (scope["subprotocols"] or [None])[0], "headers": [(b"x-accept", b"1")]})
    while (message := await receive())["type"] == "websocket.receive":
        kind = "text" if message.get("text") is not None else "bytes"
        await send({"type": "websocket.send", kind: message[kind]})
    record(scope, message)


async def websocket_keys(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    for _ in range(2):
        message = await receive()
        record(scope, sorted(key for key, value in message.items() if value is not None))
    await send({"type": "websocket.close"})


async def websocket_close(scope, receive, send):
    """Closes as the query says, then sends."""
    words = parse_qs(scope["query_string"].decode())
    await receive()
    await send({"type": "websocket.accept"})
    close = {"type": "websocket.close"}
    if "code" in words:
        close |= {"code": int(words["code"][0]), "reason": words.get("reason", [""])[0]}
    await send(close)
    try:
        await send({"type": "websocket.send", "text": "late"})
        record(scope, "nothing raised")
    except Exception as exc:
        record(scope, type(exc).__name__)
    record(scope, await receive())


async def websocket_late(scope, receive, send):
    """Sends when the client has closed."""
    await receive()
    await send({"type": "websocket.accept"})
    record(scope, await receive())
    try:
        await send({"type": "websocket.send", "text": "late"})
        record(scope, "nothing raised")
    except Exception as exc:
        record(scope, [type(exc).__name__, isinstance(exc, OSError)])


async def websocket_deny(scope, receive, send):
    record(scope, await receive())
    await send({"type": "websocket.close", "code": 4000})
    record(scope, await receive())


async def websocket_response(scope, receive, send):
    await receive()
    await send({"type": "websocket.http.response.start", "status": 401, "headers": [(b"x-own", b"1"), (b"content-length", b"4")]})
    await send({"type": "websocket.http.response.body", "body": b"no", "more_body": True})
    await send({"type": "websocket.http.response.body", "body": b"pe"})


async def websocket_return(scope, receive, send):
    pass


async def websocket_raises(scope, receive, send):
    raise ValueError("of the application")


async def websocket_raises_later(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    raise ValueError("of the application")


async def websocket_returns_later(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})


async def websocket_wrong(scope, receive, send):
    await receive()
    try:
        await send({"type": "websocket.send", "text": "too early"})
    except Exception as exc:
        record(scope, f"{type(exc).__name__}: {exc}")
    await send({"type": "websocket.accept"})
    try:
        await send({"type": "websocket.accept"})
    except Exception as exc:
        record(scope, f"{type(exc).__name__}: {exc}")
    await send({"type": "websocket.close"})


async def websocket_slow(scope, receive, send):
    """Reads nothing before it is told to."""
    await receive()
    await send({"type": "websocket.accept"})
    while scope["query_string"].decode() not in RECORDS:
        await asyncio.sleep(0.01)
    count = 0
    while (await receive())["type"] == "websocket.receive":
        count += 1
    record(scope, count)


PAGES = {
    function.__name__: function
    for function in (
        *(show_lifespan, records, pid, hello, state, context, echo, ignore_body, raises, raises_after_start, nothing, start_only, result, wrong),
        *(stream, status, headers, after, leave, wait, back_pressure, note),
    )
}
WEBSOCKETS = {
    function.__name__.removeprefix("websocket_"): function
    for function in (
        *(websocket_echo, websocket_keys, websocket_close, websocket_late, websocket_deny, websocket_response, websocket_return),
        *(websocket_raises, websocket_raises_later, websocket_returns_later, websocket_wrong, websocket_slow),
    )
}
