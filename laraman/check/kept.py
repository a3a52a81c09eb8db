"""Whose word is where: what a user has sent and another user's operations find, however often they are played.

What is set once and then stays changes no more, so that no series of rounds shows it: the first user in a singleton that takes its user from
whoever comes first. But who plays a check signs everything that is sent (``play.User``), so that what is left of one of them has a name on it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict, deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from laraman.check.outline import Node

#: Characters of a text in which a sign is looked for, elements of a container, and containers in each other, of objects of other people's types.
LOOKED, ELEMENTS, DEPTH = 65_536, 100, 4
#: Containers in which each user may have a place.
_PLACES = ("mapping", "set", "sequence")
_HOLDS = (list, tuple, set, frozenset)


class Signs:
    """What users are recognised by: their words, with their names."""

    def __init__(self, users: Mapping[str, str]) -> None:
        self._users = users
        pattern = "|".join(map(re.escape, users)) or "(?!)"
        self._text, self._bytes = re.compile(pattern, re.IGNORECASE), re.compile(pattern.encode(), re.IGNORECASE)

    def within(self, obj: Any, depth: int = DEPTH) -> frozenset[str]:
        """The names of those whose words are in a text, or in the builtin containers of texts that this is."""
        kind = type(obj)
        if kind is str:
            return frozenset({self._users[word.lower()] for word in self._text.findall(obj[:LOOKED])})
        if kind is bytes:
            return frozenset({self._users[word.decode().lower()] for word in self._bytes.findall(obj[:LOOKED])})
        if not depth or (kind is not dict and not any(kind is one for one in _HOLDS)):
            return frozenset()
        held: Iterable[Any] = [part for pair in list(obj.items())[:ELEMENTS] for part in pair] if kind is dict else list(obj)[:ELEMENTS]
        return frozenset().union(*(self.within(part, depth - 1) for part in held))


class Kept:
    """What stays of one user in the snapshots after several rounds, which users have played in turns."""

    def __init__(self, base: Mapping[str, Node]) -> None:
        self._before = {path for path, _, _ in _signed(base)}
        self._last: dict[str, str] = {}
        self._rounds: Counter[str] = Counter()
        self._places: dict[str, tuple[tuple[str, str], ...]] = {}
        self._users: set[str] = set()

    def add(self, roots: Mapping[str, Node], user: str) -> None:
        """After a round that ``user`` has played."""
        self._users.add(user)
        found = {path: (owner, places) for path, owner, places in _signed(roots)}
        self._rounds = Counter({path: self._rounds[path] + 1 if self._last.get(path) == owner else 1 for path, (owner, _) in found.items()})
        self._last = {path: owner for path, (owner, _) in found.items()}
        self._places = {path: places for path, (_, places) in found.items()}

    def after(self, rounds: int) -> dict[str, str]:
        """Whose it is, by path, of what has been the same user's since so many rounds.

        A container in which each user has a place of their own (sessions, a cache by user, the last ten requests) keeps what it is there to
        keep: who asks for one's own place does not come to another's.
        """
        if len(self._users) < 2:
            return {}
        stays = {path: self._last[path] for path, count in self._rounds.items() if count >= rounds and path not in self._before}
        owners: defaultdict[str, dict[str, set[str]]] = defaultdict(dict)
        for path, owner in stays.items():
            for place, label in self._places[path]:
                owners[place].setdefault(label, set()).add(owner)
        return {path: owner for path, owner in stays.items() if not any(_has_own(owners[at], label, owner) for at, label in self._places[path])}


def _has_own(owners: Mapping[str, set[str]], label: str, owner: str) -> bool:
    return owners[label] == {owner} and any(others - {owner} for other, others in owners.items() if other != label)


def _signed(roots: Mapping[str, Node]) -> Iterator[tuple[str, str, tuple[tuple[str, str], ...]]]:
    """Path and user of what is signed by one user alone, and the containers on the way with the place in each. The nearest to the roots first.

    Left out is what has a bound (``deque(maxlen=...)``), because it is made to keep what was, for a time; and a ``lru_cache`` with
    arguments is not looked into at all: an entry is found only by who asks for the same.
    """
    queue: deque[tuple[str, Node, tuple[tuple[str, str], ...]]] = deque((name, node, ()) for name, node in roots.items())
    seen: set[int] = set()
    while queue:
        path, node, places = queue.popleft()
        if len(node.signs) == 1:
            yield path, next(iter(node.signs)), places
        if id(node) in seen or (node.bounded and node.form != "cache"):
            continue
        seen.add(id(node))
        here = node.form in _PLACES
        queue += [(path + label, child, (*places, (path, label)) if here else places) for label, child in node.children.items()]
