"""What a check says about what it has found."""

from __future__ import annotations

import json

from laraman.check.diff import Finding
from laraman.check.report import Played, Report, table
from laraman.check.requests import Request

GET = Request("GET", "/a/{marker}", title="/a/{name}")
CART = Finding("shop.CART", "grows", "[]", "['tea', 'tea']", "GET /a/{name}", "shop.py:7 in add", (2, 4, 6))
USER = Finding("shop.USER", "rebound", "'alice'", "'bob'", "GET /b", "")


def report(*findings: tuple[Finding, tuple[str, ...]], requests: tuple[Played, ...] = (Played(GET, 200, ""),), notes: tuple[str, ...] = ()) -> Report:
    return Report(findings, requests, 5, notes, 1.234)


def test_nothing_leaked() -> None:
    clean = report()
    assert (clean.exit_code, clean.table(80)) == (0, "0 leaks in 1 request, 5 rounds (1.2 s)")


def test_the_table() -> None:
    leaked = report((CART, ("GET /c", "GET /d")), (USER, ()))
    assert leaked.exit_code == 1
    assert leaked.table(None).splitlines() == [
        "WHAT       BEFORE   AFTER           REQUEST                   PLACE",
        "shop.CART  []       ['tea', 'tea']  GET /a/{name} and 2 more  shop.py:7 in add",
        "shop.USER  'alice'  'bob'           GET /b                    -",
        "",
        "2 leaks in 1 request, 5 rounds (1.2 s)",
    ]


def test_what_is_known_is_not_reported() -> None:
    leaked = report((CART, ()), (USER, ()), (Finding("shop.seen['a']", "grows", "", ""), ()), notes=("one",))
    left = leaked.without(["shop.CART", "shop.U", "shop.seen['a']", "[a-z]*", "*shop", "[a-z]*"])
    assert (left.exit_code, [finding.path for finding, _ in left.findings], left.ignored) == (1, ["shop.USER"], 2)
    assert left.notes == ("one", *(f"--ignore {name}: nothing of that name was found" for name in ("shop.U", "[a-z]*", "*shop")))
    assert left.table(None).endswith("1 leak in 1 request, 5 rounds, 2 ignored (1.2 s)")
    assert json.loads(left.json())["ignored"] == 2
    assert leaked.without(["shop.*"]).exit_code == 0
    assert leaked.without([]) == leaked


def test_in_a_narrow_terminal_the_widest_columns_are_cut_and_places_are_not() -> None:
    wide = Finding("shop.orders.RECENT['a long key']", "grows", "[]", "x" * 200, "GET /orders", "shop.py:7 in add")
    lines = report((wide, ())).table(80).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1] == "shop.orders.RECENT…  []      xxxxxxxxxxxxxxxxxxx…  GET /orders  shop.py:7 in add"
    narrowest = report((wide, ())).table(10).splitlines()
    assert narrowest[1] == "shop.orders…  []      xxxxxxxxxxx…  GET /orders  shop.py:7 in add"


def test_a_value_cannot_move_the_cursor() -> None:
    rude = Finding("shop.X", "rebound", "\x1b[2J", "a\nb", "GET /", "")
    assert table([("a",)], None, ("X",)) == ["X", "a"]
    assert report((rude, ())).table(None).splitlines()[1] == "shop.X  \\x1b[2J  a\\nb   GET /    -"
    assert "\x1b" not in report(notes=("odd \x1b[2J",)).table(None)


def test_what_was_unusual_is_noted() -> None:
    requests = (
        Played(Request("GET", "/a"), 200, ""),
        Played(Request("GET", "/b"), 422, ""),
        Played(Request("GET", "/c"), 500, "ValueError: boom (shop.py:3)"),
        Played(Request("GET", "/d"), None, "no answer within 5 s"),
        Played(Request("GET", "/e"), 200, "ValueError: late (shop.py:4)"),
        Played(Request("GET", "/f"), 302, ""),
    )
    assert report(requests=requests, notes=("something else",)).table(None).splitlines() == [
        "note: GET /b: played, answered 422",
        "note: GET /c: played, answered 500: ValueError: boom (shop.py:3)",
        "note: GET /d: no answer within 5 s",
        "note: GET /e: ValueError: late (shop.py:4)",
        "note: something else",
        "",
        "0 leaks in 6 requests, 5 rounds (1.2 s)",
    ]


def test_json() -> None:
    assert json.loads(report((CART, ("GET /c",)), requests=(Played(GET, 422, ""),), notes=("n",)).json()) == {
        "findings": [
            {
                "path": "shop.CART",
                "kind": "grows",
                "before": "[]",
                "after": "['tea', 'tea']",
                "request": "GET /a/{name}",
                "place": "shop.py:7 in add",
                "rounds": [2, 4, 6],
                "others": ["GET /c"],
            }
        ],
        "requests": [{"method": "GET", "path": "/a/{marker}", "status": 422}],
        "rounds": 5,
        "ignored": 0,
        "notes": ["GET /a/{name}: played, answered 422", "n"],
    }
