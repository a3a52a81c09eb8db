"""A connection with NATS that is kept: what is subscribed to is subscribed to again, what is asked is asked again where that does no harm.

nats-py's own return to a server keeps what it has not sent and sends it later, whether somebody waits for it or not; and does not tell those who
wait that their answers are lost. So it dials once, and the rest is here.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from nats.errors import Error, MaxPayloadError, SlowConsumerError
from nats.js.errors import APIError, NoStreamResponseError, ServiceUnavailableError

from laraman.channel.interface import ANSWER_SECONDS
from laraman.errors import LinkDown, LocalProtocolError
from laraman.net.link import Backoff
from laraman.net.nats_dial import NatsClient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.js.client import JetStreamContext

    from laraman.net.store import Outage

    Question = Callable[[Client, JetStreamContext], Awaitable["T"]]

T = TypeVar("T")

#: Seconds between two signs of life, of which two may be missing, and between two questions to a JetStream that is not ready.
BEAT_SECONDS, READY_SECONDS = 5, 0.1
#: Messages and bytes of one subscription that wait to be handled; more are dropped, and counted.
WAITING, WAITING_BYTES = 65536, 64 * 1024 * 1024
_BACKOFF = Backoff(base=0.1, cap=2.0)


class Subscribed:
    """A subject, whose messages are given to ``told``; with a ``group`` each is given to one of the group's. ``missed``: there was no room."""

    def __init__(self, subject: str, told: Callable[[Msg], Any], group: str = "", missed: Callable[[], Any] = lambda: None) -> None:
        self.subject = subject
        self.told = told
        self.group = group
        self.missed = missed
        self.client: Client | None = None
        self.live: Any = None

    async def begin(self, client: Client) -> None:
        if self.client is not client:
            self.client = client
            limits = WAITING, WAITING_BYTES
            self.live = await client.subscribe(self.subject, self.group, self._tell, pending_msgs_limit=limits[0], pending_bytes_limit=limits[1])

    async def _tell(self, message: Msg) -> None:
        self.told(message)


