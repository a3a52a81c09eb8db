"""A small Starlette application. Nothing here knows which server runs it, except that prices come from ``app_example.feed``, and that what is
said goes through ``app_example.chat``; pictures are made in task workers, by ``app_example.labels``.

laraman start                 # in the repository; pyproject.toml names the application and its listeners
"""

from __future__ import annotations

import json
import os
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates

from app_example import chat, labels
from app_example.catalogue import BY_SYMBOL, COFFEES
from app_example.feed import UnknownSymbol, feed
from app_example.streams import clock
from laraman import gateway
from laraman.errors import Busy, LaramanError, LinkDown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.websockets import WebSocket

HERE = Path(__file__).parent
#: Most bytes of a request that says something in the chat.
LETTER = 16 * 1024
TOO_LARGE = f"a picture has {labels.MOST // 1024 // 1024} MiB at most"

templates = Jinja2Templates(HERE / "templates")


class State(TypedDict):
    """Made by the lifespan; every request gets its own shallow copy as ``request.state``."""

    started: float


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[State]:
    yield {"started": time.monotonic()}


async def home(request: Request) -> Response:
    return templates.TemplateResponse(request, "home.html", {"coffees": COFFEES})


async def label(request: Request) -> Response:
    return templates.TemplateResponse(request, "label.html", {"upload": None, **where(request)})


async def upload_label(request: Request) -> Response:
    """The form's file, of which a task worker makes pictures. Whoever has sent ``watch`` with it is told meanwhile how far that is."""
    if int(request.headers.get("content-length", 0)) > 2 * labels.MOST:
        raise HTTPException(413, TOO_LARGE)
    async with request.form(max_files=1, max_fields=5) as form:
        file, watcher = form.get("file"), form.get("watch", "")
        if not isinstance(file, UploadFile) or not isinstance(watcher, str):
            raise HTTPException(422, "choose a file")
        data = await file.read(labels.MOST + 1)
        if len(data) > labels.MOST:
            raise HTTPException(413, TOO_LARGE)
        try:
            upload = {"name": file.filename, "size": len(data), "pictures": await labels.make(data, watcher)}
        except labels.NoPicture as exc:
            raise HTTPException(422, str(exc)) from None
    if "application/json" in request.headers.get("accept", ""):
        return JSONResponse(upload)
    return templates.TemplateResponse(request, "label.html", {"upload": upload, **where(request)})


async def picture(request: Request) -> Response:
    path = labels.picture_file(request.path_params["label"], request.path_params["name"])
    if path is None or not path.exists():
        raise HTTPException(404, "no such picture")
    return FileResponse(path, media_type="image/webp", headers={"x-content-type-options": "nosniff"})


async def echo_page(request: Request) -> Response:
    return templates.TemplateResponse(request, "echo.html")


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


async def events(request: Request) -> Response:
    return StreamingResponse(clock(), media_type="text/event-stream", headers={"cache-control": "no-store", "x-accel-buffering": "no"})


async def coffees(request: Request) -> Response:
    return JSONResponse([coffee._asdict() for coffee in COFFEES])


async def coffee(request: Request) -> Response:
    found = BY_SYMBOL.get(request.path_params["symbol"])
    if found is None:
        raise HTTPException(404, "no such coffee")
    return JSONResponse(found._asdict())


async def health(request: Request) -> Response:
    return JSONResponse({"pid": os.getpid(), "uptime": round(time.monotonic() - request.state.started, 1), "ticker": feed.link.state})


async def price(request: Request) -> Response:
    """Asks the ticker over the Link. The HTTP client gets an answer whatever state the ticker is in."""
    symbol = request.path_params["symbol"]
    try:
        value = await feed.price(symbol)
    except UnknownSymbol:
        raise HTTPException(404, "no such coffee") from None
    except (LinkDown, Busy) as exc:
        raise HTTPException(503, str(exc), headers={"retry-after": "1"}) from None
    except TimeoutError:
        raise HTTPException(504, "the ticker did not answer in time") from None
    return JSONResponse({"symbol": symbol, "price": value, "pid": os.getpid()})


async def chat_page(request: Request) -> Response:
    return templates.TemplateResponse(request, "chat.html", {"rooms": chat.ROOMS, **where(request)})


def where(request: Request) -> dict[str, str]:
    """Browsers reach the embedded gateway under the page's host name. Where they do not, CHAT_URL says how: ``wss://chat.example/``."""
    return {"url": os.environ.get("CHAT_URL", ""), "port": request.app.state.gateway_port}


async def rooms(request: Request) -> Response:
    return JSONResponse(await chat.rooms())


async def push_to_room(request: Request) -> Response:
    """A plain HTTP request reaches the browsers of everybody in the room, whichever worker or gateway holds them."""
    sender, text = await letter(request)
    try:
        room = chat.known_room(request.path_params["room"])
    except chat.Refused as exc:
        raise HTTPException(404, str(exc)) from None
    await chat.say(room, sender, text, via="http")
    return JSONResponse({"room": room, "people": await gateway.get_uid_count_by_group(room)}, 202)


async def push_to_user(request: Request) -> Response:
    sender, text = await letter(request)
    nick = request.path_params["nick"]
    pages = len(await gateway.get_client_id_by_uid(nick))
    if not pages:
        raise HTTPException(404, "nobody of that name is here")
    await chat.tell(nick, sender, text, via="http")
    return JSONResponse({"nick": nick, "pages": pages}, 202)


async def letter(request: Request) -> tuple[str, str]:
    """Sender and text of ``{"from": "the kitchen", "text": "..."}``. Only as JSON: no form of another site may post in a visitor's name."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "send application/json")
    data = b""
    async for piece in request.stream():
        data += piece
        if len(data) > LETTER:
            raise HTTPException(413, f"{LETTER} bytes at most")
    try:
        body = json.loads(data)
        return chat.nickname(body.get("from", "the house")), chat.spoken(body.get("text"))
    except chat.Refused as exc:
        raise HTTPException(422, str(exc)) from None
    except (ValueError, RecursionError, AttributeError):
        raise HTTPException(422, "this is not a JSON object") from None


async def unavailable(request: Request, exc: Exception) -> Response:
    """No gateway can be reached at the moment, or it takes nothing more."""
    return PlainTextResponse(str(exc) or "the gateway did not answer in time", 503, headers={"retry-after": "1"})


app = Starlette(
    lifespan=lifespan,
    exception_handlers={LaramanError: unavailable, TimeoutError: unavailable},
    routes=[
        Route("/", home),
        Route("/label", label),
        Route("/label", upload_label, methods=["POST"]),
        Route("/label/{label}/{name}", picture),
        Route("/echo", echo_page),
        WebSocketRoute("/ws", echo),
        Route("/events", events),
        Route("/api/coffees", coffees),
        Route("/api/coffees/{symbol}", coffee),
        Route("/api/health", health),
        Route("/ticker/price/{symbol}", price),
        Route("/chat", chat_page),
        Route("/api/rooms", rooms),
        Route("/api/rooms/{room}/messages", push_to_room, methods=["POST"]),
        Route("/api/users/{nick}/messages", push_to_user, methods=["POST"]),
        Mount("/static", StaticFiles(directory=HERE / "static")),
    ],
)
app.state.gateway_port = ""  # app_example.listeners knows it
