"""Requests as a check plays them: what the application gets, and what it can do to those who play."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from laraman.check import play
from laraman.check.course import check, own_packages
from laraman.check.play import Answer, Stage, users
from laraman.check.requests import Request
from laraman.config import Config
from laraman.errors import BootError, ConfigError
from laraman.sandbox import operation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from laraman.check.diff import Finding
    from laraman.check.report import Report

HEAD = """
import asyncio, json, os, sys, time, threading
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route
"""
#: Seconds a request gets where one hangs on purpose.
SHORT = 0.3


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Stage]]:
    """A stage for the application with this source, which may name a coroutine function ``endpoint`` instead of an ``app``."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(operation, "_HOME", str(tmp_path))
    monkeypatch.setattr(play, "STREAM", SHORT)
    monkeypatch.setattr(play, "GRACE", SHORT)

    def make(source: str, timeout: float = 10.0, **options: Any) -> Stage:
        whole = HEAD + source
        if "app =" not in source and "def app(" not in source:
            whole += "\napp = Starlette(routes=[Route('/', endpoint, methods=['GET', 'POST'])])\n"
        (tmp_path / "played.py").write_text(whole)
        return Stage(Config(**{"app": "played:app", "app_dir": str(tmp_path), "guard": "off", **options}), timeout)

    yield make
    for name in ("played", "heard"):
        sys.modules.pop(name, None)


def answer_of(stage: Stage, *requests: Request) -> Answer:
    """The last answer."""

    async def main() -> Answer:
        await stage.boot()
        try:
            _, alice, _ = users()
            return [await stage.play(request, alice) for request in requests or (Request("GET", "/"),)][-1]
        finally:
            await stage.end()

    answer: Answer = stage.run(main)
    return answer


def leaks(report: Report) -> dict[str, Finding]:
    return {finding.path: finding for finding, _ in report.findings}


def checked(stage: Stage, *requests: Request) -> Report:
    return check(stage, list(requests) or None, 5)


# What the application gets --------------------------------------------------------------------------------------------------------

ECHO = """
async def endpoint(request):
    body = await request.body()
    headers = [[name, value] for name, value in request.headers.items()]
    return JSONResponse({"path": request.url.path, "query": request.url.query, "headers": headers, "body": body.decode(),
        "client": request.client, "method": request.method, "state": request.state.started, "current": repr(laraman.sandbox.current())})

import contextlib, laraman.sandbox
@contextlib.asynccontextmanager
async def lifespan(app):
    yield {"started": 5}
app = Starlette(routes=[Route("/{path:path}", endpoint, methods=["GET", "POST"])], lifespan=lifespan)
"""


def test_the_request_as_the_application_sees_it(stage: Callable[..., Stage]) -> None:
    request = Request("POST", "/a%20b/{marker}?q=1&m={marker}", (("X-Own", "{marker}"), ("Accept-Language", "nl")), b'{"a": "{marker}"}')
    answer = answer_of(stage(ECHO), Request("GET", "/"), request)
    assert (answer.status, answer.note, answer.spoils) == (200, "", False)
    seen = json.loads(answer.body)
    marker = seen["path"].removeprefix("/a b/")
    sign = marker.removesuffix("n2")
    assert sign.startswith("alice")
    assert (seen["query"], seen["body"]) == (f"q=1&m={marker}", f'{{"a": "{marker}"}}')
    assert (seen["method"], seen["client"], seen["state"]) == ("POST", ["192.0.2.10", 40000], 5)
    assert seen["current"] == f"<Operation POST /a b/{marker}>" or seen["current"] == "<Operation POST /{path:path}>"
    assert sorted(map(tuple, seen["headers"])) == [
        ("accept", "*/*"),
        ("accept-language", "nl"),
        ("authorization", f"Bearer {sign}"),
        ("content-length", str(len(seen["body"]))),
        ("cookie", f"user={sign}"),
        ("host", "localhost"),
        ("user-agent", "laraman-check"),
        ("x-own", marker),
        ("x-request-id", marker),
        ("x-user", sign),
    ]


