"""What differs between two trials of an application, and which of it is on purpose."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from laraman.doctor.differences import DIFFERENCES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from laraman.doctor.trial import Trial

#: The greatest length of a value that is shown.
SHOWN = 60
#: Lines that one of the two has because of what it is, and the difference that says so.
_LINES = (
    ("brand", r"INFO:     (Uvicorn|Laraman) running on"),
    ("master", r"INFO:     (Started parent|Stopping parent|Received SIGTERM)"),
    ("closed", r"INFO:     connection closed"),
)


class Finding(NamedTuple):
    """``purpose`` names the difference in the list of those on purpose; empty where it is none of them."""

    request: str
    what: str
    uvicorn: str
    laraman: str
    purpose: str = ""


def findings(uvicorn: Trial, laraman: Trial, names: Sequence[str]) -> list[Finding]:
    """What differs. What differs between the two plays of a request under one server changes by itself and says nothing."""
    found = [finding for index, name in enumerate(names) for finding in _of_play(name, 2 * index, uvicorn, laraman)]
    found += _of_lines(uvicorn.lines, laraman.lines)
    if uvicorn.exit_code != laraman.exit_code:
        codes = (uvicorn.exit_code, laraman.exit_code)
        found.append(Finding("SIGTERM", "exit code", str(codes[0]), str(codes[1]), "exit codes" if codes == (-15, 0) else ""))
    return found


def _of_play(name: str, index: int, uvicorn: Trial, laraman: Trial) -> Iterator[Finding]:
    for label, seen in (("", "answers"), ("scope ", "scopes")):
        theirs, ours = getattr(uvicorn, seen), getattr(laraman, seen)
        for what in dict.fromkeys([*theirs[index], *ours[index]]):
            first, second, third, fourth = (answers[at].get(what) for answers in (theirs, ours) for at in (index, index + 1))
            if first == second and third == fourth and first != third:
                yield from _told(name, f"{label}{what}", first, third)


def _told(name: str, what: str, theirs: Any, ours: Any) -> Iterator[Finding]:
    """The difference; of header fields and of dictionaries only what differs in them."""
    if what == "headers":
        left, right = Counter(map(tuple, theirs or ())), Counter(map(tuple, ours or ()))
        for field in sorted({pair[0] for pair in (left - right) + (right - left)}):
            first, second = (", ".join(value for key, value in sorted(fields) if key == field) for fields in (left - right, right - left))
            yield Finding(name, f"header {field}", _short(first), _short(second), _of_field(field, first, second))
    elif isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted(key for key in {*theirs, *ours} if theirs.get(key) != ours.get(key)):
            yield Finding(name, f"{what} {key}", _short(theirs.get(key)), _short(ours.get(key)), _purpose(what, theirs, ours))
    else:
        yield Finding(name, what, _short(theirs), _short(ours), _purpose(what, theirs, ours))


def _of_field(name: str, theirs: str, ours: str) -> str:
    """Which difference on purpose this is, of a header field."""
    if name == "server" and (theirs, ours) == ("uvicorn", "laraman"):
        return "server"
    return "whole" if (name == "content-length" and not theirs) or (name == "transfer-encoding" and (theirs, ours) == ("chunked", "")) else ""


def _purpose(what: str, theirs: Any, ours: Any) -> str:
    """Which difference on purpose this is."""
    if what == "scope extensions" and theirs is None:
        return "extensions"
    if what == "close" and (theirs, ours) in (("cut off", 1000), ("cut off", 1011)):
        return "websocket ends"
    return "statuses" if what == "handshake" and (theirs, ours) == (400, 426) else ""


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _of_lines(theirs: Sequence[str], ours: Sequence[str]) -> Iterator[Finding]:
    """Lines that only one has logged, once each; how often is another matter."""
    for line in dict.fromkeys([*theirs, *ours]):
        if (line in theirs) != (line in ours):
            purpose = next((name for name, pattern in _LINES if re.match(pattern, line)), "")
            yield Finding("log", "line", _short(line) if line in theirs else "", _short(line) if line in ours else "", purpose)


def explained(purpose: str) -> str:
    """In words, without the README's marks."""
    difference = DIFFERENCES[purpose]
    option = f"; as uvicorn with {difference.option}" if difference.option else ""
    return f"uvicorn: {difference.uvicorn}; laraman: {difference.laraman} ({difference.why}){option}".replace("`", "")
