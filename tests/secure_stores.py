"""Redis and NATS with TLS and passwords: the URLs by which they let one in, and those by which they do not."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from tests.certificates import Authority
from tests.conftest import free_ports
from tests.stores import store_server

if TYPE_CHECKING:
    from pathlib import Path

#: What has a meaning in a URL is in it.
PASSWORD = "p@ss/w%3Ard:#?"


class SecureStore:
    """A server with a certificate of its own authority, and a user ``bob``."""

    def __init__(self, program: str, directory: Path) -> None:
        self.authority = Authority(directory)
        pair = self.authority.issue("server")
        if program == "redis-server":
            (port,) = free_ports(1)
            tls = ["--tls-port", str(port), "--tls-cert-file", pair.certificate, "--tls-key-file", pair.key, "--tls-auth-clients", "no"]
            self.server = store_server(program, directory, *tls, "--user", "bob", "on", f">{PASSWORD}", "~*", "&*", "+@all", "--requirepass", "none")
            self.scheme, self.port = "rediss", port
        else:
            tls = ["--tls", "--tlscert", pair.certificate, "--tlskey", pair.key]
            self.server = store_server(program, directory, *tls, "--user", "bob", "--pass", PASSWORD)
            self.scheme, self.port = "tls", self.server.port

    @property
    def place(self) -> str:
        """What may be said of it."""
        return f"{self.scheme}://localhost:{self.port}"

    def url(self, password: str = PASSWORD, authority: str | None = None) -> str:
        """``authority``: the file of those that are trusted; "" for only the system's."""
        query = self.authority.file if authority is None else authority
        return f"{self.scheme}://bob:{quote(password, safe='')}@localhost:{self.port}{query and f'?ssl_ca_certs={quote(query)}'}"
