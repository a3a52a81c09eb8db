"""A client of NATS that dials as a URL says."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from nats.aio.client import Client
from nats.errors import Error, NoServersError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class NatsClient(Client):  # type: ignore[misc, unused-ignore]
    """nats-py's, for a URL of ``laraman.net.store``. That would take what is percent-encoded in a password as it stands, go on without TLS where the
    server does not ask for it, whatever the URL says, and raise that there is no server in place of why.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = urlsplit(url)

    async def dial(self, complain: Callable[[Exception], Awaitable[None]], **options: Any) -> None:
        """One try, and no return to it. Raises OSError, TimeoutError, nats.errors.Error."""
        failure: Exception | None = None

        async def note(error: Exception) -> None:
            nonlocal failure
            failure = error
            await complain(error)

        url = self._url
        host = f"[{url.hostname}]" if ":" in str(url.hostname) else url.hostname
        user, password = (part and unquote(part) for part in (url.username, url.password))
        who: dict[str, Any] = {"token": user} if password is None else {"user": user, "password": password}
        if url.scheme == "tls":
            who["tls"] = _context(parse_qs(url.query))
        once: dict[str, Any] = {"allow_reconnect": False, "max_reconnect_attempts": 1, "reconnect_time_wait": 0}
        try:
            await self.connect(f"{url.scheme}://{host}:{url.port or 4222}", error_cb=note, **who, **once, **options)
        except NoServersError as exc:
            raise failure or exc from None

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        """nats-py would try to send the rest on a connection that is lost, fail, and tell nobody of the loss."""
        if self._err is not None:
            self._pending, self._pending_data_size = [], 0
        await super()._close(status, do_cbs)

    def _connect_command(self) -> bytes:
        """With user and password in it."""
        if self._url.scheme == "tls" and not self._server_info.get("tls_required"):
            raise Error("it does not speak TLS")
        command: bytes = super()._connect_command()
        return command


def _context(query: dict[str, list[str]]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if authorities := query.get("ssl_ca_certs"):
        context.load_verify_locations(authorities[0])
    if certificate := query.get("ssl_certfile"):
        context.load_cert_chain(certificate[0], query.get("ssl_keyfile", [None])[0])
    return context
