"""An application for a few requests under one server, in a process of its own: what it answers, what it is given, what is logged."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, RejectConnection, TextMessage
from wsproto.events import Request as Upgrade

from laraman.check.requests import MARKER, Request, from_openapi
from laraman.errors import BootError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from laraman.config import Config

#: What stands for the marker of requests, and what is said on a websocket.
WORD = "laraman-doctor"
#: Requests and websockets that are played when no file says which.
MOST, MOST_WEBSOCKETS = 20, 5
#: Bytes of a body that are compared.
KEPT = 1024 * 1024
#: Seconds for an answer: what takes longer is taken for a stream without an end. Seconds after which nothing more is played.
ANSWER, BUDGET = 3.0, 60.0
#: Seconds for a server to stop.
STOP = 15.0


@dataclass
class Trial:
    """What was seen under one server. ``answers`` are (name, what of it, value), each twice: what differs between the two changes by itself."""

    answers: list[dict[str, Any]] = field(default_factory=list)
    scopes: list[dict[str, Any]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    exit_code: int = 0


class Patient:
    """The process of a server. ``server`` is uvicorn or laraman."""

    def __init__(self, server: str, config: Config, directory: Path, timeout: float) -> None:
        self.server = server
        self._timeout = timeout
        self._records = directory / f"{server}.jsonl"
        self._log = directory / f"{server}.log"
        self.port = _free_port()
        order = {"app": config.app, "factory": config.factory, "interface": config.interface, "app_dir": config.app_dir, "file": str(self._records)}
        words = ["laraman.doctor.recorder:app", "--host", "127.0.0.1", "--port", str(self.port), "--lifespan", config.lifespan, "--no-use-colors"]
        own = ["--workers", "1", "--state-dir", str(directory / "state")] if server == "laraman" else []
        environ = {name: text for name, text in os.environ.items() if not name.startswith(("UVICORN_", "LARAMAN_", "WEB_CONCURRENCY"))}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", server, *words, "--root-path", config.root_path, *own],
                env={**environ, "LARAMAN_DOCTOR": json.dumps(order), "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def records(self) -> list[dict[str, Any]]:
        """What the application's wrapper has written so far; a line that is not complete yet is left out."""
        with contextlib.suppress(FileNotFoundError):
            return [json.loads(line) for line in self._records.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return []

    def wait(self, lifespan: bool) -> dict[str, Any]:
        """Until it serves; what the application says of itself. Raises BootError, in a line, when it does not within the time."""
        deadline = time.monotonic() + self._timeout
        while time.monotonic() < deadline:
            found = self.records()
            if found and (not lifespan or any("startup" in record for record in found)) and self._listens():
                return found[0]
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        said = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        why = f"ended with {self.process.returncode}" if self.process.poll() is not None else f"is not ready after {self._timeout:g} s"
        raise BootError(f"the application does not start under {self.server}: it {why}{f': {_without_type(said[-1])}' if said else ''}")

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def stop(self) -> int:
        """End it, and all that it has started; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP)
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def lines(self) -> list[str]:
        """What was logged, without what differs from run to run."""
        kept = [line for line in self._log.read_text(errors="replace").splitlines() if re.match(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL): ", line)]
        return [re.sub(r"\d+", "*", line.replace("127.0.0.1", "*")) for line in kept]


def _without_type(line: str) -> str:
    """The last line of a traceback without the exception's type where that is laraman's own."""
    return line.strip().removeprefix("laraman.errors.BootError: ")


def compare(config: Config, requests: Sequence[Request] | None, timeout: float) -> tuple[Trial, Trial, list[str]]:
    """The application under uvicorn and under laraman, and the names of what was played. Raises BootError."""
    with tempfile.TemporaryDirectory(prefix="laraman-doctor-") as directory:
        patients = [Patient(server, config, Path(directory), timeout) for server in ("uvicorn", "laraman")]
        try:
            about, _ = [patient.wait(config.lifespan != "off") for patient in patients]
            found, _ = (requests, None) if requests is not None else (_found(patient.port, about, timeout) for patient in patients)
            plays = [(request, "") for request in found] + [(None, path) for path in about["websockets"][:MOST_WEBSOCKETS]]
            trials = [Trial(), Trial()]
            over = time.monotonic() + BUDGET
            for count, (request, path) in enumerate(plays):
                if time.monotonic() > over:
                    del plays[count:]
                    break
                for patient, trial in zip(patients, trials, strict=True):
                    _play(patient, trial, request, path, min(timeout, ANSWER))
        finally:
            codes = [patient.stop() for patient in patients]
        for patient, trial, code in zip(patients, trials, codes, strict=True):
            trial.exit_code, trial.lines = code, patient.lines()
    return trials[0], trials[1], [_name(request, path) for request, path in plays]


def _name(request: Request | None, path: str) -> str:
    return request.name if request is not None else f"WEBSOCKET {path}"


def _found(port: int, about: dict[str, Any], timeout: float) -> list[Request]:
    """``/``, and what the OpenAPI document or else the routes have."""
    found = [Request("GET", "/")]
    if about["openapi"]:
        answer = _ask(port, Request("GET", about["openapi"]), timeout)
        with contextlib.suppress(ValueError):
            found += from_openapi(json.loads(answer["body"]))
    else:
        found += [Request("GET", path) for path in about["routes"]]
    return list({(request.method, request.path): request for request in found}.values())[:MOST]


def _play(patient: Patient, trial: Trial, request: Request | None, path: str, timeout: float) -> None:
    """Play the request, or the websocket of this path, twice."""
    for _ in range(2):
        before = sum("scope" in record for record in patient.records())
        trial.answers.append(_ask(patient.port, request, timeout) if request is not None else _talk(patient.port, path, timeout))
        scopes = [record for record in patient.records() if "scope" in record]
        trial.scopes.append(_steady({**scopes[-1]["scope"], "state": scopes[-1]["state"]}, patient.port) if len(scopes) > before else {})


def _steady(scope: dict[str, Any], port: int) -> dict[str, Any]:
    """Without the ports, which are others each time."""
    for key, name in (("client", "its port"), ("server", "its port")):
        match scope.get(key):
            case {"tuple": [host, int(number)]} if key == "client" or number == port:
                scope[key] = {"tuple": [host, name]}
    return scope


def _ask(port: int, request: Request, timeout: float) -> dict[str, Any]:
    """Status, fields and body of the answer; or what went wrong instead."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    headers = {name: value.replace(MARKER, WORD) for name, value in request.headers}
    try:
        with contextlib.closing(connection):
            path = request.path.replace(MARKER, WORD)
            connection.request(request.method, path, request.body or None, {"Host": "127.0.0.1", "Connection": "close", **headers})
            answer = connection.getresponse()
            body, cut = _read(answer, timeout)
            fields = [(name.lower(), value) for name, value in answer.getheaders() if name.lower() not in ("date", "connection")]
            return {"status": f"{answer.status} {answer.reason}", "headers": sorted(fields), "body": body.decode("latin-1"), "end": cut}
    except (OSError, http.client.HTTPException) as exc:
        return {"status": f"none: {type(exc).__name__}"}


def _read(answer: http.client.HTTPResponse, timeout: float) -> tuple[bytes, str]:
    """The body, as far as it comes in the time, and how it ended."""
    body, deadline = b"", time.monotonic() + timeout
    try:
        while piece := answer.read1(65536):
            body += piece
            if len(body) > KEPT or time.monotonic() > deadline:
                return b"", "endless"
    except TimeoutError:
        return b"", "endless"
    except (OSError, http.client.HTTPException) as exc:
        return body, type(exc).__name__
    return body, "complete"


def _talk(port: int, path: str, timeout: float) -> dict[str, Any]:
    """The answer to a handshake; where it is accepted, the first message after a word was said, and the code of the close."""
    seen: dict[str, Any] = {}
    client = WSConnection(ConnectionType.CLIENT)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout) as sock:
            sock.sendall(client.send(Upgrade(host="127.0.0.1", target=path)))
            sock.settimeout(min(timeout, 1.0))
            closing = False
            while "close" not in seen:
                try:
                    data = sock.recv(65536)
                except TimeoutError:
                    if closing or "handshake" not in seen:
                        raise
                    data, closing = None, True
                    sock.sendall(client.send(CloseConnection(code=1000)))
                if data is not None:
                    client.receive_data(data or None)
                for event in client.events() if data is not None else ():
                    if isinstance(event, AcceptConnection):
                        seen["handshake"] = f"accepted, subprotocol {event.subprotocol}"
                        sock.sendall(client.send(TextMessage(data=WORD)))
                    elif isinstance(event, RejectConnection):
                        return {"handshake": event.status_code}
                    elif isinstance(event, (TextMessage, BytesMessage)):
                        seen.setdefault("message", str(event.data))
                    elif isinstance(event, CloseConnection):
                        seen["close"] = int(event.code)
                if data == b"":
                    seen.setdefault("close", "cut off")
    except (BrokenPipeError, ConnectionResetError):
        seen["close"] = "cut off"
    except OSError as exc:
        seen["close"] = f"none: {type(exc).__name__}"
    return seen


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
