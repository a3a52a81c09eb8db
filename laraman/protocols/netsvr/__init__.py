"""The netsvr gateway's wire protocol: bytes in, packets out.

A frame is a 4-byte big-endian length, which does not count itself, a 4-byte big-endian command number, and a protobuf body, which may be
empty. A heartbeat is a frame with the configured text and no command number; only the business side sends it, and nobody answers. There is no
correlation id: replies carry the command number of their request and come in the order of the requests.

Three dialects differ in numbers and in one message: D8 is spoken by gateways from 8.0 on, which have a port for events ("worker") and one for
commands ("task"); D5 by 5.0 to 7.x and D3 by 4.x, which have one port for both. `Command` holds D8's numbers whatever dialect is spoken.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import sys
from collections import deque
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, NamedTuple

from google.protobuf.message import DecodeError

from laraman.errors import LocalProtocolError, RemoteProtocolError
from laraman.protocols.framing import LengthPrefixed
from laraman.protocols.netsvr import netsvr_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.message import Message

#: The heartbeat text of the sample configurations on both sides.
DEFAULT_HEARTBEAT = b"~6YOt5rW35piO~"
#: The event mask of RegisterReq.
EVENT_OPEN, EVENT_CLOSE, EVENT_MESSAGE = 1, 2, 4
#: RegisterReq.features and RegisterResp.features: this end knows the fields from 100 on.
EXTENSIONS = 1
#: Largest frame that a gateway takes, in bytes (its ReceivePackLimit). A business process must take more: see ``Netsvr``.
MAX_FRAME = 2 * 1024 * 1024
#: Largest frame that the business side takes: a list of all ids, or a message with session and topics, is larger than a gateway's own limit.
MAX_REPLY = 64 * 1024 * 1024
#: Frames that a gateway reads at once, before others have their turn.
STEP = 32


class Dialect(StrEnum):
    """A generation of gateways; see the module."""

    D8 = "d8"
    D5 = "d5"
    D3 = "d3"


class Command(IntEnum):
    """What a frame is. The numbers are D8's."""

    CONN_OPEN = 900001001
    CONN_CLOSE = 900001002
    TRANSFER = 900001003
    CONN_INFO_UPDATE = 900002001
    CONN_INFO_DELETE = 900002002
    BROADCAST = 900002003
    MULTICAST = 900002004
    MULTICAST_BY_CUSTOMER_ID = 900002005
    SINGLE_CAST = 900002006
    SINGLE_CAST_BULK = 900002007
    SINGLE_CAST_BY_CUSTOMER_ID = 900002008
    SINGLE_CAST_BULK_BY_CUSTOMER_ID = 900002009
    TOPIC_SUBSCRIBE = 900002010
    TOPIC_UNSUBSCRIBE = 900002011
    TOPIC_DELETE = 900002012
    TOPIC_PUBLISH = 900002013
    TOPIC_PUBLISH_BULK = 900002014
    FORCE_OFFLINE = 900002015
    FORCE_OFFLINE_BY_CUSTOMER_ID = 900002016
    FORCE_OFFLINE_GUEST = 900002017
    REGISTER = 900003001
    UNREGISTER = 900003002
    CHECK_ONLINE = 900003003
    CUSTOMER_ID_LIST = 900003004
    CUSTOMER_ID_COUNT = 900003005
    UNIQ_ID_LIST = 900003006
    UNIQ_ID_COUNT = 900003007
    TOPIC_LIST = 900003008
    TOPIC_COUNT = 900003009
    TOPIC_UNIQ_ID_LIST = 900003010
    TOPIC_UNIQ_ID_COUNT = 900003011
    TOPIC_CUSTOMER_ID_LIST = 900003012
    TOPIC_CUSTOMER_ID_TO_UNIQ_IDS_LIST = 900003013
    TOPIC_CUSTOMER_ID_COUNT = 900003014
    CONN_INFO = 900003015
    CONN_INFO_BY_CUSTOMER_ID = 900003016
    METRICS = 900003017
    LIMIT = 900003018


