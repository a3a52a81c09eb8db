"""The declaration of the embedded gateway. The master imports this, so it is light."""

from __future__ import annotations

from typing import TYPE_CHECKING

from laraman.errors import ConfigError
from laraman.process.worker import Worker

if TYPE_CHECKING:
    from laraman.config import Config

NAME = "gateway"


def gateway_worker(config: Config) -> Worker:
    """The worker that is a gateway, with the addresses of ``config.gateway``. Raises ConfigError.

    Its process holds the browsers' connections, so there is one, and a reload leaves it alone.
    """
    gateway = config.gateway
    ports = [address for address in (gateway.worker_addr, gateway.task_addr) if address]
    if not gateway.worker_addr:
        raise ConfigError("[tool.laraman.gateway] an embedded gateway needs a worker_addr")
    if any("[" in address for address in ports):
        raise ConfigError(f"[tool.laraman.gateway] {', '.join(ports)}: uniqIds have room for IPv4 addresses only")
    schemes = ("netsvr-worker", "netsvr-task")
    binds = [f"ws://{gateway.listen}", *(f"{scheme}://{address}" for scheme, address in zip(schemes, ports, strict=False))]
    return Worker(NAME, binds, handler="laraman.gateway.service:Gateway", exclusive=True)
