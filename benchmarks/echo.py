"""Echoes of custom workers, beside a bare asyncio.Protocol that writes back what it reads, and one that knows what a line is.

    python -m benchmarks.echo                                        every scenario, 5 rounds of 3 s
    python -m benchmarks.echo --scenario text idle --rounds 9        some of them
    python -m benchmarks.echo --json benchmarks/history.jsonl        append the result as one line of JSON

One process each, on uvloop, pinned to one CPU; on another one a client with 64 connections, each with one message of 32 bytes on its way. Rounds
are interleaved, medians are reported.

    bare     writes back what it reads: what the loop and the kernel cost
    lines    the same for whole lines of text, decoded and encoded, as one would write it by hand; for text only
    plain    a Worker whose on_message is a function
    async    one whose on_message is a coroutine function, which gets a task for each message
"""

from __future__ import annotations

import argparse
import asyncio
import json
import select
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from benchmarks.clients import ANSWER, QUESTION, SOURCES, connect, hold, upgrade
from benchmarks.run import LOAD_CPU, ROOT, SERVER_CPU, Failed, Sample, Target, as_line, end, facts, free_ports, medians, pinned
from laraman import Worker, run_workers

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECTIONS = 64
IDLE_CONNECTIONS, IDLE_SECONDS = 2000, 10
LINE = b"0123456789abcdef0123456789abcde\n"
FRAME = (len(LINE) + 4).to_bytes(4, "big") + LINE

#: What a client sends, and what it gets, by scheme.
EXCHANGES = {"text": (LINE, LINE), "frame": (FRAME, FRAME), "websocket": (QUESTION, ANSWER)}
SERVERS = ("bare", "lines", "plain", "async")


# The servers ----------------------------------------------------------------------------------------------------------------------


