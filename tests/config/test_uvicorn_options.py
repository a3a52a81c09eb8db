"""Every option of uvicorn, as uvicorn's own command declares it: a new release with a new option makes this fail."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import click
import pytest
import uvicorn

from laraman.cli.parsing import parse, start_parser
from laraman.config import OPTIONS, Config, env_names
from laraman.config.options import flags, is_switch, kind
from laraman.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

PARAMETERS = {str(parameter.name): parameter for parameter in uvicorn.main.params}
#: uvicorn's name of the parameter, where the field has another: `header` is one, as on the command line and in pyproject.toml.
FIELDS = {"headers": "header"}

#: What is another default, and why: (uvicorn's, laraman's).
OTHER_DEFAULTS = {
    "timeout_graceful_shutdown": (None, 8.0),  # None waits for ever for a stream that never ends; `none` says that here
    "workers": (None, 1),  # uvicorn takes WEB_CONCURRENCY for its None, else 1; here that is a variable of the option
    "forwarded_allow_ips": (None, "127.0.0.1,::1"),  # the same with FORWARDED_ALLOW_IPS
}
#: Words of uvicorn that are refused, with the option: both need a package that laraman has no use for, or that is not installed.
REFUSED = {("http", "zttp"), ("loop", "zuvloop")}

#: For each kind of value one that is no default.
SAMPLES: dict[str, tuple[str, Any]] = {
    "env_file": ("some.env", "some.env"),
    "header": ("X-A:1", "X-A:1"),
    "http": ("h11", "h11"),
    "loop": ("some.module:factory", "some.module:factory"),
    "reload_dirs": ("some", "some"),
    "ws": ("wsproto", "wsproto"),
    "log_level": ("debug", "debug"),
    "lifespan": ("off", "off"),
    "interface": ("wsgi", "wsgi"),
    "ssl_cert_reqs": ("1", 1),
    "h11_max_incomplete_event_size": ("999", 999),
}
#: What has to be said with it.
COMPANIONS = {name: {"ssl_certfile": "cert.pem"} for name in ("ssl_keyfile", "ssl_keyfile_password", "ssl_ca_certs", "ssl_cert_reqs")}


@pytest.fixture(autouse=True)
def _files(place: Path) -> None:
    """Those that the samples name."""
    (place / "some.env").touch()
    (place / "some").mkdir()


def ours(arguments: list[str], env: dict[str, str] | None = None) -> Config:
    return Config.load(vars(parse(start_parser(), arguments)), env or {}, None)


def theirs(arguments: list[str]) -> dict[str, Any]:
    """What uvicorn's command understands, without running it. uvicorn reads the environment of the process."""
    context = uvicorn.main.make_context("uvicorn", list(arguments))
    assert isinstance(context, click.Context)
    return dict(context.params)


def field_of(name: str) -> str:
    return FIELDS.get(name, name)


def plain(value: Any) -> Any:
    """None and "" are one, and so are tuple and list: both say that nothing is given."""
    if isinstance(value, (list, tuple)):
        return list(value)
    return None if value == "" else value


def sample(name: str) -> tuple[str, Any]:
    """A value's text and what it means."""
    found = {int: ("7", 7), float: ("7.5", 7.5), bool: ("false", False), str: ("text", "text"), tuple: ("*.x", "*.x")}[kind(OPTIONS[name])]
    return SAMPLES.get(name, found)


REAL = [name for name in PARAMETERS if name != "version"]  # test_cli.py has that


def test_all_are_known_and_none_is_forgotten() -> None:
    assert len(PARAMETERS) >= 52, "51 options and APP"
    assert {field_of(name) for name in REAL} <= set(OPTIONS), "uvicorn has a new option: say what it means here"


