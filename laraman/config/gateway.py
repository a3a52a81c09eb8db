"""``[tool.laraman.gateway]``: the gateways this server talks to, and the one it runs itself."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from laraman.config.options import COMMAND_LINE, ENVIRONMENT, Origin, Section, option
from laraman.errors import ConfigError

if TYPE_CHECKING:
    from laraman.config.options import Sources

HEARTBEAT = "~6YOt5rW35piO~"


def _address(text: str) -> str:
    """``host:port``; the protocols have no room for anything else."""
    host, colon, port = text.rpartition(":")
    if text and not (colon and host and re.fullmatch(r"[\w.:\[\]-]+", host) and re.fullmatch(r"[0-9]{1,5}", port) and int(port) <= 65535):
        raise ValueError(f"{text!r} is not of the form host:port")
    return text


def _known_port(text: str) -> str:
    """A ``host:port`` that others have to know before anything runs there."""
    if _address(text).endswith(":0"):
        raise ValueError(f"{text!r} has no port")
    return text


def _origin(text: str) -> str:
    if text != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", text):
        raise ValueError(f"{text!r} is neither '*' nor an origin like https://example.com")
    return text


def _path(text: str) -> str:
    if not text.startswith("/") or not text.isprintable() or " " in text:
        raise ValueError(f"{text!r} is not a path")
    return text


def _prefix(text: str) -> str:
    if text and not re.fullmatch(r"[0-9a-f]{12}", text):
        raise ValueError(f"{text!r} is not the first 12 characters of a uniqId: 8 hex digits of the address, 4 of the port")
    return text


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Everything about websocket gateways. Times are in seconds, unless the name says otherwise, sizes in bytes.

    The names are those of the PHP client's configuration; both spellings are read, ``worker_addr`` and ``workerAddr``. Without a flag are the
    options of the business side, which ``laraman gateway`` is not, and the secret, which is not for a command line that everybody can read.
    """

    embedded: bool = option(False, "Run a gateway in this server.", metavar="BOOLEAN", flags=None)
    listen: str = option("127.0.0.1:6060", "Where the embedded gateway accepts browsers.", parse=_address, metavar="HOST:PORT")
    worker_addr: str = option("127.0.0.1:6061", "Where the gateway gives events to workers.", parse=_known_port, metavar="HOST:PORT")
    task_addr: str = option(
        "127.0.0.1:6062",
        "Where the gateway takes commands; empty or absent beside `worker_addr`: the same.",
        parse=_known_port,
        metavar="HOST:PORT",
    )
    secret: str = option("", "Shared secret of the worker and task ports; only laraman's gateways have one.", flags=None, secret=True)

    events: int = option(7, "What to be told of: 1 opens + 2 closes + 4 messages.", low=1, high=7, flags=None)
    dialect: Literal["auto", "d8", "d5", "d3"] = option("auto", "Generation of the gateway: `d8` 8.x, `d5` 5.x to 7.x, `d3` 4.x.")
    process_cmd_goroutine_num: int = option(
        0, "Command goroutines of a connection, in gateways before 8.0; above 1 there is no order.", low=0, flags=None
    )
    prefix: str = option("", "First 12 characters of the gateway's uniqIds, where they are not its address.", parse=_prefix)
    workers: tuple[str, ...] = option(("http",), "Workers that events are given to.", flags=None)
    connect_timeout: float = option(5.0, "Seconds to connect and register.", low=0.01, flags=None)
    send_receive_timeout: float = option(5.0, "Seconds to wait for a gateway that is down, and for an answer.", low=0.01, flags=None)
    max_idle_time: float = option(117.0, "Seconds of silence after which a connection is tried before it is used.", low=0.01, flags=None)
    worker_heartbeat_message: str = option(HEARTBEAT, "Heartbeat text of the worker port.")
    task_heartbeat_message: str = option(HEARTBEAT, "Heartbeat text of the task port.")
    heartbeat_interval_millisecond: int = option(25_000, "Milliseconds between heartbeats.", low=10, flags=None)
    task_connections: int = option(
        1, "Connections for commands; with several, only the commands for one client keep their order.", low=1, high=64, flags=None
    )
    queue: int = option(1000, "Commands that may wait while the gateway does not read.", low=1, flags=None)
    overflow: Literal["wait", "drop_oldest", "error"] = option("wait", "What happens to a command for which there is no room.", flags=None)
    concurrency: int = option(256, "Messages that a worker handles at once; those of one client one after another.", low=1, flags=None)
    message_timeout: float = option(60.0, "Seconds a message handler may take; 0 for no limit.", low=0, flags=None)

    path: str = option("/", "Path of the browsers' websocket.", parse=_path)
    origins: tuple[str, ...] = option((), "Origins to let in besides pages of the same host; `*` is any.", flags=("--origin",), parse=_origin)
    send_type: Literal["text", "binary"] = option("text", "Websocket message type of data whose sender does not say.")
    max_size: int = option(2 * 1024 * 1024, "Largest message of a browser, and largest frame of a worker.", low=1)
    max_clients: int = option(100_000, "Most connections of browsers.", low=1)
    handshake_timeout: float = option(10.0, "Seconds to finish the websocket handshake.", low=0.01)
    idle_timeout: float = option(120.0, "Seconds without a sign of life after which a browser is closed.", low=0.01)
    ping_interval: float = option(45.0, "Seconds of silence after which a browser is pinged; 0 sends no pings.", low=0)
    client_heartbeat_message: str = option("~3yPvmnz~", "Message of a browser that only says it is alive; empty for none.")
    buffer: int = option(1024 * 1024, "Bytes that a slow browser may be behind.", low=1024)
    slow_reader: Literal["close", "drop_oldest", "drop_newest"] = option("close", "What happens to a browser, or its messages, beyond that.")
    rate: float = option(100.0, "Messages a second of one browser; beyond it, it is read more slowly. 0 for no limit.", low=0)
    burst: int = option(1000, "Messages of one browser that may come at once.", low=1)
    open_rate: int = option(0, "Browsers let in per second, by the whole gateway; 0 for no limit.", low=0)
    message_rate: int = option(0, "Messages passed on per second, by the whole gateway; 0 for no limit.", low=0)
    deflate: bool = option(True, "Offer compression to browsers.", metavar="BOOLEAN")
    hold: float = option(5.0, "Seconds that events are kept while no worker is there to take them.", low=0)
    read_deadline: float = option(120.0, "Seconds of silence after which a worker's connection is closed.", low=0.01)
    send_deadline: float = option(10.0, "Seconds a worker may read nothing.", low=0.01)

    netsvr: tuple[GatewayConfig, ...] = ()

    @property
    def gateways(self) -> tuple[GatewayConfig, ...]:
        """One complete configuration for each gateway that this server talks to."""
        return (*((self,) if self.embedded else ()), *self.netsvr)

    @property
    def enabled(self) -> bool:
        """Whether there is a gateway at all."""
        return bool(self.gateways)

    @classmethod
    def load(cls, sources: Sources, table: Any) -> GatewayConfig:
        """From the command line, the environment and the table. On the command line ``listen`` and ``gateway``, its short form, turn the embedded
        one on, and so does LARAMAN_GATEWAY.

        Raises ConfigError with one line that names the source.
        """
        section = GATEWAY
        common = _table(table, section, sources.file)
        entries = common.pop("netsvr", [])
        names = [name for name in section.options if name != "netsvr"]
        given = section.values(sources, common, names, "gateway.")
        short = _short_form(sources)
        if short and sources.cli.get("listen") is None:
            given["listen"], sources.places["gateway.listen"] = short
        if short or sources.cli.get("listen") is not None:
            given["embedded"], sources.places["gateway.embedded"] = True, sources.places["gateway.listen"]
        if not isinstance(entries, list):
            raise ConfigError(f"{sources.file}: {section.title} netsvr: {entries!r} is not a list of tables")
        made = []
        for number, entry in enumerate(entries):
            only_file = replace(sources, cli={}, env={})
            own = section.values(only_file, _entry(entry, section, sources.file), names, f"gateway.netsvr.{number}.")
            made.append(cls(**_addressed({**given, "embedded": False, **own})))
        if not made and not given.get("embedded") and ("worker_addr" in given or "task_addr" in given):
            made.append(cls(**_addressed(given)))
        loaded = replace(cls(**given), netsvr=tuple(made))
        _check_different(loaded.gateways, sources.file)
        return loaded


