"""Applications as people write them run unchanged."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import mcp
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.conftest import DEADLINE, clean_environment, wait_until
from tests.e2e.frameworks import source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Server

SHOP = """
import asyncio
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import BackgroundTasks, Depends, FastAPI, Header, HTTPException, Request, UploadFile, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse


@asynccontextmanager
async def lifespan(app):
    yield {"stock": {"tea": 3}}
    Path("closed.txt").write_text("closed")


app = FastAPI(lifespan=lifespan)


async def user(x_user: str = Header()):
    yield x_user.title()


@app.get("/stock/{name}")
async def stock(request: Request, name: str, user: str = Depends(user)):
    if name not in request.state.stock:
        raise HTTPException(404, f"no {name}")
    return {"user": user, "count": request.state.stock[name]}


@app.get("/sync")
def sync():
    return {"thread": True}


@app.post("/orders", status_code=201)
async def order(order: dict, background: BackgroundTasks):
    background.add_task(write, order["name"])
    return order


async def write(name):
    await asyncio.sleep(0.5)
    Path("order.txt").write_text(name)


@app.post("/upload")
async def upload(file: UploadFile):
    return {"name": file.filename, "size": len(await file.read())}


@app.get("/lines")
async def lines():
    async def make():
        for number in range(3):
            yield f"line {number}\\n"
    return StreamingResponse(make(), media_type="text/plain")


@app.get("/broken")
async def broken():
    raise RuntimeError("a bug of the shop")


@app.websocket("/chat")
async def chat(websocket: WebSocket):
    await websocket.accept(subprotocol="chat")
    try:
        while True:
            await websocket.send_json({"echo": await websocket.receive_text()})
    except WebSocketDisconnect as exc:
        Path("left.txt").write_text(str(exc.code))