class RegisterCode(IntEnum):
    """RegisterResp.code; ``RegisterResp.message`` is the name in upstream's spelling, see ``REGISTER_TEXTS``."""

    SUCCESS = 0
    UNMARSHAL_ERROR = 1
    INVALID_EVENT = 2
    DUPLICATE_REGISTER = 3


REGISTER_TEXTS = {
    RegisterCode.SUCCESS: "Success",
    RegisterCode.UNMARSHAL_ERROR: "UnmarshalError",
    RegisterCode.INVALID_EVENT: "InvalidEvent",
    RegisterCode.DUPLICATE_REGISTER: "DuplicateRegister",
}


class Packet(NamedTuple):
    """One frame. ``message`` None: to send, no body; received, a body that is not what the command says."""

    command: Command
    message: Message | None = None


# Tables ---------------------------------------------------------------------------------------------------------------------------

EVENTS = frozenset({Command.CONN_OPEN, Command.CONN_CLOSE, Command.TRANSFER})
REGISTRATION = frozenset({Command.REGISTER, Command.UNREGISTER})

_REQUESTS: dict[Command, type[Message] | None] = {
    Command.REGISTER: pb.RegisterReq,
    Command.UNREGISTER: pb.UnRegisterReq,
    Command.CHECK_ONLINE: pb.CheckOnlineReq,
    Command.CUSTOMER_ID_LIST: None,
    Command.CUSTOMER_ID_COUNT: None,
    Command.UNIQ_ID_LIST: None,
    Command.UNIQ_ID_COUNT: None,
    Command.TOPIC_LIST: None,
    Command.TOPIC_COUNT: None,
    Command.TOPIC_UNIQ_ID_LIST: pb.TopicUniqIdListReq,
    Command.TOPIC_UNIQ_ID_COUNT: pb.TopicUniqIdCountReq,
    Command.TOPIC_CUSTOMER_ID_LIST: pb.TopicCustomerIdListReq,
    Command.TOPIC_CUSTOMER_ID_TO_UNIQ_IDS_LIST: pb.TopicCustomerIdToUniqIdsListReq,
    Command.TOPIC_CUSTOMER_ID_COUNT: pb.TopicCustomerIdCountReq,
    Command.CONN_INFO: pb.ConnInfoReq,
    Command.CONN_INFO_BY_CUSTOMER_ID: pb.ConnInfoByCustomerIdReq,
    Command.METRICS: None,
    Command.LIMIT: pb.LimitReq,
}
_RESPONSES: dict[Command, type[Message]] = {
    Command.REGISTER: pb.RegisterResp,
    Command.UNREGISTER: pb.UnRegisterResp,
    Command.CHECK_ONLINE: pb.CheckOnlineResp,
    Command.CUSTOMER_ID_LIST: pb.CustomerIdListResp,
    Command.CUSTOMER_ID_COUNT: pb.CustomerIdCountResp,
    Command.UNIQ_ID_LIST: pb.UniqIdListResp,
    Command.UNIQ_ID_COUNT: pb.UniqIdCountResp,
    Command.TOPIC_LIST: pb.TopicListResp,
    Command.TOPIC_COUNT: pb.TopicCountResp,
    Command.TOPIC_UNIQ_ID_LIST: pb.TopicUniqIdListResp,
    Command.TOPIC_UNIQ_ID_COUNT: pb.TopicUniqIdCountResp,
    Command.TOPIC_CUSTOMER_ID_LIST: pb.TopicCustomerIdListResp,
    Command.TOPIC_CUSTOMER_ID_TO_UNIQ_IDS_LIST: pb.TopicCustomerIdToUniqIdsListResp,
    Command.TOPIC_CUSTOMER_ID_COUNT: pb.TopicCustomerIdCountResp,
    Command.CONN_INFO: pb.ConnInfoResp,
    Command.CONN_INFO_BY_CUSTOMER_ID: pb.ConnInfoByCustomerIdResp,
    Command.METRICS: pb.MetricsResp,
    Command.LIMIT: pb.LimitResp,
}
_ONE_WAY: dict[Command, type[Message]] = {
    Command.CONN_INFO_UPDATE: pb.ConnInfoUpdate,
    Command.CONN_INFO_DELETE: pb.ConnInfoDelete,
    Command.BROADCAST: pb.Broadcast,
    Command.MULTICAST: pb.Multicast,
    Command.MULTICAST_BY_CUSTOMER_ID: pb.MulticastByCustomerId,
    Command.SINGLE_CAST: pb.SingleCast,
    Command.SINGLE_CAST_BULK: pb.SingleCastBulk,
    Command.SINGLE_CAST_BY_CUSTOMER_ID: pb.SingleCastByCustomerId,
    Command.SINGLE_CAST_BULK_BY_CUSTOMER_ID: pb.SingleCastBulkByCustomerId,
    Command.TOPIC_SUBSCRIBE: pb.TopicSubscribe,
    Command.TOPIC_UNSUBSCRIBE: pb.TopicUnsubscribe,
    Command.TOPIC_DELETE: pb.TopicDelete,
    Command.TOPIC_PUBLISH: pb.TopicPublish,
    Command.TOPIC_PUBLISH_BULK: pb.TopicPublishBulk,
    Command.FORCE_OFFLINE: pb.ForceOffline,
    Command.FORCE_OFFLINE_BY_CUSTOMER_ID: pb.ForceOfflineByCustomerId,
    Command.FORCE_OFFLINE_GUEST: pb.ForceOfflineGuest,
}
_EVENTS: dict[Command, type[Message]] = {Command.CONN_OPEN: pb.ConnOpen, Command.CONN_CLOSE: pb.ConnClose, Command.TRANSFER: pb.Transfer}


