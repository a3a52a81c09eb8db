"""The embedded gateway as both of its sides see it, over real sockets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from laraman.protocols.netsvr import Command
from laraman.protocols.netsvr import netsvr_pb2 as pb
from tests.gateway.gateway import gateway_running, until

pytestmark = pytest.mark.anyio


async def test_a_browser_s_life_reaches_the_worker_and_commands_reach_the_browser() -> None:
    async with gateway_running() as gateway:
        worker, task = await gateway.worker_peer(), await gateway.task_peer()
        answer = await worker.register()
        assert (answer.code, answer.message, len(answer.conn_id), answer.features) == (0, "Success", 32, 0)
        async with gateway.browser("/?token=a%20b") as browser:
            opened = await worker.event(Command.CONN_OPEN)
            assert opened.uniq_id.startswith(gateway.prefix) and len(opened.uniq_id) == 28
            assert (opened.raw_query, opened.remote_addr) == ("token=a%20b", "127.0.0.1")
            await browser.send("hello")
            message = await worker.event(Command.TRANSFER)
            assert (message.uniq_id, message.data) == (opened.uniq_id, b"hello")
            task.send(Command.SINGLE_CAST, pb.SingleCast(uniq_id=opened.uniq_id, data=b"back"))
            assert await browser.recv() == "back"
            task.send(Command.TOPIC_SUBSCRIBE, pb.TopicSubscribe(uniq_id=opened.uniq_id, topics=["news"]))
            assert (await task.ask(Command.UNIQ_ID_COUNT)).count == 1
        closed = await worker.event(Command.CONN_CLOSE)
        assert (closed.uniq_id, list(closed.topics)) == (opened.uniq_id, ["news"])
        assert (await task.ask(Command.UNIQ_ID_COUNT)).count == 0
