"""The environment file, as python-dotenv reads it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from laraman.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping


def read(path: str, environ: Mapping[str, str]) -> dict[str, str]:
    """What the file adds to the environment: its variables that are not set there. ``environ`` itself stays as it is.

    Raises ConfigError with one line, which says where the file has its first mistake: python-dotenv warns of one and goes on.
    """
    name = path if path.isprintable() else repr(path)
    try:
        from dotenv.main import DotEnv
        from dotenv.parser import parse_stream
    except ImportError:
        raise ConfigError(f"the environment file {name} needs python-dotenv: pip install 'laraman[dotenv]'") from None
    from io import StringIO

    text = _text(path, name)
    for binding in parse_stream(StringIO(text)):
        if binding.error:
            statement = binding.original.string  # with the blank lines before it
            line = binding.original.line + statement[: len(statement) - len(statement.lstrip())].count("\n")
            raise ConfigError(f"{name}: line {line} is neither NAME=value nor a comment")
    found = DotEnv(None, stream=StringIO(text), override=False).dict()
    return {name: value for name, value in found.items() if value is not None and name not in environ}


def apply(path: str) -> dict[str, str]:
    """Add what the file has to the environment of this process, and return it; nothing when ``path`` is empty. Raises ConfigError."""
    added = read(path, os.environ) if path else {}
    os.environ.update(added)
    return added


def _text(path: str, name: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"the environment file {name} cannot be read: {exc.strerror or exc}") from None
    except UnicodeDecodeError as exc:
        raise ConfigError(f"the environment file {name} is not UTF-8 (at byte {exc.start})") from None
