"""What real gateways and browsers said to each other, and gateways to HTTP callbacks (netsvr_vectors.json), against our websocket and messages."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from laraman.errors import RemoteProtocolError
from laraman.protocols.deflate import Deflate
from laraman.protocols.netsvr import netsvr_pb2 as pb
from laraman.protocols.upgrade import Accept, Upgrade, WebSocketServer
from laraman.protocols.websocket import Close, WebSocket, data_frame

VECTORS = {vector["name"]: vector for vector in json.loads(Path(__file__).with_name("netsvr_vectors.json").read_text())}
FRAMES = [vector for vector in VECTORS.values() if "ws" in vector["decoded"]]
HANDSHAKES = [name.removesuffix(".req") for name, vector in VECTORS.items() if "http" in vector["decoded"] and name.endswith(".req")]
CALLBACKS = [vector for vector in VECTORS.values() if vector["channel"] == "http"]
#: Path and origin are the embedded gateway's to judge, not the protocol's; and what it does better: a query string, a Connection field with several
#: words as Firefox sends it, an extension that nobody understands.
LET_THROUGH = {"ws.wrong_path", "ws.no_origin", "ws.bad_origin", "ws.query", "ws.connection_keepalive_upgrade", "ws.bad_extensions"}


def raw(vector: dict[str, Any]) -> bytes:
    return bytes.fromhex(vector["hex"])


def name_of(vector: dict[str, Any]) -> str:
    return str(vector["name"])


def sent(decoded: dict[str, Any]) -> tuple[int, bytes]:
    return decoded["opcode"], bytes.fromhex(decoded["payload"]["$bytes_hex"])


def test_nothing_recorded_is_left_out() -> None:
    rest = {vector["name"] for vector in VECTORS.values() if vector["channel"] in ("ws", "http")}
    seen = {vector["name"] for vector in (*FRAMES, *CALLBACKS)} | {f"{name}.{end}" for name in HANDSHAKES for end in ("req", "resp")}
    assert rest == seen


@pytest.mark.parametrize("vector", [vector for vector in FRAMES if vector["direction"] == "client->gateway"], ids=name_of)
def test_a_browser_s_frame_is_read(vector: dict[str, Any]) -> None:
    opcode, payload = sent(vector["decoded"]["ws"])
    compressed = vector["decoded"]["ws"]["rsv1"]
    if compressed:
        payload = zlib.decompressobj(-15).decompress(payload + b"\0\0\xff\xff")
    websocket = WebSocket(1000, Deflate() if compressed else None)
    messages = websocket.receive_data(raw(vector))
    match opcode:
        case 1:
            assert messages == [payload.decode()]
        case 2:
            assert messages == [payload]
        case 8:
            assert messages == [Close(int.from_bytes(payload[:2], "big"), payload[2:].decode())]
            assert websocket.data_to_send() == raw(VECTORS["ws.server_close_echo"])
        case 9:
            assert websocket.data_to_send() == raw(VECTORS["ws.server_pong"])
        case _:
            pytest.fail(f"opcode {opcode}")


@pytest.mark.parametrize("vector", [vector for vector in FRAMES if vector["direction"] == "gateway->client"], ids=name_of)
def test_a_gateway_s_frame_is_written(vector: dict[str, Any]) -> None:
    opcode, payload = sent(vector["decoded"]["ws"])
    if vector["decoded"]["ws"]["rsv1"]:  # another compressor's bytes: what is in them comes out of ours as well
        text = zlib.decompressobj(-15).decompress(payload)
        ours = data_frame(text, binary=True, deflate=Deflate(own_takeover=False))
        assert ours[0] == raw(vector)[0]
        assert zlib.decompressobj(-15).decompress(ours[2:] + b"\0\0\xff\xff") == text
    elif opcode == 8:
        assert WebSocket(1000).send(Close(int.from_bytes(payload[:2], "big"), payload[2:].decode())) == raw(vector)
    elif opcode == 10:
        assert raw(vector) == b"\x8a" + bytes([len(payload)]) + payload  # written in answer to the ping, above
    else:
        assert data_frame(payload, binary=opcode == 2) == raw(vector)


@pytest.mark.parametrize("name", HANDSHAKES)
def test_a_handshake_is_answered_as_it_was(name: str) -> None:
    wanted = int(raw(VECTORS[f"{name}.resp"]).split(b" ")[1])
    server = WebSocketServer(1000)
    try:
        [upgrade] = server.receive_data(raw(VECTORS[f"{name}.req"]))
    except RemoteProtocolError:
        answer = server.data_to_send()
    else:
        assert isinstance(upgrade, Upgrade)
        if not upgrade.websocket:
            assert wanted == 200  # a health check: what it is answered is the gateway's
            return
        offered = upgrade.subprotocols
        answer = server.send(upgrade.refusal or Accept(offered[0] if offered and name.startswith("legacy") else ""))
    status = int(answer.split(b" ")[1])
    assert status == (101 if name in LET_THROUGH else wanted)
    if wanted == 101:
        recorded = raw(VECTORS[f"{name}.resp"]).lower().split(b"\r\n")
        for field in (b"sec-websocket-accept", b"sec-websocket-protocol"):
            assert [line for line in answer.lower().split(b"\r\n") if line.startswith(field)] == [line for line in recorded if line.startswith(field)]


@pytest.mark.parametrize("vector", CALLBACKS, ids=name_of)
def test_a_callback_s_body_is_read_and_written_again(vector: dict[str, Any]) -> None:
    body = raw(vector).partition(b"\r\n\r\n")[2]
    message = getattr(pb, vector["decoded"]["message"]).FromString(body)
    assert message.SerializeToString() == body
    assert {field.json_name for field, _ in message.ListFields()} == set(vector["decoded"]["fields"])
