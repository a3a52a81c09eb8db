"""Starlette's documentation: routes, lifespan state, requests, static files, websockets, background tasks; and sse-starlette's examples."""

import asyncio
import contextlib
import os

from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.endpoints import HTTPEndpoint, WebSocketEndpoint
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles


@contextlib.asynccontextmanager
async def lifespan(app):
    yield {"http_client": "a client"}
    note("lifespan over")


def note(text):
    with open("log.txt", "a") as log:
        log.write(f"{text}\n")


def homepage(request):
    return JSONResponse({"pid": os.getpid(), "state": request.state.http_client, "url": str(request.url_for("user", username="ada"))})


class User(HTTPEndpoint):
    async def get(self, request):
        return PlainTextResponse(f"Hello, {request.path_params['username']}")


async def upload(request):
    async with request.form() as form:
        contents = await form["upload_file"].read()
        return JSONResponse({"name": form["upload_file"].filename, "size": len(contents)})


async def stream_in(request):
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
    return JSONResponse({"total": total})


async def slow_numbers(minimum, maximum):
    yield "<html><body><ul>"
    for number in range(minimum, maximum + 1):
        yield f"<li>{number}</li>"
        await asyncio.sleep(0.01)
    yield "</ul></body></html>"


async def numbers(request):
    return StreamingResponse(slow_numbers(1, 10), media_type="text/html")


async def signup(request):
    data = await request.json()
    return JSONResponse({"status": "Signup successful"}, background=BackgroundTask(send_welcome_email, to_address=data["email"]))


async def send_welcome_email(to_address):
    await asyncio.sleep(0.2)
    note(f"welcome {to_address}")


class Echo(WebSocketEndpoint):
    encoding = "text"

    async def on_receive(self, websocket, data):
        await websocket.send_text(f"Message text was: {data}")

    async def on_disconnect(self, websocket, close_code):
        note(f"websocket left with {close_code}")


async def endless(request):
    async def events():
        try:
            number = 0
            while True:
                yield {"event": "tick", "id": str(number), "data": f"{os.getpid()}"}
                number += 1
                await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            note("endless cancelled")
            raise

    return EventSourceResponse(events())


async def idle(request):
    """Says nothing after its first event, so only the library can end it."""

    async def events():
        yield {"data": "hello"}
        await asyncio.sleep(3600)

    return EventSourceResponse(events(), ping=3600)


app = Starlette(
    lifespan=lifespan,
    middleware=[Middleware(GZipMiddleware, minimum_size=1000)],
    routes=[
        Route("/", homepage),
        Route("/user/{username}", User, name="user"),
        Route("/upload", upload, methods=["POST"]),
        Route("/stream-in", stream_in, methods=["POST"]),
        Route("/numbers", numbers),
        Route("/signup", signup, methods=["POST"]),
        Route("/source", lambda request: FileResponse(__file__)),
        WebSocketRoute("/ws", Echo),
        Route("/endless", endless),
        Route("/idle", idle),
        Mount("/static", StaticFiles(directory=".")),
    ],
)
