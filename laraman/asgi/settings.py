"""``laraman.Config``: what a program says about the server that it runs, with the names of ``uvicorn.Config``.

It can be changed until the server starts, and then yields the frozen ``laraman.config.Config`` that everything else reads. Its options are that
one's fields; there is no second list. It needs no event loop, so a program that becomes a master stays free of one.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from laraman import config as options
from laraman import log
from laraman.config import OPTIONS, SERVER, envfile, gateway, sandbox
from laraman.config.options import COMMAND_LINE, Origin, Sources, did_you_mean
from laraman.config.settle import remarks, settle
from laraman.errors import BootError, ConfigError

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Awaitable, Callable
    from ssl import SSLContext

    from laraman.asgi.lifespan import Lifespan
    from laraman.net.bind import Bind

logger = logging.getLogger("uvicorn.error")

#: The exit code of what could not start.
STARTUP_FAILURE = 3
#: For most options None is "not given". For these it is "no such limit", or "leave logging as it is".
_NO_LIMIT = {"ws_ping_interval": 0.0, "ws_ping_timeout": 0.0, "timeout_graceful_shutdown": None, "log_config": None}
#: What is a table in pyproject.toml may be one here, too.
_TABLES: dict[str, Callable[[Sources, Any], Any]] = {"gateway": gateway.GatewayConfig.load, "sandbox": sandbox.SandboxConfig.load}


class Config:
    """``app`` is an application or an import string, ``options`` are the fields of ``laraman.config.Config`` by name.

    Beyond those, as in uvicorn: ``headers``, a list of (name, value); ``callback_notify``, an async function that is called at most every
    ``timeout_notify`` seconds while it serves. Environment variables are not read, except the two that uvicorn reads here: WEB_CONCURRENCY and
    FORWARDED_ALLOW_IPS. Logging is configured at once. Raises TypeError for an unknown option and ConfigError for a wrong value.
    """

    loop: Any
    interface: Any
    ssl: SSLContext | None
    http_protocol_class: type[asyncio.Protocol]
    ws_protocol_class: type[asyncio.Protocol] | None
    lifespan_class: Callable[[Config], Lifespan]
    loaded_app: Any

    def __init__(
        self,
        app: Any,
        host: str | None = None,
        port: int | None = None,
        *,
        headers: list[tuple[str, str]] | None = None,
        callback_notify: Callable[[], Awaitable[None]] | None = None,
        timeout_notify: float = 30,
        **given: Any,
    ) -> None:
        given = {"host": host, "port": port, **given}
        for name in given:
            if name not in OPTIONS:
                raise TypeError(f"Config() has no option {name!r}{did_you_mean(name, OPTIONS)}")
        for name, wanted in OPTIONS.items():
            setattr(self, name, given[name] if given.get(name) is not None or (name in given and name in _NO_LIMIT) else wanted.default)
        self.app = app
        #: None: as it should be, which depends on whether the process is the server's alone.
        self.guard = given.get("guard")
        self.headers = list(headers or [])
        self.encoded_headers: list[tuple[bytes, bytes]] = []
        self.callback_notify = callback_notify
        self.timeout_notify = timeout_notify
        self.loaded = False
        self.env_file: str | os.PathLike[str]
        if self.env_file:
            envfile.apply(os.fspath(self.env_file))
        self._read_environment(given)
        self.configure_logging()
        if self.env_file:
            logger.info("Loading environment from '%s'", self.env_file)
        if not self.use_subprocess and app != "":  # else the master says it
            for remark in remarks(self.frozen()):
                logger.warning("%s", remark)

    def _read_environment(self, given: dict[str, Any]) -> None:
        for name, wanted in OPTIONS.items():
            for variable in wanted.metadata["env"]:
                if given.get(name) is None and not variable.startswith("UVICORN_") and (text := os.environ.get(variable)):
                    setattr(self, name, SERVER.checked(name, text))

    # What it means ---------------------------------------------------------------------------------------------------------------

    def frozen(self) -> options.Config:
        """What it says now, checked. Raises ConfigError."""
        values = {name: self._value(name) for name in OPTIONS}
        values["header"] = tuple(SERVER.checked("header", [f"{name.lower()}:{value}" for name, value in self.headers])) + values["header"]
        given = {name: value for name, value in values.items() if value != OPTIONS[name].default}
        settle(given, {name: Origin(COMMAND_LINE, name) for name in given})
        return replace(options.Config(**given), app=self.app)

    def _value(self, name: str) -> Any:
        value = getattr(self, name)
        if name == "app":
            return ""  # checked when it is loaded
        default = OPTIONS[name].default
        if value is None:
            return _NO_LIMIT.get(name, default)
        if value == default:
            return default
        if name in _TABLES and isinstance(value, dict):
            return _TABLES[name](Sources({}, {}, f"Config(): {name}"), value)
        if name == "log_level" and isinstance(value, int):
            return next((word for word, level in log.LOG_LEVELS.items() if level <= value), "trace")
        if name in ("http", "ws") and isinstance(value, type):
            value = f"{value.__module__}:{value.__qualname__}"
        if isinstance(value, list | tuple | set):
            value = [os.fspath(item) for item in value]
            if name == "forwarded_allow_ips":
                value = ",".join(value)
        elif isinstance(value, os.PathLike):
            value = os.fspath(value)
        return SERVER.checked(name, value)

    @property
    def asgi_version(self) -> Literal["2.0", "3.0"]:
        """Of the application; known when it is loaded."""
        return "2.0" if self.interface == "asgi2" else "3.0"

    @property
    def is_ssl(self) -> bool:
        return bool(self.ssl_keyfile or self.ssl_certfile or self.ssl_context_factory)

    @property
    def should_reload(self) -> bool:
        return isinstance(self.app, str) and bool(self.reload)

    @property
    def use_subprocess(self) -> bool:
        return bool(self.reload or self.workers > 1)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """The options; a type checker does not know the names of those."""

    # What is done with it --------------------------------------------------------------------------------------------------------

    def configure_logging(self) -> None:
        """Set up logging as the options say."""
        log.configure(self.frozen())

    def load_app(self) -> Any:
        """What ``app`` names, imported if need be. Exits with 3 when it cannot be."""
        from laraman.asgi import app

        try:
            return app.find(self.frozen())
        except (BootError, ConfigError) as exc:
            _exit(exc)

    def load(self) -> None:
        """Load the application and everything else that serving needs. Exits with 3 when something cannot be loaded."""
        from laraman.asgi import app
        from laraman.asgi.http import HttpConnection
        from laraman.asgi.interfaces import ASGI2Middleware
        from laraman.asgi.lifespan import Lifespan
        from laraman.asgi.websocket import WebSocketConnection
        from laraman.net.tls import make_context

        assert not self.loaded
        frozen = self.frozen()
        self.http_protocol_class = HttpConnection
        self.ws_protocol_class = None if frozen.ws == "none" else WebSocketConnection
        self.lifespan_class = lambda config: Lifespan(config.loaded_app, config.lifespan, timeout=config.timeout_worker_boot)
        headers = [header.encode("latin-1").partition(b":") for header in frozen.header]
        self.encoded_headers = [(name.strip(), value.strip()) for name, _, value in headers]
        if frozen.server_header and b"server" not in dict(self.encoded_headers):
            self.encoded_headers.insert(0, (b"server", b"laraman"))
        try:
            self.ssl = make_context(frozen) if self.is_ssl else None
            self.loaded_app = app.application(self.load_app(), frozen)
        except (BootError, ConfigError) as exc:
            _exit(exc)
        if self.interface == "auto":
            self.interface = "asgi2" if isinstance(self.loaded_app, ASGI2Middleware) else "asgi3"
        self.loaded = True

    def first_context(self) -> Callable[..., SSLContext]:
        """As ``ssl_context_factory``: first the context of ``ssl``, which may have been changed since it was made; later, new ones."""
        from laraman.net.tls import make_context

        frozen, made = self.frozen(), [self.ssl]

        def context(config: Any, default: Any) -> SSLContext:
            return (made.pop() if made else None) or make_context(frozen)

        return context

    def setup_event_loop(self) -> NoReturn:
        """Raises AttributeError, as it does in uvicorn."""
        raise AttributeError("setup_event_loop() does not exist any more: the loop is made by the function that get_loop_factory() returns")

    def get_loop_factory(self) -> Callable[[], asyncio.AbstractEventLoop] | None:
        """What makes the event loop that is asked for; None where asyncio is to decide."""
        from laraman.process.child import new_event_loop

        kind = self.frozen().loop
        return None if kind == "none" else partial(new_event_loop, kind)

    def binds(self) -> list[Bind]:
        """Where it says to listen; the sockets are not open yet. Raises ConfigError."""
        from laraman.asgi import http_workers

        return http_workers(replace(self.frozen(), preload=False, reload=False))[-1].binds

    def bind_socket(self) -> socket.socket:
        """A socket that listens where the first of ``binds`` says, for ``Server.serve(sockets=[...])``. Exits with 3 when it cannot."""
        bind = self.binds()[0]
        try:
            open_for_program(bind)
        except BootError as exc:
            _exit(exc)
        assert bind.socket is not None
        self.log_running([bind])
        bind.socket.set_inheritable(True)
        return bind.socket

    def log_running(self, binds: list[Bind]) -> None:
        """The line that launchers wait for."""
        frozen = self.frozen()
        for bind in binds:
            log.say_running(frozen, bind.where)


def open_for_program(bind: Bind) -> None:
    """Listen; on a copy of a descriptor that is given, because the program will close its own. Raises BootError."""
    copy = None
    if bind.fd is not None:
        with suppress(OSError):  # which opening it says better
            copy = os.dup(bind.fd)
    bind.open(copy)


def _exit(error: ConfigError | BootError) -> NoReturn:
    logger.error("%s", error)
    sys.exit(STARTUP_FAILURE)
