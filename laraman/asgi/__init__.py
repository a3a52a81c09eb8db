"""The ASGI side of a worker: application, lifespan, HTTP and websocket connections.

This module is what the master imports: a declaration of strings. Everything that needs an event loop is imported by the worker.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from laraman.asgi.addresses import http_addresses
from laraman.net.bind import Bind
from laraman.process.template import Template, template_of
from laraman.process.watch import STOP_SECONDS, Watcher
from laraman.process.worker import Worker

if TYPE_CHECKING:
    from laraman.config import Config


def http_workers(config: Config) -> list[Worker]:
    """The declarations of what serves ``config.app``. Raises ConfigError when ``preload`` is not available here."""
    if config.reload:
        timeout = config.timeout_graceful_shutdown
        http = _http(config, stop_timeout=STOP_SECONDS if timeout is None else min(timeout, STOP_SECONDS))
        return [Watcher(config), *_with_template(http, config), http]
    http = _http(config, count=config.workers)
    return [*_with_template(http, config), http]


def _with_template(http: Worker, config: Config) -> list[Worker]:
    if config.preload:
        return [template_of(http)]
    # Under reload, one without the application: a new worker has only that to import.
    return [Template(http, bare=True)] if config.reload and sys.platform == "linux" else []


def _http(config: Config, **options: Any) -> Worker:
    worker = Worker("http", handler="laraman.asgi.service:Http", **options)
    worker.binds = [Bind(address, config.backlog) for address in http_addresses(config)]
    for bind in worker.binds:
        bind.mode = config.uds_mode
    return worker