def request_class(command: Command) -> type[Message] | None:
    """The message of a request or one-way command; None for a request without a body. Raises KeyError for an event."""
    return _ONE_WAY[command] if command in _ONE_WAY else _REQUESTS[command]


def response_class(command: Command) -> type[Message] | None:
    """The message of the reply; None for a command that is not answered."""
    return _RESPONSES.get(command)


def event_class(command: Command, dialect: Dialect = Dialect.D8) -> type[Message]:
    """The message of an event. Raises KeyError for another command."""
    return pb.ConnOpenLegacy if command is Command.CONN_OPEN and dialect is not Dialect.D8 else _EVENTS[command]


def _number(command: Command, dialect: Dialect) -> int | None:
    """What the command is called on the wire; None where the dialect does not have it."""
    missing = Command.TOPIC_CUSTOMER_ID_TO_UNIQ_IDS_LIST
    if dialect is not Dialect.D3 or command < missing:
        return int(command)
    return None if command is missing else command - 1


def _schema(side: str, dialect: Dialect, port: str) -> dict[int, tuple[Command, type[Message] | None]]:
    """What ``side`` may receive at ``port``: command and message class, by the number on the wire."""
    allowed: Mapping[Command, type[Message] | None]
    if side == "business":
        allowed = {**_RESPONSES, **{command: event_class(command, dialect) for command in EVENTS}}
    else:
        commands = {**_ONE_WAY, **_REQUESTS}
        allowed = {command: found for command, found in commands.items() if port == "both" or _is_allowed(command, port)}
    numbered = {_number(command, dialect): (command, found) for command, found in allowed.items()}
    return {number: entry for number, entry in numbered.items() if number is not None}


def _is_allowed(command: Command, port: str) -> bool:
    # Register is laraman's hello on the task port; a gateway that has no use for it says so by what it answers.
    return command in REGISTRATION if port == "worker" else command is not Command.UNREGISTER


_SCHEMAS = {
    (side, dialect, port): _schema(side, dialect, port)
    for side, dialect, port in itertools.product(("business", "gateway"), Dialect, ("worker", "task", "both"))
}
_HEADS = {
    dialect: {command: number.to_bytes(4, "big") for command in Command if (number := _number(command, dialect)) is not None} for dialect in Dialect
}

# Codec ----------------------------------------------------------------------------------------------------------------------------


