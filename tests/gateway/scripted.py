"""A peer that speaks a gateway's protocol on real sockets and does what a test says: for faults that a real gateway does not have."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from laraman.protocols.netsvr import Command, Dialect, Netsvr, Packet
from laraman.protocols.netsvr import netsvr_pb2 as pb
from tests.net.serving import serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from laraman.net.connection import Connection

#: What is done with a request: a message is the answer, a callable gets the connection and the request, None is silence.
Script = "Mapping[Command, Any]"


class Scripted:
    """Keeps what it receives; answers what is in ``script``."""

    def __init__(self, script: Mapping[Command, Any]) -> None:
        self.script = dict(script)
        self.packets: list[Packet] = []
        self.connections: list[Connection] = []
        self.port = 0

    @property
    def addr(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def live(self) -> Connection:
        """The connection that has not ended."""
        [connection] = [connection for connection in self.connections if connection.error is None]
        return connection

    @property
    def commands(self) -> list[Command]:
        return [packet.command for packet in self.packets]

    def of(self, command: Command) -> list[Any]:
        """The messages that came with this command."""
        return [packet.message for packet in self.packets if packet.command is command]

    def on_connect(self, connection: Connection) -> None:
        self.connections.append(connection)

    def on_message(self, connection: Connection, packet: Packet) -> Any:
        self.packets.append(packet)
        answer = self.script.get(packet.command)
        if callable(answer):
            return answer(connection, packet)
        if answer is not None:
            connection.send_nowait(Packet(packet.command, answer))
        return None


def registers(conn_id: str = "1", features: int = 1) -> pb.RegisterResp:
    return pb.RegisterResp(conn_id=conn_id, message="Success", features=features)


def hang_up(connection: Connection, packet: Packet) -> None:
    connection.abort()


@contextlib.asynccontextmanager
async def scripted(
    script: Mapping[Command, Any], *, port: int = 0, kind: str = "both", dialect: Dialect = Dialect.D8, protocol: Callable[[], Any] | None = None
) -> AsyncIterator[Scripted]:
    """Listen for as long as the block lasts. ``kind`` is which port of a gateway it is: "worker", "task" or "both"."""
    peer = Scripted(script)
    async with serving(peer, protocol or (lambda: Netsvr("gateway", dialect=dialect, port=kind)), port) as served:
        peer.port = served.port
        yield peer
