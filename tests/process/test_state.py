from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from laraman.errors import BootError
from laraman.process.state import Instance, StateDirectory, alive, candidates, find_instances, instance_name, open_state

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def short() -> Iterator[Path]:
    """A temporary directory whose path leaves room for a socket's name."""
    with tempfile.TemporaryDirectory(prefix="l") as directory:
        yield Path(directory).resolve()


@pytest.fixture(autouse=True)
def here(short: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory and a temporary directory of their own."""
    directory = short / "here"
    directory.mkdir()
    (short / "tmp").mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(short / "tmp"))
    return directory


@pytest.fixture
def opened() -> Iterator[list[StateDirectory]]:
    directories: list[StateDirectory] = []
    yield directories
    for directory in directories:
        directory.close()


def test_names() -> None:
    assert instance_name("shop", 8000) == "shop"
    assert instance_name("", 8000) == "8000"
    assert instance_name("", 8000, uds="/run/my app.sock") == "run-my-app.sock"
    assert instance_name("", 8000, uds="../..") == "uds"
    assert instance_name("", 8000, fd=3) == "fd3"
    long = [instance_name("", 8000, uds=f"/srv/{'deep/' * 10}{part}/app.sock") for part in "ab"]
    assert [re.sub("[0-9a-f]{8}$", "", name) for name in long] == ["deep-deep-a-app.sock-", "deep-deep-b-app.sock-"]
    assert long == [instance_name("", 8000, uds=f"/srv/{'deep/' * 10}{part}/app.sock") for part in "ab"]


def test_the_path_of_a_socket_may_be_as_long_as_it_can(here: Path, opened: list[StateDirectory]) -> None:
    made = [open_state("", instance_name("", 8000, uds=f"/{'x' * 105}{number}")) for number in range(2)]
    opened += [state for state in made if state is not None]
    assert [state.path.parent for state in opened] == [here / ".laraman"] * 2


def test_a_directory_is_private_marked_and_removed(here: Path) -> None:
    made = open_state("", "8000")
    assert made is not None
    assert made.path == here / ".laraman/8000"
    for path in (made.path, made.path.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert (here / ".laraman/.gitignore").read_text() == "*\n"
    assert stat.S_IMODE((made.path / "laraman.pid").stat().st_mode) == 0o600
    assert (made.path / "laraman.pid").read_text() == f"{os.getpid()}\n"
    assert alive(made.path) == os.getpid()
    made.close()
    assert not made.path.exists()
    assert alive(made.path) == 0


def test_rights_that_are_too_wide_are_narrowed_and_a_stale_pid_file_taken_over(here: Path, opened: list[StateDirectory]) -> None:
    path = here / ".laraman/8000"
    path.mkdir(parents=True, mode=0o755)
    (path / "laraman.pid").write_text("99999999\n")
    made = open_state("", "8000")
    assert made is not None
    opened.append(made)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert (path / "laraman.pid").read_text() == f"{os.getpid()}\n"


def test_the_lock_refuses_a_second_server(opened: list[StateDirectory]) -> None:
    made = open_state("", "8000")
    assert made is not None
    opened.append(made)
    with pytest.raises(BootError, match=f"already running with pid {os.getpid()}"):
        open_state("", "8000")


def test_a_link_or_a_file_in_the_way_is_not_followed(here: Path, short: Path, opened: list[StateDirectory]) -> None:
    (here / ".laraman").mkdir()
    (short / "elsewhere").mkdir()
    (here / ".laraman/8000").symlink_to(short / "elsewhere")
    (here / ".laraman/8001").write_text("")
    for name in ("8000", "8001"):
        made = open_state("", name)
        assert made is not None
        opened.append(made)
        assert made.path == candidates("", name)[-1]
        assert stat.S_IMODE(made.path.parent.stat().st_mode) == 0o700


def test_a_path_that_is_too_long_for_a_socket_falls_back_and_is_found(
    here: Path, monkeypatch: pytest.MonkeyPatch, opened: list[StateDirectory], short: Path
) -> None:
    deep = here / ("d" * 80)
    deep.mkdir()
    monkeypatch.chdir(deep)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short / "tmp"))
    made = open_state("", "8000")
    assert made is not None
    opened.append(made)
    assert made.path.is_relative_to(short / "tmp")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(made.control_path))
    assert find_instances("", "8000") == [Instance("8000", os.getpid(), made.control_path)]
    monkeypatch.chdir(here)
    assert find_instances() == []


def test_nothing_works(here: Path, short: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert open_state("", "n" * 100) is None
    assert "No state directory" in caplog.text


def test_instances_are_found_by_name_and_directory(here: Path, opened: list[StateDirectory]) -> None:
    for where, name in (("", "8000"), ("", "shop"), ("own", "9000")):
        made = open_state(where, name)
        assert made is not None
        opened.append(made)
    assert [found.name for found in find_instances()] == ["8000", "shop"]
    assert [found.name for found in find_instances("", "shop")] == ["shop"]
    assert find_instances("", "7000") == []
    (own,) = find_instances("own")
    assert (own.pid, own.control) == (os.getpid(), here / "own/control.sock")
    (here / ".laraman/dead").mkdir()
    (here / ".laraman/dead/laraman.pid").write_text("1\n")
    assert [found.name for found in find_instances()] == ["8000", "shop"]


def test_the_log_outlives_a_stop(here: Path) -> None:
    made = open_state("", "8000")
    assert made is not None
    made.log_path.write_text("why")
    made.close()
    assert [path.name for path in made.path.iterdir()] == ["laraman.log"]


def test_what_workers_leave_among_the_leases_is_no_obstacle(short: Path, opened: list[StateDirectory]) -> None:
    """They may be other users than the master, and do there as they like: it neither follows their links nor loses itself in their depths."""
    state = open_state(str(short / "state"), "x")
    kept = short / "kept"
    kept.mkdir()
    (kept / "file").touch()
    assert state is not None
    leases = state.open_leases()
    os.symlink(kept, "link", dir_fd=leases)
    here = os.getcwd()
    try:
        os.fchdir(leases)
        Path("lease").touch()
        for _ in range(1200):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(here)
        os.close(leases)
    state.close()
    assert os.listdir(state.path) == ["laraman.leases"]
    assert os.listdir(state.path / "laraman.leases") == ["d"]
    assert (kept / "file").exists()
    again = open_state(str(short / "state"), "x")
    assert again is not None
    opened.append(again)
    subprocess.run(["rm", "-rf", str(state.path / "laraman.leases")], check=True)  # Python's own cannot
