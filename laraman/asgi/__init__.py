"""The ASGI side of a worker: application, lifespan, HTTP and websocket connections.

This module is what the master imports: a declaration of strings. Everything that needs an event loop is imported by the worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from laraman.process.template import template_of
from laraman.process.worker import Worker

if TYPE_CHECKING:
    from laraman.config import Config


def http_workers(config: Config) -> list[Worker]:
    """The declarations of what serves ``config.app``. Raises ConfigError when ``preload`` is not available here."""
    http = Worker("http", _address(config), count=config.workers, handler="laraman.asgi.service:Http")
    return [template_of(http), http] if config.preload else [http]


def _address(config: Config) -> str:
    if config.fd is not None:
        return f"http+fd://{config.fd}"
    if config.uds:
        return f"http+unix://{config.uds}"
    return f"http://[{config.host}]:{config.port}" if ":" in config.host else f"http://{config.host}:{config.port}"
