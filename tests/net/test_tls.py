from __future__ import annotations

import contextlib
import logging
import os
import ssl
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from laraman.config import Config
from laraman.errors import ConfigError
from laraman.net.tls import Tls, default_context, distinguished_name, make_context
from tests.certificates import Authority, Pair, encrypt, first_certificate

if TYPE_CHECKING:
    from collections.abc import Callable

PASSWORD = "correct horse battery staple"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.issue("server")


def configured(pair: Pair | None, **options: Any) -> Config:
    files = {} if pair is None else {"ssl_certfile": pair.certificate, "ssl_keyfile": pair.key}
    return replace(Config(), **{**files, **options})


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends after a handshake in memory. Raises ssl.SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [server.wrap_bio(to_server, to_client, server_side=True), client.wrap_bio(to_client, to_server, server_hostname="localhost")]
    for _ in range(3):
        for end in reversed(ends):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return ends[0], ends[1]


# Contexts -----------------------------------------------------------------------------------------------------------------------------


def test_the_context_of_the_options(authority: Authority, pair: Pair) -> None:
    server, client = shake_hands(default_context(configured(pair)), authority.client())
    assert (client.version(), server.context.verify_mode, server.context.minimum_version) == ("TLSv1.3", ssl.CERT_NONE, ssl.TLSVersion.TLSv1_2)
    offering = authority.client()
    offering.set_alpn_protocols(["h2", "http/1.1"])
    assert shake_hands(default_context(configured(pair)), offering)[1].selected_alpn_protocol() == "http/1.1"
    only = default_context(configured(pair, ssl_ciphers="ECDHE+AESGCM", ssl_version=int(ssl.PROTOCOL_TLSv1_2)))
    _, client = shake_hands(only, authority.client())
    assert (client.version(), "GCM" in str(client.cipher())) == ("TLSv1.2", True)


