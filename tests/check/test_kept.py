"""What changes once and stays is found when it is a user's; what is kept for each user is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from laraman.check.course import check
from laraman.check.kept import LOOKED, Signs
from tests.check.test_play import leaks, stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from laraman.check.play import Stage

__all__ = ["stage"]

COMMON = """
import contextvars, functools
from collections import deque
class State: user = None
class User:
    def __init__(self, name): self.name = name
state = State()
def user_of(request): return request.headers.get("x-user", "guest")
ok = lambda: PlainTextResponse("ok")
"""

#: What is set by the first user who comes, by the path under which it is found, and the endpoint's body.
FROZEN = {
    "played.state.user": "if state.user is None: state.user = user_of(request)",
    "played.state.user.name": "if state.user is None: state.user = User(user_of(request))",
    "played.State.user": "if State.user is None: State.user = user_of(request)",
    "app.state.user": "if not hasattr(request.app.state, 'user'): request.app.state.user = user_of(request)",
    "played.CONFIG['user']": "CONFIG.setdefault('user', user_of(request)); CONFIG['last'] = user_of(request)",
    "played.CONFIG['page'][1]": "CONFIG.setdefault('page', ['title', user_of(request)])",
    "played.endpoint.__defaults__.memo['me']": "memo.setdefault('me', request.headers['authorization'])",
    "played.settings().user": "settings().user = settings().user or user_of(request)",
    "played.endless().user": "endless().user = endless().user or user_of(request)",
    "played.first()": "first(); frozen[:] = []",
    "played.state.request.scope": "if not hasattr(state, 'request'): state.request = request",
    "played.endpoint.__closure__.who": "who",
    "played.state.ip": "if not hasattr(state, 'ip'): state.ip = request.client.host",
    "played.state.page": "if not hasattr(state, 'page'): state.page = '<p>' * 200 + user_of(request)",
}
HELD = """
CONFIG = {}
frozen = []
@functools.lru_cache
def settings(): return State()
@functools.lru_cache(maxsize=None)
def endless(): return State()
CURRENT = contextvars.ContextVar("current")
@functools.lru_cache
def first(): return CURRENT.get()
"""


def source_of(body: str) -> str:
    if body == "who":
        return """
def make():
    who = None
    async def endpoint(request):
        nonlocal who
        who = who or user_of(request)
        return ok()
    return endpoint
endpoint = make()
"""
    return f"async def endpoint(request, memo={{}}):\n    CURRENT.set(user_of(request))\n    {body}\n    return ok()\n"


@pytest.mark.parametrize("path", FROZEN)
def test_the_first_users_that_stays_is_found(stage: Callable[..., Stage], path: str) -> None:
    found = leaks(check(stage(COMMON + HELD + source_of(FROZEN[path])), None, 4))
    assert path in found, found
    finding = found[path]
    assert finding.kind == "kept"
    assert finding.after.startswith("alice's ")
    assert finding.request == "GET /"
    assert finding.place.endswith("endpoint")
    assert {other for other in found if other != path} <= {"played.CONFIG['last']", "played.state.request._headers._list"}


OWN_PLACES = {
    "sessions": "CONFIG.setdefault(user_of(request), {'user': user_of(request)})",
    "claims by the hash of a token": "CONFIG.setdefault(hash(user_of(request)), {'sub': [user_of(request)]})",
    "users who were seen": "SEEN.add(user_of(request))",
    "a cache by argument": "cached(user_of(request))",
    "a deque with a bound": "RECENT.append(user_of(request)) if len(RECENT) < 2 else None",
    "what is dropped": "state.user = user_of(request); state.user = None",
    "a context variable": "CURRENT.set(user_of(request))",
    "a request's state": "request.state.user = user_of(request)",
    "one user for all": "state.user = 'nobody'",
}


@pytest.mark.parametrize("name", OWN_PLACES)
def test_what_is_kept_for_each_user_is_none_of_it(stage: Callable[..., Stage], name: str) -> None:
    more = "SEEN, RECENT = set(), deque(maxlen=9)\n@functools.lru_cache(maxsize=64)\ndef cached(name): return User(name)\n"
    assert leaks(check(stage(COMMON + HELD + more + source_of(OWN_PLACES[name])), None, 4)) == {}


class Hostile(dict[str, str]):
    def __iter__(self) -> Any:
        raise AssertionError

    items = __iter__


@pytest.mark.parametrize(
    ("obj", "names"),
    [
        ("Bearer ALICE1", {"alice"}),
        (b"user=bob2", {"bob"}),
        ("alice1 bob2", {"alice", "bob"}),
        ({"a": [("b", b"alice1")]}, {"alice"}),
        ([[[[["alice1"]]]]], set()),
        ("x" * LOOKED + "alice1", set()),
        (Hostile(a="alice1"), set()),
        (5, set()),
    ],
)
def test_signs(obj: object, names: set[str]) -> None:
    assert Signs({"alice1": "alice", "bob2": "bob"}).within(obj) == names
