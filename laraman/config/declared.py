"""What the declaration of a Worker may say, in a program or in ``[tool.laraman.workers.NAME]``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from laraman.config import texts
from laraman.config.options import Section, did_you_mean, option
from laraman.errors import ConfigError

if TYPE_CHECKING:
    from laraman.config.options import Sources

#: The application's own worker, whose count is the option ``workers``.
HTTP = "http"
#: Options that no single worker can have for itself: they are read in the master, or are what the server is.
WHOLE = frozenset(
    {
        *("app", "app_dir", "listeners", "env_file", "gateway", "declared", "sandbox", "workers", "preload", "daemon", "name", "state_dir"),
        *("host", "port", "uds", "uds_mode", "fd", "bind", "backlog", "http2"),
        *("reload", "reload_dirs", "reload_includes", "reload_excludes", "reload_delay"),
        *("log_level", "log_config", "log_brand", "access_log", "log_file", "use_colors"),
    }
)


@dataclass(frozen=True, slots=True)
class Declaration:
    """A Worker's own words beside its name; None is what the server has. Times are in seconds, sizes in bytes."""

    address: tuple[str, ...] = option((), "Where its processes listen, as `text://127.0.0.1:8888`; one or a list. None: they only work.", flags=None)
    count: int = option(1, "Processes: a number, `auto` (one per CPU) or `auto*N`.", low=0, high=4096, parse=texts.workers, flags=None)
    handler: str = option("", "What is told of its life, its connections and their messages: `package.module:attribute`.", flags=None)
    protocol: str = option("", "Codec in place of the one that the address names: `package.module:attribute`.", flags=None)
    stop_timeout: float | None = option(None, "Seconds a stop may take; `timeout_graceful_shutdown` where it is not given.", low=0, flags=None)
    exclusive: bool = option(False, "Never two processes in one slot: a reload leaves it alone, a restart ends the old one first.", flags=None)
    reuse_port: bool = option(False, "Each process listens on a socket of its own, and the kernel spreads connections.", flags=None)
    mode: str = option("", "Permissions of its unix sockets, in octal.", parse=texts.mode, flags=None)
    socket_group: str = option("", "Group of its unix sockets.", parse=texts.group, flags=None)
    allow_users: tuple[str, ...] = option((), "Users that may talk to it over its unix sockets, by name or number; all when empty.", flags=None)
    max_connections: int | None = option(None, "Connections of a process from which on it accepts no more until one is gone.", low=1, flags=None)
    max_message: int | None = option(None, "Largest message, in bytes or as `10MB`.", low=1, parse=texts.size, flags=None)
    write_buffer: int | None = option(None, "Bytes that may wait for a slow peer before sending waits.", low=0, parse=texts.size, flags=None)


WORKER = Section.of(Declaration, "[tool.laraman.workers]")


def check_names(names: Any, server: Section, where: str) -> None:
    """Raises ConfigError, which begins with ``where``, for a name that is neither a Worker's own nor a server's option that a Worker may have."""
    for name in names:
        if name in WHOLE:
            raise ConfigError(f"{where} cannot have {name!r}, which is the whole server's")
        if name not in WORKER.options and name not in server.options:
            raise ConfigError(f"{where} has no option {name!r}{did_you_mean(name, [*WORKER.options, *(server.options.keys() - WHOLE)])}")


def load(sources: Sources, tables: Any, server: Section) -> tuple[tuple[str, dict[str, Any]], ...]:
    """The names of the Workers in ``[tool.laraman.workers]``, and what each is declared with. Raises ConfigError with one line that names the key."""
    sources = replace(sources, cli={}, env={})
    return tuple((name, _one(sources, table, server, f"[tool.laraman.workers.{name}]")) for name, table in tables.items())


def _one(sources: Sources, table: Any, server: Section, title: str) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ConfigError(f"{sources.file}: {title}: {table!r} is not a table")
    check_names(table, server, f"{sources.file}: {title}")
    if isinstance(table.get("address"), str):
        table = {**table, "address": [table["address"]]}
    prefix = f"{title[len('[tool.laraman.') : -1]}."
    own = replace(WORKER, title=title).values(sources, table, [name for name in WORKER.options if name in table], prefix)
    options = replace(server, title=title).values(sources, table, [name for name in server.options if name in table], prefix)
    return {**own, **options}
