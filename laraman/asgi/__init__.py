"""The ASGI side of a worker: application, lifespan, HTTP and websocket connections.

This module is what the master imports: a declaration of strings. Everything that needs an event loop is imported by the worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from laraman.asgi.addresses import http_addresses
from laraman.net.bind import Bind
from laraman.process.template import template_of
from laraman.process.worker import Worker

if TYPE_CHECKING:
    from laraman.config import Config


def http_workers(config: Config) -> list[Worker]:
    """The declarations of what serves ``config.app``. Raises ConfigError when ``preload`` is not available here."""
    http = _http(config, count=config.workers)
    return [template_of(http), http] if config.preload else [http]


def _http(config: Config, **options: Any) -> Worker:
    worker = Worker("http", handler="laraman.asgi.service:Http", **options)
    worker.binds = [Bind(address, config.backlog) for address in http_addresses(config)]
    for bind in worker.binds:
        bind.mode = config.uds_mode
    return worker
