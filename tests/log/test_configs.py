"""--log-config and what a program gives: the loggers become what uvicorn makes of them, and what is wrong is said with its file and line."""

from __future__ import annotations

import configparser
import copy
import io
import json
import logging
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
import uvicorn.config

from laraman import log
from laraman.config import Config
from laraman.errors import ConfigError
from laraman.log import configs
from tests.log.conftest import NAMES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

error = logging.getLogger("uvicorn.error")
access = logging.getLogger("uvicorn.access")

CUSTOM: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "default": {"()": "uvicorn.logging.DefaultFormatter", "fmt": "D %(levelprefix)s %(message)s"},
        "access": {"class": "uvicorn.logging.AccessFormatter", "format": "A %(client_addr)s %(request_line)s %(status_code)s"},
        "plain": {"format": "P %(name)s %(message)s"},
    },
    "handlers": {
        "default": {"class": "logging.StreamHandler", "formatter": "default", "stream": "ext://sys.stderr"},
        "access": {"class": "logging.StreamHandler", "formatter": "access", "stream": "ext://sys.stdout"},
        "plain": {"class": "logging.StreamHandler", "formatter": "plain"},
    },
    "loggers": {
        "uvicorn": {"handlers": ["default"], "level": "WARNING", "propagate": False},
        "uvicorn.access": {"handlers": ["access"], "level": "ERROR", "propagate": False},
    },
}
COLOURED = {**CUSTOM, "formatters": {**CUSTOM["formatters"], "access": {"()": "uvicorn.logging.AccessFormatter", "fmt": "%(request_line)s"}}}
ROOT_ONLY = {
    **{"version": 1, "disable_existing_loggers": False, "formatters": {"plain": {"format": "P %(name)s %(message)s"}}},
    **{"handlers": {"plain": {"class": "logging.StreamHandler", "formatter": "plain"}}, "root": {"handlers": ["plain"], "level": "INFO"}},
}
INI = """
[loggers]
keys = root, access

[handlers]
keys = plain

[formatters]
keys = plain

[logger_root]
level = INFO
handlers = plain

[logger_access]
level = ERROR
handlers = plain
qualname = uvicorn.access
propagate = 0

[handler_plain]
class = StreamHandler
args = (sys.stderr,)
formatter = plain

[formatter_plain]
class = uvicorn.logging.DefaultFormatter
format = P %(levelprefix)s %(message)s
"""


def as_yaml(value: Any) -> str:
    import yaml

    return str(yaml.safe_dump(value))


def snapshot() -> dict[str, Any]:
    """What of the loggers makes a difference to lines. The classes of uvicorn and ours are called the same."""

    def described(handler: logging.Handler) -> tuple[Any, ...]:
        formatter = handler.formatter
        where = {sys.stdout: "stdout", sys.stderr: "stderr"}.get(getattr(handler, "stream", None), "?")  # type: ignore[call-overload]
        return (type(handler).__name__, where, type(formatter).__name__, getattr(formatter, "_fmt", ""), getattr(formatter, "use_colors", None))

    return {
        name: (
            *(logging.getLogger(name).level, logging.getLogger(name).propagate, logging.getLogger(name).disabled),
            [described(handler) for handler in logging.getLogger(name).handlers if "pytest" not in type(handler).__module__],
        )
        for name in NAMES
    }


def reset() -> None:
    for name in NAMES:
        logger = logging.getLogger(name)
        logger.handlers = [handler for handler in logger.handlers if "pytest" in type(handler).__module__]
        logger.propagate, logger.disabled = True, False
        logger.setLevel(logging.WARNING if not name else logging.NOTSET)


def parser() -> configparser.ConfigParser:
    made = configparser.ConfigParser()
    made.read_string(INI)
    return made


def file(name: str, text: str) -> Callable[[Path], str]:
    def make(directory: Path) -> str:
        path = directory / name
        path.write_text(text)
        return str(path)

    return make


#: How each source is made: anew for each server.
SOURCES: dict[str, Callable[[Path], Any]] = {
    "dict": lambda _: copy.deepcopy(CUSTOM),
    "coloured dict": lambda _: copy.deepcopy(COLOURED),
    "root only": lambda _: copy.deepcopy(ROOT_ONLY),
    "json": file("log.json", json.dumps(CUSTOM)),
    "yaml": file("log.yaml", as_yaml(CUSTOM)),
    "yml": file("log.yml", as_yaml(ROOT_ONLY)),
    "ini": file("log.ini", INI),
    "conf": file("logging.conf", INI),
    "parser": lambda _: parser(),
    "file": lambda _: io.StringIO(INI),
    "None": lambda _: None,
}


OPTIONS: tuple[dict[str, Any], ...] = (
    *({}, {"log_level": "trace"}, {"log_level": "error"}, {"access_log": False}),
    *({"use_colors": True}, {"use_colors": False, "log_level": "debug"}),
)
#: uvicorn wants formatters of certain names, that take colours, in a dictionary then, or ends with a traceback.
NOT_THERE = ("dict", "root only")


