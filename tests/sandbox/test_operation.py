"""What an operation is called, where its endpoint is, and who runs for it."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from typing import Any

import pytest

from laraman.sandbox import current
from laraman.sandbox.operation import CURRENT, MESSAGE, REQUEST, TASK, Operation, name_of, place_of


def endpoint() -> None: ...


class Endpoint:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (Operation(REQUEST, {"type": "http", "method": "GET", "path": "/orders/7"}), "GET /orders/7"),
        (Operation(REQUEST, {"type": "websocket", "path": "/chat"}), "websocket /chat"),
        (Operation(MESSAGE, endpoint), "message function"),
        (Operation(MESSAGE, "the secret text of a peer"), "message str"),
        (Operation(TASK, "app.jobs.run"), "task app.jobs.run"),
    ],
)
def test_names(operation: Operation, name: str) -> None:
    assert operation.name == name == name_of(operation.trace)
    assert operation.where == ""


def test_the_route_is_named_where_the_framework_says_it() -> None:
    route = type("Route", (), {"path": "/orders/{id}", "endpoint": staticmethod(endpoint)})()
    operation = Operation(REQUEST, {"method": "GET", "path": "/orders/7", "route": route, "endpoint": endpoint})
    assert operation.name == "GET /orders/{id}"
    assert operation.where.endswith(" in endpoint")


@pytest.mark.parametrize(
    ("found", "function"),
    [(endpoint, "endpoint"), (functools.partial(endpoint), "endpoint"), (Endpoint(), "Endpoint.__call__")],
)
def test_the_place_of_the_endpoint(found: Any, function: str) -> None:
    operation = Operation(REQUEST, {"method": "GET", "path": "/", "endpoint": found})
    assert operation.where.startswith("tests/sandbox/test_operation.py:")
    assert operation.where.endswith(f" in {function}")


def test_a_builtin_endpoint_has_no_place() -> None:
    assert place_of(("GET", "/", len)) == ""


def test_current_is_the_operation_also_in_what_it_starts() -> None:
    operation = Operation(TASK, "work")

    async def ask() -> Any:
        return current()

    async def work() -> list[Any]:
        return [current(), await asyncio.create_task(ask()), await asyncio.to_thread(current)]

    async def main() -> list[Any]:
        context = contextvars.copy_context()
        context.run(CURRENT.set, operation)
        return await asyncio.get_running_loop().create_task(work(), context=context)

    assert asyncio.run(main()) == [operation] * 3
    assert current() is None


def test_the_name_of_an_operation_is_one_line() -> None:
    """Paths come from whoever sends requests, decoded."""
    assert Operation(REQUEST, {"type": "http", "method": "GET", "path": "/a\n\x1b[31mERROR"}).name == r"GET /a\n\x1b[31mERROR"
