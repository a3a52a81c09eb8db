"""The wire between a task worker and its callers."""

from __future__ import annotations

import pytest

from laraman.errors import LocalProtocolError, RemoteProtocolError
from laraman.protocols.task import DONE, FAILED, GONE, PART, PROGRESS, RUN, Task
from laraman.testing import check_protocol


def test_it_keeps_the_contract_of_protocols() -> None:
    check_protocol(Task, [(RUN, b"request"), (PART, b""), (PROGRESS, b"\xff"), (DONE, b"x" * 40), (FAILED, b"f"), (GONE, b"")])


def test_what_is_no_message() -> None:
    with pytest.raises(LocalProtocolError, match="7 is no message of a task"):
        Task().send((7, b""))
    protocol = Task()
    assert protocol.receive_data(Task().send((DONE, b"1")) + b"\0\0\0\1\x09") == [(DONE, b"1")]
    with pytest.raises(RemoteProtocolError, match="9 is no message of a task"):
        protocol.receive_data(b"")
    with pytest.raises(RemoteProtocolError, match="outside"):
        Task(10).receive_data(b"\0\1\0\0")