@pytest.mark.parametrize("name", REAL)
def test_spelling_and_form(name: str) -> None:
    parameter, wanted = PARAMETERS[name], OPTIONS[field_of(name)]
    if isinstance(parameter, click.Argument):
        assert flags(wanted) == ("APP",)
        return
    assert isinstance(parameter, click.Option)
    known = {flag: action for action in start_parser()._actions for flag in action.option_strings}
    assert {*parameter.opts, *parameter.secondary_opts} <= set(known)
    action = known[parameter.opts[0]]
    assert parameter.is_flag == isinstance(action, argparse.BooleanOptionalAction) == is_switch(wanted)
    assert parameter.multiple == (kind(wanted) is tuple)
    if isinstance(parameter.type, click.types.IntParamType | click.types.FloatParamType):
        assert kind(wanted) in (int, float)


@pytest.mark.parametrize("name", REAL)
def test_default(name: str) -> None:
    default = theirs(["shop:app"])[name] if name != "app" else None
    here = plain(getattr(Config(), field_of(name)))
    if name in OTHER_DEFAULTS:
        assert (plain(default), here) == OTHER_DEFAULTS[name]
    else:
        assert plain(default) == (here or None if isinstance(default, tuple) else here) or (plain(default), here) == ([], [])


@pytest.mark.parametrize("name", REAL)
def test_environment_variable(name: str) -> None:
    """Also that the value is the one that is meant, from the command line as from the variable."""
    field, variable = field_of(name), f"UVICORN_{name.upper()}"
    wanted = OPTIONS[field]
    assert variable in env_names(wanted)
    if name == "http2":
        with pytest.raises(ConfigError, match=r"^UVICORN_HTTP2: .*HTTP/2"):
            ours([], {variable: "1"})
        return
    text, value = ("true", True) if is_switch(wanted) and wanted.default is not True else sample(field)
    expected = (value,) if kind(wanted) is tuple else value
    companions = COMPANIONS.get(name, {})
    assert getattr(ours([], {variable: text, **{f"UVICORN_{key.upper()}": text for key, text in companions.items()}}), field) == expected
    word = [text] if name == "app" else [flags(wanted)[-1]] if value is True else [f"--no{flags(wanted)[-1][1:]}"]
    spoken = word if name == "app" or is_switch(wanted) else [flags(wanted)[-1], text]
    assert getattr(ours([*spoken, *(part for key, text in companions.items() for part in (OPTIONS_FLAG[key], text))]), field) == expected


OPTIONS_FLAG = {name: flags(wanted)[-1] for name, wanted in OPTIONS.items() if wanted.metadata["flags"] is not None}


def words_of(parameter: click.Parameter) -> list[str]:
    """Those that it may be, or that its help names: that leaves out `none`."""
    if isinstance(parameter.type, click.Choice):
        return [str(word) for word in parameter.type.choices]
    metavar = parameter.metavar if isinstance(parameter, click.Option) else None
    return [*metavar.strip("[]").split("|"), *(["none"] if parameter.name in ("loop", "ws") else [])] if metavar else []


@pytest.mark.parametrize(("name", "word"), [(name, word) for name in REAL for word in words_of(PARAMETERS[name])])
def test_every_word_of_a_choice(name: str, word: str) -> None:
    if (name, word) in REFUSED:
        with pytest.raises(ConfigError, match=rf"^--{name}: [^\n]*{word}"):
            ours([f"--{name}", word])
    else:
        assert getattr(ours([OPTIONS_FLAG[name], word]), name) == word


