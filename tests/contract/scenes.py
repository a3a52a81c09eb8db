"""Whole lives of a server, from its start to its exit code; each is lived once by each server, and rows ask for what was seen."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.conftest import DEADLINE, clean_environment, wait_until
from tests.contract.client import close_frame, dial, exchange, fetch, frame, get, handshake, read_answer, told
from tests.contract.serving import HERE, Running

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Facts = dict[str, Any]
    Scene = Callable[["Actor"], Facts]

PORT = ("--port", "{port}")


class Actor:
    """One of the servers, by name, that lives scenes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.started: list[Running] = []
        self._lived: dict[str, Future[Facts]] = {}
        self._lock = threading.Lock()

    def start(self, *arguments: str, files: Mapping[str, str] | None = None, environ: Mapping[str, str] | None = None) -> Running:
        running = Running(self.name, arguments, files, environ)
        self.started.append(running)
        return running

    def facts(self, scene: Scene) -> Facts:
        """What was seen in the scene, which is lived now if it was not before."""
        with self._lock:
            lived = self._lived.get(scene.__name__)
            if lived is None:
                mine = self._lived[scene.__name__] = Future()
        if lived is not None:
            return lived.result(4 * DEADLINE)
        try:
            mine.set_result(scene(self))
        except Exception as exc:
            mine.set_exception(AssertionError(f"{scene.__name__} of {self.name}: {exc!r}"))
        return mine.result()


@dataclass(frozen=True)
class Fact:
    """Something that was seen in a scene."""

    scene: Scene
    pick: Callable[[Facts], Any]

    def __call__(self, actor: Actor) -> Any:
        return self.pick(actor.facts(self.scene))


def fact(scene: Scene, key: str) -> Fact:
    return Fact(scene, lambda facts: facts[key])


def said(scene: Scene, line: str) -> Fact:
    """Whether the line was logged, on stderr."""
    return Fact(scene, lambda facts: line in facts["stderr"])


def sayings(scene: Scene, *beginnings: str) -> Fact:
    """The lines on stderr that begin like this, in order."""
    return Fact(scene, lambda facts: [line for line in facts["stderr"] if line.startswith(beginnings)])


def end(server: Running, number: int = signal.SIGTERM) -> Facts:
    """Send the signal; what is seen when it is over."""
    server.signal(number)
    code = server.ended()
    server.stop()
    marks = server.marks.read_text().splitlines() if server.marks.exists() else []
    return {"code": code, "stderr": told(server.stderr), "stdout": told(server.stdout), "marks": marks}


def failing(*arguments: str, files: Mapping[str, str] | None = None, environ: Mapping[str, str] | None = None) -> Scene:
    """A start that fails: the exit code, and the last line on stderr."""

    def scene(actor: Actor) -> Facts:
        server = actor.start(*arguments, files=files, environ=environ)
        code = server.ended()
        server.stop()
        return {"code": code, "text": server.stderr, "stderr": told(server.stderr), "marks": server.marks.exists()}

    scene.__name__ = f"failing {arguments} {files}"
    return scene


# Single processes -----------------------------------------------------------------------------------------------------------------


def single(actor: Actor) -> Facts:
    server = actor.start("app:app", *PORT).ready()
    return {"port": server.port, **end(server)}


def interrupted(actor: Actor) -> Facts:
    return end(actor.start("app:app", *PORT).ready(), signal.SIGINT)


def hung_up(actor: Actor) -> Facts:
    """SIGHUP, and if it lives on, SIGTERM."""
    server = actor.start("app:app", *PORT).ready()
    server.signal(signal.SIGHUP)
    with contextlib.suppress(subprocess.TimeoutExpired):
        return {"then": server.process.wait(1), "marks": server.marks.exists()}
    alive = exchange(server, get("/hello"))[0].body
    return {"then": alive, **end(server)}


def enough(actor: Actor) -> Facts:
    """--limit-max-requests 3."""
    server = actor.start("app:app", *PORT, "--limit-max-requests", "3").ready()
    for _ in range(2):
        exchange(server, get("/hello"))
    with contextlib.suppress(subprocess.TimeoutExpired):
        code = server.process.wait(2)
        server.stop()
        return {"then": code, "stderr": told(server.stderr)}
    alive = exchange(server, get("/hello"))[0].body
    return {"then": alive, **end(server)}


def occupied(actor: Actor) -> Facts:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return failing("app:app", "--port", str(taken.getsockname()[1]))(actor)


def forced(actor: Actor) -> Facts:
    """SIGINT while a request runs, and again."""
    server = actor.start("app:app", *PORT, "--timeout-graceful-shutdown", "20").ready()
    with contextlib.closing(dial(server)) as sock:
        sock.sendall(get("/wait?forced"))
        wait_until(lambda: fetch(server, "/records?forced"), what="the request")
        begun = time.monotonic()
        server.signal(signal.SIGINT)
        wait_until(lambda: refused(server), what="closed listeners")
        facts = end(server, signal.SIGINT)
        return {**facts, "waited": time.monotonic() - begun > 15}


