"""Tasks in real task workers, with what may happen to these; and in the test's own process."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import laraman
from laraman.errors import Busy, ConfigError, ConnectionLost, LinkDown, LocalProtocolError, TaskError
from laraman.net.current import current_worker
from laraman.process.control import request
from laraman.process.worker import Worker
from laraman.tasks import calling
from laraman.tasks.calling import performing, use
from laraman.tasks.pool import Pool
from laraman.testing import inline_tasks, task_workers
from tests.conftest import DEADLINE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

JOBS = '''
import asyncio, os, pathlib, sys, time
import laraman

@laraman.task
def echo(*args, **kwargs):
    return [list(args), kwargs]

@laraman.task
async def later(x):
    await asyncio.sleep(0.01)
    return x

@laraman.task
def pid():
    return os.getpid()

@laraman.task
def fails(x):
    raise ValueError(f"no {x}")

@laraman.task
def leaves():
    sys.exit(3)

class Strange(BaseException):
    def __str__(self):
        raise ValueError

@laraman.task
def strange():
    raise Strange

@laraman.task
async def strange_too():
    raise Strange

@laraman.task
def forks():
    return os.fork() or os.getpid()

@laraman.task
async def forks_too():
    return os.fork() or os.getpid()

@laraman.task
def dies():
    os._exit(7)

@laraman.task
def unsendable():
    return {"a": [object()]}

@laraman.task
def blocks(path):
    pathlib.Path(path).write_text(str(os.getpid()))
    return len(str(7 ** 10_000_000))  # minutes in C, with the interpreter's lock

@laraman.task
async def waits(path):
    pathlib.Path(path).write_text(str(os.getpid()))
    try:
        await asyncio.sleep(1000)
    except asyncio.CancelledError:
        open(path + ".over", "w").close()
        raise

@laraman.task
async def stands(path):
    pathlib.Path(path).write_text(str(os.getpid()))
    time.sleep(1000)

@laraman.task
def naps(seconds):
    time.sleep(seconds)
    return os.getpid()

@laraman.task
def count(n):
    for number in range(n):
        yield number
    return "end"

@laraman.task
async def acount(n):
    for number in range(n):
        yield number

@laraman.task
async def hurries():
    while True:
        yield os.getpid()

@laraman.task
async def asks(x):
    return await laraman.submit(later, x, timeout=10)

@laraman.task
def tells(n):
    for number in range(n):
        laraman.progress(number)
        time.sleep(0.002)
    return "done"

plain = echo.function

@laraman.task(timeout=0.2)
def short():
    time.sleep(1000)
'''


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    directory = tmp_path_factory.mktemp("jobs")
    (directory / "jobs_for_tests.py").write_text(JOBS)
    sys.path.insert(0, str(directory))
    yield importlib.import_module("jobs_for_tests")
    sys.path.remove(str(directory))
    del sys.modules["jobs_for_tests"]


@pytest.fixture(scope="module")
def state(jobs: Any) -> Iterator[Path]:
    with task_workers(2, Path(jobs.__file__).parent) as path:
        yield path


def run(work: Any) -> Any:
    async def main() -> Any:
        async with asyncio.timeout(DEADLINE):
            return await work

    return asyncio.run(main())


def rows(state: Path, what: str) -> list[dict[str, Any]]:
    answer = request(state / "control.sock", {"op": what}, DEADLINE)
    return [row for row in answer["rows" if what == "connections" else "processes"] if row["worker"] == "task"]


def written(path: Path) -> int:
    return int(wait_until(lambda: path.exists() and path.read_text()))


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


# What they do ---------------------------------------------------------------------------------------------------------------------


def test_results(state: Path, jobs: Any) -> None:
    async def work() -> None:
        assert await laraman.submit(jobs.echo, 1, "x", b"y", None, {"k": [1.5]}, key=True) == [[1, "x", b"y", None, {"k": [1.5]}], {"key": True}]
        assert await laraman.submit(jobs.later, 5) == 5
        assert await laraman.concurrently(jobs.later(1), jobs.echo(2), timeout=DEADLINE) == [1, [[2], {}]]
        assert [number async for number in laraman.map(jobs.later, range(30))] == list(range(30))
        assert await laraman.submit(jobs.echo, b"x" * 3_000_000) == [[b"x" * 3_000_000], {}]

    run(work())


def test_they_run_beside_each_other_in_other_processes(state: Path, jobs: Any) -> None:
    pids = run(laraman.concurrently(jobs.naps(0.5), jobs.naps(0.5)))
    assert len({*pids, os.getpid()}) == 3


def test_what_is_raised_arrives_with_its_traceback(state: Path, jobs: Any) -> None:
    with pytest.raises(TaskError, match="ValueError: no cat") as caught:
        run(laraman.submit(jobs.fails, "cat"))
    assert caught.value.type == "ValueError"
    assert "jobs_for_tests.py" in caught.value.traceback
    assert "laraman/tasks" not in caught.value.traceback
    with pytest.raises(TaskError, match="SystemExit: 3"):
        run(laraman.submit(jobs.leaves))


@pytest.mark.parametrize("name", ["strange", "strange_too"])
def test_whatever_is_raised_arrives(state: Path, jobs: Any, name: str) -> None:
    with pytest.raises(TaskError, match=r"jobs_for_tests\.Strange: its text cannot be had"):
        run(laraman.submit(getattr(jobs, name)))


@pytest.mark.parametrize("name", ["forks", "forks_too"])
def test_a_copy_that_a_task_makes_of_its_process_ends_with_the_task(state: Path, jobs: Any, name: str) -> None:
    async def work() -> tuple[int, list[Any]]:
        return await laraman.submit(getattr(jobs, name)), [await laraman.submit(jobs.echo, number) for number in range(5)]

    copy, echoes = run(work())
    assert echoes == [[[number], {}] for number in range(5)]
    wait_until(lambda: gone(copy) or Path(f"/proc/{copy}/stat").read_text().rpartition(")")[2].split()[0] == "Z", 5)


def test_what_cannot_be_sent_is_named(state: Path, jobs: Any) -> None:
    with pytest.raises(LocalProtocolError, match=r"args\[1\]\['k'\] is .*object"):
        run(laraman.submit(jobs.echo, 1, {"k": object()}))
    with pytest.raises(LocalProtocolError, match=r"kwargs\['x'\]"):
        run(laraman.submit(jobs.echo, x={1}))
    with pytest.raises(TaskError, match=r"the result of jobs_for_tests:unsendable\['a'\]\[0\] is .*object"):
        run(laraman.submit(jobs.unsendable))


def test_what_is_no_task_is_refused(state: Path, jobs: Any) -> None:
    with pytest.raises(ConfigError, match=r"jobs_for_tests:echo is no task: declare it with @laraman\.task"):
        run(laraman.submit(jobs.plain, 1))
    with pytest.raises(ConfigError, match="is a lambda, so no other process can find it"):
        run(laraman.submit(lambda: 1))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is defined in a function"):

        @laraman.task
        def local() -> None: ...

    with pytest.raises(ConfigError, match="is a generator"):
        run(laraman.submit(jobs.count, 1))
    with pytest.raises(ConfigError, match="takes calls of tasks"):
        run(laraman.concurrently(laraman.submit(jobs.echo)))  # type: ignore[arg-type]


def test_streams(state: Path, jobs: Any) -> None:
    async def work() -> None:
        stream = jobs.count.stream(500)
        assert [value async for value in stream] == list(range(500))
        assert stream.result == "end"
        assert [value async for value in jobs.acount.stream(20)] == list(range(20))
        stream = jobs.tells.stream(30)
        told = [value async for value in stream]
        assert told == sorted(set(told))
        assert told[-1] == 29
        assert stream.result == "done"

    run(work())


def test_a_stream_that_is_left_ends_its_task(state: Path, jobs: Any) -> None:
    async def work() -> None:
        before = await laraman.submit(jobs.pid)
        async with jobs.count.stream(10**9) as stream:
            async for value in stream:
                if value == 100:
                    break
                await asyncio.sleep(0)
        assert await laraman.submit(jobs.echo) == [[], {}]
        assert before

    run(work())


def test_an_async_stream_that_waits_for_nothing_is_cancelled_when_it_is_left(state: Path, jobs: Any) -> None:
    async def work() -> int:
        async with jobs.hurries.stream() as stream:
            heard = 0
            async for pid in stream:
                heard += 1
                if heard == 1000:
                    return int(pid)
        raise AssertionError

    pid = run(work())

    wait_until(lambda: gone(pid) or pid in run(laraman.concurrently(jobs.naps(0.1), jobs.naps(0.1))))
    assert not gone(pid)


def test_a_task_may_ask_for_another_one_where_there_are_more_workers(state: Path, jobs: Any, tmp_path: Path) -> None:
    assert run(laraman.submit(jobs.asks, 7)) == 7
    with task_workers(1, Path(jobs.__file__).parent), pytest.raises(TaskError, match="ConfigError: a task cannot wait for another one where one"):
        run(laraman.submit(jobs.asks, 7))


def test_times_that_are_none(state: Path, jobs: Any) -> None:
    async def work() -> None:
        before = {await laraman.submit(jobs.pid) for _ in range(5)}
        for nothing in (0, -1.0, float("nan")):
            with pytest.raises(TimeoutError, match="took longer than"):
                await laraman.submit(jobs.naps, 0, timeout=nothing)
        assert await laraman.submit(jobs.pid, timeout=float("inf")) in before

    run(work())


# What ends them -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["blocks", "waits", "naps", "short"])
def test_time_ends_them(state: Path, jobs: Any, tmp_path: Path, name: str) -> None:
    arguments = {"naps": (1000,), "short": ()}.get(name, (str(tmp_path / "pid"),))
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match=rf"task jobs_for_tests:{name} took longer than .* s"):
        run(laraman.submit(getattr(jobs, name), *arguments, timeout=None if name == "short" else 1.0))
    assert time.monotonic() - begun < DEADLINE / 2
    assert run(laraman.submit(jobs.echo)) == [[], {}]


def test_a_caller_that_cancels_ends_what_holds_the_interpreters_lock(state: Path, jobs: Any, tmp_path: Path) -> None:
    async def work() -> int:
        path = tmp_path / "pid"
        task = asyncio.create_task(laraman.submit(jobs.blocks, str(path)))
        pid = await asyncio.to_thread(written, path)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return pid

    pid = run(work())
    wait_until(lambda: gone(pid))
    wait_until(lambda: len([row for row in rows(state, "status") if row["state"] == "ready"]) == 2)
    assert any("its task was given up" in (row["last_exit"] or "") for row in rows(state, "status"))


def test_an_async_task_that_stands_still_ends_its_process(state: Path, jobs: Any, tmp_path: Path) -> None:
    with pytest.raises(ConnectionLost):
        run(laraman.submit(jobs.stands, str(tmp_path / "pid")))
    wait_until(lambda: any("its time was over" in (row["last_exit"] or "") for row in rows(state, "status")))


def test_an_async_task_is_cancelled_and_its_process_stays(state: Path, jobs: Any, tmp_path: Path) -> None:
    async def work() -> int:
        path = tmp_path / "pid"
        task = asyncio.create_task(laraman.submit(jobs.waits, str(path)))
        pid = await asyncio.to_thread(written, path)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return pid

    pid = run(work())
    wait_until(lambda: (tmp_path / "pid.over").exists())
    assert not gone(pid)


def test_a_process_that_dies_is_an_error_and_is_replaced(state: Path, jobs: Any) -> None:
    for _ in range(3):
        with pytest.raises(ConnectionLost, match="task jobs_for_tests:dies: the process that ran it has ended"):
            run(laraman.submit(jobs.dies))
    assert run(laraman.submit(jobs.echo, 1)) == [[1], {}]


def test_a_process_that_is_killed_in_the_middle(state: Path, jobs: Any, tmp_path: Path) -> None:
    async def work() -> None:
        path = tmp_path / "pid"
        task = asyncio.create_task(laraman.submit(jobs.waits, str(path)))
        os.kill(await asyncio.to_thread(written, path), signal.SIGKILL)
        with pytest.raises(ConnectionLost):
            await task

    run(work())
    assert run(laraman.submit(jobs.echo, 1)) == [[1], {}]


def test_the_first_error_ends_the_rest(state: Path, jobs: Any, tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(TaskError, match="no cat"):
        run(laraman.concurrently(jobs.naps(1000), jobs.fails("cat")))
    with pytest.raises(TimeoutError, match="jobs_for_tests:naps took longer than 5 s"):
        run(laraman.concurrently(jobs.naps(1000), jobs.later(1), timeout=5.0))
    assert time.monotonic() - begun < DEADLINE


def test_many_callers_take_turns(state: Path, jobs: Any) -> None:
    """More processes' worth of connections than there are workers, each with more to do: nobody waits for ever, nothing is lost."""

    async def caller(number: int) -> list[Any]:
        pool = Pool(str(state / "task.sock"), 2, 100)
        try:
            return [await pool.perform(jobs.echo(number, turn), None, None) for turn in range(40)]
        finally:
            pool.close()

    async def work() -> list[list[Any]]:
        return await asyncio.gather(*map(caller, range(6)))

    assert run(work()) == [[[[number, turn], {}] for turn in range(40)] for number in range(6)]


