"""Applications as their frameworks' tutorials have them. A test copies them beside its server; nothing in them knows of laraman."""

from __future__ import annotations

from pathlib import Path


def source(name: str) -> str:
    """The text of one of them."""
    return (Path(__file__).parent / name).read_text()
