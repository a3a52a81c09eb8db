"""``laraman.Config``, beside ``uvicorn.Config`` where that says what is right."""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn

import laraman
from laraman.config import OPTIONS
from laraman.errors import ConfigError
from tests.asgi.test_server import _logging as _logging
from tests.asgi.test_server import both

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


async def app(scope: Any, receive: Any, send: Any) -> None:
    """An application of ASGI 3."""


def old(scope: Any) -> Any:
    """One of ASGI 2."""


def make() -> Any:
    return app


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS"):
        monkeypatch.delenv(name, raising=False)


def seen(config: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names}


# As uvicorn's ---------------------------------------------------------------------------------------------------------------------

PLAIN = (
    *("host", "port", "workers", "reload", "backlog", "root_path", "limit_concurrency", "limit_max_requests", "limit_max_requests_jitter"),
    *("timeout_keep_alive", "timeout_notify", "callback_notify", "timeout_worker_healthcheck", "ws_max_size", "ws_max_queue", "ws_ping_interval"),
    *("ws_ping_timeout", "ws_per_message_deflate", "lifespan", "interface", "loop", "http", "ws", "http2", "access_log", "use_colors", "factory"),
    *("proxy_headers", "server_header", "date_header", "forwarded_allow_ips", "headers", "encoded_headers", "reset_contextvars", "loaded"),
    *("h11_max_incomplete_event_size", "ssl_version", "ssl_cert_reqs", "ssl_context_factory", "is_ssl", "use_subprocess", "should_reload", "fd"),
)


def test_its_defaults_are_uvicorns() -> None:
    assert seen(laraman.Config(app), *PLAIN) == seen(uvicorn.Config(app), *PLAIN)


@pytest.mark.parametrize(
    "options",
    [
        {"host": "::1", "port": 1},
        {"workers": 3},
        {"reload": True},
        {"ssl_certfile": "x"},
        {"headers": [("A", "b")], "server_header": False},
        {"limit_max_requests": 7, "timeout_keep_alive": 1},
        {"interface": "asgi2", "root_path": "/x"},
    ],
    ids=lambda options: " ".join(options),
)
def test_what_is_given_is_there(options: dict[str, Any]) -> None:
    names = (*options, "use_subprocess", "should_reload", "is_ssl")
    assert seen(laraman.Config("x:app", **options), *names) == seen(uvicorn.Config("x:app", **options), *names)


@both
@pytest.mark.parametrize(("application", "options", "version"), [(app, {}, "3.0"), (old, {}, "2.0"), (make, {"factory": True}, "3.0")])
def test_what_loading_finds(library: Any, application: Any, options: dict[str, Any], version: str) -> None:
    config = library.Config(application, headers=[("X-Name", "a: b"), ("Y", "")], proxy_headers=False, **options)
    config.load()
    assert (config.loaded, config.ssl, config.asgi_version, config.interface) == (True, None, version, f"asgi{version[0]}")
    assert config.encoded_headers == [(b"server", library.__name__.encode()), (b"x-name", b"a: b"), (b"y", b"")]
    assert issubclass(config.http_protocol_class, asyncio.Protocol)
    assert config.ws_protocol_class is not None
    assert config.lifespan_class(config).state == {}
    if version == "3.0":
        assert config.loaded_app is app


@both
def test_the_server_may_have_another_name(library: Any) -> None:
    config = library.Config(app, headers=[("Server", "mine")], ws="none")
    config.load()
    assert (config.encoded_headers, config.ws_protocol_class) == ([(b"server", b"mine")], None)


@both
def test_it_is_loaded_once(library: Any) -> None:
    config = library.Config(app)
    config.load()
    with pytest.raises(AssertionError):
        config.load()


@both
def test_two_variables_of_the_environment_count(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "3")
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "10.0.0.1")
    monkeypatch.setenv("UVICORN_PORT", "1")
    monkeypatch.setenv("LARAMAN_PORT", "1")
    assert seen(library.Config(app), "workers", "forwarded_allow_ips", "port") == {"workers": 3, "forwarded_allow_ips": "10.0.0.1", "port": 8000}
    given = library.Config(app, workers=1, forwarded_allow_ips="*")
    assert seen(given, "workers", "forwarded_allow_ips") == {"workers": 1, "forwarded_allow_ips": "*"}


@both
def test_a_file_of_variables_is_read_before_them(library: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "")  # so that it is taken away again
    monkeypatch.delenv("WEB_CONCURRENCY")
    (tmp_path / "env").write_text("WEB_CONCURRENCY=5\n")
    assert library.Config(app, env_file=tmp_path / "env").workers == 5


@both
def test_it_says_that_it_reads_the_file(library: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "env").touch()
    logging.getLogger("uvicorn").handlers.clear()  # a program's first words come before anybody has set up logging
    library.Config(app, env_file=tmp_path / "env")
    assert capsys.readouterr().err.count(f"Loading environment from '{tmp_path / 'env'}'") == 1


@both
def test_a_program_loads_its_application_itself(library: Any) -> None:
    class Config(library.Config):  # type: ignore[misc, name-defined]
        def load_app(self) -> Any:
            return app

    config = Config("nowhere:app")
    config.load()
    assert config.interface == "asgi3"


