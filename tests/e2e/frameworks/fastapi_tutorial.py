"""FastAPI's tutorial: lifespan, a chat with a ConnectionManager, files, background tasks, streams, its own server-sent events."""

import asyncio
import time
from collections.abc import AsyncIterable, Iterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import BackgroundTasks, FastAPI, File, Form, Header, Request, UploadFile, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse, StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel


def note(text: str):
    with open("log.txt", mode="a") as log:
        log.write(f"{text}\n")


def fake_answer_to_everything_ml_model(x: float) -> float:
    return x * 42


@asynccontextmanager
async def lifespan(app: FastAPI):
    yield {"ml_models": {"answer_to_everything": fake_answer_to_everything_ml_model}}
    note("models released")


app = FastAPI(lifespan=lifespan)


class ConnectionManager:
    def __init__(self):
        self.active_connections: list[WebSocket] = []

    async def connect(self, websocket: WebSocket):
        await websocket.accept()
        self.active_connections.append(websocket)

    def disconnect(self, websocket: WebSocket):
        self.active_connections.remove(websocket)

    async def send_personal_message(self, message: str, websocket: WebSocket):
        await websocket.send_text(message)

    async def broadcast(self, message: str):
        for connection in self.active_connections:
            await connection.send_text(message)


manager = ConnectionManager()


@app.websocket("/ws/{client_id}")
async def websocket_endpoint(websocket: WebSocket, client_id: int):
    await manager.connect(websocket)
    try:
        while True:
            data = await websocket.receive_text()
            await manager.send_personal_message(f"You wrote: {data}", websocket)
            await manager.broadcast(f"Client #{client_id} says: {data}")
    except WebSocketDisconnect:
        manager.disconnect(websocket)
        await manager.broadcast(f"Client #{client_id} left the chat")


@app.get("/predict")
async def predict(x: float, request: Request):
    return {"result": request.state.ml_models["answer_to_everything"](x)}


@app.post("/files/")
async def create_file(file: Annotated[bytes, File()], fileb: Annotated[UploadFile, File()], token: Annotated[str, Form()]):
    return {"file_size": len(file), "token": token, "fileb_content_type": fileb.content_type, "fileb_size": len(await fileb.read())}


@app.post("/uploadfiles/")
def create_upload_files(files: list[UploadFile]):
    return {"filenames": [file.filename for file in files], "sizes": [len(file.file.read()) for file in files]}


@app.get("/uploadform")
async def main():
    return HTMLResponse('<form action="/uploadfiles/" enctype="multipart/form-data" method="post"></form>')


def write_notification(email: str, message=""):
    time.sleep(0.3)
    note(f"notification for {email}: {message}")


@app.post("/send-notification/{email}")
async def send_notification(email: str, background_tasks: BackgroundTasks):
    background_tasks.add_task(write_notification, email, message="some notification")
    return {"message": "Notification sent in the background"}


def fake_video_streamer() -> Iterator[bytes]:
    for _ in range(10):
        yield b"some fake video bytes"


@app.get("/video")
async def video():
    return StreamingResponse(fake_video_streamer())


class Item(BaseModel):
    name: str
    price: float


items = [Item(name="Plumbus", price=32.99), Item(name="Portal Gun", price=999.99)]


@app.get("/items/stream", response_class=EventSourceResponse)
async def sse_items(last_event_id: Annotated[int, Header()] = -1) -> AsyncIterable[ServerSentEvent]:
    for number, item in enumerate(items):
        if number > last_event_id:
            yield ServerSentEvent(data=item, event="item_update", id=str(number))


@app.get("/items/forever", response_class=EventSourceResponse)
async def sse_forever() -> AsyncIterable[Item]:
    try:
        while True:
            yield items[0]
            await asyncio.sleep(0.05)
    finally:
        note("stream over")


@app.get("/broken")
async def broken():
    raise RuntimeError("a bug")
