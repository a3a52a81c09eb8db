"""To which gateways a call goes, and how their answers come back together.

A uniqId begins with the address of the gateway that made it; what concerns one client goes there, everything else to all of them at once. Each
gateway has its own deadline, and one that fails takes nothing from the others: its error is part of the result.
"""

from __future__ import annotations

import asyncio
import logging
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar

from laraman.errors import ConfigError, LaramanError, UnknownGateway
from laraman.gateway.peer import Peer
from laraman.gateway.results import Answer, Sent
from laraman.gateway.sockets import TaskSocket
from laraman.protocols.netsvr import Command, Packet, request_class, uniq_id_prefix

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from google.protobuf.message import Message

    from laraman.config.gateway import GatewayConfig

logger = logging.getLogger("uvicorn.error")

T = TypeVar("T")
A = TypeVar("A", bound=Answer[Any])
Errors = dict[str, Exception]

#: uniqIds in one command: so many fit into the frame that a gateway takes, with data.
MOST_IDS = 10_000
#: What a command returns that reached every gateway it was for.
SENT = Sent({})


class Gateway:
    """The connections to one gateway that commands go over."""

    def __init__(self, peer: Peer, spawn: Callable[[Callable[[], Awaitable[None]]], None]) -> None:
        self.peer = peer
        self.addr = peer.task_addr
        self.sockets = [TaskSocket(peer, spawn, number) for number in range(peer.config.task_connections)]
        self.first = self.sockets[0]

    def socket(self, uniq_id: str) -> TaskSocket:
        """Always the same for one client, so that its commands keep their order."""
        return self.first if len(self.sockets) == 1 else self.sockets[hash(uniq_id) % len(self.sockets)]

    def among(self, uniq_ids: list[str], places: list[int]) -> TaskSocket:
        """For what concerns the clients at these places of the list."""
        return self.socket(uniq_ids[places[0]]) if len(places) == 1 else self.first


