"""The configuration: one frozen dataclass whose fields carry their default, flag, environment variable and help.

There is no second list anywhere: the command line's parser, the loader and the README's table are all made from these fields.

A value comes from the first of: the command line, ``LARAMAN_<FIELD>``, uvicorn's own variable, ``[tool.laraman]`` in
pyproject.toml, the default.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from laraman.config import declared, texts, words
from laraman.config.gateway import GATEWAY, GatewayConfig
from laraman.config.options import Section, Sources, choices, default_text, flags, is_switch, negative, option
from laraman.config.sandbox import SANDBOX, SandboxConfig
from laraman.config.settle import settle
from laraman.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from dataclasses import Field
    from pathlib import Path

    from laraman.config.options import Origin

VERSION = "0.1.0"

NO_GATEWAY = GatewayConfig()
NO_RESETS = SandboxConfig()

@dataclass(frozen=True, slots=True)
class Config:
    """Everything that can be configured. Times are in seconds, sizes in bytes.

    ``Config.load`` checks values; the constructor takes them as they are.
    """

    app: str = option("", "The application, or Workers: package.module:attribute.", flags=("APP",))
    factory: bool = option(False, "Call the application to get the application.")
    interface: Literal["auto", "asgi3", "asgi2", "wsgi", "workers"] = option(
        "auto",
        "What the application speaks. `auto` tells `asgi3` from `asgi2`; `wsgi` needs the extra of that name, and has 10 threads a worker. "
        "`workers`: it is no application, but Workers; `auto` sees that where the source says it plainly.",
    )
    app_dir: str = option("", "Directory to import the application from; the working directory when empty.", metavar="DIRECTORY")
    listeners: tuple[str, ...] = option((), "Module that registers event listeners; repeatable.", flags=("--listener",), metavar="MODULE")
    env_file: str = option(
        "",
        "File of environment variables; those that are set already stay as they are. uvicorn's variables are for the application only there.",
        metavar="PATH",
    )
    gateway: GatewayConfig = option(
        NO_GATEWAY, "Run a websocket gateway that accepts browsers at this address, and let the workers talk to it.", metavar="HOST:PORT"
    )

    sandbox: SandboxConfig = option(NO_RESETS, "What is reset between operations.", flags=None)
    isolation: Literal["concurrent", "serial"] = option(
        "concurrent", "Operations of a worker overlap, or are run one at a time, for code written for one request at a time."
    )
    guard: Literal["off", "warn", "restore", "strict"] = option(
        "warn", "What to do when an operation changes the process for others: say who did, also put it back, or also fail it."
    )

    host: str = option("127.0.0.1", "Address to listen on.")
    port: int = option(8000, "Port to listen on; 0 picks a free one.", low=0, high=65535)
    uds: str = option("", "Listen on this unix socket instead.", metavar="PATH")
    uds_mode: str = option("", "Permissions of the unix socket, in octal; when empty 0666, or those of the file that it replaces.", parse=texts.mode)
    fd: int | None = option(None, "Listen on this inherited file descriptor instead.", low=0)
    bind: tuple[str, ...] = option(
        (),
        "Listen on this address instead: HOST:PORT, unix:PATH, fd:NUMBER, or systemd[:NAME] for sockets that it has opened; repeatable. "
        "With http:// in front one speaks no TLS where others do.",
        metavar="ADDRESS",
    )
    backlog: int = option(2048, "Connections the kernel may queue before they are accepted.", low=0, high=2**31 - 1)

    ssl_keyfile: str = option("", "Private key of the certificate, in PEM.", metavar="PATH")
    ssl_certfile: str = option("", "Certificate with its chain, in PEM: speak TLS.", metavar="PATH")
    ssl_keyfile_password: str = option("", "Password of the private key; better in the environment, where `ps` does not show it.", secret=True)
    ssl_version: int = option(17, "TLS version, as a number of Python's ssl module; 17 is any that is safe.", low=0)
    ssl_cert_reqs: int = option(0, "Whether clients have to show a certificate: 0 no, 1 they may, 2 they must.", low=0, high=2)
    ssl_ca_certs: str = option("", "Certificates that sign the clients', in PEM.", metavar="PATH")
    ssl_ciphers: str = option("", "Ciphers up to TLS 1.2, in OpenSSL's words; OpenSSL's own choice when empty.")
    #: Python only: ``ssl_context_factory(config, default_factory)`` returns the ``ssl.SSLContext``.
    ssl_context_factory: Any = option(None, "Makes the TLS context.", flags=None)

    proxy_headers: bool = option(True, "Believe X-Forwarded-Proto and X-Forwarded-For of trusted proxies.")
    forwarded_allow_ips: str = option(
        "127.0.0.1,::1",
        "Proxies that are trusted: addresses and networks, separated by commas, or `*`.",
        env=("UVICORN_FORWARDED_ALLOW_IPS", "FORWARDED_ALLOW_IPS"),
        metavar="ADDRESSES",
    )
    forwarded: bool = option(False, "Believe the field Forwarded (RFC 7239) of trusted proxies instead of X-Forwarded-*.")
    proxy_protocol: bool = option(False, "Expect the PROXY protocol, version 1 or 2, from trusted proxies, and refuse everybody else.")

    reload: bool = option(False, "Reload when files change; for development.")
    reload_dirs: tuple[str, ...] = option(
        (),
        "Directory to watch; repeatable. The working directory when there is none.",
        flags=("--reload-dir",),
        parse=texts.existing,
        metavar="DIRECTORY",
        separator=os.pathsep,
    )
    reload_includes: tuple[str, ...] = option(
        (), "Pattern of files to watch besides `*.py`; repeatable.", flags=("--reload-include",), metavar="PATTERN"
    )
    reload_excludes: tuple[str, ...] = option(
        (), "Pattern of files not to watch besides `.*`, `.py[cod]`, `.sw.*` and `~*`; repeatable.", flags=("--reload-exclude",), metavar="PATTERN"
    )
    reload_delay: float = option(0.25, "Seconds between two looks for changes.", low=0.01)

    workers: int = option(
        1,
        "Worker processes: a number, `auto` (the CPUs this process may use) or `auto*N`.",
        env=("UVICORN_WORKERS", "WEB_CONCURRENCY"),
        low=1,
        high=4096,
        parse=texts.workers,
        metavar="NUMBER|auto",
    )
    preload: bool = option(False, "Import the application once for all workers, in a process that they are forked from.")
    declared: tuple[Any, ...] = option((), "Workers beside those of the application: name and declaration of each.", flags=None)
    daemon: bool = option(False, "Run in the background; the command returns when the server is ready.", flags=("-d", "--daemon"))
    name: str = option("", "Name of this instance; the port when empty.", parse=texts.name)
    state_dir: str = option("", "Directory of the pid file and the control socket; .laraman/<name> when empty.", metavar="DIRECTORY")
    cluster: str = option(
        "",
        "Store of what runs once in a cluster of servers: `redis://...`, `rediss://...`, or `nats://...` and `tls://...` with JetStream; with "
        "`?prefix=NAME` where clusters share it.",
        parse=texts.redis_or_nats,
        metavar="URL",
        secret=True,
    )
    channel: str = option(
        "",
        "What the channel between processes goes through: `redis://...`, `rediss://...`, or `nats://...` and `tls://...` with JetStream; a hub among "
        "the workers when empty.",
        parse=texts.redis_or_nats,
        metavar="URL",
        secret=True,
    )
    task_workers: int = option(
        0,
        "Processes that run tasks: a number, `auto` (the CPUs this process may use) or `auto*N`.",
        low=0,
        high=4096,
        parse=texts.workers,
        metavar="NUMBER|auto",
    )
    task_queue: int = option(1000, "Tasks that may wait in one process for a free task worker; one more is Busy.", low=1)
    journal: str = option("", "File of the deferred tasks; journal.db in the state directory when empty.", metavar="PATH")
    journal_queue: int = option(100_000, "Deferred tasks that may wait; one more is Busy.", low=1)
    journal_attempts: int = option(12, "How often a deferred task may fail before it is kept as failed.", low=1)
    channel_queue: int = option(100_000, "Jobs that a queue of the channel may hold; a put more is Busy.", low=1)
    user: str = option(
        "", "User that the workers run as, by name or number, where root starts the server; its files are what they can read.", parse=texts.user
    )
    group: str = option("", "Group that the workers run as; the user's own, with those that it is in besides, when empty.", parse=texts.group)

    loop: str = option(
        "auto",
        "Event loop of the workers: `auto`, `none`, `asyncio`, `uvloop`, `zuvloop`, or `module:factory`.",
        parse=words.loop,
        metavar="WORD|MODULE:FACTORY",
    )
    http: str = option("auto", "HTTP/1.1 parser: `auto`, `h11` or `httptools`.", parse=words.http, metavar="|".join(words.HTTP))
    ws: str = option(
        "auto",
        "`none` answers WebSocket upgrades as plain requests; uvicorn's other words all mean laraman's one implementation.",
        parse=words.websockets,
        metavar="|".join(words.WEBSOCKETS),
    )
    ws_max_size: int = option(16 * 1024 * 1024, "Largest WebSocket message.", low=1)
    ws_max_queue: int = option(32, "WebSocket messages that may wait for the application before no more are read.", low=1)
    ws_ping_interval: float = option(20.0, "Seconds between WebSocket pings; 0 sends none.", low=0)
    ws_ping_timeout: float = option(20.0, "Seconds to wait for a pong before the WebSocket is closed; 0 waits for ever.", low=0)
    ws_per_message_deflate: bool = option(True, "Offer WebSocket compression.", metavar="BOOLEAN")
    http2: bool = option(False, "Speak HTTP/2: refused, that is for the proxy in front.")
    h11_max_incomplete_event_size: int | None = option(None, "uvicorn's name of limit_request_head; with every parser.", low=256)
    reset_contextvars: bool = option(False, "Run each request in an empty context instead of a copy of what startup has left.")
    lifespan: Literal["auto", "on", "off"] = option("auto", "ASGI lifespan protocol.")
    asgi_extensions: Literal["explicit", "all", "none"] = option(
        "explicit", "ASGI extensions to offer: those that an application has to use itself, or also pathsend, which Starlette sends every file with."
    )
    root_path: str = option("", "ASGI root_path: the prefix under which a proxy serves the application.", metavar="PATH")
    server_header: bool = option(True, "Send the default Server header.")
    date_header: bool = option(True, "Send the default Date header.")
    header: tuple[str, ...] = option(
        (), "Name:Value header added to every response; repeatable.", env=("UVICORN_HEADERS",), parse=texts.header, metavar="NAME:VALUE"
    )

    log_level: Literal["critical", "error", "warning", "info", "debug", "trace"] | None = option(
        None, "Least level that is logged; by default what the configuration of logging says, else info."
    )
    log_config: Any = option("", "Configuration of logging: .json, .yaml, else .ini. In Python also a dict, a file or None.", metavar="PATH")
    log_brand: Literal["laraman", "uvicorn"] = option("laraman", "Name in the line that launchers wait for: `Uvicorn running on ...`.")
    access_log: bool = option(True, "Log every request.")
    access_log_format: str = option(
        "",
        "Of the access log: `json`, `combined`, or like `%(method)s %(path)s %(status)d %(duration).6f`; empty for uvicorn's.",
        parse=texts.access_format,
    )
    log_file: str = option("", "Log to this file instead of stdout and stderr.", metavar="PATH")
    use_colors: bool | None = option(None, "Colour the log; by default when it goes to a terminal.")

    limit_concurrency: int | None = option(None, "Connections or running requests per worker from which on 503 is answered.", low=1)
    limit_max_requests: int | None = option(
        None, "Requests after which a worker is replaced; its successor is ready first.", low=1, flags=("--max-requests", "--limit-max-requests")
    )
    limit_max_requests_jitter: int = option(
        0,
        "A random number up to this is added to limit_max_requests, for each worker anew.",
        low=0,
        flags=("--max-requests-jitter", "--limit-max-requests-jitter"),
    )
    max_rss: int | None = option(
        None,
        "Resident memory, in bytes or as `512MB`, above which a worker is replaced; its successor is ready first.",
        low=1,
        parse=texts.size,
        metavar="SIZE",
    )
    max_lifetime: float | None = option(
        None, "Seconds after which a worker is replaced, with up to a tenth less for each; its successor is ready first.", low=1
    )
    limit_request_line: int = option(8190, "Longest request line.", low=64)
    limit_request_head: int = option(64 * 1024, "Largest request head: request line and header fields.", low=256)
    limit_request_fields: int = option(100, "Most header fields of a request.", low=1)
    limit_request_body: int = option(1024**3, "Largest request body; 0 for no limit.", low=0)

    timeout_keep_alive: float = option(5.0, "Seconds an idle connection is kept; 0 closes it after each response.", low=0)
    timeout_request_header: float = option(10.0, "Seconds a request head may take to arrive; 0 for no limit.", low=0)
    timeout_request_body: float = option(
        30.0, "Seconds a request body may make no progress while the application waits for it; 0 for no limit.", low=0
    )
    timeout_write: float = option(60.0, "Seconds a client may read nothing of a response that waits for it; 0 for no limit.", low=0)
    timeout_graceful_shutdown: float | None = option(
        8.0,
        "Seconds that running requests get to finish when a worker stops; `none` for no limit.",
        low=0,
        parse=texts.seconds,
        metavar="NUMBER|none",
    )
    timeout_worker_healthcheck: float = option(5.0, "Seconds without a beat after which a worker counts as hung and is replaced.", low=0.1)
    timeout_worker_boot: float = option(60.0, "Seconds a worker may take to become ready.", low=0.1)

    @classmethod
    def load(
        cls,
        cli: Mapping[str, Any],
        env: Mapping[str, str],
        pyproject: Path | None,
        only: Collection[str] = (),
        gateway: Mapping[str, Any] | None = None,
        places: dict[str, Origin] | None = None,
    ) -> Config:
        """The configuration from the command line, the environment and the file; a file that does not exist is no error.

        ``cli`` maps field names to a text, a list of texts or a bool; None is "not given". Raises ConfigError with one line that
        names the source. With ``only``, other options are not looked at: a mistake in one of them keeps nobody from stopping a server.
        ``gateway`` are options of a command line that is a gateway's. ``places`` is told where each option that is given was found.
        """
        table = _tool_table(pyproject)
        sources = Sources(cli, env, str(pyproject), {} if places is None else places)
        if not only:
            SERVER.check_names(table, sources.file)
        names = only or OPTIONS
        table, workers = _apart(table, sources.file)
        if "env_file" in names:
            sources = _with_env_file(sources, table)
        values = SERVER.values(sources, table, [name for name in names if name not in ("gateway", "sandbox", "declared")])
        settle(values, sources.places)
        if "gateway" in names:
            given = {**(gateway or {}), "gateway": cli.get("gateway")}
            values["gateway"] = GatewayConfig.load(replace(sources, cli=given), table.get("gateway", {}))
        if "sandbox" in names:
            values["sandbox"] = SandboxConfig.load(sources, table.get("sandbox", {}))
        if "declared" in names:
            values["declared"] = declared.load(sources, workers, SERVER)
        return cls(**values)


def _apart(table: dict[str, Any], file: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The table without those of Workers, and those. In ``[tool.laraman.workers.http]`` there is the count that else is the option ``workers``."""
    if "declared" in table:
        raise ConfigError(f"{file}: [tool.laraman] has no option 'declared'")
    if not isinstance(table.get("workers"), dict):
        return table, {}
    workers = dict(table["workers"])
    rest = {name: value for name, value in table.items() if name != "workers"}
    http = workers.pop(declared.HTTP, {})
    if not isinstance(http, dict) or not http.keys() <= {"count"}:
        raise ConfigError(f"{file}: [tool.laraman.workers.http] has but the count of the application's workers")
    return {**rest, **({"workers": http["count"]} if http else {})}, workers


