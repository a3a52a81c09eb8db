"""The netsvr codec against frames recorded from real gateways (netsvr_vectors.json), and against itself in every split."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given
from hypothesis import strategies as st

from laraman.errors import LocalProtocolError, RemoteProtocolError
from laraman.protocols.netsvr import (
    DEFAULT_HEARTBEAT,
    MAX_FRAME,
    STEP,
    Command,
    Dialect,
    Netsvr,
    Packet,
    addr_to_prefix,
    request_class,
    response_class,
    uniq_id_prefix,
)
from laraman.protocols.netsvr import netsvr_pb2 as pb

ROOT = Path(__file__).parents[2]
VECTORS = [vector for vector in json.loads(Path(__file__).with_name("netsvr_vectors.json").read_text()) if vector["channel"] in ("worker", "task")]
DIALECTS = {"8.0.6": Dialect.D8, "7.0.3": Dialect.D5, "4.0.3": Dialect.D3}
COMMANDS = [vector for vector in VECTORS if vector["cmd"] is not None and "effect" not in vector["decoded"]]
#: The last is a matter of the gateway, not of the codec: Register can be laraman's hello there.
CLOSING = [vector for vector in VECTORS if "effect" in vector["decoded"] and vector["name"] != "task.close_on.Register_on_task_port"]


def name(vector: dict[str, Any]) -> str:
    return f"{vector['gateway']}-{vector['name']}"


def receiver(vector: dict[str, Any]) -> Netsvr:
    """The codec of the end that this frame went to."""
    dialect = DIALECTS[vector["gateway"]]
    if vector["direction"].endswith("->business"):
        return Netsvr("business", dialect=dialect)
    return Netsvr("gateway", dialect=dialect, port=vector["channel"] if dialect is Dialect.D8 else "both")


def plain(value: Any) -> Any:
    """What the recording says, in the words of MessageToDict: bytes in base64, 64-bit numbers as text, floats rounded."""
    if isinstance(value, dict):
        if "$bytes_hex" in value:
            return bytes.fromhex(value["$bytes_hex"]).hex()
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def fields_of(message: Any) -> dict[str, Any]:
    """Every field that was on the wire, under its upstream name; nested messages and maps as dicts."""
    found = {}
    for field, value in message.ListFields():
        key = field.json_name
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            found[key] = {str(entry): fields_of(item) if hasattr(item, "ListFields") else item for entry, item in value.items()}
        elif field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED:
            found[key] = [fields_of(item) if hasattr(item, "ListFields") else item.hex() if isinstance(item, bytes) else item for item in value]
        else:
            found[key] = value.hex() if isinstance(value, bytes) else value
    return found


def same(left: Any, right: Any) -> bool:
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, float) or isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-6)
    return bool(left == right)


def has_map(message: Any) -> bool:
    return any(field.message_type is not None and field.message_type.GetOptions().map_entry for field in message.DESCRIPTOR.fields)


@pytest.mark.parametrize("vector", COMMANDS, ids=name)
def test_a_recorded_frame_is_read_and_written_again(vector: dict[str, Any]) -> None:
    frame = bytes.fromhex(vector["hex"])
    codec = receiver(vector)
    [packet] = codec.receive_data(frame)
    number = vector["cmd"] + (codec.dialect is Dialect.D3 and vector["cmd"] >= 900003013)
    assert packet.command == number
    if "note" in vector["decoded"]:
        assert packet.message is None  # it is malformed
        return
    fields = plain(vector["decoded"]["fields"])
    assert same({} if packet.message is None else fields_of(packet.message), fields)
    again = codec.send(packet)
    assert len(again) == len(frame)
    if packet.message is None or not has_map(packet.message):
        assert again == frame
    assert receiver(vector).receive_data(again) == [packet]


def test_vectors_are_there() -> None:
    assert len(COMMANDS) > 150
    assert {vector["cmd"] for vector in COMMANDS if vector["gateway"] == "8.0.6"} >= {int(command) for command in Command}


@pytest.mark.parametrize("vector", CLOSING, ids=name)
def test_a_frame_that_closes_a_real_gateway_s_connection_closes_ours(vector: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        receiver(vector).receive_data(bytes.fromhex(vector["hex"]))


def test_heartbeats_are_swallowed_and_written() -> None:
    codec = Netsvr("gateway")
    frame = codec.send(DEFAULT_HEARTBEAT)
    assert frame.hex() == "0000000e7e36594f74357257333570694f7e"
    assert codec.receive_data(frame * 3) == []
    assert Netsvr("gateway", heartbeat=b"ping").receive_data(b"\0\0\0\x04ping") == []


SAMPLES = st.lists(
    st.one_of(
        st.builds(lambda to, data: Packet(Command.SINGLE_CAST, pb.SingleCast(uniq_id=to, data=data)), st.text(max_size=9), st.binary(max_size=300)),
        st.builds(lambda ids: Packet(Command.CHECK_ONLINE, pb.CheckOnlineReq(uniq_ids=ids)), st.lists(st.text(max_size=5), max_size=4)),
        st.just(Packet(Command.UNIQ_ID_COUNT)),
        st.just(DEFAULT_HEARTBEAT),
    ),
    max_size=6,
)


@given(SAMPLES, st.lists(st.integers(0, 2000)), st.sampled_from(Dialect))
def test_any_split_of_any_frames_reads_the_same(sent: list[Any], cuts: list[int], dialect: Dialect) -> None:
    wire = b"".join(Netsvr("business", dialect=dialect).send(message) for message in sent)
    places = sorted({min(cut, len(wire)) for cut in cuts} | {0, len(wire)})
    expected = [message for message in sent if isinstance(message, Packet)]
    split = [wire[start:end] for start, end in itertools.pairwise(places)]
    for pieces in (split, [wire[place : place + 1] for place in range(len(wire))]):
        codec = Netsvr("gateway", dialect=dialect)
        assert [packet for piece in pieces for packet in codec.receive_data(piece)] == expected
        codec.receive_eof()


@given(st.binary(max_size=200), st.sampled_from(Dialect), st.sampled_from(["worker", "task", "both"]))
def test_garbage_raises_remote_errors_only(data: bytes, dialect: Dialect, port: str) -> None:
    codec = Netsvr("gateway", dialect=dialect, port=port)
    try:
        codec.receive_data(data)
        codec.receive_data(b"")
    except RemoteProtocolError:
        pass


def test_packets_before_a_fault_come_first() -> None:
    codec = Netsvr("gateway")
    good = codec.send(Packet(Command.UNIQ_ID_COUNT))
    assert codec.receive_data(good + b"\0\0\0\x04\0\0\0\1") == [Packet(Command.UNIQ_ID_COUNT)]
    assert codec.more
    with pytest.raises(RemoteProtocolError, match="command 1 "):
        codec.receive_data(b"")


def test_the_limit_holds_before_the_body_is_there_and_is_inclusive() -> None:
    with pytest.raises(RemoteProtocolError):
        Netsvr("gateway").receive_data((MAX_FRAME + 1).to_bytes(4, "big"))
    message = pb.SingleCast(uniq_id="a", data=bytes(MAX_FRAME - 4 - 3 - 4))  # a field of three bytes, and a tag and a length of three
    frame = Netsvr("business").send(Packet(Command.SINGLE_CAST, message))
    assert int.from_bytes(frame[:4], "big") == MAX_FRAME
    assert len(Netsvr("gateway").receive_data(frame)) == 1


def test_text_that_is_not_utf8_is_no_message() -> None:
    frame = bytes.fromhex("0000000735a4f0d6") + b"\x0a\x01\xff"
    assert Netsvr("gateway").receive_data(frame) == [Packet(Command.SINGLE_CAST, None)]


def test_the_third_dialect_lacks_a_command_and_shifts_those_behind_it() -> None:
    codec = Netsvr("business", dialect=Dialect.D3)
    with pytest.raises(LocalProtocolError):
        codec.send(Packet(Command.TOPIC_CUSTOMER_ID_TO_UNIQ_IDS_LIST))
    assert int.from_bytes(codec.send(Packet(Command.LIMIT))[4:8], "big") == 900003017
    codec.dialect = Dialect.D5
    assert int.from_bytes(codec.send(Packet(Command.LIMIT))[4:8], "big") == 900003018


def test_an_older_gateway_s_open_event_has_other_field_numbers() -> None:
    sent = pb.ConnOpenLegacy(uniq_id="u", raw_query="a=1", sub_protocols=["chat"], x_forwarded_for="f", x_real_ip="r", remote_addr="127.0.0.1")
    frame = Netsvr("gateway", dialect=Dialect.D5).send(Packet(Command.CONN_OPEN, sent))
    assert Netsvr("business", dialect=Dialect.D5).receive_data(frame) == [Packet(Command.CONN_OPEN, sent)]


def test_every_command_has_its_messages() -> None:
    for command in Command:
        if command < Command.CONN_INFO_UPDATE:
            continue
        assert command > 900003000 or request_class(command) is not None
        assert (response_class(command) is not None) == (command > 900003000)


def test_prefixes_of_uniq_ids() -> None:
    assert addr_to_prefix("127.0.0.1:6062") == uniq_id_prefix("7f00000117ae6b00f31086de24c2") == "7f00000117ae"
    for wrong in ("localhost:6062", "[::1]:6062", "127.0.0.1", "127.0.0.1:70000"):
        with pytest.raises(ValueError):  # noqa: PT011 (whatever the standard library says of it)
            addr_to_prefix(wrong)


def test_the_module_was_generated_from_the_proto_file() -> None:
    spec = importlib.util.spec_from_file_location("proto", ROOT / "scripts" / "proto.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert pb.DESCRIPTOR.serialized_pb == generator.compiled(), "run python scripts/proto.py"


def test_json_names_are_upstream_s() -> None:
    assert MessageToDict(pb.ConnOpen(uniq_id="u", x_real_ip="r")) == {"uniqId": "u", "xRealIp": "r"}


def test_a_gateway_reads_many_frames_in_steps() -> None:
    codec = Netsvr("gateway", port="task")
    question = Netsvr("business").send(Packet(Command.UNIQ_ID_COUNT))
    heartbeat = Netsvr("business").send(DEFAULT_HEARTBEAT)
    assert codec.receive_data(heartbeat * STEP + question * (2 * STEP) + b"\0\0\0\4\0\0\0\0") == []
    for _ in range(2):
        assert codec.more
        assert codec.receive_data(b"") == [Packet(Command.UNIQ_ID_COUNT)] * STEP
    assert codec.more
    with pytest.raises(RemoteProtocolError):
        codec.receive_data(b"")
