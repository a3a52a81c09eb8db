"""What declarations name: ``package.module:attribute``."""

from __future__ import annotations

import importlib
from typing import Any

from laraman.config.options import did_you_mean
from laraman.errors import ConfigError


def resolve(text: str, what: str) -> Any:
    """What the import string leads to; ``what`` it is to be. Raises ConfigError when it leads nowhere; what the module itself raises comes out."""
    name, _, attributes = text.partition(":")
    if not name or not attributes:
        raise ConfigError(f"{what} {text!r} is not of the form module:attribute")
    try:
        found: Any = importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (name == exc.name or name.startswith(f"{exc.name}.")):
            raise ConfigError(f"{what} {text!r}: there is no module {name!r}") from None
        raise
    for attribute in attributes.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError:
            raise ConfigError(f"{what} {text!r}: {found!r} has no attribute {attribute!r}{did_you_mean(attribute, dir(found))}") from None
    return found
