"""The events of a gateway and their handlers."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from laraman import events, gateway
from laraman.gateway.handlers import closed, opened
from laraman.protocols.netsvr import netsvr_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    events.forget([__name__])


def test_a_handler_is_a_listener() -> None:
    kinds = {gateway.on_open: gateway.Opened, gateway.on_message: gateway.Message, gateway.on_close: gateway.Closed}
    for register, kind in kinds.items():

        def handler(event: Any) -> None: ...

        assert register(handler) is handler
        assert events.listeners(kind)[-1] is handler


def test_handlers_of_a_module_are_forgotten_with_it() -> None:
    gateway.on_message(print)  # a function of another module: who registered it counts too
    assert print in events.listeners(gateway.Message)
    events.forget([__name__])
    assert print not in events.listeners(gateway.Message)


def test_a_message_has_bytes_text_and_json() -> None:
    message = gateway.Message(uniq_id="a", data='{"n": "ü"}'.encode())
    assert (message.data, message.text, message.json()) == ('{"n": "ü"}'.encode(), '{"n": "ü"}', {"n": "ü"})
    for wrong in (b"\xff", b"{"):
        with pytest.raises(ValueError):  # noqa: PT011
            gateway.Message(uniq_id="a", data=wrong).json()
    with pytest.raises(UnicodeDecodeError):
        _ = gateway.Message(uniq_id="a", data=b"\xff").text


def test_events_do_not_change() -> None:
    for event in (gateway.Opened(uniq_id="a"), gateway.Message(uniq_id="a", data=b""), gateway.Closed(uniq_id="a")):
        assert isinstance(event, events.Event)
        with pytest.raises(dataclasses.FrozenInstanceError):
            event.uniq_id = "b"  # type: ignore[misc]


class Bus:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    async def single_cast(self, *arguments: Any) -> str:
        self.calls.append(arguments)
        return "sent"


@pytest.mark.anyio
async def test_a_reply_goes_over_the_bus_that_the_message_came_from_or_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    own, process = Bus(), Bus()
    monkeypatch.setattr(gateway, "bus", process)
    assert await gateway.Message(uniq_id="a", data=b"", bus=own).reply("1") == "sent"  # type: ignore[comparison-overlap]
    await gateway.Message(uniq_id="b", data=b"").reply(b"2")
    assert (own.calls, process.calls) == ([("a", "1")], [("b", b"2")])


def test_the_bus_of_a_message_is_not_part_of_what_it_says() -> None:
    assert gateway.Message(uniq_id="a", data=b"", bus=Bus()) == gateway.Message(uniq_id="a", data=b"")
    assert "bus" not in repr(gateway.Message(uniq_id="a", data=b"", bus=Bus()))


@pytest.mark.parametrize("kind", [pb.ConnOpen, pb.ConnOpenLegacy])
def test_an_opening_in_every_dialect(kind: Any) -> None:
    body = kind(uniq_id="a", raw_query="q=1", x_forwarded_for="f", x_real_ip="r", remote_addr="1.2.3.4", sub_protocols=["p", "q"])
    assert opened(body) == gateway.Opened(
        uniq_id="a", raw_query="q=1", x_forwarded_for="f", x_real_ip="r", remote_addr="1.2.3.4", sub_protocols=("p", "q")
    )


def test_a_closing() -> None:
    body = pb.ConnClose(uniq_id="a", customer_id="c", session="s", topics=["t"])
    assert closed(body) == gateway.Closed(uniq_id="a", customer_id="c", session="s", topics=("t",))


def fresh(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_handlers_and_listeners_bring_in_no_event_loop() -> None:
    """The master imports them."""
    code = (
        "import sys, laraman.gateway.listeners; from laraman import gateway\n"
        "gateway.on_open, gateway.on_message, gateway.on_close, gateway.Message, gateway.gateway_worker, gateway.GatewayConfig, gateway.send_to_all\n"
        "print(*sorted({'asyncio', 'anyio', 'google.protobuf'} & set(sys.modules)))"
    )
    assert fresh(code) == ""


def test_every_public_name_is_there() -> None:
    names = "bus NetBus on_open on_message on_close Opened Message Closed callbacks Admission gateway_worker GatewayConfig send_to_all".split()
    assert set(names) <= set(dir(gateway))
    assert all(getattr(gateway, name) is not None for name in names)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = gateway.nonsense


def test_the_callbacks_are_no_module() -> None:
    assert fresh("from laraman.gateway import Admission, callbacks; from laraman import gateway; print(callable(gateway.callbacks))") == "True"