@both
def test_logging_is_configured_at_once(library: Any) -> None:
    logger = logging.getLogger("uvicorn.error")
    logging.getLogger("uvicorn").handlers.clear()
    library.Config(app, log_level="warning")
    assert (logger.level, len(logging.getLogger("uvicorn").handlers)) == (logging.WARNING, 1)
    library.Config(app, log_level=logging.DEBUG)
    assert logger.level == logging.DEBUG


@both
def test_logging_is_left_alone(library: Any) -> None:
    for name in ("uvicorn", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    library.Config(app, log_config=None)
    assert [logging.getLogger(name).handlers for name in ("uvicorn", "uvicorn.access")] == [[], []]
    assert logging.getLogger("uvicorn.error").level == logging.CRITICAL


@both
def test_the_loop(library: Any) -> None:
    made = library.Config(app, loop="asyncio").get_loop_factory()()
    made.close()
    assert isinstance(made, asyncio.SelectorEventLoop)
    assert library.Config(app, loop="none").get_loop_factory() is None
    with pytest.raises(AttributeError, match="get_loop_factory"):
        library.Config(app).setup_event_loop()


@both
def test_a_socket_for_others(library: Any) -> None:
    with library.Config(app, port=0).bind_socket() as sock:
        sock.listen()
        assert (sock.getsockname()[0], sock.get_inheritable()) == ("127.0.0.1", True)
        if library is laraman:  # uvicorn does so too, and forgets to close its socket
            with pytest.raises(SystemExit) as caught:
                library.Config(app, port=sock.getsockname()[1]).bind_socket()
            assert caught.value.code == 3


@both
def test_tls_contexts_can_be_ones_own(library: Any) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    config = library.Config(app, ssl_context_factory=lambda config, default: context)
    config.load()
    assert (config.ssl is context, config.is_ssl) == (True, True)


# Ours -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "app"])
def test_every_option_is_an_attribute_and_none_means_not_given(name: str) -> None:
    config = laraman.Config(app, **{name: None})
    assert hasattr(config, name)
    unlimited: dict[str, Any] = {"ws_ping_interval": 0.0, "ws_ping_timeout": 0.0, "timeout_graceful_shutdown": None, "log_config": None}
    assert getattr(config.frozen(), name) == unlimited.get(name, OPTIONS[name].default)


@pytest.mark.parametrize(
    ("options", "frozen"),
    [
        ({"port": "80"}, {"port": 80}),
        ({"headers": [("X", "1"), ("X", "2")]}, {"header": ("x:1", "x:2")}),
        ({"reload": True, "reload_dirs": "/"}, {"reload_dirs": ("/",)}),
        ({"forwarded_allow_ips": ["10.0.0.1", "::1"]}, {"forwarded_allow_ips": "10.0.0.1,::1"}),
        ({"log_level": 35}, {"log_level": "warning"}),
        ({"log_level": 1}, {"log_level": "trace"}),
        ({"log_level": "DEBUG"}, {"log_level": "debug"}),
        ({"max_rss": "1MB"}, {"max_rss": 2**20}),
        ({"timeout_keep_alive": 3}, {"timeout_keep_alive": 3.0}),
    ],
    ids=lambda options: str(options),
)
def test_what_serves_gets_values_of_the_right_type(options: dict[str, Any], frozen: dict[str, Any]) -> None:
    assert seen(laraman.Config(app, **options).frozen(), *frozen) == frozen


def test_it_can_be_changed_until_it_is_served() -> None:
    config = laraman.Config(app, port=1)
    config.port = 2
    config.headers.append(("x", "y"))
    assert seen(config.frozen(), "port", "header") == {"port": 2, "header": ("x:y",)}


def test_tables_of_options() -> None:
    config = laraman.Config(app, sandbox={"flush": ["a:b"]})
    assert config.frozen().sandbox.flush == ("a:b",)
    with pytest.raises(ConfigError, match="flsh"):
        laraman.Config(app, sandbox={"flsh": ["a:b"]})


@pytest.mark.parametrize(
    ("make_it", "error", "message"),
    [
        (lambda: laraman.Config(app, prot=1), TypeError, "Config() has no option 'prot'; did you mean 'port'?"),
        (lambda: laraman.Config(app, port=-1), ConfigError, "port: -1 is not in 0..65535"),
        (lambda: laraman.Config(app, lifespan="of"), ConfigError, "lifespan: 'of' is not one of auto, on, off"),
        (lambda: laraman.Config(app, headers=[("a b", "c")]), ConfigError, "header: 'a b:c' is not of the form Name:Value"),
        (lambda: laraman.Config(app, fd=3, uds="x"), ConfigError, "fd and uds exclude each other: each says where to listen"),
        (lambda: laraman.Config(app, http=asyncio.Protocol), ConfigError, "http: 'asyncio.protocols:Protocol' cannot be served, laraman has"),
    ],
    ids=["unknown", "range", "word", "header", "contradiction", "class"],
)
def test_mistakes_are_one_line(make_it: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        make_it()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_uvicorns_classes_mean_their_words() -> None:
    from uvicorn.protocols.http.h11_impl import H11Protocol

    assert laraman.Config(app, http=H11Protocol).frozen().http == "h11"