def _with_env_file(sources: Sources, table: Mapping[str, Any]) -> Sources:
    """The same with the variables of the environment file, but for uvicorn's own: uvicorn has read those before it reads the file."""
    path = SERVER.values(sources, table, ["env_file"]).get("env_file")
    if not path:
        return sources
    from laraman.config import envfile

    added = {name: value for name, value in envfile.read(path, sources.env).items() if not name.startswith("UVICORN_")}
    return replace(sources, env={**sources.env, **added}, added=dict.fromkeys(added, path))


SERVER = Section.of(Config, "[tool.laraman]", "LARAMAN_", "UVICORN_")
OPTIONS = SERVER.options


def env_names(wanted: Field[Any]) -> tuple[str, ...]:
    """The environment variables of a server option, the strongest first."""
    return SERVER.env_names(wanted)


def options_table() -> str:
    """The README's table of all options, in markdown."""
    lines = ["| Option | In pyproject.toml | Default | Meaning |", "|---|---|---|---|"]
    for wanted in OPTIONS.values():
        if wanted.metadata["flags"] is None:
            continue  # a table of its own
        lines.append(f"| {_spelling(wanted)} | `{wanted.name}` | {default_text(wanted, '`')} | {_meaning(wanted)} |")
    return "\n".join(lines)


