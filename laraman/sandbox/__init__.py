"""One operation's surroundings: a request, a websocket session, a message starts from the worker's warm state and leaves nothing for the next.

Each operation runs in its own copy of the context that the application's startup left behind. A copy isolates, and it keeps what startup set
(tracing, configuration); an empty context would hide that, which is why servers that tried it took it back.
"""

from __future__ import annotations

import sys
from contextvars import Context, copy_context
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import decimal
    from collections.abc import Callable


class Sandbox:
    """Makes the context of each operation from ``base``, the worker's context after startup (by default the current one)."""

    def __init__(self, base: Context | None = None) -> None:
        self._base = copy_context() if base is None else base.copy()
        self._decimal = self._warm_decimal()
        #: A fresh context for one operation.
        self.context: Callable[[], Context] = self._base.copy if self._decimal is None else self._with_decimal

    def _with_decimal(self) -> Context:
        assert self._decimal is not None
        context = self._base.copy()
        context.run(sys.modules["decimal"].setcontext, self._decimal.copy())
        return context

    def _warm_decimal(self) -> decimal.Context | None:
        """The decimal context that startup left in the base, if it did: copying a context is shallow, so every operation would share and change it.

        Where startup did not touch decimal nothing is needed: the module makes a new one from its default in each context that asks.
        """
        for variable, value in self._base.items():
            if variable.name == "decimal_context":
                shared: decimal.Context = value
                return shared.copy()
        return None
