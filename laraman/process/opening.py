"""What a master opens when it starts: listening sockets, the state directory, the control socket, the output of a daemon."""

from __future__ import annotations

import logging
import os
import selectors
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from laraman.errors import ConfigError, LaramanError
from laraman.net.bind import Bind, key_of
from laraman.process import daemon, restart
from laraman.process.control import Control, listen
from laraman.process.loopless import Loopless
from laraman.process.state import LEASES, instance_name, open_state

if TYPE_CHECKING:
    from laraman.process.master import Master
    from laraman.process.worker import Worker

logger = logging.getLogger("uvicorn.error")


def open_binds(master: Master) -> None:
    """Listen where the workers are to, on what a former image of the master has left where that is the same. Raises BootError, and ConfigError for
    an address that is there twice."""
    _check_places(master)
    _follow_places(master)
    new = [bind for bind in master.binds if bind.key not in master.inherited and bind.fd is None]
    try:
        for worker in master.workers.values():
            for bind in worker.binds:
                bind.backlog = master.config.backlog
                bind.take_over(master.inherited, worker.count)
    except LaramanError:
        for bind in new:  # a restart is refused: nobody would accept there
            bind.close()
            bind.unlink()
        raise


def open_inner(master: Master) -> None:
    """Let the workers know where they reach each other. Raises BootError.

    Where some have users of their own, the sockets are beside the leases: to others than the server's processes that is closed, too.
    """
    if master.state is None:
        return
    config = master.config
    configs = [worker.configured(config) for worker in master.workers.values()]
    shared = any(config.user or config.group for config in configs)
    directory = master.state.path / LEASES if shared else master.state.path
    inner = [worker for worker in master.workers.values() if worker.inner]
    for worker in inner:
        bind = Bind(f"{worker.inner}+unix://{directory / worker.name}.sock", config.backlog)
        bind.mode = "666" if shared else "600"
        bind.take_over(master.inherited, 1)
        worker.binds = [bind]
    for worker in master.workers.values():
        reached = Path(f"/proc/self/fd/{worker.leases}") if shared else directory
        worker.state_path = str(master.state.path)
        worker.inner_paths = {other.name: str(reached / f"{other.name}.sock") for other in inner}


def watch_inner(master: Master) -> None:
    """Where a worker is not wanted before somebody connects, look out for that, unless the last one has left something to do."""
    for name, worker in master.workers.items():
        if worker.unfinished and Path(worker.state_path, worker.unfinished).exists():
            master.desired[name].count = 1
        for bind in worker.binds if worker.inner and not master.desired[name].count else ():
            master.selector.register(bind.sockets[0], selectors.EVENT_READ, partial(_wanted, master, name))


def _wanted(master: Master, name: str, mask: int) -> None:
    master.desired[name].count = 1
    end_watch(master, master.workers[name])


def end_watch(master: Master, worker: Worker) -> None:
    """Whether somebody connects does not matter any more. Idempotent."""
    for made in worker.binds[0].sockets if worker.inner and worker.binds else ():
        with suppress(KeyError):
            master.selector.unregister(made)


def _check_places(master: Master) -> None:
    """The kernel would only say of the second that the address is in use, and where ports are shared nothing at all."""
    taken: dict[object, str] = {}
    for name, worker in master.workers.items():
        for bind in worker.binds:
            place = bind.place
            if place is not None and place in taken:
                whom = f"worker {name!r}" if taken[place] == name else f"worker {name!r} and worker {taken[place]!r}"
                raise ConfigError(f"{whom}: {bind.where} is there twice")
            taken[place] = name


def _follow_places(master: Master) -> None:
    """A restart may change which protocol is spoken at an address: what was left there is known by the new name from now on."""
    keys = {bind.place: bind.key for bind in master.binds}
    for name in [*master.inherited]:
        key = key_of(name)
        place = Bind(key).place
        if place is not None and (wanted := keys.get(place)) and (renamed := name.removesuffix(key) + wanted) not in master.inherited:
            master.inherited[renamed] = master.inherited.pop(name)


def close_inherited(master: Master) -> None:
    for key, descriptor in master.inherited.items():
        restart.end_bind(key, descriptor)
    master.inherited = {}


def open_directory(master: Master) -> None:
    """The instance's name, state directory, with what listens there, and control socket. Raises BootError when another server has them."""
    config = master.config
    bind = next((bind for worker in master.workers.values() if worker.main for bind in worker.binds), None)
    if bind is None:
        master.name = instance_name(config.name, config.port, master.main)
    else:
        master.name = instance_name(config.name, bind.address.port, bind.address.path, bind.fd)
    if master.state is None:
        master.state = open_state(config.state_dir, master.name)
    if master.notify is not None or daemon.output():
        fallback = master.state.log_path if master.state else os.devnull
        daemon.output_to(os.path.abspath(config.log_file) if config.log_file else fallback)
    _share_leases(master)
    open_inner(master)
    if master.state is None or master.control is not None:
        return
    try:
        master.control = Control(master.selector, listen(master.state.control_path), master.commands.handle)
    except OSError as exc:
        logger.warning("No control socket at %s: %s", master.state.control_path, exc.strerror)


def _share_leases(master: Master) -> None:
    """Tell the workers of one another, and where they agree who of them does what only one may do."""
    leases = -1
    if master.state is not None:
        try:
            leases = master.state.open_leases()
        except OSError as exc:
            logger.warning("No leases in %s: %s", master.state.path, exc.strerror)
    names = tuple(name for name, worker in master.workers.items() if not isinstance(worker, Loopless))
    for worker in master.workers.values():
        worker.leases = leases
        worker.colleagues = names