def gateway_table() -> str:
    """The README's table of ``[tool.laraman.gateway]``, in markdown."""
    return _section_table(GATEWAY)


def sandbox_table() -> str:
    """The README's table of ``[tool.laraman.sandbox]``, in markdown."""
    return _section_table(SANDBOX)


def workers_table() -> str:
    """The README's table of ``[tool.laraman.workers.NAME]``, in markdown."""
    return _section_table(declared.WORKER)


def _section_table(section: Section) -> str:
    lines = ["| In pyproject.toml | Default | Meaning |", "|---|---|---|"]
    for wanted in section.options.values():
        if wanted.metadata:
            lines.append(f"| `{wanted.name}` | {default_text(wanted, '`')} | {_meaning(wanted)} |")
    return "\n".join(lines)


def _spelling(wanted: Field[Any]) -> str:
    spelling = ", ".join(f"`{flag}`" for flag in flags(wanted))
    return f"{spelling} / `{negative(wanted)}`" if is_switch(wanted) else spelling


def _meaning(wanted: Field[Any]) -> str:
    words = ", ".join(f"`{word}`" for word in choices(wanted))
    return f"{wanted.metadata['help']} One of {words}." if words else str(wanted.metadata["help"])


def _tool_table(pyproject: Path | None) -> dict[str, Any]:
    if pyproject is None:
        return {}
    try:
        text = pyproject.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as exc:
        raise ConfigError(f"{pyproject}: cannot be read: {exc.strerror or exc}") from None
    import tomllib  # a start without a file does without it

    try:
        document = tomllib.loads(text.decode())
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{pyproject}: is not UTF-8 (at byte {exc.start})") from None
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{pyproject}: {exc}") from None
    except RecursionError:
        raise ConfigError(f"{pyproject}: is nested too deeply") from None
    table = document.get("tool", {})
    table = table.get("laraman", {}) if isinstance(table, dict) else {}
    if not isinstance(table, dict):
        raise ConfigError(f"{pyproject}: [tool.laraman] is not a table")
    return table
