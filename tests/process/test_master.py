"""The master as a process, with stand-in workers that behave as badly as a test needs."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from laraman.config import Config
from laraman.errors import ConfigError
from laraman.process.master import Master
from laraman.process.worker import Worker
from tests.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.process.conftest import Served

pytestmark = pytest.mark.fork

REAL_ECHO = {"kind": "real", "name": "echo", "address": "text://127.0.0.1:0", "handler": "tests.process.serve:Echo"}
REAL_IDLE = {"kind": "real", "name": "idle", "handler": "tests.process.serve:Idle"}


def descriptors(pid: int) -> dict[int, str]:
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found[int(entry.name)] = os.readlink(entry)
        except FileNotFoundError:
            continue
    return found


def sockets(pid: int) -> set[str]:
    return {target for target in descriptors(pid).values() if target.startswith("socket:")}


def zombies(parent: int) -> list[int]:
    found = []
    for pid in map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split()):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                found.append(pid)
        except FileNotFoundError:
            continue
    return found


def row_where(served: Served, wanted: Callable[[dict[str, Any]], object], worker: str = "http") -> dict[str, Any]:
    """The first of the worker's rows that is as wanted, as soon as there is one."""
    return wait_until(lambda: [row for row in served.processes(worker) if wanted(row)])[0]


def ask(port: int, line: str) -> str:
    with socket.create_connection(("127.0.0.1", port), 5) as client, client.makefile("r") as answers:
        client.sendall(f"{line}\n".encode())
        return answers.readline().strip()


# Start and stop -------------------------------------------------------------------------------------------------------------------


def test_it_starts_shows_itself_and_stops_clean(serve: Callable[..., Served]) -> None:
    served = serve({"name": "http", "address": "http://127.0.0.1:0", "count": 2}, {"name": "idle"}, app="some.app:app")
    server = served.server()
    assert (server["pid"], server["app"], server["state"], server["generation"]) == (served.pid, "some.app:app", "running", 1)
    assert [(row["worker"], row["slot"], row["restarts"]) for row in served.request("status")["processes"]] == [
        ("http", 0, 0),
        ("http", 1, 0),
        ("idle", 0, 0),
    ]
    row = row_where(served, lambda row: row["requests"] == 7)
    assert (row["in_flight"], row["connections_in"], row["connections_out"]) == (1, 2, 3)
    assert row["rss"] > 1_000_000
    assert (served.directory / "state/laraman.pid").read_text() == f"{served.pid}\n"
    assert f"Laraman running on {server['addresses'][0]} (Press CTRL+C to quit)" in served.output
    assert f"Started parent process [{served.pid}]" in served.output
    assert served.request("stop")["ok"]
    assert served.process.wait(10) == 0
    assert not (served.directory / "state").exists()
    assert f"Stopping parent process [{served.pid}]" in served.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_signals_stop_it(serve: Callable[..., Served], number: int) -> None:
    assert serve().stop(number) == 0


def test_what_does_not_stop_is_killed_at_its_deadline(serve: Callable[..., Served]) -> None:
    served = serve(behaviour="deaf", timeout_graceful_shutdown=0.1)
    began = time.monotonic()
    assert served.stop() == 0
    assert 2.0 < time.monotonic() - began < 6
    assert served.output.count("did not stop in time, killing it") == 2


def test_the_second_interrupt_gives_no_more_time_the_third_kills_and_quit_has_no_deadline(serve: Callable[..., Served]) -> None:
    served = serve(behaviour="deaf", timeout_graceful_shutdown=0.1)
    served.kill(signal.SIGQUIT)
    wait_until(lambda: served.server()["state"] == "stopping")
    assert served.request("reload") == {"op": "reload", "ok": False, "error": "the server is stopping"}
    served.kill(signal.SIGTERM)  # a deadline
    wait_until(lambda: len(served.pids()) == 2 and served.server()["state"] == "stopping")
    served.kill(signal.SIGINT)
    wait_until(lambda: "SIGINT again: running requests are cut off" in served.output)
    began = time.monotonic()
    served.kill(signal.SIGINT)
    assert served.process.wait(10) == 0
    assert time.monotonic() - began < 1.5
    assert "SIGINT again: killing what is left" in served.output


