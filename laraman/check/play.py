"""The application on stage: booted in this process as a worker boots it, and users who play requests on it, each as an operation of its own.

Nothing that an application does ends the play: what raises, hangs, leaves (``sys.exit``, ``os._exit``), blocks or stops the loop becomes a note.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from dataclasses import dataclass, field
from traceback import extract_tb
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote

import anyio

from laraman.asgi.app import load_app
from laraman.asgi.lifespan import Lifespan
from laraman.check.alarm import Alarm, Blocked
from laraman.check.requests import MARKER
from laraman.errors import BootError, LaramanError
from laraman.events import WorkerStarted, WorkerStarting, WorkerStopping, aemit
from laraman.net.link import current_worker
from laraman.process.tasks import Tasks
from laraman.process.worker import Worker, import_listeners
from laraman.sandbox.operation import REQUEST, Operation, relative
from laraman.sandbox.surroundings import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator

    from laraman.asgi.app import Message, Scope
    from laraman.check.requests import Request
    from laraman.config import Config

#: Seconds that a client stays at a response that comes in parts, when it is the first of its request. Streams without an end are left after that.
STREAM = 1.0
#: Seconds for what was left or cancelled to come to its end.
GRACE = 1.0
#: Turns of the loop after which nothing is due any more.
TURNS = 5
#: Bytes of a response that are kept to look for what does not belong there.
KEPT = 1024 * 1024
#: How often an application may stop the event loop under a check.
STOPS = 100


class Left(Exception):
    """The application has called ``sys.exit``, which must not end the process of others."""


class Exited(SystemExit):
    """The application has called ``os._exit``, which would end the check without a word, and with any exit code."""


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """``os._exit`` raises; in processes that the application forks it does what it did."""
    process, leave = os.getpid(), os._exit

    def instead(status: int) -> NoReturn:
        if os.getpid() != process:
            leave(status)
        raise Exited(status)

    os._exit = instead
    try:
        yield
    finally:
        os._exit = leave


# Users ----------------------------------------------------------------------------------------------------------------------------


class User:
    """Somebody who sends requests. ``sign`` is in everything that is this user's own, so that it is recognised where it should not be."""

    def __init__(self, name: str, language: str, address: str, *, anonymous: bool = False) -> None:
        self.name = name
        self.sign = f"{name}{secrets.token_hex(3)}"
        self.client = (address, 40000)
        #: What is this user's alone, and whose it is.
        self.words = {self.sign: name, address: name}
        self._played = 0
        self._headers = [("user-agent", "laraman-check"), ("accept", "*/*"), ("accept-language", language)]
        if not anonymous:
            self._headers += [("authorization", f"Bearer {self.sign}"), ("cookie", f"user={self.sign}"), ("x-user", self.sign)]

    def marker(self) -> str:
        """A word of this user's that no other request has."""
        self._played += 1
        return f"{self.sign}n{self._played}"

    def headers(self, request: Request, marker: str) -> list[tuple[bytes, bytes]]:
        """What goes with the request; its own fields stand for those of the user."""
        own = [(name.lower(), value.replace(MARKER, marker)) for name, value in request.headers]
        given = {name for name, _ in own}
        fields = [("host", "localhost"), *self._headers, ("x-request-id", marker)]
        if request.body:
            fields.append(("content-length", str(len(request.body.replace(MARKER.encode(), marker.encode())))))
        chosen = [*(field for field in fields if field[0] not in given), *own]
        return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in chosen]


def users() -> tuple[User, User, User]:
    """Somebody unknown, alice and bob."""
    return User("guest", "en", "192.0.2.1", anonymous=True), User("alice", "de", "192.0.2.10"), User("bob", "fr", "192.0.2.20")


# One request ----------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Answer:
    """What a request led to. ``status`` is None without a response; ``note`` says what was unusual, ``spoils`` that it is not played again."""

    status: int | None = None
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    note: str = ""
    spoils: bool = False
    #: Where the endpoint is defined, when that is known.
    where: str = ""

    def shows(self, sign: str) -> bool:
        """Whether this word is in it."""
        wanted = sign.encode()
        return wanted in self.body.lower() or any(wanted in value.lower() for _, value in self.headers)