@pytest.mark.parametrize(
    ("source", "options"), [(source, options) for source in SOURCES for options in OPTIONS if "use_colors" not in options or source not in NOT_THERE]
)
def test_the_loggers_are_as_uvicorn_sets_them(tmp_path: Path, source: str, options: dict[str, Any]) -> None:
    make = SOURCES[source]
    reset()
    uvicorn.Config("app:app", log_config=make(tmp_path), **options)
    theirs = snapshot()
    reset()
    log.configure(Config(log_config=make(tmp_path), **options))
    assert snapshot() == theirs


def test_the_built_in_configuration_is_uvicorns() -> None:
    reset()
    uvicorn.Config("app:app")
    theirs = snapshot()
    reset()
    log.configure(Config())
    assert snapshot() == theirs
    reset()
    log.configure(Config(log_config=copy.deepcopy(log.LOGGING_CONFIG)))
    assert snapshot() == theirs
    ours = json.loads(json.dumps(log.LOGGING_CONFIG).replace("laraman.log", "uvicorn.logging"))
    assert ours == uvicorn.config.LOGGING_CONFIG
    assert log.LOG_LEVELS == uvicorn.config.LOG_LEVELS


def test_what_is_changed_in_it_counts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(log.LOGGING_CONFIG["formatters"]["access"], "fmt", "mine %(request_line)s")
    changed = copy.deepcopy(log.LOGGING_CONFIG)
    for source in ("", changed):  # in place, or handed on
        log.configure(Config(log_config=source))
        access.info('%s - "%s %s HTTP/%s" %d', "c", "GET", "/", "1.1", 200)
        assert capsys.readouterr().out == "mine GET / HTTP/1.1\n"


def test_the_programs_dictionary_stays_as_it_was() -> None:
    given = copy.deepcopy(COLOURED)
    log.configure(Config(log_config=given, use_colors=True))
    assert given == COLOURED


