from __future__ import annotations

import contextvars
import decimal

from laraman.sandbox.operation import TASK, Operation
from laraman.sandbox.surroundings import Sandbox

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def operation() -> Operation:
    return Operation(TASK, "test")


def warm() -> contextvars.Context:
    context = contextvars.copy_context()
    context.run(variable.set, "startup")
    return context


def test_each_operation_starts_from_the_warm_context_and_leaves_nothing() -> None:
    sandbox = Sandbox(base=warm())
    first, second = sandbox.context(operation()), sandbox.context(operation())
    assert first.run(variable.get) == "startup"
    first.run(variable.set, "first")
    assert second.run(variable.get) == "startup"
    assert sandbox.context(operation()).run(variable.get) == "startup"
    assert variable.get() == "unset"


def test_what_happens_to_the_base_later_does_not_matter() -> None:
    base = warm()
    sandbox = Sandbox(base=base)
    base.run(variable.set, "later")
    assert sandbox.context(operation()).run(variable.get) == "startup"


def test_a_decimal_context_that_startup_touched_is_not_shared() -> None:
    base = contextvars.copy_context()
    base.run(lambda: setattr(decimal.getcontext(), "prec", 7))
    sandbox = Sandbox(base=base)
    first = sandbox.context(operation())
    first.run(lambda: setattr(decimal.getcontext(), "prec", 3))
    assert sandbox.context(operation()).run(lambda: decimal.getcontext().prec) == 7


def test_a_decimal_context_that_startup_did_not_touch_is_not_shared() -> None:
    sandbox = Sandbox(base=contextvars.Context())
    first = sandbox.context(operation())
    first.run(lambda: setattr(decimal.getcontext(), "prec", 3))
    assert sandbox.context(operation()).run(lambda: decimal.getcontext().prec) == decimal.DefaultContext.prec
