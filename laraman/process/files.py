"""Which files matter under ``--reload``, with uvicorn's meaning of the patterns, and what has become of them, by looking at each.

Differences from uvicorn, all where its patterns miss what was meant: a hidden directory is left out like a hidden file (``.venv``, ``.git``;
the include ``.*`` lifts that as well), an installed package is no source, a directory that is excluded by a relative path is excluded, an include
that matches some directory by chance (``*``) does not put it in the place of the working directory, and without watchfiles the patterns count too.
"""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass
from fnmatch import translate
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from laraman.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from laraman.config import Config

INCLUDES = ("*.py",)
EXCLUDES = (".*", ".py[cod]", ".sw.*", "~*")
#: Directories that hold nobody's own sources, wherever they are.
FOREIGN = frozenset({"__pycache__", "node_modules", "site-packages"})

#: What tells one content of a file from another without reading it. The inode, because a file may be replaced by one that is older.
Look = tuple[int, int, int, int]


class Patterns:
    """Glob patterns as `PurePath.match` has them: one without a slash is about the name, one with slashes about the last parts of the path."""

    def __init__(self, patterns: Iterable[str]) -> None:
        patterns = list(dict.fromkeys(patterns))
        self._names = re.compile("|".join(translate(pattern) for pattern in patterns if "/" not in pattern) or r"(?!)")
        self._paths = [pattern for pattern in patterns if "/" in pattern.rstrip("/")]

    def match(self, path: str) -> bool:
        return bool(self._names.match(os.path.basename(path))) or any(PurePath(path).match(pattern) for pattern in self._paths)


@dataclass(frozen=True)
class Sources:
    """The directories that are watched, without symbolic links in their own paths, and the rule for what is in them."""

    directories: tuple[str, ...]
    includes: Patterns
    literal: tuple[str, ...]
    excludes: Patterns
    excluded: tuple[str, ...]
    hidden: bool

    @classmethod
    def of(cls, config: Config) -> Sources:
        """As the options ``reload_*`` say. Raises ConfigError when a directory is none."""
        for name in config.reload_dirs:
            if not os.path.isdir(name):
                raise ConfigError(f"--reload-dir: there is no directory {name!r}")
        included = [pattern for pattern in config.reload_includes if pattern not in config.reload_excludes]
        excluded = _directories(config.reload_excludes)
        named = {*map(os.path.realpath, config.reload_dirs), *(os.path.realpath(name) for name in included if os.path.isdir(name))}
        watched = _outermost({*(named or {os.path.realpath(os.curdir)}), *_directories(config.reload_includes)})
        watched = [directory for directory in watched if not _is_in(directory, excluded)]
        includes = [*(pattern for pattern in INCLUDES if pattern not in config.reload_excludes), *included]
        excludes = [*(pattern for pattern in EXCLUDES if pattern not in config.reload_includes), *config.reload_excludes]
        return cls(
            directories=tuple(watched or [os.path.realpath(os.curdir)]),
            includes=Patterns(includes),
            literal=tuple(pattern for pattern in included if not glob.has_magic(pattern)),
            excludes=Patterns(excludes),
            excluded=tuple(excluded),
            hidden=".*" not in excludes,
        )

    def matter(self, path: str) -> bool:
        """Whether a change of this file is a reason to reload. The path is absolute."""
        if not self.includes.match(path):
            return False
        if path.endswith(self.literal):  # named, not described
            return True
        return not (self.excludes.match(path) or _is_in(path, self.excluded) or any(map(self._closed, self._parents(path))))

    def walk(self, *directories: str) -> Iterator[tuple[str, Look]]:
        """The files that matter in these directories, each once; what cannot be read is not there. Symbolic links are followed."""
        entered = set()
        left = list(directories)
        while left:
            directory = left.pop()
            try:
                found = os.stat(directory)
                if (found.st_dev, found.st_ino) in entered:  # a link that leads back
                    continue
                entered.add((found.st_dev, found.st_ino))
                with os.scandir(directory) as entries:
                    for entry in entries:
                        if self._is_directory(entry):
                            if not self._closed(entry.name) and entry.path not in self.excluded:
                                left.append(entry.path)
                        elif self.includes.match(entry.path) and (look := look_at(entry.path)) and self.matter(entry.path):
                            yield entry.path, look
            except OSError:
                continue

    def links(self) -> dict[str, Look]:
        """Those that matter and are links: what becomes of their targets the kernel does not tell who watches the directories of the links."""
        return {path: look for path, look in self.walk(*self.directories) if os.path.islink(path)}

    def _is_directory(self, entry: os.DirEntry[str]) -> bool:
        try:
            return entry.is_dir()
        except OSError:
            return False

    def _closed(self, name: str) -> bool:
        return name in FOREIGN or (name.startswith(".") and not self.hidden)

    def _parents(self, path: str) -> list[str]:
        """The names of the directories between a watched one and this file."""
        root = next((directory for directory in self.directories if path.startswith(os.path.join(directory, ""))), "")
        return path[len(root) :].strip(os.sep).split(os.sep)[:-1] if root else []


class Snapshot:
    """How the files were when they were last looked at."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._seen = dict(sources.walk(*sources.directories))

    def changes(self) -> list[str]:
        """The files that have come, gone or changed since."""
        before, self._seen = self._seen, dict(self._sources.walk(*self._sources.directories))
        if before == self._seen:
            return []
        return [path for path in before.keys() | self._seen.keys() if before.get(path) != self._seen.get(path)]


def look_at(path: str) -> Look | None:
    try:
        found = os.stat(path)
    except OSError:  # a link that leads nowhere, or it has just gone
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode


def _directories(patterns: Iterable[str]) -> set[str]:
    """The directories among what the patterns name."""
    # Not ".*", which is about files: each hidden directory would be one to watch.
    found = (path for pattern in patterns if pattern != ".*" for path in [pattern, *glob.glob(pattern, recursive=True)])
    return {os.path.realpath(path) for path in found if os.path.isdir(path)}


def _outermost(directories: set[str]) -> list[str]:
    return sorted(directory for directory in directories if not _is_in(str(Path(directory).parent), directories))


def _is_in(path: str, directories: Iterable[str]) -> bool:
    """Whether it is one of the directories, or in one of them."""
    return any(path == directory or path.startswith(os.path.join(directory, "")) for directory in directories)
