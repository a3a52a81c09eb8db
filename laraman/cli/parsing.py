"""The parsers, made from the fields of the configuration. They only sort words; Config checks what these mean, wherever they come from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from laraman.config import OPTIONS
from laraman.config.gateway import GATEWAY
from laraman.config.options import choices, default_text, did_you_mean, flags, is_switch, kind
from laraman.errors import ConfigError

if TYPE_CHECKING:
    from dataclasses import Field

#: Read in the working directory.
PYPROJECT = Path("pyproject.toml")

#: What the verbs do, and the module of this package in which each is a function of its name.
VERBS: dict[str, tuple[str, str]] = {
    "start": ("start the server", "serving"),
    "dev": ("start it for development, from a PATH: with --reload, on 127.0.0.1", "developing"),
    "run": ("start it for production, from a PATH: on all addresses, 0.0.0.0, as `fastapi run`", "developing"),
    "config": ("show every option, its value and where that comes from", "showing"),
    "gateway": ("run a websocket gateway alone", "serving"),
    "stop": ("stop it; with -g without a deadline", "control"),
    "restart": ("start it anew without closing its sockets", "control"),
    "reload": ("replace the workers one by one, with new code", "control"),
    "status": ("show its processes", "control"),
    "connections": ("show its connections", "control"),
    "doctor": ("show what the project uses of uvicorn, and how its application answers under both", "doctoring"),
    "check": ("play requests on the application and report what they leave behind", "checking"),
}

#: The server's options that a gateway alone has as well.
GATEWAY_SERVER_OPTIONS = (
    *("env_file", "daemon", "name", "state_dir", "user", "group", "loop", "log_level", "log_config", "log_file", "use_colors"),
    *("timeout_graceful_shutdown", "timeout_worker_healthcheck", "timeout_worker_boot"),
)
#: The server's options that `laraman check` has as well.
CHECK_OPTIONS = ("app", "factory", "interface", "app_dir", "env_file", "listeners", "lifespan")
#: The server's options that `laraman doctor` has as well.
DOCTOR_OPTIONS = ("app", "factory", "interface", "app_dir", "env_file", "lifespan")


class Parser(argparse.ArgumentParser):
    """Raises instead of printing its usage: an error is one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
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
    "ssl_keyfile": "TLS",
    "proxy_headers": "proxies in front",
    "reload": "development",
    "workers": "processes",
    "loop": "protocols",
    "log_level": "log",
    "limit_concurrency": "limits",
    "timeout_keep_alive": "timeouts, in seconds",
}


def start_parser() -> argparse.ArgumentParser:
    verbs = "\n".join(f"  {name:<13}{help}" for name, (help, _) in VERBS.items())
    parser = Parser(
        prog="laraman",
        usage="laraman [start] [APP] [options]\n       laraman VERB [options]",
        description=f"The resident application server for Python.\n\nverbs:\n{verbs}",
        epilog="Each option can also be set by the environment variable LARAMAN_<NAME>, and by <name> in [tool.laraman] of pyproject.toml.",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=34),
        allow_abbrev=False,
    )
    group = parser.add_argument_group(_GROUPS["app"])
    add_option(group, OPTIONS["app"])
    _add_others(parser, group)
    return parser


def path_parser(verb: str) -> argparse.ArgumentParser:
    """Of the verbs that take a path to the application where ``start`` takes its import string."""
    parser = Parser(
        prog=f"laraman {verb}",
        description=VERBS[verb][0].capitalize() + ".",
        epilog="The application is found as FastAPI's own command finds it. Without a PATH or a NAME, `entrypoint` in [tool.fastapi] of "
        "pyproject.toml counts too. Everything else is as for laraman start, and $PORT is the port where nothing else says.",
        allow_abbrev=False,
    )
    group = parser.add_argument_group(_GROUPS["app"])
    group.add_argument("path", nargs="?", metavar="PATH", help="A Python file, or a package's directory. Default: the first conventional file.")
    group.add_argument("--app", dest="name_of_app", metavar="NAME", help="Its name in that file. Default: app, api, or an instance of FastAPI.")
    group.add_argument("-e", "--entrypoint", dest="app", metavar="APP", help="Instead of both, package.module:attribute.")
    _add_others(parser, group)
    return parser


def _add_others(parser: argparse.ArgumentParser, group: argparse._ArgumentGroup) -> None:
    """All options of the server but the application itself, which is in ``group``."""
    for option in OPTIONS.values():
        if option.name in _GROUPS and option.name != "app":
            group = parser.add_argument_group(_GROUPS[option.name])
        if option.metadata["flags"] is not None and option.name != "app":
            add_option(group, option)


def config_parser() -> argparse.ArgumentParser:
    parser = start_parser()
    parser.usage, parser.description = "laraman config [APP] [options]", VERBS["config"][0].capitalize() + "."
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    return parser


def gateway_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="laraman gateway",
        description="Run a websocket gateway that speaks the netsvr protocol, alone.",
        epilog="The options can also be set by LARAMAN_GATEWAY_<NAME> and in [tool.laraman.gateway] of pyproject.toml; the secret only there.",
        allow_abbrev=False,
    )
    group = parser.add_argument_group("gateway")
    for option in GATEWAY.options.values():
        if option.metadata and option.metadata["flags"] is not None:
            add_option(group, option)
    group = parser.add_argument_group("server")
    for name in GATEWAY_SERVER_OPTIONS:
        add_option(group, OPTIONS[name])
    return parser


def check_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="laraman check", description=f"{VERBS['check'][0].capitalize()}.", allow_abbrev=False)
    group = parser.add_argument_group("application")
    for name in CHECK_OPTIONS:
        add_option(group, OPTIONS[name])
    group = parser.add_argument_group("check")
    _add_requests(group, "the GETs of its OpenAPI document, else of its routes")
    group.add_argument("--rounds", metavar="NUMBER", default="5", help="How often they are played after the first time. Default: 5.")
    group.add_argument("--timeout", metavar="NUMBER", default="5", help="Seconds that a request gets. Default: 5.")
    ignore = "A name under WHAT that may grow; * stands for anything. Again for each further one."
    group.add_argument("--ignore", metavar="NAME", action="append", default=[], help=ignore)
    return parser


def doctor_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="laraman doctor", description=f"{VERBS['doctor'][0].capitalize()}.", allow_abbrev=False)
    group = parser.add_argument_group("application")
    for name in DOCTOR_OPTIONS:
        add_option(group, OPTIONS[name])
    group = parser.add_argument_group("doctor")
    _add_requests(group, "/, and the GETs of its OpenAPI document, else of its routes")
    group.add_argument("--timeout", metavar="NUMBER", default="15", help="Seconds that each server gets to start. Default: 15.")
    return parser


def _add_requests(group: argparse._ArgumentGroup, default: str) -> None:
    """What all verbs have that play requests and report."""
    group.add_argument("--requests", metavar="FILE", help=f'A line "METHOD /path" for each request, or a JSON list. Default: {default}.')
    group.add_argument("--json", action="store_true", help="print the report as JSON")


def add_option(group: argparse._ArgumentGroup, option: Field[Any]) -> None:
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


def verb_parser(verb: str) -> argparse.ArgumentParser:
    parser = Parser(prog=f"laraman {verb}", description=VERBS[verb][0].capitalize() + ".", allow_abbrev=False)
    group = parser.add_argument_group("which server, when several run here")
    group.add_argument("--name", help="its name")
    group.add_argument("--port", help="its port", metavar="NUMBER")
    group.add_argument("--state-dir", help="its state directory", metavar="DIRECTORY")
    return parser
