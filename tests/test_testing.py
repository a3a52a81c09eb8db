"""The kit finds the faults it is made for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from laraman.errors import RemoteProtocolError
from laraman.protocols.framing import Frame, Text
from laraman.testing import check_protocol


class Forgetful(Frame):
    """Believes that a read holds whole frames."""

    def receive_data(self, data: bytes) -> list[bytes]:
        received = super().receive_data(data)
        self._buffer.clear()
        return received


class Careless(Text):
    """Lets another error out."""

    def receive_data(self, data: bytes) -> list[Any]:
        return [json.loads(line) for line in super().receive_data(data)]

    def send(self, message: Any) -> bytes:
        return super().send(json.dumps(message))


class Hasty(Text):
    """Loses what came before a fault in the same read."""

    def receive_data(self, data: bytes) -> list[str]:
        received = super().receive_data(data)
        if any(line != line.lower() for line in received):
            raise RemoteProtocolError("not lower case")
        return received


class Restless(Frame):
    """Finds a fault in a proper end."""

    def receive_eof(self) -> None:
        raise RemoteProtocolError("the end")


@pytest.mark.parametrize(
    ("factory", "samples", "text"),
    [
        (Forgetful, [b"hello"], "byte by byte"),
        (Careless, [["a"], 1], "JSONDecodeError instead of RemoteProtocolError"),
        (Hasty, ["hello", "world"], "byte by byte"),
        (Restless, [b"hello"], "the samples' own bytes, at once"),
    ],
)
def test_faults_are_found(factory: Any, samples: list[Any], text: str) -> None:
    with pytest.raises(AssertionError, match=text):
        check_protocol(factory, samples)


class Minimal:
    """A protocol with nothing but the two methods that are needed."""

    def __init__(self) -> None:
        self._frame = Frame()

    def receive_data(self, data: bytes) -> list[bytes]:
        return self._frame.receive_data(data)

    def send(self, message: bytes) -> bytes:
        return self._frame.send(message)


def test_two_methods_are_enough() -> None:
    check_protocol(Minimal, [b"hello"], sender=Frame)
