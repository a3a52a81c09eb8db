"""What is found out about a gateway before it is talked to."""

from __future__ import annotations

import anyio
import pytest

from laraman.config import GatewayConfig
from laraman.errors import LinkDown
from laraman.gateway import NetBus
from laraman.gateway.peer import Peer
from laraman.protocols.netsvr import Command, Dialect
from laraman.protocols.netsvr import netsvr_pb2 as pb
from tests.gateway.gateway import gateway_running
from tests.gateway.scripted import hang_up, registers, scripted

COUNT = pb.UniqIdCountResp(count=3)


def test_one_address_for_both_ports_is_an_older_gateway() -> None:
    async def main() -> None:
        script = {Command.UNIQ_ID_COUNT: COUNT, Command.LIMIT: pb.LimitResp()}
        async with scripted(script, dialect=Dialect.D5) as old, NetBus(GatewayConfig(worker_addr=old.addr, task_addr=old.addr)) as bus:
            assert (await bus.uniq_id_count()).count == 3
            assert Command.REGISTER not in old.commands

    anyio.run(main)


def test_a_foreign_gateway_is_asked_once_and_not_told_the_secret() -> None:
    async def main() -> None:
        async with scripted({Command.REGISTER: hang_up, Command.UNIQ_ID_COUNT: COUNT}, kind="task") as foreign:
            async with NetBus(GatewayConfig(task_addr=foreign.addr)) as bus:
                assert (await bus.uniq_id_count()).count == 3
                foreign.connections[-1].abort()
                assert (await bus.uniq_id_count()).count == 3
            [asked] = foreign.of(Command.REGISTER)
            assert (asked.features, asked.secret) == (1, "")


def test_what_only_hangs_up_may_still_be_laraman_s() -> None:
    """A proxy in front of a gateway that is away accepts, and closes."""

    async def main() -> None:
        async with scripted({Command.REGISTER: hang_up, Command.UNIQ_ID_COUNT: hang_up}, kind="task") as proxy:
            peer = Peer(GatewayConfig(task_addr=proxy.addr))
            assert not await peer.speaks_extensions()
            proxy.script[Command.REGISTER] = registers()
            assert await peer.speaks_extensions()

    anyio.run(main)


def test_a_gateway_with_a_secret_is_laraman_s() -> None:
    async def main() -> None:
        script = {Command.REGISTER: registers(), Command.UNIQ_ID_COUNT: COUNT}
        async with scripted(script, kind="task") as ours:
            async with NetBus(GatewayConfig(task_addr=ours.addr, secret="s3")) as bus:
                assert (await bus.uniq_id_count()).count == 3
            assert [hello.secret for hello in ours.of(Command.REGISTER)] == ["s3"]

    anyio.run(main)


def test_a_gateway_that_hangs_is_down() -> None:
    async def main() -> None:
        async with scripted({}, kind="task") as silent:  # takes connections and says nothing, as one does that was stopped
            config = GatewayConfig(task_addr=silent.addr, dialect="d5", connect_timeout=0.1, send_receive_timeout=0.2)
            async with NetBus(config) as bus:
                with pytest.raises(LinkDown):
                    await bus.uniq_id_count()
                began = anyio.current_time()
                with pytest.raises(LinkDown):
                    await bus.broadcast("x")
                assert anyio.current_time() - began < 0.19

    anyio.run(main)


@pytest.mark.parametrize("same", [False, True])
def test_laraman_s_own_single_port_with_a_secret(same: bool) -> None:
    async def main() -> None:
        async with gateway_running(task_addr="", secret="s3") as running:
            address = running.addresses[1]
            async with NetBus(GatewayConfig(worker_addr=address, task_addr=address if same else "", secret="s3")) as bus:
                assert (await bus.uniq_id_count()).count == 0

    anyio.run(main)
