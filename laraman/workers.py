"""gunicorn's worker class: ``gunicorn -k laraman.workers.LaramanWorker main:app``, where gunicorn is to stay the master.

Of gunicorn's settings these mean here what they mean there: bind, backlog, timeout, graceful_timeout, keepalive, max_requests, forwarded_allow_ips,
proxy_protocol, the certificates with the hook ssl_context, and its logs. Everything else is in ``CONFIG_KWARGS`` of a derived class.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import tempfile
from typing import TYPE_CHECKING, Any, ClassVar

from gunicorn.sock import ssl_context
from gunicorn.workers.base import Worker

from laraman.asgi.server import Server
from laraman.asgi.settings import Config

if TYPE_CHECKING:
    import socket
    from types import FrameType

#: Seconds between two signs of life, at most.
BEAT = 1.0


class LaramanWorker(Worker):  # type: ignore[misc]  # gunicorn has no types
    """Serves gunicorn's application, which is an ASGI one."""

    #: Options of ``laraman.Config``.
    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {}

    def init_signals(self) -> None:
        """Leave gunicorn's ways for what the server does not do; it takes SIGTERM and SIGINT while it serves."""
        super().init_signals()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)

    def run(self) -> None:
        config = Config(self.wsgi, **{**self._options(), **self.CONFIG_KWARGS})
        for ours, theirs in (("uvicorn.error", self.log.error_log), ("uvicorn.access", self.log.access_log)):
            logger = logging.getLogger(ours)
            logger.handlers, logger.propagate = list(theirs.handlers), False
            logger.setLevel(theirs.level)
        _Server(config, self).run(self.sockets)

    def _options(self) -> dict[str, Any]:
        cfg = self.cfg
        return {
            "log_config": None,
            "timeout_keep_alive": cfg.keepalive,
            "timeout_graceful_shutdown": cfg.graceful_timeout,
            "limit_max_requests": self.max_requests if self.max_requests < sys.maxsize else None,
            "forwarded_allow_ips": cfg.forwarded_allow_ips,
            "proxy_protocol": cfg.proxy_protocol not in (False, "off"),
            "backlog": cfg.backlog,
            "ssl_context_factory": (lambda *_: ssl_context(cfg)) if cfg.is_ssl else None,
        }


class LaramanH11Worker(LaramanWorker):
    """The same in pure Python."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {"loop": "asyncio", "http": "h11"}


class _Server(Server):
    """Shows gunicorn that it lives, in every phase, and ends when gunicorn or somebody in the worker wants it."""

    def __init__(self, config: Config, worker: LaramanWorker) -> None:
        super().__init__(config)
        self._gunicorns = worker
        self.leases = _leases(worker.ppid)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        beats = asyncio.get_running_loop().create_task(self._beat())
        before = signal.signal(signal.SIGQUIT, self._handle_quit)
        try:
            await super().serve(sockets)
        finally:
            signal.signal(signal.SIGQUIT, before)
            beats.cancel()

    async def _beat(self) -> None:
        worker = self._gunicorns
        while True:
            worker.notify()
            if not worker.alive or os.getppid() != worker.ppid:
                self.should_exit = True
            await asyncio.sleep(min(BEAT, (worker.timeout or BEAT) / 2))

    def retire(self, reason: str) -> None:
        """gunicorn starts another one."""
        logging.getLogger("uvicorn.error").info("Terminating process: %s.", reason)
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._captured_signals.clear()  # a clean end is one for gunicorn, whose hooks are called then

    def _handle_quit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = True
        self.should_exit = True


def _leases(arbiter: int) -> int:
    """A descriptor of the directory where the workers of one arbiter keep leases: each is the only one of its server, but not of gunicorn's."""
    path = os.path.join(tempfile.gettempdir(), f"laraman-{os.geteuid()}-gunicorn-{arbiter}")
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    if os.fstat(directory).st_uid != os.geteuid():
        os.close(directory)
        raise PermissionError(f"{path} is not a directory of ours")
    return directory