"""


def test_a_fastapi_app(server: Callable[..., Server]) -> None:
    running = server(files={"main.py": SHOP})  # found by its name
    with httpx.Client(base_url=running.url, timeout=DEADLINE) as client:
        answer = client.get("/stock/tea", headers={"X-User": "ada"})
        assert (answer.status_code, answer.json()) == (200, {"user": "Ada", "count": 3})
        assert client.get("/stock/gold", headers={"X-User": "ada"}).status_code == 404
        assert client.get("/stock/tea").status_code == 422
        assert client.get("/sync").json() == {"thread": True}
        assert client.get("/docs").status_code == 200
        order = client.post("/orders", json={"name": "tea"})
        assert (order.status_code, order.json()) == (201, {"name": "tea"})
        size = 3_000_000
        assert client.post("/upload", files={"file": ("big.bin", b"x" * size)}).json() == {"name": "big.bin", "size": size}
        assert client.get("/lines").text == "line 0\nline 1\nline 2\n"
        assert client.get("/broken").status_code == 500
        wait_until(lambda: "RuntimeError: a bug of the shop" in running.output)
        assert client.get("/sync").status_code == 200
        wait_until(lambda: written(running, "order.txt") == "tea", what="the background task")
    with connect(f"ws://127.0.0.1:{running.port}/chat", subprotocols=["chat"]) as socket:  # type: ignore[list-item]
        assert socket.subprotocol == "chat"
        socket.send("hi")
        assert socket.recv(DEADLINE) == '{"echo":"hi"}'
    wait_until(lambda: written(running, "left.txt") == "1000", what="the disconnect")
    with pytest.raises(InvalidStatus) as refused:
        connect(f"ws://127.0.0.1:{running.port}/nowhere")
    assert refused.value.response.status_code == 403
    assert running.stop() == 0
    assert written(running, "closed.txt") == "closed"
    assert running.output.count("Traceback") == 1


def written(server: Server, name: str) -> str:
    path = server.directory / name
    return path.read_text() if path.exists() else ""


def test_a_background_task_is_finished_before_a_stop(server: Callable[..., Server]) -> None:
    running = server(files={"main.py": SHOP})
    assert httpx.post(f"{running.url}/orders", json={"name": "tea"}, timeout=DEADLINE).status_code == 201
    assert running.stop() == 0
    assert written(running, "order.txt") == "tea"


@pytest.mark.fork
def test_the_word_uvicorn_swapped_for_laraman(tmp_path: Path, free_port: int) -> None:
    (tmp_path / "main.py").write_text(SHOP)
    command = [sys.executable, "-m", "laraman", "main:app", "--host", "127.0.0.1", "--port", str(free_port), "--log-level", "warning"]
    process = subprocess.Popen(command, cwd=tmp_path, env=clean_environment({}), stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{free_port}/sync"), what="an answer")
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0
    assert errors == ""


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=DEADLINE).status_code == 200
    except httpx.ConnectError:
        return False


# Tutorials -----------------------------------------------------------------------------------------------------------------------

#: Seconds for a stop that would be waited for, if what is open did not end by itself: more than any test has.
FOR_EVER = str(int(2 * DEADLINE))


def log(server: Server) -> str:
    return written(server, "log.txt")


def events(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """Server-sent events, by the fields they have; comments are not among them."""
    event: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if line and name:
            event[name] = value.removeprefix(" ")
        elif not line and event:
            yield event
            event = {}


def rest(pieces: Iterator[bytes]) -> list[bytes]:
    """What still comes of a stream that ends now: complete, or cut off where the application has not ended it itself."""
    left = []
    with contextlib.suppress(httpx.RemoteProtocolError):
        left.extend(pieces)
    return left


def test_fastapis_tutorial(server: Callable[..., Server]) -> None:
    running = server("main:app", "--timeout-graceful-shutdown", "2", files={"main.py": source("fastapi_tutorial.py")})
    chat = f"ws://127.0.0.1:{running.port}/ws"
    with connect(f"{chat}/1") as one, connect(f"{chat}/2") as two:
        two.send("hi")
        assert [two.recv(DEADLINE), two.recv(DEADLINE), one.recv(DEADLINE)] == ["You wrote: hi", "Client #2 says: hi", "Client #2 says: hi"]
        two.close()
        assert one.recv(DEADLINE) == "Client #2 left the chat"
    with httpx.Client(base_url=running.url, timeout=DEADLINE) as client:
        assert client.get("/predict", params={"x": 2}).json() == {"result": 84.0}
        sent = {"file": b"abc", "fileb": ("b.txt", b"x" * 100_000, "text/plain")}
        answer = client.post("/files/", files=sent, data={"token": "secret"}).json()
        assert answer == {"file_size": 3, "token": "secret", "fileb_content_type": "text/plain", "fileb_size": 100_000}
        many = [("files", (f"{number}.bin", io.BytesIO(b"x" * 2_000_000))) for number in range(3)]
        assert client.post("/uploadfiles/", files=many).json() == {"filenames": ["0.bin", "1.bin", "2.bin"], "sizes": [2_000_000] * 3}
        assert client.get("/uploadform").headers["content-type"] == "text/html; charset=utf-8"
        assert client.post("/send-notification/a@b.c").json() == {"message": "Notification sent in the background"}
        assert client.get("/video").content == b"some fake video bytes" * 10
        with client.stream("GET", "/items/stream") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            told = list(events(response.iter_lines()))
        assert [(event["event"], event["id"], json.loads(event["data"])["name"]) for event in told] == [
            ("item_update", "0", "Plumbus"),
            ("item_update", "1", "Portal Gun"),
        ]
        with client.stream("GET", "/items/stream", headers={"Last-Event-ID": "0"}) as response:
            assert [event["id"] for event in events(response.iter_lines())] == ["1"]
        assert client.get("/broken").status_code == 500
        with client.stream("GET", "/items/forever") as response:
            next(events(response.iter_lines()))
        wait_until(lambda: log(running).count("stream over") == 1, what="the end of a stream whose client has left")
        wait_until(lambda: "notification for a@b.c: some notification" in log(running))
        with client.stream("GET", "/items/forever") as response:
            received = events(response.iter_lines())
            next(received)
            assert running.stop() == 0
    assert log(running).splitlines()[-2:] == ["stream over", "models released"]
    assert running.output.count("Traceback") == 1  # the bug's


def test_starlettes_documentation_and_sse_starlettes_streams(server: Callable[..., Server]) -> None:
    """The streams end because the library sees that the server stops: the server itself would wait for them."""
    running = server("main:app", "--timeout-graceful-shutdown", FOR_EVER, files={"main.py": source("starlette_tutorial.py")})
    with httpx.Client(base_url=running.url, timeout=DEADLINE) as client:
        home = client.get("/").json()
        assert (home["state"], home["url"]) == ("a client", f"{running.url}/user/ada")
        assert client.get("/user/ada").text == "Hello, ada"
        assert client.get("/nowhere").status_code == 404
        assert client.post("/user/ada").status_code == 405
        assert client.post("/upload", files={"upload_file": ("a.txt", b"x" * 70_000)}).json() == {"name": "a.txt", "size": 70_000}
        assert client.post("/stream-in", content=(b"x" * 1000 for _ in range(100))).json() == {"total": 100_000}
        assert client.get("/numbers").text.count("<li>") == 10
        assert client.post("/signup", json={"email": "a@b.c"}).json() == {"status": "Signup successful"}
        assert client.get("/source").text == client.get("/static/main.py").text == source("starlette_tutorial.py")
        assert client.get("/static/main.py", headers={"Range": "bytes=0-2"}).content == b'"""'
        wait_until(lambda: "welcome a@b.c" in log(running))
        with connect(f"ws://127.0.0.1:{running.port}/ws") as socket:
            socket.send("hi")
            assert socket.recv(DEADLINE) == "Message text was: hi"
        wait_until(lambda: "websocket left with 1000" in log(running))
        with client.stream("GET", "/endless") as response:
            assert next(events(response.iter_lines())) == {"event": "tick", "id": "0", "data": str(home["pid"])}
        wait_until(lambda: log(running).count("endless cancelled") == 1, what="the end of a stream whose client has left")
        with client.stream("GET", "/endless") as ticking, client.stream("GET", "/idle") as idle:
            pieces = idle.iter_raw()
            assert next(pieces) == b"data: hello\r\n\r\n"
            assert running.cli("reload").returncode == 0
            assert rest(ticking.iter_raw())
            assert rest(pieces) == []
        wait_until(lambda: log(running).count("lifespan over") == 1, what="the end of the worker before")
        assert client.get("/").json()["pid"] != home["pid"]
        with client.stream("GET", "/endless") as ticking, client.stream("GET", "/idle") as idle:
            next(pieces := idle.iter_raw())
            assert running.cli("stop").returncode == 0
            assert rest(ticking.iter_raw())
            assert rest(pieces) == []
    assert running.process.wait(DEADLINE) == 0
    assert log(running).count("lifespan over") == 2
    assert "Traceback" not in running.output


