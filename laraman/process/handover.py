"""From one image of the master to the next: the table that survives ``exec``.

``exec`` keeps the pid, so the workers stay children of the new image and their channels stay open. The table says which descriptor is what.
It lies in a file without a name; the environment says in which descriptor. The pid beside it keeps everybody else who inherits
the variable from believing it.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_VARIABLE = "_LARAMAN_HANDOVER"

Table = dict[str, Any]


def unnamed_file() -> int:
    """The descriptor of a new, empty file that nobody else can open and that is gone with its last descriptor."""
    if hasattr(os, "memfd_create"):  # needs no directory that can be written
        return os.memfd_create("laraman")
    with tempfile.TemporaryFile(buffering=0) as file:
        return os.dup(file.fileno())


def pending() -> bool:
    """Whether this process is a master that has executed itself anew and has not taken its table yet."""
    return os.environ.get(_VARIABLE, "").partition(":")[0] == str(os.getpid())


def take() -> Table | None:
    """The table that the image before left, once; its descriptors are closed on the next exec again. None when there is none."""
    ours = pending()
    value = os.environ.pop(_VARIABLE, "")
    if not ours:
        return None
    with open(int(value.partition(":")[2]), "rb") as file:
        file.seek(0)
        table: Table = json.load(file)
    for descriptor in table["descriptors"]:
        os.set_inheritable(descriptor, False)
    return table


def execute(
    table: Table, descriptors: Iterable[int], argv: Sequence[str], environ: Mapping[str, str], signals: Iterable[signal.Signals]
) -> NoReturn:
    """Replace this process by ``argv`` with ``environ``, which finds ``table`` and the open ``descriptors``.

    ``signals`` stay blocked until the new image handles them; before that their default would kill it. Raises OSError when it cannot
    be executed; then nothing has changed.
    """
    kept = sorted(descriptors)
    file = unnamed_file()
    os.write(file, json.dumps({**table, "descriptors": kept}).encode())
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        for descriptor in (*kept, file):
            os.set_inheritable(descriptor, True)
        os.execve(argv[0], [*argv], {**environ, _VARIABLE: f"{os.getpid()}:{file}"})
    except OSError:
        for descriptor in kept:
            with suppress(OSError):
                os.set_inheritable(descriptor, False)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(file)
        raise
