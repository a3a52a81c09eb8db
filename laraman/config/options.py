"""Options: dataclass fields that carry their default, flag, environment variable, bounds and help, and what is read from them."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_type_hints

from laraman.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from dataclasses import Field

_TRUE = ("1", "true", "t", "yes", "y", "on")
_FALSE = ("0", "false", "f", "no", "n", "off")


def option(
    default: Any,
    help: str,
    *,
    flags: tuple[str, ...] | None = (),
    env: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    parse: Callable[[str], Any] | None = None,
    metavar: str = "",
    separator: str | None = None,
    secret: bool = False,
) -> Any:
    """A field. ``flags`` and ``env`` only where they are not ``--field-name`` and the section's own names; bounds are inclusive.
    With ``flags`` None no command line has it.

    ``parse`` turns the text of one value into the value and raises ValueError. A bool with a ``metavar`` takes its value as a word. The values of
    a repeatable option are split at its ``separator`` in an environment variable, at blanks when it is None. What is ``secret`` is never shown.
    """
    words = {"help": help, "flags": flags, "env": env, "metavar": metavar, "separator": separator, "secret": secret}
    return field(default=default, metadata={**words, "low": low, "high": high, "parse": parse})


class Origin(NamedTuple):
    """Where a value was found. ``place`` is one of the three below, the strongest first; ``name`` is what a user calls it."""

    place: int
    name: str


COMMAND_LINE, ENVIRONMENT, FILE = range(3)


@dataclass(frozen=True)
class Sources:
    """Where values are looked for: the words of a command line, environment variables, ``file``, which is pyproject.toml.

    ``places`` says of each option that was found where that was; its keys are dotted, ``port`` and ``gateway.listen``. Variables that an
    environment file has added are in ``env``, and are in ``added`` with the file's name.
    """

    cli: Mapping[str, Any]
    env: Mapping[str, str]
    file: str
    places: dict[str, Origin] = field(default_factory=dict)
    added: Mapping[str, str] = field(default_factory=dict)

    def variable(self, name: str) -> str:
        """What to call this environment variable."""
        return f"{self.added[name]}: {name}" if name in self.added else name


@dataclass(frozen=True)
class Section:
    """The options of one dataclass. ``title`` is its table in pyproject.toml, ``prefixes`` begin its environment variables, the strongest first.

    A field without metadata is no option: it has a loader of its own.
    """

    title: str
    prefixes: tuple[str, ...]
    options: Mapping[str, Field[Any]]

    @classmethod
    def of(cls, dataclass: type, title: str, *prefixes: str) -> Section:
        options = {option.name: option for option in fields(dataclass)}
        hints = get_type_hints(dataclass)
        _TYPES.update({option: hints[name] for name, option in options.items()})
        return cls(title, prefixes, options)

    def values(self, sources: Sources, table: Mapping[str, Any], names: Iterable[str], prefix: str = "") -> dict[str, Any]:
        """The values that are given for the options ``names``, each from its strongest source. Raises ConfigError with one line that names it.

        ``table`` is this section's of the file, ``prefix`` what comes before its names in ``sources.places``.
        """
        found = {}
        for name in names:
            wanted = self.options[name]
            for origin, raw in self._given(wanted, sources, table):
                found[name] = _value(wanted, raw, origin.name)
                sources.places[prefix + name] = origin
                break
        return found

    def checked(self, name: str, raw: Any, where: str = "") -> Any:
        """``raw`` as a value of the option ``name``, for those that a program gives. Raises ConfigError, which begins with ``where``."""
        wanted = self.options[name]
        if isinstance(raw, os.PathLike):
            raw = os.fspath(raw)
        if kind(wanted) is tuple:
            raw = [raw] if isinstance(raw, str) else raw
            right = isinstance(raw, list | tuple) and all(isinstance(item, str) for item in raw)
        else:
            right = _TYPES[wanted] is not str or isinstance(raw, str)
        if not right:
            raise ConfigError(f"{where}{name}: {'what is there' if wanted.metadata['secret'] else repr(raw)} is not {_WORDS[kind(wanted)]}")
        return _value(wanted, raw, where + name)

    def env_names(self, wanted: Field[Any]) -> tuple[str, ...]:
        """Its environment variables, the strongest first."""
        names = [f"{prefix}{wanted.name.upper()}" for prefix in self.prefixes]
        return (*names[:1], *(wanted.metadata["env"] or names[1:]))

    def check_names(self, table: Mapping[str, Any], file: str, spelled: Mapping[str, str] | None = None) -> None:
        """Raises ConfigError for a key of the table that is no option."""
        for name in table:
            if name not in self.options:
                word = (spelled or {}).get(name, name)
                raise ConfigError(f"{file}: {self.title} has no option {word!r}{did_you_mean(name, self.options)}")

    def _given(self, wanted: Field[Any], sources: Sources, table: Mapping[str, Any]) -> Iterable[tuple[Origin, Any]]:
        """What is given for it, the strongest first."""
        if (raw := sources.cli.get(wanted.name)) is not None:
            yield Origin(COMMAND_LINE, negative(wanted) if raw is False else flags(wanted)[-1]), raw
        for name in self.env_names(wanted):
            if text := sources.env.get(name):  # an empty variable is an unset one, as in uvicorn
                yield Origin(ENVIRONMENT, sources.variable(name)), _split(wanted, text) if kind(wanted) is tuple else text
        if wanted.name in table:
            raw = table[wanted.name]
            source = f"{sources.file}: {self.title} {wanted.name}"
            if not _is_toml_type(wanted, raw):
                what = "what is there" if wanted.metadata["secret"] else repr(raw)
                raise ConfigError(f"{source}: {what} is not {_WORDS[kind(wanted)]}")
            yield Origin(FILE, source), raw


_TYPES: dict[Field[Any], Any] = {}


def flags(wanted: Field[Any]) -> tuple[str, ...]:
    """How the command line spells it, without the ``--no-`` forms; ("APP",) for the one positional."""
    special: tuple[str, ...] | None = wanted.metadata["flags"]
    return special or (f"--{wanted.name.replace('_', '-')}",)


def negative(wanted: Field[Any]) -> str:
    """The flag that turns a switch off."""
    return f"--no-{flags(wanted)[-1][2:]}"


def kind(wanted: Field[Any]) -> type:
    """The type of its values: bool, int, float, str or tuple (a repeatable option)."""
    hint = _TYPES[wanted]
    if choices(wanted):
        return str
    if hint in (bool, int, float):
        return hint  # type: ignore[no-any-return]
    parts = get_args(hint)
    return next((part for part in parts if part in (bool, int, float)), tuple) if parts else str  # "int | None", "tuple[...]", text


def choices(wanted: Field[Any]) -> tuple[str, ...]:
    """The words it may be; empty when it is not a choice."""
    parts = get_args(_TYPES[wanted])
    return tuple(word for part in parts for word in (part, *get_args(part)) if isinstance(word, str))  # of a Literal, or of "Literal | None"


def default_text(wanted: Field[Any], quote: str = "") -> str:
    """Its default as a user would write it; "" when there is none."""
    value = wanted.default
    if not isinstance(value, (bool, int, float, str)) or value == "":
        return ",".join(value) if isinstance(value, tuple) else ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{quote}{value:g}{quote}" if isinstance(value, float) else f"{quote}{value}{quote}"


def is_switch(wanted: Field[Any]) -> bool:
    """Whether its flag takes no value and has a ``--no-`` form."""
    return kind(wanted) is bool and not wanted.metadata["metavar"]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'port'?`` or nothing, to end an error line with."""
    from difflib import get_close_matches  # only errors need it

    close = get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


