"""The verbs that are a server: ``start`` and ``gateway``."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from laraman import log
from laraman.cli.parsing import GATEWAY_SERVER_OPTIONS, PYPROJECT, VERBS, gateway_parser, parse, start_parser
from laraman.cli.programs import names_workers, program_workers
from laraman.config import Config, envfile
from laraman.config.gateway import GATEWAY
from laraman.config.settle import remarks
from laraman.errors import ConfigError, LaramanError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from laraman.process.worker import Worker

logger = logging.getLogger("uvicorn.error")

#: The interface of what is no application.
WORKERS: Literal["workers"] = "workers"
#: What connects the application with the gateways, where there are any.
_GATEWAY_LISTENERS = ("laraman.gateway.listeners",)
#: Seconds on top of the boot deadline that a daemon gets to say how its start went.
DAEMON_MARGIN = 15.0


def start(arguments: list[str]) -> int:
    """Serve until stopped; with ``--daemon`` until it is ready."""
    environ = dict(os.environ)  # what a restart has, before the environment file is read again
    return serve(configured(arguments), lambda: configured(arguments, environ))


def serve(config: Config, again: Callable[[], Config]) -> int:
    """Be the master of what the configuration says; ``again`` reads that anew for a restart."""

    def revalidate() -> None:
        new = again()
        workers_of(new)
        if config.interface == WORKERS != new.interface:
            raise ConfigError(f"{new.app} names no Workers any more, or its module cannot be read")

    return run(config, workers_of(config), revalidate)


def workers_of(config: Config) -> list[Worker]:
    """What is to run, but for what modules declare that the master imports. Raises ConfigError."""
    from laraman.asgi import http_workers
    from laraman.process.watch import Watcher
    from laraman.process.worker import declared_workers

    if config.app and config.interface != WORKERS:
        return [*http_workers(config), *declared_workers(config)]
    if config.preload:
        raise ConfigError("--preload is for an application, and there is none")
    return [*([Watcher(config)] if config.reload else []), *declared_workers(config)]


def gateway(arguments: list[str]) -> int:
    """Run a websocket gateway and nothing else, until stopped."""
    from laraman.gateway import gateway_worker

    environ = dict(os.environ)
    config = _gateway_configured(arguments, environ)
    return run(config, [gateway_worker(config)], lambda: _gateway_configured(arguments, environ))


def run(config: Config, workers: list[Worker], revalidate: Callable[[], object]) -> int:
    """Be the master of these workers, in the foreground or as a daemon."""
    from laraman.channel.hub import hub_worker
    from laraman.process import handover
    from laraman.process.daemon import daemonize
    from laraman.process.master import Master
    from laraman.process.worker import import_afresh
    from laraman.tasks import journal_worker, task_worker

    def prepare() -> list[Worker]:
        log.configure(config)
        import_afresh(config)
        _tell(config)
        _import_listeners(config)
        return _of_program(config)

    added = envfile.apply(config.env_file)
    notify = daemonize(config.timeout_worker_boot + DAEMON_MARGIN) if config.daemon else None
    try:
        if handover.pending():  # then the master does it, when the workers are in its hands, so that an error leaves them running
            with suppress(ConfigError):
                log.configure(config)
        else:
            workers = [*workers, *prepare()]
        if not config.channel:
            workers = [*workers, hub_worker()]
        if config.task_workers:
            workers = [*workers, task_worker(config), journal_worker(config)]
        master = Master(config, workers, notify=notify, revalidate=revalidate, prepare=prepare, added=added)
    except LaramanError as exc:
        if notify is None:
            raise
        notify(exc.exit_code, f"laraman: {exc}")
        return exc.exit_code
    code = master.run()
    if code and config.log_file and notify is None:
        print(f"laraman: ended with exit code {code}; {config.log_file} says why", file=sys.stderr)
    return code


def _tell(config: Config) -> None:
    """What there is to say about the configuration, in uvicorn's words."""
    if config.env_file:
        logger.info("Loading environment from '%s'", config.env_file)
    for remark in remarks(config):
        logger.warning("%s", remark)


def configured(arguments: list[str], environ: Mapping[str, str] = os.environ) -> Config:
    """The whole configuration, with what there is to run. Raises ConfigError."""
    return complete(told_apart(with_app(Config.load(vars(parse(start_parser(), arguments)), environ, PYPROJECT))))


def told_apart(config: Config) -> Config:
    """The same, with ``interface`` saying so where the application is no application but Workers; their module is a listener module then."""
    if config.interface == "auto" and names_workers(config.app, config.app_dir):
        config = replace(config, interface=WORKERS)
    if config.interface != WORKERS:
        return config
    module, _, attribute = config.app.partition(":")
    if not module or not attribute:
        raise ConfigError(f"{config.app!r} is not of the form module:attribute")
    return replace(config, listeners=(*config.listeners, module))


def complete(config: Config) -> Config:
    """The same with our own listeners, those of the gateways. Raises ConfigError when the configuration of logging cannot be read."""
    log.check(config)
    return replace(config, listeners=(*config.listeners, *(_GATEWAY_LISTENERS if config.gateway.enabled else ())))


def with_app(config: Config) -> Config:
    """The same with an application, found when none is named; there need be none beside declared Workers. Raises ConfigError."""
    from laraman.asgi.discovery import CONVENTIONAL_FILES, find_app

    if config.app in VERBS:
        raise ConfigError(f"the verb comes first: laraman {config.app} ...")
    app = config.app or find_app(config.app_dir or ".")
    if not app and not config.declared:
        raise ConfigError(
            "no application: name it (laraman start package.module:app), set `app` in [tool.laraman] of pyproject.toml, "
            f"or call it `app` in {', '.join(CONVENTIONAL_FILES)}"
        )
    return replace(config, app=app)


def _gateway_configured(arguments: list[str], environ: Mapping[str, str]) -> Config:
    """The configuration of a gateway alone. Raises ConfigError."""
    parsed = vars(parse(gateway_parser(), arguments))
    own = {name: parsed.pop(name) for name in GATEWAY.options if name in parsed}
    config = Config.load(parsed, environ, PYPROJECT, only=(*GATEWAY_SERVER_OPTIONS, "gateway"), gateway=own)
    log.check(config)
    port = int(config.gateway.listen.rpartition(":")[2])  # which is its name, unless it has another
    return replace(config, port=port, gateway=replace(config.gateway, embedded=True))


def _of_program(config: Config) -> list[Worker]:
    """The Workers that the imported program declares."""
    if config.interface != WORKERS:
        return []
    try:
        return program_workers(config.app)
    except LaramanError:
        raise
    except (Exception, SystemExit) as exc:
        raise ConfigError(f"{config.app} raised {_in_a_line(exc)}") from None


def _import_listeners(config: Config) -> None:
    from laraman.process.worker import import_listeners

    try:
        import_listeners(config)
    except LaramanError:
        raise
    except (Exception, SystemExit) as exc:
        name = next((name for name in config.listeners if name not in sys.modules), "?")
        kind = "module" if config.interface == WORKERS and config.app.startswith(f"{name}:") else "listener module"
        raise ConfigError(f"the {kind} {name!r} cannot be imported: {_in_a_line(exc)}") from None


def _in_a_line(exc: BaseException) -> str:
    """Type, message and, unless the message of a SyntaxError has it, the place."""
    from traceback import extract_tb

    text = f"{type(exc).__name__}: {exc}".partition("\n")[0].rstrip(": ")
    frame = extract_tb(exc.__traceback__)[-1]
    return text if isinstance(exc, SyntaxError) else f"{text} ({frame.filename}:{frame.lineno})"
