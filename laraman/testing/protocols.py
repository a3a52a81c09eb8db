"""The kit for protocols."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from laraman.errors import RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

#: Rounds of random bytes; the seed is fixed, so that what fails once fails again.
GARBAGE_ROUNDS = 200


def check_protocol(
    factory: Callable[[], Any],
    samples: Sequence[Any],
    *,
    sender: Callable[[], Any] | None = None,
    combine: Callable[[list[Any]], Any] = list,
) -> None:
    """Check that a protocol keeps its contract (``laraman.protocols``). Raises AssertionError, which says what is wrong.

    ``samples`` are a few short messages that arrive as they were sent. ``sender`` makes the other side's protocol where the two differ.
    ``combine`` makes of the received messages what must not depend on how the bytes were cut: their list, and for a protocol without
    framing, whose messages merge and split, ``b"".join``.

    - the samples arrive when their bytes come at once, cut in two at every place, and one by one
    - the beginning of another message behind them changes nothing, and that message arrives when it is complete
    - an end between messages is no error, and one inside a message nothing but a RemoteProtocolError
    - on random, changed and foreign bytes nothing but RemoteProtocolError is raised, and what is received before it does not depend on the cuts
    """
    wires = _wires(sender or factory, samples)
    wire, expected = b"".join(wires), combine(list(samples))
    for name, pieces in _cuts(wire):
        received, fault = _feed(factory(), pieces)
        _require(fault is None, f"the samples' own bytes, {name}, raised {fault!r}")
        _require(combine(received) == expected, f"the samples' bytes, {name}, gave {received!r}")
    _check_tail(factory, samples, wires, combine)
    for end in range(len(wire)):
        _feed(factory(), [wire[:end]])
    for faulty in _faulty(wire):
        _check_faulty(factory, faulty, combine)


def _wires(sender: Callable[[], Any], samples: Sequence[Any]) -> list[bytes]:
    protocol = sender()
    return [protocol.send(sample) for sample in samples]


def _cuts(wire: bytes) -> Iterable[tuple[str, list[bytes]]]:
    yield "at once", [wire]
    yield "byte by byte", _bytewise(wire)
    for place in range(1, len(wire)):
        yield f"cut at {place}", [wire[:place], wire[place:]]


def _bytewise(wire: bytes) -> list[bytes]:
    return [wire[place : place + 1] for place in range(len(wire))]


def _feed(protocol: Any, pieces: Iterable[bytes], *, ends: bool = True) -> tuple[list[Any], RemoteProtocolError | None]:
    """What is received, and the fault that ended it."""
    received: list[Any] = []
    finish = getattr(protocol, "receive_eof", None)
    try:
        for piece in pieces:
            received.extend(protocol.receive_data(piece))
        if ends and finish is not None:
            finish()
    except RemoteProtocolError as exc:
        return received, exc
    except Exception as exc:
        raise AssertionError(f"{type(exc).__name__} instead of RemoteProtocolError on {pieces!r}") from exc
    return received, None


def _check_tail(factory: Callable[[], Any], samples: Sequence[Any], wires: list[bytes], combine: Callable[[list[Any]], Any]) -> None:
    """Another message behind the samples comes in two parts."""
    wire = b"".join(wires)
    protocol = factory()
    for place in range(len(wires[0])):
        received, fault = _feed(protocol, [wire + wires[0][:place]], ends=False)
        _require(fault is None, f"{place} bytes of a further message raised {fault!r}")
        rest, fault = _feed(protocol, [wires[0][place:]], ends=False)
        _require(fault is None, f"the rest of a message cut at {place} raised {fault!r}")
        _require(combine(received + rest) == combine([*samples, samples[0]]), f"a message cut at {place} behind others gave {received + rest!r}")


def _faulty(wire: bytes) -> Iterable[bytes]:
    source = random.Random(1)
    for _ in range(GARBAGE_ROUNDS):
        yield source.randbytes(source.randrange(1, 64))
    for place in range(len(wire)):
        for bit in (0x01, 0x20, 0x80):
            changed = bytearray(wire)
            changed[place] ^= bit
            yield bytes(changed)
        yield wire[:place] + source.randbytes(4) + wire[place:]
    yield b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    yield b"\0" * 64
    yield b"\xff" * 64


def _check_faulty(factory: Callable[[], Any], wire: bytes, combine: Callable[[list[Any]], Any]) -> None:
    # The empty piece: a fault behind messages may be raised by the next call.
    whole, fault = _feed(factory(), [wire, b""])
    single, single_fault = _feed(factory(), [*_bytewise(wire), b""])
    _require(combine(whole) == combine(single), f"{wire!r} gave {whole!r} at once and {single!r} byte by byte")
    _require((fault is None) == (single_fault is None), f"{wire!r} raised {fault!r} at once and {single_fault!r} byte by byte")


def _require(holds: bool, text: str) -> None:
    if not holds:
        raise AssertionError(text)
