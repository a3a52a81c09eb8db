"""TLS of the server's side: the context that the ``ssl_*`` options ask for, kept in step with its files, and what it says of a connection."""

from __future__ import annotations

import logging
import os
import ssl
import warnings
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakKeyDictionary

from laraman.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

logger = logging.getLogger("uvicorn.error")

_PASSWORD_VARIABLE = "LARAMAN_SSL_KEYFILE_PASSWORD"
_VERSIONS = {"TLSv1": 0x0301, "TLSv1.1": 0x0302, "TLSv1.2": 0x0303, "TLSv1.3": 0x0304}
#: Short names of RFC 4514 section 3 for those that Python's ssl module writes out; others stand as they are.
_SHORT = {
    "commonName": "CN",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "streetAddress": "STREET",
    "domainComponent": "DC",
    "userId": "UID",
}

#: What each context that was made here sends first: the server's own certificate. Of a context nothing of the kind can be asked.
_certificates: WeakKeyDictionary[ssl.SSLContext, str] = WeakKeyDictionary()

Signature = tuple[tuple[int, int, int] | None, ...]


class Tls:
    """The context for new connections. Raises ConfigError with one line that names the file.

    ``look`` notices that the files have changed and then makes the context anew, whole: what is wrong with them is said once, and the old one stays.
    Connections keep the one that they began with.
    """

    def __init__(self, config: Any) -> None:
        self._config = config
        self._files = [path for path in (config.ssl_certfile, config.ssl_keyfile, config.ssl_ca_certs) if path]
        self._loaded = self._seen = self._signature()
        self._ciphers: dict[str, int] = {}
        self.context = self._make()

    def _make(self) -> ssl.SSLContext:
        context = make_context(self._config)
        self._ciphers.update((cipher["name"], cipher["id"] & 0xFFFF) for cipher in context.get_ciphers())
        return context

    def _signature(self) -> Signature:
        """What tells a file from the one that takes its place: inode, size, time of change."""
        return tuple(_identity(path) for path in self._files)

    def look(self) -> None:
        """Take changed files in, once they are the same at two looks: a certificate and its key are seldom replaced in one moment."""
        now = self._signature()
        settled, self._seen = now == self._seen, now
        if not settled or now == self._loaded:
            return
        self._loaded = now
        try:
            self.context = self._make()
        except Exception as exc:  # a factory of the user's may raise anything
            logger.error("The TLS files have changed and cannot be used, the old ones stay: %s", exc)
        else:
            logger.info("The TLS files have changed: new connections use them.")

    def describe(self, connection: ssl.SSLObject) -> dict[str, Any]:
        """The entries of the ASGI TLS extension 0.2 for a connection whose handshake is complete.

        The chain is the certificate alone before Python 3.13, which is the first to tell more. It is verified: else there is no connection.
        """
        cipher = connection.cipher()
        chain = _client_chain(connection)
        subject: Any = (connection.getpeercert() or {}).get("subject", ()) if chain else ()
        return {
            "server_cert": _certificates.get(connection.context),
            "client_cert_chain": chain,
            "client_cert_name": distinguished_name(subject) if chain else None,
            "client_cert_error": None,
            "tls_version": _VERSIONS.get(connection.version() or ""),
            "cipher_suite": self._ciphers.get(cipher[0]) if cipher else None,
        }


def _client_chain(connection: ssl.SSLObject) -> tuple[str, ...]:
    if connection.context.verify_mode == ssl.CERT_NONE:
        return ()
    leaf = connection.getpeercert(True)
    if not leaf:
        return ()
    tell = getattr(connection, "get_unverified_chain", None)  # what the client has sent; Python 3.13
    return tuple(ssl.DER_cert_to_PEM_cert(certificate) for certificate in (tell() if tell is not None else [leaf]))


def distinguished_name(subject: Iterable[Iterable[tuple[str, str]]]) -> str:
    """A subject of ``getpeercert`` as RFC 4514 writes it: the last part first, several values of one part joined with ``+``."""
    parts = ["+".join(f"{_SHORT.get(name, name)}={_escaped(value)}" for name, value in part) for part in subject]
    return ",".join(reversed(parts))


def _escaped(value: str) -> str:
    """RFC 4514 section 2.4."""
    text = "".join(f"\\{character}" if character in '"+,;<>\\' else "\\00" if character == "\0" else character for character in value)
    if text[:1] in (" ", "#"):
        text = f"\\{text}"
    return f"{text[:-1]}\\ " if text.endswith(" ") and len(value) > 1 else text


