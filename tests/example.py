"""The example, started as its README says, and somebody who chats there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from websockets.sync.client import connect

from tests.conftest import free_ports, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server

ROOT = str(Path(__file__).parent.parent)


def start_example(server: Callable[..., Server]) -> Server:
    ticker, browsers, worker, task = free_ports(4)
    running = server(
        *("app_example.main:app", "--listener", "app_example.listeners", "--app-dir", ROOT, "--workers", "2", "--gateway", f"127.0.0.1:{browsers}"),
        *("--task-workers", "2"),
        environ={
            "TICKER_PORT": str(ticker),
            "LARAMAN_GATEWAY_WORKER_ADDR": f"127.0.0.1:{worker}",
            "LARAMAN_GATEWAY_TASK_ADDR": f"127.0.0.1:{task}",
            "DESK": "desk.sock",
            "LABELS": "labels",
        },
    )
    running.gateway = browsers
    wait_until(lambda: [row["state"] for row in links(running)] == ["UP", "UP"], what="two links that are UP")
    return running


def links(running: Server) -> list[dict[str, Any]]:
    """Those to the ticker."""
    return [row for row in running.connections() if row["direction"] == "out" and row["name"] == "ticker"]


class Guest:
    """A page without a browser: what it sends and what it is told."""

    def __init__(self, running: Server, nick: str, room: str = "lobby", key: str = "") -> None:
        self._connecting = connect(f"ws://127.0.0.1:{running.gateway}/", proxy=None)
        self.nick, self.room, self.key = nick, room, key or nick

    def __enter__(self) -> Guest:
        self.socket = self._connecting.__enter__()
        self.join(self.room)
        #: To its first request: ``joined`` or ``error``.
        self.answer = self.hear("joined", "error")
        return self

    def __exit__(self, *error: Any) -> None:
        self._connecting.__exit__(*error)

    def join(self, room: str) -> None:
        self.say(type="join", nick=self.nick, room=room, key=self.key)

    def say(self, **request: Any) -> None:
        self.socket.send(json.dumps(request))

    def hear(self, *kinds: str, **values: Any) -> dict[str, Any]:
        """The next message of one of these types and with these values; what comes before it is dropped."""
        while True:
            said: dict[str, Any] = json.loads(self.socket.recv(timeout=10))
            if said["type"] in kinds and values.items() <= said.items():
                return said