def test_users_differ_in_all_that_tells_users_apart() -> None:
    request = Request("GET", "/")
    guest, alice, bob = users()
    fields = [dict(user.headers(request, user.marker())) for user in (guest, alice, bob)]
    for name in (b"authorization", b"cookie", b"x-user", b"x-request-id", b"accept-language"):
        assert len({field.get(name) for field in fields}) == 3
    assert fields[0].keys() & {b"authorization", b"cookie", b"x-user"} == set()
    assert len({user.client for user in (guest, alice, bob)}) == 3
    assert alice.marker() != alice.marker()


def test_listeners_hear_of_the_requests(stage: Callable[..., Stage], tmp_path: Path) -> None:
    (tmp_path / "heard.py").write_text(
        "import laraman\nHEARD = []\n"
        "for kind in (laraman.WorkerStarting, laraman.WorkerStarted, laraman.RequestReceived, laraman.RequestTerminated, laraman.WorkerStopping):\n"
        "    laraman.on(kind)(lambda event: HEARD.append(type(event).__name__))\n"
    )
    from laraman import events

    try:
        answer_of(stage("async def endpoint(request): return PlainTextResponse('ok')", listeners=("heard",)))
        assert sys.modules["heard"].HEARD == ["WorkerStarting", "WorkerStarted", "RequestReceived", "RequestTerminated", "WorkerStopping"]
    finally:
        events.forget(["heard"])


# What it may do to the play -------------------------------------------------------------------------------------------------------

SPOILING = {
    "hangs": ("async def endpoint(request): await asyncio.sleep(60)", "no answer within 0.3 s"),
    "hangs in a thread": ("def endpoint(request): time.sleep(2)", "no answer within 0.3 s"),
    "blocks the loop": ("async def endpoint(request): time.sleep(60)", "does not give the event loop back (played.py:7)"),
    "blocks it in a loop": ("async def endpoint(request):\n    while True: pass", "does not give the event loop back (played.py:8)"),
    "cancels everybody": (
        "async def endpoint(request):\n    for task in asyncio.all_tasks() - {asyncio.current_task()}: task.cancel()\n"
        "    return PlainTextResponse('ok')",
        "cancels tasks that are not its own",
    ),
    "stops the loop": (
        "async def endpoint(request):\n    asyncio.get_running_loop().stop()\n    await asyncio.sleep(0)\n    return PlainTextResponse('ok')",
        "stops the event loop",
    ),
    "leaves in another task": (
        "async def leave(): sys.exit(4)\n"
        "async def endpoint(request):\n    await asyncio.wait([asyncio.create_task(leave())])\n    return PlainTextResponse('ok')",
        "calls sys.exit(4) outside of its task",
    ),
    "will not be cancelled": (
        "async def endpoint(request):\n    for _ in range(20):\n        try: await asyncio.sleep(0.2)\n        except asyncio.CancelledError: pass",
        "does not end, not even when its client has left and it is cancelled",
    ),
}


@pytest.mark.parametrize("name", SPOILING)
def test_what_spoils_the_play_is_told_and_the_play_goes_on(stage: Callable[..., Stage], name: str) -> None:
    source, note = SPOILING[name]
    answer = answer_of(stage(source, SHORT))
    assert (answer.note, answer.spoils) == (note, True)