# Values ---------------------------------------------------------------------------------------------------------------------------


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", tuple: "a list of strings"}


def _is_toml_type(wanted: Field[Any], raw: Any) -> bool:
    expected = kind(wanted)
    if expected is tuple:
        return isinstance(raw, list) and all(isinstance(item, str) for item in raw)
    if expected in (int, float):
        allowed = (int,) if expected is int else (int, float)  # not isinstance: a bool is an int
        return type(raw) in allowed or (isinstance(raw, str) and wanted.metadata["parse"] is not None)
    return isinstance(raw, expected)


def _split(wanted: Field[Any], text: str) -> list[str]:
    return [part for part in text.split(wanted.metadata["separator"]) if part]


def _value(wanted: Field[Any], raw: Any, source: str) -> Any:
    try:
        if kind(wanted) is tuple:
            return tuple(_one(wanted, item) for item in raw)
        return _one(wanted, raw)
    except ValueError as exc:
        raise ConfigError(f"{source}: {exc}") from None


def _one(wanted: Field[Any], raw: Any) -> Any:
    value = raw
    if isinstance(raw, str):
        value = (wanted.metadata["parse"] or _PARSERS[kind(wanted)])(raw)
    words = choices(wanted)
    if words:
        value = value.lower()
        if value not in words:
            raise ValueError(f"{raw!r} is not one of {', '.join(words)}")
    if type(value) in (int, float):
        value = kind(wanted)(value)
        _check_range(value, wanted.metadata["low"], wanted.metadata["high"])
    return value


def _check_range(value: float, low: float | None, high: float | None) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    if low is not None and high is not None and not low <= value <= high:
        raise ValueError(f"{value} is not in {low}..{high}")
    if low is not None and value < low:
        raise ValueError(f"{value} is less than {low}")


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None


def _boolean(text: str) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() in _TRUE


def _text(text: str) -> str:
    if "\0" in text:
        raise ValueError("contains a NUL character")
    return text


_PARSERS: dict[type, Callable[[str], Any]] = {bool: _boolean, int: _whole_number, float: _number, str: _text, tuple: _text}
