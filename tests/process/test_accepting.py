"""What a worker listens with: what is wrong with it is one line, before anything is accepted."""

from __future__ import annotations

import asyncio
import types
from typing import TYPE_CHECKING, Any

import pytest

from laraman.config import Config
from laraman.errors import BootError, ConfigError
from laraman.process.accepting import Accepting
from laraman.process.opening import open_binds
from laraman.process.worker import Worker

if TYPE_CHECKING:
    from pathlib import Path


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Never called."""


class Half:
    def send(self, message: bytes) -> bytes:
        return message


@pytest.mark.parametrize(
    ("declared", "line"),
    [
        ({"address": "txt://127.0.0.1:0"}, "there is no protocol 'txt'; did you mean 'text'?"),
        ({"address": "gopher://127.0.0.1:0"}, "there is no protocol 'gopher'; there are frame, http, request, tcp, text, udp, websocket"),
        ({"address": "ws://127.0.0.1:0"}, "there is no protocol 'ws'; where one listens it is websocket://"),
        ({"address": "frame+tls://127.0.0.1:0"}, "needs a certificate, ssl_certfile"),
        ({"address": "tcp://127.0.0.1:0", "protocol": "nowhere:Codec"}, "protocol 'nowhere:Codec': there is no module 'nowhere'"),
        ({"address": "tcp://127.0.0.1:0", "protocol": Half}, "makes nothing with receive_data and send"),
        ({"address": "udp://127.0.0.1:0", "protocol": "string:digits"}, "its protocol 'string:digits' makes nothing with receive_data and send"),
    ],
)
def test_what_cannot_be_spoken(declared: dict[str, Any], line: str) -> None:
    async def start() -> None:
        worker = Worker("w", handler=object(), **declared)
        worker.config = Config()
        for bind in worker.binds:
            bind.open()
        accepting = Accepting(worker, worker.handler, asyncio.get_running_loop())
        try:
            await accepting.start()
        finally:
            for bind in worker.binds:
                bind.close()

    with pytest.raises(ConfigError) as caught:
        asyncio.run(start())
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("declared", "line"),
    [
        ({"address": ["http://127.0.0.1:1", "text://127.0.0.1:2"], "handler": app}, "other addresses need a worker of their own"),
        ({"address": "http://127.0.0.1:1"}, "http:// needs a handler, the ASGI application"),
        ({"address": "http://127.0.0.1:1", "handler": app, "max_connections": 1}, "max_connections is not for http://"),
        ({"address": "unix:///run/x", "reuse_port": True}, "reuse_port is for addresses with a port, not for tcp+unix:///run/x"),
        ({"address": "fd:3", "reuse_port": True}, "reuse_port is for addresses with a port"),
        ({"address": "udp+unix:///run/x"}, "udp is spoken between hosts and ports"),
        ({"address": "text://127.0.0.1:1", "mode": "rw-"}, "mode"),
    ],
)
def test_what_cannot_be_declared(declared: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Worker("w", **declared)
    assert line in str(caught.value)


def test_an_application_is_what_the_service_of_http_serves() -> None:
    named, given = Worker("a", "http://127.0.0.1:1", handler="m:app"), Worker("b", "http+tls://127.0.0.1:1", handler=app)
    assert (named.handler, named.configured(Config(factory=True)).app, named.configured(Config(factory=True)).factory) == (
        "laraman.asgi.service:Http",
        "m:app",
        False,
    )
    assert (named.reloadable, given.reloadable) == (True, False)


def a_master(*workers: Worker) -> Any:
    return types.SimpleNamespace(
        workers={worker.name: worker for worker in workers},
        binds=[bind for worker in workers for bind in worker.binds],
        inherited={},
        config=Config(),
    )


def test_two_workers_on_one_address(tmp_path: Path) -> None:
    path = f"unix://{tmp_path}/x"
    for first, second, line in (
        ("text://127.0.0.1:9", "frame+tls://127.0.0.1:9", "worker 'b' and worker 'a': frame+tls://127.0.0.1:9 is there twice"),
        (path, f"text+unix://{tmp_path}/./x", f"worker 'b' and worker 'a': unix socket {tmp_path}/./x is there twice"),
        ("udp://127.0.0.1:9", "udp://127.0.0.1:9", "worker 'b' and worker 'a': udp://127.0.0.1:9 is there twice"),
    ):
        with pytest.raises(ConfigError) as caught:
            open_binds(a_master(Worker("a", first), Worker("b", second)))
        assert str(caught.value) == line
    with pytest.raises(ConfigError, match=r"^worker 'a': tcp://127\.0\.0\.1:9 is there twice$"):
        open_binds(a_master(Worker("a", ["tcp://127.0.0.1:9", "tcp://127.0.0.1:9"])))


def test_a_port_for_tcp_and_for_udp_and_what_is_refused_leaves_nothing_open(tmp_path: Path) -> None:
    first = a_master(Worker("a", "text://127.0.0.1:0", count=2, reuse_port=True))
    open_binds(first)
    port = first.binds[0].address.port
    beside = a_master(Worker("b", f"udp://127.0.0.1:{port}"))
    open_binds(beside)
    refused = a_master(Worker("c", f"unix://{tmp_path}/c"), Worker("d", f"tcp://127.0.0.1:{port}", reuse_port=True))
    with pytest.raises(BootError, match=f"^cannot listen on tcp://127.0.0.1:{port}: Address already in use$"):
        open_binds(refused)
    assert [bind.sockets for bind in refused.binds] == [[], []]
    assert not (tmp_path / "c").exists()
    for bind in (*first.binds, *beside.binds):
        bind.close()
