"""The watcher of ``--reload``: a process that looks for changed files and tells the master, which then rolls as for ``laraman reload``.

It is a Worker, because the master has neither threads nor time to walk directories. With watchfiles (the extra ``reload``) the kernel says what has
changed; without it, or where the kernel has no watch left to give, every file is looked at.
"""

from __future__ import annotations

import logging
import os
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING

from laraman.process.files import Snapshot, Sources, look_at
from laraman.process.loopless import Loopless

if TYPE_CHECKING:
    from collections.abc import Iterable

    from laraman.config import Config

logger = logging.getLogger("uvicorn.error")

NAME = "watch"
#: Seconds in which nothing more may change, so that what is saved together is one reload, and seconds after which it is one anyway.
QUIET, PATIENCE = 0.025, 1.0
#: The part of a CPU that looking at the files may take.
SHARE = 0.05
#: Files that are named in the line that announces a reload.
NAMED = 10
#: Seconds that a worker of the old code gets to stop, at most, when its successor already serves.
STOP_SECONDS = 2.0


class Watcher(Loopless):
    """Its declaration, and in its process the watcher itself. Raises ConfigError when a directory is none. It outlives every reload."""

    def __init__(self, config: Config) -> None:
        super().__init__(NAME, stop_timeout=0.0, exclusive=True)
        self.sources = Sources.of(config)
        self.using = "WatchFiles" if find_spec("watchfiles") else "StatReload"
        self._watching = False

    def serve(self) -> int:
        if self.using == "WatchFiles":
            try:
                self._wait_for_events()
                return 0
            except (OSError, RuntimeError) as exc:  # no watches are left, say
                logger.warning("WatchFiles cannot watch, looking at every file instead: %s", exc)
                self.using = "StatReload"
        self._look_again_and_again()
        return 0

    def is_set(self) -> bool:
        """watchfiles takes this for the event that ends it, and asks for it every `QUIET` seconds, first when it watches."""
        if not self._watching:
            self._watching = True
            self.say({"op": "ready"})
        return self.attend(0)

    def _wait_for_events(self) -> None:
        from watchfiles import Change, watch

        links = self.sources.links()
        events = watch(
            *self.sources.directories,
            watch_filter=None,
            debounce=int(PATIENCE * 1000),
            step=int(QUIET * 1000),
            stop_event=self,
            rust_timeout=max(1, int(self.config.reload_delay * 1000)),
            yield_on_timeout=True,  # to look at the links
            ignore_permission_denied=True,
        )
        for changes in events:
            changed = {path for _, path in changes if self.sources.matter(path)}
            # The files of a new directory may have been there before the kernel was asked to watch it.
            arrived = [path for change, path in changes if change is Change.added and path not in changed and os.path.isdir(path)]
            changed |= {path for path, _ in self.sources.walk(*arrived)}
            looks = {path: look_at(path) for path in links}
            changed |= {path for path, look in looks.items() if links[path] != look}
            if self._report(changed):
                return
            if changed:  # also while that was told, and other links may be there
                links = {**self.sources.links(), **{path: look for path, look in looks.items() if look}}

    def _look_again_and_again(self) -> None:
        snapshot = Snapshot(self.sources)
        self.is_set()
        pause = self.config.reload_delay
        while not self._pause(pause):
            begun = time.monotonic()
            changed = set(snapshot.changes())
            pause = max(self.config.reload_delay, (time.monotonic() - begun) / SHARE)
            while changed and time.monotonic() - begun < PATIENCE:
                if self._pause(QUIET):
                    return
                if not (more := snapshot.changes()):
                    break
                changed.update(more)
            if self._report(changed):
                return

    def _report(self, changed: Iterable[str]) -> bool:
        """Tell of the change, if there is one, then leave the files alone for a while; True when this process is to end."""
        names = sorted(map(_shown, changed))
        if not names:
            return False
        more = [f"{len(names) - NAMED} more"] if len(names) > NAMED else []
        logger.warning("%s detected changes in %s. Reloading...", self.using, ", ".join(names[:NAMED] + more))
        self.say({"op": "reload"})
        return self._pause(self.config.reload_delay)

    def _pause(self, seconds: float) -> bool:
        """Let that time pass, obeying; True when this process is to end."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self.attend(left):
                return True
        return False


def _shown(path: str) -> str:
    here = os.path.join(os.path.realpath(os.curdir), "")
    return f"'{path.removeprefix(here)}'"
