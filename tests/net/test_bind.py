from __future__ import annotations

import os
import select
import socket
import stat
import sys
from typing import TYPE_CHECKING

import pytest

from laraman.errors import BootError, ConfigError
from laraman.net.address import Address
from laraman.net.bind import Bind, key_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def binds() -> Iterator[list[Bind]]:
    made: list[Bind] = []
    yield made
    for bind in made:
        bind.close()
        bind.unlink()


def test_port_0_becomes_the_real_port_and_the_key_stays(binds: list[Bind]) -> None:
    bind = Bind("http://127.0.0.1:0")
    binds.append(bind)
    bind.open()
    bind.open()
    assert bind.socket is not None
    port = bind.socket.getsockname()[1]
    assert (bind.key, str(bind.address)) == ("http://127.0.0.1:0", f"http://127.0.0.1:{port}")
    assert not bind.socket.getblocking()
    assert not bind.socket.get_inheritable()
    socket.create_connection(("127.0.0.1", port), 5).close()
    bind.close()
    bind.close()
    assert repr(bind) == f"<Bind http://127.0.0.1:{port} closed>"


@pytest.mark.parametrize(("address", "family"), [("tcp://localhost:0", socket.AF_INET), ("tcp://[::1]:0", socket.AF_INET6)])
def test_names_and_families(binds: list[Bind], address: str, family: int) -> None:
    if family == socket.AF_INET6 and not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("this machine has no IPv6")
    bind = Bind(address)
    binds.append(bind)
    bind.open()
    assert bind.socket is not None
    assert bind.socket.family == family


def test_no_host_is_all_addresses(binds: list[Bind]) -> None:
    bind = Bind(Address("tcp", "", 0))
    binds.append(bind)
    bind.open()
    assert bind.socket is not None
    assert bind.socket.getsockname()[0] == "0.0.0.0"


def test_what_cannot_be_opened_is_one_clear_line(binds: list[Bind], tmp_path: Path) -> None:
    bind = Bind("frame://127.0.0.1:0")
    binds.append(bind)
    bind.open()
    with pytest.raises(BootError, match=r"^cannot listen on frame://127.0.0.1:\d+: Address already in use$"):
        Bind(bind.address).open()
    with pytest.raises(BootError, match=r"cannot listen on tcp://no\.such\.host\.invalid:1"):
        Bind("tcp://no.such.host.invalid:1").open()
    with pytest.raises(BootError, match="cannot listen"):
        Bind(f"unix:{tmp_path}/{'x' * 200}").open()
    with pytest.raises(ConfigError):
        Bind("nonsense")


