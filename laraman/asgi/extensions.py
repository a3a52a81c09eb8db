"""Messages of the ASGI extensions for HTTP responses: https://asgi.readthedocs.io/en/latest/extensions.html

    http.response.early_hint       103 with Link fields (RFC 8297), before the head. Once the head is out it would come too late, and is dropped;
                                   so it is for a client of HTTP/1.0, which knows no such responses
    http.response.trailers         fields behind the last chunk (RFC 9112 section 7.1.2), for a client that said ``TE: trailers``. Where the
                                   framing has no place for them they are dropped
    http.response.pathsend         a file by its path
    http.response.zerocopysend     an open file, or a part of it

``http.response.debug`` is not offered: it is for test clients, and would keep every template's context.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from laraman.asgi.fields import CODING, CONNECTION, LENGTH, check_field
from laraman.asgi.files import send_file

if TYPE_CHECKING:
    from laraman.asgi.app import Message, Scope
    from laraman.asgi.exchange import Exchange

EARLY_HINT, TRAILERS = "http.response.early_hint", "http.response.trailers"
PATH_SEND, ZERO_COPY_SEND = "http.response.pathsend", "http.response.zerocopysend"

#: What may not come behind the body, because it says how the message is read or where it goes (RFC 9110 section 6.5.1).
_NO_TRAILERS = frozenset((b"host", b"te", b"trailer", b"upgrade"))


def send_early_hint(exchange: Exchange, message: Message) -> None:
    """Send a 103, if the client can still take one. Raises RuntimeError for a link that is no field's value."""
    links = [bytes(link) for link in message.get("links", ())]
    for link in links:
        check_field(b"link", link)
    if links and exchange.is_1_1 and not exchange.head_sent:
        lines = b"".join(b"link: %b\r\n" % link for link in links)
        exchange.connection.write(b"HTTP/1.1 103 Early Hints\r\n%b\r\n" % lines)


def takes_trailers(scope: Scope) -> bool:
    """Whether the client has said ``TE: trailers`` (RFC 9110 section 10.1.4)."""
    said = b",".join(value for name, value in scope["headers"] if name == b"te")
    return any(coding.partition(b";")[0].strip() == b"trailers" for coding in said.lower().split(b","))


def send_trailers(exchange: Exchange, message: Message) -> None:
    """Send trailer fields; the last of them end the response. Raises RuntimeError for those that must not stand there."""
    lines = []
    for name, value in message.get("headers", ()):
        if check_field(name, value) in (LENGTH, CODING, CONNECTION) or name.lower() in _NO_TRAILERS:
            raise RuntimeError(f"{name.decode()!r} must not be a trailer.")
        lines.append(b"%b: %b\r\n" % (name.lower(), value))
    more = message.get("more_trailers", False)
    exchange.connection.write(b"".join(lines) + (b"" if more else b"\r\n"))
    if not more:
        exchange.finish()


async def _send_path(exchange: Exchange, message: Message) -> None:
    # Not in a thread: whoever sends a path has just looked at the file, so its directories are in memory, and what is wrong with it can still be
    # a 500. A pipe does not keep us waiting for its other end.
    fd = os.open(message["path"], os.O_RDONLY | os.O_NONBLOCK)
    try:
        await send_file(exchange, fd, 0, None, more=False)
    finally:
        os.close(fd)


async def _send_open_file(exchange: Exchange, message: Message) -> None:
    file: Any = message["file"]
    fd: int = file if isinstance(file, int) else file.fileno()
    offset, count = message.get("offset"), message.get("count")
    start = os.lseek(fd, 0, os.SEEK_CUR) if offset is None else offset
    if start < 0 or (count is not None and count < 0):
        raise RuntimeError(f"Invalid part of a file: offset {start}, count {count}.")
    sent = await send_file(exchange, fd, start, count, more=message.get("more_body", False))
    if offset is None:
        os.lseek(fd, start + sent, os.SEEK_SET)


#: The messages that send files.
FILES = {PATH_SEND: _send_path, ZERO_COPY_SEND: _send_open_file}
#: What scopes offer, by the option ``asgi_extensions``. Frameworks use ``pathsend`` unasked: then middlewares that read or compress bodies do not see
#: those of files, which they do under a server without it. So it has to be asked for.
OFFERED = {
    "none": (),
    "explicit": (EARLY_HINT, TRAILERS, ZERO_COPY_SEND),
    "all": (EARLY_HINT, TRAILERS, ZERO_COPY_SEND, PATH_SEND),
}
