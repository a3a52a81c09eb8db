"""The configuration: one frozen dataclass whose fields carry their default, flag, environment variable and help.

There is no second list anywhere: the command line's parser, the loader and the README's table are all made from these fields.

A value comes from the first of: the command line, ``LARAMAN_<FIELD>``, uvicorn's own variable, ``[tool.laraman]`` in
pyproject.toml, the default.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from laraman.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from dataclasses import Field

VERSION = "0.1.0"

_TRUE = ("1", "true", "t", "yes", "y", "on")
_FALSE = ("0", "false", "f", "no", "n", "off")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2


def _workers(text: str) -> int:
    """``4``, ``auto`` (one per CPU that this process may use) or ``auto*2``."""
    match = re.fullmatch(r"auto(?:\*(\d+))?", text)
    if match:
        return cpu_count() * int(match[1] or 1)
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither a whole number nor 'auto' nor 'auto*N'") from None


def _header(text: str) -> str:
    """``Name:Value``, split at the first colon as uvicorn does; what may not go on the wire is refused."""
    name, colon, value = text.partition(":")
    if not colon or not _TOKEN.fullmatch(name):
        raise ValueError(f"{text!r} is not of the form Name:Value")
    if not value.replace("\t", " ").isprintable() or any(ord(character) > 255 for character in value):
        raise ValueError(f"the value of {name} has characters that a header may not hold")
    return text


def _name(text: str) -> str:
    """The instance's name becomes the name of a directory."""
    if text and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", text):
        raise ValueError(f"{text!r} is not a name: letters, digits, '_', '-' and '.', 64 at most, not starting with '.' or '-'")
    return text


