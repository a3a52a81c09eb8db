"""Requests that are played by calling an ASGI application, in the context and the task of the caller."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from laraman.check.diff import Finding, Series

if TYPE_CHECKING:
    from laraman.check.heap import Heap


async def get(app: Any, path: str, user: str = "alice") -> int:
    """The status of the response."""
    target, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": target,
        "raw_path": target.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", b"localhost"), (b"x-user", user.encode())],
        "client": ("192.0.2.1", 40000),
        "server": ("127.0.0.1", 8000),
        "state": {},
    }
    sent: list[dict[str, Any]] = []
    request = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        return request.pop() if request else await asyncio.get_running_loop().create_future()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    status: int = sent[0]["status"]
    return status


async def rounds(heap: Heap, app: Any, *paths: str, users: str = "alice bob alice bob alice") -> list[Finding]:
    """What playing these paths leaks."""
    series = Series(heap.snapshot(), ", ".join(paths))
    for user in users.split():
        for path in paths:
            assert await get(app, path, user) == 200
        await asyncio.sleep(0)
        series.add(heap.snapshot(), user)
    return series.findings()