@pytest.mark.parametrize(
    ("words", "env"),
    [
        (["--port", "80", "shop:app"], {}),
        (["shop:app", "--host=0.0.0.0", "--port=80", "--workers", "4", "--no-access-log", "--proxy-headers", "--root-path", "/x"], {}),
        (["--reload", "--reload-dir", "some", "--reload-include", "*.css", "--reload-include", "*.js", "shop.main:make", "--factory"], {}),
        (["shop:app", "--header", "X-A:1", "--header", "B: two words:3", "--log-level", "warning", "--log-level", "debug"], {}),
        (["shop:app", "--ws-per-message-deflate", "no", "--ws-ping-interval", "5", "--ws-ping-timeout", "2.5", "--ws", "websockets-sansio"], {}),
        (["--", "shop:app"], {"UVICORN_PORT": "1", "UVICORN_RELOAD": "yes", "UVICORN_ACCESS_LOG": "0", "UVICORN_USE_COLORS": "f"}),
        (["--port", "2"], {"UVICORN_PORT": "1", "UVICORN_APP": "shop:app", "UVICORN_HOST": "", "UVICORN_FD": "0"}),
        (["shop:app"], {"UVICORN_HEADERS": "A:1  B:2", "UVICORN_RELOAD_DIRS": "some:.", "UVICORN_RELOAD_EXCLUDES": "*.a\t*.b"}),
        (["shop:app"], {"UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN": "3", "UVICORN_WS_PER_MESSAGE_DEFLATE": "off", "UVICORN_LIMIT_MAX_REQUESTS": "9"}),
        (["shop:app", "--ssl-keyfile", "k", "--ssl-certfile", "c", "--ssl-keyfile-password", "p", "--ssl-version", "17", "--ssl-cert-reqs", "2"], {}),
        (["--app-dir", "some", "shop:app", "--h11-max-incomplete-event-size", "999", "--reset-contextvars", "--uds", "x.sock", "--backlog", "9"], {}),
    ],
)
def test_a_command_line_means_the_same(monkeypatch: pytest.MonkeyPatch, words: list[str], env: dict[str, str]) -> None:
    for name, text in env.items():
        monkeypatch.setenv(name, text)
    expected, found = theirs(words), ours(words, env)
    for name, value in expected.items():
        if name not in OTHER_DEFAULTS or value is not None:
            assert plain(getattr(found, field_of(name))) == plain(value), name


@pytest.mark.parametrize("words", [["a:b", "--prot", "1"], ["a:b", "c:d"], ["a:b", "--port", "x"], ["a:b", "--log-level", "loud"], ["a:b", "--port"]])
def test_what_one_refuses_the_other_refuses(words: list[str]) -> None:
    with pytest.raises(click.UsageError):
        theirs(words)
    with pytest.raises(ConfigError):
        ours(words)


@pytest.mark.parametrize(
    ("option", "text", "word"),
    [
        ("http", "uvicorn.protocols.http.h11_impl:H11Protocol", "h11"),
        ("http", "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol", "httptools"),
        ("ws", "uvicorn.protocols.websockets.websockets_impl:WebSocketProtocol", "websockets"),
        ("ws", "uvicorn.protocols.websockets.wsproto_impl:WSProtocol", "wsproto"),
    ],
)
def test_uvicorn_s_classes_are_its_words(option: str, text: str, word: str) -> None:
    assert getattr(ours([f"--{option}", text]), option) == word


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--http", "my.module:Protocol"], "--http: 'my.module:Protocol' cannot be served, laraman has an implementation of its own; it may be auto"),
        (["--ws", "my.module:Protocol"], "--ws: 'my.module:Protocol' cannot be served"),
        (["--http", "http3"], "--http: 'http3' is not one of auto, h11, httptools"),
        (["--loop", "nonsense"], "--loop: 'nonsense' is not one of auto, none, asyncio, uvloop, zuvloop, module:factory"),
        (["--loop", "a b:c"], "--loop: 'a b:c' is not one of"),
        (["--loop", "zuvloop"], "--loop: zuvloop is not installed"),
        (["--http2"], "--http2: laraman speaks HTTP/1.1 and websockets"),
        (["--reload-dir", "nowhere"], "--reload-dir: there is no 'nowhere'"),
        (["--timeout-graceful-shutdown", "soon"], "--timeout-graceful-shutdown: 'soon' is neither a number nor 'none'"),
    ],
)
def test_what_cannot_be_served_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ours(words)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_stop_without_a_deadline(tmp_path: Path) -> None:
    """uvicorn's default."""
    assert ours(["--timeout-graceful-shutdown", "none"]).timeout_graceful_shutdown is None
    (tmp_path / "pyproject.toml").write_text("[tool.laraman]\ntimeout_graceful_shutdown = 'none'\n")
    assert Config.load({}, {}, tmp_path / "pyproject.toml").timeout_graceful_shutdown is None
