"""Texts to values: what an option's text means. Each raises ValueError, which says what is wrong with the text."""

from __future__ import annotations

import grp
import os
import pwd
import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from laraman.config.cpus import cpu_count
from laraman.log.access import AccessFormat

if TYPE_CHECKING:
    from collections.abc import Callable

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2


def workers(text: str) -> int:
    """``4``, ``auto`` (one per CPU that this process may use) or ``auto*2``."""
    match = re.fullmatch(r"auto(?:\*(\d+))?", text)
    if match:
        return cpu_count() * int(match[1] or 1)
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither a whole number nor 'auto' nor 'auto*N'") from None


def header(text: str) -> str:
    """``Name:Value``, split at the first colon as uvicorn does; what may not go on the wire is refused."""
    name, colon, value = text.partition(":")
    if not colon or not _TOKEN.fullmatch(name):
        raise ValueError(f"{text!r} is not of the form Name:Value")
    if not value.replace("\t", " ").isprintable() or any(ord(character) > 255 for character in value):
        raise ValueError(f"the value of {name} has characters that a header may not hold")
    return text


def size(text: str) -> int:
    """Bytes: a whole number, or one with a unit, ``512MB`` or ``1.5 GiB``; as in most servers' limits, each unit is a power of 1024."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip(), re.IGNORECASE)
    if not match:
        raise ValueError(f"{text!r} is not a size: a number of bytes, or one with a unit like 512MB")
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2].lower() or " "))


def mode(text: str) -> str:
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise ValueError(f"{text!r} is not of the form 0660")
    return text


def access_format(text: str) -> str:
    if text:
        AccessFormat(text)
    return text


def seconds(text: str) -> float | None:
    if text.lower() == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither a number nor 'none'") from None


def existing(text: str) -> str:
    if not os.path.exists(text):
        raise ValueError(f"there is no {text!r}")
    return text


def name(text: str) -> str:
    """The instance's name becomes the name of a directory."""
    if text and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", text):
        raise ValueError(f"{text!r} is not a name: letters, digits, '_', '-' and '.', 64 at most, not starting with '.' or '-'")
    return text


def user(text: str) -> str:
    """The name of a user of this system, or a number, which need not be one's."""
    return _known(text, "user", pwd.getpwnam)


def group(text: str) -> str:
    """The name of a group of this system, or a number."""
    return _known(text, "group", grp.getgrnam)


def _known(text: str, kind: str, find: Callable[[str], object]) -> str:
    if text and not _is_id(text):
        try:
            find(text)
        except KeyError:
            raise ValueError(f"there is no {kind} {text!r}") from None
    return text


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdecimal() and int(text) < 2**32 - 1  # the last one means "as it is" to the kernel


def redis_or_nats(text: str) -> str:
    """The URL of a Redis or NATS server. There may be a password in it, anywhere in one that is wrong: no error repeats it."""
    if not text:
        return text
    try:
        parts = urlsplit(text)
        _ = parts.port
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise ValueError("its port or what follows the '?' cannot be; in user and password all but letters and digits is percent-encoded") from None
    if parts.scheme not in ("redis", "rediss", "nats", "tls") or not parts.hostname or re.search(r"[\s,]", text):
        raise ValueError("it is none of redis://HOST, rediss://HOST, nats://HOST and tls://HOST, of one host")
    if parts.fragment or not re.fullmatch("/?[0-9]*" if parts.scheme.startswith("redis") else "/?", parts.path):
        raise ValueError("behind the host there can only be a port, the number of a database of Redis and '?'")
    _check_query(parts.scheme in ("rediss", "tls"), query)
    return text


def _check_query(tls: bool, query: list[tuple[str, str]]) -> None:
    files = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
    for name, value in query:
        if name == "prefix":
            if not re.fullmatch(r"[A-Za-z0-9_:-]+(\.[A-Za-z0-9_:-]+)*", value):
                raise ValueError("?prefix= is not words of letters, digits, '_', ':' and '-', joined by '.'")
        elif name not in files:
            raise ValueError(f"of what follows the '?' one is none of {', '.join(('prefix', *files))}")
        elif not tls:
            raise ValueError(f"?{name}= is for rediss:// and tls://")
        elif not os.path.isfile(value):
            raise ValueError(f"?{name}= is no file: {value!r}")
    if "ssl_keyfile" in dict(query) and "ssl_certfile" not in dict(query):
        raise ValueError("?ssl_keyfile= needs ?ssl_certfile=")
