"""Options that say different things: which one counts, and which are a mistake."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from laraman.errors import ConfigError

if TYPE_CHECKING:
    from laraman.config import Config
    from laraman.config.options import Origin

#: Each is where to listen. A host and a port beside a unix socket or a descriptor are no contradiction: they are not used, as in uvicorn.
_ADDRESSES = (("fd", "uds"), ("bind", "fd"), ("bind", "uds"), ("bind", "host"), ("bind", "port"))
#: What two options that exclude each other both say.
_EXCLUSIVE = {**dict.fromkeys(_ADDRESSES, "where to listen"), ("log_config", "log_file"): "where the log goes"}
#: What is only for a server that speaks TLS, which one without a certificate does not: better no start than one that is not encrypted.
_NEEDS_CERTIFICATE = ("ssl_keyfile", "ssl_keyfile_password", "ssl_ca_certs", "ssl_cert_reqs")


def settle(values: dict[str, Any], places: dict[str, Origin]) -> None:
    """Of two that exclude each other only the one from the stronger place stays. Raises ConfigError with one line that names both."""
    for (one, other), what in _EXCLUSIVE.items():
        if values.get(one) not in (None, "", ()) and values.get(other) not in (None, ""):
            _drop_the_weaker(one, other, what, values, places)
    if not values.get("ssl_certfile") and not values.get("ssl_context_factory"):
        for name in _NEEDS_CERTIFICATE:
            if values.get(name):
                raise ConfigError(f"{places[name].name} needs a certificate as well: --ssl-certfile")
    if values.get("http2"):
        raise ConfigError(f"{places['http2'].name}: laraman speaks HTTP/1.1 and websockets; HTTP/2 is for the proxy in front of it")
    if values.get("interface") == "wsgi":  # which has no websockets: a handshake is a request like any other to it, as in uvicorn
        values["ws"] = "none"
        places["ws"] = places["interface"]


def _drop_the_weaker(one: str, other: str, what: str, values: dict[str, Any], places: dict[str, Origin]) -> None:
    if places[one].place == places[other].place:
        raise ConfigError(f"{places[one].name} and {places[other].name} exclude each other: each says {what}")
    weaker = max(one, other, key=lambda name: places[name].place)
    del values[weaker], places[weaker]


def _without_application(config: Config) -> list[str]:
    """A program of Workers has in their declarations what these options say of an application."""
    default = type(config)()
    given = [name for name in ("workers", "host", "port", "bind", "uds", "fd") if getattr(config, name) not in (0, getattr(default, name))]
    ignored = "flag is ignored for a program of Workers, each of which says its own"
    return [f'"{name}" {ignored} {"count" if name == "workers" else "address"}.' for name in given]


def remarks(config: Config) -> list[str]:
    """What is to be said about a configuration that is no mistake, in uvicorn's words."""
    found = []
    if config.reload and config.workers > 1:
        found.append('"workers" flag is ignored when reloading is enabled.')
    if not config.reload and (config.reload_dirs or config.reload_includes or config.reload_excludes):
        found.append("Current configuration will not reload as not all conditions are met, please refer to documentation.")
    if config.interface == "workers" or (config.app == "" and not config.gateway.embedded):
        found += _without_application(config)
    return found
