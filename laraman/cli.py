"""The command ``laraman``: a verb, then options. An application where the verb would be means ``start``, so that it reads like uvicorn's.

Exit codes: 0 fine, 1 not running or not done, 2 wrong usage or configuration, 3 the server could not start. An error is one line on stderr.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from laraman.config import OPTIONS, VERSION, Config
from laraman.config.gateway import GATEWAY
from laraman.config.options import choices, default_text, did_you_mean, flags, is_switch, kind
from laraman.errors import ConfigError, LaramanError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from dataclasses import Field

    from laraman.process.state import Instance
    from laraman.process.worker import Worker
    from laraman.protocols.ipc import Envelope

#: Read in the working directory.
PYPROJECT = Path("pyproject.toml")

#: Seconds to wait for an answer that the master has at hand.
QUICK = 10.0
#: Seconds to wait for something that takes as long as the workers do, each with deadlines of its own.
LONG = 3600.0
#: What connects the application with the gateways, where there are any.
_GATEWAY_LISTENERS = ("laraman.gateway.listeners",)
#: The server's options that a gateway alone has as well.
_GATEWAY_SERVER_OPTIONS = (
    *("daemon", "name", "state_dir", "loop", "log_level", "log_file", "use_colors"),
    *("timeout_graceful_shutdown", "timeout_worker_healthcheck", "timeout_worker_boot"),
)
#: The server's options that `laraman check` has as well, and what else of its configuration counts there.
_CHECK_OPTIONS = ("app", "factory", "app_dir", "listeners", "lifespan")
_CHECK_SETTINGS = ("sandbox", "isolation", "root_path", "timeout_worker_boot")
#: Seconds on top of the boot deadline that a daemon gets to say how its start went.
DAEMON_MARGIN = 15.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except LaramanError as exc:
        print(f"laraman: {exc}", file=sys.stderr)
        return exc.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `laraman connections | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _dispatch(arguments: list[str]) -> int:
    first = arguments[0] if arguments else ""
    if first in ("", "help", "-h", "--help"):
        print(_start_parser().format_help(), end="", file=sys.stdout if first else sys.stderr)
        return 0 if first else 2
    if first == "--version":
        print(f"Running laraman {VERSION} with {sys.implementation.name} {sys.version.split()[0]} on {sys.platform}")
        return 0
    if first in VERBS:
        return VERBS[first][1](arguments[1:])
    if first.startswith("-") or ":" in first or "." in first:
        return start(arguments)
    raise ConfigError(f"{first!r} is neither a verb ({', '.join(VERBS)}) nor an application (package.module:app){did_you_mean(first, VERBS)}")


# start ----------------------------------------------------------------------------------------------------------------------------


def start(arguments: list[str]) -> int:
    """Serve until stopped; with ``--daemon`` until it is ready."""
    from laraman.asgi import http_workers

    config = _configured(arguments)
    return _run(config, http_workers(config), lambda: _configured(arguments))


def gateway(arguments: list[str]) -> int:
    """Run a websocket gateway and nothing else, until stopped."""
    from laraman.gateway import gateway_worker

    config = _gateway_configured(arguments)
    return _run(config, [gateway_worker(config)], lambda: _gateway_configured(arguments))


def _run(config: Config, workers: list[Worker], revalidate: Callable[[], object]) -> int:
    """Be the master of these workers, in the foreground or as a daemon."""
    from laraman import log
    from laraman.process import handover
    from laraman.process.daemon import daemonize
    from laraman.process.master import Master

    def prepare() -> None:
        _import_listeners(config)

    notify = daemonize(config.timeout_worker_boot + DAEMON_MARGIN) if config.daemon else None
    try:
        log.configure(config)
        if not handover.pending():  # a restarted master does it when the workers are in its hands, so that an error leaves them running
            prepare()
        master = Master(config, workers, notify=notify, revalidate=revalidate, prepare=prepare)
    except LaramanError as exc:
        if notify is None:
            raise
        notify(exc.exit_code, f"laraman: {exc}")
        return exc.exit_code
    code = master.run()
    if code and config.log_file and notify is None:
        print(f"laraman: ended with exit code {code}; {config.log_file} says why", file=sys.stderr)
    return code


def _configured(arguments: list[str]) -> Config:
    """The whole configuration, with an application. Raises ConfigError."""
    config = _with_app(Config.load(vars(_parse(_start_parser(), arguments)), os.environ, PYPROJECT))
    return replace(config, listeners=(*config.listeners, *(_GATEWAY_LISTENERS if config.gateway.enabled else ())))


def _with_app(config: Config) -> Config:
    """The same with an application, found when none is named. Raises ConfigError."""
    from laraman.asgi.app import CONVENTIONAL_FILES, find_app

    if config.app in VERBS:
        raise ConfigError(f"the verb comes first: laraman {config.app} ...")
    app = config.app or find_app(config.app_dir or ".")
    if not app:
        raise ConfigError(
            "no application: name it (laraman start package.module:app), set `app` in [tool.laraman] of pyproject.toml, "
            f"or call it `app` in {', '.join(CONVENTIONAL_FILES)}"
        )
    return replace(config, app=app)


def _gateway_configured(arguments: list[str]) -> Config:
    """The configuration of a gateway alone. Raises ConfigError."""
    parsed = vars(_parse(_gateway_parser(), arguments))
    own = {name: parsed.pop(name) for name in GATEWAY.options if name in parsed}
    config = Config.load(parsed, os.environ, PYPROJECT, only=(*_GATEWAY_SERVER_OPTIONS, "gateway"), gateway=own)
    port = int(config.gateway.listen.rpartition(":")[2])  # which is its name, unless it has another
    return replace(config, port=port, gateway=replace(config.gateway, embedded=True))


def _import_listeners(config: Config) -> None:
    from laraman.process.worker import import_listeners

    try:
        import_listeners(config)
    except LaramanError:
        raise
    except (Exception, SystemExit) as exc:
        name = next((name for name in config.listeners if name not in sys.modules), "?")
        raise ConfigError(f"the listener module {name!r} cannot be imported: {_in_a_line(exc)}") from None


def _in_a_line(exc: BaseException) -> str:
    """Type, message and, unless the message of a SyntaxError has it, the place."""
    from traceback import extract_tb

    text = f"{type(exc).__name__}: {exc}".partition("\n")[0].rstrip(": ")
    frame = extract_tb(exc.__traceback__)[-1]
    return text if isinstance(exc, SyntaxError) else f"{text} ({frame.filename}:{frame.lineno})"


# check ----------------------------------------------------------------------------------------------------------------------------


def check(arguments: list[str]) -> int:
    """Play requests on the application, in this process, and report what they leave behind. Returns 1 when they leave something."""
    parsed = vars(_parse(_check_parser(), arguments))
    choices = {name: parsed.pop(name) for name in ("requests", "rounds", "timeout", "json")}
    config = _with_app(Config.load(parsed, os.environ, PYPROJECT, only=(*_CHECK_OPTIONS, *_CHECK_SETTINGS)))
    from laraman.check.command import run

    return run(config, **choices)


# The verbs that talk to a running server ------------------------------------------------------------------------------------------


def stop(arguments: list[str]) -> int:
    """Stop the server and wait until it is gone."""
    from laraman.process.control import wait_gone

    parser = _verb_parser("stop")
    parser.add_argument("-g", "--graceful", action="store_true", help="let running requests finish, however long they take")
    parsed = _parse(parser, arguments)
    instance = _instance(parsed)
    _ask(instance, {"op": "stop", "graceful": parsed.graceful}, QUICK)
    if not wait_gone(instance.control, math.inf if parsed.graceful else LONG):
        raise LaramanError(f"the server {instance.name} (pid {instance.pid}) does not stop")
    print(f"Stopped {instance.name} [{instance.pid}]")
    return 0


def restart(arguments: list[str]) -> int:
    """Execute the server anew, with its sockets kept, and wait until the new workers are ready."""
    from laraman.process import control

    instance = _instance(_parse(_verb_parser("restart"), arguments))
    _checked(control.restart(instance.control, LONG))
    print(f"Restarted {instance.name} [{instance.pid}]")
    return 0


def reload(arguments: list[str]) -> int:
    """Replace the workers one by one and wait until it is done."""
    instance = _instance(_parse(_verb_parser("reload"), arguments))
    answer = _ask(instance, {"op": "reload"}, LONG)
    print(f"Reloaded {instance.name} [{instance.pid}]")
    if kept := answer.get("not_reloadable"):
        print(f"laraman: not reloadable, because the handler is no import string: {', '.join(map(str, kept))}", file=sys.stderr)
    return 0


def status(arguments: list[str]) -> int:
    """Show the server and its processes."""
    return _show("status", arguments, _print_status)


def connections(arguments: list[str]) -> int:
    """Show every connection of every worker, accepted and dialled."""
    return _show("connections", arguments, _print_connections)


def _show(verb: str, arguments: list[str], printer: Callable[[Envelope], None]) -> int:
    parser = _verb_parser(verb)
    parser.add_argument("--json", action="store_true", help="print the raw answer")
    parsed = _parse(parser, arguments)
    answer = _ask(_instance(parsed), {"op": verb}, QUICK)
    if parsed.json:
        print(json.dumps(answer))
    else:
        printer(answer)
    return 0


VERBS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "start": ("start the server", start),
    "gateway": ("run a websocket gateway alone", gateway),
    "stop": ("stop it; with -g without a deadline", stop),
    "restart": ("start it anew without closing its sockets", restart),
    "reload": ("replace the workers one by one, with new code", reload),
    "status": ("show its processes", status),
    "connections": ("show its connections", connections),
    "check": ("play requests on the application and report what they leave behind", check),
}


def _instance(parsed: argparse.Namespace) -> Instance:
    """The one server that is meant. Raises LaramanError when it does not run, ConfigError when there are several."""
    from laraman.process.state import find_instances

    given = {"name": parsed.name, "port": parsed.port, "state_dir": parsed.state_dir}
    chosen = Config.load({key: value for key, value in given.items() if value is not None}, {}, None)
    wanted = chosen.name or (str(chosen.port) if parsed.port is not None else "")
    state_dir = chosen.state_dir or Config.load({}, os.environ, PYPROJECT, only=("state_dir",)).state_dir
    found = find_instances(state_dir, wanted)
    if not found:
        raise LaramanError(f"not running: no server{f' called {wanted}' if wanted else ''} was started from {state_dir or os.getcwd()}")
    if len(found) > 1:
        names = ", ".join(f"{instance.name} (pid {instance.pid})" for instance in found)
        raise ConfigError(f"several servers run here, choose one with --name or --port: {names}")
    return found[0]


def _ask(instance: Instance, envelope: Envelope, timeout: float) -> Envelope:
    from laraman.process.control import request

    return _checked(request(instance.control, envelope, timeout))


def _checked(answer: Envelope) -> Envelope:
    if not answer.get("ok"):
        raise LaramanError(f"{answer['op']} failed: {answer.get('error') or 'the server gave no reason'}")
    return answer


# Tables ---------------------------------------------------------------------------------------------------------------------------


def _print_status(answer: Envelope) -> None:
    server = answer["server"]
    addresses = " ".join(server["addresses"]) or "no address"
    print(
        f"laraman {server['version']}  {server['name']}  pid {server['pid']}  {server['app']}  {addresses}  "
        f"up {_duration(server['uptime'])}  generation {server['generation']}  {server['state']}\n"
    )
    columns = {
        "WORKER": lambda row: row["worker"],
        "SLOT": lambda row: row["slot"],
        "PID": lambda row: row["pid"],
        "STATE": lambda row: row["state"],
        "GEN": lambda row: row["generation"],
        "RSS": lambda row: _size(row["rss"]),
        "UPTIME": lambda row: _duration(row["uptime"]),
        "REQUESTS": lambda row: row["requests"],
        "IN-FLIGHT": lambda row: row["in_flight"],
        "CONN-IN": lambda row: row["connections_in"],
        "CONN-OUT": lambda row: row["connections_out"],
        "RESTARTS": lambda row: row["restarts"],
        "LAST EXIT": lambda row: row["last_exit"],
    }
    _print_table(columns, answer["processes"])


def _print_connections(answer: Envelope) -> None:
    columns = {
        "PID": lambda row: row["pid"],
        "WORKER": lambda row: f"{row['worker']}:{row['slot']}",
        "DIR": lambda row: row["direction"],
        "PROTOCOL": lambda row: row["protocol"],
        "LOCAL": lambda row: row["local"],
        "PEER": lambda row: row["peer"],
        "STATE": lambda row: row["state"],
        "BYTES-IN": lambda row: row["bytes_in"],
        "BYTES-OUT": lambda row: row["bytes_out"],
        "MSGS-IN": lambda row: row["messages_in"],
        "MSGS-OUT": lambda row: row["messages_out"],
        "QUEUED": lambda row: row.get("queued"),
        "RETRIES": lambda row: row.get("failures"),
        "AGE": lambda row: _duration(row["age"]),
        "NAME": lambda row: row.get("name"),
    }
    _print_table(columns, answer["rows"])
    if silent := answer.get("missing"):
        print(f"laraman: no answer from {', '.join(silent)}", file=sys.stderr)
    if left_out := answer.get("left_out"):
        print(f"laraman: {left_out} more are not shown", file=sys.stderr)


_WORDS = {"WORKER", "STATE", "LAST EXIT", "DIR", "PROTOCOL", "LOCAL", "PEER", "NAME"}


def _print_table(columns: Mapping[str, Callable[[dict[str, Any]], object]], rows: Iterable[dict[str, Any]]) -> None:
    """Numbers to the right, words to the left; a dash for what is not known."""
    cells = [[_cell(column(row)) for column in columns.values()] for row in rows]
    lines = [list(columns), *cells]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        fields = zip(columns, line, widths, strict=True)
        padded = (cell.ljust(width) if name in _WORDS else cell.rjust(width) for name, cell, width in fields)
        print("  ".join(padded).rstrip())


def _cell(value: object) -> str:
    text = "-" if value is None or value == "" else str(value)
    return text if text.isprintable() else ascii(text)[1:-1]  # an exit's reason may quote what a stranger sent


def _duration(seconds: float | None) -> str:
    """12s, 3m07s, 2h05m, 4d03h."""
    if seconds is None:
        return "-"
    left = int(seconds)
    for unit, size, smaller, smaller_size in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if left >= size:
            return f"{left // size}{unit}{left % size // smaller_size:02}{smaller}"
    return f"{left}s"


def _size(count: int | None) -> str | None:
    return None if count is None else f"{count / 2**20:.1f}M"


# Parsing --------------------------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing its usage: an error is one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        word = next((word for word in unknown if word.startswith("-")), unknown[0]).partition("=")[0]
        known = [flag for option in parser._actions for flag in option.option_strings]
        raise ConfigError(f"there is no option {word!r}{did_you_mean(word, known)}" if word.startswith("-") else f"{word!r} is one word too many")
    return parsed


#: What the help calls the options from this field on.
_GROUPS = {
    "app": "application",
    "isolation": "state between requests",
    "host": "address",
    "workers": "processes",
    "loop": "protocols",
    "log_level": "log",
    "limit_concurrency": "limits",
    "timeout_keep_alive": "timeouts, in seconds",
}


def _start_parser() -> argparse.ArgumentParser:
    verbs = "\n".join(f"  {name:<13}{help}" for name, (help, _) in VERBS.items())
    parser = _Parser(
        prog="laraman",
        usage="laraman [start] [APP] [options]\n       laraman gateway | check | stop | restart | reload | status | connections [options]",
        description=f"The resident application server for Python.\n\nverbs:\n{verbs}",
        epilog="Each option can also be set by the environment variable LARAMAN_<NAME>, and by <name> in [tool.laraman] of pyproject.toml.",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=34),
        allow_abbrev=False,
    )
    group: argparse._ArgumentGroup | None = None
    for option in OPTIONS.values():
        if option.name in _GROUPS:
            group = parser.add_argument_group(_GROUPS[option.name])
        assert group is not None
        if option.metadata["flags"] is not None:
            _add(group, option)
    return parser


def _gateway_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="laraman gateway",
        description="Run a websocket gateway that speaks the netsvr protocol, alone.",
        epilog="The options can also be set by LARAMAN_GATEWAY_<NAME> and in [tool.laraman.gateway] of pyproject.toml; the secret only there.",
        allow_abbrev=False,
    )
    group = parser.add_argument_group("gateway")
    for option in GATEWAY.options.values():
        if option.metadata and option.metadata["flags"] is not None:
            _add(group, option)
    group = parser.add_argument_group("server")
    for name in _GATEWAY_SERVER_OPTIONS:
        _add(group, OPTIONS[name])
    return parser


def _check_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="laraman check", description=f"{VERBS['check'][0].capitalize()}.", allow_abbrev=False)
    group = parser.add_argument_group("application")
    for name in _CHECK_OPTIONS:
        _add(group, OPTIONS[name])
    group = parser.add_argument_group("check")
    found = "the GETs of its OpenAPI document, else of its routes"
    group.add_argument("--requests", metavar="FILE", help=f'A line "METHOD /path" for each request, or a JSON list. Default: {found}.')
    group.add_argument("--rounds", metavar="NUMBER", default="5", help="How often they are played after the first time. Default: 5.")
    group.add_argument("--timeout", metavar="NUMBER", default="5", help="Seconds that a request gets. Default: 5.")
    group.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def _add(group: argparse._ArgumentGroup, option: Field[Any]) -> None:
    """The parser only sorts words; Config checks what they mean, wherever they come from."""
    default = default_text(option)
    text = (option.metadata["help"] + (f" Default: {default}." if default else "")).replace("%", "%%").replace("`", "")
    metavar = option.metadata["metavar"] or "|".join(choices(option)) or ("TEXT" if kind(option) in (str, tuple) else "NUMBER")
    if option.name == "app":
        group.add_argument("app", nargs="?", metavar="APP", help=text)
    elif is_switch(option):
        group.add_argument(*flags(option), dest=option.name, action=argparse.BooleanOptionalAction, default=None, help=text)
    elif kind(option) is tuple:
        group.add_argument(*flags(option), dest=option.name, action="append", metavar=metavar, help=text)
    else:
        group.add_argument(*flags(option), dest=option.name, metavar=metavar, help=text)


def _verb_parser(verb: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=f"laraman {verb}", description=VERBS[verb][0].capitalize() + ".", allow_abbrev=False)
    group = parser.add_argument_group("which server, when several run here")
    group.add_argument("--name", help="its name")
    group.add_argument("--port", help="its port", metavar="NUMBER")
    group.add_argument("--state-dir", help="its state directory", metavar="DIRECTORY")
    return parser
