"""The ASGI lifespan protocol (https://asgi.readthedocs.io/en/latest/specs/lifespan.html): one task, from startup to shutdown."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import TYPE_CHECKING, Any, Literal

from laraman.errors import BootError

if TYPE_CHECKING:
    from laraman.asgi.app import ASGIApp, Message

logger = logging.getLogger("uvicorn.error")

#: Seconds that a lifespan may still take after it was cancelled, or after it said it was complete.
GRACE = 1.0


class Lifespan:
    """Runs the application's lifespan.

    ``mode`` is "auto" (an application without lifespan is fine), "on" (it is an error) or "off" (it is not asked). ``timeout`` bounds the
    startup, in seconds. ``state`` is the dict that the application fills. ``context`` is the context that the lifespan's task runs in: a
    copy of it taken after startup has what startup has set.
    """

    def __init__(self, app: ASGIApp, mode: Literal["auto", "on", "off"], *, timeout: float | None = None) -> None:
        self.state: dict[str, Any] = {}
        self.context = contextvars.copy_context()
        self._app = app
        self._mode = mode
        self._timeout = timeout
        self._task: asyncio.Task[None] | None = None
        self._messages: asyncio.Queue[Message] = asyncio.Queue()  # never holds more than startup and shutdown
        self._started = asyncio.Event()
        self._stopped = asyncio.Event()
        self._stopping = False
        self._cancelled = False
        self._failure: str | None = None  # what a ...failed message said
        self._error: BaseException | None = None  # what the application raised

    async def startup(self) -> None:
        """Run the application's startup. Raises BootError when it fails or takes too long; the reason is logged.

        Cancelled, it cancels the application's.
        """
        if self._mode == "off":
            return
        logger.info("Waiting for application startup.")
        self._task = asyncio.get_running_loop().create_task(self._run(), name="lifespan", context=self.context)
        self._messages.put_nowait({"type": "lifespan.startup"})
        try:
            async with asyncio.timeout(self._timeout):
                await self._started.wait()
        except TimeoutError:
            self._failure = f"not complete after {self._timeout:g} s"
        except asyncio.CancelledError:
            self._failure = "the worker was stopped"
            await self._end_task(0)
            raise
        if self._error is not None and self._failure is None and self._mode == "on":
            self._failure = _one_line(repr(self._error))
        if self._failure is not None:
            await self._end_task(0)
            logger.error("Application startup failed. Exiting.")
            raise BootError(f"Application startup failed: {_one_line(self._failure) or 'the application gave no reason'}")
        logger.info("Application startup complete.")

    async def shutdown(self, timeout: float | None = None) -> None:
        """Run the application's shutdown, once, if its startup succeeded; take at most ``timeout`` seconds.

        Failures are logged, never raised.
        """
        if self._stopping or self._task is None:
            return
        self._stopping = True
        if self._error is not None or self._failure is not None:
            return
        logger.info("Waiting for application shutdown.")
        self._messages.put_nowait({"type": "lifespan.shutdown"})
        try:
            async with asyncio.timeout(timeout):
                await self._stopped.wait()
        except TimeoutError:
            logger.error("Application shutdown not complete after %g s.", timeout)
            self._failure = "timeout"
        await self._end_task(0 if self._failure == "timeout" else GRACE)
        if self._error is not None or self._failure is not None:
            logger.error("Application shutdown failed. Exiting.")
        else:
            logger.info("Application shutdown complete.")

    async def _end_task(self, grace: float) -> None:
        """Let the task end by itself for ``grace`` seconds, then cancel it; one that swallows the cancellation is left behind."""
        assert self._task is not None
        if not self._task.done():
            await asyncio.wait({self._task}, timeout=grace)
        if not self._task.done():
            self._cancelled = True
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=GRACE)

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self._app(scope, self._messages.get, self._send)
        except BaseException as exc:
            # BaseException: a SystemExit that left this task would tear down the loop and everybody's shutdown with it.
            self._report(exc)
        finally:
            self._started.set()
            self._stopped.set()

    def _report(self, exc: BaseException) -> None:
        if self._failure is not None or self._cancelled:
            return  # said already: applications send ...failed and then raise
        self._error = exc
        if self._mode == "auto" and not self._started.is_set():
            logger.info("ASGI 'lifespan' protocol appears unsupported.")
            logger.debug("The lifespan call raised", exc_info=exc)
        else:
            logger.error("Exception in 'lifespan' protocol\n", exc_info=exc)

    async def _send(self, message: Message) -> None:
        phase, _, outcome = message["type"].removeprefix("lifespan.").partition(".")
        if phase not in ("startup", "shutdown") or outcome not in ("complete", "failed"):
            raise RuntimeError(f"Expected ASGI message 'lifespan.startup.*' or 'lifespan.shutdown.*', but got '{message['type']}'.")
        if self._stopped.is_set() or self._started.is_set() != (phase == "shutdown"):
            raise RuntimeError("Got invalid state transition on lifespan protocol.")
        if outcome == "failed":
            self._failure = message.get("message", "")
            if self._failure:
                logger.error(self._failure)
        (self._started if phase == "startup" else self._stopped).set()


def _one_line(text: str) -> str:
    """The last line that says something: of a traceback that is the error."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
