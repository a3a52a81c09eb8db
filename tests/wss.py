"""A blocking websocket client over TLS for tests.

The threads of ``websockets.sync`` read and write one TLS object at the same time, which OpenSSL does not allow: now and then a handshake's answer is
not seen, whatever the server. This one lives in one event loop.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import anyio.from_thread
from websockets.asyncio.client import ClientConnection, connect

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    from anyio.abc import BlockingPortal


class Client:
    """What tests use of ``websockets.sync.client.ClientConnection``."""

    def __init__(self, portal: BlockingPortal, connection: ClientConnection) -> None:
        self._portal = portal
        self._connection = connection

    @property
    def close_code(self) -> int | None:
        return self._connection.close_code

    def send(self, message: str | bytes) -> None:
        self._portal.call(self._connection.send, message)

    def recv(self, timeout: float | None = None) -> str | bytes:
        """Raises TimeoutError after ``timeout`` seconds."""

        async def receive() -> str | bytes:
            with anyio.fail_after(timeout):
                return await self._connection.recv()

        return self._portal.call(receive)


@contextlib.contextmanager
def wss(url: str, context: ssl.SSLContext, **options: Any) -> Iterator[Client]:
    """Connect to ``url``; closed at the end."""

    async def open_connection() -> contextlib.AbstractAsyncContextManager[ClientConnection]:
        return connect(url, ssl=context, proxy=None, **options)

    with anyio.from_thread.start_blocking_portal() as portal, portal.wrap_async_context_manager(portal.call(open_connection)) as connection:
        yield Client(portal, connection)
