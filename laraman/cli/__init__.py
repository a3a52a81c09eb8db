"""The command ``laraman``: a verb, then options. An application where the verb would be means ``start``, so that it reads like uvicorn's.

Exit codes: 0 fine, 1 not running or not done, 2 wrong usage or configuration, 3 the server could not start. An error is one line on stderr.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from laraman.cli.parsing import VERBS, start_parser
from laraman.config import OPTIONS, VERSION, env_names
from laraman.config.options import did_you_mean
from laraman.errors import ConfigError, LaramanError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _have_streams()
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


def _have_streams() -> None:
    """Started without stdin, stdout or stderr, have nothing's: else their numbers become those of sockets, and Python has None for them."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _dispatch(arguments: list[str]) -> int:
    first = arguments[0] if arguments else ""
    if "--version" in arguments:
        import platform

        print(f"Running laraman {VERSION} with {platform.python_implementation()} {platform.python_version()} on {platform.system()}")
        return 0
    if first == "help" or (first not in VERBS and {"-h", "--help"} & {*arguments}):
        print(start_parser().format_help(), end="")
        return 0
    if not first and not any(os.environ.get(name) for name in env_names(OPTIONS["app"])):
        print(start_parser().format_help(), end="", file=sys.stderr)
        return 2
    if first in VERBS:
        return _verb(first)(arguments[1:])
    if not first or first.startswith("-") or ":" in first or "." in first:
        return _verb("start")(arguments)
    raise ConfigError(f"{first!r} is neither a verb ({', '.join(VERBS)}) nor an application (package.module:app){did_you_mean(first, VERBS)}")


def _verb(name: str) -> Callable[[list[str]], int]:
    function: Callable[[list[str]], int] = getattr(import_module(f"laraman.cli.{VERBS[name][1]}"), name)
    return function
