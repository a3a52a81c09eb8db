"""Config: where values come from, what is refused and how it is said."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laraman.config import OPTIONS, VERSION, Config, GatewayConfig, gateway_table, options_table
from laraman.config.cpus import cpu_count
from laraman.config.options import flags, kind
from laraman.errors import ConfigError


def load(cli: dict[str, Any] | None = None, env: dict[str, str] | None = None, pyproject: Path | None = None) -> Config:
    return Config.load(cli or {}, env or {}, pyproject)


@pytest.fixture
def pyproject(tmp_path: Path) -> Path:
    return tmp_path / "pyproject.toml"


def refused(pyproject: Path, text: str) -> str:
    pyproject.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(pyproject=pyproject)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(pyproject))
    return message.removeprefix(f"{pyproject}: ")


# Sources --------------------------------------------------------------------------------------------------------------------------


def test_defaults_are_what_the_dataclass_says() -> None:
    assert load() == Config()
    assert Config().timeout_graceful_shutdown == 8
    assert Config().host == "127.0.0.1"


def test_command_line_beats_environment_beats_uvicorns_variable_beats_file_beats_default(pyproject: Path) -> None:
    pyproject.write_text("[tool.laraman]\nport = 1\n")
    env = {"LARAMAN_PORT": "3", "UVICORN_PORT": "2"}
    assert load({"port": "4"}, env, pyproject).port == 4
    assert load({"port": None}, env, pyproject).port == 3
    assert load({}, {"UVICORN_PORT": "2"}, pyproject).port == 2
    assert load({}, {}, pyproject).port == 1
    assert load().port == 8000


def test_the_first_environment_variable_counts(pyproject: Path) -> None:
    assert load(env={"WEB_CONCURRENCY": "3"}).workers == 3
    assert load(env={"WEB_CONCURRENCY": "3", "UVICORN_WORKERS": "4"}).workers == 4
    assert load(env={"WEB_CONCURRENCY": "3", "UVICORN_WORKERS": "4", "LARAMAN_WORKERS": "5"}).workers == 5
    assert load(env={"UVICORN_APP": "shop:app"}).app == "shop:app"
    assert load(env={"WEB_CONCURRENCY": ""}).workers == 1, "an empty variable is an unset one"


def test_text_is_parsed_by_the_fields_type() -> None:
    config = load(
        {"fd": "0", "timeout_keep_alive": "2.5", "ws_per_message_deflate": "no", "log_level": "INFO", "header": ["A:1", "B: 2:3"]},
        {"LARAMAN_FACTORY": "true", "LARAMAN_USE_COLORS": "0", "LARAMAN_LISTENERS": "one two.three"},
    )
    assert (config.fd, config.timeout_keep_alive, config.ws_per_message_deflate, config.log_level) == (0, 2.5, False, "info")
    assert config.header == ("A:1", "B: 2:3")
    assert (config.factory, config.use_colors, config.listeners) == (True, False, ("one", "two.three"))


def test_uvicorns_plural_name_of_the_header_variable() -> None:
    assert load(env={"UVICORN_HEADERS": "A:1 B:2"}).header == ("A:1", "B:2")


def test_a_file_gives_typed_values(pyproject: Path) -> None:
    pyproject.write_text(
        '[tool.laraman]\napp = "shop:app"\nlisteners = ["a", "b"]\naccess_log = false\nworkers = "auto"\ntimeout_keep_alive = 3\nport = 0\n'
    )
    config = load(pyproject=pyproject)
    assert config.app == "shop:app"
    assert config.listeners == ("a", "b")
    assert config.access_log is False
    assert config.workers == cpu_count()
    assert config.timeout_keep_alive == 3.0
    assert isinstance(config.timeout_keep_alive, float)
    assert config.port == 0


@pytest.mark.parametrize("text", ["", "[project]\nname = 'x'\n", "[tool.other]\nport = 'x'\n", "tool = 1\n"])
def test_a_file_without_our_table_is_no_matter(pyproject: Path, text: str) -> None:
    pyproject.write_text(text)
    assert load(pyproject=pyproject) == Config()


def test_a_missing_file_is_no_error(tmp_path: Path) -> None:
    assert load(pyproject=tmp_path / "none" / "pyproject.toml") == Config()


# Refusals -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("port", "70000", "--port: 70000 is not in 0..65535"),
        ("port", "-1", "--port: -1 is not in 0..65535"),
        ("port", "http", "--port: 'http' is not a whole number"),
        ("workers", "0", "--workers: 0 is not in 1..4096"),
        ("workers", "auto*0", "--workers: 0 is not in 1..4096"),
        ("workers", "many", "--workers: 'many' is neither a whole number nor 'auto' nor 'auto*N'"),
        ("timeout_keep_alive", "-1", "--timeout-keep-alive: -1.0 is less than 0"),
        ("timeout_keep_alive", "nan", "--timeout-keep-alive: nan is not a finite number"),
        ("timeout_keep_alive", "inf", "--timeout-keep-alive: inf is not a finite number"),
        ("timeout_keep_alive", "soon", "--timeout-keep-alive: 'soon' is not a number"),
        ("limit_concurrency", "0", "--limit-concurrency: 0 is less than 1"),
        ("loop", "trio", "--loop: 'trio' is not one of auto, none, asyncio, uvloop, zuvloop, module:factory"),
        ("ws_per_message_deflate", "maybe", "--ws-per-message-deflate: 'maybe' is neither true nor false"),
        ("header", ["nonsense"], "--header: 'nonsense' is not of the form Name:Value"),
        ("header", ["a b:c"], "--header: 'a b:c' is not of the form Name:Value"),
        ("header", ["A:b\r\nC: d"], "--header: the value of A has characters that a header may not hold"),
        ("header", ["A:\u20ac"], "--header: the value of A has characters that a header may not hold"),
        ("host", "a\0b", "--host: contains a NUL character"),
    ],
)
def test_a_bad_value_is_one_line_that_names_option_and_value(option: str, text: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({option: text})
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["../x", "a/b", ".", "..", ".x", "-x", "a b", "x" * 65, "a\nb"])
def test_a_name_cannot_leave_its_directory(name: str) -> None:
    with pytest.raises(ConfigError, match=r"--name: .* is not a name"):
        load({"name": name})


def test_the_environment_variable_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^LARAMAN_PORT: 'tcp://10\.0\.0\.1:80' is not a whole number$"):
        load(env={"LARAMAN_PORT": "tcp://10.0.0.1:80"})
    with pytest.raises(ConfigError, match=r"^WEB_CONCURRENCY: "):
        load(env={"WEB_CONCURRENCY": "x"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("prot = 1", "[tool.laraman] has no option 'prot'; did you mean 'port'?"),
        ("log-level = 'info'", "[tool.laraman] has no option 'log-level'; did you mean 'log_level'?"),
        ("xyzzy = 1", "[tool.laraman] has no option 'xyzzy'"),
        ("port = '80'", "[tool.laraman] port: '80' is not a whole number"),
        ("port = true", "[tool.laraman] port: True is not a whole number"),
        ("port = 1.5", "[tool.laraman] port: 1.5 is not a whole number"),
        ("port = 70000", "[tool.laraman] port: 70000 is not in 0..65535"),
        ("app = 3", "[tool.laraman] app: 3 is not a string"),
        ("access_log = 'no'", "[tool.laraman] access_log: 'no' is not true or false"),
        ("listeners = 'a'", "[tool.laraman] listeners: 'a' is not a list of strings"),
        ("listeners = [1]", "[tool.laraman] listeners: [1] is not a list of strings"),
        ("timeout_write = '1'", "[tool.laraman] timeout_write: '1' is not a number"),
        ("timeout_write = inf", "[tool.laraman] timeout_write: inf is not a finite number"),
        ("workers = 1.5", "[tool.laraman] workers: 1.5 is not a whole number"),
        ("lifespan = 'maybe'", "[tool.laraman] lifespan: 'maybe' is not one of auto, on, off"),
    ],
)
def test_a_bad_line_in_the_file(pyproject: Path, line: str, message: str) -> None:
    assert refused(pyproject, f"[tool.laraman]\n{line}\n") == message


def test_a_file_that_is_not_toml_names_the_position(pyproject: Path) -> None:
    assert "line 2" in refused(pyproject, "[tool.laraman]\nport 8000\n")
    assert refused(pyproject, "[tool]\nlaraman = 3\n") == "[tool.laraman] is not a table"


def test_a_file_that_cannot_be_read(tmp_path: Path, pyproject: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(pyproject=tmp_path)
    pyproject.write_bytes(b"[tool.laraman]\napp = '\xff'\n")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load(pyproject=pyproject)
    pyproject.write_text("x = " + "[" * 100_000)
    with pytest.raises(ConfigError):
        load(pyproject=pyproject)


@given(name=st.sampled_from([name for name in OPTIONS if kind(OPTIONS[name]) is not tuple]), text=st.text(max_size=12))
def test_any_text_for_any_option_is_a_value_or_one_line(name: str, text: str) -> None:
    try:
        config, problem = load({name: text}), ""
    except ConfigError as exc:
        config, problem = Config(), str(exc)
    assert "\n" not in problem
    assert config == dataclasses.replace(Config(), **{name: getattr(config, name)})


# The fields -----------------------------------------------------------------------------------------------------------------------


def test_the_readme_has_the_table_that_the_fields_make() -> None:
    readme = Path(__file__).parent.parent / "README.md"
    found = re.search(r"<!-- options -->\n(.*?)\n<!-- /?options -->", readme.read_text(), re.DOTALL)
    assert found is not None, "README.md has no <!-- options --> markers"
    assert found[1].strip() == options_table(), 'write what `python -c "from laraman.config import *; print(options_table())"` prints'


def test_every_option_has_help_and_its_own_flag() -> None:
    spelled = [flag for option in OPTIONS.values() for flag in flags(option)]
    assert len(spelled) == len(set(spelled))
    assert all(option.metadata["help"].endswith(".") and "|" not in option.metadata["help"] for option in OPTIONS.values())


def test_the_version_is_that_of_the_package() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", VERSION)


# CPUs -----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ask ``cpu_count`` on a machine of 8 CPUs with these cgroup files."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)

    def ask(membership: str, files: dict[str, str]) -> int:
        (tmp_path / "membership").write_text(membership)
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return cpu_count(tmp_path / "cgroup", tmp_path / "membership")

    return ask


V2 = "0::/app.slice/web.scope\n"
V1 = "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/docker/abc\n"


@pytest.mark.parametrize(
    ("membership", "files", "count"),
    [
        pytest.param("", {}, 8, id="no cgroups"),
        pytest.param(V2, {"app.slice/web.scope/cpu.max": "max 100000\n"}, 8, id="v2 without quota"),
        pytest.param(V2, {"app.slice/web.scope/cpu.max": "200000 100000\n"}, 2, id="v2"),
        pytest.param(V2, {"app.slice/web.scope/cpu.max": "150000 100000\n"}, 2, id="v2 rounded up"),
        pytest.param(V2, {"app.slice/web.scope/cpu.max": "1000 100000\n"}, 1, id="v2 never none"),
        pytest.param(V2, {"app.slice/web.scope/cpu.max": "3200000 100000\n"}, 8, id="v2 more than there are"),
        pytest.param(V2, {"app.slice/web.scope/cpu.max": "max 100000\n", "app.slice/cpu.max": "300000 100000"}, 3, id="v2 parent"),
        pytest.param("0::/\n", {"cpu.max": "100000 50000\n"}, 2, id="v2 in a container"),
        pytest.param("0::/../other\n", {"cpu.max": "400000 100000\n"}, 4, id="v2 outside the namespace"),
        pytest.param(V1, {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "250000", "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000"}, 3, id="v1"),
        pytest.param(V1, {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 8, id="v1 without quota"),
        pytest.param(V1, {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1, id="v1 in a container"),
        pytest.param(V2, {"app.slice/web.scope/cpu.max": "nonsense"}, 8, id="nonsense"),
        pytest.param("what is this\n", {"cpu.max": "1 0"}, 8, id="more nonsense"),
    ],
)
def test_cpu_count(machine: Any, membership: str, files: dict[str, str], count: int) -> None:
    assert machine(membership, files) == count


def test_affinity_counts_when_it_is_less(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert machine("0::/\n", {"cpu.max": "400000 100000\n"}) == 1


def test_auto_is_a_multiple_of_the_cpus() -> None:
    assert load({"workers": "auto"}).workers == cpu_count()
    assert load({"workers": "auto*2"}).workers == 2 * cpu_count()


# Gateways -------------------------------------------------------------------------------------------------------------------------


def gateway(pyproject: Path, text: str, env: dict[str, str] | None = None, **cli: str) -> GatewayConfig:
    pyproject.write_text(text)
    return Config.load(cli, env or {}, pyproject).gateway


def test_without_a_word_there_is_no_gateway(pyproject: Path) -> None:
    assert not gateway(pyproject, "").enabled


@pytest.mark.parametrize(
    ("text", "env", "cli", "listen"),
    [
        ("[tool.laraman.gateway]\nembedded = true", {}, {}, "127.0.0.1:6060"),
        ("", {}, {"gateway": "127.0.0.1:7000"}, "127.0.0.1:7000"),
        ("", {"LARAMAN_GATEWAY": "0.0.0.0:7001"}, {}, "0.0.0.0:7001"),
        ("", {"LARAMAN_GATEWAY": "0.0.0.0:7001"}, {"gateway": "127.0.0.1:7000"}, "127.0.0.1:7000"),
        ("[tool.laraman.gateway]\nembedded = true", {"LARAMAN_GATEWAY_LISTEN": "127.0.0.1:7002"}, {}, "127.0.0.1:7002"),
    ],
)
def test_an_embedded_gateway(pyproject: Path, text: str, env: dict[str, str], cli: dict[str, str], listen: str) -> None:
    [found] = gateway(pyproject, text, env, **cli).gateways
    assert found.embedded
    assert (found.listen, found.worker_addr, found.task_addr) == (listen, "127.0.0.1:6061", "127.0.0.1:6062")


def test_the_php_client_s_keys_for_several_gateways(pyproject: Path) -> None:
    config = gateway(
        pyproject,
        """
        [tool.laraman.gateway]
        maxIdleTime = 100
        heartbeatIntervalMillisecond = 45000
        [[tool.laraman.gateway.netsvr]]
        workerAddr = "10.0.0.1:6061"
        taskAddr = "10.0.0.1:6062"
        [[tool.laraman.gateway.netsvr]]
        workerAddr = "10.0.0.2:6061"
        taskAddr = "10.0.0.2:6062"
        events = 4
        """,
    )
    first, second = config.gateways
    assert (first.worker_addr, first.task_addr, first.events) == ("10.0.0.1:6061", "10.0.0.1:6062", 7)
    assert (second.worker_addr, second.events, second.max_idle_time, second.heartbeat_interval_millisecond) == ("10.0.0.2:6061", 4, 100.0, 45000)
    assert not first.embedded


def test_the_older_single_port_configuration(pyproject: Path) -> None:
    text = '[tool.laraman.gateway]\nworkerAddr = "127.0.0.1:6061"\nprocessCmdGoroutineNum = 25\nsendReceiveTimeout = 5\nmaxIdleTime = 117'
    [found] = gateway(pyproject, text).gateways
    assert (found.worker_addr, found.task_addr, found.process_cmd_goroutine_num, found.dialect) == ("127.0.0.1:6061", "", 25, "auto")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gateway = 3", r"\[tool.laraman.gateway\]: 3 is not a table"),
        ('gateway = {workerAdr = "127.0.0.1:6061"}', "no option 'workerAdr'; did you mean 'worker_addr'"),
        ('gateway = {workerAddr = "6061"}', "'6061' is not of the form host:port"),
        ("gateway = {netsvr = [{}]}", "needs workerAddr, taskAddr or both"),
        ("gateway = {netsvr = 1}", "1 is not a list of tables"),
        ("gateway = {events = 8}", "8 is not in 1..7"),
        ('gateway = {origins = ["example.com"]}', "neither '\\*' nor an origin"),
        ('gateway = {workerAddr = "127.0.0.1:0"}', "'127.0.0.1:0' has no port"),
        ('gateway = {netsvr = [{taskAddr = "10.0.0.1:6062"}, {taskAddr = "10.0.0.1:6062"}]}', "has 10.0.0.1:6062 twice"),
        ('gateway = {netsvr = [{taskAddr = "10.0.0.1:6062", embedded = true}]}', "embedded is not for one of several"),
        ('gateway = {netsvr = [{taskAddr = "10.0.0.1:6062", netsvr = []}]}', "netsvr is not for one of several"),
        ('gateway = {prefix = "7f00"}', "not the first 12 characters"),
    ],
)
def test_a_wrong_gateway_is_one_line(pyproject: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        gateway(pyproject, f"[tool.laraman]\n{text}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("source", "env", "cli"), [("LARAMAN_GATEWAY", {"LARAMAN_GATEWAY": "6060"}, {}), ("--gateway", {}, {"gateway": "6060"})])
def test_a_wrong_short_form_is_called_as_it_was_written(pyproject: Path, source: str, env: dict[str, str], cli: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=f"^{source}: '6060' is not of the form host:port"):
        gateway(pyproject, "", env, **cli)


def test_the_readme_has_the_gateway_s_table() -> None:
    readme = Path(__file__).parent.parent / "README.md"
    assert f"<!-- gateway -->\n{gateway_table()}\n<!-- /gateway -->" in readme.read_text(), "run python scripts/readme.py"


def test_a_secret_is_not_in_an_error(pyproject: Path) -> None:
    text = "[tool.laraman]\nssl_keyfile_password = 12345\n"
    assert refused(pyproject, text) == "[tool.laraman] ssl_keyfile_password: what is there is not a string"