def refused(server: Running) -> bool:
    try:
        server.dial().close()
    except OSError:
        return True
    return False


def stopped_busy(actor: Actor) -> Facts:
    """SIGTERM with an idle connection, a websocket and a request that ends soon."""
    server = actor.start("app:app", *PORT, "--timeout-graceful-shutdown", "20").ready()
    with contextlib.ExitStack() as stack:
        idle, busy = (stack.enter_context(contextlib.closing(dial(server))) for _ in range(2))
        idle.sendall(get("/hello", close=False))
        idle_file = stack.enter_context(idle.makefile("rb"))
        read_answer(idle_file)
        websocket, _ = handshake(server, "/echo?busy")
        stack.enter_context(contextlib.closing(websocket))
        websocket.sendall(frame(1, b"x"))
        websocket.recv(100)
        busy.sendall(get("/wait?busy=1", close=False))
        wait_until(lambda: fetch(server, "/records?busy=1"), what="the request")
        server.signal(signal.SIGTERM)
        wait_until(lambda: refused(server), what="closed listeners")
        order = []
        last = websocket.recv(100)
        order.append("websocket")
        websocket.sendall(close_frame(1012))
        answer = read_answer(stack.enter_context(busy.makefile("rb")))
        order.append("request")
        assert answer is not None
        facts: Facts = {"websocket": last, "request": (answer.line, answer.body, answer.get("connection")), "idle": idle_file.read()}
        facts |= end_of(server)
        order += facts["marks"]
        return {**facts, "order": order}


def end_of(server: Running) -> Facts:
    code = server.ended()
    server.stop()
    return {"code": code, "stderr": told(server.stderr), "marks": server.marks.read_text().splitlines() if server.marks.exists() else []}


def stopped_late(actor: Actor) -> Facts:
    """SIGTERM while a request runs that does not end in time."""
    server = actor.start("app:app", *PORT, "--timeout-graceful-shutdown", "1").ready()
    with contextlib.closing(dial(server)) as sock, sock.makefile("rb") as file:
        sock.sendall(get("/wait?late"))
        wait_until(lambda: fetch(server, "/records?late"), what="the request")
        server.signal(signal.SIGTERM)
        answer = read_answer(file)
        return {"answer": None if answer is None else (answer.line, answer.body), **end_of(server)}


def stopped_streaming(actor: Actor) -> Facts:
    """SIGTERM without options while a stream runs for ever: how it ends within 10 seconds."""
    server = actor.start("app:app", *PORT).ready()
    with contextlib.closing(dial(server)) as sock:
        sock.sendall(get("/wait?stream"))
        wait_until(lambda: fetch(server, "/records?stream"), what="the request")
        server.signal(signal.SIGTERM)
        try:
            server.process.wait(11)
        except subprocess.TimeoutExpired:
            server.process.kill()
            server.ended()
            server.stop()
            return {"then": "hangs"}
        return {"then": "ends", **end_of(server)}


# Several processes ----------------------------------------------------------------------------------------------------------------

STARTED = r"Started server process"
COMPLETE = r"Application startup complete"


def workers_of(server: Running, count: int) -> list[int]:
    """Until so many have said that they have started; their ids."""
    server.wait_line(COMPLETE, count)
    return [int(line.rpartition("[")[2].rstrip("]")) for line in server.stderr.splitlines() if STARTED in line]


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def several(actor: Actor) -> Facts:
    """--workers 2: one is killed, SIGTTIN, SIGTTOU, SIGHUP, SIGTERM."""
    facts: Facts = {}
    server = actor.start("app:app", *PORT, "--workers", "2").ready()
    first, second = workers_of(server, 2)
    facts["first"] = told(server.stderr)[0]
    os.kill(first, signal.SIGKILL)
    third = workers_of(server, 3)[2]
    facts["killed"] = "respawned"
    server.signal(signal.SIGTTIN)
    fourth = workers_of(server, 4)[3]
    server.signal(signal.SIGTTOU)
    wait_until(lambda: any(gone(pid) for pid in (second, third, fourth)), what="one less")
    facts["SIGTTOU"] = "the newest" if gone(fourth) else "another"
    server.signal(signal.SIGHUP)
    fifth = workers_of(server, 5)[4]
    facts["SIGHUP"] = "the successor is there first" if not gone(second) or not gone(third) else "both were stopped"
    server.wait_line(COMPLETE, 6)
    wait_until(lambda: gone(second) and gone(third), what="the old ones' end")
    facts["after SIGHUP"] = exchange(server, get("/hello"))[0].body
    server.signal(signal.SIGUSR2 if actor.name == "uvicorn" else 0)
    facts["quit"] = gone(fifth)
    return {**facts, **end(server)}


