"""uvicorn's names for laraman, for code that imports uvicorn where only laraman is installed. Opt-in: importing this module is what asks for it.

    import laraman.compat.uvicorn            first in the program, or
    laraman main:app --listener laraman.compat.uvicorn

Where uvicorn itself is installed it is found first, and this does nothing. A name is looked up when it is asked for, so a master that imports
this stays free of event loops.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The release whose names these are.
VERSION = "0.54.0"

_SERVER, _SETTINGS, _LOG = "laraman.asgi.server", "laraman.asgi.settings", "laraman.log"

#: Modules, and where the names in them come from; one that is called differently there stands after a colon.
MODULES: dict[str, dict[str, str]] = {
    "uvicorn": {"Config": _SETTINGS, "Server": _SERVER, "run": "laraman.running", "main": "laraman.cli", "__version__": f"{__name__}:VERSION"},
    "uvicorn.config": {
        **{"Config": _SETTINGS, "STARTUP_FAILURE": _SETTINGS},
        **{"LOGGING_CONFIG": _LOG, "LOG_LEVELS": _LOG},
    },
    "uvicorn.main": {"Config": _SETTINGS, "Server": _SERVER, "STARTUP_FAILURE": _SETTINGS, "run": "laraman.running", "main": "laraman.cli"},
    "uvicorn.server": {"Config": _SETTINGS, "Server": _SERVER, "ServerState": _SERVER, "HANDLED_SIGNALS": _SERVER},
    "uvicorn.logging": {
        **{"ColourizedFormatter": _LOG, "DefaultFormatter": _LOG, "AccessFormatter": _LOG},
        **{"TRACE_LOG_LEVEL": f"{_LOG}:TRACE"},
    },
    "uvicorn.middleware": {},
    "uvicorn.middleware.proxy_headers": {"ProxyHeadersMiddleware": "laraman.asgi.forwarded"},
    "uvicorn.middleware.wsgi": {"WSGIMiddleware": "laraman.asgi.wsgi"},
    "uvicorn.protocols": {},
    "uvicorn.protocols.utils": {"ClientDisconnected": "laraman.asgi.websocket", "get_path_with_query_string": __name__},
    "uvicorn.supervisors": {"ChangeReload": "laraman.running:Supervisor", "Multiprocess": "laraman.running:Supervisor"},
    "uvicorn.workers": {"UvicornWorker": "laraman.workers:LaramanWorker", "UvicornH11Worker": "laraman.workers:LaramanH11Worker"},
}


def get_path_with_query_string(scope: dict[str, Any]) -> str:
    """What the access log says of a request's path, for those who write their own."""
    from laraman.log.access import arguments

    return arguments(scope, 200)[2]


class _Module(ModuleType):
    """Imports a name, or a module in it, when it is asked for."""

    def __getattr__(self, name: str) -> Any:
        source = MODULES[self.__name__].get(name)
        if source is None and f"{self.__name__}.{name}" in MODULES:
            return import_module(f"{self.__name__}.{name}")
        if source is None:
            raise AttributeError(f"laraman has no {self.__name__}.{name}")
        module, _, other = source.partition(":")
        found = getattr(import_module(module), other or name)
        setattr(self, name, found)
        return found

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *MODULES[self.__name__]})


class Finder:
    """Finds the modules above, after everybody else has been asked. It is their loader, too."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in MODULES or (name != "uvicorn" and not isinstance(sys.modules["uvicorn"], _Module)):
            return None
        return ModuleSpec(name, self, origin=__file__, is_package=any(other.startswith(f"{name}.") for other in MODULES))  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing has to be executed."""


def install() -> None:
    """From now on uvicorn's names are found, if not in uvicorn, then here."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.append(Finder())


install()
