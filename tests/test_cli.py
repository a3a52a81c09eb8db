"""The command line: what it takes, what it says, and the exit codes people's scripts look at."""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from laraman import cli
from laraman.cli import serving, tables
from laraman.cli.parsing import VERBS
from laraman.config import OPTIONS
from laraman.config.options import flags
from laraman.errors import ConfigError

from .conftest import clean_environment

if TYPE_CHECKING:
    from collections.abc import Callable

    from laraman.config import Config

    from .conftest import Server

APP = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
"""
VERBS_OF_THE_CLIENT = ["stop", "restart", "reload", "status", "connections"]


@pytest.fixture
def laraman(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command in this process: exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def command(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the real command."""
    return subprocess.run(
        [sys.executable, "-m", "laraman", *arguments],
        cwd=directory,
        env=clean_environment({"PYTHONPATH": str(Path(cli.__file__).parent.parent.parent)}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def configured(*arguments: str) -> Config:
    return serving.configured(["shop:app", *arguments])


# Words ----------------------------------------------------------------------------------------------------------------------------


def test_alone_it_explains_itself_and_fails(laraman: Any) -> None:
    code, out, err = laraman()
    assert (code, out) == (2, "")
    assert "usage: laraman" in err


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]])
def test_help_lists_verbs_and_every_option(laraman: Any, words: list[str]) -> None:
    code, out, err = laraman(*words)
    assert (code, err) == (0, "")
    spelled = [flag for option in OPTIONS.values() if option.metadata["flags"] is not None for flag in flags(option)]
    for word in [*VERBS, *spelled, "--no-access-log", "timeouts"]:
        assert word in out


@pytest.mark.parametrize("words", [["--version"], ["shop:app", "--version"], ["--port", "80", "--version", "shop:app"], ["stop", "--version"]])
def test_version_anywhere(laraman: Any, words: list[str]) -> None:
    code, out, _ = laraman(*words)
    assert code == 0
    assert out == f"Running laraman 0.1.0 with {platform.python_implementation()} {platform.python_version()} on {platform.system()}\n"


@pytest.mark.parametrize("words", [["--port", "80", "shop:app", "--help"], ["shop:app", "-h"]])
def test_help_anywhere(laraman: Any, words: list[str]) -> None:
    assert laraman(*words) == laraman("--help")


@pytest.mark.parametrize("name", ["UVICORN_APP", "LARAMAN_APP"])
def test_an_application_of_the_environment_needs_no_words(place: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    heard: list[str] = []

    def start(arguments: list[str]) -> int:
        heard.append(serving.configured(arguments).app)
        return 0

    monkeypatch.setattr(serving, "start", start)
    monkeypatch.setenv(name, "shop:app")
    assert cli.main([]) == 0
    assert heard == ["shop:app"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["strat"], f"'strat' is neither a verb ({', '.join(VERBS)}) nor an application"),
        (["strat"], "did you mean 'start'?"),
        (["start", "shop:app", "--prot", "1"], "there is no option '--prot'; did you mean '--port'?"),
        (["start", "shop:app", "--prot=1"], "there is no option '--prot'; did you mean '--port'?"),
        (["shop:app", "--por", "1"], "there is no option '--por'"),
        (["shop:app", "other:app"], "'other:app' is one word too many"),
        (["shop:app", "--port"], "argument --port: expected one argument"),
        (["shop:app", "--port", "70000"], "--port: 70000 is not in 0..65535"),
        (["shop:app", "--port", "-1"], "--port: -1 is not in 0..65535"),
        (["--port", "70000", "shop:app"], "--port: 70000 is not in 0..65535"),
        (["--port", "0", "status"], "the verb comes first: laraman status"),
        (["start"], "no application: name it"),
        (["start", "--workers", "some"], "--workers: 'some' is neither"),
        (["status", "--port", "x"], "--port: 'x' is not a whole number"),
        (["status", "--name", "../x"], "--name: '../x' is not a name"),
        (["stop", "--workers", "2"], "there is no option '--workers'"),
        (["start", "shop:app", "--log-file", "none/x.log"], "cannot open the log file none/x.log: No such file or directory"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(laraman: Any, words: list[str], says: str) -> None:
    code, out, err = laraman(*words)
    assert (code, out) == (2, "")
    assert err.startswith("laraman: ")
    assert err.count("\n") == 1
    assert says in err


def test_an_unreadable_configuration_is_one_line_and_exit_code_2(laraman: Any, place: Path) -> None:
    (place / "pyproject.toml").write_text("[tool.laraman\n")
    code, _, err = laraman("start", "shop:app")
    assert code == 2
    assert err.startswith("laraman: pyproject.toml: ")
    assert "line 1" in err
    assert err.count("\n") == 1


def test_a_listener_module_that_does_not_exist_is_one_line(place: Path) -> None:
    result = command(place, "start", "shop:app", "--listener", "nowhere")
    assert (result.returncode, result.stderr) == (2, "laraman: there is no listener module 'nowhere'\n")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("raise ValueError('first\\nsecond')", "cannot be imported: ValueError: first ("),
        ("import nothing_like_it", "cannot be imported: ModuleNotFoundError: No module named 'nothing_like_it' ("),
        ("def (", "cannot be imported: SyntaxError: "),
        ("raise SystemExit(5)", "cannot be imported: SystemExit: 5 ("),
    ],
)
def test_a_listener_module_that_does_not_import_is_one_line(place: Path, source: str, says: str) -> None:
    (place / "broken_listeners.py").write_text(source + "\n")
    result = command(place, "start", "shop:app", "--listener", "broken_listeners")
    assert result.returncode == 2
    assert result.stderr.startswith("laraman: the listener module 'broken_listeners' ")
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


