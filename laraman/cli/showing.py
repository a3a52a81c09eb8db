"""The verb ``config``."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from laraman.cli.parsing import PYPROJECT, config_parser, parse
from laraman.cli.tables import print_table
from laraman.config import OPTIONS, Config
from laraman.config.gateway import GATEWAY
from laraman.config.options import FILE, Origin, Section
from laraman.config.sandbox import SANDBOX
from laraman.config.settle import remarks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from dataclasses import Field

    from laraman.config.gateway import GatewayConfig
    from laraman.config.sandbox import SandboxConfig

#: What stands for a secret that is set.
MASK = "***"


def config(arguments: list[str]) -> int:
    """Show every option, its value and where that comes from. Nothing is started; mistakes are what they are at a start."""
    parsed = vars(parse(config_parser(), arguments))
    as_json = parsed.pop("json")
    places: dict[str, Origin] = {}
    loaded = _with_app(Config.load(parsed, os.environ, PYPROJECT, places=places), places)
    told = remarks(loaded)
    if loaded.reload and loaded.workers > 1:
        loaded, places["workers"] = replace(loaded, workers=1), places["reload"]
    rows = list(_rows(loaded, places))
    if as_json:
        print(json.dumps({row["name"]: {"value": row["value"], "source": row["source"]} for row in rows}))
    else:
        print_table({"OPTION": lambda row: row["name"], "VALUE": lambda row: _text(row["value"]), "SOURCE": lambda row: row["source"]}, rows)
    for remark in told:
        print(f"laraman: {remark}", file=sys.stderr)
    return 0


def _with_app(loaded: Config, places: dict[str, Origin]) -> Config:
    from laraman.asgi.discovery import find_app

    if not loaded.app and (found := find_app(loaded.app_dir or ".")):
        places["app"] = Origin(FILE, "found")
        return replace(loaded, app=found)
    return loaded


def _rows(loaded: Config, places: dict[str, Origin]) -> Iterator[dict[str, Any]]:
    for option in OPTIONS.values():
        if option.metadata["flags"] is not None and option.name != "gateway":
            yield _row(option, loaded, "", places)
    yield from _section(GATEWAY, loaded.gateway, "gateway.", places)
    for number, entry in enumerate(loaded.gateway.netsvr):
        prefix = f"gateway.netsvr.{number}."
        for option in GATEWAY.options.values():
            if prefix + option.name in places:
                yield _row(option, entry, prefix, places)
    yield from _section(SANDBOX, loaded.sandbox, "sandbox.", places)
    for name, declaration in loaded.declared:
        for word, value in declaration.items():
            key, secret = f"workers.{name}.{word}", word in OPTIONS and OPTIONS[word].metadata["secret"]
            yield {"name": key, "value": MASK if secret and value else value, "source": places[key].name}


def _section(section: Section, values: GatewayConfig | SandboxConfig, prefix: str, places: dict[str, Origin]) -> Iterator[dict[str, Any]]:
    for option in section.options.values():
        if option.metadata:
            yield _row(option, values, prefix, places)


def _row(option: Field[Any], values: object, prefix: str, places: dict[str, Origin]) -> dict[str, Any]:
    value = getattr(values, option.name)
    name = prefix + option.name
    shown = MASK if option.metadata["secret"] and value else value
    return {"name": name, "value": shown, "source": places[name].name if name in places else "default"}


def _text(value: object) -> object:
    """As a user would write it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(value) if isinstance(value, tuple) else value
