"""What a framework of other people does with the language of a request: it keeps it for the thread."""

from __future__ import annotations

import threading

_active = threading.local()


def activate(language: str) -> None:
    _active.language = language
