"""Loggers that are as they were, whatever a test has made of them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from laraman import log
from laraman.config import Config

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = ("", "uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(logger.level, logger.propagate, logger.disabled, list(logger.handlers)) for logger in loggers]
    for logger in loggers[1:]:
        logger.level, logger.propagate, logger.handlers = logging.NOTSET, True, []
    yield
    log.configure(Config())  # closes files
    log._uninstall()
    for logger, (level, propagate, disabled, handlers) in zip(loggers, before, strict=True):
        for handler in logger.handlers:
            if handler not in handlers:
                handler.close()
        logger.level, logger.propagate, logger.disabled, logger.handlers = level, propagate, disabled, handlers
    logging.getLogger("uvicorn").manager._clear_cache()  # type: ignore[attr-defined]
