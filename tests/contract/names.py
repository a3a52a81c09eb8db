"""Run with "uvicorn" or "laraman": what a program sees of the names in 1.2, as JSON. For laraman ``import uvicorn`` finds laraman's."""

import asyncio
import contextlib
import io
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import urllib.request
import warnings

if sys.argv[1] == "laraman":
    import laraman.compat.uvicorn

    sys.meta_path.insert(0, laraman.compat.uvicorn.Finder())

import uvicorn

seen = {}


async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})
    else:
        assert (await receive())["type"] == "lifespan.startup"
        await send({"type": "lifespan.startup.complete"})
        await receive()
        seen["lifespan"] = "ended"
        await send({"type": "lifespan.shutdown.complete"})


IMPORTS = {
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
warnings.simplefilter("ignore")
for module, names in IMPORTS.items():
    for name in names.split():
        try:
            found = getattr(__import__(module, fromlist=[name]), name)
            seen[f"{module}.{name}"] = "callable" if callable(found) else type(found).__name__
        except (ImportError, AttributeError) as exc:
            seen[f"{module}.{name}"] = f"{type(exc).__name__}: {exc}"

LOGGING_CONFIG, LOG_LEVELS, HANDLED_SIGNALS = uvicorn.config.LOGGING_CONFIG, uvicorn.config.LOG_LEVELS, uvicorn.server.HANDLED_SIGNALS

seen["LOGGING_CONFIG"] = {key: sorted(LOGGING_CONFIG[key]) for key in ("formatters", "handlers", "loggers")}
seen["formats"] = [LOGGING_CONFIG["formatters"][name]["fmt"] for name in ("default", "access")]
seen["LOG_LEVELS"] = LOG_LEVELS
seen["HANDLED_SIGNALS"] = [int(number) for number in HANDLED_SIGNALS]

logging.getLogger("uvicorn").handlers.clear()
config = uvicorn.Config(app, host="127.0.0.1", port=0, headers=[("X-A", "1")], log_level="warning")
seen["logging at Config()"] = [type(handler).__name__ for handler in logging.getLogger("uvicorn").handlers]
BEFORE = ("loaded", "is_ssl", "use_subprocess", "should_reload", "workers", "root_path", "interface")
seen["Config before load"] = {name: getattr(config, name) for name in BEFORE}
config.load()
CONFIG = "loaded loaded_app ssl http_protocol_class ws_protocol_class lifespan_class encoded_headers interface asgi_version".split()
seen["Config after load"] = [name for name in CONFIG if not hasattr(config, name)]
seen["interface, loaded"] = [config.interface, config.loaded, config.asgi_version]
METHODS = "load load_app configure_logging bind_socket get_loop_factory setup_event_loop"
seen["methods of Config"] = [name for name in METHODS.split() if not callable(getattr(config, name))]
try:
    config.setup_event_loop()
except AttributeError:
    seen["setup_event_loop"] = "AttributeError"
bound = uvicorn.Config(app, port=0, log_level="warning").bind_socket()
seen["bind_socket"] = [isinstance(bound, socket.socket), bound.getsockname()[0], bound.get_inheritable()]
bound.close()

server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
FIELDS = "config server_state started should_exit force_exit last_notified limit_max_requests"
seen["Server"] = [name for name in FIELDS.split() if not hasattr(server, name)]
SERVER = "run serve startup main_loop on_tick shutdown capture_signals handle_exit"
seen["methods of Server"] = [name for name in SERVER.split() if not callable(getattr(server, name))]
seen["Server at first"] = [server.started, server.should_exit, server.force_exit]

before = signal.getsignal(signal.SIGTERM)
thread = threading.Thread(target=server.run)
thread.start()
while not server.started:
    time.sleep(0.01)
port = server.servers[0].sockets[0].getsockname()[1]
with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
    seen["in a thread"] = answer.read().decode()
seen["signals in a thread"] = signal.getsignal(signal.SIGTERM) is before
seen["server_state"] = [server.server_state.total_requests, type(server.server_state.connections).__name__, type(server.server_state.tasks).__name__]
server.should_exit = True
thread.join(20)
seen["should_exit"] = [thread.is_alive(), seen.pop("lifespan", "not ended")]


async def within() -> None:
    """In a loop that runs already, with a socket of one's own."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    inner = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    task = asyncio.create_task(inner.serve(sockets=[sock]))
    while not inner.started:
        await asyncio.sleep(0.01)
    handler = signal.getsignal(signal.SIGTERM)
    seen["SIGTERM's handler"] = [hasattr(getattr(handler, "__self__", None), "should_exit"), getattr(handler, "__name__", "")]
    reader, writer = await asyncio.open_connection(*sock.getsockname())
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    seen["serve in a loop"] = (await reader.read()).rpartition(b"\r\n\r\n")[0].startswith(b"HTTP/1.1 200")
    writer.close()
    inner.should_exit = True
    await task
    seen["SIGTERM's handler afterwards"] = signal.getsignal(signal.SIGTERM) is before


asyncio.run(within())


class Ends(uvicorn.Server):
    """As soon as it has started."""

    async def startup(self, sockets=None):
        await super().startup(sockets=sockets)
        self.should_exit = True
        seen["override of startup"] = self.started


Ends(uvicorn.Config(app, port=0, log_level="warning")).run()


class Asked(uvicorn.Server):
    def handle_exit(self, sig, frame):
        seen["override of handle_exit"] = int(sig)
        self.should_exit = True


def interrupt():
    while not asked.started:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)


asked = Asked(uvicorn.Config(app, port=0, log_level="warning"))
threading.Thread(target=interrupt).start()
asked.run()


def exit_code(**options):
    try:
        uvicorn.run(**options)
    except SystemExit as exc:
        return exc.code
    return 0


logging.disable(logging.CRITICAL)
contextlib.redirect_stderr(io.StringIO()).__enter__()
seen["run with workers and an object"] = exit_code(app=app, workers=2, port=0)
seen["run with what is not there"] = exit_code(app="nothing_there:app", port=0)


async def fails(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed"})


seen["run when startup fails"] = exit_code(app=fails, port=0)
with contextlib.suppress(TypeError):
    uvicorn.Config(app, nonsense=1)
    seen["unknown option"] = "accepted"
print(json.dumps(seen))