def _option(
    default: Any,
    help: str,
    *,
    flags: tuple[str, ...] = (),
    env: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    parse: Callable[[str], Any] | None = None,
    metavar: str = "",
) -> Any:
    """A field. ``flags`` and ``env`` only where they are not ``--field-name`` and UVICORN_FIELD_NAME; bounds are inclusive.

    ``parse`` turns the text of one value into the value and raises ValueError. A bool with a ``metavar`` takes its value as a word.
    """
    metadata = {"help": help, "flags": flags, "env": env, "low": low, "high": high, "parse": parse, "metavar": metavar}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that can be configured. Times are in seconds, sizes in bytes.

    ``Config.load`` checks values; the constructor takes them as they are.
    """

    app: str = _option("", "The application: package.module:attribute.", flags=("APP",))
    factory: bool = _option(False, "Call the application to get the application.")
    app_dir: str = _option("", "Directory to import the application from; the working directory when empty.", metavar="DIRECTORY")
    listeners: tuple[str, ...] = _option((), "Module that registers event listeners; repeatable.", flags=("--listener",), metavar="MODULE")

    host: str = _option("127.0.0.1", "Address to listen on.")
    port: int = _option(8000, "Port to listen on; 0 picks a free one.", low=0, high=65535)
    uds: str = _option("", "Listen on this unix socket instead.", metavar="PATH")
    fd: int | None = _option(None, "Listen on this inherited file descriptor instead.", low=0)
    backlog: int = _option(2048, "Connections the kernel may queue before they are accepted.", low=0, high=2**31 - 1)

    workers: int = _option(
        1,
        "Worker processes: a number, `auto` (the CPUs this process may use) or `auto*N`.",
        env=("UVICORN_WORKERS", "WEB_CONCURRENCY"),
        low=1,
        high=4096,
        parse=_workers,
        metavar="NUMBER|auto",
    )
    daemon: bool = _option(False, "Run in the background; the command returns when the server is ready.", flags=("-d", "--daemon"))
    name: str = _option("", "Name of this instance; the port when empty.", parse=_name)
    state_dir: str = _option("", "Directory of the pid file and the control socket; .laraman/<name> when empty.", metavar="DIRECTORY")

    loop: Literal["auto", "uvloop", "asyncio"] = _option("auto", "Event loop of the workers.")
    http: Literal["auto", "httptools", "h11"] = _option("auto", "HTTP/1.1 parser.")
    ws: Literal["auto", "wsproto", "none"] = _option("auto", "WebSocket implementation; `none` answers upgrades as plain requests.")
    ws_max_size: int = _option(16 * 1024 * 1024, "Largest WebSocket message.", low=1)
    ws_ping_interval: float = _option(20.0, "Seconds between WebSocket pings; 0 sends none.", low=0)
    ws_ping_timeout: float = _option(20.0, "Seconds to wait for a pong before the WebSocket is closed; 0 waits for ever.", low=0)
    ws_per_message_deflate: bool = _option(True, "Offer WebSocket compression.", metavar="BOOLEAN")
    lifespan: Literal["auto", "on", "off"] = _option("auto", "ASGI lifespan protocol.")
    root_path: str = _option("", "ASGI root_path: the prefix under which a proxy serves the application.", metavar="PATH")
    server_header: bool = _option(True, "Send the default Server header.")
    date_header: bool = _option(True, "Send the default Date header.")
    header: tuple[str, ...] = _option(
        (), "Name:Value header added to every response; repeatable.", env=("UVICORN_HEADERS",), parse=_header, metavar="NAME:VALUE"
    )

    log_level: Literal["critical", "error", "warning", "info", "debug", "trace"] = _option("info", "Least level that is logged.")
    access_log: bool = _option(True, "Log every request.")
    log_file: str = _option("", "Log to this file instead of stdout and stderr.", metavar="PATH")
    use_colors: bool | None = _option(None, "Colour the log; by default when it goes to a terminal.")

    limit_concurrency: int | None = _option(None, "Connections or running requests per worker from which on 503 is answered.", low=1)
    limit_max_requests: int | None = _option(None, "Requests after which a worker is replaced; its successor is ready first.", low=1)
    limit_max_requests_jitter: int = _option(0, "A random number up to this is added to limit_max_requests, for each worker anew.", low=0)
    limit_request_line: int = _option(8190, "Longest request line.", low=64)
    limit_request_head: int = _option(64 * 1024, "Largest request head: request line and header fields.", low=256)
    limit_request_fields: int = _option(100, "Most header fields of a request.", low=1)
    limit_request_body: int = _option(1024**3, "Largest request body; 0 for no limit.", low=0)

    timeout_keep_alive: float = _option(5.0, "Seconds an idle connection is kept; 0 closes it after each response.", low=0)
    timeout_request_header: float = _option(10.0, "Seconds a request head may take to arrive; 0 for no limit.", low=0)
    timeout_request_body: float = _option(
        30.0, "Seconds a request body may make no progress while the application waits for it; 0 for no limit.", low=0
    )
    timeout_write: float = _option(60.0, "Seconds a client may read nothing of a response that waits for it; 0 for no limit.", low=0)
    timeout_graceful_shutdown: float = _option(8.0, "Seconds that running requests get to finish when a worker stops.", low=0)
    timeout_worker_healthcheck: float = _option(5.0, "Seconds without a beat after which a worker counts as hung and is replaced.", low=0.1)
    timeout_worker_boot: float = _option(60.0, "Seconds a worker may take to become ready.", low=0.1)

    @classmethod
    def load(cls, cli: Mapping[str, Any], env: Mapping[str, str], pyproject: Path | None, only: Iterable[str] = ()) -> Config:
        """The configuration from the command line, the environment and the file; a file that does not exist is no error.

        ``cli`` maps field names to a text, a list of texts or a bool; None is "not given". Raises ConfigError with one line that
        names the source. With ``only``, other options are not looked at: a mistake in one of them keeps nobody from stopping a server.
        """
        table = _tool_table(pyproject)
        if unknown := [key for key in table if key not in OPTIONS and not only]:
            raise ConfigError(f"{pyproject}: [tool.laraman] has no option {unknown[0]!r}{did_you_mean(unknown[0], OPTIONS)}")
        values = {}
        for name in only or OPTIONS:
            option = OPTIONS[name]
            for source, raw in _sources(option, cli, env, table, pyproject):
                values[name] = _value(option, raw, source)
                break
        return cls(**values)


OPTIONS: dict[str, Field[Any]] = {option.name: option for option in fields(Config)}
_TYPES: dict[str, Any] = get_type_hints(Config)


def flags(option: Field[Any]) -> tuple[str, ...]:
    """How the command line spells it, without the ``--no-`` forms; ("APP",) for the one positional."""
    special: tuple[str, ...] = option.metadata["flags"]
    return special or (f"--{option.name.replace('_', '-')}",)


def env_names(option: Field[Any]) -> tuple[str, ...]:
    """Its environment variables, the strongest first."""
    return (f"LARAMAN_{option.name.upper()}", *(option.metadata["env"] or (f"UVICORN_{option.name.upper()}",)))


def kind(option: Field[Any]) -> type:
    """The type of its values: bool, int, float, str or tuple (a repeatable option)."""
    hint = _TYPES[option.name]
    if choices(option):
        return str
    if hint not in (bool, int, float, str):
        hint = next((part for part in get_args(hint) if part in (bool, int)), tuple)  # "int | None", else "tuple[...]"
    return hint  # type: ignore[no-any-return]


def choices(option: Field[Any]) -> tuple[str, ...]:
    """The words it may be; empty when it is not a choice."""
    return tuple(part for part in get_args(_TYPES[option.name]) if isinstance(part, str))


def default_text(option: Field[Any], quote: str = "") -> str:
    """Its default as a user would write it; "" when there is none."""
    value = option.default
    if value is None or value == "" or value == ():
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{quote}{value:g}{quote}" if isinstance(value, float) else f"{quote}{value}{quote}"


def is_switch(option: Field[Any]) -> bool:
    """Whether its flag takes no value and has a ``--no-`` form."""
    return kind(option) is bool and not option.metadata["metavar"]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'port'?`` or nothing, to end an error line with."""
    from difflib import get_close_matches  # only errors need it

    close = get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def options_table() -> str:
    """The README's table of all options, in markdown."""
    lines = ["| Option | In pyproject.toml | Default | Meaning |", "|---|---|---|---|"]
    for option in OPTIONS.values():
        lines.append(f"| {_spelling(option)} | `{option.name}` | {default_text(option, '`')} | {_meaning(option)} |")
    return "\n".join(lines)


