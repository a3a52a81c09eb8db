from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest

from laraman.net import dial as module
from laraman.net.address import parse_address
from laraman.net.dial import dial, resolve
from tests.net.serving import serving

pytestmark = pytest.mark.anyio


async def test_addresses_need_no_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_look_up", None)
    assert await resolve("127.0.0.1", 80) == ["127.0.0.1"]
    assert await resolve("::1", 80) == ["::1"]


async def test_names() -> None:
    assert "127.0.0.1" in await resolve("localhost", 80)
    for host in ("a..b", "x" * 70 + ".test", "does-not-exist.invalid"):
        with pytest.raises(OSError, match=r".+"):
            await resolve(host, 80)
    assert not module._lookups


async def test_one_lookup_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, asked = threading.Event(), []

    def getaddrinfo(host: str, port: int, **options: Any) -> Any:
        asked.append(host)
        gate.wait(10)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port))]

    monkeypatch.setattr("laraman.net.dial.socket.getaddrinfo", getaddrinfo)
    given_up = asyncio.create_task(resolve("peer.test", 80))
    waiting = asyncio.create_task(resolve("peer.test", 80))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.sleep(0)
    gate.set()
    assert await waiting == ["192.0.2.1"]
    assert asked == ["peer.test"]


async def test_the_next_address_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    async def addresses(host: str, port: int) -> list[str]:
        return ["127.0.0.77", "127.0.0.1"]

    monkeypatch.setattr(module, "resolve", addresses)
    async with serving(None, lambda: None) as served:
        protocol = await dial(parse_address(f"tcp://peer.test:{served.port}"), asyncio.Protocol, 5)
        assert type(protocol) is asyncio.Protocol
        (await served.accepted()).abort()


async def test_failures_say_why(tmp_path: Any) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            await dial(parse_address(f"tcp://127.0.0.1:{port}"), asyncio.Protocol, 5)
    with pytest.raises(OSError, match=r"No such file"):
        await dial(parse_address(f"tcp+unix://{tmp_path}/none"), asyncio.Protocol, 5)
