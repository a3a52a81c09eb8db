"""Connections whose requests are logged at their end: what ``--access-log-format`` asks for. Without it these classes are not used.

A request that is answered in the application's place is logged too. One whose client left before it got a head has status 499, as nginx writes
it, otherwise the status of the head that was sent. A request that could not be read has "-" for what is not known of it.
"""

from __future__ import annotations

import logging
import re
from random import Random
from time import perf_counter
from typing import TYPE_CHECKING, Any

from laraman.asgi.exchange import Exchange
from laraman.asgi.http import HttpConnection
from laraman.asgi.websocket import WebSocketConnection
from laraman.log.access import AccessFormat, Ended, arguments

if TYPE_CHECKING:
    from collections.abc import Iterable

    from laraman.asgi.app import Message, Scope
    from laraman.asgi.service import Http
    from laraman.process.worker import Worker

logger = logging.getLogger("uvicorn.access")

#: The client has left without an answer.
CLIENT_CLOSED_REQUEST = 499
_SWITCHING_PROTOCOLS = 101
#: Answers to a request that was read, but is not for the application now.
_UNWANTED = (413, 503)
#: Identifiers that are taken from a client; others could be anything.
_IDENTIFIER = re.compile(rb"[\w.:/+=@~-]{1,128}")


class AccessLog:
    """Writes the lines of one worker. The identifiers are its own generator's: an application that seeds ``random`` gets no two alike."""

    def __init__(self, access_format: str, worker: Worker) -> None:
        self._format = AccessFormat(access_format)
        self._worker = worker
        self._random = Random()

    def identify(self, scope: Scope) -> str:
        """The request's identifier, if the format has it: the X-Request-ID that came with it, or a new one.

        The application finds it in ``scope["state"]``, where frameworks show it as ``request.state.request_id``.
        """
        if not self._format.identifies:
            return ""
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        found = given.decode() if _IDENTIFIER.fullmatch(given) else f"{self._random.getrandbits(128):032x}"
        scope["state"]["request_id"] = found
        return found

    def write(
        self, scope: Scope, status: int, began: float, sizes: tuple[int, int], request_id: str = "", close_code: int | None = None
    ) -> None:
        """Log a request that ends now and has come at ``began``, in the time of ``perf_counter``. ``sizes`` are its body's and its response's."""
        record = arguments(scope, status)
        ended = Ended(scope, record, perf_counter() - began, *sizes, request_id, self._worker.slot, close_code)
        logger.info(self._format.line(ended), *record)


class LoggedExchange(Exchange):
    __slots__ = ("began", "body_at", "identifier")

    def __init__(self, connection: LoggedConnection, scope: Scope) -> None:
        super().__init__(connection, scope)
        self.began = perf_counter()
        self.body_at = 0  # where in the bytes of the connection the response's body begins; 0 until the head is sent
        self.identifier = connection.access.identify(scope)
        connection.begin(self)

    def _start(self, message: Message) -> None:
        super()._start(message)
        self._plain = False  # every head is to go through _end_of_head

    def _end_of_head(self) -> bytes:
        assert self.head is not None
        end = super()._end_of_head()
        self.body_at = self.connection.bytes_out + sum(map(len, self.head)) + len(end)
        return end

    @property
    def status(self) -> int:
        """Of what was sent."""
        return self._status if self.body_at else CLIENT_CLOSED_REQUEST

    @property
    def response_bytes(self) -> int:
        """Of the body so far, as it was sent."""
        return self.connection.bytes_out - self.body_at if self.body_at else 0


class LoggedWebSocket(WebSocketConnection):
    __slots__ = ("began", "identifier", "status")

    def __init__(self, service: Http, scope: Scope) -> None:
        super().__init__(service, scope)
        assert service.access is not None
        self.began = perf_counter()
        self.status = CLIENT_CLOSED_REQUEST
        self.identifier = service.access.identify(scope)

    def _accept(self, message: Message) -> None:
        super()._accept(message)
        self.status = _SWITCHING_PROTOCOLS

    def _deny_body(self, message: Message) -> None:
        super()._deny_body(message)
        assert self._denial is not None
        self.status = self._denial.status

    def _reject(self, status: int, body: bytes, fields: Iterable[tuple[bytes, bytes]] = ()) -> None:
        super()._reject(status, body, fields)
        self.status = status

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        assert self.service.access is not None
        assert self._disconnect is not None
        code = self._disconnect["code"] if self.status == _SWITCHING_PROTOCOLS else None
        self.service.access.write(self.scope, self.status, self.began, (self.bytes_in, self.bytes_out), self.identifier, code)


class LoggedConnection(HttpConnection):
    __slots__ = ("_unlogged", "access")

    exchange_type = LoggedExchange
    websocket_type = LoggedWebSocket

    def __init__(self, service: Http) -> None:
        super().__init__(service)
        assert service.access is not None
        self.access = service.access
        self._unlogged: LoggedExchange | None = None

    def begin(self, exchange: LoggedExchange) -> None:
        """This is the exchange from now on; its body, if it has one, is still to come."""
        self._unlogged = exchange
        self._received = 0

    def finished(self, keep_alive: bool) -> None:
        exchange = self._unlogged
        if exchange is not None:
            self._log(exchange, exchange.status, exchange.response_bytes)
        super().finished(keep_alive)

    def refuse(self, status: int) -> None:
        exchange, size = self._unlogged, len(self.service.error_body(status))
        if exchange is not None:
            self._log(exchange, status, size)
        else:
            scope = self.service.scope(self) if status in _UNWANTED else self._unknown()
            self.access.write(scope, status, perf_counter(), (0, size), self.access.identify(scope))
        super().refuse(status)

    def _unknown(self) -> dict[str, Any]:
        """The scope of a request that could not be read."""
        texts = dict.fromkeys(("method", "path", "http_version"), "-")
        return {**texts, "query_string": b"", "scheme": self.scheme, "client": self.client, "headers": [], "state": {}}

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        exchange = self._unlogged
        if exchange is not None:
            self._log(exchange, exchange.status, exchange.response_bytes)

    def _log(self, exchange: LoggedExchange, status: int, size: int) -> None:
        self._unlogged = None
        self.access.write(exchange.scope, status, exchange.began, (self._received, size), exchange.identifier)
