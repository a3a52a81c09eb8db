"""Compare laraman with its peers: interleaved rounds, one worker pinned to one CPU, the load on another.

    python -m benchmarks.run                                        every scenario, 5 rounds of 5 s
    python -m benchmarks.run --scenario hello ws-echo --rounds 9    some of them
    python -m benchmarks.run --json benchmarks/history.jsonl        append the result as one line of JSON

Every round starts each server afresh, in rotated order, so that a slow minute of the machine hits all of them; medians are
reported. Everything happens on 127.0.0.1, and no process outlives the run.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from laraman.process.control import request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parent.parent
CPUS = sorted(os.sched_getaffinity(0))
SERVER_CPU, LOAD_CPU = CPUS[0], CPUS[-1]
TICK = os.sysconf("SC_CLK_TCK")
WRK_CONNECTIONS = 64
IDLE_CONNECTIONS = 10_000
IDLE_SECONDS = 10
OUTAGES = 4
BODY = json.dumps({"name": "Sidamo", "price": 7.25, "tags": ["washed", "organic"], "notes": "x" * 400})

_LARAMAN = ["laraman", "start", "--workers", "1", "--no-access-log", "--timeout-keep-alive", "3600"]
_UVICORN = ["uvicorn", "--workers", "1", "--no-access-log", "--loop", "uvloop", "--http", "httptools", "--timeout-keep-alive", "3600"]
SERVERS = {
    "laraman": _LARAMAN,
    **{f"laraman-{mode}": [*_LARAMAN, "--guard", mode] for mode in ("off", "restore", "strict")},  # and without an option it is "warn"
    "uvicorn": _UVICORN,
    "uvicorn-wsproto": [*_UVICORN, "--ws", "wsproto"],
    # backpressure: granian takes at most that many connections, 1024 by default
    "granian": ["granian", "--interface", "asgi", "--workers", "1", "--no-access-log", "--backpressure", "20000"],
}
PEERS = ("uvicorn", "granian")  # what the ratios are to
OTHERS = ("bare", "redis-py", "nats-py", "executor")  # of scenarios that these two do not take part in
GUARDS = ("laraman-off", "laraman", "laraman-restore", "laraman-strict")
GATEWAY_APP = "benchmarks.gateway_app:app"

Sample = dict[str, float]


class Failed(Exception):
    """A server did not do what the scenario asks of it."""


class Target:
    """A running server: where it listens, and what its processes have used."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, gateway_port: int, directory: str) -> None:
        self.process = process
        self.port = port
        self.gateway_port = gateway_port
        self.directory = directory

    def pids(self) -> list[int]:
        """The server's processes: the one started and all its descendants."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and (fields := _stat(int(entry.name))):
                children.setdefault(int(fields[1]), []).append(int(entry.name))
        found = [self.process.pid]
        for pid in found:  # grows while it is walked
            found += children.get(pid, [])
        return found

    def named(self, worker: str) -> list[int]:
        """The processes of one of laraman's workers; all of the server when it is ""."""
        pids = self.pids()
        return [pid for pid in pids if title(pid).startswith(f"laraman: {worker} ")] if worker else pids

    def cpu_seconds(self, worker: str = "") -> float:
        """User and system time of all its processes so far."""
        return sum(int(fields[11]) + int(fields[12]) for pid in self.named(worker) if (fields := _stat(pid))) / TICK

    def memory(self, field: str, worker: str = "") -> int:
        """KiB of all its processes: VmRSS is now, VmHWM the peak."""
        return sum(_status(pid, field) for pid in self.named(worker))


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the third (state) on; empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _status(pid: int, field: str) -> int:
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


def pinned(cpu: int) -> Callable[[], None]:
    return lambda: os.sched_setaffinity(0, {cpu})


@contextmanager
def serving(name: str, app: str, directory: str) -> Iterator[Target]:
    """Start a server on SERVER_CPU, wait until it answers, and see to it that nothing of it is left."""
    port, gateway_port, *inner = free_ports(4)
    command = [sys.executable, "-m", SERVERS[name][0], *SERVERS[name][1:], "--port", str(port), app]
    if app == GATEWAY_APP:
        command += ["--gateway", f"127.0.0.1:{gateway_port}"]
    addresses = dict(zip(("LARAMAN_GATEWAY_WORKER_ADDR", "LARAMAN_GATEWAY_TASK_ADDR"), (f"127.0.0.1:{port}" for port in inner), strict=True))
    with open(Path(directory) / f"{name}.log", "wb") as log:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(ROOT), "LARAMAN_GATEWAY_RATE": "0", **addresses},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=pinned(SERVER_CPU),
        )
    target = Target(process, port, gateway_port, directory)
    try:
        _wait_until_it_answers(target, Path(log.name))
        yield target
    finally:
        end(target, name)


