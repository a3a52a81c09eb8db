"""--access-log-format: the fields, what makes a format wrong, and lines that nobody can forge."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import re
import time
from typing import Any

import pytest

from laraman import log
from laraman.config import Config
from laraman.errors import ConfigError
from laraman.log.access import FIELDS, MESSAGE, AccessFormat, Ended, Line, arguments

SCOPE: dict[str, Any] = {
    **{"type": "http", "method": "POST", "path": "/käse", "query_string": b"a=1", "http_version": "1.1", "scheme": "https"},
    **{"client": ("10.0.0.1", 4711), "headers": [(b"user-agent", b"Browser/1"), (b"referer", b"http://a/"), (b"user-agent", b"other")]},
}
EVIL = 'a"b\\c\nd\r\x1b[2J\u2028\x85é'


def ended(scope: dict[str, Any] | None = None, status: int = 200, close_code: int | None = None) -> Ended:
    scope = {**SCOPE, **(scope or {})}
    return Ended(scope, arguments(scope, status), 0.12345678, 10, 20, "id-1", 3, close_code)


def line(text: str, **scope: Any) -> str:
    return AccessFormat(text).line(ended(scope))


def test_each_field() -> None:
    found = {name: line(f"%({name})s") for name in FIELDS}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("time"))
    assert re.fullmatch(r"\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}", found.pop("local_time"))
    assert found.pop("pid").isdecimal()
    assert found == {
        **{"client": "10.0.0.1", "client_port": "4711", "method": "POST", "path": "/käse", "query": "a=1", "full_path": "/k%C3%A4se?a=1"},
        **{"http_version": "1.1", "scheme": "https", "status": "200", "duration": "0.123457", "request_bytes": "10", "response_bytes": "20"},
        **{"user_agent": "Browser/1", "referer": "http://a/", "request_id": "id-1", "worker": "3", "close_code": "-"},
    }


def test_time_is_that_of_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1700000000.9876)
    monkeypatch.setenv("TZ", "UTC+3")
    time.tzset()
    try:
        assert line("%(time)s %(local_time)s") == "2023-11-14T22:13:20.987Z 14/Nov/2023:19:13:20 -0300"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_what_a_request_does_not_have() -> None:
    assert line("%(client)s %(client_port)s %(user_agent)s %(referer)s", client=None, headers=[]) == "- - - -"
    found = json.loads(line("json", client=None, headers=[]))
    assert [found[name] for name in ("client", "client_port", "user_agent", "referer")] == [None] * 4


def test_json() -> None:
    found = json.loads(line("json"))
    assert list(found) == [name for name in FIELDS if name not in ("local_time", "full_path", "close_code")]
    assert (found["path"], found["duration"], found["status"], found["worker"]) == ("/käse", 0.123457, 200, 3)
    session = {name: value for name, value in SCOPE.items() if name != "method"}
    closed = json.loads(AccessFormat("json").line(Ended(session, arguments(session, 101), 1.0, 0, 0, "", 0, 4001)))
    assert (closed["close_code"], closed["status"], closed["method"]) == (4001, 101, "GET")


def test_combined_is_apaches() -> None:
    common = r"10\.0\.0\.1 - - \[[^]]+\] \"POST /k%C3%A4se\?a=1 HTTP/1\.1\" 200 20"
    assert re.fullmatch(common + r' "http://a/" "Browser/1"', line("combined"))


@pytest.mark.parametrize("form", ["json", "combined", '"%(path)s" "%(query)s" "%(user_agent)s" "%(method)s" "%(client)s"'])
def test_nobody_can_forge_a_line_or_end_a_quotation(form: str) -> None:
    raw = EVIL.encode("utf-8")
    made = line(form, path=EVIL, query_string=raw, method=EVIL, client=(EVIL, 1), headers=[(b"user-agent", raw), (b"referer", raw)])
    assert len(made.splitlines()) == 1
    assert made.isprintable()
    if form == "json":
        assert json.loads(made)["path"] == EVIL
        assert made.isascii()
    else:
        assert re.search(r'(?<!\\)"b', made) is None
        assert r"a\"b\\c\nd\r\x1b[2J" in made


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("%(metod)s", r"there is no field 'metod'; did you mean 'method'\?"),
        ("%(path)s %(x-y)s", "there is no field 'x-y'"),
        ("jsn", r"'jsn' is neither json nor combined .*; did you mean 'json'\?"),
        ("plain", "'plain' is neither json nor combined"),
        ("%(status)s 100%", "cannot be filled in: incomplete format"),
        ("%(path)d", "cannot be filled in: %d format: a real number is required, not str"),
        ("%(close_code)d", "cannot be filled in: %d format.*what a request does not have is '-'"),
        ("%(client_port)d", "cannot be filled in: %d format"),
        ("%(path)", "cannot be filled in: incomplete format"),
        ("%(path)s %s", "cannot be filled in"),
        ("%(path)y", "cannot be filled in: unsupported format character"),
        ("%()s", "there is no field ''"),
    ],
)
def test_a_wrong_format_is_a_line(text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        Config.load({"access_log_format": text}, {}, None)
    assert str(caught.value).startswith("--access-log-format: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "json", "combined", "%(status)d%%(x) %(duration).3f %(path)-20s|", "%(close_code)s"])
def test_a_right_format(text: str) -> None:
    assert Config.load({"access_log_format": text}, {}, None).access_log_format == text


def test_identifiers_only_where_they_are_shown() -> None:
    assert [AccessFormat(text).identifies for text in ("json", "combined", "%(request_id)s", "%(path)s")] == [True, False, True, False]


# The record -----------------------------------------------------------------------------------------------------------------------


def test_a_line_is_what_the_record_says_and_its_arguments_are_uvicorns(capsys: pytest.CaptureFixture[str]) -> None:
    access = logging.getLogger("uvicorn.access")
    records: list[logging.LogRecord] = []
    seen = logging.Handler()
    seen.emit = records.append  # type: ignore[method-assign]
    log.configure(Config(use_colors=True))
    access.addHandler(seen)
    made = Line('{"percent": "100% %s %(x)s"}')
    access.info(made, *arguments(SCOPE, 404))
    assert capsys.readouterr().out == f"{made}\n"
    (record,) = records
    assert record.args == ("10.0.0.1:4711", "POST", "/k%C3%A4se?a=1", "1.1", 404)
    for one in (record, copy.copy(record), pickle.loads(pickle.dumps(record))):
        assert one.getMessage() == made
        assert logging.Formatter("%(message)s").format(one) == made


def test_filters_see_the_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    access = logging.getLogger("uvicorn.access")
    log.configure(Config())

    def healthy(record: logging.LogRecord) -> bool:
        return isinstance(record.args, tuple) and record.args[2] != "/health"

    access.addFilter(healthy)
    try:
        for path in ("/health", "/"):
            scope = {**SCOPE, "path": path, "query_string": b""}
            access.info(Line(path), *arguments(scope, 200))
            access.info(MESSAGE, *arguments(scope, 200))
    finally:
        access.removeFilter(healthy)
    assert capsys.readouterr().out == '/\nINFO:     10.0.0.1:4711 - "POST / HTTP/1.1" 200 OK\n'
