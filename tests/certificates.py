"""Certificates of an authority that every test makes for itself, as the files that a user has, and clients that know the authority."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NamedTuple

import trustme
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat, load_pem_private_key


class Pair(NamedTuple):
    """A certificate's file, with its chain, and its key's."""

    certificate: str
    key: str

    @property
    def options(self) -> tuple[str, ...]:
        return ("--ssl-certfile", self.certificate, "--ssl-keyfile", self.key)


class Authority:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._authority = trustme.CA()
        self.file = str(directory / f"authority-{id(self)}.pem")
        self._authority.cert_pem.write_to_path(self.file)

    def issue(self, name: str, *hosts: str, common_name: str | None = None, organization: str | None = None) -> Pair:
        """A new pair in the files of this name; another one takes the place of those that are there, as a program that renews does it."""
        made = self._authority.issue_cert(*(hosts or ("localhost", "127.0.0.1", "::1")), common_name=common_name, organization_name=organization)
        pair = Pair(str(self._directory / f"{name}.pem"), str(self._directory / f"{name}.key"))
        chain = b"".join(blob.bytes() for blob in made.cert_chain_pems)
        for path, content in ((pair.certificate, chain), (pair.key, made.private_key_pem.bytes())):
            new = Path(f"{path}.new")
            new.write_bytes(content)
            new.replace(path)
        return pair

    def client(self, pair: Pair | None = None) -> ssl.SSLContext:
        """The context of a client that trusts this authority, and shows a certificate when it has one."""
        context = ssl.create_default_context(cafile=self.file)
        if pair is not None:
            context.load_cert_chain(*pair)
        return context


def encrypt(key: str, password: str) -> str:
    """The same key in a file beside it, encrypted."""
    clear = load_pem_private_key(Path(key).read_bytes(), None)
    path = f"{key}.encrypted"
    Path(path).write_bytes(clear.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password.encode())))
    return path


def first_certificate(pair: Pair) -> str:
    text = Path(pair.certificate).read_text()
    end = "-----END CERTIFICATE-----"
    return text[: text.index(end) + len(end)] + "\n"
