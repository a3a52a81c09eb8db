"""The verbs ``dev`` and ``run``: ``start`` with the words of FastAPI's own command, which starts uvicorn by name."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from laraman.cli import serving
from laraman.cli.parsing import PYPROJECT, parse, path_parser
from laraman.config import Config
from laraman.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from laraman.config.options import Origin


def dev(arguments: list[str]) -> int:
    """Serve for development: with --reload."""
    os.environ.setdefault("FASTAPI_ENV", "development")
    return _serve("dev", arguments, reload=True)


def run(arguments: list[str]) -> int:
    """Serve for production, where a container's port is open to: on all addresses."""
    return _serve("run", arguments, host="0.0.0.0")


def _serve(verb: str, arguments: list[str], **defaults: Any) -> int:
    environ = dict(os.environ)
    return serving.serve(configured(verb, arguments, environ, defaults), lambda: configured(verb, arguments, environ, defaults))


def configured(verb: str, arguments: list[str], environ: Mapping[str, str], defaults: Mapping[str, Any]) -> Config:
    """The whole configuration; ``defaults`` are the verb's own. Raises ConfigError."""
    parsed = vars(parse(path_parser(verb), arguments))
    path, name = parsed.pop("path"), parsed.pop("name_of_app")
    if parsed["app"] and (path or name):
        raise ConfigError("--entrypoint names the application already: no PATH and no --app beside it")
    if path and ":" in path and not os.path.exists(path):  # an import string, as for start
        parsed["app"], path = path, None
    places: dict[str, Origin] = {}
    config = Config.load(parsed, environ, PYPROJECT, places=places)
    own = {**defaults, **_port(environ)}
    given = {*places, *(("host", "port") if {"bind", "uds", "fd"} & places.keys() else ())}
    config = replace(config, **{field: value for field, value in own.items() if field not in given})
    return serving.complete(serving.told_apart(_with_app(config, path or "", name or "")))


def _with_app(config: Config, path: str, name: str) -> Config:
    from laraman.asgi.discovery import locate

    if not (path or name) and (named := config.app or _entrypoint()):
        return replace(config, app=named)
    found = locate(path, name, config.app_dir)
    return replace(config, app=found.app, app_dir=found.directory)


def _port(environ: Mapping[str, str]) -> dict[str, int]:
    """What ``PORT`` says, as platforms set it."""
    text = environ.get("PORT", "")
    if not text:
        return {}
    if not text.isascii() or not text.isdecimal() or int(text) > 65535:
        raise ConfigError(f"PORT: {text!r} is no port")
    return {"port": int(text)}


def _entrypoint() -> str:
    """What FastAPI's command reads there; the file has been read before, so it is well-formed."""
    import tomllib

    if not PYPROJECT.is_file():
        return ""
    table = tomllib.loads(PYPROJECT.read_text("utf-8")).get("tool", {}).get("fastapi", {})
    found = table.get("entrypoint", "") if isinstance(table, dict) else table
    if not isinstance(found, str) or (found and not all(found.partition(":"))):
        raise ConfigError(f"{PYPROJECT}: [tool.fastapi] entrypoint: {found!r} is not of the form package.module:attribute")
    return found