def test_an_mcp_server_and_a_session_that_is_open_when_it_stops(server: Callable[..., Server]) -> None:
    running = server("main:app", "--timeout-graceful-shutdown", FOR_EVER, files={"main.py": source("mcp_server.py")})
    anyio.run(use_mcp, running)
    assert running.process.returncode == 0
    assert "Traceback" not in running.output


async def use_mcp(running: Server) -> None:
    progress: list[float] = []

    async def on_progress(done: float, total: float | None, message: str | None) -> None:
        progress.append(done)

    async with mcp.Client(f"{running.url}/mcp") as client:
        assert (await client.call_tool("add", {"a": 1, "b": 2})).structured_content == {"result": 3}
    async with mcp.Client(f"{running.url}/mcp", mode="legacy") as client:  # the one with sessions, and a stream for what the server says
        assert sorted(tool.name for tool in (await client.list_tools()).tools) == ["add", "long_task"]
        assert (await client.call_tool("add", {"a": 20, "b": 22})).structured_content == {"result": 42}
        done = await client.call_tool("long_task", {"steps": 5}, progress_callback=on_progress)
        assert (done.structured_content, progress) == ({"result": "done"}, [1, 2, 3, 4, 5])
        assert "Hello, Ada!" in str(await client.read_resource("greeting://Ada"))
        await asyncio.to_thread(wait_until, lambda: '"GET /mcp HTTP/1.1" 200' in running.output, what="the stream")
        assert await asyncio.to_thread(running.stop) == 0


