from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from laraman.process.exits import Exit, collect, oom_kills, read_black_box, rss, thread_count, top_frame
from laraman.process.handover import unnamed_file
from tests.conftest import wait_until

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        (Exit(code=3), "exit code 3"),
        (Exit(signal=signal.SIGKILL), "killed by SIGKILL"),
        (Exit(signal=signal.SIGKILL, oom=True), "killed by SIGKILL (out of memory?)"),
        (Exit(signal=250), "killed by signal 250"),
        (Exit(), "exit status unknown"),
    ],
)
def test_words(ending: Exit, words: str) -> None:
    assert str(ending) == words


def test_a_child_is_collected_by_its_own_pid() -> None:
    other = subprocess.Popen(["true"])
    sleeping = subprocess.Popen(["sleep", "60"])
    assert collect(sleeping.pid) is None
    sleeping.kill()
    assert wait_until(lambda: collect(sleeping.pid)) == Exit(signal=signal.SIGKILL)
    assert collect(sleeping.pid) == Exit(), "somebody else has reaped it"
    sleeping.returncode = -9
    assert other.wait() == 0


def test_memory_pressure_is_read_from_the_cgroup(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("0::/app\n")
    (tmp_path / "app").mkdir()
    (tmp_path / "app/memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    assert oom_kills(tmp_path, membership) == 2
    membership.write_text("5:cpu:/\n4:memory:/elsewhere\n")
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 4\n")
    assert oom_kills(tmp_path, membership) == 4
    assert oom_kills(tmp_path, tmp_path / "missing") == 0


def test_the_top_frame_is_the_main_threads(tmp_path: Path) -> None:
    code = """
import faulthandler, sys, threading
def waiting(): threading.Event().wait()
def main(box): faulthandler.dump_traceback(box)
threading.Thread(target=waiting, daemon=True).start()
with open(sys.argv[1], "w") as box: main(box)
"""
    box = tmp_path / "box"
    subprocess.run([sys.executable, "-c", code, str(box)], check=True, timeout=30)
    descriptor = os.open(box, os.O_RDONLY)
    assert top_frame(read_black_box(descriptor)) == "<string>:4 in main"
    os.close(descriptor)
    assert read_black_box(descriptor) == ""
    assert top_frame("nothing of the kind") == ""


def test_the_masters_frames_are_left_out() -> None:
    descriptor = unnamed_file()
    os.write(descriptor, b'Current thread 0x1 (most recent call first):\n  File "app.py", line 2 in view\n')
    os.write(descriptor, b'  File "/x/laraman/process/children.py", line 9 in live\n  File "master.py", line 3 in run\n\nExtension modules: x\n')
    assert read_black_box(descriptor).splitlines()[1:] == ['  File "app.py", line 2 in view', "", "Extension modules: x"]
    os.close(descriptor)


def test_an_empty_black_box_has_no_stack() -> None:
    descriptor = unnamed_file()
    assert read_black_box(descriptor) == ""
    os.close(descriptor)


def test_this_process() -> None:
    assert (rss(os.getpid()) or 0) > 1_000_000
    assert rss(2**30) is None
    assert thread_count() >= 1