class _Client:
    """The other end of one ASGI call."""

    def __init__(self, body: bytes, answer: Answer) -> None:
        self.answer = answer
        #: Set by the first part of a response that has further ones.
        self.streams: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._left = asyncio.Event()
        self._body: bytes | None = body
        self._complete = False

    def leave(self) -> None:
        self._left.set()

    async def receive(self) -> Message:
        await asyncio.sleep(0)  # as over a network, others have their turn
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        answer = self.answer
        if self._left.is_set():
            return
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
        elif message["type"] == "http.response.body":
            room = KEPT - len(answer.body)
            answer.body += bytes(message.get("body", b""))[:room]
            if not message.get("more_body", False):
                self._complete = True
                self.leave()
            elif not self.streams.done():
                self.streams.set_result(None)
        await asyncio.sleep(0)

    @property
    def complete(self) -> bool:
        return self._complete


# The application ------------------------------------------------------------------------------------------------------------------


class Stage:
    """The application of ``config`` and what a worker has around it. ``timeout`` is how many seconds a request gets."""

    def __init__(self, config: Config, timeout: float) -> None:
        self.config = config
        self.timeout = timeout
        #: What is played at the moment, for what happens behind its back.
        self.playing = ""
        #: What is worth telling about the check itself.
        self.notes: list[str] = []
        #: Whether something is left that will not end: this process has to be left without waiting for it.
        self.stuck = False
        self._alarm = Alarm()
        self._endless: set[Request] = set()
        self._active = 0
        self._meddled = ""
        self._holding: asyncio.Task[None] | None = None
        self._told = False

    def run(self, main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Run a coroutine function on an event loop of its own, whatever the application does to that."""
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        loop.set_exception_handler(self._on_loop_error)
        try:
            with self._alarm.installed(), _held_back():
                task = loop.create_task(main(), name="laraman check")
                for _ in range(STOPS):
                    try:
                        return loop.run_until_complete(task)
                    except (RuntimeError, SystemExit, Blocked) as exc:
                        if task.done():
                            raise
                        self._meddled = _meddling(exc)
                raise LaramanError(f"{self.playing} stops the event loop again and again")
        finally:
            self._close(loop)

    def _close(self, loop: asyncio.AbstractEventLoop) -> None:
        """End what is left, without waiting for what does not end."""
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        with contextlib.suppress(BaseException):
            if left:
                loop.run_until_complete(asyncio.wait(left, timeout=GRACE))
            loop.run_until_complete(asyncio.wait_for(loop.shutdown_asyncgens(), GRACE))
        asyncio.set_event_loop(None)
        loop.close()

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What nobody has waited for went wrong."""
        error = context.get("exception")
        if not isinstance(error, (SystemExit, Blocked)):  # of which the answer tells
            text = f"{self.playing}: {context['message']}{'' if error is None else f': {_described(error)}'}"
            if text not in self.notes:
                self.notes.append(text)

    # Boot and end ----------------------------------------------------------------------------------------------------------------

    async def boot(self) -> None:
        """Import and start the application, with its listeners told, as a worker does. Raises BootError and ConfigError."""
        config = self.config
        self.worker = worker = Worker("http")
        worker.slot, worker.config, worker.loop = 0, config, asyncio.get_running_loop()
        current_worker.set(worker)
        worker.sandbox = Sandbox(worker)
        self.playing = "the start of the application"
        self._alarm.start(config.timeout_worker_boot)
        try:
            await self._start(worker)
        except LaramanError:
            raise
        except Blocked:
            raise BootError(f"the application does not start within {config.timeout_worker_boot:g} s ({self._alarm_place()})") from None
        except (Exception, SystemExit) as exc:
            raise BootError(f"the application does not start: {_described(exc)}") from None
        finally:
            self._alarm.stop()

    async def _start(self, worker: Worker) -> None:
        import_listeners(self.config)
        self.app = load_app(self.config)
        self._holding = asyncio.get_running_loop().create_task(self._hold_tasks(worker), name="worker.tasks")
        await asyncio.sleep(0)
        self._told = True
        await aemit(WorkerStarting(worker=worker))
        self.lifespan = Lifespan(self.app, self.config.lifespan, timeout=self.config.timeout_worker_boot)
        await self.lifespan.startup()
        worker.sandbox = Sandbox(worker, self.lifespan.context)
        await worker.sandbox.prepare()
        await aemit(WorkerStarted(worker=worker))
        self._tasks = len(asyncio.all_tasks())

    async def _hold_tasks(self, worker: Worker) -> None:
        async with anyio.create_task_group() as group:
            worker.tasks = Tasks(group)
            await anyio.sleep_forever()

    async def end(self) -> None:
        """Stop it as a worker does; whatever goes wrong now is no longer of interest."""
        self.playing = "the end of the application"
        with contextlib.suppress(Exception):
            if self._told:
                async with asyncio.timeout(GRACE):
                    await aemit(WorkerStopping(worker=self.worker))
        with contextlib.suppress(Exception):
            if hasattr(self, "lifespan"):
                await self.lifespan.shutdown(GRACE)
        sandbox = self.worker.sandbox
        if sandbox is not None and sandbox.resets is not None:
            sandbox.resets.close()  # of a worker that goes on as something else: nothing stays in place around libraries
        if self._holding is not None:
            self._holding.cancel()
            await self._wait({self._holding}, GRACE)

    async def settle(self, limit: float) -> bool:
        """Let end what is ending: callbacks that are due and, for ``limit`` seconds at most, tasks. Whether there are no more than before."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + limit
        for _ in range(TURNS):
            await self._pause(0)
        while (calm := len(asyncio.all_tasks()) <= self._tasks) is False and loop.time() < deadline:
            await self._pause(0.01)
        self._tasks = len(asyncio.all_tasks())
        return calm

    async def idle(self, seconds: float) -> None:
        """Let the application be on its own."""
        self.playing = "the application, on its own,"
        await self._wait({asyncio.get_running_loop().create_future()}, seconds)

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self._go_on()

    def _go_on(self) -> None:
        """An application that cancels every task of the process does not mean this one."""
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
        self._meddled = "cancels tasks that are not its own"

    # Requests --------------------------------------------------------------------------------------------------------------------

    async def play(self, request: Request, user: User) -> Answer:
        """Play a request and wait for its end. Raises nothing that the application raises."""
        [answer] = await self.together([(request, user)])
        return answer

    async def together(self, parts: Iterable[tuple[Request, User]]) -> list[Answer]:
        """Play requests that overlap."""
        self._meddled = ""
        started = [self._started(request, user) for request, user in parts]
        beat = asyncio.get_running_loop().call_soon(self._beat)
        self._active += 1
        try:
            for _, client, task, request in started:
                await self._attend(request, client, task)
        finally:
            self._active -= 1
            beat.cancel()
            self._alarm.stop()
        return [self._finished(answer, task) for answer, _, task, _ in started]

    def _started(self, request: Request, user: User) -> tuple[Answer, _Client, asyncio.Task[Any], Request]:
        marker = user.marker()
        answer = Answer()
        client = _Client(request.body.replace(MARKER.encode(), marker.encode()), answer)
        scope = self._scope(request, user, marker)
        self.playing = request.name
        coroutine = self.worker.sandbox.run(self._call, scope, client, kind=REQUEST, subject=scope)
        return answer, client, asyncio.get_running_loop().create_task(coroutine, name=request.name), request

    def _scope(self, request: Request, user: User, marker: str) -> Scope:
        target = request.path.replace(MARKER, marker)
        raw_path, _, query = target.partition("?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "server": ("127.0.0.1", self.config.port),
            "client": user.client,
            "scheme": "http",
            "method": request.method,
            "root_path": self.config.root_path,
            "path": self.config.root_path + unquote(raw_path),
            "raw_path": (self.config.root_path + raw_path).encode(),
            "query_string": query.encode(),
            "headers": user.headers(request, marker),
            "state": self.lifespan.state.copy(),
        }

    async def _call(self, scope: Scope, client: _Client) -> None:
        try:
            await self.app(scope, client.receive, client.send)
        except SystemExit as exc:  # in a task it would stop the loop
            raise Left(_exit_of(exc)) from exc
        finally:
            client.answer.where = Operation(REQUEST, scope).where

    def _beat(self) -> None:
        """While something is played the loop shows that it turns; when it does not, the alarm rings."""
        if self._active:
            self._alarm.start(self.timeout + GRACE)
            asyncio.get_running_loop().call_later(GRACE / 4, self._beat)

    async def _attend(self, request: Request, client: _Client, task: asyncio.Task[Any]) -> None:
        """Be the client until the operation is over. One that has seen enough of a stream leaves, which is no error."""
        await self._wait({task, client.streams}, self.timeout)
        if not task.done() and client.streams.done() and request not in self._endless:
            await self._wait({task}, STREAM)
        if not task.done():
            if client.streams.done():
                self._endless.add(request)
            elif not client.complete:
                client.answer.spoils = True
                client.answer.note = f"no answer within {self.timeout:g} s"
            client.leave()
            await self._wait({task}, GRACE)
        if not task.done():
            task.cancel()
            await self._wait({task}, GRACE)
        if not task.done():
            self.stuck = client.answer.spoils = True
            client.answer.note = "does not end, not even when its client has left and it is cancelled"
        client.streams.cancel()

    async def _wait(self, awaited: Iterable[asyncio.Future[Any]], seconds: float) -> None:
        """Until the first of them is done, or so many seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        waiting = set(awaited)
        while not any(future.done() for future in waiting) and (left := deadline - loop.time()) > 0:
            try:
                await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                self._go_on()

    def _finished(self, answer: Answer, task: asyncio.Task[Any]) -> Answer:
        error = None if not task.done() or task.cancelled() else task.exception()
        if error is not None and _is_blocked(error):
            answer.note = f"does not give the event loop back ({self._alarm_place()})"
            answer.spoils = True
        elif self._meddled:
            answer.note, answer.spoils = self._meddled, True
        elif answer.note:
            pass
        elif task.cancelled():
            answer.note = "was cancelled"
        elif error is not None:
            answer.note = _described(error)
        elif answer.status is None:
            answer.note = "ended without a response"
        return answer

    def _alarm_place(self) -> str:
        place = self._alarm.place
        return "?" if place is None else f"{relative(place[0])}:{place[1]}"


def _meddling(exc: BaseException) -> str:
    if isinstance(exc, SystemExit):
        return f"{_exit_of(exc)} outside of its task"
    return "stops the event loop" if isinstance(exc, RuntimeError) else "does not give the event loop back"


def _exit_of(exc: SystemExit) -> str:
    return f"calls {'os._exit' if isinstance(exc, Exited) else 'sys.exit'}({exc.code!r})"


def _is_blocked(error: BaseException) -> bool:
    return isinstance(error, Blocked) or (isinstance(error, BaseExceptionGroup) and any(map(_is_blocked, error.exceptions)))


def _described(error: BaseException) -> str:
    """In one line, with the place in the code of the application, or what is nearest to it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = " ".join(str(error).split())
    what = text if isinstance(error, Left) else f"{type(error).__name__}: {text}".rstrip(": ")
    trace = extract_tb((error.__cause__ or error).__traceback__ if isinstance(error, Left) else error.__traceback__)
    own = [frame for frame in trace if frame.filename != __file__ and not {"site-packages", "lib"} & set(frame.filename.split(os.sep))] or list(trace)
    return f"{what} ({relative(own[-1].filename)}:{own[-1].lineno})" if own else what
