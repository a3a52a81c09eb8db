"""Connections of ``request://``: who connects sends a request, and what the handler returns is the reply.

The replies that the server itself gives, and the seconds that a client has for the two parts of a request, are those of EasySwoole's unix process:

    the length has not come in time, or the client ended before      {"res":"fail","msg":"长度有误"}      close
    the body has not, or is shorter than the length says             {"res":"fail","msg":"长度不相等"}    close
    the handler has returned None                                    {"res":"ok","msg":"长度相同"}        close, or the next request

A request that is too long, a user who is not allowed and a handler that raises are answered in the same form, with a sentence. What a handler
raised is told by its type only; the log has the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from laraman.errors import ConfigError, LaramanError, LocalProtocolError, RemoteProtocolError
from laraman.net import peer
from laraman.net.connection import Connection
from laraman.protocols.framing import MAX_MESSAGE_SIZE
from laraman.protocols.request import HEADER, Request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from laraman.net.bind import Bind

OK = {"res": "ok", "msg": "长度相同"}
NO_LENGTH = {"res": "fail", "msg": "长度有误"}
SHORT_BODY = {"res": "fail", "msg": "长度不相等"}

#: What a connection waits for; nothing while a request is being handled.
_NOTHING, _LENGTH, _BODY, _NEXT = range(4)


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for the connections of one address.

    The seconds are for a length, for the body behind it, and for the next request; 0 is no limit for the first two, and for the third one request
    per connection. ``users`` are the ids of those who may connect; everybody when it is None.
    """

    timeout_request_header: float = 1.0
    timeout_request_body: float = 1.0
    timeout_keep_alive: float = 0.0
    users: frozenset[int] | None = None

    def seconds(self, awaited: int) -> float:
        return (0.0, self.timeout_request_header, self.timeout_request_body, self.timeout_keep_alive)[awaited]


def request_factory(worker: Any, handler: Any, bind: Bind) -> Callable[[], RequestConnection]:
    """What makes the connections that ``bind`` accepts. ``handler`` is a function, or an object with ``on_message``.

    The timeouts are those that this worker's declaration names: the ones of HTTP clients, who come from far away, are no default for a process that
    its neighbours ask. Raises ConfigError.
    """
    function = getattr(handler, "on_message", handler)
    if not callable(function):
        raise ConfigError(f"worker {worker.name!r}: its handler is no function and has no on_message, so nobody answers {bind.address}")
    users = peer.user_ids(worker.allow_users) if worker.allow_users else None
    if users is not None and not (bind.address.path and peer.known()):
        raise ConfigError(f"worker {worker.name!r}: allow_users is for unix sockets, on Linux, not for {bind.address}")
    names = ("timeout_request_header", "timeout_request_body", "timeout_keep_alive")
    terms = Terms(**{name: worker.options[name] for name in names if name in worker.options}, users=users)
    protocol = partial(Request, worker.max_message or MAX_MESSAGE_SIZE, once=not terms.timeout_keep_alive)
    answering = _Answering(handler, function)
    return lambda: RequestConnection(protocol(), answering, worker, terms)


class _Answering:
    """The handler of such connections: what the application's ``on_message`` returns is sent."""

    def __init__(self, handler: Any, function: Callable[[Connection, Any], Any]) -> None:
        self._handler = handler
        self._function = function

    def __getattr__(self, hook: str) -> Any:
        return getattr(self._handler, hook)

    def on_message(self, connection: RequestConnection, message: Any) -> Awaitable[None] | None:
        answer = self._function(connection, message)
        if inspect.isawaitable(answer) or connection.writing_paused:
            return self._answer(connection, answer)
        connection.answer(answer)
        return None

    async def _answer(self, connection: RequestConnection, answer: Any) -> None:
        answer = await answer if inspect.isawaitable(answer) else answer
        await connection.writable()
        connection.answer(answer)


