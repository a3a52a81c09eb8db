"""Applications as people write them run unchanged."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.conftest import DEADLINE, clean_environment, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
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
