"""Both servers as a user starts them: ``uvicorn ...`` and ``laraman ...`` with the same words, and what they leave to see."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.conftest import DEADLINE, clean_environment, free_ports, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HERE = Path(__file__).parent
CLIENT_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
CLIENT_TLS.check_hostname, CLIENT_TLS.verify_mode = False, ssl.CERT_NONE

#: All that uvicorn's behaviour asks of laraman, where the two differ and an option exists.
AS_UVICORN = (
    *("--log-brand", "uvicorn", "--no-server-header", "--header", "server:uvicorn", "--timeout-graceful-shutdown", "none"),
    *("--timeout-request-header", "0", "--timeout-request-body", "0", "--limit-request-head", "1000000", "--limit-request-fields", "10000"),
    *("--limit-request-line", "100000", "--limit-request-body", "0", "--reset-contextvars", "--asgi-extensions", "none"),
)


#: Every directory that was made, to be taken away.
DIRECTORIES: list[Path] = []


def new_directory(files: Mapping[str, str] | None = None) -> Path:
    """With the application and these files."""
    directory = Path(tempfile.mkdtemp(prefix="contract-"))  # short: a unix socket's path has to fit
    DIRECTORIES.append(directory)
    (directory / "app.py").write_bytes((HERE / "app.py").read_bytes())
    for name, text in (files or {}).items():
        (directory / name).write_text(text)
    return directory


class Running:
    """One server process. ``name`` is uvicorn, laraman, or laraman as uvicorn."""

    def __init__(self, name: str, arguments: Sequence[str], files: Mapping[str, str] | None = None, environ: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._ready = False
        self.uds = "--uds" in arguments
        self.tls = "--ssl-certfile" in arguments
        self.host = "::1" if "::1" in arguments else "127.0.0.1"
        self.port = free_ports(1)[0]
        arguments = [argument.format(port=self.port) for argument in arguments]
        self.directory = new_directory(files)
        self.marks = self.directory / "marks.txt"
        extra = AS_UVICORN if name == "as uvicorn" else ()
        module = "uvicorn" if name == "uvicorn" else "laraman"
        with (self.directory / "stdout").open("wb") as out, (self.directory / "stderr").open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *extra, *arguments],
                cwd=self.directory,
                env=clean_environment({"CONTRACT_MARKS": str(self.marks), **(environ or {})}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def stdout(self) -> str:
        return (self.directory / "stdout").read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return (self.directory / "stderr").read_text(errors="replace")

    def wait_line(self, pattern: str, count: int = 1) -> str:
        """Until that many lines of stderr match, and return the last of them."""

        def found() -> str:
            lines = [line for line in self.stderr.splitlines() if re.search(pattern, line)]
            if len(lines) < count:
                assert self.process.poll() is None or len(lines) >= count, f"{self.name} exited with {self.process.returncode}:\n{self.stderr}"
            return lines[count - 1] if len(lines) >= count else ""

        try:
            return wait_until(found, what=f"{count} x {pattern!r}")
        except AssertionError as exc:
            raise AssertionError(f"{self.name}: {exc}\n{self.stderr}") from None

    def dial(self) -> socket.socket:
        """A connection, before any TLS."""
        if self.uds:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(DEADLINE)
            try:
                sock.connect(os.fspath(self.directory / "server.sock"))
            except OSError:
                sock.close()
                raise
            return sock
        return socket.create_connection((self.host, self.port), DEADLINE)

    def ready(self) -> Running:
        """Until its connections are answered."""

        def answers() -> bool:
            assert self.process.poll() is None, f"{self.name} exited with {self.process.returncode}:\n{self.stderr}"
            with contextlib.suppress(OSError), contextlib.closing(self.dial()) as sock:
                if not self.tls:
                    sock.sendall(b"GET /hello HTTP/1.1\r\nHost: there\r\nConnection: close\r\n\r\n")
                    return sock.recv(1) == b"H"
                with CLIENT_TLS.wrap_socket(sock) as wrapped:
                    return wrapped.version() is not None
            return False

        if not self._ready:
            wait_until(answers, what=f"an answer of {self.name}")
            self._ready = True
        return self

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def ended(self) -> int:
        """The exit code, when it is over."""
        return self.process.wait(DEADLINE)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            return self.ended()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
