"""The channel by way of the embedded hub, beside redis-server through redis-py and nats-server through nats-py.

    python -m benchmarks.channel                                        both scenarios, 5 rounds of 3 s
    python -m benchmarks.channel --scenario call --rounds 9             one of them
    python -m benchmarks.channel --peers hub redis nats                 laraman's backends of these servers instead
    python -m benchmarks.channel --json benchmarks/history.jsonl        append the result as one line of JSON

Two programs on uvloop and a server between them, all of which may use all CPUs. The servers run all the time, rounds are interleaved, medians are
reported. ``*_cpu_us`` is CPU time for one message or call, which a busy machine changes less than rates.

    publish     64 bytes from one program to one subscriber in the other; no more than WINDOW are under way, so nothing is dropped
    call        a method of the other program that returns what it is given, 64 bytes, with 16 under way

redis-py publishes BATCH messages in a pipeline, and calls are messages to the other program that name where the answer is to go, as there are no
calls in Redis; nats-py publishes one by one, which it sends together, and has requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from benchmarks.run import ROOT, TICK, Failed, Sample, Target, _stat, as_line, facts, free_ports, kill, medians
from laraman import channel
from laraman.errors import LinkDown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

PAYLOAD = b"x" * 64
IN_FLIGHT = 16
#: Messages that are published before the publisher looks how far the subscriber is, and how many may be under way.
BATCH, WINDOW = 500, 10_000
TOPIC, REPLIES = "benchmark.publish", "benchmark.replies"


# The peers ------------------------------------------------------------------------------------------------------------------------


class Laraman:
    """Any of the channel's backends."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def open(self, name: str) -> None:
        self.channel = channel.connect(self.url, name=name)

    async def receive(self, tell: Callable[[], object], ready: Callable[[], object]) -> None:
        async with self.channel.subscribe(TOPIC, queue=2 * WINDOW, overflow="close") as subscription:
            ready()
            async for _ in subscription:
                tell()

    async def publish(self) -> None:
        publish = self.channel.publish
        for _ in range(BATCH):
            await publish(TOPIC, PAYLOAD)

    async def serve(self) -> None:
        self.channel.add_method("echo", lambda data: data)
        await self.channel.__aenter__()
        while True:
            with suppress(LinkDown):  # nobody knows of it yet
                return await self.call()

    async def call(self) -> None:
        await self.channel.call("other", "echo", PAYLOAD)


class RedisPy:
    def __init__(self, url: str) -> None:
        self.url = url

    async def open(self, name: str) -> None:
        from redis.asyncio import Redis

        self.redis = Redis.from_url(self.url)
        self.answers: dict[bytes, asyncio.Future[None]] = {}
        self.numbers = 0
        if name == "caller":
            await self._hear(REPLIES, self._answered)

    async def _hear(self, topic: str, heard: Callable[[bytes], Any]) -> None:
        hears = self.redis.pubsub(ignore_subscribe_messages=True)
        await hears.subscribe(topic)
        self.listening = asyncio.create_task(self._listen(hears, heard))

    async def _listen(self, hears: Any, heard: Callable[[bytes], Any]) -> None:
        async for message in hears.listen():
            heard(message["data"])

    async def receive(self, tell: Callable[[], object], ready: Callable[[], object]) -> None:
        await self._hear(TOPIC, lambda data: tell())
        ready()
        await self.listening

    async def publish(self) -> None:
        pipeline = self.redis.pipeline(transaction=False)
        for _ in range(BATCH):
            pipeline.publish(TOPIC, PAYLOAD)
        await pipeline.execute()

    async def serve(self) -> None:
        self.tasks: set[asyncio.Task[Any]] = set()
        await self._hear("calls.other", self._called)

    def _called(self, data: bytes) -> None:
        task = asyncio.create_task(self.redis.publish(REPLIES, data))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _answered(self, data: bytes) -> None:
        self.answers.pop(data[:8]).set_result(None)

    async def call(self) -> None:
        self.numbers += 1
        number = self.numbers.to_bytes(8, "big")
        answer = self.answers[number] = asyncio.get_running_loop().create_future()
        await self.redis.publish("calls.other", number + PAYLOAD)
        await answer


class NatsPy:
    def __init__(self, url: str) -> None:
        self.url = url

    async def open(self, name: str) -> None:
        import nats

        self.nats = await nats.connect(self.url)

    async def receive(self, tell: Callable[[], object], ready: Callable[[], object]) -> None:
        async def heard(message: Any) -> None:
            tell()

        await self.nats.subscribe(TOPIC, cb=heard)
        await self.nats.flush()
        ready()
        await asyncio.Event().wait()

    async def publish(self) -> None:
        for _ in range(BATCH):
            await self.nats.publish(TOPIC, PAYLOAD)

    async def serve(self) -> None:
        async def called(message: Any) -> None:
            await message.respond(message.data)

        await self.nats.subscribe("calls.other", cb=called)
        await self.nats.flush()

    async def call(self) -> None:
        await self.nats.request("calls.other", PAYLOAD, timeout=5)