def test_one_file_may_hold_both_and_a_key_may_be_encrypted(authority: Authority, pair: Pair, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(Path(pair.key).read_bytes() + Path(pair.certificate).read_bytes())
    shake_hands(default_context(configured(None, ssl_certfile=str(both))), authority.client())
    locked = encrypt(pair.key, PASSWORD)
    shake_hands(default_context(configured(pair, ssl_keyfile=locked, ssl_keyfile_password=PASSWORD)), authority.client())


def wrong(directory: Path, authority: Authority, pair: Pair) -> list[tuple[dict[str, Any], str]]:
    """Options that are wrong, and the line that says so."""

    def file(name: str, text: str | bytes) -> str:
        path = directory / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    certificate, key = Path(pair.certificate).read_text(), Path(pair.key).read_text()
    damaged = file("damaged.pem", certificate.replace(certificate.splitlines()[3], "A" * 64, 1))
    damaged_key = file("damaged.key", key.replace(key.splitlines()[1], "A" * 64, 1))
    cut = file("cut.pem", certificate[: certificate.index("-----END")])
    other = authority.issue("other")
    locked = encrypt(pair.key, PASSWORD)
    text = file("text", "nothing of the kind")
    binary = file("binary", bytes(range(256)) * 10)
    return [
        ({"ssl_certfile": "/no/such.pem"}, "--ssl-certfile /no/such.pem: No such file or directory"),
        ({"ssl_certfile": str(directory)}, f"--ssl-certfile {directory}: Is a directory"),
        ({"ssl_certfile": text}, f"--ssl-certfile {text}: there is no certificate in PEM in it"),
        ({"ssl_certfile": binary}, f"--ssl-certfile {binary}: there is no certificate in PEM in it"),
        ({"ssl_certfile": pair.key}, f"--ssl-certfile {pair.key}: there is no certificate in PEM in it"),
        ({"ssl_certfile": damaged}, f"--ssl-certfile {damaged}: the certificate is damaged ("),
        ({"ssl_certfile": cut}, f"--ssl-certfile {cut}: the certificate is damaged ("),
        ({"ssl_keyfile": ""}, f"--ssl-certfile {pair.certificate}: there is no private key in PEM in it"),
        ({"ssl_keyfile": "/no/such.key"}, "--ssl-keyfile /no/such.key: No such file or directory"),
        ({"ssl_keyfile": pair.certificate}, f"--ssl-keyfile {pair.certificate}: there is no private key in PEM in it"),
        ({"ssl_keyfile": damaged_key}, f"--ssl-keyfile {damaged_key}: the private key cannot be used ("),
        ({"ssl_keyfile": other.key}, f"--ssl-keyfile {other.key}: this is not the key of the certificate {pair.certificate}"),
        ({"ssl_keyfile": locked}, f"--ssl-keyfile {locked}: the key is encrypted; set its password in the environment, as LARAMAN_SSL_KEYFILE_"),
        ({"ssl_keyfile": locked, "ssl_keyfile_password": "wrong"}, f"--ssl-keyfile {locked}: the key cannot be decrypted; the password is wrong"),
        ({"ssl_keyfile": locked, "ssl_keyfile_password": "x" * 5000}, f"--ssl-keyfile {locked}: password cannot be longer than"),
        ({"ssl_ca_certs": "/no/ca.pem", "ssl_cert_reqs": 2}, "--ssl-ca-certs /no/ca.pem: No such file or directory"),
        ({"ssl_ca_certs": text, "ssl_cert_reqs": 1}, f"--ssl-ca-certs {text}: there are no certificates in PEM in it ("),
        ({"ssl_cert_reqs": 2}, "--ssl-cert-reqs 2 needs --ssl-ca-certs: nobody's certificate could be checked"),
        ({"ssl_ciphers": "NONSENSE"}, "--ssl-ciphers 'NONSENSE' selects no cipher"),
        ({"ssl_version": 99}, "--ssl-version 99 is no version that a server of this Python speaks; 17 is any that is safe"),
        ({"ssl_version": int(ssl.PROTOCOL_TLS_CLIENT)}, "--ssl-version 16 is no version"),
        ({"ssl_certfile": ""}, "TLS needs a certificate: --ssl-certfile"),
    ]


def test_what_is_wrong_is_one_line_with_the_file_and_no_password(authority: Authority, pair: Pair, tmp_path: Path) -> None:
    for options, line in wrong(tmp_path, authority, pair):
        with pytest.raises(ConfigError) as caught:
            default_context(configured(pair, **options))
        text = str(caught.value)
        assert text.startswith(line), options
        assert "\n" not in text
        assert not (options.get("ssl_keyfile_password") and options["ssl_keyfile_password"] in text.replace(line, ""))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    path.write_text("")
    path.chmod(0)
    with pytest.raises(ConfigError, match=r"^--ssl-keyfile .*: Permission denied$"):
        default_context(configured(pair, ssl_keyfile=str(path)))


def test_a_factory_makes_the_context(authority: Authority, pair: Pair) -> None:
    asked = []

    def factory(config: Config, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        asked.append(config)
        context = default()
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        return context

    config = configured(pair, ssl_context_factory=factory)
    context = make_context(config)
    assert (asked, context.minimum_version) == ([config], ssl.TLSVersion.TLSv1_3)
    shake_hands(context, authority.client())
    with pytest.raises(ConfigError, match=r"^ssl_context_factory must return an ssl\.SSLContext, not NoneType$"):
        make_context(configured(pair, ssl_context_factory=lambda config, default: None))
    with pytest.raises(ConfigError, match=r"^TLS needs a certificate"):
        make_context(configured(None, ssl_context_factory=factory))
    own = default_context(configured(pair))
    assert make_context(configured(None, ssl_context_factory=lambda config, default: own)) is own
    with pytest.raises(ZeroDivisionError):
        make_context(configured(None, ssl_context_factory=lambda config, default: 1 / 0))


# Changed files ------------------------------------------------------------------------------------------------------------------------


def served_by(tls: Tls, authority: Authority) -> str:
    _, client = shake_hands(tls.context, authority.client())
    certificate = client.getpeercert(True)
    assert certificate is not None
    return ssl.DER_cert_to_PEM_cert(certificate)


def test_changed_files_are_taken_in_when_they_have_settled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "uvicorn.error")
    authority = Authority(tmp_path)
    pair = authority.issue("server")
    tls = Tls(configured(pair))
    before = tls.context
    for _ in range(3):
        tls.look()
    assert tls.context is before, "nothing has changed"
    old = first_certificate(pair)
    authority.issue("server")
    tls.look()
    assert served_by(tls, authority) == old, "it may be about to change further"
    tls.look()
    assert served_by(tls, authority) == first_certificate(pair) != old
    assert [record.getMessage() for record in caplog.records] == ["The TLS files have changed: new connections use them."]
    described = tls.describe(shake_hands(tls.context, authority.client())[0])
    assert described["server_cert"] == first_certificate(pair)


def test_broken_files_are_reported_once_and_the_old_ones_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "uvicorn.error")
    authority = Authority(tmp_path)
    pair = authority.issue("server")
    tls = Tls(configured(pair, ssl_ca_certs=authority.file, ssl_cert_reqs=1))
    old, key = first_certificate(pair), Path(pair.key).read_bytes()
    for path, content in ((pair.key, b""), (pair.certificate, b"broken"), (authority.file, b"")):
        caplog.clear()
        kept = Path(path).read_bytes()
        Path(path).write_bytes(content)
        for _ in range(5):
            tls.look()
        assert [record.levelname for record in caplog.records] == ["ERROR"], path
        assert path in caplog.text
        Path(path).write_bytes(kept)
        assert served_by(tls, authority) == old
    Path(pair.key).unlink()
    for _ in range(3):
        tls.look()
    Path(pair.key).write_bytes(key)
    caplog.clear()
    for _ in range(3):
        tls.look()
    assert [record.getMessage() for record in caplog.records] == ["The TLS files have changed: new connections use them."]