def test_a_configuration_takes_the_place_of_the_built_in_one_and_back(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(Config())
    log.configure(Config(log_config=copy.deepcopy(CUSTOM)))
    error.warning("one")
    log.configure(Config())
    error.warning("two")
    log.configure(Config(log_config=copy.deepcopy(ROOT_ONLY)))
    error.info("three")
    access.info("four")
    assert capsys.readouterr().err == "D WARNING:  one\nWARNING:  two\nP uvicorn.error three\nP uvicorn.access four\n"


def test_a_file_object_can_be_read_again(capsys: pytest.CaptureFixture[str]) -> None:
    config = Config(log_config=io.StringIO(INI))
    log.configure(config)
    log.configure(config)
    error.warning("once")
    assert capsys.readouterr().err == "P WARNING:  once\n"


@pytest.mark.parametrize("form", ["json", "yaml", "ini"])
def test_uvicorns_formatters_need_no_uvicorn_and_do_not_import_it(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"log.{form}"
    path.write_text({"json": json.dumps(CUSTOM), "yaml": as_yaml(CUSTOM), "ini": INI}[form])
    code = (
        "import sys; sys.modules['uvicorn'] = None\n"
        "from laraman import log; from laraman.config import Config; import logging\n"
        f"log.configure(Config(log_config={str(path)!r}))\n"
        "logging.getLogger('uvicorn.error').error('said'); print(sorted({'asyncio', 'uvicorn.logging'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert result.stderr in ("D ERROR:    said\n", "P ERROR:    said\n")
    assert result.stdout == "[]\n"


def test_classes_of_the_application_are_found_in_its_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shoplogs_p3.py").write_text("import logging\nclass Mine(logging.Formatter):\n    def format(self, record): return 'mine'\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    source = {**ROOT_ONLY, "formatters": {"plain": {"()": "shoplogs_p3.Mine"}}}
    log.configure(Config(log_config=source, app_dir=str(tmp_path)))
    error.info("x")
    assert capsys.readouterr().err == "mine\n"


# What is wrong --------------------------------------------------------------------------------------------------------------------


BAD_HANDLER = json.dumps({**ROOT_ONLY, "handlers": {"plain": {"class": "nowhere.Handler", "formatter": "plain"}}}, indent=1)
BAD_FORMATTER = as_yaml({**CUSTOM, "formatters": {**CUSTOM["formatters"], "plain": {"()": "nowhere.Formatter"}}})


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.json", '{\n "version": 1,\n}', r"a\.json:3: "),
        ("a.json", "[1]", r"a\.json: a log configuration is a mapping, and this is list"),
        ("a.json", "{}", r"a\.json: dictionary doesn't specify a version"),
        ("a.json", BAD_HANDLER, r"a\.json:10: Unable to configure handler 'plain': .*No module named 'nowhere'"),
        ("a.yaml", "version: 1\nformatters: [\nx: y", r"a\.yaml:3: "),
        ("a.yaml", "", r"a\.yaml: a log configuration is a mapping, and this is NoneType"),
        ("a.yaml", "a: \0", r"a\.yaml: "),
        ("a.yml", BAD_FORMATTER, r"a\.yml:\d+: Unable to configure formatter 'plain': .*nowhere"),
        ("a.ini", "[loggers]\nkeys = root\nnonsense\n", r"a\.ini:3: ParsingError"),
        ("a.ini", "keys = root\n", r"a\.ini:1: MissingSectionHeaderError"),
        ("a.ini", "[loggers]\nkeys=root\n[loggers]\n", r"a\.ini:3: DuplicateSectionError"),
        ("a.conf", "[loggers]\nkeys=root\n", r"a\.conf: there is no section \[handlers\]"),
        ("a.ini", INI.replace("StreamHandler", "nowhere.Handler"), r"a\.ini: .*nowhere"),
        ("a.ini", INI.replace("[formatter_plain]", "[formatter_other]"), r"a\.ini: .*formatter_plain"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, expected: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected) as caught:
        log.configure(Config(log_config=str(path)))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    error.info("can still be said")
    assert capsys.readouterr().err == "INFO:     can still be said\n"


def test_the_line_is_that_of_the_declaration() -> None:
    assert BAD_HANDLER.splitlines()[9].strip().startswith('"plain": {')
    assert configs._line(BAD_HANDLER, "Unable to configure handler 'plain'") == 10
    assert configs._line(BAD_HANDLER, "Unable to configure handler 'other'") == 0
    assert configs._line(BAD_HANDLER, "something else") == 0


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    config = Config(log_config=str(tmp_path / "none.json"))
    for use in (log.check, log.configure):
        with pytest.raises(ConfigError, match=r"cannot read the log configuration .*none\.json: No such file"):
            use(config)
    (tmp_path / "none.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(ConfigError, match=r"cannot read the log configuration .*none\.json: .*can't decode"):
        log.check(config)


def test_any_name_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^cannot read the log configuration 'a\\nb': No such file or directory$"):
        log.check(Config(log_config="a\nb"))


def test_checking_configures_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text(json.dumps(CUSTOM))
    before = snapshot()
    log.check(Config(log_config=str(path)))
    log.check(Config())
    log.check(Config(log_config=copy.deepcopy(CUSTOM)))
    assert snapshot() == before


def test_yaml_without_pyyaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.yaml"
    path.write_text(as_yaml(CUSTOM))
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ConfigError, match=r"log\.yaml: YAML needs PyYAML: pip install 'laraman\[yaml\]'"):
        log.configure(Config(log_config=str(path)))


def test_a_closed_file_object() -> None:
    closed = io.StringIO(INI)
    closed.close()
    with pytest.raises(ConfigError, match="log_config: cannot be read: I/O operation on closed file"):
        log.configure(Config(log_config=closed))
    with pytest.raises(ConfigError, match="log_config: cannot be read: 'int' object"):
        log.configure(Config(log_config=5))


def test_a_log_file_and_a_configuration_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="--log-config and --log-file exclude each other: each says where the log goes"):
        Config.load({"log_config": "a.json", "log_file": "a.log"}, {}, None)
    stronger = Config.load({"log_config": "a.json"}, {"LARAMAN_LOG_FILE": "a.log"}, None)
    assert (stronger.log_config, stronger.log_file) == ("a.json", "")


def test_files_of_a_configuration_are_opened_anew(tmp_path: Path) -> None:
    path, moved = tmp_path / "x.log", tmp_path / "x.log.1"
    handlers = {"plain": {"class": "logging.FileHandler", "filename": str(path), "formatter": "plain"}}
    fresh = {"once": {"class": "logging.FileHandler", "filename": str(tmp_path / "once.log"), "mode": "w", "formatter": "plain"}}
    log.configure(Config(log_config={**ROOT_ONLY, "handlers": {**handlers, **fresh}, "root": {"handlers": ["plain", "once"], "level": "INFO"}}))
    later = logging.FileHandler(tmp_path / "theirs.log")
    logging.root.addHandler(later)  # the application's, from later: not ours to open
    stream = later.stream
    error.info("old")
    path.rename(moved)
    log.reopen()
    error.info("new")
    assert moved.read_text() == "P uvicorn.error old\n"
    assert path.read_text() == "P uvicorn.error new\n"
    assert (tmp_path / "once.log").read_text() == "P uvicorn.error old\nP uvicorn.error new\n"
    assert later.stream is stream


def test_replacing_the_level_of_a_configuration(tmp_path: Path) -> None:
    config = Config(log_config=copy.deepcopy(CUSTOM))
    log.configure(config)
    assert access.level == logging.ERROR
    log.configure(replace(config, log_level="info"))
    assert (access.level, error.level) == (logging.INFO, logging.INFO)
