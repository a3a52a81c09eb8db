"""What counts as a difference between two trials."""

from __future__ import annotations

from typing import Any

import pytest

from laraman.doctor.differences import DIFFERENCES
from laraman.doctor.findings import explained, findings
from laraman.doctor.trial import Trial


def trial(*answers: dict[str, Any], scopes: tuple[dict[str, Any], ...] = ({}, {}), lines: tuple[str, ...] = (), exit_code: int = 0) -> Trial:
    return Trial(list(answers), list(scopes), list(lines), exit_code)


def told(theirs: Trial, ours: Trial) -> list[tuple[str, str, str, str]]:
    return [(finding.what, finding.uvicorn, finding.laraman, finding.purpose) for finding in findings(theirs, ours, ["GET /"])]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"status": "200 OK"}, {"status": "200 OK"}, []),
        ({"status": "200 OK"}, {"status": "500 X"}, [("status", "200 OK", "500 X", "")]),
        ({"headers": [("a", "1"), ("b", "1")]}, {"headers": [("b", "1"), ("a", "2")]}, [("header a", "1", "2", "")]),
        ({"headers": [("a", "1"), ("a", "2")]}, {"headers": [("a", "1")]}, [("header a", "2", "", "")]),
        ({"headers": [("server", "uvicorn")]}, {"headers": [("server", "laraman")]}, [("header server", "uvicorn", "laraman", "server")]),
        ({"headers": [("server", "uvicorn")]}, {"headers": [("server", "other")]}, [("header server", "uvicorn", "other", "")]),
        ({"headers": [("content-length", "1")]}, {"headers": [("content-length", "2")]}, [("header content-length", "1", "2", "")]),
        ({"headers": [("transfer-encoding", "chunked")]}, {"headers": []}, [("header transfer-encoding", "chunked", "", "whole")]),
        ({"close": 1000}, {"close": 1001}, [("close", "1000", "1001", "")]),
        ({"close": "cut off"}, {"close": 1011}, [("close", "cut off", "1011", "websocket ends")]),
        ({"body": "x" * 100}, {}, [("body", "x" * 57 + "...", "", "")]),
    ],
)
def test_answers(first: dict[str, Any], second: dict[str, Any], expected: list[tuple[str, str, str, str]]) -> None:
    assert told(trial(first, first), trial(second, second)) == expected


def test_what_changes_by_itself_says_nothing() -> None:
    assert told(trial({"body": "1"}, {"body": "2"}), trial({"body": "3"}, {"body": "3"})) == []
    assert told(trial({"body": "1"}, {"body": "1"}), trial({"body": "2"}, {"body": "3"})) == []


def test_scopes() -> None:
    theirs, ours = (
        {"path": "/", "asgi": {"version": "3.0", "spec_version": "2.3"}},
        {"path": "/", "asgi": {"version": "3.0"}, "extensions": {"x": {}}},
    )
    assert told(trial({}, {}, scopes=(theirs, theirs)), trial({}, {}, scopes=(ours, ours))) == [
        ("scope asgi spec_version", "2.3", "", ""),
        ("scope extensions", "", '{"x": {}}', "extensions"),
    ]


def test_lines_and_exit_codes() -> None:
    theirs = trial({}, {}, lines=("INFO:     Uvicorn running on http://*", "INFO:     a", "INFO:     a"), exit_code=-15)
    ours = trial({}, {}, lines=("INFO:     Laraman running on http://*", "INFO:     a", "ERROR:    b"))
    assert told(theirs, ours) == [
        ("line", "INFO:     Uvicorn running on http://*", "", "brand"),
        ("line", "", "INFO:     Laraman running on http://*", "brand"),
        ("line", "", "ERROR:    b", ""),
        ("exit code", "-15", "0", "exit codes"),
    ]
    assert told(trial({}, {}, exit_code=-15), trial({}, {}, exit_code=3)) == [("exit code", "-15", "3", "")]


@pytest.mark.parametrize("purpose", DIFFERENCES)
def test_every_difference_can_be_told_in_a_line(purpose: str) -> None:
    text = explained(purpose)
    assert "\n" not in text
    assert text.startswith("uvicorn: ")