class Bare(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Lines(Bare):
    rest = b""

    def data_received(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            message = line.decode()
            self.transport.write(message.encode() + b"\n")


class Plain:
    def on_message(self, connection: Any, message: Any) -> None:
        connection.send_nowait(message)


class Async:
    async def on_message(self, connection: Any, message: Any) -> None:
        await connection.send(message)


def serve(server: str, scheme: str, port: int) -> None:
    if server in ("plain", "async"):
        worker = Worker("echo", f"{scheme}://127.0.0.1:{port}", handler=f"benchmarks.echo:{server.capitalize()}")
        run_workers(worker, loop="uvloop")
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve_bare(Bare if server == "bare" else Lines, port))


async def serve_bare(protocol: type[Bare], port: int) -> None:
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", port)
    await server.serve_forever()


@contextmanager
def running(server: str, scheme: str, directory: str) -> Iterator[Target]:
    """Start a server on SERVER_CPU, wait until it accepts, and leave nothing of it behind."""
    (port,) = free_ports(1)
    place = Path(tempfile.mkdtemp(prefix=f"{scheme}-{server}-", dir=directory))
    command = [sys.executable, "-m", "benchmarks.echo", "serve", server, scheme, str(port)]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=place, env={"PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=pinned(SERVER_CPU)
        )
    target = Target(process, port, 0, str(place))
    try:
        _wait_until_it_accepts(target, place / "log")
        yield target
    finally:
        end(target, server)


def _wait_until_it_accepts(target: Target, log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and target.process.poll() is None:
        try:
            connect(target.port).close()
            return
        except OSError:
            time.sleep(0.05)
    raise Failed(f"does not accept: {target.process.args!r}\n{log.read_text()}")


# The client -----------------------------------------------------------------------------------------------------------------------


def load(scheme: str, server: str, port: int, seconds: float) -> dict[str, float]:
    """Keep one message on its way on each connection for ``seconds``, and count the answers."""
    question, answer = EXCHANGES[scheme]
    opened = upgrade if scheme == "websocket" and server != "bare" else connect
    if server == "bare":
        answer = question
    poller = select.epoll()
    connections = {}
    for connection in (opened(port) for _ in range(CONNECTIONS)):
        connections[connection.fileno()] = connection
        poller.register(connection, select.EPOLLIN)
    answered = 0
    began = time.monotonic()
    for connection in connections.values():
        connection.sendall(question)
    while (now := time.monotonic()) - began < seconds:
        for fd, _ in poller.poll(1):
            connection = connections[fd]
            if connection.recv(4096) != answer:
                raise ConnectionError("not one whole answer")
            connection.send(question)
            answered += 1
    return {"messages": answered, "seconds": now - began}


def _client(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.echo", *arguments]


def echo(target: Target, scheme: str, server: str, seconds: float) -> Sample:
    used = target.cpu_seconds()
    command = _client("load", scheme, server, str(target.port), str(seconds))
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, preexec_fn=pinned(LOAD_CPU))
    used = target.cpu_seconds() - used
    if done.returncode:
        raise Failed("the client gave up")
    answer = json.loads(done.stdout)
    return {"rate": answer["messages"] / answer["seconds"], "cpu_us": used / answer["messages"] * 1e6, "busy": used / answer["seconds"]}


def idle(target: Target) -> Sample:
    """What IDLE_CONNECTIONS connections that say nothing cost."""
    before = target.memory("VmRSS")
    client = subprocess.Popen(
        _client("idle", str(target.port)), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=pinned(LOAD_CPU), text=True
    )
    try:
        if not client.stdout.readline():  # type: ignore[union-attr]
            raise Failed(f"did not take {IDLE_CONNECTIONS} connections")
        time.sleep(1)  # the last ones may still be in the kernel's queue
        used = target.cpu_seconds()
        time.sleep(IDLE_SECONDS)
        used = target.cpu_seconds() - used
        grown = target.memory("VmRSS") - before
        left = json.loads(client.communicate("", 60)[0])["open"]
    finally:
        client.kill()
        client.wait()
    return {"idle_cpu_ms_per_s": used / IDLE_SECONDS * 1000, "kib_per_connection": grown / IDLE_CONNECTIONS, "still_open": left}


# Rounds and the report ------------------------------------------------------------------------------------------------------------


def compare(scheme: str, rounds: int, seconds: float, directory: str) -> dict[str, Sample]:
    """The medians of each server, all of which run at the same time, and are measured one after another."""
    servers = [server for server in SERVERS if scheme == "text" or server != "lines"]
    samples: dict[str, list[Sample]] = {server: [] for server in servers}
    with ExitStack() as stack:
        targets = {server: stack.enter_context(running(server, scheme, directory)) for server in servers}
        for server, target in targets.items():
            echo(target, scheme, server, 0.5)  # warm up
        for number in range(rounds):
            at = number % len(servers)
            for server in servers[at:] + servers[:at]:
                sample = echo(targets[server], scheme, server, seconds)
                samples[server].append(sample)
                print(f"  {scheme} round {number + 1} {server}: {as_line(sample)}", file=sys.stderr, flush=True)
    return {server: medians(found) for server, found in samples.items()}


def compare_idle(directory: str) -> dict[str, Sample]:
    """Beside nothing connected: a process of laraman looks at itself now and then."""
    with running("plain", "text", directory) as target:
        time.sleep(1)
        used = target.cpu_seconds()
        time.sleep(IDLE_SECONDS)
        alone = {"idle_cpu_ms_per_s": (target.cpu_seconds() - used) / IDLE_SECONDS * 1000, "kib_per_connection": 0.0, "still_open": 0.0}
        return {"nobody": alone, f"{IDLE_CONNECTIONS} connections": idle(target)}


def table(scenario: str, results: dict[str, Sample]) -> str:
    """Markdown; the last columns are ratios to the first row."""
    base, columns = next(iter(results.values())), list(next(iter(results.values())))
    ratios = [column for column in ("rate", "cpu_us") if column in columns]
    head = [scenario, *columns, *(f"{column} ratio" for column in ratios)]
    lines = [f"| {' | '.join(head)} |", "|---" + "|--:" * (len(head) - 1) + "|"]
    for name, result in results.items():
        values = [f"{value:,.0f}" if value >= 1000 else f"{value:,.2f}" for value in result.values()]
        lines.append(f"| {name} | {' | '.join(values + [f'{result[column] / base[column]:.2f}' for column in ratios])} |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.echo", description=__doc__.partition("\n")[0])
    parser.add_argument("--scenario", nargs="+", choices=(*EXCHANGES, "idle"), default=[*EXCHANGES, "idle"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3, help="per measurement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one line with the medians to this file")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    results = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
        for scenario in options.scenario:
            idling = scenario == "idle"
            results[f"echo-{scenario}"] = compare_idle(directory) if idling else compare(scenario, options.rounds, options.seconds, directory)
            print(table(scenario, results[f"echo-{scenario}"]), end="\n\n", flush=True)
    if options.json:
        with options.json.open("a") as history:
            history.write(json.dumps(facts() | {"rounds": options.rounds, "seconds": options.seconds, "results": results}) + "\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", server, scheme, port]:
            serve(server, scheme, int(port))
        case ["load", scheme, server, port, seconds]:
            print(json.dumps(load(scheme, server, int(port), float(seconds))))
        case ["idle", port]:
            hold([connect(int(port), 1 + number % SOURCES) for number in range(IDLE_CONNECTIONS)])
        case _:
            main()
