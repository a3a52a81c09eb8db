"""Names: topics, patterns and which match, queues, tables, locks, keys, methods and who has them. What a backend is given has been checked here."""

from __future__ import annotations

import re
import reprlib
from functools import lru_cache

from laraman.errors import LocalProtocolError

#: Bytes of a key: of a table's entry or of a job.
MAX_KEY = 1000
#: Bytes of a topic, a pattern, or the name of a queue, a table, a lock; and of a method.
MAX_NAME, MAX_METHOD = 255, 200

_shown = reprlib.Repr()
_shown.maxstring = 300

_WORD = r"[^\s.*>\x00-\x1f\x7f\ud800-\udfff]+"
_TOPIC = re.compile(rf"{_WORD}(?:\.{_WORD})*")
_PATTERN = re.compile(rf"(?:(?:{_WORD}|\*)(?:\.(?:{_WORD}|\*))*(?:\.>)?|>)")
_METHOD = re.compile(r"[^\s@\x00-\x1f\x7f\ud800-\udfff]+")
_MEMBER = re.compile(r"([^\s.*>\[\]@\x00-\x1f\x7f\ud800-\udfff]+)(?:\[([0-9]{1,9})\])?")


def _fits(form: re.Pattern[str], name: object, size: int) -> re.Match[str] | None:
    """What is too long is not looked at, nor remembered."""
    return _matched(form, name, size) if isinstance(name, str) and len(name) <= size else None


@lru_cache(4096)  # the same few are used again and again
def _matched(form: re.Pattern[str], name: str, size: int) -> re.Match[str] | None:
    return form.fullmatch(name) if len(name.encode(errors="replace")) <= size else None


def check_name(name: str, what: str = "topic") -> str:
    """``name`` if it is words joined by "."; else LocalProtocolError."""
    if _fits(_TOPIC, name, MAX_NAME) is None:
        wrong = f"{what} {_shown.repr(name)}"
        raise LocalProtocolError(f"{wrong} is not words joined by '.', of {MAX_NAME} bytes at most and without spaces, '*' and '>'")
    return name


def check_pattern(pattern: str) -> str:
    """``pattern`` if its words are words, "*" or, at the end, ">"; else LocalProtocolError."""
    if _fits(_PATTERN, pattern, MAX_NAME) is None:
        wrong = f"pattern {_shown.repr(pattern)}"
        raise LocalProtocolError(f"{wrong} is not words joined by '.', of {MAX_NAME} bytes at most; '*' is a word, '>' the rest")
    return pattern


def matches(pattern: str, topic: str) -> bool:
    """Whether ``topic`` is one of the pattern's: "*" is any one word, ">" one or more at the end, as in NATS."""
    words, said = pattern.split("."), topic.split(".")
    if words[-1] == ">":
        return len(said) >= len(words) and all(map(_same, words[:-1], said))
    return len(said) == len(words) and all(map(_same, words, said))


def _same(word: str, said: str) -> bool:
    return word in ("*", said)


def check_key(key: str, whose: str) -> str:
    """``key`` if it is a str of 1 to MAX_KEY bytes; else LocalProtocolError."""
    if not isinstance(key, str) or not 1 <= len(key.encode(errors="replace")) <= MAX_KEY or not key.isprintable():
        raise LocalProtocolError(f"{whose}: key {_shown.repr(key)} is not a str of 1 to {MAX_KEY} bytes, all of them printable")
    return key


def parse_member(member: str) -> tuple[str, int | None]:
    """"http[2]" is slot 2 of "http". Raises LocalProtocolError."""
    found = _fits(_MEMBER, member, MAX_NAME)
    if found is None:
        raise LocalProtocolError(f"{_shown.repr(member)} is no name of a worker, nor one with a slot, like 'http[2]'")
    return found[1], None if found[2] is None else int(found[2])


def check_method(name: str) -> str:
    """``name`` if it can be one of a method; else LocalProtocolError."""
    if _fits(_METHOD, name, MAX_METHOD) is None:
        raise LocalProtocolError(f"{_shown.repr(name)} is no name of a method: there are spaces or an '@' in it, or more than {MAX_METHOD} bytes")
    return name


def check_seconds(seconds: float, what: str) -> float:
    """``seconds`` if they are some; else LocalProtocolError."""
    if not isinstance(seconds, (int, float)) or not seconds > 0:
        raise LocalProtocolError(f"a {what} of {_shown.repr(seconds)} seconds is none")
    return seconds
