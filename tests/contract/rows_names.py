"""1.2: what programs and other packages touch of uvicorn's names; names.py looks."""

from __future__ import annotations

from tests.contract.scenes import fact, program
from tests.contract.table import Row

TYPES = {
    "__version__": "str",
    "LOGGING_CONFIG": "dict",
    "LOG_LEVELS": "dict",
    "STARTUP_FAILURE": "int",
    "HANDLED_SIGNALS": "tuple",
    "TRACE_LOG_LEVEL": "int",
}
MODULES = {
    "uvicorn": "run Config Server main __version__",
    "uvicorn.config": "LOGGING_CONFIG LOG_LEVELS Config",
    "uvicorn.main": "STARTUP_FAILURE Server run main",
    "uvicorn.supervisors": "ChangeReload Multiprocess",
    "uvicorn.server": "Server ServerState HANDLED_SIGNALS",
    "uvicorn.logging": "ColourizedFormatter DefaultFormatter AccessFormatter TRACE_LOG_LEVEL",
    "uvicorn.middleware.proxy_headers": "ProxyHeadersMiddleware",
    "uvicorn.middleware.wsgi": "WSGIMiddleware",
    "uvicorn.protocols.utils": "ClientDisconnected",
}
LEVELS = {"critical": 50, "error": 40, "warning": 30, "info": 20, "debug": 10, "trace": 5}
BEFORE = {"loaded": False, "is_ssl": False, "use_subprocess": False, "should_reload": False, "workers": 1, "root_path": "", "interface": "auto"}
LOGGING = {"formatters": ["access", "default"], "handlers": ["access", "default"], "loggers": ["uvicorn", "uvicorn.access", "uvicorn.error"]}
FORMATS = ["%(levelprefix)s %(message)s", '%(levelprefix)s %(client_addr)s - "%(request_line)s" %(status_code)s']


def seen(ids: str, key: str, what: object) -> Row:
    return Row(ids, key, fact(program, key), what, on="")


ROWS = [
    *(seen(f"1.2 {module}", f"{module}.{name}", TYPES.get(name, "callable")) for module, names in MODULES.items() for name in names.split()),
    seen("1.2 LOGGING_CONFIG, 1.0 3", "LOGGING_CONFIG", LOGGING),
    seen("1.2 LOGGING_CONFIG, 1.0 3", "formats", FORMATS),
    seen("1.2 uvicorn.config", "LOG_LEVELS", LEVELS),
    seen("1.2 uvicorn.server", "HANDLED_SIGNALS", [2, 15]),
    seen("1.2 Config, 1.0 12", "logging at Config()", ["StreamHandler"]),
    seen("1.2 Config", "Config before load", BEFORE),
    seen("1.2 Config", "Config after load", []),
    seen("1.2 Config", "interface, loaded", ["asgi3", True, "3.0"]),
    seen("1.2 Config", "methods of Config", []),
    seen("1.2 Config", "setup_event_loop", "AttributeError"),
    seen("1.2 Config", "bind_socket", [True, "127.0.0.1", True]),
    seen("1.2 Server, 1.0 12", "Server", []),
    seen("1.2 Server", "methods of Server", []),
    seen("1.2 Server", "Server at first", [False, False, False]),
    seen("1.2 Server, 1.0 12", "in a thread", "hello"),
    seen("1.2 Server", "signals in a thread", True),
    seen("1.2 Server", "server_state", [1, "set", "set"]),
    seen("1.2 Server, 1.0 12", "should_exit", [False, "ended"]),
    seen("1.2 Server, 1.0 12", "serve in a loop", True),
    seen("1.2 signals, 1.0 4", "SIGTERM's handler", [True, "handle_exit"]),
    seen("1.2 signals", "SIGTERM's handler afterwards", True),
    seen("1.2 overrides", "override of startup", True),
    seen("1.2 overrides, 1.0 4", "override of handle_exit", 15),
    seen("1.2 run", "run with workers and an object", 3),
    seen("1.2 run", "run with what is not there", 3),
    seen("1.2 run", "run when startup fails", 3),
]