def _identity(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


# Contexts -----------------------------------------------------------------------------------------------------------------------------


def make_context(config: Any) -> ssl.SSLContext:
    """The context that the options ask for, by ``ssl_context_factory(config, default_factory)`` where there is one.

    Raises ConfigError; what the factory raises comes out as it is.
    """
    if config.ssl_context_factory is None:
        return default_context(config)
    context = config.ssl_context_factory(config, lambda: default_context(config))
    if not isinstance(context, ssl.SSLContext):
        raise ConfigError(f"ssl_context_factory must return an ssl.SSLContext, not {type(context).__name__}")
    return context


def default_context(config: Any) -> ssl.SSLContext:
    """The context of the files and words in ``config``; it speaks HTTP/1.1 by ALPN (RFC 7301). Raises ConfigError."""
    if not config.ssl_certfile:
        raise ConfigError("TLS needs a certificate: --ssl-certfile")
    context = _context(config.ssl_version)
    _load_pair(context, config.ssl_certfile, config.ssl_keyfile or None, config.ssl_keyfile_password)
    _load_authorities(context, config.ssl_cert_reqs, config.ssl_ca_certs)
    if config.ssl_ciphers:
        try:
            context.set_ciphers(config.ssl_ciphers)
        except ssl.SSLError:
            raise ConfigError(f"--ssl-ciphers {config.ssl_ciphers!r} selects no cipher") from None
    context.set_alpn_protocols(["http/1.1"])
    _certificates[context] = _first_certificate(config.ssl_certfile)
    return context


def _context(version: int) -> ssl.SSLContext:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # whoever asks for an old one by its number knows
            context = ssl.SSLContext(version)
        if version == ssl.PROTOCOL_TLS_SERVER and context.minimum_version < ssl.TLSVersion.TLSv1_2:  # as some distributions leave it
            context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
    except (ValueError, ssl.SSLError):
        raise ConfigError(f"--ssl-version {version} is no version that a server of this Python speaks; 17 is any that is safe") from None
    return context


def _load_pair(context: ssl.SSLContext, certificate: str, key: str | None, password: str) -> None:
    asked = []

    def give() -> str:  # always: without it OpenSSL would ask at the terminal
        asked.append(True)
        return password

    certificates = _read("--ssl-certfile", certificate)
    keys, where = (_read("--ssl-keyfile", key), f"--ssl-keyfile {key}") if key else (certificates, f"--ssl-certfile {certificate}")
    if "-----BEGIN CERTIFICATE-----" not in certificates:
        raise ConfigError(f"--ssl-certfile {certificate}: there is no certificate in PEM in it")
    if "PRIVATE KEY-----" not in keys:
        raise ConfigError(f"{where}: there is no private key in PEM in it")
    try:
        context.load_cert_chain(certificate, key, give)
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"{where}: this is not the key of the certificate {certificate}") from None
        if asked and not password:
            raise ConfigError(f"{where}: the key is encrypted; set its password in the environment, as {_PASSWORD_VARIABLE}") from None
        if asked:
            raise ConfigError(f"{where}: the key cannot be decrypted; the password is wrong") from None
        _blame_one(certificate, certificates, where, exc)
    except (OSError, ValueError) as exc:  # a password that is too long
        raise ConfigError(f"{where}: {exc}") from None


def _blame_one(certificate: str, certificates: str, where: str, exc: ssl.SSLError) -> NoReturn:
    """OpenSSL does not say which of the two files it could not read."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=certificates)
    except ssl.SSLError:
        raise ConfigError(f"--ssl-certfile {certificate}: the certificate is damaged ({_reason(exc)})") from None
    raise ConfigError(f"{where}: the private key cannot be used ({_reason(exc)})") from None


def _load_authorities(context: ssl.SSLContext, required: int, authorities: str) -> None:
    context.verify_mode = ssl.VerifyMode(required)
    if authorities:
        _read("--ssl-ca-certs", authorities)
        try:
            context.load_verify_locations(authorities)
        except ssl.SSLError as exc:
            raise ConfigError(f"--ssl-ca-certs {authorities}: there are no certificates in PEM in it ({_reason(exc)})") from None
    elif required == ssl.CERT_REQUIRED:
        raise ConfigError("--ssl-cert-reqs 2 needs --ssl-ca-certs: nobody's certificate could be checked")


def _read(option: str, path: str) -> str:
    try:
        with open(path, encoding="latin-1") as file:
            return file.read()
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{option} {path}: {getattr(exc, 'strerror', None) or exc}") from None


def _reason(exc: ssl.SSLError) -> str:
    return (exc.reason or str(exc)).replace("_", " ").lower()


def _first_certificate(path: str) -> str:
    """The certificate that is sent first: the server's own."""
    text = _read("--ssl-certfile", path)
    end = "-----END CERTIFICATE-----"
    return text[text.index("-----BEGIN CERTIFICATE-----") : text.index(end) + len(end)] + "\n"
