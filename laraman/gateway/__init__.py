"""Websocket gateways: what an application says to browsers, and hears from them.

    from laraman import gateway

    @gateway.on_message
    async def receive(message: gateway.Message) -> None:
        await gateway.send_to_all(message.text, exclude=message.uniq_id)

``bus`` is this process's NetBus, with a call for each command of a gateway; the words of ``laraman.gateway.words`` are shorter ones for everyday
use. Each name is imported when it is first asked for, because the master must stay free of asyncio.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from laraman.config.gateway import GatewayConfig as GatewayConfig
    from laraman.gateway.embedded import gateway_worker as gateway_worker
    from laraman.gateway.handlers import Closed as Closed
    from laraman.gateway.handlers import Message as Message
    from laraman.gateway.handlers import Opened as Opened
    from laraman.gateway.handlers import on_close as on_close
    from laraman.gateway.handlers import on_message as on_message
    from laraman.gateway.handlers import on_open as on_open
    from laraman.gateway.httpcallbacks import Admission as Admission
    from laraman.gateway.httpcallbacks import callbacks as callbacks
    from laraman.gateway.netbus import NetBus as NetBus
    from laraman.gateway.words import *  # noqa: F403

    bus: NetBus

_MODULES = {
    "GatewayConfig": "laraman.config.gateway",
    "gateway_worker": "laraman.gateway.embedded",
    "Closed": "laraman.gateway.handlers",
    "Message": "laraman.gateway.handlers",
    "Opened": "laraman.gateway.handlers",
    "on_close": "laraman.gateway.handlers",
    "on_message": "laraman.gateway.handlers",
    "on_open": "laraman.gateway.handlers",
    "Admission": "laraman.gateway.httpcallbacks",
    "callbacks": "laraman.gateway.httpcallbacks",
    "NetBus": "laraman.gateway.netbus",
}


def __getattr__(name: str) -> Any:
    if name == "bus":
        from laraman.gateway.netbus import NetBus

        return globals().setdefault("bus", NetBus())
    if name in _MODULES:
        return globals().setdefault(name, getattr(import_module(_MODULES[name]), name))
    if not name.startswith("_") and name in (words := import_module("laraman.gateway.words")).__all__:
        return globals().setdefault(name, getattr(words, name))
    raise AttributeError(f"module 'laraman.gateway' has no attribute {name!r}")


def __dir__() -> list[str]:
    words: list[str] = import_module("laraman.gateway.words").__all__
    return sorted({*globals(), *_MODULES, *words, "bus"})