def end(target: Target, name: str, seconds: float = 10) -> None:
    """Stop the server, and leave none of its processes behind."""
    pids = target.pids()
    target.process.terminate()
    try:
        target.process.wait(seconds)
    except subprocess.TimeoutExpired:
        print(f"{name} did not stop within {seconds:g} s", file=sys.stderr)
    for pid in pids:
        kill(pid)
    target.process.wait(10)


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _wait_until_it_answers(target: Target, log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and target.process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", target.port), 5) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                if connection.recv(1024).startswith(b"HTTP/1.1 "):
                    return
        except OSError:
            time.sleep(0.05)
    raise Failed(f"does not answer: {target.process.args!r}\n{log.read_text()}")


# Scenarios ------------------------------------------------------------------------------------------------------------------------


def with_wrk(path: str, *options: str) -> Callable[[Target, int], Sample]:
    def measure(target: Target, seconds: int) -> Sample:
        _wrk(target, path, 1, *options)  # warm up
        used = target.cpu_seconds()
        output = _wrk(target, path, seconds, *options)
        used = target.cpu_seconds() - used
        if problem := re.search(r"Non-2xx.*|Socket errors.*", output):
            raise Failed(problem[0])
        requests, took = re.search(r"(\d+) requests in ([\d.]+\w+)", output).groups()  # type: ignore[union-attr]
        p99 = re.search(r"99%\s+([\d.]+\w+)", output)[1]  # type: ignore[index]
        return _sample(target, int(requests), _seconds(took), used) | {"p99_ms": _seconds(p99) * 1000}

    return measure


def _wrk(target: Target, path: str, seconds: int, *options: str) -> str:
    url = f"http://127.0.0.1:{target.port}{path}"
    command = ["wrk", "-t", "1", "-c", str(WRK_CONNECTIONS), "-d", f"{seconds}s", "--latency", *options, url]
    done = subprocess.run(command, cwd=target.directory, capture_output=True, text=True, timeout=seconds + 30, preexec_fn=pinned(LOAD_CPU))
    if done.returncode:
        raise Failed(f"wrk: {done.stderr or done.stdout}")
    return done.stdout


def _seconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m|h)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}[unit]


def _sample(target: Target, count: int, seconds: float, used: float) -> Sample:
    """``cpu_us`` is the server's CPU time per request in microseconds; ``busy`` the share of its CPU it used: well below 1 means that
    the load, not the server, set the pace."""
    return {"rate": count / seconds, "cpu_us": used / count * 1e6, "peak_rss_kib": target.memory("VmHWM"), "busy": used / seconds}


def ws_echo(target: Target, seconds: int) -> Sample:
    _client(target, "echo", 1)
    used = target.cpu_seconds()
    answer = _client(target, "echo", seconds)
    return _sample(target, answer["messages"], answer["seconds"], target.cpu_seconds() - used)


def _client(target: Target, kind: str, number: int, port: int = 0) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.clients", kind, str(port or target.port), str(number)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, timeout=number + 60, preexec_fn=pinned(LOAD_CPU))
    if done.returncode:
        raise Failed("the client gave up")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def gateway_echo(target: Target, seconds: int) -> Sample:
    """Browser, gateway, worker, ``single_cast``, gateway, browser: with the CPU time of worker and gateway for one message and its answer."""
    return _through_the_gateway(target, "ping-pong", seconds)


def gateway_fan_out(target: Target, seconds: int) -> Sample:
    """Broadcasts of 64 bytes to 1,000 browsers, one at a time: messages delivered, and the gateway's CPU time for each."""
    return _through_the_gateway(target, "fan-out", seconds)


def gateway_burst(target: Target, seconds: int) -> Sample:
    """The same with 20 broadcasts at a time."""
    return _through_the_gateway(target, "burst", seconds)


