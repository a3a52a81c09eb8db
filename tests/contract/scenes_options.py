"""Lives of servers in which an option shows itself."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.conftest import DEADLINE, clean_environment
from tests.contract.client import exchange, fetch, get, read_answer
from tests.contract.scenes import HELLO, PORT, STARTED, end
from tests.contract.serving import HERE, new_directory

if TYPE_CHECKING:

    from tests.contract.scenes import Actor, Facts
    from tests.contract.serving import Running


def page(server: Running, path: str = "/hello") -> str:
    return exchange(server, get(path))[0].body


def on_unix(actor: Actor) -> Facts:
    server = actor.start("app:app", "--uds", "server.sock").ready()
    path = server.directory / "server.sock"
    mode = oct(path.stat().st_mode & 0o777)
    facts = end(server)
    return {"mode": mode, "left": path.exists(), **facts, "stderr": [line.replace(f"{server.directory}/", "") for line in facts["stderr"]]}


NO_LIFESPAN = "async def app(scope, receive, send):\n    assert scope['type'] == 'http'" + HELLO


def without_lifespan(actor: Actor) -> Facts:
    server = actor.start("none:app", *PORT, files={"none.py": NO_LIFESPAN}).ready()
    return {"answer": page(server), **end(server)}


def lifespan_off(actor: Actor) -> Facts:
    return end(actor.start("app:app", *PORT, "--lifespan", "off").ready())


def elsewhere(actor: Actor) -> Facts:
    """A module of a directory beside the working one, and an attribute with dots."""
    server = actor.start("other:Box.app", *PORT, "--app-dir", str(new_directory({"other.py": "class Box:\n    from app import app\n"})))
    answer = page(server.ready())
    end(server)
    return {"answer": answer}


def made(actor: Actor) -> Facts:
    server = actor.start("making:make", *PORT, "--factory", files={"making.py": "def make():\n    from app import app\n    return app\n"}).ready()
    answer = page(server)
    end(server)
    return {"answer": answer}


def detected(actor: Actor) -> Facts:
    server = actor.start("making:make", *PORT, files={"making.py": "def make():\n    from app import app\n    return app\n"}).ready()
    return {"stderr": [line for line in end(server)["stderr"] if line.startswith("WARNING")]}


def environment(actor: Actor) -> Facts:
    app = "import os\nasync def app(scope, receive, send):\n    assert scope['type'] == 'http'" + HELLO.replace(
        "b'hello'", "os.environ['WORD'].encode()"
    ).replace("b'5'", "b'13'")
    files = {"some.env": "WORD='from the file'\nWEB_CONCURRENCY=2\nUVICORN_ROOT_PATH=/no\n", "envy.py": app}
    server = actor.start("envy:app", *PORT, "--env-file", "some.env", files=files).ready()
    answer = page(server)
    server.wait_line(STARTED, 2)
    facts = end(server)
    return {
        "answer": answer,
        "line": [line for line in facts["stderr"] if "environment" in line][:1],
        "workers": sum(STARTED in line for line in facts["stderr"]),
    }


def by_variables(actor: Actor) -> Facts:
    server = actor.start("app:app", *PORT, environ={"UVICORN_ROOT_PATH": "/by-variable", "UVICORN_LOG_LEVEL": "error"}).ready()
    root_path = fetch(server, "/scope")["root_path"]
    return {"root_path": root_path, **end(server)}


def quiet(actor: Actor) -> Facts:
    server = actor.start("app:app", *PORT, "--log-level", "warning", "--no-access-log").ready()
    return end(server)


LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"own": {"()": "filtering.Own"}},
    "formatters": {"access": {"format": "own %(picked)s"}},
    "handlers": {"access": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "access", "filters": ["own"]}},
    "loggers": {"uvicorn.access": {"handlers": ["access"], "level": "INFO", "propagate": False}},
}
FILTER = """
import logging

class Own(logging.Filter):
    def filter(self, record):
        record.picked = (record.args[2], record.args[4])
        return record.args[1] == "GET"
"""


def configured(actor: Actor) -> Facts:
    server = actor.start("app:app", *PORT, "--log-config", "log.json", files={"log.json": json.dumps(LOGGING), "filtering.py": FILTER}).ready()
    end(server)
    return {"stdout": server.stdout.splitlines()}


def coloured(actor: Actor) -> Facts:
    server = actor.start("app:app", *PORT, "--use-colors").ready()
    end(server)
    [line] = [line for line in server.stderr.splitlines() if STARTED in line]
    return {"line": re.sub(r"\d{3,}", "*", line)}


def inherited(actor: Actor) -> Facts:
    """--fd 0: a socket that is there as standard input, as from a supervisor."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        module = "uvicorn" if actor.name == "uvicorn" else "laraman"
        os.set_inheritable(listening.fileno(), True)
        with subprocess.Popen(
            [sys.executable, "-m", module, "app:app", "--fd", str(listening.fileno()), "--log-level", "critical"],
            cwd=HERE,
            env=clean_environment({"LARAMAN_STATE_DIR": str(new_directory())}),
            stdin=subprocess.DEVNULL,
            pass_fds=[listening.fileno()],
        ) as process:
            sock = socket.create_connection(listening.getsockname(), DEADLINE)
            with contextlib.closing(sock), sock.makefile("rb") as file:
                sock.sendall(get("/hello"))
                answer = read_answer(file)
            process.terminate()
            process.wait(DEADLINE)
    return {"answer": answer.body if answer is not None else ""}


def any_port(actor: Actor) -> Facts:
    server = actor.start("app:app", "--port", "0")
    server.port = int(re.search(r"running on http://127.0.0.1:(\d+) ", server.wait_line("running on http"))[1])  # type: ignore[index]
    answer = page(server.ready())
    end(server)
    return {"answer": answer}


WSGI = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]
"""
ASGI2 = """
class app:
    def __init__(self, scope):
        self.scope = scope
    async def __call__(self, receive, send):
        scope = self.scope
        assert scope['type'] == 'http'
""" + HELLO.replace("\n    ", "\n        ")


def wsgi(actor: Actor) -> Facts:
    server = actor.start("old:app", *PORT, "--interface", "wsgi", files={"old.py": WSGI}).ready()
    answer = page(server)
    end(server)
    return {"answer": answer}


def asgi2(actor: Actor) -> Facts:
    server = actor.start("old:app", *PORT, files={"old.py": ASGI2}).ready()
    answer = page(server)
    end(server)
    return {"answer": answer}


def version(actor: Actor) -> Facts:
    module = "uvicorn" if actor.name == "uvicorn" else "laraman"
    found = {
        word: subprocess.run([sys.executable, "-m", module, word], capture_output=True, text=True, timeout=DEADLINE)
        for word in ("--version", "--help")
    }
    words = found["--version"].stdout.split()
    return {"words": [words[index] for index in (0, 3, 4, 6)], "help": found["--help"].returncode}