class Fanout:
    """The gateways of a configuration, and how to reach them."""

    def __init__(self, config: GatewayConfig | None = None) -> None:
        self.config = config
        self._gateways: list[Gateway] = []
        #: Who has the uniqIds with this prefix.
        self._routes: dict[str, Gateway] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    # Life ------------------------------------------------------------------------------------------------------------------------

    def _begin(self, config: GatewayConfig, spawn: Callable[[Callable[[], Awaitable[None]]], None]) -> None:
        """``spawn`` runs what lasts. Commands may come at any time and from anywhere, so what they start begins in the context of this moment."""
        context = copy_context()
        self.config = config
        self._gateways = [Gateway(Peer(entry), lambda run: context.run(spawn, run)) for entry in config.gateways or (config,)]
        self._route()

    def _route(self) -> None:
        self._routes = {prefix: gateway for gateway in self._gateways for prefix in gateway.peer.prefixes}

    def _spawn(self, run: Callable[[], Awaitable[None]]) -> None:
        """Where there is no worker to do it."""
        task = asyncio.ensure_future(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self) -> None:
        """Send what is queued, and close."""
        await asyncio.sleep(0)  # a link is closed when it has begun
        await asyncio.gather(*(socket.link.close() for gateway in self._gateways for socket in gateway.sockets))
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _look_up(self) -> None:
        """Find the addresses of gateways that are configured by name. What fails is tried again when an id is found to be nobody's."""
        missing = [gateway.peer for gateway in self._gateways if not gateway.peer.prefixes]
        for peer, found in zip(missing, await asyncio.gather(*(peer.find_prefixes() for peer in missing), return_exceptions=True), strict=True):
            if isinstance(found, BaseException):
                logger.warning("Gateway %s: %s", peer.task_addr, found or type(found).__name__)
        self._route()

    # One gateway -----------------------------------------------------------------------------------------------------------------

    async def _find(self, uniq_id: str) -> Gateway:
        """The gateway that has this client, when a look at ``_routes`` has not found it. Raises UnknownGateway."""
        self._configured()
        prefix = uniq_id_prefix(uniq_id)
        if any(not gateway.peer.prefixes for gateway in self._gateways):
            await self._look_up()
        gateway = self._routes.get(prefix)
        if gateway is None:
            known = ", ".join(sorted(self._routes))
            raise UnknownGateway(f"uniqId {uniq_id[:64]!r}: no gateway in [tool.laraman.gateway] has the prefix {prefix!r}, only {known}")
        return gateway

    def _configured(self) -> list[Gateway]:
        if not self._gateways:
            raise ConfigError("there is no gateway here: [tool.laraman.gateway] names none, or this NetBus has not been started")
        return self._gateways

    async def _send_to(self, uniq_id: str, command: Command, message: Message) -> Sent:
        gateway = self._routes.get(uniq_id[:12]) or await self._find(uniq_id)
        await gateway.socket(uniq_id).send(Packet(command, message))
        return SENT

    async def _grouped(self, uniq_ids: Iterable[str]) -> tuple[dict[Gateway, list[int]], Errors]:
        """The places in the list, by gateway; what goes to none is an error under its prefix. Raises UnknownGateway when none goes anywhere."""
        groups: dict[Gateway, list[int]] = {}
        errors: Errors = {}
        for place, uniq_id in enumerate(uniq_ids):
            gateway = self._routes.get(uniq_id[:12])
            if gateway is None:
                prefix = uniq_id_prefix(uniq_id)
                if prefix in errors:
                    continue
                try:
                    gateway = await self._find(uniq_id)
                except UnknownGateway as exc:
                    errors[prefix] = exc
                    continue
            groups.setdefault(gateway, []).append(place)
        if errors and not groups:
            raise next(iter(errors.values()))
        return groups, errors

    # Several gateways ------------------------------------------------------------------------------------------------------------

    async def _send_all(self, command: Command, message: Message) -> Sent:
        packet = Packet(command, message)
        return await self._sent({gateway: gateway.first.send(packet) for gateway in self._configured()})

    async def _send_grouped(self, uniq_ids: list[str], command: Command, make: Callable[[list[int]], Message]) -> Sent:
        """``make`` makes the command for the ids at these places."""
        if not uniq_ids:
            return SENT
        groups, errors = await self._grouped(uniq_ids)
        packets = {gateway: [Packet(command, make(part)) for part in _parts(places)] for gateway, places in groups.items()}
        jobs = {gateway: _send_parts(gateway.among(uniq_ids, groups[gateway]), parts) for gateway, parts in packets.items()}
        return await self._sent(jobs, errors)

    async def _sent(self, jobs: Mapping[Gateway, Awaitable[Any]], errors: Errors | None = None) -> Sent:
        _, failed = await self._together(jobs, errors)
        return Sent(failed) if failed else SENT

    async def _ask_all(self, kind: type[A], command: Command, **fields: Any) -> A:
        made = request_class(command)
        packet = Packet(command, None if made is None else made(**fields))
        return kind(*await self._together({gateway: gateway.first.ask(packet) for gateway in self._configured()}))

    async def _ask_grouped(self, kind: type[A], uniq_ids: list[str], command: Command, **fields: Any) -> A:
        if not uniq_ids:
            return kind({}, {})
        groups, errors = await self._grouped(uniq_ids)
        made = request_class(command)
        assert made is not None
        packets = {
            gateway: [Packet(command, made(uniq_ids=[uniq_ids[place] for place in part], **fields)) for part in _parts(places)]
            for gateway, places in groups.items()
        }
        jobs = {gateway: _ask_parts(gateway.among(uniq_ids, groups[gateway]), parts) for gateway, parts in packets.items()}
        return kind(*await self._together(jobs, errors))

    async def _together(self, jobs: Mapping[Gateway, Awaitable[T]], errors: Errors | None = None) -> tuple[dict[str, T], Errors]:
        """All at once; what each returned and what each raised, by task address. Raises the first error when all of them failed."""
        done: dict[str, T] = {}
        failed: Errors = dict(errors or {})
        if len(jobs) == 1:
            [(gateway, job)] = jobs.items()
            return {gateway.addr: await job}, failed
        outcomes = await asyncio.gather(*jobs.values(), return_exceptions=True)
        for gateway, outcome in zip(jobs, outcomes, strict=True):
            if isinstance(outcome, (LaramanError, OSError)):
                failed[gateway.addr] = outcome
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                done[gateway.addr] = outcome
        if not done and failed:
            raise next(iter(failed.values()))
        return done, failed


def _parts(places: list[int]) -> list[list[int]]:
    return [places[begin : begin + MOST_IDS] for begin in range(0, len(places), MOST_IDS)]


async def _send_parts(socket: TaskSocket, packets: list[Packet]) -> None:
    for packet in packets:
        await socket.send(packet)


async def _ask_parts(socket: TaskSocket, packets: list[Packet]) -> Any:
    """The answers as one: the messages of a list's parts, put behind each other, are that of the list."""
    answer = await socket.ask(packets[0])
    for packet in packets[1:]:
        answer.MergeFrom(await socket.ask(packet))
    return answer
