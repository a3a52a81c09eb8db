"""The formatters beside uvicorn's own, given the same records."""

from __future__ import annotations

import io
import logging
import sys
from typing import Any

import pytest
import uvicorn.logging

from laraman import log
from laraman.config import Config
from laraman.log.access import MESSAGE

LEVELS = [*log.LOG_LEVELS.values(), 15, 35]
STATUSES = (100, 200, 204, 301, 404, 500, 700)


def record(level: int = logging.INFO, message: str = "%s", *arguments: Any, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("uvicorn.error", level, "", 0, message, arguments, None)
    made.__dict__.update(extra)
    return made


@pytest.mark.parametrize("colours", [True, False])
@pytest.mark.parametrize("name", ["ColourizedFormatter", "DefaultFormatter", "AccessFormatter"])
def test_lines_are_uvicorns(name: str, colours: bool) -> None:
    def both(record: logging.LogRecord, *arguments: Any, **options: Any) -> None:
        ours, theirs = (getattr(module, name)(*arguments, use_colors=colours, **options) for module in (log, uvicorn.logging))
        assert ours.format(record) == theirs.format(record)

    for level in LEVELS:
        if name == "AccessFormatter":
            for status in STATUSES[:-1]:
                entry = record(level, MESSAGE, "a:1", "GET", "/", "1.1", status)
                both(entry, "%(levelprefix)s %(client_addr)s %(request_line)s %(status_code)s")
                both(entry, "{levelprefix} {request_line}", style="{")
                both(entry)
        else:
            both(record(level, "said %d", 5, color_message="SAID %d"), "%(asctime)s %(levelprefix)s %(message)s", "%H")
            both(record(level, "said"), "$levelprefix $message", style="$")
            both(record(level, "100%"))


def test_other_handlers_see_the_record_as_it_was() -> None:
    entry = record(logging.INFO, MESSAGE, "a:1", "GET", "/", "1.1", 200)
    before = dict(entry.__dict__)
    assert "GET / HTTP/1.1" in log.AccessFormatter("%(request_line)s", use_colors=True).format(entry)
    assert {name: value for name, value in entry.__dict__.items() if name != "message"} == before


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("options", "out", "err", "coloured"),
    [
        ({}, True, True, (True, True)),
        ({}, False, True, (False, True)),
        ({}, True, False, (True, False)),
        ({"use_colors": True}, False, False, (True, True)),
        ({"use_colors": False}, True, True, (False, False)),
        ({"daemon": True}, True, True, (False, False)),  # what is a terminal now will be a file
        ({"daemon": True, "use_colors": True}, True, True, (True, True)),
    ],
)
def test_colours_are_for_terminals(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], out: bool, err: bool, coloured: tuple[bool, bool]
) -> None:
    for source in ("", {**log.LOGGING_CONFIG}):
        stdout, stderr = (Terminal() if terminal else io.StringIO() for terminal in (out, err))
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "stderr", stderr)
        log.configure(Config(log_config=source, **options))
        logging.getLogger("uvicorn.access").info(MESSAGE, "c", "GET", "/", "1.1", 200)
        log.say_running(Config(), "http://h:1")
        assert ("\x1b" in stdout.getvalue(), "\x1b" in stderr.getvalue()) == coloured
        assert stderr.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "").endswith("Laraman running on http://h:1 (Press CTRL+C to quit)\n")


def test_subclasses_of_uvicorns_kind() -> None:
    class Mine(log.DefaultFormatter):
        def should_use_colors(self) -> bool:
            return True

        def color_level_name(self, level_name: str, level_no: int) -> str:
            return f"<{level_name}>"

    class Access(log.AccessFormatter):
        def get_status_code(self, status_code: int) -> str:
            return f"={status_code}"

    assert Mine("%(levelprefix)s %(message)s").format(record(logging.INFO, "x")) == "<INFO>:     x"
    assert Access("%(status_code)s").format(record(logging.INFO, MESSAGE, "a", "GET", "/", "1.1", 200)) == "=200"
