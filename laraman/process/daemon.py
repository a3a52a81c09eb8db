"""Into the background and back: detach, tell the waiting command how the start went, and send the output to a file."""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from laraman.process import handover

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger("uvicorn.error")

#: The longest text that a start can end with, in characters, and what it takes in bytes as JSON at most.
_MAX_TEXT = 4000
_MAX_MESSAGE = 64 * 1024

#: A worker that is somebody else has this, and is not to read what others have written.
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND

_output: str = ""


class Notify:
    """Tells the command that waits in the foreground how the start went: once, exit code 0 and where it runs, or why it does not."""

    def __init__(self, writer: int) -> None:
        self._writer = writer

    def __call__(self, code: int, text: str) -> None:
        if self._writer >= 0:
            with suppress(BrokenPipeError):  # whoever started us did not wait
                os.write(self._writer, json.dumps([code, text[:_MAX_TEXT]]).encode())
            self.close()

    def close(self) -> None:
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1


def daemonize(timeout: float) -> Notify | None:
    """Go into the background. Returns in the daemon only, with what to tell the outcome to.

    The original process waits for that call, up to ``timeout`` seconds, prints its text and raises SystemExit with its code.
    Standard output and error stay as they are until `output_to`.
    A master that has executed itself anew is a daemon already: None, and nothing happens.
    """
    if handover.pending():
        return None
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    if child := os.fork():
        os.close(writer)
        os.waitpid(child, 0)
        code, text = _await(reader, timeout)
        print(text, file=sys.stderr if code else sys.stdout, flush=True)
        raise SystemExit(code)
    os.close(reader)
    os.setsid()
    if os.fork():  # the session's leader goes, so that no terminal can become ours by being opened
        os._exit(0)
    os.umask(0o077)
    _redirect(os.devnull, os.O_RDONLY, 0)
    return Notify(writer)


def _await(reader: int, timeout: float) -> tuple[int, str]:
    deadline = time.monotonic() + timeout
    data = b""
    with open(reader, "rb", buffering=0) as pipe:
        while len(data) < _MAX_MESSAGE:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                return 3, f"the server was not ready after {timeout:.0f} s; it is still trying"
            piece = pipe.read(4096)
            if not piece:
                break
            data += piece
    try:
        code, text = json.loads(data)
        return int(code), str(text)
    except ValueError:
        return 3, "the server ended before it was ready"


def output_to(path: Path | str) -> None:
    """Send standard output and error to this file (created 0600, appended to), now and at every `reopen_output`."""
    global _output
    _output = os.fspath(path)
    _redirect(_output, _APPEND, 1, 2)


def output() -> str:
    """The file of `output_to`; empty when the output goes where it always went."""
    return _output


def reopen_output() -> None:
    """Open the output file again, after a log rotation moved it away. Workers inherit it, so they do it too. Nothing without a file.

    Who cannot, like a worker that is another user, goes on in the old one: its successor inherits the new one from the master.
    """
    if _output:
        try:
            _redirect(_output, _APPEND, 1, 2)
        except OSError as exc:
            logger.error("Cannot reopen the output file %s: %s; it goes to the old one until a reload", _output, exc.strerror)


def _redirect(path: str, flags: int, *descriptors: int) -> None:
    opened = os.open(path, flags, 0o600)
    sys.stdout.flush()
    sys.stderr.flush()
    for descriptor in descriptors:
        os.dup2(opened, descriptor)
    if opened > 2:
        os.close(opened)
