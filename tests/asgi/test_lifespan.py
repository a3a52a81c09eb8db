"""The lifespan protocol, against small applications."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from typing import TYPE_CHECKING, Any

import pytest

from laraman.asgi.lifespan import Lifespan
from laraman.errors import BootError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


class App:
    """Answers startup and shutdown, and writes down what it was told."""

    def __init__(self, startup: str = "complete", shutdown: str = "complete") -> None:
        self.answers = {"startup": startup, "shutdown": shutdown}
        self.seen: list[str] = []
        self.tasks: set[Any] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"
        assert scope["asgi"] == {"version": "3.0", "spec_version": "2.0"}
        for phase in ("startup", "shutdown"):
            message = await receive()
            self.seen.append(message["type"])
            self.tasks.add(asyncio.current_task())
            if phase == "startup":
                scope["state"]["database"] = "open"
                variable.set("lifespan")
            if self.answers[phase] == "raise":
                raise RuntimeError(f"no {phase}")
            if self.answers[phase] == "hang":
                await asyncio.Event().wait()
            await send({"type": f"lifespan.{phase}.{self.answers[phase]}", "message": f"Traceback:\n  no {phase}\n"})
            if self.answers[phase] == "failed":
                raise RuntimeError("after failed")


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="uvicorn.error")


def test_startup_and_shutdown_in_one_task(caplog: pytest.LogCaptureFixture) -> None:
    app = App()

    async def main() -> None:
        lifespan = Lifespan(app, "auto")
        await lifespan.startup()
        assert lifespan.state == {"database": "open"}
        await lifespan.shutdown()
        await lifespan.shutdown()

    run(main)
    assert app.seen == ["lifespan.startup", "lifespan.shutdown"]
    assert len(app.tasks) == 1
    assert caplog.messages == [
        "Waiting for application startup.",
        "Application startup complete.",
        "Waiting for application shutdown.",
        "Application shutdown complete.",
    ]


def test_what_startup_sets_is_in_a_copy_of_its_context() -> None:
    async def main() -> None:
        lifespan = Lifespan(App(), "on")
        await lifespan.startup()
        assert variable.get() == "unset"
        assert lifespan.context.copy().run(variable.get) == "lifespan"
        await lifespan.shutdown()

    run(main)


def test_context_of_the_worker_is_kept() -> None:
    async def main() -> None:
        variable.set("worker")
        lifespan = Lifespan(App(), "off")
        await lifespan.startup()
        assert lifespan.context.run(variable.get) == "worker"

    run(main)


def test_off_never_calls_the_application(caplog: pytest.LogCaptureFixture) -> None:
    app = App()

    async def main() -> None:
        lifespan = Lifespan(app, "off")
        await lifespan.startup()
        await lifespan.shutdown()

    run(main)
    assert app.seen == []
    assert caplog.messages == []


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_startup_failed_is_a_boot_error(caplog: pytest.LogCaptureFixture, mode: Any) -> None:
    async def main() -> None:
        lifespan = Lifespan(App(startup="failed"), mode)
        with pytest.raises(BootError, match=r"^Application startup failed: no startup$"):
            await lifespan.startup()
        await lifespan.shutdown()

    run(main)
    assert caplog.messages == ["Waiting for application startup.", "Traceback:\n  no startup\n", "Application startup failed. Exiting."]


def test_on_and_an_exception(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        lifespan = Lifespan(App(startup="raise"), "on")
        with pytest.raises(BootError, match=r"^Application startup failed: RuntimeError\('no startup'\)$"):
            await lifespan.startup()
        await lifespan.shutdown()

    run(main)
    assert caplog.messages == [
        "Waiting for application startup.",
        "Exception in 'lifespan' protocol\n",
        "Application startup failed. Exiting.",
    ]
    assert "no startup" in caplog.text


@pytest.mark.parametrize("error", [AssertionError, SystemExit, asyncio.CancelledError])
def test_auto_and_an_exception_serves_without_lifespan(caplog: pytest.LogCaptureFixture, error: type[BaseException]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise error

    async def main() -> None:
        lifespan = Lifespan(app, "auto")
        await lifespan.startup()
        await lifespan.shutdown()

    run(main)
    assert caplog.messages == [
        "Waiting for application startup.",
        "ASGI 'lifespan' protocol appears unsupported.",
        "Application startup complete.",
    ]


def test_an_application_that_returns_at_once_is_started() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        return None

    async def main() -> None:
        lifespan = Lifespan(app, "on")
        await lifespan.startup()
        await lifespan.shutdown()

    run(main)


def test_startup_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        lifespan = Lifespan(App(startup="hang"), "auto", timeout=0.05)
        with pytest.raises(BootError, match=r"^Application startup failed: not complete after 0\.05 s$"):
            await lifespan.startup()
        await lifespan.shutdown()
        assert len(asyncio.all_tasks()) == 1

    run(main)


def test_shutdown_of_an_unfinished_startup_cancels_it() -> None:
    cleaned = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(True)

    async def main() -> None:
        lifespan = Lifespan(app, "auto")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(lifespan.startup(), 0.05)
        await lifespan.shutdown()

    run(main)
    assert cleaned == [True]


@pytest.mark.parametrize("answer", ["failed", "raise", "hang"])
def test_a_failing_shutdown_is_logged(caplog: pytest.LogCaptureFixture, answer: str) -> None:
    async def main() -> None:
        lifespan = Lifespan(App(shutdown=answer), "auto")
        await lifespan.startup()
        await lifespan.shutdown(timeout=0.05)
        assert len(asyncio.all_tasks()) == 1

    run(main)
    assert caplog.messages[-1] == "Application shutdown failed. Exiting."
    assert ("no shutdown" in caplog.text) is (answer != "hang")


def test_a_lifespan_that_dies_while_serving_is_reported_then() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "lifespan.startup.complete"})
        raise RuntimeError("died")

    async def main() -> None:
        lifespan = Lifespan(app, "auto")
        await lifespan.startup()
        await asyncio.sleep(0)
        await lifespan.shutdown()

    run(main)


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (["lifespan.startup.complete", "lifespan.startup.complete"], "Got invalid state transition on lifespan protocol."),
        (["lifespan.shutdown.complete"], "Got invalid state transition on lifespan protocol."),
        (["http.response.start"], "Expected ASGI message 'lifespan.startup.*' or 'lifespan.shutdown.*', but got 'http.response.start'."),
    ],
)
def test_messages_out_of_order(sent: list[str], text: str) -> None:
    errors = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            for message in sent:
                await send({"type": message})
        except RuntimeError as exc:
            errors.append(str(exc))

    async def main() -> None:
        lifespan = Lifespan(app, "auto")
        await lifespan.startup()
        await lifespan.shutdown()

    run(main)
    assert errors == [text]


def test_an_application_that_keeps_receiving_after_shutdown_does_not_hold_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laraman.asgi.lifespan.GRACE", 0.05)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})

    async def main() -> None:
        lifespan = Lifespan(app, "on")
        await lifespan.startup()
        await lifespan.shutdown()
        assert len(asyncio.all_tasks()) == 1

    run(main)
