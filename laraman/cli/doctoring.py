"""The verb ``doctor``."""

from __future__ import annotations

import os
from dataclasses import replace

from laraman.asgi.discovery import find_app
from laraman.cli.parsing import DOCTOR_OPTIONS, PYPROJECT, doctor_parser, parse
from laraman.config import Config, envfile


def doctor(arguments: list[str]) -> int:
    """Say what the project uses of uvicorn, and how its application answers under both. Returns 1 when something is in the way."""
    parsed = vars(parse(doctor_parser(), arguments))
    requests, timeout, as_json = (parsed.pop(name) for name in ("requests", "timeout", "json"))
    config = Config.load(parsed, os.environ, PYPROJECT, only=(*DOCTOR_OPTIONS, "root_path"))
    envfile.apply(config.env_file)
    app = config.app or find_app(config.app_dir or ".")
    from laraman.doctor.command import run

    return run(replace(config, app=app) if app else None, requests=requests, timeout=timeout, as_json=as_json)
