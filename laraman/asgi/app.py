"""The application, imported by its import string. That is done in a worker; nothing here imports asyncio."""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from laraman.asgi.interfaces import as_asgi3, is_factory
from laraman.errors import BootError, ConfigError

if TYPE_CHECKING:
    from types import TracebackType

    from laraman.config import Config

Scope = dict[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[Any]]

logger = logging.getLogger("uvicorn.error")


def load_app(config: Config) -> ASGIApp:
    """Find what ``config.app`` names and, when it is a factory, call it.

    Raises BootError with one clear line; an error raised by the user's own code is logged with its traceback first. A ConfigError that comes out
    of that code is one line already.
    """
    return application(find(config), config)


def find(config: Config) -> Any:
    """What ``config.app`` names: "pkg.mod:attribute" is imported, the attribute may be dotted; in Python it may also be the application itself.

    For an import ``config.app_dir`` or else the working directory goes to the front of ``sys.path``. Raises BootError as above.
    """
    if not isinstance(config.app, str):
        return config.app
    directory = os.path.abspath(config.app_dir or os.curdir)
    if directory not in sys.path:
        sys.path.insert(0, directory)
    return _import(config.app)


def _import(target: str) -> Any:
    module_name, _, attributes = target.partition(":")
    if not module_name or not attributes:
        raise BootError(f'Error loading ASGI app. Import string "{target}" must be in format "<module>:<attribute>".')
    found = _import_module(module_name)
    try:
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except AttributeError:
        raise BootError(f'Error loading ASGI app. Attribute "{attributes}" not found in module "{module_name}".') from None
    return found


def _import_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ConfigError:
        raise
    except (Exception, SystemExit) as exc:
        # Only the module asked for, or a package on the way to it: a missing dependency of the user's module is that module's error.
        if isinstance(exc, ModuleNotFoundError) and exc.name and f"{name}.".startswith(f"{exc.name}."):
            raise BootError(f'Error loading ASGI app. Could not import module "{name}".') from None
        raise _user_error(f'Error loading ASGI app. Importing module "{name}" failed', exc) from None


def application(found: Any, config: Config) -> ASGIApp:
    """The application that ``found`` is, or makes as a factory. Raises BootError as above."""
    name = str(config.app)
    if not callable(found):
        raise BootError(f'Error loading ASGI app. "{name}" is not callable, but {type(found).__name__}.')
    if not config.factory:
        if not is_factory(found):
            return as_asgi3(found, config.interface, name)
        logger.warning("ASGI app factory detected. Using it, but please consider setting the --factory flag explicitly.")
    return as_asgi3(_made(found, name), config.interface, name)


def _made(factory: Any, name: str) -> Any:
    try:
        application = factory()
    except ConfigError:
        raise
    except (Exception, SystemExit) as exc:
        raise _user_error("Error loading ASGI app factory", exc) from None
    if inspect.iscoroutine(application):
        application.close()
        raise BootError(f'Error loading ASGI app factory: "{name}" is async, and the application is made by a plain call.')
    if not callable(application):
        raise BootError(f'Error loading ASGI app factory: "{name}" returned {type(application).__name__}, which is not callable.')
    return application


def _user_error(what: str, exc: BaseException) -> BootError:
    logger.error("%s", what, exc_info=exc.with_traceback(_users_part(exc.__traceback__)))
    return BootError(f"{what}: {type(exc).__name__}: {' '.join(str(exc).split())}")


def _users_part(trace: TracebackType | None) -> TracebackType | None:
    """Without the leading frames of this file and of the import system."""
    while trace is not None and (trace.tb_frame.f_code.co_filename == __file__ or "importlib" in trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return trace
