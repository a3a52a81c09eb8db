"""One gateway as the configuration names it, and what has to be found out about it: its dialect, its extensions, its clients' prefix."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING

from laraman.errors import ConfigError, RemoteProtocolError
from laraman.gateway.identity import ANY, prefix_of
from laraman.net.address import parse_address
from laraman.net.connection import Connection
from laraman.net.dial import dial, resolve
from laraman.protocols.netsvr import EXTENSIONS, Command, Dialect, Netsvr, Packet, addr_to_prefix
from laraman.protocols.netsvr import netsvr_pb2 as pb

if TYPE_CHECKING:
    from laraman.config.gateway import GatewayConfig
    from laraman.net.link import Link


class Peer:
    """One gateway. ``worker_addr`` is where events come from ("" when none are wanted), ``task_addr`` where commands go and what results call it.

    Raises ConfigError when the addresses cannot be what the dialect needs.
    """

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
        single = config.dialect in ("d5", "d3") or (config.dialect == "auto" and config.task_addr in ("", config.worker_addr))
        if not single and not config.task_addr:
            raise ConfigError(f"gateway {config.worker_addr}: one of dialect d8 has a port for commands, and task_addr is not set")
        self.worker_addr = config.worker_addr
        self.task_addr = config.worker_addr or config.task_addr if single else config.task_addr
        self.worker_heartbeat = config.worker_heartbeat_message.encode()
        self.task_heartbeat = self.worker_heartbeat if single else config.task_heartbeat_message.encode()
        self._single = single
        self._ours = config.embedded or bool(config.secret)  # which only laraman's gateways have
        #: To the same gateway: when one comes up, the others need not wait for long.
        self.links: list[Link] = []
        #: It has answered, and not as laraman's gateways do. It is not asked again, because netsvr logs the question as an error.
        self.foreign = False
        host, _, port = self.task_addr.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        #: The first 12 characters of its uniqIds: several where its name has several addresses, none before it was looked up.
        self.prefixes: frozenset[str] = frozenset({config.prefix} if config.prefix else ())
        if not config.prefix and self._host != ANY:
            with contextlib.suppress(ValueError):
                self.prefixes = frozenset({addr_to_prefix(self.task_addr)})

    def is_back(self, link: Link) -> None:
        """One of ``links`` is up."""
        for other in self.links:
            other.retry()

    async def find_prefixes(self) -> None:
        """Look its address up, unless that is known. Raises OSError, ConfigError when it has no IPv4 address: those are what uniqIds are made of."""
        if self.prefixes:
            return
        if self._host == ANY:  # the embedded one, and it says in its uniqIds what others call this machine
            self.prefixes = frozenset({prefix_of(parse_address(self.task_addr))})
            return
        async with asyncio.timeout(self.config.connect_timeout):
            hosts = await resolve(self._host, self._port)
        self.prefixes = frozenset(addr_to_prefix(f"{host}:{self._port}") for host in hosts if ":" not in host)
        if not self.prefixes:
            raise ConfigError(f"gateway {self.task_addr} has no IPv4 address: set prefix to the first 12 characters of its uniqIds")

    async def find_dialect(self) -> Dialect:
        """Asked for on connections of their own, because a gateway closes one on which it hears a command that it does not know."""
        if self.config.dialect != "auto":
            return Dialect(self.config.dialect)
        if not self._single:
            return Dialect.D8
        if self._ours:
            return Dialect.D5
        for dialect in (Dialect.D5, Dialect.D3):
            if await self._answers(Packet(Command.LIMIT), dialect):
                return dialect
        raise ConfigError(f"{self.task_addr} is the worker port of a gateway of version 8: task_addr, its port for commands, is not set")

    async def speaks_extensions(self) -> bool:
        """Whether Register is understood at the port for commands, as the hello between two ends of laraman's."""
        if self._single or self._ours:
            return self._ours
        return not self.foreign and await self._answers(hello(self.config, 0, Dialect.D8), Dialect.D8)

    async def _answers(self, question: Packet, dialect: Dialect) -> bool:
        """Whether there is an answer of the right kind, rather than the end of the connection. Waits for as long as the caller lets it."""
        asker = _Asker(question)
        make = partial(Connection, Netsvr("business", dialect=dialect), asker, None, "out")
        connection = await dial(parse_address(self.task_addr), make, self.config.connect_timeout)
        try:
            packet = await asker.answer
            return packet is not None and packet.command is question.command
        finally:
            connection.abort()


class _Asker:
    """The handler of a connection for one question."""

    def __init__(self, question: Packet) -> None:
        self._question = question
        self.answer: asyncio.Future[Packet | None] = asyncio.get_running_loop().create_future()

    def on_connect(self, connection: Connection) -> None:
        connection.send_nowait(self._question)

    def on_message(self, connection: Connection, packet: Packet) -> None:
        self._finish(packet)

    def on_close(self, connection: Connection) -> None:
        self._finish(None)

    def _finish(self, packet: Packet | None) -> None:
        if not self.answer.done():
            self.answer.set_result(packet)


# Register -------------------------------------------------------------------------------------------------------------------------


def hello(config: GatewayConfig, events: int, dialect: Dialect) -> Packet:
    """The Register that introduces this end; without events, to be recognised at the port for commands."""
    own = dialect is Dialect.D8
    return Packet(
        Command.REGISTER,
        pb.RegisterReq(
            events=events,
            process_cmd_goroutine_num=0 if own else config.process_cmd_goroutine_num,
            features=EXTENSIONS if own or not events else 0,
            secret=config.secret,
        ),
    )


def registered(packet: Packet) -> pb.RegisterResp:
    """The answer to Register. Raises RemoteProtocolError when it is none, or a refusal."""
    answer = packet.message
    if packet.command is not Command.REGISTER or not isinstance(answer, pb.RegisterResp):
        raise RemoteProtocolError(f"the gateway answers Register with {packet.command.name}")
    if answer.code:
        raise RemoteProtocolError(f"the gateway refuses to register this process (code {answer.code} {answer.message}): events, secret or port?")
    return answer
