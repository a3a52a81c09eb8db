"""Files as parts of a response, without their bytes going through Python where the kernel can send them itself.

Small files are read and sent like any body: one write with the head costs less than a system call more. Larger ones go out by sendfile (2), on a
duplicate of the socket, once the transport has nothing left to write: uvloop has no ``loop.sendfile``, and asyncio's would wait where neither
the write timeout nor the end of the connection is noticed. Where there is no sendfile, as under TLS, they are read in pieces, and each waits for
the client to take the one before it.

A disk may be slow, and the loop serves others: what the page cache does not have is read, or sent, in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from laraman.asgi.exchange import Exchange

#: Bytes up to which a file is read whole.
SMALL = 65536
#: Bytes of one sendfile, after which others have their turn, and of one piece where there is no sendfile.
STEP, PIECE = 1 << 20, 1 << 16

#: preadv (2) only of what is in the page cache; Linux.
_CACHED_ONLY: int | None = getattr(os, "RWF_NOWAIT", None)
#: What sendfile says of files that it cannot send, and of clients that are gone.
_UNABLE = frozenset((errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP))
_GONE = frozenset((errno.EPIPE, errno.ECONNRESET, errno.ECONNABORTED, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH))


async def send_file(exchange: Exchange, fd: int, offset: int, count: int | None, *, more: bool) -> int:
    """Send ``count`` bytes of a file from ``offset`` on, or up to its end, as a part of the body; ``more`` of it follows. Returns how many.

    Raises OSError for what is no file, and RuntimeError where the part is not as long as the response's Content-Length says, or ends early.
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL, "not a regular file")
    there = max(0, status.st_size - offset)
    size = there if count is None else min(count, there)
    if size <= SMALL:
        data = await _read(fd, size, offset) if size else b""
        if len(data) < size:
            raise RuntimeError(_shortened(size - len(data)))
        await exchange.send({"type": "http.response.body", "body": data, "more_body": more})
        return size
    end = exchange.begin_part(size, more)
    if end is not None:
        await _send_part(exchange, fd, offset, size)
    exchange.end_part(end or b"", more)
    return size


async def _send_part(exchange: Exchange, fd: int, offset: int, size: int) -> None:
    """Whatever hinders it, half a part is never followed by anything: the client has to see that it is not whole."""
    exchange.part = exchange.connection.loop.create_future()
    try:
        if hasattr(os, "sendfile") and exchange.connection.transport.get_extra_info("sslcontext") is None:
            sent = await _sendfile(exchange, fd, offset, size)
            offset, size = offset + sent, size - sent
        await _pump(exchange, fd, offset, size)
    except BaseException:
        if not exchange.gone:
            exchange.connection.abort_exchange()
        raise
    finally:
        exchange.part.set_result(None)
        exchange.part = None


async def _sendfile(exchange: Exchange, fd: int, offset: int, size: int) -> int:
    """Returns how many bytes went out: fewer than ``size`` when the client is gone, or the kernel cannot do it for this file."""
    connection = exchange.connection
    await _emptied(connection)
    if exchange.gone or connection.transport.is_closing():
        exchange.disconnect(gone=True)
        return 0
    # A duplicate, which nobody can close and open again as something else while a thread uses it, and which the loop lets us watch.
    out = os.dup(connection.transport.get_extra_info("socket").fileno())
    sent = 0
    try:
        while sent < size and not exchange.gone:
            step = min(STEP, size - sent)
            try:
                done = await _promptly(os.sendfile, fd, step, offset + sent, out, fd, offset + sent, step)
            except BlockingIOError:
                await _writable(connection, out)
                continue
            except OSError as exc:
                if exc.errno in _GONE:
                    connection.transport.abort()
                    exchange.disconnect(gone=True)
                elif exc.errno not in _UNABLE or sent:
                    raise
                break
            if not done:
                raise RuntimeError(_shortened(size - sent))
            sent += done
            connection.bytes_out += done
            await asyncio.sleep(0)
        return sent
    finally:
        os.close(out)


async def _pump(exchange: Exchange, fd: int, offset: int, size: int) -> None:
    connection = exchange.connection
    while size and not exchange.gone:
        data = await _read(fd, min(PIECE, size), offset)
        if not data:
            raise RuntimeError(_shortened(size))
        if exchange.gone:
            return
        connection.write(data)
        offset += len(data)
        size -= len(data)
        if connection.writing_paused:
            await connection.drained()
        else:
            await asyncio.sleep(0)


async def _emptied(connection: Any) -> None:
    """Return when the transport has written everything, or the connection is gone."""
    transport = connection.transport
    transport.set_write_buffer_limits(high=0)
    try:
        if connection.writing_paused:
            await connection.drained()
    finally:
        transport.set_write_buffer_limits()


async def _writable(connection: Any, out: int) -> None:
    """Return when the socket takes more, or the connection is gone. Meanwhile its write timeout runs."""
    connection.pause_writing()
    connection.loop.add_writer(out, connection.resume_writing)
    try:
        await connection.drained()
    finally:
        connection.loop.remove_writer(out)
        if connection.writing_paused:
            connection.resume_writing()


async def _read(fd: int, count: int, offset: int) -> bytes:
    data: bytes = await _promptly(os.pread, fd, count, offset, fd, count, offset)
    return data


async def _promptly(function: Callable[..., Any], fd: int, count: int, offset: int, *args: Any) -> Any:
    """``function(*args)``, which reads this part of the file: here if it is in the page cache, else in a thread."""
    if _is_cached(fd, offset) and _is_cached(fd, offset + count - 1):
        return function(*args)
    work = asyncio.get_running_loop().run_in_executor(None, partial(function, *args))
    try:
        return await asyncio.shield(work)
    finally:  # never before the thread is done, whoever cancels: the descriptors it has are closed then, and may soon be something else's
        while not work.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait((work,))


def _is_cached(fd: int, offset: int) -> bool:
    """Whether the byte can be read without waiting. Where the system or the file system does not say, it cannot."""
    if _CACHED_ONLY is None:
        return False
    try:
        return os.preadv(fd, [bytearray(1)], offset, _CACHED_ONLY) == 1
    except OSError:
        return False


def _shortened(missing: int) -> str:
    return f"The file has become shorter while it was sent: {missing} bytes are missing."
