"""Tasks in tests: performed in the test's own process, or by task workers that are started for it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laraman.net.encoding import decode, encode
from laraman.tasks import NAME
from laraman.tasks.calling import performing, use
from laraman.tasks.performing import error_of, perform, raised, result_of
from laraman.tasks.pool import request_of
from laraman.tasks.thread import Thread

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from laraman.tasks.declared import Call

#: Seconds that the task workers have to start.
START_SECONDS = 30.0

_PROGRAM = "import sys, laraman; laraman.run_workers(task_workers=int(sys.argv[1]), state_dir=sys.argv[2], log_level=sys.argv[3])"


def inline_tasks() -> contextlib.AbstractContextManager[None]:
    """Inside of this, tasks that are submitted run in this process, plain functions in a thread.

    Arguments and results travel through bytes as they do elsewhere, and what is raised is a TaskError. What a plain function does cannot be ended: a
    cancelled caller does not wait for it any more.
    """
    return performing(_Inline)


class _Inline:
    places = 1

    async def perform(self, call: Call, seconds: float | None, hear: Callable[[Any, Any], None] | None) -> Any:
        _, args, kwargs, _ = decode(request_of(call, seconds))
        loop = asyncio.get_running_loop()

        def tell(value: Any) -> None:
            told = decode(encode(value, f"the progress of {call.task.name}"))
            if hear is not None:
                loop.call_soon_threadsafe(hear, _Heard, told)

        async def part(value: Any) -> None:
            tell(value)

        async def blocking(function: Callable[..., Any], *args: Any) -> Any:
            return await Thread(loop).run(copy_context(), function, *args)

        try:
            work = perform(call.task, args, kwargs, blocking=blocking, part=part, tell=tell)
            return decode(result_of(call.task, await loop.create_task(work)))
        except (asyncio.CancelledError, KeyboardInterrupt):  # the test's own
            raise
        except BaseException as exc:
            error = error_of(raised(exc))
        raise error


class _Heard:
    """Where nothing travels nothing has to be paused."""

    @staticmethod
    def pause() -> None: ...

    @staticmethod
    def resume() -> None: ...


@contextlib.contextmanager
def task_workers(count: int = 1, directory: str | os.PathLike[str] = ".", log_level: str = "warning") -> Iterator[Path]:
    """Start so many task workers, which import from ``directory``, and let them have the tasks that are submitted inside of this. Gives the path
    of their server's state directory.
    """
    with tempfile.TemporaryDirectory(prefix="laraman-") as state:
        command = [sys.executable, "-c", _PROGRAM, str(count), state, log_level]
        server = subprocess.Popen(command, cwd=directory, stdin=subprocess.DEVNULL)
        try:
            path = Path(state) / f"{NAME}.sock"
            _wait_for(path, server)
            with use(str(path), places=count):
                yield Path(state)
        finally:
            server.terminate()
            server.wait(START_SECONDS)


def _wait_for(path: Path, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))
            return
        time.sleep(0.02)
    raise RuntimeError("the task workers have not started")
