"""uvicorn's words for event loops and protocols, and what they mean here."""

from __future__ import annotations

import re
from importlib.util import find_spec

LOOPS = ("auto", "none", "asyncio", "uvloop", "zuvloop")
HTTP = ("auto", "h11", "httptools")
WEBSOCKETS = ("auto", "none", "websockets", "websockets-sansio", "wsproto")

#: People name uvicorn's classes, too. Each has a word.
_CLASSES = {
    "uvicorn.protocols.http.auto:AutoHTTPProtocol": "auto",
    "uvicorn.protocols.http.h11_impl:H11Protocol": "h11",
    "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol": "httptools",
    "uvicorn.protocols.websockets.auto:AutoWebSocketsProtocol": "auto",
    "uvicorn.protocols.websockets.websockets_impl:WebSocketProtocol": "websockets",
    "uvicorn.protocols.websockets.websockets_sansio_impl:WebSocketsSansIOProtocol": "websockets-sansio",
    "uvicorn.protocols.websockets.wsproto_impl:WSProtocol": "wsproto",
}


def loop(text: str) -> str:
    """One of the words, or ``module:factory``. A loop that is not installed is refused here, where it can be said in one line."""
    word = text.lower()
    if word not in LOOPS:
        return _import_string(text, (*LOOPS, "module:factory"))
    if word in ("uvloop", "zuvloop") and find_spec(word) is None:
        raise ValueError(f"{word} is not installed")
    return word


def http(text: str) -> str:
    """The parser. Both accept the same requests."""
    return _protocol(text, HTTP)


def websockets(text: str) -> str:
    """laraman has one implementation: all words but ``none`` mean it."""
    return _protocol(text, WEBSOCKETS)


def _protocol(text: str, words: tuple[str, ...]) -> str:
    word = _CLASSES.get(text, text.lower())
    if word in words:
        return word
    if word == "zttp" or ":" in text:
        raise ValueError(f"{text!r} cannot be served, laraman has an implementation of its own; it may be {', '.join(words)}")
    raise ValueError(f"{text!r} is not one of {', '.join(words)}")


def _import_string(text: str, words: tuple[str, ...]) -> str:
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*", text):
        raise ValueError(f"{text!r} is not one of {', '.join(words)}")
    return text
