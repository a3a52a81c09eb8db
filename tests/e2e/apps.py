"""The applications under test, as the source files of a user."""

from __future__ import annotations

#: Answers with its pid; says in marks.txt what happens to it.
APP = '''
import asyncio, os, time

def mark(word):
    descriptor = os.open("marks.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, f"{os.getpid()} {word}\\n".encode())
    os.close(descriptor)

def spin_for_ever():
    while True:
        pass

async def lifespan(receive, send):
    while True:
        message = await receive()
        kind = message["type"].rpartition(".")[2]
        mark(kind)
        await send({"type": f"lifespan.{kind}.complete"})
        if kind == "shutdown":
            return

async def answer(send, text):
    body = f"{os.getpid()} {text}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})

async def events(receive, send):
    """Server-sent events until the client is gone."""
    gone = asyncio.ensure_future(receive())
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    while not gone.done():
        await send({"type": "http.response.body", "body": b"data: tick\\n\\n", "more_body": True})
        await asyncio.wait({gone}, timeout=0.05)
        if (await gone if gone.done() else {"type": "http.request"})["type"] == "http.request":
            gone = asyncio.ensure_future(receive()) if gone.done() else gone
    mark("stream-over")
    await send({"type": "http.response.body", "body": b"data: bye\\n\\n"})

async def echo(receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})
    mark(f"websocket-over {message.get('code')}")

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "websocket":
        await echo(receive, send)
    elif scope["path"] == "/events":
        await events(receive, send)
    elif scope["path"] == "/upload":
        size, more = 0, True
        mark("upload")
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size, more = size + len(message["body"]), message["more_body"]
        await answer(send, f"{size} bytes")
    elif scope["path"] == "/slow":
        mark("slow")
        await asyncio.sleep(float(scope["query_string"]))
        await answer(send, "slow")
    elif scope["path"] == "/spin":
        mark("spin")
        spin_for_ever()
    elif scope["path"] == "/nap":
        mark("nap")
        time.sleep(60)
    else:
        await answer(send, "hello")
'''

#: Listeners that write each lifecycle event down, beside what the application writes there.
HOOKS = """
import os
import laraman

def mark(word):
    descriptor = os.open("marks.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, f"{os.getpid()} {word}\\n".encode())
    os.close(descriptor)

for kind in (laraman.WorkerStarting, laraman.WorkerStarted, laraman.WorkerStopping, laraman.RequestReceived,
             laraman.RequestHandled, laraman.RequestTerminated, laraman.WorkerError):
    laraman.on(kind, lambda event: mark(type(event).__name__))

for kind in (laraman.ServerStarting, laraman.ServerStarted, laraman.ServerStopping, laraman.WorkerExited):
    laraman.on(kind, lambda event: mark(type(event).__name__))
"""

FILES = {"app.py": APP, "hooks.py": HOOKS}
