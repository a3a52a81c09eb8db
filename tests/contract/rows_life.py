"""1.1 as far as a running server shows it, 1.3 to 1.7 and 1.12: logs, exit codes, signals, reload, supervision, lifespan and stop."""

from __future__ import annotations

from tests.contract import scenes, scenes_options
from tests.contract.client import answers, exchange, get, handshake, lines, upgrade
from tests.contract.scenes import HELLO, PORT, Fact, fact, failing, said, sayings
from tests.contract.table import Row

RAISES = "async def app(scope, receive, send):\n    assert scope['type'] == 'http'" + HELLO
FAILS = """
async def app(scope, receive, send):
    await receive()
    await send({'type': 'lifespan.startup.failed', 'message': 'no database'})
"""


def code(*arguments: str, **more: dict[str, str]):  # type: ignore[no-untyped-def]
    return fact(failing(*arguments, **more), "code")


def told(*arguments: str, **more: dict[str, str]):  # type: ignore[no-untyped-def]
    def errors(facts):  # type: ignore[no-untyped-def]
        lines = [line.replace(WHO, "") for line in facts["stderr"] if line.startswith("ERROR")]
        return [line for line in lines if not line.startswith("ERROR:    Application startup failed:")]

    return Fact(failing(*arguments, **more), errors)


def same(ids: str, what: str, do, seen, *rest, **more) -> Row:  # type: ignore[no-untyped-def]
    return Row(ids, what, do, seen, *rest, on="", **more)


def access(*paths: str):  # type: ignore[no-untyped-def]
    def do(server):  # type: ignore[no-untyped-def]
        for path in paths:
            exchange(server, get(path))

    return lines("stdout", len(paths), do)


def closing(path: str):  # type: ignore[no-untyped-def]
    def do(server):  # type: ignore[no-untyped-def]
        from tests.contract.client import close_frame

        sock, _ = handshake(server, path)
        with sock:
            sock.sendall(close_frame(1000))
            sock.recv(100)

    return do


#: What laraman's line has in front: which worker it is.
WHO = "Worker http:0 could not start: "
UNSUPPORTED = "INFO:     ASGI 'lifespan' protocol appears unsupported."
ENDING = (
    "INFO:     Shutting down",
    "INFO:     Waiting for application shutdown",
    "INFO:     Waiting for connections",
    "INFO:     Application shutdown",
    "INFO:     Finished server",
    "ERROR:    Cancel",
)