class RequestConnection(Connection):
    """One client. ``credentials`` are those of its process, None where the system does not tell: on TCP."""

    __slots__ = ("_answered", "_awaited", "_leaving", "_terms", "_timer", "credentials")

    protocol: Request

    def __init__(self, protocol: Request, handler: Any, worker: Any, terms: Terms) -> None:
        super().__init__(protocol, handler, worker, write_timeout=worker.config.timeout_write, write_buffer=worker.write_buffer)
        self.credentials: peer.Credentials | None = None
        self._terms = terms
        self._answered = 0
        self._awaited = _NOTHING
        self._leaving = False  # after the reply to what is awaited
        self._timer: asyncio.TimerHandle | None = None

    # Who it is -------------------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self.credentials = peer.credentials(transport.get_extra_info("socket"))
        users = self._terms.users
        if users is not None and (self.credentials is None or self.credentials.uid not in users):
            self.handler = None  # it hears nothing of this
        super().connection_made(transport)
        self._watch()

    def _turn_away(self) -> None:
        """Once it has begun to send: an answer before that can be lost with the connection."""
        who = "who is unknown" if self.credentials is None else f"user {self.credentials.uid}"
        self._refuse(RemoteProtocolError(f"{who} is not allowed", close_code=1008))

    def __repr__(self) -> str:
        return super().__repr__() if self.credentials is None else f"<{type(self).__name__} {self.id} {self.credentials} {self.state}>"

    def row(self) -> dict[str, Any]:
        """An unnamed unix socket says nothing about its owner; the credentials do."""
        return super().row() if self.credentials is None else {**super().row(), "peer": str(self.credentials)}

    # Its time --------------------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self.handler is None:
            self._turn_away()
        else:
            super().data_received(data)
        self._watch()

    def _watch(self) -> None:
        """See what is waited for now, and for how long."""
        awaited = self._what_is_awaited()
        if awaited == self._awaited:
            return
        self._awaited = awaited
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds := self._terms.seconds(awaited):
            self._timer = asyncio.get_running_loop().call_later(seconds, self._late, seconds)

    def _what_is_awaited(self) -> int:
        if self.error is not None or self.messages_in > self._answered:
            return _NOTHING
        if not self.protocol.unread and self._answered:
            return _NEXT
        return _BODY if self.protocol.unread >= HEADER else _LENGTH

    def _late(self, seconds: float) -> None:
        self._timer = None
        if self.error is not None:
            return
        if self._awaited == _NEXT:
            self.close()
        else:
            self._refuse(RemoteProtocolError(f"the {'body' if self._awaited == _BODY else 'length'} did not come within {seconds:g} s"))
            self._watch()

    # Its end ---------------------------------------------------------------------------------------------------------------------

    def eof_received(self) -> bool | None:
        if not self.messages_in and not self.protocol.unread:
            self._tell(NO_LENGTH)
        return super().eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._watch()

    def shutdown(self) -> None:
        """What it has begun to send it may send, and it is answered: the time that it has for that is short."""
        if self._awaited in (_LENGTH, _BODY) and self._terms.seconds(self._awaited):
            self._leaving = True
        else:
            super().shutdown()

    def _refuse(self, exc: RemoteProtocolError) -> None:
        if exc.close_code in (1008, 1009):
            self._tell(_failure(str(exc)))
        else:
            self._tell(SHORT_BODY if self.protocol.unread >= HEADER else NO_LENGTH)
        super()._refuse(exc)

    def _failed(self, hook: str, exc: BaseException) -> None:
        if hook in ("on_connect", "on_message"):
            self._answered = self.messages_in
            self._tell(_failure(str(exc) if isinstance(exc, _UnsendableError) else f"the handler raised {type(exc).__name__}"))
        super()._failed(hook, exc)

    def _drop_pending(self) -> None:
        """Its handler was cancelled, so nobody will answer."""
        super()._drop_pending()
        self.close(1011)

    # Replies ---------------------------------------------------------------------------------------------------------------------

    def answer(self, answer: Any) -> None:
        """Reply to the request that has been handled, with what its handler returned. A client that is gone is no error: the work is done."""
        if self.error is None:
            try:
                self.send_nowait(OK if answer is None else answer)
            except LocalProtocolError as exc:
                raise _UnsendableError(str(exc)) from None
            self._answered += 1
            if not self._terms.timeout_keep_alive or (self._leaving and self.messages_in == self._answered):
                self.close()
            self._awaited = _NOTHING  # its time begins anew
            self._watch()

    def _tell(self, reply: dict[str, str]) -> None:
        """Reply with what is wrong, unless it would be taken for the reply to a request that is still being handled."""
        if self.error is None and self.messages_in == self._answered:
            with contextlib.suppress(LaramanError):  # it reads nothing
                self.send_nowait(reply)


class _UnsendableError(LocalProtocolError):
    """What a handler has returned is no reply. That may be told; what it raises by itself is its own."""


def _failure(message: str) -> dict[str, str]:
    return {"res": "fail", "msg": message}