# Options --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("place")
def test_options_as_uvicorn_spells_them() -> None:
    config = configured(
        *["--host", "0.0.0.0", "--no-access-log", "--ws-per-message-deflate", "false", "--header", "A:1", "--header", "B:2"],
        *["--timeout-keep-alive=7", "--factory", "--use-colors", "--log-level", "trace", "--listener", "a", "--listener", "b", "-d"],
    )
    assert config.app == "shop:app"
    assert config.host == "0.0.0.0"
    assert (config.access_log, config.ws_per_message_deflate, config.header) == (False, False, ("A:1", "B:2"))
    assert (config.timeout_keep_alive, config.factory, config.use_colors, config.log_level) == (7, True, True, "trace")
    assert (config.listeners, config.daemon) == (("a", "b"), True)


@pytest.mark.usefixtures("place")
def test_an_application_may_come_after_its_options() -> None:
    assert serving.configured(["--port", "1", "shop:app", "--workers", "2"]).app == "shop:app"


def test_the_application_is_found(place: Path) -> None:
    with pytest.raises(ConfigError, match="no application"):
        serving.configured([])
    (place / "app").mkdir()
    (place / "app" / "main.py").write_text(APP)
    assert serving.configured([]).app == "app.main:app"
    (place / "sub").mkdir()
    (place / "sub" / "api.py").write_text(APP)
    assert serving.configured(["--app-dir", "sub"]).app == "api:app"
    (place / "pyproject.toml").write_text('[tool.laraman]\napp = "named:app"\n')
    assert serving.configured([]).app == "named:app"


@pytest.mark.parametrize("words", [["shop:app"], ["shop.main"], ["--port", "1"], ["--port", "1", "shop:app"]])
def test_no_verb_means_start(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    heard: list[list[str]] = []

    def start(arguments: list[str]) -> int:
        heard.append(arguments)
        return 0

    monkeypatch.setattr(serving, "start", start)
    assert cli.main(words) == 0
    assert heard == [words]


def test_an_error_that_nobody_planned_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "start", lambda arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["shop:app"])


# Tables ---------------------------------------------------------------------------------------------------------------------------


def test_status_table(capsys: pytest.CaptureFixture[str]) -> None:
    server = {"version": "0.1.0", "name": "shop", "pid": 7, "app": "shop:app", "addresses": ["http://127.0.0.1:8000"]}
    row = {"worker": "http", "slot": 0, "pid": 8, "state": "ready", "generation": 2, "rss": 30 * 2**20, "uptime": 61.5, "requests": 12345}
    rest = {"in_flight": 1, "connections_in": 2, "connections_out": 3, "restarts": 4, "last_exit": "killed by\n\x1b[2JSIGKILL"}
    waiting = {**row, **rest, "slot": 1, "pid": None, "state": "waiting", "rss": None, "last_exit": None}
    tables.print_status({"server": {**server, "uptime": 3725, "generation": 2, "state": "running"}, "processes": [{**row, **rest}, waiting]})
    assert capsys.readouterr().out.splitlines() == [
        "laraman 0.1.0  shop  pid 7  shop:app  http://127.0.0.1:8000  up 1h02m  generation 2  running",
        "",
        "WORKER  SLOT  PID  STATE    GEN    RSS  UPTIME  REQUESTS  IN-FLIGHT  CONN-IN  CONN-OUT  RESTARTS  LAST EXIT",
        "http       0    8  ready      2  30.0M   1m01s     12345          1        2         3         4  killed by\\n\\x1b[2JSIGKILL",
        "http       1    -  waiting    2      -   1m01s     12345          1        2         3         4  -",
    ]


