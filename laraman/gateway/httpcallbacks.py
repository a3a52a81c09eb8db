"""netsvr's HTTP callbacks: a gateway may ask over HTTP whether a client is let in, and tell when one is gone.

    async def admit(opened: gateway.Opened) -> bool | gateway.Admission: ...

    app.mount("/netsvr", gateway.callbacks(onopen=admit))      # OnOpenCallbackApi: http://.../netsvr/onopen

They work without any registered worker, and come in addition to the events. Nothing in them proves that a gateway sent them (they carry neither
signature nor secret): mount them where only gateways get to.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from laraman.gateway.handlers import Closed, Opened, closed, opened
from laraman.protocols.netsvr import MAX_FRAME, Command, Dialect, event_class
from laraman.protocols.netsvr import netsvr_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
    OnOpen = Callable[[Opened], "bool | Admission | Awaitable[bool | Admission]"]
    OnClose = Callable[[Closed], Any]

logger = logging.getLogger("uvicorn.error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """The answer to an opening. What is given is set for the client, ``data`` is sent to it; when it is refused only ``data`` counts."""

    allow: bool = True
    session: str = ""
    customer_id: str = ""
    topics: tuple[str, ...] = ()
    data: str | bytes = b""


def callbacks(
    *, onopen: OnOpen | None = None, onclose: OnClose | None = None, dialect: str = Dialect.D8, max_size: int = MAX_FRAME
) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """An ASGI application for the paths ``.../onopen`` and ``.../onclose``. The handlers may be plain or ``async``.

    ``onopen`` returns an Admission, or True or False; what it raises refuses the client too. ``dialect`` is the generation of the gateways,
    "d8", "d5" or "d3"; a body of more than ``max_size`` bytes is refused.
    """
    spoken = Dialect(dialect)
    endpoints: dict[str, _Endpoint] = {}
    if onopen is not None:
        endpoints["onopen"] = _Endpoint(event_class(Command.CONN_OPEN, spoken), opened, onopen, _admission, max_size)
    if onclose is not None:
        endpoints["onclose"] = _Endpoint(pb.ConnClose, closed, onclose, lambda _: b"", max_size)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"the callbacks of a gateway come over http, not {scope['type']}")
        endpoint = endpoints.get(scope["path"].rstrip("/").rpartition("/")[2].lower())
        status, body = (404, b"") if endpoint is None else (405, b"") if scope["method"] != "POST" else await endpoint.answer(receive)
        kind = b"application/x-protobuf" if status == 200 else b"text/plain"
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return application


class _Endpoint:
    """One callback: what its body is, the event that makes, who handles it, and what of the result goes back."""

    def __init__(self, kind: Any, event: Callable[[Any], Any], handler: Callable[[Any], Any], reply: Callable[[Any], bytes], max_size: int) -> None:
        self._kind = kind
        self._event = event
        self._handler = handler
        self._reply = reply
        self._max_size = max_size

    async def answer(self, receive: Receive) -> tuple[int, bytes]:
        """Status and body of the response."""
        data = await self._body(receive)
        if data is None:
            return 413, b"the body is too large, or incomplete"
        try:
            event = self._event(self._kind.FromString(data))
        except DecodeError:
            logger.warning("A gateway's callback was refused: %d bytes that are no %s", len(data), self._kind.__name__)
            return 400, b"not a protobuf body"
        try:
            result = self._handler(event)
            return 200, self._reply(await result if isawaitable(result) else result)
        except Exception:
            logger.exception("Handler %s for a gateway's callback raised", getattr(self._handler, "__qualname__", self._handler))
            return 500, b"Internal Server Error"

    async def _body(self, receive: Receive) -> bytes | None:
        """None: it is too large, or the gateway has hung up in the middle of it."""
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._max_size:
                return None
        return bytes(body)


def _admission(result: Any) -> bytes:
    if isinstance(result, bool):
        result = Admission(allow=result)
    if not isinstance(result, Admission):
        raise TypeError(f"onopen returned {result!r}, neither a bool nor an Admission")
    data = result.data.encode() if isinstance(result.data, str) else result.data
    return pb.ConnOpenResp(
        allow=result.allow, new_session=result.session, new_customer_id=result.customer_id, new_topics=result.topics, data=data
    ).SerializeToString()
