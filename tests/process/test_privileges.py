"""Who a process becomes, and what happens when it cannot."""

from __future__ import annotations

import grp
import os
import pwd
from typing import TYPE_CHECKING, Any

import pytest

from laraman.config import Config
from laraman.errors import ConfigError
from laraman.process import privileges
from laraman.process.privileges import Identity, wanted

if TYPE_CHECKING:
    from collections.abc import Callable

#: Somebody who is not root, with a name; every system has daemons' users.
SOMEBODY = next(entry for entry in pwd.getpwall() if entry.pw_uid and entry.pw_gid)
NUMBER = "61234"  # nobody's

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def test_who_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, 4321])
    uid, gid, name = SOMEBODY.pw_uid, SOMEBODY.pw_gid, SOMEBODY.pw_name
    whole = Identity(uid, gid, (gid, 4321), name, SOMEBODY.pw_dir)
    assert wanted(Config()) is None
    assert wanted(Config(user=name)) == wanted(Config(user=str(uid))) == whole
    assert wanted(Config(user=name, group="77")) == Identity(uid, 77, (77, 4321), name, SOMEBODY.pw_dir)
    assert wanted(Config(user=NUMBER, group=grp.getgrgid(gid).gr_name)) == Identity(int(NUMBER), gid, (gid,))
    assert wanted(Config(group="77")) == Identity(os.geteuid(), 77, (77,))
    with pytest.raises(ConfigError, match=f"user {NUMBER} has no entry that would tell its group: name one with --group"):
        wanted(Config(user=NUMBER))


def test_only_root_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    privileges.check(Config())
    with pytest.raises(ConfigError, match=f"only root can start workers as user {NUMBER} with group 77"):
        privileges.check(Config(user=NUMBER, group="77"))


def test_whoever_is_it_already_becomes_nothing() -> None:
    here = Config(user=str(os.getuid()), group=str(os.getgid()))
    identity = wanted(here)
    assert identity is not None
    if identity.assumed:
        privileges.check(here)
        privileges.drop(here)


def in_a_child(work: Callable[[], str]) -> str:
    """What ``work`` returns in a child, whose changes are its own."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            text = work()
        except BaseException as exc:
            text = f"{type(exc).__name__}: {exc}"
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return text


@root
@pytest.mark.fork
def test_for_good() -> None:
    def become() -> str:
        privileges.drop(Config(user=SOMEBODY.pw_name, group="77"))
        found = [os.getresuid(), os.getresgid(), sorted(os.getgroups()), os.environ["HOME"], os.environ["USER"], os.environ["LOGNAME"]]
        try:
            os.setuid(0)
        except PermissionError:
            found.append("for good")
        privileges.drop(Config(user=SOMEBODY.pw_name, group="77"))  # as a fork of a template does
        return repr(found)

    uid, name = SOMEBODY.pw_uid, SOMEBODY.pw_name
    groups = sorted({77, *os.getgrouplist(name, 77)})
    assert in_a_child(become) == repr([(uid,) * 3, (77,) * 3, groups, SOMEBODY.pw_dir, name, name, "for good"])


@root
@pytest.mark.fork
@pytest.mark.skipif(not hasattr(os, "setresuid"), reason="only Linux tells saved ids")
def test_whoever_could_go_back_is_not_it_already() -> None:
    def go_back() -> str:
        os.setgroups([77])
        os.setresgid(77, 77, 77)
        os.setresuid(int(NUMBER), int(NUMBER), 0)
        privileges.drop(Config(user=NUMBER, group="77"))
        return "became it"

    assert in_a_child(go_back).startswith(f"ConfigError: cannot become user {NUMBER} with group 77")


@root
@pytest.mark.fork
@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("setgroups", "Operation not permitted"),
        ("setgid", "Operation not permitted"),
        ("setuid", "Operation not permitted"),
        ("silently setuid", "this process could go back"),
        ("silently setgroups", "this process could go back"),
    ],
)
def test_all_of_it_or_nothing(broken: str, says: str) -> None:
    silent, _, call = broken.rpartition(" ")

    def refuse(*_: Any) -> None:
        if not silent:
            raise PermissionError(1, "Operation not permitted")

    def become() -> str:
        os.setgroups([0])
        setattr(os, call, refuse)
        privileges.drop(Config(user=NUMBER, group="77"))
        return "became it"

    assert in_a_child(become) == f"ConfigError: cannot become user {NUMBER} with group 77: {says}"
