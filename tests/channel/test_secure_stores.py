"""Redis and NATS with TLS and passwords: who may, gets in; who may not is told why in one line; and no line holds a password."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from laraman.channel import connect
from laraman.errors import ConfigError, LinkDown
from laraman.net.lease import StoreLease
from laraman.net.store import open_store
from tests.certificates import Authority
from tests.conftest import DEADLINE
from tests.secure_stores import PASSWORD, SecureStore
from tests.stores import store_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> Any:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(params=["redis-server", "nats-server"], scope="module")
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureStore]:
    made = SecureStore(request.param, tmp_path_factory.mktemp("store"))
    yield made
    made.server.kill()


async def refusal(url: str) -> str:
    async with connect(url) as channel:
        with pytest.raises(LinkDown) as caught:
            await channel.put("jobs", 1, timeout=1)
    return str(caught.value)


async def test_who_knows_the_authority_and_the_password_gets_in(store: SecureStore) -> None:
    async with asyncio.timeout(DEADLINE), connect(store.url()) as one, connect(store.url()) as other:
        async with other.subscribe("a") as subscription:
            await one.publish("a", "b")
            assert (await anext(subscription)).data == "b"
        id = await one.put("jobs", 1)
        job = await other.get("jobs", timeout=DEADLINE)
        assert (job.id, await job.ack()) == (id, True)
    cluster = open_store(store.url())
    try:
        assert await cluster.take(StoreLease("x", "Timer x", cluster))
    finally:
        await cluster.close()


async def test_who_does_not_is_told_why_and_no_password(store: SecureStore, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    strangers = store.url(authority=Authority(tmp_path).file)
    cases = [(strangers, "CERTIFICATE_VERIFY_FAILED"), (store.url(authority=""), "CERTIFICATE_VERIFY_FAILED")]
    cases.append((store.url(password="wr0ng@word"), "invalid username-password pair" if store.scheme == "rediss" else "Authorization Violation"))
    for url, why in cases:
        begun = len(caplog.records)
        text = await refusal(url)
        assert text.startswith(f"The channel's server {store.place} was away for 1 s: ")
        assert why in text
        assert "\n" not in text
        lines = [record.getMessage() for record in caplog.records[begun:] if record.levelno >= logging.WARNING and record.name != "asyncio"]
        assert [why in line for line in lines] == [True], lines
    for secret in (PASSWORD, quote(PASSWORD, safe=""), "wr0ng", quote("wr0ng@word")):
        assert secret not in caplog.text


async def test_a_server_without_tls_is_not_told_the_password(tmp_path: Path) -> None:
    """NATS says itself whether it wants TLS."""
    plain = store_server("nats-server", tmp_path, "--user", "bob", "--pass", "plain", "-DV")
    try:
        assert "it does not speak TLS" in await refusal(f"tls://bob:plain@127.0.0.1:{plain.port}")
        assert "CONNECT" not in (tmp_path / "output.txt").read_text()
        async with asyncio.timeout(DEADLINE), connect(f"nats://bob:plain@127.0.0.1:{plain.port}") as channel:
            assert await channel.put("jobs", 1)
        assert "CONNECT" in (tmp_path / "output.txt").read_text()
    finally:
        plain.kill()


async def test_a_token_lets_in(tmp_path: Path) -> None:
    guarded = store_server("nats-server", tmp_path, "--auth", "t@ken")
    try:
        async with asyncio.timeout(DEADLINE), connect(f"nats://t%40ken@127.0.0.1:{guarded.port}") as channel:
            assert await channel.put("jobs", 1)
        assert "Authorization Violation" in await refusal(f"nats://t@127.0.0.1:{guarded.port}")
    finally:
        guarded.kill()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis://:secret/s@host", "its port or what follows"),
        ("nats://u:secret/s@host", "its port or what follows"),
        ("redis://u:12/secret@host", "behind the host"),
        ("nats://u:12?secret@host", "its port or what follows"),
        ("nats://u:12#secret@host", "behind the host"),
        ("redis://u:12?prefix=secret@host", r"\?prefix= is not words"),
        ("redis://u:12?secret=1@host", "one is none of prefix, ssl_ca_certs"),
        ("nats://u:secret@one:1,u:secret@other:2", "of one host"),
        ("nats://:4222", "of one host"),
        ("redis://host/first", "behind the host"),
        ("nats://host/1", "behind the host"),
        ("redis://host?protocol=3", "one is none of"),
        ("nats://host?ssl_ca_certs=x", "is for rediss:// and tls://"),
        ("rediss://host?ssl_ca_certs=/nowhere", r"\?ssl_ca_certs= is no file: '/nowhere'"),
        (f"tls://host?ssl_keyfile={__file__}", "needs .ssl_certfile"),
    ],
)
def test_a_url_that_cannot_be_is_refused_at_once_and_not_repeated(url: str, why: str) -> None:
    for use in (connect, open_store):
        with pytest.raises(ConfigError, match=why) as caught:
            use(url)
        assert "secret" not in str(caught.value)
