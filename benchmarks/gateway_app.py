"""The business side of the gateway scenarios: answers every message with itself, and ``#20`` with 20 broadcasts of 64 bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.apps import hello
from laraman import gateway

if TYPE_CHECKING:
    from laraman.gateway import Message

NEWS = b"n" * 64

app = hello


@gateway.on_message
async def answer(message: Message) -> None:
    if message.data.startswith(b"#"):
        for _ in range(int(message.data[1:])):
            await gateway.bus.broadcast(NEWS)
    else:
        await message.reply(message.data)
