"""The verbs that talk to a running server."""

from __future__ import annotations

import json
import math
import os
import sys
from typing import TYPE_CHECKING

from laraman.cli.parsing import PYPROJECT, parse, verb_parser
from laraman.cli.tables import print_connections, print_status
from laraman.config import Config
from laraman.errors import ConfigError, LaramanError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from laraman.process.state import Instance
    from laraman.protocols.ipc import Envelope

#: Seconds to wait for an answer that the master has at hand.
QUICK = 10.0
#: Seconds to wait for something that takes as long as the workers do, each with deadlines of its own.
LONG = 3600.0


def stop(arguments: list[str]) -> int:
    """Stop the server and wait until it is gone."""
    from laraman.process.control import wait_gone

    parser = verb_parser("stop")
    parser.add_argument("-g", "--graceful", action="store_true", help="let running requests finish, however long they take")
    parsed = parse(parser, arguments)
    instance = the_instance(parsed)
    ask(instance, {"op": "stop", "graceful": parsed.graceful}, QUICK)
    if not wait_gone(instance.control, math.inf if parsed.graceful else LONG):
        raise LaramanError(f"the server {instance.name} (pid {instance.pid}) does not stop")
    print(f"Stopped {instance.name} [{instance.pid}]")
    return 0


def restart(arguments: list[str]) -> int:
    """Execute the server anew, with its sockets kept, and wait until the new workers are ready."""
    from laraman.process import control

    instance = the_instance(parse(verb_parser("restart"), arguments))
    checked(control.restart(instance.control, LONG))
    print(f"Restarted {instance.name} [{instance.pid}]")
    return 0


def reload(arguments: list[str]) -> int:
    """Replace the workers one by one and wait until it is done."""
    instance = the_instance(parse(verb_parser("reload"), arguments))
    answer = ask(instance, {"op": "reload"}, LONG)
    print(f"Reloaded {instance.name} [{instance.pid}]")
    if kept := answer.get("not_reloadable"):
        print(f"laraman: not reloadable, because the handler is no import string: {', '.join(map(str, kept))}", file=sys.stderr)
    return 0


def status(arguments: list[str]) -> int:
    """Show the server and its processes."""
    return _show("status", arguments, print_status)


def connections(arguments: list[str]) -> int:
    """Show every connection of every worker, accepted and dialled."""
    return _show("connections", arguments, print_connections)


def _show(verb: str, arguments: list[str], printer: Callable[[Envelope], None]) -> int:
    parser = verb_parser(verb)
    parser.add_argument("--json", action="store_true", help="print the raw answer")
    parsed = parse(parser, arguments)
    answer = ask(the_instance(parsed), {"op": verb}, QUICK)
    if parsed.json:
        print(json.dumps(answer))
    else:
        printer(answer)
    return 0


def the_instance(parsed: argparse.Namespace) -> Instance:
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


def ask(instance: Instance, envelope: Envelope, timeout: float) -> Envelope:
    from laraman.process.control import request

    return checked(request(instance.control, envelope, timeout))


def checked(answer: Envelope) -> Envelope:
    if not answer.get("ok"):
        raise LaramanError(f"{answer['op']} failed: {answer.get('error') or 'the server gave no reason'}")
    return answer