def blocked(actor: Actor) -> Facts:
    """A worker whose loop stands still: whether another takes its place within 6 seconds, where the time is 1."""
    app = "import time\nasync def app(scope, receive, send):\n    if scope['path'] == '/block':\n        time.sleep(7)\n" + HELLO
    server = actor.start(
        "blocking:app", *PORT, "--workers", "2", "--timeout-worker-healthcheck", "1", "--lifespan", "off", files={"blocking.py": app}
    ).ready()
    server.wait_line(STARTED, 2)
    with contextlib.closing(dial(server)) as sock:
        sock.sendall(get("/block"))
        try:
            wait_until(lambda: server.stderr.count(STARTED) > 2, 6)
            found = "replaced"
        except AssertionError:
            found = "not noticed"
    return {"then": found, **end(server)}


def stopped_process(actor: Actor) -> Facts:
    """A worker that is stopped by SIGSTOP is replaced, where the time is 1 second."""
    server = actor.start("app:app", *PORT, "--workers", "2", "--timeout-worker-healthcheck", "1").ready()
    first, second = workers_of(server, 2)
    answering: set[int] = set()
    while answering != {first, second}:  # what has not begun to serve has more time
        answering.add(fetch(server, "/pid"))
    os.kill(first, signal.SIGSTOP)
    workers_of(server, 3)
    wait_until(lambda: gone(first), what="its end")
    return {"then": "replaced", **end(server)}


HELLO = """
    if scope['type'] == 'http':
        await send({'type': 'http.response.start', 'status': 200, 'headers': [(b'content-length', b'5')]})
        await send({'type': 'http.response.body', 'body': b'hello'})
"""


def reloaded(actor: Actor) -> Facts:
    """--reload: a change, an error of syntax, and a repair."""
    text = "async def app(scope, receive, send):\n    assert scope['type'] == 'http'" + HELLO
    server = actor.start("fresh:app", *PORT, "--reload", files={"fresh.py": text}).ready()
    source = server.directory / "fresh.py"

    def write(new: str, age: int) -> None:
        source.write_text(new)
        os.utime(source, (time.time() + age, time.time() + age))  # a look at times alone shall see it

    changed(lambda age: write(text.replace("hello", "hullo"), age), lambda: body(server) == "hullo")
    facts: Facts = {"change": "served"}
    before = len(server.stderr)
    write("this is no Python", 2000)
    wait_until(lambda: "SyntaxError" in server.stderr[before:], what="the error")
    facts["error"] = server.process.poll()
    facts["meanwhile"] = body(server) or "nobody answers"
    write(text.replace("hello", "again"), 3000)
    wait_until(lambda: body(server) == "again", what="the repair")
    facts["repair"] = "served"
    last = end(server)
    return {**facts, **last, "stderr": [line.replace(str(server.directory), ".") for line in last["stderr"]]}


def changed(write: Callable[[int], None], done: Callable[[], bool]) -> None:
    """Write until it is done: a change before the watcher has begun to watch is not seen."""
    for age in range(1, 11):
        write(age)
        with contextlib.suppress(AssertionError):
            wait_until(done, 3)
            return
    raise AssertionError("the change was not seen")


def body(server: Running, path: str = "/") -> str:
    """Of a page, or "" when nobody answers at once: the listening socket of a reloader is open without a worker."""
    with contextlib.suppress(OSError), contextlib.closing(server.dial()) as sock, sock.makefile("rb") as file:
        sock.settimeout(0.5)
        sock.sendall(get(path))
        answer = read_answer(file)
        return answer.body if answer is not None else ""
    return ""


def reloaded_streaming(actor: Actor) -> Facts:
    """--reload while a request runs for ever: whether the change is served within 12 seconds."""
    server = actor.start("app:app", *PORT, "--reload").ready()
    with contextlib.closing(dial(server)) as sock:
        sock.sendall(get("/wait?x"))
        wait_until(lambda: fetch(server, "/records?x"), what="the request")
        source = server.directory / "app.py"

        def write(age: int) -> None:
            source.write_text(source.read_text().replace('b"hello"', 'b"hullo"'))
            os.utime(source, (time.time() + age, time.time() + age))

        write(10)
        with contextlib.suppress(AssertionError):  # nobody answers any more: it was seen
            wait_until(lambda: body(server, "/hello") != "hello", 2)
        write(20)
        try:
            wait_until(lambda: body(server, "/hello") == "hullo", 11)
            found = "served"
        except AssertionError:
            found = "hangs"
    server.process.kill()
    server.stop()
    return {"then": found}


# Programs -------------------------------------------------------------------------------------------------------------------------


def program(actor: Actor) -> Facts:
    """What ``names.py`` has seen."""
    name = "uvicorn" if actor.name == "uvicorn" else "laraman"
    environ = clean_environment({"PYTHONPATH": str(HERE.parent.parent)})
    result = subprocess.run(
        [sys.executable, str(HERE / "names.py"), name], env=environ, capture_output=True, text=True, timeout=2 * DEADLINE, cwd=HERE
    )
    assert result.returncode == 0, result.stderr
    seen: Facts = json.loads(result.stdout)
    return seen
