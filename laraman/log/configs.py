"""``--log-config``: what the user says about logging, in the forms that uvicorn takes.

A dictionary for ``logging.config.dictConfig``, from a program or a .json, .yaml or .yml file; else what ``logging.config.fileConfig`` takes: any
other file, a file object, a ConfigParser. Formatters that are named as uvicorn's are ours: the same, and uvicorn need not be there; where it is,
importing it would bring an event loop into the master.
"""

from __future__ import annotations

import json
import os
import re
import sys
from configparser import ConfigParser, RawConfigParser
from configparser import Error as IniError
from typing import Any

from laraman.errors import ConfigError

_FORMATTERS = ("ColourizedFormatter", "DefaultFormatter", "AccessFormatter")


def apply(source: Any, use_colors: bool | None, directory: str) -> None:
    """Configure logging as ``source`` says. Its own classes are looked for in ``directory`` as well. Raises ConfigError."""
    from logging import config  # 5 ms that only this needs

    if directory not in sys.path:
        sys.path.insert(0, directory)
    loaded, name, text = read(source)
    try:
        if isinstance(loaded, RawConfigParser):
            config.fileConfig(_translated_ini(loaded), disable_existing_loggers=False)
        else:
            # Explicit colours are for dictionaries of programs only, as in uvicorn: formatters of files may take no such argument.
            config.dictConfig(_translated(loaded, use_colors if isinstance(source, dict) else None))
    except Exception as exc:  # classes of the application are called
        line = _line(text, str(exc))
        raise ConfigError(f"{name}{f':{line}' if line else ''}: {_reason(exc)}") from exc


def read(source: Any) -> tuple[dict[str, Any] | RawConfigParser, str, str]:
    """What it says, its name and, of a file, its text. Raises ConfigError with the file and the line when it cannot be understood."""
    if isinstance(source, dict | RawConfigParser):
        return source, "log_config", ""
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        name = path if path.isprintable() else ascii(path)
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"cannot read the log configuration {name}: {getattr(exc, 'strerror', None) or exc}") from None
    else:
        name, text = str(getattr(source, "name", "log_config")), _contents(source)
    return _parsed(name, text), name, text


def _contents(file: Any) -> str:
    """All of a file object, each time it is asked for."""
    try:
        if file.seekable():
            file.seek(0)
        text = file.read()
    except (AttributeError, OSError, ValueError) as exc:
        raise ConfigError(f"log_config: cannot be read: {exc}") from None
    return text if isinstance(text, str) else bytes(text).decode()


def _parsed(name: str, text: str) -> dict[str, Any] | RawConfigParser:
    if name.endswith(".json"):
        return _mapping(name, _json(name, text))
    if name.endswith((".yaml", ".yml")):
        return _mapping(name, _yaml(name, text))
    parser = ConfigParser()
    try:
        parser.read_string(text, name)
    except IniError as exc:
        line = getattr(exc, "lineno", None) or next((number for number, _ in getattr(exc, "errors", ())), 0)
        raise ConfigError(f"{name}:{line}: {type(exc).__name__} in the log configuration") from None
    for section in ("loggers", "handlers", "formatters"):
        if not parser.has_section(section):
            raise ConfigError(f"{name}: there is no section [{section}]")
    return parser


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as exc:
        raise ConfigError(f"{name}:{exc.lineno}: {exc.msg}") from None


def _yaml(name: str, text: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise ConfigError(f"{name}: YAML needs PyYAML: pip install 'laraman[yaml]'") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{name}{line}: {getattr(exc, 'problem', None) or ' '.join(str(exc).split())}") from None


def _mapping(name: str, loaded: Any) -> dict[str, Any]:
    if not isinstance(loaded, dict):
        raise ConfigError(f"{name}: a log configuration is a mapping, and this is {type(loaded).__name__}")
    return loaded


# uvicorn's names ------------------------------------------------------------------------------------------------------------------


def _translated(loaded: dict[str, Any], use_colors: bool | None) -> dict[str, Any]:
    formatters = loaded.get("formatters")
    if not isinstance(formatters, dict):
        return loaded
    ours = {}
    for name, formatter in formatters.items():
        if isinstance(formatter, dict):
            formatter = {key: _our(value) if key in ("()", "class") else value for key, value in formatter.items()}
            if use_colors is not None and name in ("default", "access"):
                formatter["use_colors"] = use_colors
        ours[name] = formatter
    return {**loaded, "formatters": ours}


def _translated_ini(parser: RawConfigParser) -> RawConfigParser:
    for section in parser.sections():
        if section.startswith("formatter_") and parser.has_option(section, "class"):
            parser.set(section, "class", _our(parser.get(section, "class", raw=True)))
    return parser


def _our(name: Any) -> Any:
    module, _, attribute = name.rpartition(".") if isinstance(name, str) else ("", "", "")
    return f"laraman.log.{attribute}" if module == "uvicorn.logging" and attribute in _FORMATTERS else name


# Errors ---------------------------------------------------------------------------------------------------------------------------


def _reason(error: BaseException | None) -> str:
    """What it says, and what it came from, as dictConfig chains it."""
    reasons: list[str] = []
    while error is not None:
        said = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        if said not in ": ".join(reasons):
            reasons.append(said)
        error = error.__cause__
    return " ".join(": ".join(reasons).split())


def _line(text: str, error: str) -> int:
    """The line that declares what dictConfig complains of; 0 when it is not found."""
    named = re.match(r"Unable to configure (\w+) '(.*)'", error)
    if named is None:
        return 0
    kind, name = named.groups()
    table = re.search(rf"""["']?{kind}s["']?\s*:""", text)
    found = re.compile(rf"""["']?{re.escape(name)}["']?\s*:""").search(text, table.end()) if table else None
    return text.count("\n", 0, found.start()) + 1 if found else 0
