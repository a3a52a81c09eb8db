"""``laraman.run``: a program that is a server."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from laraman.asgi.settings import STARTUP_FAILURE, Config
from laraman.errors import ConfigError, LaramanError

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from laraman.config import Config as Frozen
    from laraman.process.worker import Worker

logger = logging.getLogger("uvicorn.error")

#: Whether ``run_workers`` is at work; the children, being forks, know it.
_running = False


def run(app: Any, **options: Any) -> None:
    """Serve ``app`` until it is told to stop, as ``uvicorn.run`` does; ``options`` are those of ``laraman.Config``.

    Alone in this process, or with a master where something is asked for that needs one: ``workers``, ``reload``, ``preload``, ``daemon``,
    ``task_workers``, an embedded gateway; ``app`` is an import string then. Exits with 3 when the server cannot start. Raises what
    ``laraman.Config`` raises.
    """
    config = Config(app, **options)
    frozen = config.frozen()
    if config.use_subprocess or frozen.preload or frozen.daemon or frozen.gateway.enabled or frozen.user or frozen.group or frozen.task_workers:
        if not isinstance(app, str):
            logger.warning("You must pass the application as an import string to enable 'reload' or 'workers'.")
            sys.exit(STARTUP_FAILURE)
        _be_master(frozen)
        return
    config.load_app()
    from laraman.asgi.server import Server

    server = Server(config)
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if not server.started and not server.should_exit:
        sys.exit(STARTUP_FAILURE)


def run_workers(*workers: Worker, **options: Any) -> None:
    """Run these Workers until it is told to stop; ``options`` are those of ``laraman.Config``, for all of them.

    This program becomes their master. Where it names handlers in itself, the children import it too, so this belongs under
    ``if __name__ == "__main__":``. Exits with 2 when something is declared wrong, with 3 when the server cannot start. Raises what
    ``laraman.Config`` raises.
    """
    global _running
    if _running:
        raise ConfigError('run_workers is called while the program is imported by a worker: put the call under if __name__ == "__main__":')
    _running = True
    try:
        _be_master(Config("", **options).frozen(), workers)
    finally:
        _running = False


def _be_master(config: Frozen, workers: Sequence[Worker] = ()) -> None:
    from laraman.cli.serving import complete, run, workers_of

    try:
        config = complete(replace(config, env_file=""))  # which has been read
        if not (config.app or workers or config.task_workers):
            raise ConfigError("there are no Workers to run")
        code = run(config, [*workers_of(config), *workers], lambda: None)
    except LaramanError as exc:
        logger.error("%s", exc)
        code = exc.exit_code
    if code:
        sys.exit(code)


class Supervisor:
    """What stands for uvicorn's supervisors: a master of workers that serve ``config`` on the first of ``sockets``; ``target`` is not called."""

    def __init__(self, config: Config, target: Any = None, sockets: Sequence[socket.socket] = ()) -> None:
        self.config = config
        self.sockets = sockets

    def run(self) -> None:
        """Until it is told to stop. Exits with the code of a start that failed."""
        frozen = self.config.frozen()
        _be_master(replace(frozen, fd=os.dup(self.sockets[0].fileno()), bind=(), uds="") if self.sockets else frozen)