class Netsvr:
    """The protocol of one connection, seen from ``side``: "business" or "gateway".

    ``port`` is "worker", "task" or "both" (one port for everything, as in D5 and D3) and says what a gateway may receive. ``heartbeat`` is the
    text of that port; a frame may have ``max_size`` bytes. ``dialect`` may be set later, when it was found out by asking.

    A frame that is too short or too long, and a command that is unknown or belongs to another port, end the connection: RemoteProtocolError.
    A body that cannot be decoded does not: its Packet has no message. A gateway reads at most STEP frames at once: one of eight bytes may be
    a lot of work, and a read brings thousands.
    """

    __slots__ = ("_dialect", "_fault", "_frames", "_heads", "_heartbeat", "_port", "_schema", "_side", "_step", "_waiting")

    @property
    def more(self) -> bool:
        """More frames, or a fault, stand behind the packets that were returned: ``receive_data(b"")`` goes on."""
        return self._fault is not None or bool(self._waiting)

    def __init__(
        self, side: str, *, dialect: Dialect = Dialect.D8, port: str = "both", heartbeat: bytes = DEFAULT_HEARTBEAT, max_size: int | None = None
    ) -> None:
        self._side = side
        self._port = port
        self._heartbeat = heartbeat
        self._frames = LengthPrefixed(4, max_size=max_size or (MAX_REPLY if side == "business" else MAX_FRAME))
        self._fault: RemoteProtocolError | None = None
        self._waiting: deque[bytes] = deque()
        self._step = sys.maxsize if side == "business" else STEP
        self.dialect = dialect

    @property
    def dialect(self) -> Dialect:
        return self._dialect

    @dialect.setter
    def dialect(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._schema = _SCHEMAS[self._side, dialect, self._port]
        self._heads = _HEADS[dialect]

    def receive_data(self, data: bytes) -> list[Packet]:
        """The packets that are now complete, without heartbeats; see ``more``. Raises RemoteProtocolError; packets before the fault come first."""
        waiting = self._waiting
        if self._fault is None:
            try:
                waiting.extend(self._frames.receive_data(data))
            except RemoteProtocolError as exc:
                self._fault = exc
        packets: list[Packet] = []
        schema = self._schema
        for _ in range(min(len(waiting), self._step)):
            frame = waiting.popleft()
            entry = schema.get(int.from_bytes(frame[:4], "big")) if len(frame) >= 4 else None
            if entry is None or frame == self._heartbeat:
                if frame == self._heartbeat:
                    continue
                self._fault = self._unknown(frame)
                waiting.clear()
                break
            command, kind = entry
            message = None
            if kind is not None:
                with contextlib.suppress(DecodeError):
                    message = kind.FromString(frame[4:])
            packets.append(Packet(command, message))
        if self._fault is not None and not packets and not waiting:
            raise self._fault
        return packets

    def _unknown(self, frame: bytes) -> RemoteProtocolError:
        if len(frame) < 4:
            return RemoteProtocolError(f"a frame of {len(frame)} bytes is too short for a command")
        number = int.from_bytes(frame[:4], "big")
        return RemoteProtocolError(f"command {number} is not one that a {self._side} takes here ({self._dialect}, port {self._port})")

    def receive_eof(self) -> None:
        self._frames.receive_eof()

    def send(self, message: Packet | bytes) -> bytes:
        """The frame of a packet, or of a heartbeat text. Raises LocalProtocolError for a command that the dialect does not have."""
        if isinstance(message, bytes):
            return len(message).to_bytes(4, "big") + message
        command, content = message
        head = self._heads.get(command)
        if head is None:
            raise LocalProtocolError(f"gateways of dialect {self._dialect} have no command {command.name}")
        body = b"" if content is None else content.SerializeToString()
        return (len(body) + 4).to_bytes(4, "big") + head + body

    def data_to_send(self) -> bytes:
        return b""


# Identifiers ----------------------------------------------------------------------------------------------------------------------


def addr_to_prefix(address: str) -> str:
    """The first 12 characters of a gateway's uniqIds: ``7f00000117ae`` for ``127.0.0.1:6062``.

    Raises ValueError unless the address is an IPv4 address and a port.
    """
    host, _, port = address.rpartition(":")
    number = int(port)
    if not 0 <= number <= 65535:
        raise ValueError(f"{address!r} has no port")
    return f"{int(ipaddress.IPv4Address(host)):08x}{number:04x}"


def uniq_id_prefix(uniq_id: str) -> str:
    """The gateway's part of a uniqId."""
    return uniq_id[:12]
