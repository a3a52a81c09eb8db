"""Import strings of ``[tool.laraman.sandbox]``: from ``app.settings:SETTINGS.db`` to the object, or to one line that says which part is wrong."""

from __future__ import annotations

import importlib
import logging
import pkgutil
import sys
from typing import Any, NamedTuple

from laraman.config.options import did_you_mean
from laraman.errors import BootError, ConfigError

logger = logging.getLogger("uvicorn.error")


class Found(NamedTuple):
    """``value`` is ``holder.attribute``."""

    holder: Any
    attribute: str
    value: Any


def resolve(option: str, name: str) -> Found:
    """Import the module and follow the attributes. ``option`` is the one that names it.

    Raises ConfigError when there is no such module or attribute, with the nearest that there is; BootError when the module cannot be imported,
    after its error has been logged.
    """
    module, _, attributes = name.partition(":")
    value = _import(option, name, module)
    way = module
    for attribute in attributes.split("."):
        holder = value
        try:
            value = getattr(holder, attribute)
        except AttributeError:
            raise ConfigError(f"sandbox.{option}: {name!r}: {way} has no {attribute!r}{did_you_mean(attribute, dir(holder))}") from None
        way = f"{way}.{attribute}"
    return Found(holder, attribute, value)


def _import(option: str, name: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as exc:
        # Only the module asked for, or a package on the way to it: what it imports and does not find is its own error.
        if isinstance(exc, ModuleNotFoundError) and exc.name and f"{module}.".startswith(f"{exc.name}."):
            raise ConfigError(f"sandbox.{option}: {name!r}: there is no module {exc.name!r}{_nearest(exc.name)}") from None
        logger.error("sandbox.%s: importing %s failed", option, module, exc_info=exc)
        raise BootError(f"sandbox.{option}: {name!r}: importing {module} failed with {type(exc).__name__}: {exc}") from None


def _nearest(module: str) -> str:
    """Among its siblings: the modules of its package, or those that can be imported from the top."""
    package, _, _ = module.rpartition(".")
    prefix = f"{package}." if package else ""
    path = getattr(sys.modules.get(package), "__path__", ()) if package else None
    return did_you_mean(module, [f"{prefix}{found.name}" for found in pkgutil.iter_modules(path)])
