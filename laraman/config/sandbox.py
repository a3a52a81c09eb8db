"""``[tool.laraman.sandbox]``: what is reset between operations."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from laraman.config.options import Section, option
from laraman.errors import ConfigError

if TYPE_CHECKING:
    from laraman.config.options import Sources


def _name(text: str) -> str:
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*", text):
        raise ValueError(f"{text!r} is not of the form package.module:attribute")
    return text


def _restorable(text: str) -> str:
    """An import string, or one of the process-wide settings that the guard watches: that it knows the word is seen at boot."""
    return text if re.fullmatch(r"[a-z][a-z ]*", text) else _name(text)


@dataclass(frozen=True, slots=True)
class SandboxConfig:
    """What is made ready at boot and put right after each operation. Names are import strings, ``package.module:attribute``."""

    warm: tuple[str, ...] = option(
        (), "Resolved once, when the application has started; what can be called without arguments is called.", parse=_name, flags=None
    )
    flush: tuple[str, ...] = option(
        (), "Emptied after each operation: dict, list, set, `lru_cache`, thread-local, what has `reset()`, or any callable.", parse=_name, flags=None
    )
    restore: tuple[str, ...] = option(
        (),
        "Put back to what it was at boot, as soon as no operation is in flight; also what the guard watches, by its name (`locale`).",
        parse=_restorable,
        flags=None,
    )

    @classmethod
    def load(cls, sources: Sources, table: Any) -> SandboxConfig:
        """From the environment and the table. Raises ConfigError with one line that names the source."""
        if not isinstance(table, dict):
            raise ConfigError(f"{sources.file}: {SANDBOX.title}: {table!r} is not a table")
        SANDBOX.check_names(table, sources.file)
        return cls(**SANDBOX.values(replace(sources, cli={}), table, SANDBOX.options, "sandbox."))


SANDBOX = Section.of(SandboxConfig, "[tool.laraman.sandbox]", "LARAMAN_SANDBOX_")
