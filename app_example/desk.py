"""The desk: where programs that are not in this server ask it for something, over a unix socket. PHP pages, cron jobs and shell scripts do.

    {"op": "say", "room": "huila", "text": "..."}    said to everybody in that room of the chat; answered with how many that are
    {"op": "rooms"}                                  how many are where
    anything else                                    is printed, and answered with {"res":"ok","msg":"长度相同"}

It runs beside the HTTP workers, under the same master (``app_example.listeners``), and talks to the same gateway. Its clients are
``app_example.say`` and ``app_example/php/say.php``; how to write one is in docs/request-process.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from app_example import chat
from laraman import gateway

if TYPE_CHECKING:
    from laraman.net.connection import Connection


async def handle(connection: Connection, request: Any) -> Any:
    """What it returns is the reply; None is the one that says that the request has come."""
    try:
        match request:
            case {"op": "say", "room": room, "text": text, **others}:
                room, text, sender = chat.known_room(room), chat.spoken(text), chat.nickname(others.get("from", "the house"))
                await chat.say(room, sender, text, via="desk")
                return {"res": "ok", "people": await gateway.get_uid_count_by_group(room)}
            case {"op": "rooms"}:
                return {"res": "ok", "rooms": await chat.rooms()}
    except chat.Refused as exc:
        return {"res": "fail", "msg": str(exc)}
    print(f"The desk was told {request!r}", flush=True)
    return None
