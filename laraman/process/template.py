"""Templates: a worker whose process imports the application once, freezes its heap, and is what another worker's processes are forked from.

It has no event loop and no threads of its own, so that ``fork`` is safe in it. Its life:

    BOOTING     listener modules, handler, on_load -> what a worker imports later -> garbage out, heap frozen -> "ready"
    SERVING     beats, and forks when the master says "fork" and sends along what the child gets
    STOPPED     at once, when it is told to stop: it holds nothing

The process in the middle of a fork ends at once, and the master, who has made itself the reaper for that moment, becomes the parent. So every
worker is the master's own child, and outlives its template.
"""

from __future__ import annotations

import errno
import gc
import importlib
import inspect
import logging
import math
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from laraman.errors import BootError, ConfigError
from laraman.process.loopless import Loopless
from laraman.process.worker import import_listeners

if TYPE_CHECKING:
    from laraman.process.unforkable import Watch
    from laraman.process.worker import Worker
    from laraman.protocols.ipc import Envelope

logger = logging.getLogger("uvicorn.error")

#: Modules that a worker imports only while it starts or serves; those that are not installed are left out.
LATER = (
    *("laraman.process.child", "laraman.sandbox.adapters", "laraman.sandbox.guard", "laraman.sandbox.reset"),
    *("anyio._backends._asyncio", "concurrent.futures.thread", "encodings.idna"),
)
#: What asyncio and sniffio say to code that needs a running loop, and what is to be said then.
LOOPLESS = ("no running event loop", "no current event loop", "unknown async library")
HINT = "--preload imports the application where no event loop runs: what needs one belongs in its lifespan"


def template_of(worker: Worker) -> Template:
    """The declaration of the template that ``worker``'s processes are to be forked from. Raises ConfigError where that is not possible."""
    if sys.platform != "linux":
        raise ConfigError(f"--preload is not available on {sys.platform}: it needs Linux, where a process can adopt the children of another")
    return Template(worker)


def _tell_unforkable(watch: Watch) -> None:
    try:
        for what in watch.found():
            logger.warning("Preload: %s", what)
    except Exception:  # it looks at the application's objects, and these may be of any kind
        logger.warning("Preload: threads, sockets and event loops could not be looked for", exc_info=True)


class Template(Loopless):
    """The declaration, and in its process the template itself. ``of`` is the worker that is forked from it.

    A ``bare`` one imports what ``of`` needs but nothing of the application, so it outlives every reload; what that is the handler knows, whose
    method ``on_bare(worker)`` it calls.
    """

    def __init__(self, of: Worker, *, bare: bool = False) -> None:
        super().__init__(f"{of.name}-template", handler=of.handler, stop_timeout=0.0, exclusive=bare, **of.options)
        self.of = of
        self.bare = bare
        of.template = self.name

    def serve(self) -> int:
        self.of.config = self.config
        if code := self._boot():
            return code
        while not self.attend(math.inf):
            pass
        return 0

    # Boot ------------------------------------------------------------------------------------------------------------------------

    def _boot(self) -> int:
        """The exit code; 0 when it can fork."""
        from laraman.process.child import failure
        from laraman.process.unforkable import Watch

        watch = Watch()
        try:
            self._load()
        except (Exception, SystemExit) as exc:
            error = BootError(f"worker {self.name}: sys.exit({exc.code!r}) was called while it started") if isinstance(exc, SystemExit) else exc
            failed = failure(self, error)
            if any(phrase in failed["error"] for phrase in LOOPLESS):
                failed["error"] += f" ({HINT})"
            self.say(failed)
            return int(failed["exit"])
        if not self.bare:
            _tell_unforkable(watch)
        gc.collect()
        gc.freeze()
        self.say({"op": "ready"})
        return 0

    def _load(self) -> None:
        """Do what a worker's boot would do without a loop. Raises what the application raises."""
        from laraman.process.life import load_handler

        if self.bare:
            load_handler(self.handler).on_bare(self.of)
        else:
            import_listeners(self.config)
            self.of.loaded = self._loaded(load_handler(self.handler))
        for name in (*LATER, *(("uvloop",) if self.config.loop in ("auto", "uvloop") else ())):
            with suppress(ImportError):
                importlib.import_module(name)

    def _loaded(self, handler: Any) -> Any:
        on_load = getattr(handler, "on_load", None)
        if on_load is not None and inspect.isawaitable(on_load(self.of)):
            raise ConfigError(f"worker {self.of.name}: on_load is async, and a template has no event loop")
        return handler

    # Orders ----------------------------------------------------------------------------------------------------------------------

    def obey(self, envelope: Envelope) -> None:
        if envelope["op"] == "fork":
            self._fork(envelope)
        else:  # its children inherit the log files that it has open
            super().obey(envelope)

    # The fork --------------------------------------------------------------------------------------------------------------------

    def _fork(self, order: Envelope) -> None:
        """Fork a process that is the master's, not ours, and say its pid; or say what was wrong."""
        given, self._descriptors = self._descriptors, []
        try:
            if len(given) != 2 + len(self.of.binds):
                raise OSError(0, f"{len(given)} descriptors came for {len(self.of.binds)} addresses")
            pid = self._fork_twice(order["slot"], order["generation"], given)
        except OSError as exc:
            self.say({"op": "forked", "error": exc.strerror})
        else:
            self.say({"op": "forked", "pid": pid})
        finally:
            for descriptor in given:
                os.close(descriptor)

    def _fork_twice(self, slot: int, generation: int, given: list[int]) -> int:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # the application's own, closed, none at all
                stream.flush()
        told, tell = os.pipe()  # by which the one in the middle says who the child is
        gone, staying = os.pipe()  # whose end tells the child that the one in the middle is gone
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            middle = os.fork()
            if not middle:
                self._be_in_the_middle(slot, generation, given, before, (told, tell, gone, staying))
            code = _end_of(middle)
            os.set_blocking(told, False)
            try:
                return int(os.read(told, 20))
            except BlockingIOError:
                raise OSError(code or errno.ECHILD, os.strerror(code) if code > 0 else "the fork was killed") from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            for descriptor in (told, tell, gone, staying):
                os.close(descriptor)

    def _be_in_the_middle(self, slot: int, generation: int, given: list[int], mask: set[int], pipes: tuple[int, int, int, int]) -> NoReturn:
        code = 1
        try:
            if pid := os.fork():
                os.write(pipes[1], str(pid).encode())
                code = 0
            else:
                self._be_a_worker(slot, generation, given, mask, *pipes)
        except OSError as exc:
            code = exc.errno or 1
        finally:
            os._exit(code & 0xFF)

    def _be_a_worker(
        self, slot: int, generation: int, given: list[int], mask: set[int], told: int, tell: int, gone: int, staying: int
    ) -> NoReturn:
        from laraman.process.children import live
        from laraman.sandbox.adapters import after_fork

        channel, black_box, *binds = given

        def leave() -> None:
            os.close(staying)
            os.read(gone, 1)  # until the template has seen the end of the one in the middle
            if os.getppid() != self._master:
                os._exit(0)  # nobody knows of this process
            for descriptor in (told, tell, gone):
                os.close(descriptor)
            self._channel.close()
            for bind, descriptor in zip(self.of.binds, binds, strict=True):
                bind.open(descriptor)
            after_fork()

        live(self.of, slot, generation, socket.socket(fileno=channel), self.config, black_box, mask, leave)


def _end_of(pid: int) -> int:
    """Wait for this child; its exit code, negative for a signal. 0 when nobody can tell: the application ignores SIGCHLD, or waits for all."""
    with suppress(ChildProcessError):
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status)
    return 0