def test_connections_table(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"pid": 8, "worker": "http", "slot": 0, "direction": "out", "protocol": "frame", "local": "127.0.0.1:5", "peer": "127.0.0.1:9100"}
    rest = {"state": "up", "bytes_in": 1, "bytes_out": 2, "messages_in": 3, "messages_out": 4, "age": 90000, "name": "far"}
    rest |= {"queued": 5, "failures": 6}
    tables.print_connections({"rows": [{**row, **rest}], "missing": ["http:1"], "left_out": 3})
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "PID  WORKER  DIR  PROTOCOL  LOCAL        PEER            STATE  BYTES-IN  BYTES-OUT  MSGS-IN  MSGS-OUT  QUEUED  RETRIES    AGE  NAME",
        "  8  http:0  out  frame     127.0.0.1:5  127.0.0.1:9100  up            1          2        3         4       5        6  1d01h  far",
    ]
    assert captured.err == "laraman: no answer from http:1\nlaraman: 3 more are not shown\n"
    # Who stands behind a proxy has a column.
    tables.print_connections({"rows": [{**row, **rest, "client": "203.0.113.9:0"}, {**row, **rest}]})
    head, *lines = capsys.readouterr().out.splitlines()
    at = head.index("CLIENT")
    assert [line[at:].split()[0] for line in lines] == ["203.0.113.9:0", "-"]


# Against nothing ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS_OF_THE_CLIENT)
def test_not_running_is_exit_code_1(laraman: Any, place: Path, verb: str) -> None:
    assert laraman(verb) == (1, "", f"laraman: not running: no server was started from {place}\n")
    assert laraman(verb, "--port", "9")[2] == f"laraman: not running: no server called 9 was started from {place}\n"
    assert list(place.iterdir()) == []


def test_a_mistake_in_another_option_keeps_nobody_from_stopping(laraman: Any, place: Path) -> None:
    (place / "pyproject.toml").write_text("[tool.laraman]\nprot = 1\nport = 'x'\n")
    assert laraman("stop")[0] == 1
    (place / "pyproject.toml").write_text("[tool.laraman]\nstate_dir = 3\n")
    assert laraman("stop")[0] == 2
    assert laraman("stop", "--state-dir", "elsewhere")[0] == 1


def test_asking_is_light(place: Path) -> None:
    """No event loop, no application, no server code: it is what watchdogs call every second."""
    (place / "main.py").write_text("raise SystemExit('imported')\n")
    code = (
        "import sys; from laraman.cli import main; print(main(['status']));"
        "print(*sorted({'asyncio', 'anyio', 'laraman.asgi', 'laraman.process.master', 'main'} & set(sys.modules)))"
    )
    environment = clean_environment({"PYTHONPATH": str(Path(cli.__file__).parent.parent.parent)})
    result = subprocess.run([sys.executable, "-c", code], cwd=place, env=environment, capture_output=True, text=True, timeout=30)
    assert result.stdout.split("\n")[:2] == ["1", ""], result.stderr


# Against the real thing -----------------------------------------------------------------------------------------------------------


def test_the_life_of_a_server_in_verbs(server: Callable[..., Server]) -> None:
    running = server("main:app", "--workers", "2", files={"main.py": APP})
    port = str(running.port)

    status = running.cli("status")
    assert status.returncode == 0, status.stderr
    header, _, columns, *rows = status.stdout.splitlines()
    assert header.startswith(f"laraman 0.1.0  {port}  pid {running.pid}  main:app  http://127.0.0.1:{port}  up ")
    assert columns.split() == "WORKER SLOT PID STATE GEN RSS UPTIME REQUESTS IN-FLIGHT CONN-IN CONN-OUT RESTARTS LAST EXIT".split()
    assert [row.split()[:2] for row in rows] == [["http", "0"], ["http", "1"]]
    assert running.cli("connections", "--port", port).stdout.split()[:2] == ["PID", "WORKER"]
    assert running.connections() == []

    before = {row["pid"] for row in running.processes()}
    reloaded = running.cli("reload")
    assert (reloaded.returncode, reloaded.stdout) == (0, f"Reloaded {port} [{running.pid}]\n"), reloaded.stderr
    assert not before & {row["pid"] for row in running.processes()}

    restarted = running.cli("restart")
    assert (restarted.returncode, restarted.stdout) == (0, f"Restarted {port} [{running.pid}]\n"), restarted.stderr

    wrong = running.cli("status", "--port", "1")
    assert (wrong.returncode, wrong.stdout) == (1, "")

    stopped = running.cli("stop")
    assert (stopped.returncode, stopped.stdout) == (0, f"Stopped {port} [{running.pid}]\n"), stopped.stderr
    assert running.process.wait(5) == 0
    assert running.cli("status").returncode == 1