UNUSUAL = {
    "raises": ("async def endpoint(request): raise ValueError('two\\nlines')", 500, "ValueError: two lines (played.py:7)"),
    "raises in a group": (
        "async def endpoint(request):\n    async with asyncio.TaskGroup() as group:\n        group.create_task(asyncio.wait_for(None, 1))\n",
        500,
        "TypeError: ",
    ),
    "leaves": ("async def endpoint(request): sys.exit(3)", None, "calls sys.exit(3) (played.py:7)"),
    "leaves in a thread": ("def endpoint(request): sys.exit(3)", None, "calls sys.exit(3) (played.py:7)"),
    "leaves at once": ("async def endpoint(request): os._exit(0)", None, "calls os._exit(0) (played.py:7)"),
    "leaves at once in a thread": ("def endpoint(request): os._exit(0)", None, "calls os._exit(0) (played.py:7)"),
    "forks": (
        "async def endpoint(request):\n    pid = os.fork()\n    if not pid: os._exit(7)\n"
        "    return PlainTextResponse('ok', os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) + 200)",
        207,
        "",
    ),
    "says nothing": ("async def app(scope, receive, send): pass", None, "ended without a response"),
    "cancels itself": ("async def app(scope, receive, send): asyncio.current_task().cancel(); await asyncio.sleep(0)", None, "was cancelled"),
    "prints": ("async def endpoint(request): print('hello'); return PlainTextResponse('ok')", 200, ""),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_unusual_is_told(stage: Callable[..., Stage], name: str) -> None:
    source, status, note = UNUSUAL[name]
    answer = answer_of(stage(source, lifespan="off"))
    assert (answer.status, answer.spoils) == (status, False)
    assert answer.note.startswith(note)
    assert bool(answer.note) == bool(note)


def test_an_endless_stream_is_left_and_that_is_no_error(stage: Callable[..., Stage]) -> None:
    source = """
GONE = []
async def events():
    try:
        while True:
            yield "data: x\\n\\n"
            await asyncio.sleep(0.01)
    finally:
        GONE.append(1)
async def endpoint(request): return StreamingResponse(events(), media_type="text/event-stream")
"""
    answer = answer_of(stage(source), Request("GET", "/"), Request("GET", "/"))
    assert (answer.status, answer.note, answer.spoils) == (200, "", False)
    assert b"data: x" in answer.body
    assert sys.modules["played"].GONE == [1, 1]


def test_of_a_long_body_a_part_is_kept(stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(play, "KEPT", 1000)
    source = "async def endpoint(request):\n    return StreamingResponse((b'x' * 300 for _ in range(10)))"
    assert len(answer_of(stage(source)).body) == 1000


@pytest.mark.parametrize(
    ("source", "options", "says"),
    [
        ("def (", {}, 'Importing module "played" failed: SyntaxError'),
        ("app = 5", {}, "is not callable"),
        ("sys.exit(5)\napp = 1", {}, "SystemExit: 5"),
        ("time.sleep(60)\napp = 1", {"timeout_worker_boot": SHORT}, "does not start within 0.3 s (played.py:7)"),
        (
            "async def app(scope, receive, send):\n    await receive()\n    raise ValueError('away')",
            {"lifespan": "on"},
            "Application startup failed: ValueError('away')",
        ),
        ("async def app(scope, receive, send): sys.exit(5)", {"lifespan": "on"}, "Application startup failed: SystemExit(5)"),
        ("async def app(scope, receive, send): await asyncio.sleep(60)", {"timeout_worker_boot": SHORT}, "not complete after 0.3 s"),
    ],
)
def test_an_application_that_does_not_boot_says_why(stage: Callable[..., Stage], source: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(BootError) as caught:
        answer_of(stage(source, **options))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_listener_that_is_not_there(stage: Callable[..., Stage]) -> None:
    with pytest.raises(ConfigError, match="there is no listener module 'nowhere'"):
        answer_of(stage("app = Starlette()", listeners=("nowhere",)))


# Whole checks ---------------------------------------------------------------------------------------------------------------------


def test_somebody_elses_word_in_a_response(stage: Callable[..., Stage]) -> None:
    source = """
LAST = {"user": ""}
async def login(request):
    LAST["user"] = request.headers.get("x-user", "")
    return PlainTextResponse("ok")
async def page(request): return PlainTextResponse("ok", headers={"x-hello": LAST["user"].upper()})
async def fine(request): return PlainTextResponse(request.headers.get("x-user", ""))
app = Starlette(routes=[Route("/login", login), Route("/page", page), Route("/fine", fine)])
"""
    found = leaks(checked(stage(source)))
    assert found.keys() == {"played.LAST['user']", "response of GET /page"}
    crossed = found["response of GET /page"]
    assert (crossed.kind, crossed.request, crossed.place) == ("crossed", "GET /page", "played.py:12 in page")
    assert found["played.LAST['user']"].place == "played.py:10 in login"


def test_what_only_overlapping_users_leave_behind(stage: Callable[..., Stage]) -> None:
    """Put back when the request ends, so that each of them alone leaves nothing."""
    source = """
HELD = []
BUSY = 0
async def endpoint(request):
    global BUSY
    BUSY += 1
    await asyncio.sleep(0.01)
    if BUSY > 1: HELD.append(1)
    BUSY = 0
    return PlainTextResponse("ok")
"""
    [finding] = leaks(checked(stage(source))).values()
    assert (finding.path, finding.kind, finding.request) == ("played.HELD", "grows", "GET /")


def test_what_changes_by_itself_is_nobodys_leak(stage: Callable[..., Stage]) -> None:
    source = """
import contextlib
TICKS = []
async def tick():
    while True:
        TICKS.append(1)
        await asyncio.sleep(0.001)
@contextlib.asynccontextmanager
async def lifespan(app):
    task = asyncio.create_task(tick())
    yield
    task.cancel()
async def endpoint(request): return PlainTextResponse("ok")
app = Starlette(routes=[Route("/", endpoint)], lifespan=lifespan)
"""
    assert leaks(checked(stage(source))) == {}


def test_what_is_flushed_is_no_leak(stage: Callable[..., Stage]) -> None:
    from laraman.config.sandbox import SandboxConfig

    source = "SEEN = []\nasync def endpoint(request):\n    SEEN.append(1)\n    return PlainTextResponse('ok')"
    assert leaks(checked(stage(source, sandbox=SandboxConfig(flush=("played:SEEN",))))) == {}


def test_one_place_many_requests_is_one_finding(stage: Callable[..., Stage]) -> None:
    source = """
SEEN = []
async def endpoint(request):
    SEEN.append(1)
    return PlainTextResponse("ok")
app = Starlette(routes=[Route("/a", endpoint), Route("/b", endpoint), Route("/c/{x}", endpoint)])
"""
    report = checked(stage(source))
    [(finding, others)] = report.findings
    assert (finding.path, finding.request, others) == ("played.SEEN", "GET /a", ("GET /b",))
    assert report.notes == ("1 routes with parameters were not played: --requests FILE says with which values",)


def test_a_request_that_spoils_is_played_once_and_the_others_as_ever(stage: Callable[..., Stage]) -> None:
    source = """
SEEN = []
CALLS = []
async def hang(request):
    CALLS.append(1)
    await asyncio.sleep(60)
async def endpoint(request):
    SEEN.append(1)
    return PlainTextResponse("ok")
app = Starlette(routes=[Route("/", hang), Route("/b", endpoint)])
"""
    report = checked(stage(source, SHORT))
    assert [(one.status, one.note) for one in report.requests] == [(None, "no answer within 0.3 s"), (200, "")]
    assert leaks(report).keys() == {"played.SEEN"}
    assert sys.modules["played"].CALLS == [1]


def test_what_nobody_waited_for_is_noted(stage: Callable[..., Stage]) -> None:
    source = """
async def fail(): raise ValueError("lost")
async def endpoint(request):
    asyncio.create_task(fail())
    return PlainTextResponse("ok")
"""
    report = checked(stage(source))
    assert report.notes == ("GET /: Task exception was never retrieved: ValueError: lost (played.py:8)",)


@pytest.mark.parametrize("document", ["5", "[]", '{"paths": {}}', "[" * 100_000, "not json"])
def test_a_document_that_is_none_leads_to_the_routes(stage: Callable[..., Stage], document: str) -> None:
    source = f"""
async def endpoint(request): return PlainTextResponse("ok")
async def openapi(request): return PlainTextResponse({document[:10]!r} * ({len(document)} // 10 or 1) if {len(document)} > 50 else {document!r})
app = Starlette(routes=[Route("/openapi.json", openapi), Route("/a", endpoint)])
"""
    assert [one.request.path for one in checked(stage(source)).requests] == ["/openapi.json", "/a"]


def test_an_application_that_lists_nothing_gets_one_request(stage: Callable[..., Stage]) -> None:
    source = """
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"ok"})
"""
    [one] = checked(stage(source, lifespan="off")).requests
    assert (one.request, one.status) == (Request("GET", "/"), 200)


def test_the_applications_own_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ownpackage").mkdir()
    (tmp_path / "ownpackage" / "__init__.py").touch()
    (tmp_path / "ownpackage" / "inner.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__("ownpackage.inner")
    assert own_packages(Config(app="installed.main:app", app_dir=str(tmp_path))) == ["installed", "ownpackage"]
    del sys.modules["ownpackage.inner"], sys.modules["ownpackage"]


def test_the_loop_of_the_check_is_gone_afterwards(stage: Callable[..., Stage]) -> None:
    answer_of(stage("async def endpoint(request): return PlainTextResponse('ok')"))
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