def test_the_master_lets_go_of_the_port_before_the_workers_are_told(serve: Callable[..., Served]) -> None:
    served = serve({"name": "http", "address": "http://127.0.0.1:0"}, behaviour="linger")
    port = served.port()
    with socket.create_connection(("127.0.0.1", port), 5):
        served.kill(signal.SIGTERM)
        wait_until((served.directory / "lingering").exists)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 5)
    assert served.process.wait(10) == 0


def test_a_unix_socket_is_removed_at_the_end(serve: Callable[..., Served]) -> None:
    served = serve({"name": "http", "address": "http+unix://web.sock"}, uds="web.sock")
    assert (served.directory / "web.sock").is_socket()
    assert "Laraman running on unix socket web.sock" in served.output
    assert served.server()["name"] == "web.sock"
    assert served.stop() == 0
    assert not (served.directory / "web.sock").exists()


# A start that fails ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("behaviour", "code"), [("fail3", 3), ("fail2", 2)])
def test_a_first_boot_that_fails_ends_the_server_with_one_line(serve: Callable[..., Served], behaviour: str, code: int) -> None:
    served = serve(behaviour=behaviour, ready=False)
    assert served.process.wait(10) == code
    assert served.output.count("could not start: it does not work") == 1


def test_a_crash_loop_ends_visibly(serve: Callable[..., Served]) -> None:
    served = serve({"name": "http"}, behaviour="crash", ready=False, max_failures=3)
    assert served.process.wait(10) == 3
    assert "http:0 could not start: exit code 7" in served.output


def test_a_worker_that_never_gets_ready_is_not_waited_for_for_ever(serve: Callable[..., Served]) -> None:
    served = serve({"name": "http"}, behaviour="mute", ready=False, timeout_worker_boot=0.3)
    assert served.process.wait(10) == 3
    assert "http:0 could not start: not ready after 0.3 s" in served.output
    assert "in serve" in served.output, "its stack"