#: How each of them is used, and its server.
PEERS: dict[str, tuple[type[Any], str]] = {
    "hub": (Laraman, "laraman"),
    "redis-py": (RedisPy, "redis-server"),
    "nats-py": (NatsPy, "nats-server"),
    "redis": (Laraman, "redis-server"),
    "nats": (Laraman, "nats-server"),
}


# The two programs -----------------------------------------------------------------------------------------------------------------


async def other(peer: Any, scenario: str, progress: int) -> None:
    """The subscriber, which writes a byte for each BATCH of messages, or who is called; until stdin ends."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, ended.set)
    await peer.open("other")

    def ready() -> None:
        print("ready", flush=True)

    if scenario == "call":
        await peer.serve()
        ready()
        await ended.wait()
        return
    count = 0

    def tell() -> None:
        nonlocal count
        count += 1
        if count % BATCH == 0:
            os.write(progress, b".")

    receiving = asyncio.create_task(peer.receive(tell, ready))
    await asyncio.wait({receiving, asyncio.create_task(ended.wait())}, return_when=asyncio.FIRST_COMPLETED)
    if receiving.done():
        receiving.result()


async def one(peer: Any, scenario: str, seconds: float, progress: int) -> dict[str, float]:
    """The publisher or the caller."""
    await peer.open("caller")
    work = published if scenario == "publish" else called
    await work(peer, 0.3, progress)  # warm up
    used, began = _cpu(), time.monotonic()
    count = await work(peer, seconds, progress)
    return {"count": count, "seconds": time.monotonic() - began, "cpu": _cpu() - used}


async def published(peer: Any, seconds: float, progress: int) -> int:
    """How many have arrived; all that were published."""
    arrived, batches, news = 0, 0, asyncio.Event()

    def more() -> None:
        nonlocal arrived
        arrived += len(os.read(progress, 65536))
        news.set()

    async def under_way(most: int) -> None:
        while (batches - arrived) * BATCH > most:
            news.clear()
            async with asyncio.timeout(10):  # else something was lost
                await news.wait()

    loop = asyncio.get_running_loop()
    loop.add_reader(progress, more)
    end = loop.time() + seconds
    while loop.time() < end:
        await under_way(WINDOW - BATCH)
        await peer.publish()
        batches += 1
        await asyncio.sleep(0)
    await under_way(0)
    loop.remove_reader(progress)
    return arrived * BATCH


async def called(peer: Any, seconds: float, progress: int) -> int:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds

    async def calls() -> int:
        count = 0
        while loop.time() < end:
            await peer.call()
            count += 1
        return count

    return sum(await asyncio.gather(*(calls() for _ in range(IN_FLIGHT))))


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _run(program: Awaitable[Any]) -> Any:
    async def main() -> Any:
        return await program

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


# The servers ----------------------------------------------------------------------------------------------------------------------


def path_of(program: str) -> str | None:
    """Debian has nats-server where only root looks for programs."""
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")


class Stored:
    """A redis-server or nats-server with files in ``directory``: those of one that was killed are those of the next."""

    def __init__(self, program: str, directory: Path) -> None:
        self.program = program
        self.directory = directory / program
        self.directory.mkdir()
        (self.port,) = free_ports(1)
        self.url = f"{program.removesuffix('-server')}://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        redis = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.directory), "--save", "", "--appendonly", "yes"]
        redis += ["--auto-aof-rewrite-min-size", "1mb"]  # one that is long is long in being read
        nats = ["--addr", "127.0.0.1", "--port", str(self.port), "--jetstream", "--store_dir", str(self.directory)]
        command = [path_of(self.program) or self.program, *(redis if self.program == "redis-server" else nats)]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.target = Target(self.process, self.port, 0, str(self.directory))
        _wait_until_it_accepts(self.target, self._answers)

    def _answers(self) -> bool:
        """Redis accepts while it still reads its file."""
        with socket.create_connection(("127.0.0.1", self.port), 1) as sock:
            if self.program == "redis-server":
                sock.sendall(b"PING\r\n")
            return sock.recv(4096).startswith((b"INFO", b"+PONG"))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def __enter__(self) -> Stored:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()


@contextmanager
def serving(app: str, directory: Path, *options: str) -> Iterator[tuple[Target, str]]:
    """A server of an application, and the URL of its hub; it is gone afterwards with all its processes."""
    (port,) = free_ports(1)
    place = directory / "laraman"
    place.mkdir()
    command = [sys.executable, "-m", "laraman", "start", app, "--port", str(port), *options]
    with (place / "log").open("wb") as log:
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, cwd=place, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    target = Target(process, port, 0, str(place))
    try:
        _wait_until_it_accepts(target)
        yield target, f"unix://{place}/.laraman/{port}/hub.sock"
    finally:
        pids = target.pids()
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        for pid in pids:
            kill(pid)
        process.wait(10)


@contextmanager
def _started(name: str, directory: Path) -> Iterator[tuple[Target, str]]:
    if name == "laraman":
        with serving("benchmarks.apps:hello", directory) as server:
            yield server
    else:
        with Stored(name, directory) as stored:
            yield stored.target, stored.url


def _wait_until_it_accepts(target: Target, answers: Callable[[], bool] | None = None) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and target.process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", target.port), 1):
            if answers is None or answers():
                return
        time.sleep(0.05)
    raise Failed(f"does not accept: {target.process.args!r}\n{Path(target.directory, 'log').read_text()}")


def _pid_seconds(pid: int) -> float:
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / TICK if fields else 0.0


# Rounds and the report ------------------------------------------------------------------------------------------------------------


def measure(target: Target, name: str, url: str, scenario: str, seconds: float) -> Sample:
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, "w"):
        there = _program("other", name, url, scenario, str(seconds), str(writing), descriptor=writing)
        try:
            if not there.stdout.readline():  # type: ignore[union-attr]
                raise Failed(f"{name}: the other program does not begin")
            before = _pid_seconds(there.pid), target.cpu_seconds()
            here = _program("one", name, url, scenario, str(seconds), str(reading), descriptor=reading)
            output, _ = here.communicate(timeout=seconds + 60)
            if here.returncode:
                raise Failed(f"{name}: the program gave up")
            used = [now - then for now, then in zip((_pid_seconds(there.pid), target.cpu_seconds()), before, strict=True)]
        finally:
            there.kill()
            there.wait()
    done = json.loads(output)
    count = done["count"]
    warm = count * (1 + 0.3 / seconds)  # the others have also worked while it warmed up
    shares = {"here_cpu_us": done["cpu"] / count, "there_cpu_us": used[0] / warm, "server_cpu_us": used[1] / warm}
    return {"rate": count / done["seconds"]} | {share: value * 1e6 for share, value in shares.items()}


def _program(*arguments: str, descriptor: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.channel", "program", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[descriptor], text=True)


def compare(scenario: str, peers: list[str], servers: dict[str, tuple[Target, str]], rounds: int, seconds: float) -> dict[str, Sample]:
    samples: dict[str, list[Sample]] = {peer: [] for peer in peers}
    for number in range(rounds):
        at = number % len(peers)
        for peer in peers[at:] + peers[:at]:
            target, url = servers[PEERS[peer][1]]
            sample = measure(target, peer, url, scenario, seconds)
            samples[peer].append(sample)
            print(f"  {scenario} round {number + 1} {peer}: {as_line(sample)}", file=sys.stderr, flush=True)
    return {peer: medians(found) for peer, found in samples.items()}


def table(scenario: str, results: dict[str, Sample]) -> str:
    """Markdown; the last column says how many times a peer's rate the first has."""
    base, columns = next(iter(results.values())), list(next(iter(results.values())))
    lines = [f"| {' | '.join([scenario, *columns, f'{next(iter(results))} has'])} |", "|---" + "|--:" * (len(columns) + 1) + "|"]
    for name, result in results.items():
        values = [f"{value:,.0f}" if value >= 1000 else f"{value:,.2f}" for value in result.values()]
        lines.append(f"| {name} | {' | '.join(values)} | {base['rate'] / result['rate']:.2f} x |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.channel", description=__doc__.partition("\n")[0])
    parser.add_argument("--scenario", nargs="+", choices=("publish", "call"), default=["publish", "call"])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=["hub", "redis-py", "nats-py"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3, help="per measurement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one line with the medians to this file")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    needed = list(dict.fromkeys(PEERS[peer][1] for peer in options.peers))
    for program in needed:
        if program != "laraman" and not path_of(program):
            raise SystemExit(f"{program} is not installed (apt-get install {program})")
    results = {}
    with tempfile.TemporaryDirectory(prefix="b-") as directory, ExitStack() as stack:
        servers = {name: stack.enter_context(_started(name, Path(directory))) for name in needed}
        for scenario in options.scenario:
            results[f"channel-{scenario}"] = compare(scenario, options.peers, servers, options.rounds, options.seconds)
            print(table(scenario, results[f"channel-{scenario}"]), end="\n\n", flush=True)
    line = facts() | {"rounds": options.rounds, "seconds": options.seconds, "results": results}
    if options.json:
        with options.json.open("a") as history:
            history.write(json.dumps(line) + "\n")


def program(side: str, peer: str, url: str, scenario: str, seconds: str, descriptor: str) -> None:
    made = PEERS[peer][0](url)
    if side == "other":
        _run(other(made, scenario, int(descriptor)))
    else:
        print(json.dumps(_run(one(made, scenario, float(seconds), int(descriptor)))), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["program"]:
        program(*sys.argv[2:])
    else:
        main()
