"""The guard: sees what an operation changes for all others, says which one it was, and puts it back when it is told to.

Audit events name the line as it happens, where Python raises one (``audit``). Everything else is found by comparing what ``watches`` reads
with what it was; threads and tasks that an operation leaves behind are in ``leftovers``.
"""

from laraman.sandbox.guard.guard import Guard as Guard
from laraman.sandbox.guard.watches import Watch as Watch

__all__ = ["Guard", "Watch"]
