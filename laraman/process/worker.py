"""Workers: what runs, how many of it, and where it listens.

The master holds declarations and never an event loop, so this module is light: the life inside the child process is in
``laraman.process.child``, which is imported there.
"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from laraman import events
from laraman.config import SERVER
from laraman.config.declared import HTTP, WORKER, check_names
from laraman.errors import ConfigError
from laraman.net.bind import Bind
from laraman.process import garbage as garbage  # early: it notes how the interpreter sets its collector

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Iterable, Sequence
    from types import FrameType

    from laraman.config import Config
    from laraman.config.options import Section
    from laraman.net.connection import Connection
    from laraman.net.link import Link
    from laraman.net.resident import Resident
    from laraman.process.life import Life
    from laraman.process.tasks import Tasks
    from laraman.sandbox import Sandbox


class Worker:
    """A named, counted declaration of something that runs in processes of its own; in such a process, that process's worker.

        Worker("ticker", "frame://127.0.0.1:9100", count=1, handler="app_example.ticker:Ticker")

    ``address`` is where its processes listen, one or several, or None for a process that only works; ``handler`` an import string, which
    the child imports, so that ``reload`` brings in new code. A class or function is accepted in its place and called without arguments in
    the child (so is what an import string names), any other object is the handler itself; those cannot be reloaded. ``protocol`` is likewise a
    codec's factory, in place of the one that the address's scheme names. ``stop_timeout`` is how many seconds a stop may take when it should
    differ from ``timeout_graceful_shutdown``. ``exclusive`` is for what only one process can hold, like the clients of a gateway: ``reload``
    leaves it alone, and ``restart`` starts the successor when the predecessor is gone.

    ``reuse_port`` lets each process listen on a socket of its own (SO_REUSEPORT) where else all have one. ``mode`` are the permissions of its unix
    sockets, in octal, ``socket_group`` is their group, and ``allow_users`` are those who may connect to ``request+unix://``, by name or number.
    A process with ``max_connections`` accepts no more until one is gone: with 1 it accepts when it is free. ``max_message`` is the largest message in
    bytes, ``write_buffer`` how many bytes may wait for a slow peer before sending waits. ``options`` are the server's (see ``laraman config``) as
    they are to be in this worker's processes only: ``user="www-data"``, ``ssl_certfile=...``. Raises ConfigError.

    What ``on_message`` returns is the reply on ``request://``, where the handler may also be a function, which is its ``on_message``. On ``http://``
    the handler is an ASGI application, and what serves it does all of the following.

    The handler's methods, each optional and plain or ``async``:

        on_load(worker)               imports happen here
        on_start(worker)              before anything is accepted; what it raises refuses the start
        on_reload(worker)             a reload was ordered, which may replace this process, or leave it alone
        connection(worker, bind)      the asyncio.Protocol for a connection that ``bind`` accepted; without it, a Connection of the address's protocol
        door(worker, bind, factory)   the ``laraman.net.door.Door`` by which ``bind``'s connections come in, or None where nothing comes before them
        on_connect(connection)  on_message(connection, message)  on_close(connection)     for such Connections; of datagrams only the second
        on_upgrade(connection, upgrade)    who is let in on ``websocket://``: see ``laraman.net.accepted``
        on_drain(worker, deadline)    accepting has stopped: finish inbound work before the loop's time ``deadline`` (None: no limit)
        on_stop(worker)               last, when the tasks and links are over; not called when ``on_start`` did not succeed
    """

    #: The name of the worker whose process this one's are forked from; empty when the master forks them itself.
    template = ""
    #: The scheme of its unix socket ``NAME.sock`` in the state directory, for the processes of the server; empty when it has none. With a count
    #: of 0 its process is started when somebody connects there.
    inner = ""
    #: The path, from the state directory, of a file whose being there says that there is something to do before somebody connects.
    unfinished = ""
    #: Whether its process sees to it that it ends when it is hung, and may be without a beat for good reasons: the master does not ask for one.
    watches_itself = False
    #: Whether this is the server's main worker: ``http``, or in a server without one the first of its program.
    main: bool
    #: The names of the server's workers; without a master there is this one.
    colleagues: tuple[str, ...]
    #: Descriptor of the directory that processes of the server keep leases in: -1 where it has none, None where this process is the whole server.
    leases: int | None = None
    #: The state directory; empty where there is none. Processes with users of their own cannot enter it.
    state_path = ""
    #: The paths of the ``inner`` workers' sockets by their names, as this worker's processes can reach them.
    inner_paths: dict[str, str]

    # From here on, what holds in the child.
    slot = -1
    generation = 0
    config: Config | Any = None
    loop: asyncio.AbstractEventLoop | Any = None
    tasks: Tasks | Any = None
    #: Makes the surroundings of one operation; an application's startup may have left its own marks in it.
    sandbox: Sandbox | Any = None
    connections: set[Connection]
    links: set[Link]
    #: Timers and consumers that are here (``laraman.net.resident``).
    residents: set[Resident]
    requests = 0
    in_flight = 0
    stopping = False
    stop_reason = ""
    #: Whether listeners have been told that it starts; from then on a timer that is declared in it runs at once.
    running = False
    #: The handler, when it was loaded before this process was forked.
    loaded: Any = None
    _life: Life | None = None

    def __init__(
        self,
        name: str,
        address: str | Sequence[str] | None = None,
        *,
        count: int | str = 1,
        handler: Any = None,
        protocol: Any = None,
        stop_timeout: float | None = None,
        exclusive: bool = False,
        reuse_port: bool = False,
        mode: str = "",
        max_connections: int | None = None,
        max_message: int | None = None,
        write_buffer: int | None = None,
        socket_group: str = "",
        allow_users: Sequence[str | int] = (),
        **options: Any,
    ) -> None:
        if not isinstance(name, str) or not name or not name.isprintable() or any(map(str.isspace, name)):
            raise ConfigError(f"a worker cannot be called {name!r}")
        check_names(options, SERVER, f"worker {name!r}")

        def checked(word: str, value: Any, section: Section = WORKER) -> Any:
            return value if value in (None, "") else section.checked(word, value, f"worker {name!r}: ")

        addresses = () if address is None else WORKER.checked("address", address, f"worker {name!r}: ")
        self.name = name
        self.count: int = checked("count", count)
        self.handler = handler
        self.protocol = protocol
        self.stop_timeout: float | None = checked("stop_timeout", stop_timeout)
        self.exclusive: bool = checked("exclusive", exclusive)
        self.reuse_port: bool = checked("reuse_port", reuse_port)
        self.mode: str = checked("mode", mode)
        self.max_connections: int | None = checked("max_connections", max_connections)
        self.max_message: int | None = checked("max_message", max_message)
        self.write_buffer: int | None = checked("write_buffer", write_buffer)
        self.socket_group: str = checked("socket_group", socket_group)
        self.allow_users = (allow_users,) if isinstance(allow_users, str | int) else tuple(allow_users)
        self.options = {word: checked(word, value, SERVER) for word, value in options.items()}
        self.binds = [Bind(text) for text in addresses]
        for bind in self.binds:
            bind.mode, bind.group = self.mode, self.socket_group
            if self.allow_users and bind.address.scheme != "request":
                raise ConfigError(f"worker {name!r}: allow_users is for request+unix://, not for {bind.address}")
            bind.reuse_port = self._reuses_port(bind)
        if self._serves_http():
            # What serves it knows more than this floor does, and reads the application where every other one is named, in the configuration.
            self.options = {"factory": False, "interface": "auto", **self.options, "app": handler}
            self.handler = "laraman.asgi.service:Http"
        self.main = name == HTTP
        self.connections: set[Connection] = set()
        self.links: set[Link] = set()
        self.residents: set[Resident] = set()
        self.colleagues: tuple[str, ...] = (name,)
        self.inner_paths: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<Worker {self.name}{f' {self.slot}' if self.slot >= 0 else ''}>"

    def _reuses_port(self, bind: Bind) -> bool:
        if self.reuse_port and (bind.address.path or bind.fd is not None):
            raise ConfigError(f"worker {self.name!r}: reuse_port is for addresses with a port, not for {bind.address}")
        return self.reuse_port and sys.platform == "linux"  # elsewhere the kernel does not spread connections: one socket is better

    def _serves_http(self) -> bool:
        """Whether it was declared with addresses of HTTP, and so its handler is an ASGI application."""
        http = {bind.address.scheme in ("http", "https") for bind in self.binds}
        if http == {True, False}:
            raise ConfigError(f"worker {self.name!r}: its handler is http://'s ASGI application; other addresses need a worker of their own")
        if http != {True}:
            return False
        if self.handler is None:
            raise ConfigError(f"worker {self.name!r}: http:// needs a handler, the ASGI application")
        for word in ("protocol", "max_connections", "max_message", "write_buffer"):
            if getattr(self, word) is not None:
                raise ConfigError(f"worker {self.name!r}: {word} is not for http://, which has limits of its own")
        return True

    @property
    def reloadable(self) -> bool:
        """Whether a new process brings in new code: what strings name, and without a handler the listener modules. The rest is the master's own."""
        return all(named is None or isinstance(named, str) for named in (self.handler, self.options.get("app")))

    @property
    def title(self) -> str:
        """What ``ps`` shows: name, slot, addresses."""
        return " ".join(["laraman:", self.name, str(self.slot), *(str(bind.address) for bind in self.binds)])

    def configured(self, config: Config) -> Config:
        """What ``config`` is to this worker's processes."""
        return replace(config, **self.options) if self.options else config

    # In the child ----------------------------------------------------------------------------------------------------------------

    def run(self, slot: int, generation: int, channel: socket.socket, config: Config) -> int:
        """Be the worker of this freshly forked process until it is told to stop, and return the exit code.

        ``channel`` is this process's end of the socketpair to the master. The caller leaves with ``os._exit``: threads of the application
        that do not end must not keep the process.
        """
        from laraman.process.child import run

        self.slot = slot
        self.generation = generation
        self.config = config
        return run(self, channel)

    @property
    def should_exit(self) -> bool:
        """The same as ``stopping``, under the name that libraries look for on the owner of the SIGTERM handler (sse-starlette does)."""
        return self.stopping

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The handler of SIGTERM in the child."""
        if self._life is not None:
            self._life.on_sigterm()

    def retire(self, reason: str = "") -> None:
        """Ask the master for a successor, saying why. This process serves until that is ready, and is then told to stop. Workers of one name
        take turns, so it may serve for a while yet. Asked again, nothing more happens. Call it in the loop's thread."""
        if self._life is not None:
            self._life.retire(reason or "it asked for a successor")