def test_a_busy_port_is_one_clear_line(serve: Callable[..., Served]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        served = serve({"name": "http", "address": address}, ready=False)
        assert served.process.wait(10) == 3
        assert served.output.count("\n") == 1
        assert f"cannot listen on {address}: Address already in use" in served.output


def test_a_second_server_in_the_same_directory_is_refused(serve: Callable[..., Served]) -> None:
    first = serve()
    second = serve(state_dir=str(first.directory / "state"), ready=False)
    assert second.process.wait(10) == 3
    assert f"already running with pid {first.pid}" in second.output
    assert first.is_ready()


def test_without_a_place_for_its_state_it_runs_all_the_same(serve: Callable[..., Served], tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    # A name that is too long for a socket takes the fallbacks too.
    served = serve(ready=False, state_dir=str(blocked / "state"), name="n" * 100)
    wait_until(lambda: "Started parent process" in served.output)
    assert "No state directory can be created" in served.output
    assert served.stop() == 0


# Listeners ------------------------------------------------------------------------------------------------------------------------


def test_master_events_are_told_in_order(serve: Callable[..., Served]) -> None:
    served = serve({"name": "idle"}, listeners=["record", "add"])
    assert [row["worker"] for row in served.request("status")["processes"]] == ["idle", "added"]
    assert served.stop() == 0
    told = (served.directory / "events").read_text().splitlines()
    assert told == ["ServerStarting", "ServerStarted", "ServerStopping", "WorkerExited exit code 0", "WorkerExited exit code 0"]


def test_a_listener_can_refuse_the_start_and_be_interrupted(serve: Callable[..., Served]) -> None:
    served = serve(listeners=["refuse"], ready=False)
    assert served.process.wait(10) == 2
    assert "the listener says no" in served.output
    slow = serve(listeners=["slow"], ready=False)
    wait_until((slow.directory / "slow").exists)
    assert slow.stop(signal.SIGINT) == 130


def test_a_thread_in_the_master_is_warned_about(serve: Callable[..., Served]) -> None:
    assert "The master has 2 threads" in serve(listeners=["thread"]).output


def test_a_listeners_own_subprocess_is_left_to_it(serve: Callable[..., Served]) -> None:
    served = serve(listeners=["subprocess"])
    os.kill(next(iter(served.pids())), signal.SIGKILL)
    wait_until(lambda: sum(row["restarts"] for row in served.processes()) == 1)
    assert served.stop() == 0
    assert (served.directory / "subprocess").read_text() == "7"


def test_workers_are_added_while_it_starts_and_have_names_of_their_own() -> None:
    master = Master(Config(), [Worker("one")])
    with pytest.raises(ConfigError, match="two workers are called 'one'"):
        master.add(Worker("one"))
    master.phase = "running"
    with pytest.raises(ConfigError, match="comes too late"):
        master.add(Worker("two"))


# Deaths ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "words"), [(signal.SIGKILL, "killed by SIGKILL"), (signal.SIGABRT, "killed by SIGABRT")])
def test_a_killed_worker_is_replaced_and_the_reason_kept(serve: Callable[..., Served], number: int, words: str) -> None:
    served = serve(listeners=["record"])
    victim = served.processes()[1]
    os.kill(victim["pid"], number)
    row = row_where(served, lambda row: row["restarts"] and row["state"] == "ready")
    assert (row["slot"], row["last_exit"]) == (1, words)
    assert row["pid"] not in (None, victim["pid"])
    (death,) = served.server()["deaths"]
    assert (death["pid"], death["reason"]) == (victim["pid"], words)
    assert f"Worker http:1 [{victim['pid']}]: {words}" in served.output
    assert f"WorkerExited {words}" in (served.directory / "events").read_text()


def test_a_hung_worker_is_seen_its_stack_logged_once_and_it_is_replaced(serve: Callable[..., Served]) -> None:
    served = serve({"name": "http"}, behaviour="hang", ready=False, timeout_worker_healthcheck=0.4)
    wait_until(lambda: "is hung (no beat for 0.4 s)" in served.output)
    served.behave("good")
    served.wait_ready()
    row = row_where(served, lambda row: row["last_exit"])
    assert row["last_exit"].startswith("hung: no beat for 0.4 s, at ")
    assert row["last_exit"].endswith("in hang")
    assert served.output.count("Stack of worker http:0") == served.output.count("is hung")


def test_nonsense_on_the_channel_is_the_end_of_it(serve: Callable[..., Served]) -> None:
    served = serve({"name": "http"}, behaviour="garbage", ready=False)
    assert served.process.wait(10) == 3
    assert "could not start: its channel ended and it did not" in served.output


def test_a_stopped_master_does_not_hold_its_pause_against_the_workers(serve: Callable[..., Served]) -> None:
    served = serve({"name": "http"}, timeout_worker_healthcheck=1.0)
    before = served.pids()
    worker = before.copy().pop()
    for pid in (served.pid, worker):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(3)  # the pause itself is what is tested
    for pid in (worker, served.pid):  # the worker first: from the master's first look on, it is expected to beat
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: served.processes()[0]["uptime"] > 4)
    assert served.pids() == before


# Reload, scale, reopen ------------------------------------------------------------------------------------------------------------


def test_reload_replaces_every_worker_that_can_be_and_says_which_cannot(serve: Callable[..., Served]) -> None:
    served = serve({"name": "http", "count": 5}, {"name": "fixed", "reloadable": False}, listeners=["record"])
    before, fixed = served.pids(), served.pids("fixed")
    assert served.request("reload", id=5) == {"op": "reload", "id": 5, "ok": True, "not_reloadable": ["fixed"]}
    assert not before & served.pids()
    assert served.pids("fixed") == fixed
    assert {row["generation"] for row in served.processes()} == {2}
    assert {row["restarts"] for row in served.processes()} == {0}
    served.kill(signal.SIGHUP)
    wait_until(lambda: {row["generation"] for row in served.processes()} == {3} and len(served.pids()) == 5)


def test_a_reload_that_cannot_boot_leaves_the_old_workers(serve: Callable[..., Served]) -> None:
    served = serve()
    before = served.pids()
    for how, why in (("fail3", "it does not work"), ("crash", "exit code 7")):
        served.behave(how)
        answer = served.request("reload")
        assert answer["ok"] is False
        assert answer["error"] == f"the new http workers cannot start: {why}"
        assert served.server()["last_roll_error"] == answer["error"]
        assert served.pids() == before
    served.behave("good")
    assert served.request("reload")["ok"]
    assert not served.pids() & before
    assert served.server()["last_roll_error"] is None


def test_scale_by_signal_and_command(serve: Callable[..., Served]) -> None:
    served = serve()
    served.kill(signal.SIGTTIN)
    wait_until(lambda: len(served.pids()) == 3)
    for _ in range(2):
        served.kill(signal.SIGTTOU)
        time.sleep(0.1)  # two of a kind at once are one
    wait_until(lambda: len(served.pids()) == 1)
    served.kill(signal.SIGTTOU)
    assert served.request("scale", worker="http", count=4) == {"op": "scale", "ok": True}
    assert len(served.pids()) == 4
    for fields in ({"worker": "http", "count": 0}, {"worker": "http", "count": True}, {"worker": "x", "count": 1}, {"worker": ["x"]}, {}):
        assert served.request("scale", **fields)["ok"] is False


def test_logs_are_reopened_everywhere(serve: Callable[..., Served]) -> None:
    served = serve(log_file="server.log")
    (served.directory / "server.log").rename(served.directory / "rotated.log")
    served.kill(signal.SIGUSR1)
    wait_until(lambda: all((served.directory / f"reopened-{pid}").exists() for pid in served.pids()))
    assert served.request("reopen")["ok"]
    assert served.stop() == 0
    assert "Stopping parent process" in (served.directory / "server.log").read_text()


# The control socket ---------------------------------------------------------------------------------------------------------------


def test_hostile_clients_hold_nobody_up(serve: Callable[..., Served]) -> None:
    served = serve()
    clients = []
    for hostile in (b"", b"\0\0", b"\xff\xff\xff\xff", b"\0\0\0\2[]", b'\0\0\0\x0f{"op":"status"}' * 3000):
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(served.control))
        client.setblocking(False)
        if hostile:
            client.send(hostile)
        clients.append(client)
    began = time.monotonic()
    assert served.request("ping", id="mine") == {"op": "ping", "id": "mine", "ok": True}
    assert time.monotonic() - began < 5
    for _ in range(70):
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(served.control))
        clients.append(client)
        assert served.request("ping")["ok"]
    assert served.request("nonsense")["error"] == "unknown command 'nonsense'"
    for client in clients:
        client.close()
    assert served.is_ready()