def _through_the_gateway(target: Target, kind: str, seconds: int) -> Sample:
    _client(target, kind, 1, target.gateway_port)
    used = [target.cpu_seconds(worker) for worker in ("http", "gateway")]
    answer = _client(target, kind, seconds, target.gateway_port)
    worker, gateway = (target.cpu_seconds(name) - before for name, before in zip(("http", "gateway"), used, strict=True))
    count = answer["messages"]
    sample = {"rate": count / answer["seconds"], "worker_cpu_us": worker / count * 1e6, "gateway_cpu_us": gateway / count * 1e6}
    return sample | ({"p99_ms": answer["p99_ms"]} if "p99_ms" in answer else {"per_core": count / gateway})


def gateway_outage(target: Target, seconds: int) -> Sample:
    """HTTP at a steady pace, in turns with the gateway as it is and with a kill -9 of it in the middle; and how long until all is as before."""
    for pid in target.pids():
        os.sched_setaffinity(pid, CPUS)  # a gateway that starts is not to take the CPU of the worker that is looked at
    calm, outage = [], []
    back: list[float] = []
    for _ in range(OUTAGES):
        calm.append(_client(target, "steady", seconds))
        killer = threading.Timer(seconds / 2, lambda: back.append(_kill_gateway(target)))
        killer.start()
        outage.append(_client(target, "steady", seconds))
        killer.join()
    p99 = {f"{name}_p99_ms": statistics.median(found["p99_ms"] for found in group) for name, group in (("outage", outage), ("calm", calm))}
    most = {f"{name}_max_ms": max(found["max_ms"] for found in group) for name, group in (("outage", outage), ("calm", calm))}
    return p99 | most | {"back_s": max(back)}


def _kill_gateway(target: Target) -> float:
    """Seconds from the kill until every link to the gateway is up again."""
    control = Path(target.directory) / ".laraman" / str(target.port) / "control.sock"
    for pid in target.named("gateway"):
        kill(pid)
    killed = time.monotonic()
    while (since := time.monotonic() - killed) < 30:
        rows = [row for row in request(control, {"op": "connections"}, 5)["rows"] if str(row.get("name")).startswith("gateway ")]
        if rows and all(row["state"] == "UP" and row["age"] < since for row in rows):
            return since
        time.sleep(0.02)
    raise Failed("the workers did not find the gateway again")


def gateway_idle(target: Target, seconds: int) -> Sample:
    """What IDLE_CONNECTIONS browsers that say nothing cost the gateway."""
    return _idle(target, "websockets", target.gateway_port, "gateway")


def idle(target: Target, seconds: int) -> Sample:
    """What IDLE_CONNECTIONS keep-alive connections cost the server, each after one request: memory, and CPU time while they do nothing."""
    return _idle(target, "idle", target.port, "")


def _idle(target: Target, kind: str, port: int, worker: str) -> Sample:
    before = target.memory("VmRSS", worker)
    command = [sys.executable, "-m", "benchmarks.clients", kind, str(port), str(IDLE_CONNECTIONS)]
    client = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=pinned(LOAD_CPU), text=True)
    try:
        if not client.stdout.readline():  # type: ignore[union-attr]
            raise Failed(f"did not take {IDLE_CONNECTIONS} connections")
        used = target.cpu_seconds(worker)
        time.sleep(IDLE_SECONDS)
        used = target.cpu_seconds(worker) - used
        grown = target.memory("VmRSS", worker) - before
        left = json.loads(client.communicate("", 60)[0])["open"]
    finally:
        client.kill()
        client.wait()
    return {"kib_per_connection": grown / IDLE_CONNECTIONS, "idle_cpu_ms_per_s": used / IDLE_SECONDS * 1000, "still_open": left}


class Scenario(NamedTuple):
    """What is served, how it is measured, and who is compared. The peers have no gateway and no guard."""

    app: str
    measure: Callable[[Target, int], Sample]
    servers: tuple[str, ...] = ("laraman", *PEERS)


SCENARIOS = {
    "hello": Scenario("benchmarks.apps:hello", with_wrk("/")),
    "json-post": Scenario("benchmarks.apps:json_post", with_wrk("/", "-s", "post.lua")),
    "stream": Scenario("benchmarks.apps:stream", with_wrk("/")),
    "fastapi": Scenario("benchmarks.fastapi_app:app", with_wrk("/items/7?tag=fresh")),
    "ws-echo": Scenario("benchmarks.apps:ws_echo", ws_echo),
    "idle": Scenario("benchmarks.apps:hello", idle),
    "guard": Scenario("benchmarks.apps:hello", with_wrk("/"), GUARDS),
    "gateway-echo": Scenario(GATEWAY_APP, gateway_echo, ("laraman",)),
    "gateway-fan-out": Scenario(GATEWAY_APP, gateway_fan_out, ("laraman",)),
    "gateway-burst": Scenario(GATEWAY_APP, gateway_burst, ("laraman",)),
    "gateway-outage": Scenario(GATEWAY_APP, gateway_outage, ("laraman",)),
    "gateway-idle": Scenario(GATEWAY_APP, gateway_idle, ("laraman",)),
}


