"""The request process in a real server, asked by PHP and by programs without an event loop."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from laraman.ipc_client import Client, call
from tests.conftest import DEADLINE, wait_until
from tests.example import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Server

REQUESTS = """
import asyncio, os
import laraman
from laraman import Worker

workers = [
    Worker("requests", "request+unix://app.sock", count=2, handler="requests_app:handle", mode="0660", socket_group=str(os.getgid())),
    Worker("many", "request+unix://many.sock", handler="requests_app:Handler", timeout_keep_alive=30),
    Worker("private", "request+unix://private.sock", handler="requests_app:handle", allow_users=[os.getuid()], max_message="1KB"),
]
"""
HANDLERS = """
import asyncio, os

async def handle(connection, request):
    print("told", request, flush=True)
    match request:
        case {"op": "pid"}:
            return os.getpid()
        case {"op": "echo", "value": value}:
            return value
        case {"op": "slow"}:
            await asyncio.sleep(1)
        case {"op": "raise"}:
            raise RuntimeError("the password is 1234")

class Handler:
    def on_message(self, connection, request):
        return [connection.messages_in, os.getpid(), connection.credentials.pid]
"""
#: Sends the pieces that it is given in hex, and prints in hex what comes until the other side hangs up.
RAW = r"""
$socket = stream_socket_client('unix://app.sock', $code, $message, 5) or exit($message);
stream_set_timeout($socket, 20);
fwrite($socket, hex2bin($argv[1]));
if (isset($argv[2])) { fclose($socket); exit; }
echo bin2hex(stream_get_contents($socket));
"""
CALLS = r"""
require $argv[1] . '/app_example/php/laraman.php';
function outcome(callable $work): mixed {
    try { return $work(); } catch (LaramanException $exception) { return [$exception->getCode(), $exception->getMessage()]; }
}
$long = str_repeat('长', 1000000);
echo json_encode([
    outcome(fn() => laraman_call('app.sock', ['op' => 'echo', 'value' => ['text' => 'Grüße 长度', 'n' => [1, null, 0.5, true]]])),
    outcome(fn() => laraman_call('app.sock', ['op' => 'echo', 'value' => $long]) === $long),
    outcome(fn() => laraman_call('app.sock', ['op' => 'raise'])),
    outcome(fn() => laraman_exchange('app.sock', 'my name is siam')),
    outcome(fn() => laraman_call('app.sock', ['op' => 'slow'], 0.3)),
    outcome(fn() => laraman_call('none.sock', 1)),
    outcome(fn() => laraman_exchange('app.sock', 'x', 5.0, 10)),
    outcome(fn() => laraman_exchange('app.sock', 'x', 5.0, 0)),
    outcome(fn() => laraman_exchange('private.sock', str_repeat('x', 5000000))),
], JSON_UNESCAPED_UNICODE | JSON_UNESCAPED_SLASHES);
"""
#: The frames of EasySwoole's documentation, and its replies: lengths of 35, 33 and 38 bytes.
SIAM = "0000000f" + b"my name is siam".hex()
NO_LENGTH = "00000023" + '{"res":"fail","msg":"长度有误"}'.encode().hex()
OK = "00000021" + '{"res":"ok","msg":"长度相同"}'.encode().hex()
SHORT_BODY = "00000026" + '{"res":"fail","msg":"长度不相等"}'.encode().hex()


@pytest.fixture
def requests(server: Callable[..., Server]) -> Server:
    return server("declared:workers", files={"declared.py": REQUESTS, "requests_app.py": HANDLERS})


def run(directory: Path, *command: str) -> str:
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=DEADLINE)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_php_talks_to_it(requests: Server, php: str) -> None:
    directory = requests.directory
    for sent, received in ((SIAM, OK), (SIAM[:4], NO_LENGTH), (SIAM[:-2], SHORT_BODY), ("", NO_LENGTH), (SIAM[:8], SHORT_BODY)):
        assert run(directory, php, "-r", RAW, "--", sent) == received
    before = requests.output.count("told b'my name is siam'")
    assert run(directory, php, "-r", RAW, "--", SIAM, "hang up") == ""  # as the client in its documentation does
    wait_until(lambda: requests.output.count("told b'my name is siam'") > before, what="the request of a client that hung up")

    echoed, long, raised, siam, slow, nobody, long_reply, long_request, refused = json.loads(run(directory, php, "-r", CALLS, "--", ROOT))
    assert (echoed, long) == ({"text": "Grüße 长度", "n": [1, None, 0.5, True]}, True)
    assert raised == {"res": "fail", "msg": "the handler raised RuntimeError"}
    assert siam == '{"res":"ok","msg":"长度相同"}'
    assert slow == [2, "app.sock: no reply in time"]
    assert nobody == [1, "none.sock: No such file or directory"]
    assert long_reply == [4, "app.sock: the reply has 33 bytes, 10 are allowed"]
    assert long_request == [4, "app.sock: the request has 1 bytes, 0 are allowed"]
    assert json.loads(refused) == {"res": "fail", "msg": "frame length 5000000 is outside 0..1024"}


def test_php_waits_while_the_queue_is_full(tmp_path: Path, php: str) -> None:
    code = """require $argv[1] . '/app_example/php/laraman.php';
    try { laraman_exchange('full.sock', 'x', 0.1); } catch (LaramanException $late) { echo $late->getCode(), $late->getMessage(), "\\n"; }
    echo laraman_exchange('full.sock', 'x', 20.0);"""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(tmp_path / "full.sock"))
        listener.listen(0)
        for _ in range(2):
            filling = stack.enter_context(socket.socket(socket.AF_UNIX))
            filling.setblocking(False)
            filling.connect_ex(str(tmp_path / "full.sock"))
        asking = subprocess.Popen([php, "-r", code, "--", ROOT], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        assert asking.stdout is not None
        with asking:
            assert asking.stdout.readline() == "2full.sock: no reply in time\n"
            listener.settimeout(DEADLINE)
            stack.enter_context(listener.accept()[0])
            answering = stack.enter_context(listener.accept()[0])
            assert answering.recv(5) == b"\0\0\0\1x"
            answering.sendall(b"\0\0\0\2ok")
            assert asking.stdout.read() == "ok"


def test_its_socket_and_who_may_talk_to_it(requests: Server) -> None:
    found = os.stat(requests.directory / "app.sock")
    assert (stat.filemode(found.st_mode), found.st_gid) == ("srw-rw----", os.getgid())
    private = str(requests.directory / "private.sock")
    assert call(private, {"op": "echo", "value": 7}) == 7
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    requests.directory.chmod(0o755)
    code = f"""
