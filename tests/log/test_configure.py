"""The loggers: uvicorn's names and lines, one file for its owner only, and lines that nobody can forge."""

from __future__ import annotations

import io
import logging
import stat
from typing import TYPE_CHECKING

import pytest

from laraman import log
from laraman.config import Config
from laraman.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

error = logging.getLogger("uvicorn.error")
access = logging.getLogger("uvicorn.access")


def request(path: str = "/", status: int = 200, client: str = "127.0.0.1:5") -> None:
    access.info('%s - "%s %s HTTP/%s" %d', client, "GET", path, "1.1", status)


def test_lines_look_like_uvicorns(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(Config())
    error.info("Application startup complete.")
    error.warning("Invalid HTTP request received.")
    request("/a?b=1", 404)
    request("/", 599)
    captured = capsys.readouterr()
    assert captured.err == "INFO:     Application startup complete.\nWARNING:  Invalid HTTP request received.\n"
    assert captured.out == 'INFO:     127.0.0.1:5 - "GET /a?b=1 HTTP/1.1" 404 Not Found\nINFO:     127.0.0.1:5 - "GET / HTTP/1.1" 599\n'


def test_configuring_twice_writes_once_and_keeps_the_handlers_of_others(capsys: pytest.CaptureFixture[str]) -> None:
    theirs = logging.StreamHandler(io.StringIO())
    error.addHandler(theirs)
    log.configure(Config())
    log.configure(Config())
    error.info("once")
    request()
    captured = capsys.readouterr()
    assert captured.err.count("once") == 1
    assert captured.out.count("GET") == 1
    assert theirs in error.handlers


@pytest.mark.parametrize(("level", "shown"), [("trace", 5), ("debug", 4), ("info", 3), ("warning", 2), ("error", 1), ("critical", 0)])
def test_levels(capsys: pytest.CaptureFixture[str], level: str, shown: int) -> None:
    log.configure(Config(log_level=level))  # type: ignore[arg-type]
    for number in (log.TRACE, logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        error.log(number, "line")
    assert capsys.readouterr().err.count("line") == shown
    assert log.access_enabled() is (level in ("trace", "debug", "info"))


def test_trace_has_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(Config(log_level="trace"))
    error.log(log.TRACE, "deep")
    assert capsys.readouterr().err == "TRACE:    deep\n"


def test_without_access_log_nothing_is_written_even_to_the_handlers_of_others(capsys: pytest.CaptureFixture[str]) -> None:
    theirs = io.StringIO()
    access.addHandler(logging.StreamHandler(theirs))
    log.configure(Config())
    assert log.access_enabled()
    log.configure(Config(access_log=False))
    assert not log.access_enabled()
    request()
    assert capsys.readouterr() == ("", "")
    assert theirs.getvalue() == ""


def test_colours_on_demand_only(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(Config(use_colors=True))
    error.info("plain %d", 1, extra={"color_message": "\033[1mbold %d\033[0m"})
    request()
    captured = capsys.readouterr()
    assert captured.err == "\033[32mINFO\033[0m:     \033[1mbold 1\033[0m\n"
    assert captured.out == '\033[32mINFO\033[0m:     127.0.0.1:5 - "\033[1mGET / HTTP/1.1\033[0m" \033[32m200 OK\033[0m\n'


def test_streams_that_were_closed_before_the_start_are_no_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python says None then."""
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", None)
    log.configure(Config())
    logging.getLogger("uvicorn.error").info("nobody hears this")


def test_a_colour_message_changes_nothing_for_other_handlers(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(Config(use_colors=True))
    theirs = io.StringIO()
    handler = logging.StreamHandler(theirs)
    logging.getLogger("uvicorn").addHandler(handler)
    error.info("plain", extra={"color_message": "bold"})
    assert theirs.getvalue() == "plain\n"
    assert "bold" in capsys.readouterr().err


@pytest.mark.parametrize("evil", ["/x\nINFO:     forged", "/\r\x1b[2J", "/\u2028", "/\x85", "/\x00", "/\udce9"])
def test_nobody_can_forge_a_line(capsys: pytest.CaptureFixture[str], evil: str) -> None:
    log.configure(Config())
    request(evil)
    request("/", client=evil)
    lines = capsys.readouterr().out
    assert len(lines.splitlines()) == 2
    assert lines.replace("\n", "").isprintable()


def test_formatters_take_uvicorns_arguments() -> None:
    formatter = log.AccessFormatter(fmt="%(levelname)s|%(client_addr)s|%(request_line)s|%(status_code)s", datefmt="%H", style="%", use_colors=False)
    record = logging.LogRecord("uvicorn.access", logging.INFO, "", 0, '%s - "%s %s HTTP/%s" %d', ("c", "GET", "/", "1.0", 204), None)
    assert formatter.format(record) == "INFO|c|GET / HTTP/1.0|204 No Content"
    assert (
        log.DefaultFormatter("{levelprefix}{message}", style="{", use_colors=False).format(
            logging.LogRecord("x", logging.INFO, "", 0, "hello", (), None)
        )
        == "INFO:    hello"
    )


# The file -------------------------------------------------------------------------------------------------------------------------


def test_both_logs_go_to_a_file_that_only_its_owner_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "laraman.log"
    log.configure(Config(log_file=str(path)))
    error.info("first")
    request()
    error.error("last", exc_info=ValueError("why"))
    assert path.read_text().splitlines() == [
        "INFO:     first",
        'INFO:     127.0.0.1:5 - "GET / HTTP/1.1" 200 OK',
        "ERROR:    last",
        "ValueError: why",
    ]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert capsys.readouterr() == ("", "")


def test_reopen_follows_the_name(tmp_path: Path) -> None:
    path, moved = tmp_path / "laraman.log", tmp_path / "laraman.log.1"
    log.configure(Config(log_file=str(path)))
    error.info("old")
    path.rename(moved)
    error.info("still old")
    log.reopen()
    error.info("new")
    request()
    assert moved.read_text() == "INFO:     old\nINFO:     still old\n"
    assert path.read_text().splitlines() == ["INFO:     new", 'INFO:     127.0.0.1:5 - "GET / HTTP/1.1" 200 OK']


def test_a_file_that_cannot_be_reopened_leaves_the_old_one_in_use(tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    log.configure(Config(log_file=str(directory / "laraman.log")))
    directory.rename(tmp_path / "moved")
    log.reopen()
    error.info("still here")
    text = (tmp_path / "moved" / "laraman.log").read_text()
    assert "Cannot reopen the log file" in text
    assert text.endswith("still here\n")


def test_a_file_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        log.configure(Config(log_file=str(tmp_path / "none" / "laraman.log")))
    assert str(caught.value) == f"cannot open the log file {tmp_path / 'none' / 'laraman.log'}: No such file or directory"
