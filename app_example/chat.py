"""The chat: people with a nickname in rooms. Browsers talk to the gateway, the gateway to whichever HTTP worker is there.

Nothing is kept in a worker's memory: the gateway knows who is where. A nickname is a customer id, a room is a topic, and the session holds the
key that a page made for itself, so that it may come back under its nickname while the gateway has not noticed yet that it was gone.

A page sends JSON objects:

    {"type": "join", "nick": "ada", "room": "huila", "key": "..."}    come in, change the room, change the nickname, come back
    {"type": "leave"}                                                 out of the room, still here for private messages
    {"type": "say", "room": "huila", "text": "...", "id": "..."}      to everybody in the room
    {"type": "tell", "to": "bob", "text": "...", "id": "..."}         to bob alone
    {"type": "ping"}

and receives ``joined``, ``left``, ``message``, ``private``, ``members`` when somebody came or went, ``pong`` and ``error``. Who said something
receives it too: that is the receipt. What brings none is said again with the same id, and pages show an id once.
"""

from __future__ import annotations

import json
import logging
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from app_example.catalogue import COFFEES
from laraman import gateway
from laraman.errors import LaramanError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Verb = Callable[[gateway.Message, dict[str, Any]], Awaitable[None]]

logger = logging.getLogger(__name__)

#: Room and what is above its door. Whatever is not in here is not a room.
ROOMS = {"lobby": "The counter", **{coffee.symbol.lower(): coffee.name for coffee in COFFEES}}
#: Most characters of a nickname, of a text, of a key or an id; most names in one list of members.
NICK, TEXT, KEY, NAMES = 24, 2000, 64, 100


class Refused(Exception):
    """What a page is told in answer to its request; ``code`` says which field is to blame."""

    def __init__(self, text: str, code: str = "request") -> None:
        super().__init__(text)
        self.code = code


# What a page can ask --------------------------------------------------------------------------------------------------------------


@gateway.on_message
async def receive(message: gateway.Message) -> None:
    """One request of a page. Whatever it is, the answer is a message, and never an exception."""
    request: dict[str, Any] = {}
    try:
        request = _parse(message)
        await _verb(request)(message, request)
    except Refused as exc:
        await _answer(message, {"type": "error", "code": exc.code, "error": str(exc), "id": _id(request)})
    except (LaramanError, TimeoutError) as exc:
        logger.warning("A %s was not answered: %s", request.get("type", "request"), exc)


@gateway.on_close
async def leave(closed: gateway.Closed) -> None:
    """Tell those who stay."""
    try:
        for room in ROOMS.keys() & closed.topics:
            await announce(room)
    except (LaramanError, TimeoutError) as exc:
        logger.warning("Nobody was told that somebody left: %s", exc)


def _parse(message: gateway.Message) -> dict[str, Any]:
    try:
        request = message.json()
    except (ValueError, RecursionError):
        raise Refused("this is not JSON") from None
    if not isinstance(request, dict):
        raise Refused("this is not a JSON object")
    return request


def _verb(request: dict[str, Any]) -> Verb:
    kind = request.get("type")
    if not isinstance(kind, str) or kind not in VERBS:
        raise Refused("unknown type")
    return VERBS[kind]


async def _join(message: gateway.Message, request: dict[str, Any]) -> None:
    nick, room, key = nickname(request.get("nick")), known_room(request.get("room")), _key(request)
    if nick != message.customer_id:
        await _claim(nick, key)
    # All in one command, and the list of rooms as a whole: two of these behind each other cannot leave somebody in two rooms.
    await gateway.bus.conn_info_update(message.uniq_id, new_customer_id=nick, new_session=_session(key), new_topics=[room])
    await _answer(message, {"type": "joined", "nick": nick, "room": room, "title": ROOMS[room], **await _around(room)})
    for changed in {room, *message.topics}:
        await announce(changed)


async def _claim(nick: str, key: str) -> None:
    """Refuse a nickname that another page has. Two that come at the same instant are both let in: this is no login."""
    there = (await gateway.bus.conn_info_by_customer_id(nick, req_topic=False)).items.get(nick, ())
    if any(item.session != _session(key) for item in there):
        raise Refused("somebody has this nickname already", "nick")