# Rounds and the report ------------------------------------------------------------------------------------------------------------


def compare(scenario: str, servers: list[str], rounds: int, seconds: int, directory: str) -> dict[str, list[Sample]]:
    """All samples of a scenario, by server. A server that fails is said to have, and is left out of the rest of the rounds."""
    app, measure, compared = SCENARIOS[scenario]
    servers = servers or list(compared)
    samples: dict[str, list[Sample]] = {name: [] for name in servers}
    for number in range(rounds):
        at = number % len(servers)
        for name in [name for name in servers[at:] + servers[:at] if name in samples]:
            try:
                with serving(name, app, directory) as target:
                    sample = measure(target, seconds)
            except (Failed, subprocess.TimeoutExpired) as exc:
                print(f"  {scenario} round {number + 1} {name} FAILED: {exc}", file=sys.stderr, flush=True)
                del samples[name]
                continue
            samples[name].append(sample)
            print(f"  {scenario} round {number + 1} {name}: {as_line(sample)}", file=sys.stderr, flush=True)
    return samples


def medians(samples: list[Sample]) -> Sample:
    return {key: round(statistics.median(sample[key] for sample in samples), 4) for key in samples[0]}


def as_line(sample: Sample) -> str:
    return ", ".join(f"{key} {value:,.2f}" for key, value in sample.items())


def table(scenario: str, results: dict[str, Sample]) -> str:
    """Markdown; the ratios of the first column say how many times a peer's value a server has."""
    if not results:
        return f"{scenario}: every server failed"
    columns = list(next(iter(results.values())))
    peers = [peer for peer in (*PEERS, *OTHERS) if peer in results]
    lines = [f"| {' | '.join([scenario, *columns, *(f'x {peer}' for peer in peers)])} |"]
    lines.append("|---" + "|--:" * (len(columns) + len(peers)) + "|")
    for name, result in results.items():
        ratios = [f"{result[columns[0]] / results[peer][columns[0]]:.2f}" if results[peer][columns[0]] else "-" for peer in peers]
        values = [f"{value:,.0f}" if value >= 1000 else f"{value:,.2f}" for value in result.values()]
        lines.append(f"| {name} | {' | '.join(values + ratios)} |")
    return "\n".join(lines)


def facts() -> dict[str, Any]:
    """What was measured, and on what."""
    cpu = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    packages = ("laraman", "uvicorn", "granian", "uvloop", "httptools", "wsproto", "websockets", "fastapi", "starlette", "redis", "nats-py")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "--", "laraman") else ""),
        "python": platform.python_version(),
        "machine": {"cpu": cpu[1] if cpu else platform.machine(), "cores": len(CPUS), "kernel": platform.release()},
        "versions": {name: version for name in packages if (version := _version(name))},
    }


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.partition("\n")[0])
    parser.add_argument("--scenario", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=[], help="instead of those that a scenario compares")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="per measurement, after one second of warming up")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one line with the medians to this file")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if not shutil.which("wrk"):
        raise SystemExit("wrk is not installed (apt-get install wrk)")
    if len(CPUS) < 2:
        print("only one CPU: server and load share it, so nothing here says much", file=sys.stderr)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if "idle" in options.scenario and most < IDLE_CONNECTIONS + 100:
        raise SystemExit(f"idle needs {IDLE_CONNECTIONS} open files, the limit is {most} (ulimit -n)")
    results = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
        post = f"wrk.method = 'POST'\nwrk.body = '{BODY}'\nwrk.headers['content-type'] = 'application/json'\n"
        (Path(directory) / "post.lua").write_text(post)
        for scenario in options.scenario:
            samples = compare(scenario, options.servers, options.rounds, options.seconds, directory)
            results[scenario] = {name: medians(found) for name, found in samples.items()}
            print(table(scenario, results[scenario]), end="\n\n", flush=True)
    line = facts() | {"rounds": options.rounds, "seconds": options.seconds, "results": results}
    if options.json:
        with options.json.open("a") as history:
            history.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
