"""``[tool.laraman.workers.NAME]``: what it may say, and each mistake in one line."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

import pytest

from laraman.config import OPTIONS, Config, workers_table
from laraman.config.declared import WHOLE, WORKER
from laraman.errors import ConfigError
from laraman.process.worker import Worker, declared_workers

if TYPE_CHECKING:
    from pathlib import Path


def load(place: Path, text: str, cli: dict[str, Any] | None = None, env: dict[str, str] | None = None) -> Config:
    file = place / "pyproject.toml"
    file.write_text(text)
    return Config.load(cli or {}, env or {}, file)


def test_workers_are_declared_in_tables(place: Path) -> None:
    config = load(
        place,
        """
        [tool.laraman]
        port = 9000
        [tool.laraman.workers.billing]
        address = "text://127.0.0.1:8888"
        count = "auto*2"
        handler = "app.workers:Billing"
        max_message = "10MB"
        max_connections = 1
        stop_timeout = 3
        timeout_write = 5
        limit_max_requests = 7
        guard = "off"
        user = "root"
        [tool.laraman.workers.feed]
        address = ["frame://127.0.0.1:1", "frame+unix:///run/feed.sock"]
        mode = "0660"
        exclusive = true
        """,
    )
    billing, feed = declared_workers(config)
    assert (config.port, config.workers) == (9000, 1)
    assert ([str(bind.address) for bind in billing.binds], billing.handler) == (["text://127.0.0.1:8888"], "app.workers:Billing")
    assert billing.count >= 2
    assert billing.count % 2 == 0
    assert (billing.max_message, billing.max_connections, billing.stop_timeout) == (10 * 2**20, 1, 3.0)
    own = billing.configured(config)
    assert (own.timeout_write, own.limit_max_requests, own.guard, own.user, own.port) == (5.0, 7, "off", "root", 9000)
    assert feed.configured(config) is config
    assert [str(bind.address) for bind in feed.binds] == ["frame://127.0.0.1:1", "frame+unix:///run/feed.sock"]
    assert (feed.mode, feed.exclusive) == ("0660", True)


def test_the_applications_own_count_beside_them(place: Path) -> None:
    text = "[tool.laraman.workers.http]\ncount = 3\n[tool.laraman.workers.own]\n"
    config = load(place, text)
    assert (config.workers, [worker.name for worker in declared_workers(config)]) == (3, ["own"])
    assert load(place, text, env={"WEB_CONCURRENCY": "5"}).workers == 5
    assert load(place, "[tool.laraman]\nworkers = 4\n").workers == 4


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("own = 3", "[tool.laraman.workers.own]: 3 is not a table"),
        ("own = {adress = 'x'}", "[tool.laraman.workers.own] has no option 'adress'; did you mean 'address'?"),
        ("own = {ssl_certfil = 'x'}", "[tool.laraman.workers.own] has no option 'ssl_certfil'; did you mean 'ssl_certfile'?"),
        ("own = {port = 1}", "[tool.laraman.workers.own] cannot have 'port', which is the whole server's"),
        ("own = {count = -1}", "[tool.laraman.workers.own] count: -1 is not in 0..4096"),
        ("own = {count = 'many'}", "[tool.laraman.workers.own] count: 'many' is neither a whole number nor 'auto' nor 'auto*N'"),
        ("own = {address = 1}", "[tool.laraman.workers.own] address: 1 is not a list of strings"),
        ("own = {exclusive = 'yes'}", "[tool.laraman.workers.own] exclusive: 'yes' is not true or false"),
        ("own = {mode = '99'}", "[tool.laraman.workers.own] mode: '99' is not of the form 0660"),
        ("own = {guard = 'on'}", "[tool.laraman.workers.own] guard: 'on' is not one of off, warn, restore, strict"),
        ("own = {user = 'no-such-user'}", "[tool.laraman.workers.own] user: there is no user 'no-such-user'"),
        ("http = {count = 2, exclusive = true}", "[tool.laraman.workers.http] has but the count of the application's workers"),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(place: Path, table: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(place, f"[tool.laraman.workers]\n{table}\n")
    assert str(caught.value) in (f"{place / 'pyproject.toml'}: {says}",)


def test_the_tables_have_no_other_name(place: Path) -> None:
    with pytest.raises(ConfigError, match="has no option 'declared'"):
        load(place, "[tool.laraman]\ndeclared = ['x']\n")


@pytest.mark.parametrize(("cli", "says"), [({"user": "nobodys"}, "no user 'nobodys'"), ({"group": "no-such"}, "there is no group 'no-such'")])
def test_nobody_knows_that_user(cli: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Config.load(cli, {}, None)
    assert Config.load({"user": "65533", "group": "65533"}, {}, None).user == "65533"


def test_the_table_and_the_constructor_say_the_same() -> None:
    parameters = [name for name, one in inspect.signature(Worker).parameters.items() if one.kind is not one.VAR_KEYWORD]
    assert {*parameters} - {"name"} == {*WORKER.options}
    assert {name: WORKER.options[name].default for name in parameters[2:] if WORKER.options[name].default} == {"count": 1}
    assert {*re.findall(r"^\| `(\w+)` \|", workers_table(), re.MULTILINE)} == {*WORKER.options}


def test_what_is_the_whole_servers_are_options() -> None:
    assert not WHOLE - OPTIONS.keys()