class Line:
    """The connection. ``up`` and ``lost`` are called when it comes and goes."""

    def __init__(self, url: str, outage: Outage, up: Callable[[], Any], lost: Callable[[], Any]) -> None:
        self._url = url
        self.outage = outage
        self._told_up = up
        self._told_lost = lost
        self._client: Client | None = None
        self._stream: JetStreamContext | None = None
        self._up = asyncio.Event()
        self._over: asyncio.Future[None] | None = None
        self._why = ""  # it is not up
        self._subscribed: set[Subscribed] = set()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_up(self) -> bool:
        return self._up.is_set()

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._keep(), name=self.outage.server)

    async def stop(self, seconds: float) -> None:
        """Send what waits for so long at most, and disconnect."""
        if self._client is not None and self.is_up:
            with contextlib.suppress(Error, OSError, TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._client.flush()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    # Asking ----------------------------------------------------------------------------------------------------------------------

    async def ready(self, timeout: float = ANSWER_SECONDS) -> Client:
        """The connection, when it is up. Raises LinkDown."""
        try:
            async with asyncio.timeout(timeout):
                await self._up.wait()
        except TimeoutError:
            raise LinkDown(self._silence(timeout)) from None
        assert self._client is not None
        return self._client

    def _silence(self, seconds: float) -> str:
        if self.is_up:
            return f"{self.outage.server} did not answer in {seconds:g} s"
        return f"{self.outage.server} was away for {seconds:g} s{self._why and f': {self._why}'}"

    async def publish(self, subject: str, data: bytes, reply: str = "") -> None:
        client = await self.ready()
        try:
            await client.publish(subject, data, reply=reply)
        except MaxPayloadError:
            raise self._too_large(client, data) from None
        except (Error, OSError) as exc:
            raise LinkDown(f"{self.outage.server} went away: {str(exc) or type(exc).__name__}") from exc

    def check_size(self, data: bytes) -> None:
        """Raises LocalProtocolError when it is more than the server takes."""
        if self._client is not None and len(data) > self._client.max_payload:
            raise self._too_large(self._client, data)

    def _too_large(self, client: Client, data: bytes) -> LocalProtocolError:
        return LocalProtocolError(f"{len(data)} bytes are more than the {client.max_payload} that {self.outage.server} takes (its max_payload)")

    async def ask(self, what: str, question: Question[T], *, timeout: float = ANSWER_SECONDS, again: bool) -> T:
        """Its answer. ``again``: it may be asked a second time when the answer was lost.

        Raises LinkDown when there was none in ``timeout`` seconds, when it was lost, and when the server refuses.
        """
        why = ""
        try:
            async with asyncio.timeout(timeout):
                while True:
                    await self._up.wait()
                    assert self._client is not None
                    assert self._stream is not None
                    try:
                        return await self._while_up(question(self._client, self._stream))
                    except MaxPayloadError:
                        raise LocalProtocolError(f"{what}: more than the {self._client.max_payload} bytes that {self.outage.server} takes") from None
                    except (ServiceUnavailableError, NoStreamResponseError) as exc:  # it was not done: JetStream is not there, or not yet again
                        why = f", it has no JetStream: {exc}"
                    except APIError as exc:
                        raise LinkDown(f"{self.outage.server} refuses {what}: {exc.description or exc}") from exc
                    except (Error, OSError) as exc:
                        why = f": {exc}" if str(exc) else ""
                        if not again:
                            raise LinkDown(f"{self.outage.server} went away before it answered{why}: whether {what} was done is not known") from exc
                    await asyncio.sleep(READY_SECONDS)
        except TimeoutError:
            raise LinkDown(f"{self._silence(timeout)}{why} ({what})") from None

    async def _while_up(self, question: Awaitable[T]) -> T:
        assert self._over is not None
        over = self._over
        asking = asyncio.ensure_future(question)
        either: set[asyncio.Future[Any]] = {asking, over}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise Error("the connection was lost")
            return asking.result()
        finally:
            asking.add_done_callback(lambda asked: asked.cancelled() or asked.exception())
            asking.cancel()

    async def subscribe(self, subscribed: Subscribed) -> None:
        """Until ``unsubscribe``, whatever becomes of the connection; active when this returns."""
        self._subscribed.add(subscribed)

        async def begin(client: Client, _: JetStreamContext) -> None:
            await subscribed.begin(client)
            await asyncio.shield(asyncio.ensure_future(client.flush()))  # nats-py loses its connection when a question of its own is cancelled

        try:
            await self.ask(f"the subscription to {subscribed.subject}", begin, again=True)
        except BaseException:
            self._subscribed.discard(subscribed)
            raise

    async def unsubscribe(self, subscribed: Subscribed) -> None:
        self._subscribed.discard(subscribed)
        if subscribed.client is self._client and subscribed.live is not None:
            with contextlib.suppress(Error, OSError):
                await subscribed.live.unsubscribe()

    async def drain(self, subscribed: Subscribed) -> None:
        """The same, but what has been sent to it is told before this returns."""
        self._subscribed.discard(subscribed)
        if subscribed.client is self._client and subscribed.live is not None:
            with contextlib.suppress(Error, OSError):
                await subscribed.live.drain()

    def later(self, subscribed: Subscribed) -> None:
        """From when it is up, before anything else."""
        self._subscribed.add(subscribed)

    # Life ------------------------------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        failures = 0
        while True:
            client = NatsClient(self._url)
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    await self._connect(client)
                failures = 0
                self._why = ""
                self._up.set()
                self.outage.ends()
                self._told_up()
                assert self._over is not None
                await self._over
                raise client.last_error or Error("the connection was lost")
            except Exception as exc:  # a server that is none has many: it is kept whatever there is
                self._why = str(exc)
                self.outage.begins(exc)
            finally:
                self._forget()
                with anyio.move_on_after(ANSWER_SECONDS, shield=True), contextlib.suppress(Exception):
                    await client.close()
            await asyncio.sleep(_BACKOFF.delay(failures))
            failures += 1

    async def _connect(self, client: NatsClient) -> None:
        self._over = over = asyncio.get_running_loop().create_future()

        async def closed() -> None:
            if not over.done():
                over.set_result(None)

        beats: dict[str, Any] = {"ping_interval": BEAT_SECONDS, "max_outstanding_pings": 2}
        await client.dial(self._complaint, closed_cb=closed, flush_timeout=ANSWER_SECONDS, **beats)  # it would wait for ever on one that is lost
        for subscribed in tuple(self._subscribed):
            await subscribed.begin(client)
        await client.flush()
        self._client, self._stream = client, client.jetstream(timeout=ANSWER_SECONDS)

    def _forget(self) -> None:
        was_up = self.is_up
        self._up.clear()
        if self._over is not None and not self._over.done():
            self._over.set_result(None)
        if was_up:
            self._told_lost()

    async def _complaint(self, error: Exception) -> None:
        """Who asked hears of most of them."""
        if isinstance(error, SlowConsumerError):
            for subscribed in tuple(self._subscribed):
                if subscribed.live is error.sub:
                    subscribed.missed()