def _spelling(option: Field[Any]) -> str:
    spelling = ", ".join(f"`{flag}`" for flag in flags(option))
    return f"{spelling} / `--no-{flags(option)[-1][2:]}`" if is_switch(option) else spelling


def _meaning(option: Field[Any]) -> str:
    words = ", ".join(f"`{word}`" for word in choices(option))
    return f"{option.metadata['help']} One of {words}." if words else str(option.metadata["help"])


# Loading --------------------------------------------------------------------------------------------------------------------------


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


def _sources(
    option: Field[Any], cli: Mapping[str, Any], env: Mapping[str, str], table: Mapping[str, Any], pyproject: Path | None
) -> Iterable[tuple[str, Any]]:
    """Where a value for it is found, the strongest first: (what to call the source, the value)."""
    if cli.get(option.name) is not None:
        yield flags(option)[-1], cli[option.name]
    for name in env_names(option):
        if env.get(name):  # an empty variable is an unset one, as in uvicorn
            yield name, env[name].split() if kind(option) is tuple else env[name]
    if option.name in table:
        raw = table[option.name]
        source = f"{pyproject}: [tool.laraman] {option.name}"
        if not _is_toml_type(option, raw):
            raise ConfigError(f"{source}: {raw!r} is not {_WORDS[kind(option)]}")
        yield source, raw


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", tuple: "a list of strings"}


def _is_toml_type(option: Field[Any], raw: Any) -> bool:
    expected = kind(option)
    if expected is tuple:
        return isinstance(raw, list) and all(isinstance(item, str) for item in raw)
    if expected is int:
        return type(raw) is int or (isinstance(raw, str) and option.metadata["parse"] is not None)  # not isinstance: a bool is an int
    if expected is float:
        return type(raw) in (int, float)
    return isinstance(raw, expected)


def _value(option: Field[Any], raw: Any, source: str) -> Any:
    try:
        if kind(option) is tuple:
            return tuple(_one(option, item) for item in raw)
        return _one(option, raw)
    except ValueError as exc:
        raise ConfigError(f"{source}: {exc}") from None


def _one(option: Field[Any], raw: Any) -> Any:
    value = raw
    if isinstance(raw, str):
        value = (option.metadata["parse"] or _PARSERS[kind(option)])(raw)
    words = choices(option)
    if words:
        value = value.lower()
        if value not in words:
            raise ValueError(f"{raw!r} is not one of {', '.join(words)}")
    if type(value) in (int, float):
        value = kind(option)(value)
        _check_range(value, option.metadata["low"], option.metadata["high"])
    return value


def _check_range(value: float, low: float | None, high: float | None) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    if low is not None and high is not None and not low <= value <= high:
        raise ValueError(f"{value} is not in {low}..{high}")
    if low is not None and value < low:
        raise ValueError(f"{value} is less than {low}")


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None


def _boolean(text: str) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() in _TRUE


def _text(text: str) -> str:
    if "\0" in text:
        raise ValueError("contains a NUL character")
    return text


_PARSERS: dict[type, Callable[[str], Any]] = {bool: _boolean, int: _whole_number, float: _number, str: _text, tuple: _text}


# CPUs -----------------------------------------------------------------------------------------------------------------------------


def cpu_count(cgroups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """The CPUs this process may use: its scheduler affinity, or the CPU quota of its cgroup (v1 or v2), rounded up, when that is less.

    A container sees all CPUs of its machine in ``os.cpu_count()``; its quota is only in the cgroup files.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([usable, *(math.ceil(quota) for quota in _quotas(cgroups, membership))]))


def _quotas(cgroups: Path, membership: Path) -> Iterator[float]:
    """The quotas, in CPUs, that hold for this process: each cgroup from its own up to the root may set one."""
    for line in _read(membership).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            roots = [cgroups, cgroups / "unified"]  # v2, alone or beside v1
        elif "cpu" in controllers.split(","):
            roots = [cgroups / controllers, cgroups / "cpu"]
        else:
            continue
        # In a container the path may be the host's, which is not mounted here; its own cgroup is then the root.
        below = [part for part in path.split("/") if part not in ("", ".", "..")]
        for root in roots:
            for depth in range(len(below), -1, -1):
                yield from _quota(root.joinpath(*below[:depth]))


def _quota(cgroup: Path) -> Iterator[float]:
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    if not quota:
        quota, period = _read(cgroup / "cpu.cfs_quota_us"), _read(cgroup / "cpu.cfs_period_us")
    try:
        if int(quota) > 0 and int(period) > 0:  # "max" and -1 mean no quota
            yield int(quota) / int(period)
    except ValueError:
        return


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
