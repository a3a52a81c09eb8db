"""The servers that the rows share."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import trustme

from tests.contract.scenes import Actor, Fact
from tests.contract.serving import DIRECTORIES, Running
from tests.contract.table import Row

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Arguments of the servers: those of both, and those of laraman where it has more.
CONFIGURATIONS: dict[str, tuple[str, ...]] = {
    "plain": ("app:app", "--port", "{port}"),
    "odd": (
        *("app:app", "--port", "{port}", "--root-path", "/api", "--header", "X-A:1", "--header", "x-b: 2", "--no-server-header", "--no-date-header"),
        *("--forwarded-allow-ips", "*", "--ws-max-size", "100", "--ws-ping-interval", "0.5", "--ws-ping-timeout", "0.5", "--timeout-keep-alive", "1"),
        *("--ws-per-message-deflate", "false", "--reset-contextvars", "--log-level", "warning"),
    ),
    "off": ("app:app", "--port", "{port}", "--lifespan", "off", "--no-proxy-headers", "--no-access-log", "--ws", "none", "--limit-concurrency", "3"),
    "h11": (
        "app:app",
        "--port",
        "{port}",
        "--http",
        "h11",
        "--forwarded-allow-ips",
        "127.0.0.0/8,10.0.0.0/8",
        "--loop",
        "asyncio",
        "--ws",
        "wsproto",
    ),
    "uds": ("app:app", "--uds", "server.sock"),
    "ipv6": ("app:app", "--host", "::1", "--port", "{port}"),
    "slow": ("app:app", "--port", "{port}"),
    "tls": ("app:app", "--port", "{port}", "--ssl-keyfile", "{tls}/key.pem", "--ssl-certfile", "{tls}/cert.pem"),
}


#: Options that uvicorn does not have.
MORE = {("slow", "laraman"): ("--timeout-request-header", "1")}


class Stage:
    """Starts each server once, when it is first asked for."""

    def __init__(self, tls: str, rows: Iterable[Row]) -> None:
        self._tls = tls
        self._ahead = ThreadPoolExecutor(4)  # scenes mostly wait
        self._running: dict[tuple[str, str], Running] = {}
        self._actors = {name: Actor(name) for name in ("uvicorn", "laraman", "as uvicorn")}
        self._lock = threading.Lock()
        for row in rows:
            if isinstance(row.do, Fact):
                for name in self.names(row):
                    self._ahead.submit(self._actors[name].facts, row.do.scene)

    def server(self, configuration: str, name: str) -> Running:
        with self._lock:
            if (running := self._running.get((configuration, name))) is None:
                arguments = [argument.replace("{tls}", self._tls) for argument in CONFIGURATIONS[configuration]]
                arguments += MORE.get((configuration, name), ())
                running = self._running[configuration, name] = Running(name, arguments)
        return running.ready()

    def of(self, configuration: str, name: str) -> Running | Actor:
        """What a row is done with: a server of this configuration, or without one an actor."""
        return self.server(configuration, name) if configuration else self._actors[name]

    def names(self, row: Row) -> list[str]:
        """Whom the row is asked of."""
        return ["uvicorn", "laraman", *(["as uvicorn"] if row.differs else [])]

    def close(self) -> None:
        self._ahead.shutdown(cancel_futures=True)
        for running in self._running.values():
            running.process.terminate()
        left = [running for actor in self._actors.values() for running in actor.started if running.process.poll() is None]
        for running in (*self._running.values(), *left):  # those of a scene that has failed
            running.stop()
        for directory in DIRECTORIES:
            shutil.rmtree(directory)


@pytest.fixture(scope="session")
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    directory = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    made = authority.issue_cert("localhost")
    made.private_key_pem.write_to_path(str(directory / "key.pem"))
    made.cert_chain_pems[0].write_to_path(str(directory / "cert.pem"))
    asked = [item.callspec.params for item in request.session.items if isinstance(item, pytest.Function) and hasattr(item, "callspec")]
    rows = [params["row"] for params in asked if isinstance(params.get("row"), Row)]
    stage = Stage(str(directory), rows)
    yield stage
    stage.close()
