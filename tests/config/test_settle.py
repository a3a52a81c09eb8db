"""Options that exclude each other, and what is only worth a remark."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from laraman.config import Config
from laraman.config.gateway import GatewayConfig
from laraman.config.settle import remarks
from laraman.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fd": "3", "uds": "x.sock"}, "--fd and --uds exclude each other: each says where to listen"),
        ({"bind": ["unix:x"], "port": "80"}, "--bind and --port exclude each other"),
        ({"bind": ["unix:x"], "host": "::1"}, "--bind and --host exclude each other"),
        ({"bind": ["unix:x"], "uds": "x"}, "--bind and --uds exclude each other"),
        ({"bind": ["unix:x"], "fd": "0"}, "--bind and --fd exclude each other"),
        ({"ssl_keyfile": "key.pem"}, "--ssl-keyfile needs a certificate as well: --ssl-certfile"),
        ({"ssl_keyfile_password": "hush"}, "--ssl-keyfile-password needs a certificate as well: --ssl-certfile"),
        ({"ssl_ca_certs": "ca.pem"}, "--ssl-ca-certs needs a certificate as well: --ssl-certfile"),
        ({"ssl_cert_reqs": "2"}, "--ssl-cert-reqs needs a certificate as well: --ssl-certfile"),
    ],
)
def test_a_contradiction_is_one_line(given: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}[^\n]*$"):
        Config.load(given, {}, None)


def test_both_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^UVICORN_FD and LARAMAN_UDS exclude each other"):
        Config.load({}, {"UVICORN_FD": "3", "LARAMAN_UDS": "x"}, None)
    file = tmp_path / "pyproject.toml"
    file.write_text("[tool.laraman]\nport = 1\nbind = ['unix:x']\n")
    with pytest.raises(ConfigError, match=r"pyproject.toml: \[tool.laraman\] bind and .*pyproject.toml: \[tool.laraman\] port exclude each other"):
        Config.load({}, {}, file)


def test_an_address_of_a_stronger_place_replaces_the_others(tmp_path: Path) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_text("[tool.laraman]\nbind = ['127.0.0.1:1', 'unix:x']\n")
    assert (config := Config.load({"port": "9000"}, {}, file)).bind == ()
    assert config.port == 9000
    assert (config := Config.load({}, {"LARAMAN_FD": "3"}, file)).bind == ()
    assert config.fd == 3
    file.write_text("[tool.laraman]\nport = 1\nuds = 'x'\n")
    config = Config.load({"bind": ["127.0.0.1:2"]}, {}, file)
    assert (config.bind, config.port, config.uds) == (("127.0.0.1:2",), 8000, "")
    assert Config.load({"fd": "0"}, {"UVICORN_UDS": "x"}, None).uds == ""


def test_a_host_beside_a_socket_is_not_used_as_in_uvicorn() -> None:
    config = Config.load({"uds": "x", "host": "0.0.0.0", "port": "80"}, {}, None)
    assert (config.uds, config.host, config.port) == ("x", "0.0.0.0", 80)


def test_nothing_said_is_no_contradiction() -> None:
    config = Config.load({"uds": "", "fd": "0", "ssl_keyfile": "", "ssl_cert_reqs": "0"}, {}, None)
    assert (config.uds, config.fd) == ("", 0)


def test_what_has_no_effect_on_a_program_of_workers_is_told() -> None:
    assert remarks(Config(interface="workers", port=0)) == remarks(Config(app="x:y", workers=2, port=1)) == []
    ignored = "flag is ignored for a program of Workers, each of which says its own"
    told = [f'"workers" {ignored} count.', *(f'"{name}" {ignored} address.' for name in ("host", "port"))]
    assert remarks(Config(interface="workers", workers=2, host="::", port=1)) == told
    assert remarks(Config(workers=2, host="::", port=1)) == told, "declared in the configuration, or run_workers"
    assert remarks(Config(port=1, gateway=GatewayConfig(embedded=True))) == []
    assert remarks(Config(interface="workers", fd=3)) == [f'"fd" {ignored} address.']


def test_remarks_are_uvicorn_s() -> None:
    assert remarks(Config(app="x:y", workers=2)) == remarks(Config(reload=True)) == remarks(Config(reload=True, reload_dirs=("x",))) == []
    assert remarks(Config(app="x:y", workers=2, reload=True)) == ['"workers" flag is ignored when reloading is enabled.']
    no_reload = ["Current configuration will not reload as not all conditions are met, please refer to documentation."]
    assert remarks(Config(reload_dirs=("x",))) == remarks(Config(reload_includes=("x",))) == remarks(Config(reload_excludes=("x",))) == no_reload
