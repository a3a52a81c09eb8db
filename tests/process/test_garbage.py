"""The collector of a worker, in a process of its own: what it is set to is this process's."""

from __future__ import annotations

import subprocess
import sys

import pytest

ours = pytest.mark.skipif(sys.version_info >= (3, 14), reason="the interpreter's own collections are left alone")

BEGIN = """
import gc, weakref
from laraman.process import garbage
class Cycle:
    def __init__(self):
        self.me = self
def lost():
    return weakref.ref(Cycle())
"""


def printed(code: str) -> str:
    result = subprocess.run([sys.executable, "-W", "error", "-c", BEGIN + code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@ours
def test_an_idle_worker_collects_what_is_new_at_most_once_in_an_interval() -> None:
    code = """
it = garbage.Garbage()
it.settle()
first = lost()
looks = [it.look(0, 0, 100.0), it.look(5, 0, 100.0), it.look(9, 0, 109.9), it.look(9, 0, 110.1), it.look(9, 0, 200.0)]
print(looks, first() is None, gc.get_threshold() == garbage.SERVING)
"""
    assert printed(code) == "[False, True, False, True, False] True True"


@ours
def test_a_busy_worker_is_left_alone_and_one_that_only_waits_is_not() -> None:
    code = """
it = garbage.Garbage()
it.settle()
it.look(0, 0, 0.0)
garbage.CALM = 0.0
busy = it.look(5, 1, 1000.0)
garbage.CALM = 0.05
print(busy, it.look(5, 1, 2000.0))
"""
    assert printed(code) == "False True"


@ours
def test_new_containers_are_worth_a_collection_without_requests() -> None:
    code = """
it = garbage.Garbage()
it.settle()
kept = [[] for _ in range(garbage.WORTH + 100)]
print(it.look(0, 0, 100.0))
"""
    assert printed(code) == "True"


@ours
def test_long_collections_are_made_less_often() -> None:
    code = """
garbage.SHARE = 1e-9
it = garbage.Garbage()
print(it.look(1, 0, 100.0), it.look(2, 0, 1000.0))
"""
    assert printed(code) == "True False"


@pytest.mark.parametrize("own", ["gc.disable()", "gc.set_threshold(1234)", "gc.set_threshold(5, 6, 7)"])
def test_the_application_s_own_settings_are_kept(own: str) -> None:
    code = f"""
{own}
before = gc.isenabled(), gc.get_threshold()
it = garbage.Garbage()
it.settle()
print(it.look(5, 0, 100.0), before == (gc.isenabled(), gc.get_threshold()))
"""
    assert printed(code) == "False True"


def test_what_is_there_is_frozen() -> None:
    assert printed("it = garbage.Garbage(); it.settle(); print(gc.get_freeze_count() > 1000, len(gc.get_objects()) < 100)") == "True True"
