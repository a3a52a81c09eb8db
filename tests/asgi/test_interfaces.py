"""Which interface an application speaks, and that each is made ASGI 3."""

from __future__ import annotations

import functools
import sys
from typing import Any

import pytest

import laraman
from laraman.asgi.app import load_app
from laraman.asgi.wsgi import WSGIMiddleware
from laraman.config import Config
from laraman.errors import BootError

pytestmark = pytest.mark.anyio


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send(scope["asgi"]["version"])


async def any_arguments(*arguments: Any) -> None:
    await app(*arguments)


def plain(scope: Any, receive: Any, send: Any) -> Any:
    return app(scope, receive, send)


def decorated(function: Any) -> Any:
    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        return function(*arguments)

    return call


class Asynchronous:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)

    async def method(self, scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)

    @staticmethod
    async def static(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)


class Awaitable:
    def __init__(self, scope: Any, receive: Any, send: Any) -> None:
        self.arguments = (scope, receive, send)

    def __await__(self) -> Any:
        return app(*self.arguments).__await__()


class Double:
    def __init__(self, scope: Any) -> None:
        self.scope = scope

    async def __call__(self, receive: Any, send: Any) -> None:
        await app(self.scope, receive, send)


def double(scope: Any) -> Any:
    return functools.partial(app, scope)


def wsgi(environ: Any, start_response: Any) -> list[bytes]:
    return []


def make(first: Any = None, second: Any = None, third: Any = None) -> Any:
    return app


async def make_later() -> Any:
    return app


async def version(application: Any) -> str:
    """What the application is told that it speaks."""
    said: list[str] = []

    async def send(message: str) -> None:
        said.append(message)

    await application({"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}}, None, send)
    return said[0]


@pytest.mark.parametrize(
    ("found", "spoken"),
    [
        (app, "3.0"),
        (any_arguments, "3.0"),
        (plain, "3.0"),
        (decorated(app), "3.0"),
        (functools.partial(app), "3.0"),
        (functools.partial(Asynchronous()), "3.0"),
        (Asynchronous(), "3.0"),
        (Asynchronous().method, "3.0"),
        (Asynchronous.static, "3.0"),
        (Awaitable, "3.0"),
        (Double, "2.0"),
        (double, "2.0"),
        (decorated(double), "2.0"),
        (functools.partial(double), "2.0"),
    ],
)
async def test_an_interface_is_detected(found: Any, spoken: str, caplog: pytest.LogCaptureFixture) -> None:
    assert await version(load_app(Config(app=found))) == spoken
    assert not caplog.records


@pytest.mark.parametrize(
    ("found", "interface", "spoken"),
    [
        (app, "asgi3", "3.0"),
        (any_arguments, "asgi3", "3.0"),
        (Double, "asgi2", "2.0"),
        (make, "asgi3", "3.0"),
        (lambda: Double, "asgi2", "2.0"),
        (Asynchronous, "auto", "3.0"),
        (lambda: double, "auto", "2.0"),
    ],
)
@pytest.mark.parametrize("factory", [False, True])
async def test_a_factory_with_every_interface(found: Any, interface: Any, spoken: str, factory: bool, caplog: pytest.LogCaptureFixture) -> None:
    is_factory = found not in (app, any_arguments, Double)
    if factory and not is_factory:
        found = functools.partial(lambda made: made, found)
    assert await version(load_app(Config(app=found, interface=interface, factory=factory))) == spoken
    warned = ["ASGI app factory detected. Using it, but please consider setting the --factory flag explicitly."]
    assert caplog.messages == (warned if is_factory and not factory else [])


@pytest.mark.parametrize("found", [wsgi, lambda: wsgi, functools.partial(wsgi)])
def test_wsgi_on_demand(found: Any) -> None:
    loaded = load_app(Config(app=found, interface="wsgi"))
    assert isinstance(loaded, WSGIMiddleware)
    assert getattr(loaded.app, "func", loaded.app) is wsgi


def refused(found: Any, interface: Any = "auto") -> str:
    with pytest.raises(BootError) as caught:
        load_app(Config(app=found, interface=interface))
    return str(caught.value).replace(str(found), "it")


@pytest.mark.parametrize(
    ("found", "interface", "text"),
    [
        (wsgi, "auto", '"it" takes two arguments, as WSGI applications do: those need --interface wsgi.'),
        (lambda: wsgi, "auto", '"it" takes two arguments, as WSGI applications do: those need --interface wsgi.'),
        (wsgi, "asgi3", '"it" does not take (scope, receive, send), as the interface asgi3 asks for.'),
        (app, "asgi2", '"it" does not take (scope), as the interface asgi2 asks for.'),
        (app, "wsgi", '"it" does not take (environ, start_response), as the interface wsgi asks for.'),
        (lambda one, *, two: None, "auto", '"it" takes neither (scope, receive, send) nor, as a factory, nothing.'),
        (5, "auto", '"it" is not callable, but int.'),
    ],
)
def test_what_is_no_such_application(found: Any, interface: str, text: str) -> None:
    assert refused(found, interface) == f"Error loading ASGI app. {text}"


def test_factories_that_make_nothing() -> None:
    assert refused(make_later) == 'Error loading ASGI app factory: "it" is async, and the application is made by a plain call.'
    assert refused(lambda: None) == 'Error loading ASGI app factory: "it" returned NoneType, which is not callable.'


@pytest.mark.parametrize(
    ("found", "interface", "is_of"), [(app, "auto", "3.0"), (Double, "auto", "2.0"), (double, "asgi2", "2.0"), (wsgi, "wsgi", "3.0")]
)
def test_a_program_sees_what_was_detected(found: Any, interface: Any, is_of: str) -> None:
    config = laraman.Config(found, interface=interface, log_config=None)
    config.load()
    assert config.interface == (interface if interface != "auto" else {"2.0": "asgi2", "3.0": "asgi3"}[is_of])
    assert config.asgi_version == is_of
    assert (config.ws_protocol_class is None) == (interface == "wsgi")


def test_wsgi_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "a2wsgi", None)
    monkeypatch.delitem(sys.modules, "laraman.asgi.wsgi")
    with pytest.raises(BootError) as caught:
        load_app(Config(app=wsgi, interface="wsgi"))
    assert str(caught.value) == "The interface wsgi needs a package that is not installed: pip install 'laraman[wsgi]'"
    assert caught.value.exit_code == 3
