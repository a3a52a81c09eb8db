from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

import pytest

from laraman.channel.hub import journal as module
from laraman.channel.hub.journal import Journal
from laraman.channel.hub.records import done_record, put_record

if TYPE_CHECKING:
    from pathlib import Path


def put(number: int, data: bytes = b"data") -> bytes:
    return put_record(number, "q", "key", data)


def found(directory: Path) -> dict[int, bytes]:
    """What a hub that starts then finds."""
    return {record.number: record.data for _, record in Journal(directory).replay()}


def test_what_was_written_is_there(tmp_path: Path) -> None:
    directory = tmp_path / "hub"
    journal = Journal(directory)
    assert journal.replay() == []
    journal.write([put(3), put(1), put(2)])
    journal.write([done_record(1), put(4, b"")])
    again = Journal(directory)
    assert [(record.number, record.queue, record.key, record.data) for _, record in again.replay()] == [
        (2, "q", "key", b"data"),
        (3, "q", "key", b"data"),
        (4, "q", "key", b""),
    ]
    again.write([done_record(3)])
    assert found(directory) == {2: b"data", 4: b""}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}


@pytest.mark.parametrize("lost", range(1, 40, 3))
def test_a_torn_end_is_left_out(tmp_path: Path, lost: int, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(tmp_path)
    journal.write([put(1), put(2)])
    (file,) = tmp_path.iterdir()
    os.truncate(file, file.stat().st_size - lost)
    assert set(found(tmp_path)) in ({1}, set())
    assert "no whole record" in caplog.text or lost == len(put(1))
    again = Journal(tmp_path)
    again.replay()
    again.write([put(3)])
    assert 3 in found(tmp_path), "what is torn does not hide what came later"


def test_what_was_changed_is_left_out(tmp_path: Path) -> None:
    Journal(tmp_path).write([put(1), put(2)])
    (file,) = tmp_path.iterdir()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert found(tmp_path) == {1: b"data"}


def test_garbage_is_left_out(tmp_path: Path) -> None:
    Journal(tmp_path).write([put(1)])
    (file,) = tmp_path.iterdir()
    with file.open("ab") as end:
        end.write(os.urandom(1000))
    (tmp_path / "notes.txt").write_text("not ours")
    assert found(tmp_path) == {1: b"data"}


def test_files_go_from_the_oldest_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT", 1000)
    journal = Journal(tmp_path)
    segments = {number: journal.write([put(number, bytes(600))]) for number in range(1, 11)}
    assert sorted(set(segments.values())) == [1, 2, 3, 4, 5]
    for number in (3, 4, 5, 6):
        journal.write([done_record(number)])
        journal.release([segments[number]])
    assert len(list(tmp_path.iterdir())) == 6, "the first file keeps the others"
    for number in (1, 2):
        journal.write([done_record(number)])
        journal.release([segments[number]])
    assert len(list(tmp_path.iterdir())) == 3
    assert set(found(tmp_path)) == {7, 8, 9, 10}


def test_it_is_outgrown_when_it_is_too_large_or_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT", 1000)
    journal = Journal(tmp_path)
    for number in range(1, 11):
        journal.write([put(number, bytes(600))])
    assert journal.outgrown(6000) == 0
    assert journal.outgrown(600) == 1
    monkeypatch.setattr(module, "SEGMENT", 1_000_000)
    assert journal.outgrown(6000) == 1


def test_what_cannot_be_written_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    journal.write([put(1)])
    room = [10]
    write = os.write

    def full(file: int, data: bytes) -> int:
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data[: room.pop()])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        journal.write([put(2), put(3)])
    monkeypatch.undo()
    journal.write([put(4)])
    assert set(found(tmp_path)) == {1, 4}


def test_nothing_is_left_when_all_is_done(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    segment = journal.write([put(1)])
    journal.write([done_record(1)])
    journal.release([segment])
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "hub").write_text("a file")
    assert found(tmp_path / "hub") == {}
    assert "cannot be read: Not a directory" in caplog.text
