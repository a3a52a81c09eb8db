"""Connections with Redis that are kept: commands go out as they come, many at a time, and the answers come in their order.

redis-py's own client asks on one connection of a pool at a time, and cannot say whether a command that failed had been sent. Here that is known: what
has not been sent waits until Redis is back, and what was sent is sent again only where that does no harm.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoPermissionError, NoScriptError, ReadOnlyError, RedisError, ResponseError

from laraman.channel.interface import ANSWER_SECONDS
from laraman.errors import Busy, LinkDown
from laraman.net.link import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable

    from laraman.net.store import Outage

logger = logging.getLogger("uvicorn.error")

#: Seconds without a word after which Redis is asked for one, and how many times in a row that is before the connection is given up.
BEAT_SECONDS, BEATS = 4.0, 3
#: Commands that wait for their answers before those that do not ask for one have to wait, and before all are refused.
MANY, TOO_MANY = 1000, 100_000
#: Different refusals that are said of one connection.
MANY_REFUSALS = 20
_BACKOFF = Backoff(base=0.1, cap=2.0)


def _words(error: BaseException | None) -> str:
    """Of a refusal, without the place in a script."""
    return str(error).partition(" script: ")[0]


class _Lost(Exception):
    """The connection ended before the answer came."""


class Script:
    """What Redis does as one step. It is sent once, and called by its hash from then on."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.hash = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class Wire:
    """One kept connection. ``outage`` is told of its comings and goings, ``up`` and ``lost`` are called."""

    def __init__(
        self,
        pool: Any,
        outage: Outage,
        *,
        tells: bool = False,
        up: Callable[[], Any] = lambda: None,
        lost: Callable[[], Any] = lambda: None,
    ) -> None:
        self._pool = pool
        self._outage = outage
        self._tells = tells
        self._told_up = up
        self._told_lost = lost
        #: By which Redis knows the present connection.
        self.id = 0
        self._connection: Any = None  # redis has few types
        self._up = asyncio.Event()
        self._room = asyncio.Event()
        self._pending: deque[asyncio.Future[Any]] = deque()
        self._outgoing: list[bytes] = []
        self._wanted = asyncio.Event()
        self._heard_any = False
        self._why = ""  # it is not up
        self._refusals: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_up(self) -> bool:
        return self._up.is_set()

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._keep(), name=self._outage.server)

    async def stop(self, seconds: float) -> None:
        """Send what waits for so long at most, and disconnect."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.is_up and self._pending:
                    await asyncio.wait({self._pending[-1]})
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def ready(self, timeout: float = ANSWER_SECONDS) -> None:
        """Return when it is up. Raises LinkDown."""
        try:
            async with asyncio.timeout(timeout):
                await self._up.wait()
        except TimeoutError:
            raise LinkDown(self._silence(timeout)) from None

    def _silence(self, seconds: float) -> str:
        if self.is_up:
            return f"{self._outage.server} did not answer in {seconds:g} s"
        return f"{self._outage.server} was away for {seconds:g} s{self._why and f': {self._why}'}"

    # Asking ----------------------------------------------------------------------------------------------------------------------

    async def ask(self, *command: Any, timeout: float = ANSWER_SECONDS, again: bool = False) -> Any:
        """Its answer. ``again``: it may be sent a second time when the answer was lost.

        Raises LinkDown when there was none in ``timeout`` seconds, when it was lost, and when Redis refuses; Busy when Redis has no memory left.
        """
        if len(self._pending) >= TOO_MANY:
            raise Busy(f"{TOO_MANY} questions wait for {self._outage.server}")
        try:
            async with asyncio.timeout(timeout):
                while True:
                    await self._up.wait()
                    try:
                        return await self._send(command)
                    except _Lost:
                        if not again:
                            text = f"went away before it answered: whether {command[0]} was done is not known"
                            raise LinkDown(f"{self._outage.server} {text}") from None
        except TimeoutError:
            raise LinkDown(self._silence(timeout)) from None
        except NoScriptError:
            raise
        except ResponseError as exc:
            if "command not allowed when used memory" in str(exc):  # the code is not always there, nor at the beginning
                raise Busy(f"{self._outage.server} has no memory left: {_words(exc)}") from None
            raise LinkDown(f"{self._outage.server} refuses {command[0]}: {_words(exc)}") from exc

    async def run(self, script: Script, keys: tuple[str, ...], *arguments: Any, timeout: float = ANSWER_SECONDS, again: bool = False) -> Any:
        try:
            return await self.ask("EVALSHA", script.hash, len(keys), *keys, *arguments, timeout=timeout, again=again)
        except NoScriptError:
            return await self.ask("EVAL", script.text, len(keys), *keys, *arguments, timeout=timeout, again=again)

    async def tell(self, *command: Any, timeout: float = ANSWER_SECONDS) -> None:
        """Send it when there is room, and wait for no answer."""
        if not self.is_up or len(self._pending) >= MANY:
            await self.ready(timeout)
            try:
                async with asyncio.timeout(timeout):
                    while len(self._pending) >= MANY:
                        self._room.clear()
                        await self._room.wait()
            except TimeoutError:
                raise LinkDown(f"{self._outage.server} did not keep up for {timeout:g} s") from None
        self.say(*command)

    def say(self, *command: Any) -> None:
        """The same here and now, and not at all when Redis is away."""
        if self.is_up:
            self._send(command).add_done_callback(self._unasked)

    def _send(self, command: tuple[Any, ...]) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._outgoing += self._packed(self._connection, command)  # before it waits for an answer: what cannot be packed has none
        self._pending.append(future)
        self._wanted.set()
        return future

    def _packed(self, connection: Any, command: tuple[Any, ...]) -> list[bytes]:
        packed: list[bytes] = connection.pack_command(*command)
        return packed

    def _unasked(self, future: asyncio.Future[Any]) -> None:
        if not future.cancelled() and isinstance(future.exception(), ResponseError):
            self.say_refusal(_words(future.exception()))

    def say_refusal(self, text: str) -> None:
        """Of what nobody waits for. Each is said once until the connection is made anew, and not too many."""
        if text not in self._refusals and len(self._refusals) < MANY_REFUSALS:
            self._refusals.add(text)
            logger.warning("%s refuses: %s", self._outage.server, text)

    # Life ------------------------------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        failures = 0
        while True:
            connection: Any = self._pool.make_connection()
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    await connection.connect()
                    await self._greet(connection)
                failures = 0
                await self._stay(connection)
            except Exception as exc:  # a server that is none has many: it is kept whatever there is
                self._why = str(exc)
                if self._tells:
                    self._outage.begins(exc)
                elif isinstance(exc, NoPermissionError):  # for this connection, not for all
                    self.say_refusal(self._why)
            finally:
                self._forget()
                with contextlib.suppress(RedisError, OSError):
                    await connection.disconnect(nowait=True)
            await asyncio.sleep(_BACKOFF.delay(failures))
            failures += 1

    async def _greet(self, connection: Any) -> None:
        """Raises RedisError when it is none that can be used now. One that is loading what it has kept refuses PING."""
        for command in ("PING", "HELLO"):
            await connection.send_command(command, check_health=False)
            answer = await connection.read_response()
        about = dict(zip(answer[::2], answer[1::2], strict=True))
        if about[b"mode"] != b"standalone":
            raise RedisError(f"it is a {about[b'mode'].decode()}, which the channel does not support")
        if about[b"role"] == b"replica":
            raise RedisError("it is a replica, which cannot be written to")
        self.id = int(about[b"id"])

    async def _stay(self, connection: Any) -> None:
        self._connection = connection
        loop = asyncio.get_running_loop()
        self._why = ""
        self._refusals.clear()
        self._up.set()
        if self._tells:
            self._outage.ends()
        self._told_up()
        tasks = [loop.create_task(each) for each in (self._read(connection), self._write(connection), self._beat())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        raise next(each for each in results if isinstance(each, Exception))

    async def _read(self, connection: Any) -> None:
        while True:
            try:
                answer = await connection.read_response(disconnect_on_error=False)
            except ReadOnlyError:
                raise  # it has become a replica: who writes now is found by dialling anew
            except ResponseError as exc:
                answer = exc
            self._heard_any = True
            self._heard(answer)

    def _heard(self, answer: Any) -> None:
        self._answered(self._pending.popleft(), answer)

    def _answered(self, future: asyncio.Future[Any], answer: Any) -> None:
        if len(self._pending) < MANY:
            self._room.set()
        if not future.done():
            future.set_exception(answer) if isinstance(answer, Exception) else future.set_result(answer)

    async def _write(self, connection: Any) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            data, self._outgoing = self._outgoing, []
            await connection.send_packed_command(data, check_health=False)

    async def _beat(self) -> None:
        """Beats are counted, not seconds: of a loop that stood still for a minute no more than one is over before it reads."""
        quiet = 0
        while quiet < BEATS:
            self._heard_any = False
            await asyncio.sleep(BEAT_SECONDS)
            quiet = 0 if self._heard_any else quiet + 1
            if quiet:
                self.say("PING")
        raise _Lost(f"silent for {quiet * BEAT_SECONDS:g} s")

    def _forget(self) -> None:
        was_up = self.is_up
        self._up.clear()
        self._connection = None
        self._outgoing.clear()
        while self._pending:
            future = self._pending.popleft()
            if not future.done():
                future.set_exception(_Lost())
                future.exception()  # not everybody waits for an answer
        self._room.set()
        if was_up:
            self._told_lost()


class News(Wire):
    """The connection on which Redis tells of what was published, ``told(name, channel, data)``: ``name`` is what was subscribed to."""

    def __init__(self, pool: Any, outage: Outage, told: Callable[[bytes, bytes, bytes], Any], **options: Any) -> None:
        super().__init__(pool, outage, **options)
        self._told = told
        self.names: dict[str, str] = {}  # and the command that subscribes to each

    async def subscribe(self, name: str, *, pattern: bool = False) -> None:
        """Until ``unsubscribe``, whatever becomes of the connection; active when this returns."""
        self.names[name] = command = "PSUBSCRIBE" if pattern else "SUBSCRIBE"
        try:
            await self.ask(command, name, again=True)
        except BaseException:
            self.unsubscribe(name)
            raise

    def unsubscribe(self, name: str) -> None:
        command = self.names.pop(name, None)
        if command is not None:
            self.say(command.replace("SUB", "UNSUB"), name)

    def _packed(self, connection: Any, command: tuple[Any, ...]) -> list[bytes]:
        """A subscription has as many answers as names; the one to PING comes behind them."""
        pong = [] if command[0] == "PING" else super()._packed(connection, ("PING",))
        return super()._packed(connection, command) + pong

    async def _greet(self, connection: Any) -> None:
        await super()._greet(connection)
        for name, command in tuple(self.names.items()):
            await connection.send_command(command, name, check_health=False)
        await connection.send_command("PING", check_health=False)
        if self.names:
            while (answer := await connection.read_response())[0] != b"pong":
                self._heard(answer)
        else:
            await connection.read_response()

    def _heard(self, answer: Any) -> None:
        kind = answer[0] if isinstance(answer, list) else answer
        if kind == b"message":
            self._told(answer[1], answer[1], answer[2])
        elif kind == b"pmessage":
            self._told(answer[1], answer[2], answer[3])
        elif isinstance(kind, Exception):  # the answer to PING comes too, and finds nobody waiting
            self._answered(self._pending[0], kind)
        elif kind in (b"pong", b"PONG"):
            self._answered(self._pending.popleft(), kind)
