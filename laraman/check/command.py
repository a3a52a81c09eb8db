"""The verb ``laraman check``, when its application is known."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

from laraman import log
from laraman.check.course import check
from laraman.check.diff import ROUNDS
from laraman.check.play import Stage
from laraman.check.requests import read_requests
from laraman.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from laraman.config import Config


def run(config: Config, *, requests: str | None, rounds: str, timeout: str, ignore: Sequence[str], json: bool) -> int:
    """Check the application, print the report, and return the exit code. The values are as they were typed. Raises ConfigError and BootError."""
    times, seconds = _at_least(ROUNDS - 1, int, "--rounds", rounds), _at_least(0.1, float, "--timeout", timeout)
    given = None if requests is None else read_requests(Path(requests))
    log.configure(replace(config, log_level="critical", access_log=False))  # what goes wrong is in the report, in a line
    stdout = sys.stdout  # the application may put another one in its place
    with _stdout_reserved():
        stage = Stage(replace(config, guard="off"), seconds)
        report = check(stage, given, times).without(ignore)
    width = get_terminal_size().columns if stdout.isatty() else None
    print(report.json() if json else report.table(width), file=stdout, flush=True)
    return _leave(report.exit_code, stage.stuck)


def _at_least(low: float, kind: type[Any], flag: str, text: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        raise ConfigError(f"{flag}: {text!r} is not a {'whole ' if kind is int else ''}number") from None
    if not low <= value < math.inf:
        raise ConfigError(f"{flag}: {text} is not {low} or more")
    return value


@contextlib.contextmanager
def _stdout_reserved() -> Iterator[None]:
    """What is printed meanwhile, also by other processes, goes to stderr: stdout is the report's."""
    stdout = sys.stdout
    stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _leave(code: int, stuck: bool) -> int:
    """Return the exit code; but where something of the application would not let the process go, end it."""
    main = threading.main_thread()
    if stuck or any(thread is not main and not thread.daemon for thread in threading.enumerate()):
        sys.stderr.flush()
        os._exit(code)
    return code