def declared_workers(config: Config) -> list[Worker]:
    """The Workers of ``[tool.laraman.workers.NAME]``. Raises ConfigError."""
    return [Worker(name, **declaration) for name, declaration in config.declared]


# Listener modules -----------------------------------------------------------------------------------------------------------------

#: Modules that this process imported because the listener modules were imported; a child inherits the list from the master.
_imported: list[str] = []


def import_listeners(config: Config) -> None:
    """Import the modules that ``listeners`` names. In a child that forked after the master did it: import them afresh, with what they import.

    Only modules of the application are imported afresh: source files under ``app_dir`` (or the current directory), not installed ones.
    Raises ConfigError when one of them does not exist; what a module raises while it is imported comes out as it is.
    """
    root = os.path.abspath(config.app_dir or os.getcwd())
    if root not in sys.path:
        sys.path.insert(0, root)
    stale = [name for name in _imported if _is_source_under(root, name)]
    for name in stale:
        del sys.modules[name]
    events.forget(stale)
    importlib.invalidate_caches()
    before = set(sys.modules)
    for name in config.listeners:
        _import(name)
    _imported.extend(name for name in sys.modules if name not in before and name not in _imported)


def import_afresh(config: Config) -> None:
    """Let the children import afresh what this process has imported of the application: it is a program of its own that becomes their master."""
    root = os.path.abspath(config.app_dir or os.getcwd())
    _imported.extend(name for name in sys.modules if name not in ("__main__", *_imported) and _is_source_under(root, name))


def _import(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (name == exc.name or name.startswith(f"{exc.name}.")):
            raise ConfigError(f"there is no listener module {name!r}") from None
        raise


def _is_source_under(root: str, name: str) -> bool:
    if name.partition(".")[0] == "laraman":
        return False  # in its own repository; two copies of this package would not know each other's classes
    path = getattr(sys.modules.get(name), "__file__", None)
    if not path or not path.endswith(".py"):
        return False
    path = os.path.abspath(path)
    return path.startswith(os.path.join(root, "")) and not _installed(path.split(os.sep))


def _installed(parts: Iterable[str]) -> bool:
    return not {"site-packages", "dist-packages"}.isdisjoint(parts)