def test_flasks_quickstart(server: Callable[..., Server]) -> None:
    arguments = ("main:app", "--interface", "wsgi", "--root-path", "/shop", "--timeout-graceful-shutdown", "2", "--guard", "strict")
    cleaned = '[tool.laraman.sandbox]\nflush = ["main:of_the_thread"]\n'
    running = server(*arguments, files={"main.py": source("flask_tutorial.py"), "pyproject.toml": cleaned})
    with httpx.Client(base_url=running.url, timeout=DEADLINE) as client:
        assert client.get("/").text == "Index Page"
        post = client.get("/post/7", headers={"X-Forwarded-Proto": "https", "X_Forwarded_Proto": "http"}).json()
        assert post == {"post": 7, "url": f"https://127.0.0.1:{running.port}/shop/", "path": "/post/7", "root": "/shop", "scheme": "https"}
        moved = client.post("/login", data={"username": "ada"})
        assert (moved.status_code, moved.headers["location"]) == (302, "/shop/who")
        client.cookies.set("session", moved.cookies["session"])
        assert client.get("/who").text == "ada"
        assert client.post("/upload", files={"the_file": ("big.bin", b"x" * 3_000_000)}).json() == {"name": "big.bin", "size": 3_000_000}
        assert client.post("/length", content=(b"x" * 1000 for _ in range(100))).text == "100000"
        table = client.get("/large.csv")
        assert (table.text.count("\n"), table.headers["transfer-encoding"]) == (1000, "chunked")
        head = client.head("/")
        assert (head.content, head.headers["content-length"]) == (b"", "10")
        assert client.get("/static/nothing.css").status_code == 404
        assert (client.get("/nowhere").text, client.get("/refused").status_code) == ("This page does not exist", 401)
        assert client.get("/error").status_code == 500
        wait_until(lambda: "RuntimeError: a bug of the shop" in running.output)
        with client.stream("GET", "/forever") as response:
            assert next(response.iter_text()) == "tick\n"
        wait_until(lambda: log(running) == "stream over\n", what="the end of a stream whose client has left")
        assert {client.get(f"/remembered/{word}").text for word in "abcdefghijklm"} == {"nothing"}  # more than there are threads
        with pytest.raises(InvalidStatus) as refused:
            connect(f"ws://127.0.0.1:{running.port}/")
        assert b"The browser (or proxy) sent" in (refused.value.response.body or b"")  # Werkzeug's answer
        with client.stream("GET", "/forever") as response:
            next(response.iter_text())
            assert running.stop() == 0
    assert log(running) == "stream over\n" * 2
    assert running.output.count("Traceback") == 1


def use_django(running: Server, *, streams: bool) -> None:
    with httpx.Client(base_url=running.url, timeout=DEADLINE) as client:
        assert [client.get("/").json()["visits"] for _ in range(3)] == [1, 2, 3]  # in a cookie
        home = client.get("/").json()
        assert (home["thread"], home["url"]) == (True, f"{running.url}/later/x/")
        assert client.get("/later/caf\u00e9/?a=1").json() == {"word": "caf\u00e9", "query": {"a": "1"}}
        assert client.get("/later/x", follow_redirects=True).json()["word"] == "x"
        sent: dict[str, Any] = {"files": {"file": ("big.bin", b"x" * 3_000_000)}, "data": {"title": "t"}}
        assert client.post("/upload/", **sent).json() == {"name": "big.bin", "size": 3_000_000, "title": "t"}
        assert client.get("/database/").json() == {"answer": 42}
        assert client.get("/stream/").text == "line 0\nline 1\nline 2\n"
        assert (client.get("/nowhere/").status_code, client.get("/broken/").status_code) == (404, 500)
        if streams:
            with client.stream("GET", "/forever/") as response:
                next(response.iter_text())
            wait_until(lambda: log(running) == "stream over\n", what="the end of a stream whose client has left")
            with client.stream("GET", "/forever/") as response:
                next(response.iter_text())
                assert running.stop() == 0
            assert log(running) == "stream over\n" * 2
    assert running.stop() == 0


def test_djangos_two_entrances(server: Callable[..., Server]) -> None:
    files = {"main.py": source("django_tutorial.py")}
    running = server("main:application", "--timeout-graceful-shutdown", "2", files=files)
    assert "ASGI 'lifespan' protocol appears unsupported." in running.output
    use_django(running, streams=True)
    use_django(server("main:get_wsgi_application", "--factory", "--interface", "wsgi", "--preload", files=files), streams=False)