def test_workers_beside_reload_are_one_and_a_remark(server: Callable[..., Server]) -> None:
    running = server("main:app", "--reload", "--workers", "2", files={"main.py": APP})
    assert running.output.count('WARNING:  "workers" flag is ignored when reloading is enabled.') == 1
    assert len(running.processes()) == 1


def test_a_reload_of_broken_code_fails_and_says_so(server: Callable[..., Server]) -> None:
    running = server("main:app", files={"main.py": APP})
    before = running.processes()
    (running.directory / "main.py").write_text("raise ValueError('broken')\n")
    reloaded = running.cli("reload")
    assert reloaded.returncode == 1
    assert reloaded.stderr.startswith("laraman: reload failed: ")
    assert "broken" in reloaded.stderr
    assert reloaded.stderr.count("\n") == 1
    assert [row["pid"] for row in running.processes()] == [row["pid"] for row in before]


def test_a_restart_with_a_broken_configuration_is_refused(server: Callable[..., Server]) -> None:
    running = server("main:app", files={"main.py": APP})
    (running.directory / "pyproject.toml").write_text("[tool.laraman]\nbacklog = 'x'\n")
    restarted = running.cli("restart")
    assert restarted.returncode == 1
    assert restarted.stderr == "laraman: restart failed: pyproject.toml: [tool.laraman] backlog: 'x' is not a whole number\n"
    assert running.cli("status").returncode == 0


def test_several_servers_need_a_choice(server: Callable[..., Server], free_port: int) -> None:
    running = server("main:app", "--name", "one", files={"main.py": APP})
    other = running.cli("start", "main:app", "--port", str(free_port), "-d")
    assert other.returncode == 0, other.stderr
    result = running.cli("status")
    assert result.returncode == 2
    assert "several servers run here, choose one with --name or --port: " in result.stderr
    assert json.loads(running.cli("status", "--json", "--name", "one").stdout)["server"]["pid"] == running.pid
    assert running.cli("stop", "--port", str(free_port)).returncode == 0
    assert running.cli("status").returncode == 0


def test_graceful_stop(server: Callable[..., Server]) -> None:
    running = server("main:app", files={"main.py": APP})
    assert running.cli("stop", "-g").returncode == 0
    assert running.process.wait(5) == 0


def test_a_daemon_returns_when_it_is_ready(server: Callable[..., Server], free_port: int) -> None:
    running = server("main:app", "--port", str(free_port), "-d", files={"main.py": APP}, ready=False)
    assert running.process.wait(30) == 0, running.output
    assert running.output.startswith(f"Laraman running on http://127.0.0.1:{free_port} [")
    status = running.status()
    assert [row["state"] for row in status["processes"]] == ["ready"]
    assert running.cli("stop").returncode == 0
    log = (running.directory / ".laraman" / str(free_port) / "laraman.log").read_text()
    assert "Application startup complete." in log
    assert "\033" not in log


@pytest.mark.parametrize("daemon", [[], ["-d"]], ids=["foreground", "daemon"])
@pytest.mark.parametrize(
    ("app", "line"),
    [
        ("nothing:app", 'Error loading ASGI app. Could not import module "nothing".'),
        ("main:nothing", 'Error loading ASGI app. Attribute "nothing" not found in module "main".'),
        ("main.py", 'Error loading ASGI app. Import string "main.py" must be in format "<module>:<attribute>".'),
    ],
)
def test_an_application_that_is_not_there_is_exit_code_3(place: Path, app: str, line: str, daemon: list[str]) -> None:
    (place / "main.py").write_text(APP)
    result = command(place, "start", app, "--port", "0", *daemon)
    assert result.returncode == 3
    assert line in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("daemon", [[], ["-d"]], ids=["foreground", "daemon"])
def test_a_busy_port_is_one_line_and_exit_code_3(server: Callable[..., Server], tmp_path: Path, daemon: list[str]) -> None:
    running = server("main:app", files={"main.py": APP})
    (tmp_path / "main.py").write_text(APP)
    result = command(tmp_path, "main:app", "--port", str(running.port), *daemon)
    assert result.returncode == 3
    assert f"cannot listen on http://127.0.0.1:{running.port}: Address already in use" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_failure_that_only_the_log_file_tells_is_announced(place: Path) -> None:
    result = command(place, "nothing:app", "--port", "0", "--log-file", "x.log")
    assert (result.returncode, result.stderr) == (3, "laraman: ended with exit code 3; x.log says why\n")
    assert "Could not import" in (place / "x.log").read_text()


def test_status_is_fast(server: Callable[..., Server]) -> None:
    running = server("main:app", files={"main.py": APP})

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert running.cli("status").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(once() for _ in range(5)) < 0.25  # seconds of CPU, which others on this machine do not take; 75 ms on a quiet one
