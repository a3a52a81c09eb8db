"""The verb ``check``."""

from __future__ import annotations

import os

from laraman.cli.parsing import CHECK_OPTIONS, PYPROJECT, check_parser, parse
from laraman.cli.serving import with_app
from laraman.config import Config, envfile

#: What else of the configuration counts there.
_CHECK_SETTINGS = ("sandbox", "isolation", "root_path", "timeout_worker_boot")


def check(arguments: list[str]) -> int:
    """Play requests on the application, in this process, and report what they leave behind. Returns 1 when they leave something."""
    parsed = vars(parse(check_parser(), arguments))
    choices = {name: parsed.pop(name) for name in ("requests", "rounds", "timeout", "ignore", "json")}
    config = with_app(Config.load(parsed, os.environ, PYPROJECT, only=(*CHECK_OPTIONS, *_CHECK_SETTINGS)))
    envfile.apply(config.env_file)
    from laraman.check.command import run

    return run(config, **choices)