def test_a_unix_socket_is_open_to_a_proxy_and_unlinked_at_the_end(binds: list[Bind], tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    bind = Bind(f"unix:{path}")
    binds.append(bind)
    bind.open()
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    with pytest.raises(BootError, match="another process listens there"):
        Bind(f"unix:{path}").open()
    bind.close()
    assert path.exists(), "others may still listen on it"
    bind.unlink()
    bind.unlink()
    assert not path.exists()


@pytest.mark.parametrize(("before", "mode", "after"), [(None, "", 0o666), (0o640, "", 0o640), (0o640, "0600", 0o600), (None, "770", 0o770)])
def test_permissions_of_a_unix_socket(binds: list[Bind], tmp_path: Path, before: int | None, mode: str, after: int) -> None:
    path = tmp_path / "x.sock"
    if before is not None:
        with socket.socket(socket.AF_UNIX) as left_behind:
            left_behind.bind(str(path))
        path.chmod(before)
    bind = Bind(f"unix:{path}")
    bind.mode = mode
    binds.append(bind)
    umask = os.umask(0o022)
    try:
        bind.open()
        assert os.umask(0o022) == 0o022, "the process's own is as it was"
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == after
    assert bind.where == f"unix socket {path}"


def test_whoever_may_write_its_directory_cannot_lead_its_permissions_elsewhere(
    binds: list[Bind], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, victim = tmp_path / "x.sock", tmp_path / "victim"
    victim.touch(0o600)
    before = victim.stat()
    listen = socket.socket.bind

    def swapped(made: socket.socket, name: str) -> None:
        listen(made, name)
        path.unlink()
        path.symlink_to(victim)

    monkeypatch.setattr(socket.socket, "bind", swapped)
    bind = Bind(f"unix:{path}")
    bind.mode, bind.group = "0666", str(os.getgid() if os.geteuid() else 61234)
    binds.append(bind)
    bind.open()
    after = victim.stat()
    assert (after.st_mode, after.st_gid) == (before.st_mode, before.st_gid)


def test_a_given_socket_says_what_it_is(binds: list[Bind], tmp_path: Path) -> None:
    path = tmp_path / "given.sock"
    for family, address, told in (
        (socket.AF_INET, ("127.0.0.1", 0), "http://127.0.0.1:{}"),
        (socket.AF_INET6, ("::1", 0), "http://[::1]:{}"),
        (socket.AF_UNIX, str(path), f"http+unix://{path}"),
        (socket.AF_UNIX, f"\0laraman-{os.getpid()}", "http+fd://{}"),
    ):
        if family == socket.AF_INET6 and not os.path.exists("/proc/net/if_inet6"):
            continue
        given = socket.socket(family)
        given.bind(address)
        number = given.detach()
        bind = Bind(f"http+fd://{number}")
        binds.append(bind)
        bind.open()
        assert bind.socket is not None
        shown = bind.socket.getsockname()[1] if family in (socket.AF_INET, socket.AF_INET6) else number
        assert (str(bind.address), bind.key, bind.fd) == (told.format(shown), f"http+fd://{number}", number)
        bind.close()
        bind.unlink()
    assert path.exists(), "it is its owner's to remove"


def test_a_stale_unix_socket_is_replaced_and_anything_else_is_not(binds: list[Bind], tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    bind = Bind(f"unix:{path}")
    binds.append(bind)
    bind.open()
    path.unlink()
    path.write_text("somebody else's")
    bind.unlink()
    assert path.read_text() == "somebody else's"
    with pytest.raises(BootError, match="not a socket"):
        Bind(f"unix:{path}").open()


def test_a_descriptor_is_taken_over_and_must_be_a_stream(binds: list[Bind]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        bind = Bind(f"fd:{os.dup(listening.fileno())}")
        binds.append(bind)
        bind.open()
    socket.create_connection(("127.0.0.1", port), 5).close()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        with pytest.raises(BootError, match="not a stream socket"):
            Bind(f"fd:{datagrams.fileno()}").open()
        assert datagrams.fileno() >= 0
    with pytest.raises(BootError, match="Bad file descriptor"):
        Bind("fd:987").open()


def test_a_restart_finds_its_socket_when_it_now_speaks_tls() -> None:
    assert Bind("https://127.0.0.1:8443").key == Bind("http://127.0.0.1:8443").key == "http://127.0.0.1:8443"
    assert Bind("https+unix:///run/x").key == "http+unix:///run/x"


def test_an_inherited_socket_is_found_again_with_its_port(binds: list[Bind], tmp_path: Path) -> None:
    for address in ("tcp://127.0.0.1:0", f"unix:{tmp_path}/x.sock"):
        first = Bind(address)
        first.open()
        assert first.socket is not None
        second = Bind(address)
        binds.append(second)
        second.open(first.socket.detach())
        assert second.address == first.address
        second.close()
        second.unlink()
    assert not (tmp_path / "x.sock").exists()


def test_an_inherited_socket_whose_name_is_another_file_s_serves_on(binds: list[Bind], tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    first = Bind(f"unix:{path}")
    first.open()
    assert first.socket is not None
    path.unlink()
    path.write_text("mine")
    second = Bind(f"unix:{path}")
    binds.append(second)
    second.open(first.socket.fileno())
    first.socket.detach()
    second.close()
    second.unlink()
    assert path.read_text() == "mine"


@pytest.mark.skipif(sys.platform != "linux", reason="a packet filter of Linux")
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_turned_away_connections_are_not_begun_and_begun_ones_go_on(binds: list[Bind], host: str) -> None:
    bind = Bind(f"tcp://{host}:0")
    binds.append(bind)
    bind.open()
    assert bind.socket is not None
    address = (host.strip("[]"), bind.address.port)
    with socket.create_connection(address, 5) as waiting, socket.socket(bind.socket.family) as late:
        bind.turn_away()
        late.settimeout(0.1)
        with pytest.raises(TimeoutError):
            late.connect(address)
        accepted, _ = bind.socket.accept()
        bind.close()
        with accepted:
            waiting.sendall(b"there?")
            assert accepted.recv(100) == b"there?"
            accepted.sendall(b"yes")
            assert waiting.recv(100) == b"yes"
    bind.turn_away()  # closed: nothing to do


@pytest.mark.skipif(sys.platform != "linux", reason="a packet filter of Linux")
def test_whoever_gave_us_a_descriptor_goes_on_listening(binds: list[Bind]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        bind = Bind(f"fd:{os.dup(listening.fileno())}")
        binds.append(bind)
        bind.open()
        bind.turn_away()
        bind.close()
        socket.create_connection(listening.getsockname(), 5).close()


# A socket for each slot ---------------------------------------------------------------------------------------------------------------


def shared(address: str, binds: list[Bind]) -> Bind:
    bind = Bind(address)
    bind.reuse_port = True
    binds.append(bind)
    bind.open()
    return bind


linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel does not spread connections")


@linux
def test_each_slot_has_a_socket_and_the_kernel_spreads_connections(binds: list[Bind]) -> None:
    bind = shared("tcp://127.0.0.1:0", binds)
    for slot in (0, 1, 2, 2):
        bind.open_slot(slot)
    assert [made.getsockname()[1] for made in bind.sockets] == [bind.address.port] * 3
    clients = [socket.create_connection(("127.0.0.1", bind.address.port), 5) for _ in range(60)]
    found = [0, 0, 0]
    for slot, made in enumerate(bind.sockets):
        while select.select([made], [], [], 0)[0]:
            made.accept()[0].close()
            found[slot] += 1
    for client in clients:
        client.close()
    assert (sum(found), 0 in found) == (60, False)


@linux
def test_a_process_keeps_its_slot_s_socket_and_the_master_ends_those_that_are_not_wanted(binds: list[Bind]) -> None:
    bind = shared("udp://127.0.0.1:0", binds)
    for slot in (1, 2, 3):
        bind.open_slot(slot)
    _, one, two, three = bind.sockets
    bind.end_slots(3)
    assert (bind.sockets[1:], three.fileno()) == ([one, two], -1)
    bind.keep_slot(2)
    assert (bind.socket, bind.others, one.fileno()) == (two, {}, -1)
    only = shared("udp://127.0.0.1:0", binds)
    first = only.socket
    only.keep_slot(0)
    assert only.sockets == [first]


@linux
def test_a_later_image_finds_the_sockets_of_the_slots(binds: list[Bind]) -> None:
    first = shared("text+tls://127.0.0.1:0", binds)
    first.open_slot(1)
    first.open_slot(2)
    table = {name: os.dup(descriptor) for name, descriptor in first.descriptors().items()}
    assert [*table] == [first.key, f"1@{first.key}", f"2@{first.key}"] == ["text://127.0.0.1:0", "1@text://127.0.0.1:0", "2@text://127.0.0.1:0"]
    assert [key_of(name) for name in table] == [first.key] * 3
    first.close()
    second = Bind("text+tls://127.0.0.1:0")
    second.reuse_port = True
    binds.append(second)
    second.take_over(table, 2)
    assert (second.address, len(second.sockets), [*table]) == (first.address, 2, [f"2@{first.key}"])
    os.close(table.popitem()[1])


@linux
@pytest.mark.parametrize("scheme", ["tcp", "udp"])
def test_a_restart_may_switch_it_on(binds: list[Bind], scheme: str) -> None:
    before = Bind(f"{scheme}://127.0.0.1:0")
    before.open()
    after = Bind(f"{scheme}://127.0.0.1:0")
    after.reuse_port = True
    binds.append(after)
    assert before.socket is not None
    after.take_over({before.key: before.socket.detach()}, 2)
    assert (len(after.sockets), after.address) == (2, before.address)


@linux
@pytest.mark.parametrize("scheme", ["tcp", "udp"])
def test_an_address_that_another_program_shares_is_refused(binds: list[Bind], scheme: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if scheme == "udp" else socket.SOCK_STREAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        if scheme == "tcp":
            other.listen()
        with pytest.raises(BootError, match="Address already in use"):
            shared(f"{scheme}://127.0.0.1:{other.getsockname()[1]}", binds)


def test_datagrams(binds: list[Bind]) -> None:
    bind = Bind("udp://127.0.0.1:0")
    binds.append(bind)
    bind.open()
    assert bind.socket is not None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"x", ("127.0.0.1", bind.address.port))
        bind.socket.setblocking(True)
        bind.socket.settimeout(5)
        assert bind.socket.recvfrom(10) == (b"x", ("127.0.0.1", client.getsockname()[1]))
    with pytest.raises(BootError, match=r"^cannot listen on udp://127.0.0.1:\d+: Address already in use$"):
        Bind(bind.address).open()


def test_places(tmp_path: Path) -> None:
    places = [Bind(f"{address}://127.0.0.1:9").place for address in ("text", "frame+tls", "udp")]
    assert places == [("tcp", "127.0.0.1", 9), ("tcp", "127.0.0.1", 9), ("udp", "127.0.0.1", 9)]
    assert Bind(f"unix:{tmp_path}/a/../x").place == Bind(f"frame+unix://{tmp_path}/x").place
    assert [Bind("text://127.0.0.1:0").place, Bind("fd:3").place] == [None, None]