def test_too_many_are_busy(state: Path, jobs: Any) -> None:
    async def work() -> None:
        with performing(lambda: Pool(str(state / "task.sock"), 1, 2)):
            running = [asyncio.create_task(laraman.submit(jobs.naps, 0.3)) for _ in range(3)]
            await asyncio.sleep(0)
            with pytest.raises(Busy, match="2 tasks wait for a task worker"):
                await laraman.submit(jobs.echo)
            await asyncio.gather(*running)

    run(work())


def test_connections_show_the_task(state: Path, jobs: Any, tmp_path: Path) -> None:
    async def work() -> None:
        path = tmp_path / "pid"
        task = asyncio.create_task(laraman.submit(jobs.waits, str(path)))
        await asyncio.to_thread(written, path)
        found = await asyncio.to_thread(rows, state, "connections")
        assert [(row["protocol"], row["direction"]) for row in found if row["name"] == "jobs_for_tests:waits"] == [("task", "in")]
        task.cancel()

    run(work())


# Without task workers ------------------------------------------------------------------------------------------------------------


def test_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "_outside", [])
    with pytest.raises(ConfigError, match=r"with laraman\.tasks\.calling\.use\(\.\.\.\)"):
        run(laraman.submit(laraman.task(time.sleep), 1))
    alone = current_worker.set(Worker("http"))
    try:
        with pytest.raises(ConfigError, match="a server that is this process alone has no task workers"):
            run(laraman.submit(laraman.task(time.sleep), 1))
    finally:
        current_worker.reset(alone)
    with use("/nowhere/task.sock"), pytest.raises(LinkDown, match="no task worker at /nowhere"):
        run(laraman.submit(laraman.task(time.sleep), 1))


def test_inline(jobs: Any) -> None:
    async def work() -> None:
        assert await laraman.submit(jobs.echo, (1, 2), x=3) == [[[1, 2]], {"x": 3}]
        assert await laraman.submit(jobs.pid) == os.getpid()
        assert await laraman.concurrently(jobs.later(1), jobs.later(2)) == [1, 2]
        assert [value async for value in jobs.count.stream(5)] == [0, 1, 2, 3, 4]
        with pytest.raises(TaskError, match="no cat"):
            await laraman.submit(jobs.fails, "cat")
        with pytest.raises(LocalProtocolError, match=r"args\[0\]"):
            await laraman.submit(jobs.echo, object())
        with pytest.raises(TimeoutError):
            await laraman.submit(jobs.waits, os.devnull, timeout=0.05)

    with inline_tasks():
        run(work())