def test_connections_are_gathered_and_the_silent_named(serve: Callable[..., Served]) -> None:
    served = serve()
    answer = served.request("connections")
    assert {row["pid"] for row in answer["rows"]} == served.pids()
    assert (answer["missing"], answer["left_out"]) == ([], 0)
    served.behave("silent")
    served.request("scale", worker="http", count=3)
    began = time.monotonic()
    assert served.request("connections")["missing"] == ["http:2"]
    assert 0.9 < time.monotonic() - began < 4


# Restart --------------------------------------------------------------------------------------------------------------------------


def test_restart_is_a_new_image_with_the_same_port_and_pid_twice(serve: Callable[..., Served]) -> None:
    served = serve()
    port, open_before = served.port(), len(descriptors(served.pid))
    os.kill(served.processes()[0]["pid"], signal.SIGKILL)
    wait_until(lambda: sum(row["restarts"] for row in served.processes()) == 1 and served.is_ready())
    for restarts in (1, 2):
        before = served.pids()
        assert served.restart() == {"op": "restart", "ok": True}
        server = served.server()
        assert (server["pid"], server["restarts"], server["rolling"]) == (served.pid, restarts, False)
        assert (served.port(), len(server["deaths"])) == (port, 1)
        assert not before & served.pids()
        assert sum(row["restarts"] for row in served.processes()) == 1
    wait_until(lambda: len(descriptors(served.pid)) <= open_before)
    assert served.request("reload")["ok"]
    assert served.stop() == 0


def test_a_restart_is_refused_when_the_configuration_does_not_load(serve: Callable[..., Served]) -> None:
    served = serve()
    before = served.pids()
    served.behave("misconfigured")
    assert served.restart() == {"op": "restart", "ok": False, "error": "the configuration is broken"}
    assert served.pids() == before
    assert served.server()["restarts"] == 0


def test_a_restart_whose_workers_cannot_boot_keeps_the_old_ones(serve: Callable[..., Served]) -> None:
    served = serve()
    before = served.pids()
    served.behave("fail3")
    assert served.restart()["error"] == "the new http workers cannot start: it does not work"
    assert served.pids() == before
    served.behave("good")
    assert served.restart()["ok"]
    assert not served.pids() & before