async def _leave(message: gateway.Message, request: dict[str, Any]) -> None:
    await gateway.leave_group(message.uniq_id, message.topics)
    await _answer(message, {"type": "left"})
    for room in message.topics:
        await announce(room)


async def _say(message: gateway.Message, request: dict[str, Any]) -> None:
    room, text = known_room(request.get("room")), spoken(request.get("text"))
    if room not in message.topics:
        raise Refused("you are not in this room", "room")
    await say(room, message.customer_id, text, number=_id(request))


async def _tell(message: gateway.Message, request: dict[str, Any]) -> None:
    to, text = nickname(request.get("to")), spoken(request.get("text"))
    if not message.customer_id:
        raise Refused("join first", "nick")
    if not await gateway.is_uid_online(to):
        raise Refused(f"{to} is not here", "to")
    await tell(to, message.customer_id, text, number=_id(request), copy=message.customer_id)


async def _ping(message: gateway.Message, request: dict[str, Any]) -> None:
    """Shows the page that everything up to here is alive, and what it may have missed of who is where."""
    await _answer(message, {"type": "pong", **await _around(*message.topics[:1])})


#: What each type of request is handled by; other modules have theirs.
VERBS: dict[str, Verb] = {"join": _join, "leave": _leave, "say": _say, "tell": _tell, "ping": _ping}


# What anybody can do, an HTTP request as well ---------------------------------------------------------------------------------------


async def say(room: str, sender: str, text: str, *, number: str = "", via: str = "chat") -> None:
    await gateway.send_to_group(room, _letter("message", sender, text, number, via, room=room))


async def tell(to: str, sender: str, text: str, *, number: str = "", via: str = "chat", copy: str = "") -> None:
    """To every page of this nickname, and to those of ``copy``."""
    await gateway.send_to_uid([to, *filter(None, [copy])], _letter("private", sender, text, number, via, to=to))


async def announce(room: str) -> None:
    """Tell everybody in the room who is in it."""
    await gateway.send_to_group(room, json.dumps({"type": "members", "room": room, **await _members(room)}))


async def rooms() -> list[dict[str, Any]]:
    """Every room and how many people are in it."""
    counts = await gateway.get_all_group_uid_count()
    return [{"room": room, "title": title, "count": counts.get(room, 0)} for room, title in ROOMS.items()]


def known_room(name: Any) -> str:
    if not isinstance(name, str) or name not in ROOMS:
        raise Refused("there is no such room", "room")
    return name


def nickname(value: Any) -> str:
    """Printable, and without blanks around it: nothing that looks like nothing, or turns what stands beside it around."""
    if not isinstance(value, str) or not 0 < len(nick := value.strip()) <= NICK or not nick.isprintable():
        raise Refused(f"a nickname has 1 to {NICK} printable characters", "nick")
    return nick


def spoken(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(text := value.strip()) <= TEXT:
        raise Refused(f"a text has 1 to {TEXT} characters", "text")
    return text


# Parts ------------------------------------------------------------------------------------------------------------------------------


def _letter(kind: str, sender: str, text: str, number: str, via: str, **where: str) -> str:
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"type": kind, "id": number or uuid.uuid4().hex, "from": sender, "text": text, "at": at, "via": via, **where})


async def _answer(message: gateway.Message, answer: dict[str, Any]) -> None:
    await message.reply(json.dumps(answer))


async def _around(room: str = "") -> dict[str, Any]:
    return {"rooms": await rooms(), **(await _members(room) if room else {})}


async def _members(room: str) -> dict[str, Any]:
    members = sorted(await gateway.get_uid_list_by_group(room), key=str.casefold)
    return {"members": members[:NAMES], "count": len(members)}


def _key(request: dict[str, Any]) -> str:
    value = request.get("key")
    if not isinstance(value, str) or not 0 < len(value) <= KEY:
        raise Refused(f"a key has 1 to {KEY} characters", "key")
    return value


def _session(key: str) -> str:
    return json.dumps({"key": key})


def _id(request: dict[str, Any]) -> str:
    value = request.get("id")
    return value if isinstance(value, str) and len(value) <= KEY else ""