def _short_form(sources: Sources) -> tuple[str, Origin] | None:
    """The address that ``--gateway``, else LARAMAN_GATEWAY, says. Raises ConfigError under that name."""
    spoken = (Origin(COMMAND_LINE, "--gateway"), sources.cli.get("gateway"))
    named = (Origin(ENVIRONMENT, sources.variable("LARAMAN_GATEWAY")), sources.env.get("LARAMAN_GATEWAY"))
    for origin, text in (spoken, named):
        if text:
            try:
                return _address(text), origin
            except ValueError as exc:
                raise ConfigError(f"{origin.name}: {exc}") from None
    return None


def _check_different(gateways: tuple[GatewayConfig, ...], file: str) -> None:
    """One that was there twice would be registered with twice, and everything would be sent twice."""
    addresses = [gateway.task_addr or gateway.worker_addr for gateway in gateways]
    for address in addresses:
        if addresses.count(address) > 1:
            raise ConfigError(f"{file}: [tool.laraman.gateway] has {address} twice")


def _entry(entry: Any, section: Section, file: str) -> dict[str, Any]:
    table = _table(entry, section, file)
    for name in ("embedded", "netsvr"):
        if name in table:
            raise ConfigError(f"{file}: {section.title} netsvr: {name} is not for one of several gateways")
    return table


def _table(table: Any, section: Section, file: str) -> dict[str, Any]:
    """The table with laraman's spelling of its keys."""
    if not isinstance(table, dict):
        raise ConfigError(f"{file}: {section.title}: {table!r} is not a table")
    spelled = {re.sub("[A-Z]", lambda match: "_" + match[0].lower(), key): key for key in table}
    renamed = {name: table[key] for name, key in spelled.items()}
    section.check_names(renamed, file, spelled)
    return renamed


def _addressed(given: dict[str, Any]) -> dict[str, Any]:
    """A gateway elsewhere has the ports it is said to have: one for everything where there is no ``task_addr``, no events without ``worker_addr``."""
    if "worker_addr" not in given and "task_addr" not in given:
        raise ConfigError("[tool.laraman.gateway] netsvr: an entry needs workerAddr, taskAddr or both")
    return {"worker_addr": "", "task_addr": "", **given}


#: The options as the loader, the command line and the README need them.
GATEWAY = Section.of(GatewayConfig, "[tool.laraman.gateway]", "LARAMAN_GATEWAY_")