@pytest.mark.parametrize(("behaviour", "why"), [("refuse", "the listener says no"), ("unprepared", "the preparation fails")])
def test_a_restart_that_cannot_start_keeps_everything_running(serve: Callable[..., Served], behaviour: str, why: str) -> None:
    served = serve({"name": "http", "address": "http://127.0.0.1:0", "count": 2}, REAL_ECHO, listeners=["refuse later"])
    ports = served.port(0), served.port(1)
    before = served.pids()
    served.behave(behaviour)
    for _ in range(2):
        assert served.restart() == {"op": "restart", "ok": False, "error": why}
        assert served.pids() == before
        assert ask(ports[1], "hello").endswith("hello")
    served.behave("good")
    os.kill(served.processes()[1]["pid"], signal.SIGKILL)
    row_where(served, lambda row: row["last_exit"] and row["state"] == "ready")
    assert served.restart()["ok"]
    assert (served.port(0), served.port(1)) == ports
    assert len(served.pids()) == 2
    assert not before & served.pids()
    assert ask(ports[1], "hello").endswith("hello")


def test_an_interpreter_that_is_gone_is_reported(serve: Callable[..., Served]) -> None:
    served = serve(argv=["/nowhere/python"])
    before = served.pids()
    assert served.restart()["error"] == "cannot execute /nowhere/python: No such file or directory"
    assert served.pids() == before
    assert served.request("reload")["ok"]


# Descriptors, zombies, orphans ----------------------------------------------------------------------------------------------------


def test_a_child_holds_nothing_of_its_siblings_or_the_master(serve: Callable[..., Served]) -> None:
    served = serve({"name": "http", "address": "http://127.0.0.1:0", "count": 3}, {"name": "idle", "count": 2})
    everybody = {served.pid: sockets(served.pid), **{pid: sockets(pid) for pid in served.pids() | served.pids("idle")}}
    http = [everybody[pid] for pid in served.pids()]
    (listening,) = set.intersection(*http)
    for pid, held in everybody.items():
        others = set().union(*(found for other, found in everybody.items() if other != pid))
        assert held & others <= {listening}, pid
        assert (listening in held) == (pid not in served.pids("idle"))


def kill_one(served: Served, worker: str) -> None:
    victim = served.processes(worker)[0]
    os.kill(victim["pid"], signal.SIGKILL)
    wait_until(lambda: victim["pid"] not in served.pids(worker) and all(row["state"] == "ready" for row in served.processes(worker)))


@pytest.mark.parametrize("worker", [{"name": "http", "address": "http://127.0.0.1:0", "count": 2}, REAL_ECHO], ids=["stand-in", "real"])
def test_fifty_kills_leave_no_zombie_and_no_descriptor(serve: Callable[..., Served], worker: dict[str, Any]) -> None:
    served = serve(dict(worker))
    before = len(descriptors(served.pid))
    for _ in range(50):
        kill_one(served, worker["name"])
    wait_until(lambda: len(descriptors(served.pid)) <= before)
    assert zombies(served.pid) == []
    assert os.listdir(f"/proc/{served.pid}/task") == [str(served.pid)]
    assert len(served.server()["deaths"]) == 10
    assert served.processes(worker["name"])[0]["restarts"] == 50


# With the real Worker -------------------------------------------------------------------------------------------------------------


def test_real_workers_serve_reload_and_stop(serve: Callable[..., Served]) -> None:
    served = serve({**REAL_ECHO, "count": 2}, REAL_IDLE)
    pid, _, word = ask(served.port(), "hello").partition(" ")
    assert (int(pid) in served.pids("echo"), word) == (True, "hello")
    with socket.create_connection(("127.0.0.1", served.port()), 5):
        rows = wait_until(lambda: served.request("connections")["rows"])
        assert rows[0]["pid"] in served.pids("echo")
    assert served.request("reload")["ok"]
    assert served.restart()["ok"]
    assert int(ask(served.port(), "hello").partition(" ")[0]) in served.pids("echo")
    assert served.stop() == 0


def test_a_real_worker_with_a_blocked_loop_is_replaced(serve: Callable[..., Served]) -> None:
    served = serve(REAL_ECHO, timeout_worker_healthcheck=0.5)
    with socket.create_connection(("127.0.0.1", served.port()), 5) as client:
        client.sendall(b"block\n")
        row = row_where(served, lambda row: row["last_exit"], "echo")
    assert "in on_message" in row["last_exit"]
    served.wait_ready()
    assert ask(served.port(), "hello").endswith("hello")


@pytest.mark.parametrize("worker", [{"name": "idle", "count": 3}, {**REAL_ECHO, "count": 2}], ids=["stand-in", "real"])
def test_workers_do_not_outlive_a_killed_master(serve: Callable[..., Served], worker: dict[str, Any]) -> None:
    served = serve(dict(worker))
    served.process.kill()
    served.process.wait()
    wait_until(lambda: not served.survivors(), timeout=2.5)
