"""Websocket fan-out across processes: what one client sends, those of all workers get.

    @app.websocket("/chat/{room}")
    async def chat(websocket: WebSocket, room: str):
        await websocket.accept()
        await channel.fan_out(websocket, f"chat.{room}")
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anyio

from laraman.errors import Busy

if TYPE_CHECKING:
    from laraman.channel.interface import Channel

#: Seconds in which a websocket that cannot be sent to is received to be gone.
GONE_SECONDS = 5.0


async def fan_out(channel: Channel, websocket: Any, topic: str, *, publish: bool = True, queue: int = 100, overflow: str = "drop_oldest") -> None:
    """Send the messages of ``topic`` to an accepted websocket, until it is closed: text and bytes as they are, anything else as JSON.

    What it sends is published there, with ``publish``; ``topic`` may be a pattern without. Up to ``queue`` messages wait while it does not read,
    then see ``overflow`` in ``Channel.subscribe``; "close" ends its connection with 1013. ``websocket`` is Starlette's, or has its ``receive`` and
    ``send``.
    """
    failure: Exception | None = None
    async with channel.subscribe(topic, queue=queue, overflow=overflow) as subscription, anyio.create_task_group() as group:

        async def send() -> None:
            nonlocal failure
            try:
                try:
                    async for message in subscription:
                        data = message.data
                        kind = "bytes" if isinstance(data, bytes) else "text"
                        sent = data if isinstance(data, (str, bytes)) else json.dumps(data, default=str)
                        await websocket.send({"type": "websocket.send", kind: sent})
                except Busy:
                    await websocket.send({"type": "websocket.close", "code": 1013, "reason": "too slow"})
                group.cancel_scope.cancel()
            except Exception as exc:  # mostly it is gone, which is about to be received
                failure = exc
                group.cancel_scope.deadline = anyio.current_time() + GONE_SECONDS

        group.start_soon(send)
        try:
            while (received := await websocket.receive())["type"] != "websocket.disconnect":
                if publish:
                    data = received.get("text")
                    await channel.publish(topic, received["bytes"] if data is None else data)
            failure = None
        except Exception as exc:  # to be raised by itself, not in a group
            failure = exc
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
