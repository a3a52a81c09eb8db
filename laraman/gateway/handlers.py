"""Handlers: what an application does when a browser comes, says something, and goes.

    @gateway.on_message
    async def receive(message: gateway.Message) -> None:
        await message.reply(message.text)

A handler is a listener of the event type: ``gateway.on_message`` is ``laraman.on(gateway.Message)``. It may be plain or ``async``; events of
one client are handled one after another, those of different clients at the same time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from laraman.events import Event, on

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from laraman.gateway.results import Sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened(Event):
    """A browser's websocket is open. ``remote_addr`` is the peer's IP address; the two ``x_`` fields are what a proxy, or anybody, has claimed."""

    uniq_id: str
    raw_query: str = ""
    x_forwarded_for: str = ""
    x_real_ip: str = ""
    remote_addr: str = ""
    sub_protocols: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Message(Event):
    """A browser has sent ``data``. ``binary`` is whether as a binary message; gateways other than laraman's do not tell."""

    uniq_id: str
    customer_id: str = ""
    session: str = ""
    topics: tuple[str, ...] = ()
    data: bytes
    binary: bool = False
    #: The NetBus it came over; None: this process's.
    bus: Any = field(default=None, repr=False, compare=False)

    @property
    def text(self) -> str:
        """``data`` as text. Raises UnicodeDecodeError, a ValueError, for bytes that are none."""
        return self.data.decode()

    def json(self) -> Any:
        """What ``data`` says in JSON. Raises ValueError."""
        return json.loads(self.data)

    def reply(self, data: str | bytes) -> Awaitable[Sent]:
        """Send to this client: ``await message.reply(...)``."""
        bus = self.bus
        if bus is None:
            from laraman import gateway

            bus = gateway.bus
        sent: Awaitable[Sent] = bus.single_cast(self.uniq_id, data)
        return sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed(Event):
    """A browser is gone; this is what was known of it. Foreign gateways also tell this of some whose opening they never told."""

    uniq_id: str
    customer_id: str = ""
    session: str = ""
    topics: tuple[str, ...] = ()


def opened(body: Any) -> Opened:
    """From a ConnOpen of any dialect."""
    return Opened(
        uniq_id=body.uniq_id,
        raw_query=body.raw_query,
        x_forwarded_for=body.x_forwarded_for,
        x_real_ip=body.x_real_ip,
        remote_addr=body.remote_addr,
        sub_protocols=tuple(body.sub_protocols),
    )


def closed(body: Any) -> Closed:
    """From a ConnClose."""
    return Closed(uniq_id=body.uniq_id, customer_id=body.customer_id, session=body.session, topics=tuple(body.topics))


H = TypeVar("H", bound="Callable[..., Any]")

# A partial, because registering takes note of the module that called.
on_open: Callable[[H], H] = cast("Any", partial(on, Opened))
on_message: Callable[[H], H] = cast("Any", partial(on, Message))
on_close: Callable[[H], H] = cast("Any", partial(on, Closed))