ROWS = [
    # 1.3 ------------------------------------------------------------------------------------------------------------------------
    Row(
        "1.3 access line, 1.0 3",
        "",
        access("/hello?a=%20b", "/a%20b/%C3%A4"),
        ['INFO:     * - "GET /hello?a=%20b HTTP/1.1" 200 OK', 'INFO:     * - "GET /a%20b/%C3%A4 HTTP/1.1" 200 OK'],
    ),
    Row("1.3 access line", "an error", access("/raises"), ['INFO:     * - "GET /raises HTTP/1.1" 500 Internal Server Error']),
    Row(
        "1.3 access line",
        "a status that has no name",
        lambda server: access("/status?599")(server)[0].strip(),
        'INFO:     * - "GET /status?599 HTTP/1.1" 599',
    ),
    Row(
        "1.3 websocket lines",
        "accepted, open, closed",
        lines("stderr", 2, closing("/echo?q=1")),
        ['INFO:     * - "WebSocket /echo?q=1" [accepted]', "INFO:     connection open"],
    ),
    same("1.3 websocket lines", "closed", said(scenes.stopped_busy, "INFO:     connection closed"), False, True, "closed", back=True),
    Row(
        "1.3 websocket lines",
        "denied",
        lines("stderr", 2, answers(upgrade("/deny?q=1"))),
        ['INFO:     * - "WebSocket /deny?q=1" 403', "INFO:     connection rejected (403 Forbidden)"],
    ),
    Row("1.3 warnings", "invalid request", lines("stderr", 1, answers(b"nonsense\r\n\r\n")), ["WARNING:  Invalid HTTP request received."]),
    Row(
        "1.3 warnings",
        "upgrade",
        lines("stderr", 1, answers(get("/hello", "Upgrade: x", "Connection: Upgrade, close", close=False))),
        ["WARNING:  Unsupported upgrade request."],
    ),
    Row("1.3 errors", "an exception", lines("stderr", 1, answers(get("/raises"))), ["ERROR:    Exception in ASGI application"]),
    Row("1.3 errors", "no start", lines("stderr", 1, answers(get("/nothing"))), ["ERROR:    ASGI callable returned without starting response."]),
    Row("1.3 errors", "no end", lines("stderr", 1, answers(get("/start-only"))), ["ERROR:    ASGI callable returned without completing response."]),
    Row(
        "1.3 errors",
        "a result",
        lines("stderr", 1, answers(get("/result"))),
        ["ERROR:    ASGI callable should return None, but returned 'something'."],
    ),
    Row(
        "1.3 errors",
        "no handshake",
        lambda server: lines("stderr", 1, answers(upgrade("/return")))(server)[0],
        "ERROR:    ASGI callable returned without completing handshake.",
    ),
    same(
        "1.3 start lines, 1.0 5",
        "in order, brand aside",
        sayings(scenes.single, "INFO:     Started server", "INFO:     Waiting for application startup", "INFO:     Application startup"),
        ["INFO:     Started server process [*]", "INFO:     Waiting for application startup.", "INFO:     Application startup complete."],
    ),
    same(
        "1.3 start lines, 1.0 5",
        "running on",
        said(scenes.single, "INFO:     Uvicorn running on http://* (Press CTRL+C to quit)"),
        True,
        False,
        "brand",
    ),
    same(
        "1.3 start lines",
        "of a unix socket",
        said(scenes_options.on_unix, "INFO:     Uvicorn running on unix socket server.sock (Press CTRL+C to quit)"),
        True,
        False,
        "brand",
    ),
    same(
        "1.3 start lines",
        "of a parent",
        sayings(scenes.single, "INFO:     Started parent"),
        [],
        ["INFO:     Started parent process [*]"],
        "master",
        back=["INFO:     Started parent process [*]"],
    ),
    same(
        "1.3 stop lines",
        "in order",
        sayings(scenes.single, *ENDING),
        [
            "INFO:     Shutting down",
            "INFO:     Waiting for application shutdown.",
            "INFO:     Application shutdown complete.",
            "INFO:     Finished server process [*]",
        ],
    ),
    same("1.3 lifespan lines", "unsupported", said(scenes_options.without_lifespan, UNSUPPORTED), True),
    same(
        "1.3 lifespan lines, 1.7 startup.failed",
        "failed",
        told("fails:app", *PORT, files={"fails.py": FAILS}),
        ["ERROR:    no database", "ERROR:    Application startup failed. Exiting."],
    ),
    same(
        "1.3 load errors", "module", told("nothing_there:app", *PORT), ['ERROR:    Error loading ASGI app. Could not import module "nothing_there".']
    ),
    same(
        "1.3 load errors",
        "attribute",
        told("app:nothing.there", *PORT),
        ['ERROR:    Error loading ASGI app. Attribute "nothing.there" not found in module "app".'],
    ),
    same(
        "1.3 load errors",
        "format",
        told("app.app", *PORT),
        ['ERROR:    Error loading ASGI app. Import string "app.app" must be in format "<module>:<attribute>".'],
    ),
    # 1.4 ------------------------------------------------------------------------------------------------------------------------
    same("1.4 usage, 1.0 10", "an unknown option", code("app:app", "--prot", "1"), 2),
    same("1.4 usage", "no application", code(), 2),
    same("1.4 usage", "a wrong value", code("app:app", "--port", "many"), 2),
    same("1.4 start, 1.0 10", "import", code("nothing_there:app", *PORT), 3),
    same("1.4 start", "attribute", code("app:nothing.there", *PORT), 3),
    same("1.4 start", "format", code("app.app", *PORT), 3),
    same(
        "1.4 start",
        "an exception while importing",
        code("raising:app", *PORT, files={"raising.py": "raise ValueError('no')\n"}),
        1,
        3,
        "boot",
        back=3,
    ),
    same("1.4 start", "the port is taken", fact(scenes.occupied, "code"), 3),
    same("1.4 start", "the port is taken: lifespan", fact(scenes.occupied, "marks"), True, False, "bind first", back=False),
    same("1.4 start, 1.0 9", "lifespan", code("fails:app", *PORT, files={"fails.py": FAILS}), 3),
    same(
        "1.4 start, 1.13 4",
        "lifespan, several workers",
        code("fails:app", *PORT, "--workers", "2", files={"fails.py": FAILS}),
        0,
        3,
        "exit codes",
        back=3,
    ),
    same("1.4 signals, 1.0 10", "SIGTERM", fact(scenes.single, "code"), -15, 0, "exit codes", back=0),
    same("1.4 signals, 1.0 10", "SIGINT", fact(scenes.interrupted, "code"), 0),
    same("1.4 signals", "SIGTERM of a parent", fact(scenes.several, "code"), 0),
    same("1.4 signals, 1.13 8", "SIGHUP", fact(scenes.hung_up, "then"), -1, "hello", "SIGHUP", back="hello"),
    same("1.4 max requests, 1.13 5, 1.1 --limit-max-requests", "", fact(scenes.enough, "then"), 0, "hello", "max requests", back="hello"),
    # 1.5 ------------------------------------------------------------------------------------------------------------------------
    same("1.5 reload, 1.0 15", "a change", fact(scenes.reloaded, "change"), "served"),
    same("1.5 reload, 1.0 15", "an error of syntax ends nothing", fact(scenes.reloaded, "error"), None),
    same("1.5 reload", "who answers meanwhile", fact(scenes.reloaded, "meanwhile"), "nobody answers", "hullo", "reload", back="hullo"),
    same("1.5 reload, 1.0 15", "the next save", fact(scenes.reloaded, "repair"), "served"),
    same("1.5 reload", "exit code", fact(scenes.reloaded, "code"), 0),
    same("1.5 reload, 1.13 2", "while a stream runs", fact(scenes.reloaded_streaming, "then"), "hangs", "served", "stop", back="served"),
    same("1.5 lines", "watching", said(scenes.reloaded, "INFO:     Will watch for changes in these directories: ['.']"), True),
    same(
        "1.5 lines",
        "the change",
        Fact(scenes.reloaded, lambda facts: next(line for line in facts["stderr"] if line.startswith("WARNING"))),
        "WARNING:  WatchFiles detected changes in 'fresh.py'. Reloading...",
    ),
    # 1.6 ------------------------------------------------------------------------------------------------------------------------
    same(
        "1.6 bind in the parent, 1.0 16",
        "the first line",
        fact(scenes.several, "first"),
        "INFO:     Uvicorn running on http://* (Press CTRL+C to quit)",
        "INFO:     Laraman running on http://* (Press CTRL+C to quit)",
        "brand",
    ),
    same(
        "1.6 lines",
        "the parent's",
        sayings(scenes.several, "INFO:     Started parent", "INFO:     Stopping parent"),
        ["INFO:     Started parent process [*]", "INFO:     Stopping parent process [*]"],
    ),
    same("1.6 respawn, 1.0 16", "a killed worker", fact(scenes.several, "killed"), "respawned"),
    same("1.6 respawn", "SIGSTOP", fact(scenes.stopped_process, "then"), "replaced"),
    same("1.6 health, 1.13 6", "a blocked loop", fact(scenes.blocked, "then"), "not noticed", "replaced", "blocked", back="replaced"),
    same("1.6 SIGTTOU", "which one goes", fact(scenes.several, "SIGTTOU"), "the newest"),
    same("1.6 SIGHUP, 1.0 16", "one by one", fact(scenes.several, "SIGHUP"), "the successor is there first"),
    same("1.6 SIGHUP", "serves", fact(scenes.several, "after SIGHUP"), "hello"),
    same(
        "1.6 lines",
        "signals",
        Fact(scenes.several, lambda facts: [line.partition(",")[0] for line in facts["stderr"] if line.startswith("INFO:     Received")]),
        [f"INFO:     Received {name}" for name in ("SIGTTIN", "SIGTTOU", "SIGHUP", "SIGTERM")],
    ),
    # 1.7 ------------------------------------------------------------------------------------------------------------------------
    same("1.7 auto, 1.0 9", "an application that has none is served", fact(scenes_options.without_lifespan, "answer"), "hello"),
    same("1.7 on", "an application that has none is not", code("none:app", *PORT, "--lifespan", "on", files={"none.py": RAISES}), 3),
    same("1.7 off", "it is not asked", fact(scenes_options.lifespan_off, "marks"), []),
    same("1.7 per worker", "several workers: each ends it", Fact(scenes.several, lambda facts: len(facts["marks"])), 5),
    same(
        "1.7 forced exit, 1.13 3",
        "the second Ctrl+C",
        fact(scenes.forced, "marks"),
        [],
        ["lifespan shutdown"],
        "lifespan",
        back=["lifespan shutdown"],
    ),
    same("1.7 forced exit, 1.0 11", "waits for nothing", fact(scenes.forced, "waited"), False),
    # 1.12 -----------------------------------------------------------------------------------------------------------------------
    same("1.12 order, 1.0 11", "", fact(scenes.stopped_busy, "order"), ["websocket", "request", "lifespan shutdown"]),
    same("1.12 websocket, 1.0 11", "1012 at once", fact(scenes.stopped_busy, "websocket"), b"\x88\x02\x03\xf4"),
    same(
        "1.12 requests", "are finished, and told that nothing follows", fact(scenes.stopped_busy, "request"), ("HTTP/1.1 200 OK", "waited", ["close"])
    ),
    same("1.12 idle", "are closed", fact(scenes.stopped_busy, "idle"), b""),
    same(
        "1.12 deadline, 1.0 11, 1.1 --timeout-graceful-shutdown",
        "what still runs",
        fact(scenes.stopped_late, "answer"),
        ("HTTP/1.1 500 Internal Server Error", "Internal Server Error"),
        *[("HTTP/1.1 503 Service Unavailable", "Service Unavailable")],
        "statuses",
        back=("HTTP/1.1 503 Service Unavailable", "Service Unavailable"),
    ),
    same("1.12 deadline", "lifespan", fact(scenes.stopped_late, "marks"), ["lifespan shutdown"]),
    same("1.12 deadline", "the line", said(scenes.stopped_late, "ERROR:    Cancel 1 running task(s), timeout graceful shutdown exceeded"), True),
    same(
        "1.12 deadline",
        "lines, in order",
        sayings(scenes.stopped_late, *ENDING),
        [
            "INFO:     Shutting down",
            "INFO:     Waiting for connections to close. (CTRL+C to force quit)",
            "ERROR:    Cancel 1 running task(s), timeout graceful shutdown exceeded",
            "INFO:     Waiting for application shutdown.",
            "INFO:     Application shutdown complete.",
            "INFO:     Finished server process [*]",
        ],
    ),
    same("1.12 no deadline, 1.13 2", "a request that does not end", fact(scenes.stopped_streaming, "then"), "hangs", "ends", "stop"),
    # 1.1 ------------------------------------------------------------------------------------------------------------------------
    same("1.1 --app-dir", "", fact(scenes_options.elsewhere, "answer"), "hello"),
    same("1.1 --factory", "named", fact(scenes_options.made, "answer"), "hello"),
    same(
        "1.1 --factory, 1.0 1",
        "detected",
        fact(scenes_options.detected, "stderr"),
        ["WARNING:  ASGI app factory detected. Using it, but please consider setting the --factory flag explicitly."],
    ),
    same("1.1 --env-file, 1.0 2", "for the application, and the workers' number", fact(scenes_options.environment, "answer"), "from the file"),
    same("1.1 --env-file", "its line", fact(scenes_options.environment, "line"), ["INFO:     Loading environment from 'some.env'"]),
    same("1.1 --env-file, 1.0 2", "WEB_CONCURRENCY in it", fact(scenes_options.environment, "workers"), 2),
    same("1.1 UVICORN_*, 1.0 2", "", fact(scenes_options.by_variables, "root_path"), "/by-variable"),
    same("1.1 --log-level", "warning", fact(scenes_options.quiet, "stderr"), []),
    same(
        "1.1 --log-config, 1.0 3",
        "a dictionary of JSON with a filter of one's own",
        fact(scenes_options.configured, "stdout"),
        ["own ('/hello', 200)"],
    ),
    same("1.1 --use-colors", "", fact(scenes_options.coloured, "line"), "\x1b[32mINFO\x1b[0m:     Started server process [\x1b[36m*\x1b[0m]"),
    same("1.1 --no-access-log", "", fact(scenes_options.quiet, "stdout"), []),
    same("1.1 --uds", "its mode", fact(scenes_options.on_unix, "mode"), "0o666"),
    same("1.1 --uds", "is taken away", fact(scenes_options.on_unix, "left"), True, False, "unix socket", back=False),
    same("1.1 --fd", "", fact(scenes_options.inherited, "answer"), "hello"),
    same("1.1 --port", "0 picks one and says so", fact(scenes_options.any_port, "answer"), "hello"),
    same("1.1 --interface", "wsgi", fact(scenes_options.wsgi, "answer"), "hello"),
    same("1.1 --interface, 1.0 22", "asgi2, detected", fact(scenes_options.asgi2, "answer"), "hello"),
    same("1.1 --http2", "refused", Fact(failing("app:app", *PORT, "--http2"), lambda facts: facts["code"] != 0), True),
    same("1.1 --version", "", fact(scenes_options.version, "words"), ["Running", "with", "CPython", "on"]),
    same("1.1 --help", "", fact(scenes_options.version, "help"), 0),
]