import os, sys
sys.path.insert(0, {ROOT!r})
from laraman.ipc_client import call, Unreachable
os.chdir({str(requests.directory)!r})  # the directories above it are not for everybody
os.setgroups([]); os.setgid(65534); os.setuid(65534)
print(call("private.sock", 1))
try:
    call("app.sock", 1)
except Unreachable as exc:
    print(exc)
"""
    assert run(requests.directory, sys.executable, "-c", code) == (
        "{'res': 'fail', 'msg': 'user 65534 is not allowed'}\napp.sock: Permission denied\n"
    )
    assert "user 65534 is not allowed" in requests.output


def test_what_is_in_the_way(requests: Server, server: Callable[..., Server], tmp_path: Path) -> None:
    def program(path: Path) -> dict[str, str]:
        worker = f'Worker("requests", "request+unix://{path}", handler="requests_app:handle")'
        return {"declared.py": f"from laraman import Worker\nworkers = {worker}\n", "requests_app.py": HANDLERS}

    live, file, stale = requests.directory / "app.sock", tmp_path / "file", tmp_path / "stale.sock"
    file.write_text("precious")
    for path, reason in ((live, "another process listens there"), (file, "a file that is not a socket is in the way")):
        refused = server("declared:workers", files=program(path), ready=False)
        assert refused.process.wait(DEADLINE) == 3
        assert refused.output.endswith(f"cannot listen on request+unix://{path}: {reason}\n")
    assert call(str(live), {"op": "echo", "value": 7}) == 7
    assert file.read_text() == "precious"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(stale))
    server("declared:workers", "--name", "stale", files=program(stale))
    assert call(str(stale), {"op": "echo", "value": 7}) == 7


def test_no_call_is_lost_in_a_reload(requests: Server) -> None:
    path = str(requests.directory / "app.sock")
    pids: list[int] = []
    errors: list[BaseException] = []
    over = threading.Event()

    def ask() -> None:
        try:
            while not over.is_set():
                pids.append(call(path, {"op": "pid"}, DEADLINE))
        except BaseException as exc:
            errors.append(exc)

    def keep_asking() -> None:
        try:
            with Client(str(requests.directory / "many.sock"), DEADLINE) as client:
                while not over.is_set():
                    client.call("count me")
        except BaseException as exc:
            errors.append(exc)

    before = {row["pid"] for row in requests.processes("requests")}
    with Client(str(requests.directory / "many.sock"), DEADLINE) as client:
        assert [client.call("count me")[0] for _ in range(3)] == [1, 2, 3]
        [row] = [row for row in requests.connections() if row["worker"] == "many"]
        assert (row["protocol"], row["peer"], row["messages_in"]) == ("request", f"pid {os.getpid()}, uid {os.getuid()}", 3)
        pid = client.call("who are you")[1]
        threads = [threading.Thread(target=work) for work in (ask, ask, keep_asking)]
        for thread in threads:
            thread.start()
        try:
            assert requests.cli("reload").returncode == 0
            count = len(pids)
            wait_until(lambda: errors or len(pids) > count + 20, what="calls after the reload")
        finally:
            over.set()
            for thread in threads:
                thread.join(DEADLINE)
        assert not errors
        assert before.isdisjoint(pids[-10:])
        number, successor, _ = client.call("and now")
        assert (number, successor != pid) == (1, True)  # its connection was closed while it was idle


def test_a_stop_answers_what_has_begun_and_removes_the_socket(requests: Server) -> None:
    path = requests.directory / "app.sock"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE)
        client.connect(str(path))
        client.sendall(bytes.fromhex(SIAM[:-2]))
        wait_until(lambda: [row for row in requests.connections() if row["bytes_in"] == 18], what="most of a request")
        requests.process.terminate()
        wait_until(lambda: "SIGTERM" in requests.output, what="the stop")
        client.sendall(bytes.fromhex(SIAM[-2:]))
        assert client.recv(100).hex() in (OK, SHORT_BODY)  # the second when a second was over before
    assert requests.process.wait(DEADLINE) == 0
    assert not path.exists()
    assert "Traceback" not in requests.output
