"""Links over websockets and TLS, and through proxies."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from laraman.errors import ConfigError
from laraman.net.link import link
from tests.certificates import Authority
from tests.net.proxies import proxying
from tests.net.serving import until
from tests.net.test_link import QUICK, kept, up

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


async def test_a_link_over_a_websocket_with_tls_through_a_proxy(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("here"))
    received: list[Any] = []
    peers: list[ServerConnection] = []

    async def echo(peer: ServerConnection) -> None:
        peers.append(peer)
        async for message in peer:
            await peer.send(message)

    async with serve(echo, "127.0.0.1", 0, ssl=context) as server, proxying("socks5", "user", "right") as proxy:
        port = next(iter(server.sockets)).getsockname()[1]
        feed = link(
            f"wss://localhost:{port}/feed?x=1",
            ssl=authority.client(),
            proxy=f"socks5://user:right@127.0.0.1:{proxy.port}",
            headers={"X-Token": "t"},
            on_message=lambda link, message: received.append(message),
            backoff=QUICK,
        )
        async with kept(feed):
            await up(feed)
            await feed.send("one")
            await until(lambda: received == ["one"])
            assert proxy.asked == [f"localhost:{port}"]
            assert peers[0].request is not None
            assert (peers[0].request.path, peers[0].request.headers["X-Token"]) == ("/feed?x=1", "t")
            assert feed.row()["protocol"] == "ws+tls"
            await peers[0].close(1012, "restart")  # and it comes back
            await until(lambda: len(peers) == 2 and feed.state == "UP")
            assert "1012 restart" in str(feed.error)
            await feed.send("two")
            await until(lambda: received == ["one", "two"])
        await peers[1].wait_closed()
        assert peers[1].close_code == 1000


async def test_a_websocket_is_asked_whether_it_lives() -> None:
    peers: list[ServerConnection] = []

    async def idle(peer: ServerConnection) -> None:
        peers.append(peer)
        await peer.wait_closed()

    async with serve(idle, "127.0.0.1", 0, ping_interval=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with kept(link(f"ws://127.0.0.1:{port}", timeout=0.3, backoff=QUICK)) as feed:
            await up(feed)
            connection = feed._connection
            assert connection is not None
            await until(lambda: connection.messages_out >= 6)  # twice the silence that would end it
            assert feed.state == "UP"
            assert len(peers) == 1
            peers[0].transport.pause_reading()  # nothing is answered any more
            await until(lambda: len(peers) == 2)
            assert "nothing was received" in str(connection.error)
            peers[0].transport.abort()


async def test_a_link_through_a_proxy_that_refuses_says_why() -> None:
    async with proxying("http", "user", "right") as proxy:
        feed = link("text://peer.test:80", proxy=f"http://user:wrong@127.0.0.1:{proxy.port}", backoff=QUICK)
        async with kept(feed):
            await until(lambda: feed.failures >= 2)
            assert "407 Proxy Authentication Required" in feed.row()["error"]


@pytest.mark.parametrize("options", [{"proxy": "ftp://h:1"}, {"headers": {"a": "b"}}, {"ssl": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)}])
def test_links_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        link("tcp://h:1", **options)