def test_an_authority_that_is_gone_is_trusted_no_more(tmp_path: Path) -> None:
    first, second = Authority(tmp_path), Authority(tmp_path)
    pair, mine = first.issue("server"), second.issue("client")
    tls = Tls(configured(pair, ssl_ca_certs=second.file, ssl_cert_reqs=2))
    shake_hands(tls.context, first.client(mine))
    Path(second.file).write_bytes(Path(first.file).read_bytes())
    for _ in range(2):
        tls.look()
    with pytest.raises(ssl.SSLError, match="certificate verify failed"):
        shake_hands(tls.context, first.client(mine))


def test_a_factory_is_asked_again(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("server")
    made = []

    def factory(config: Config, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        made.append(default())
        return made[-1]

    tls = Tls(configured(pair, ssl_context_factory=factory))
    authority.issue("server")
    for _ in range(2):
        tls.look()
    assert tls.context is made[1]
    assert tls.describe(shake_hands(tls.context, authority.client())[0])["server_cert"] == first_certificate(pair)
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(*pair)
    tls = Tls(configured(None, ssl_context_factory=lambda config, default: own))
    for _ in range(3):
        tls.look()
    assert tls.describe(shake_hands(tls.context, authority.client())[0])["server_cert"] is None, "who knows what it loaded"


# What is said of a connection ---------------------------------------------------------------------------------------------------------


def test_the_tls_extension_of_asgi(authority: Authority, pair: Pair) -> None:
    tls = Tls(configured(pair, ssl_ca_certs=authority.file, ssl_cert_reqs=1))
    server, client = shake_hands(tls.context, authority.client())
    cipher = client.cipher()
    assert cipher is not None
    assert tls.describe(server) == {
        "server_cert": first_certificate(pair),
        "client_cert_chain": (),
        "client_cert_name": None,
        "client_cert_error": None,
        "tls_version": 0x0304,
        "cipher_suite": {"TLS_AES_128_GCM_SHA256": 0x1301, "TLS_AES_256_GCM_SHA384": 0x1302, "TLS_CHACHA20_POLY1305_SHA256": 0x1303}[cipher[0]],
    }
    mine = authority.issue("client", common_name='Ada, "the" first', organization="Analytical + Engines")
    old = authority.client(mine)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256")
    described = tls.describe(shake_hands(tls.context, old)[0])
    assert described["client_cert_chain"][0] == first_certificate(mine)
    assert described["client_cert_name"].startswith('CN=Ada\\, \\"the\\" first,')
    assert described["client_cert_name"].endswith("O=Analytical \\+ Engines")
    assert (described["tls_version"], described["cipher_suite"] in (0xC02B, 0xC02F)) == (0x0303, True)


@pytest.mark.parametrize(
    ("subject", "name"),
    [
        ((), ""),
        (((("countryName", "GB"),), (("organizationName", "Sales"),), (("commonName", "Steve"),)), "CN=Steve,O=Sales,C=GB"),
        (((("domainComponent", "net"),), (("organizationalUnitName", "Sales"), ("commonName", "J."))), "OU=Sales+CN=J.,DC=net"),
        (((("commonName", " #x "),),), "CN=\\ #x\\ "),
        (((("commonName", "#x"),),), "CN=\\#x"),
        (((("commonName", " "),),), "CN=\\ "),
        (((("commonName", 'a"+,;<>\\=\0é'),),), 'CN=a\\"\\+\\,\\;\\<\\>\\\\=\\00é'),
        (((("emailAddress", "a@b"),),), "emailAddress=a@b"),
    ],
)
def test_names_are_written_as_rfc_4514_says(subject: Any, name: str) -> None:
    assert distinguished_name(subject) == name
