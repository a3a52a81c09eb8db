"""What is different between two snapshots of the heap, and which of the differences over several rounds are leaks.

A difference of two snapshots is no leak by itself: a cache that is filled, a connection that is made, a template that is compiled at its first use
change once and then stay. (What a user has sent and what stays is found by ``laraman.check.kept``.) How a difference is judged depends on what it
is, the ``rule`` of its node:

    (none)     changes in every round in which the user changes, or is larger after every round; a number that only rises is a counter
    counted    descriptors, tasks, threads, modules: more of them after every round
    held       living objects of a type: more after every round, and nothing else found that grows
    lasting    what the process has once for all (directory, locale): other than it was before the first request
    patched    a function or class of an imported module: other than it was before the first request
    open       connections checked out, transactions begun: more than before the first request, and never given back
    seeded     the state of ``random``: one that was there before is there again, so somebody puts it there
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

from laraman.check.kept import Kept
from laraman.check.outline import value_text
from laraman.check.process import Reading

if TYPE_CHECKING:
    from collections.abc import Iterator

    from laraman.check.heap import Snapshot
    from laraman.check.outline import Node

#: Of values with such names the text is not shown.
_SECRET = re.compile(r"key|secret|token|passw|passphrase|credential|cookie|authorization", re.IGNORECASE)
#: Characters from which a value of the environment is one that is recognised elsewhere.
SECRET_LENGTH = 6
#: Parts of an object that are shown, and how many characters of all.
_SHOWN, _LONGEST = 4, 120
#: Rounds that have to be compared with each other before anything is called a leak.
ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Change:
    """``path`` is not what it was. ``before`` and ``after`` are short texts without secrets; sizes are those of containers.

    ``kind``: "rebound" (the name leads to something else), "changed" (other elements), "grows", "shrinks", "patched" (a function or class was
    replaced).
    """

    path: str
    kind: str
    before: str
    after: str
    size_before: int | None = None
    size_after: int | None = None
    rule: str = ""
    bounded: bool = False
    #: A number that became a higher one.
    rises: bool = False

    @property
    def grew(self) -> bool:
        return self.size_before is not None and self.size_after is not None and self.size_after > self.size_before


@dataclass(frozen=True, slots=True)
class Finding:
    """A leak. ``place`` is "file:line in function" or "" (``laraman.check.locate`` finds it), ``rounds`` the sizes after each round, if it has one.

    ``kind`` is that of the change, or "left open", or "kept" (what one user has sent, for all who come later).
    """

    path: str
    kind: str
    before: str
    after: str
    request: str = ""
    place: str = ""
    rounds: tuple[int, ...] = ()


def diff(before: Snapshot, after: Snapshot) -> list[Change]:
    """Every difference, nearest to the modules first. What is below something that was replaced or has other elements is not told apart."""
    return list(_differences(before, after))


def _differences(before: Snapshot, after: Snapshot) -> Iterator[Change]:
    seen: set[tuple[int, int]] = set()
    names = sorted(name for name in after.roots.keys() & before.roots.keys() if after.roots[name].rule != "seeded")
    level = [(name, before.roots[name], after.roots[name]) for name in names]
    while level:
        below: list[tuple[str, Node, Node]] = []
        for path, old, new in level:
            if old is new or (old.form != "value" and (id(old), id(new)) in seen):
                continue
            if old.form != "value":
                seen.add((id(old), id(new)))
            change, goes_on = _compare(path, old, new)
            if change is not None:
                yield change
            if goes_on:
                below += [(path + label, child, new.children[label]) for label, child in old.children.items() if label in new.children]
        level = below


def _compare(path: str, old: Node, new: Node) -> tuple[Change | None, bool]:
    """What is different here, and whether to look below it."""
    if isinstance(old.token, Reading):
        texts = old.token.texts(new.token) if old.token != new.token else ("", "")
        return Change(path, "changed", *texts, rule=old.rule) if any(texts) else None, False
    if old.type != new.type or old.form != new.form or old.token != new.token:
        kind = "patched" if _is_code(old) and (old.rule == "patched" or "." in path) else "rebound"
        return _change(path, kind, old, new, rule="patched" if kind == "patched" else new.rule), False
    if old.form == "sequence":
        if _turned(old, new):
            return None, False
        if old.size == new.size and all(_same(one, new.children.get(label)) for label, one in old.children.items()):
            return None, True
        return _change(path, _kind(old, new), old, new), False
    counted = old.form in ("mapping", "set", "names", "cache", "size")
    if counted and (old.size != new.size or (old.form != "size" and old.children.keys() != new.children.keys())):
        return _change(path, _kind(old, new), old, new), True
    return None, old.form != "seen"


def _is_code(node: Node) -> bool:
    return node.type in ("function", "type") or node.type.startswith(("function ", "class ")) or node.rule == "patched"


def _same(one: Node, other: Node | None) -> bool:
    return other is not None and one.type == other.type and one.token == other.token


def _turned(old: Node, new: Node) -> bool:
    """Whether the same objects are there in another order: those of a pool that gives out one and takes it back. An order of values may mean more."""
    one, other = ([(child.where, str(child.token)) for child in node.children.values() if child.form != "value"] for node in (old, new))
    return len(one) == old.size == new.size and one != other and sorted(one) == sorted(other)


def _kind(old: Node, new: Node) -> str:
    if old.size is not None and new.size is not None and old.size != new.size:
        return "grows" if new.size > old.size else "shrinks"
    return "changed" if old.where == new.where != 0 else "rebound"


def _change(path: str, kind: str, old: Node, new: Node, rule: str = "") -> Change:
    texts = (describe(old, path), describe(new, path))
    if old.form in ("names", "mapping", "set") and kind == "grows":
        added = [label for label in new.children if label not in old.children]
        texts = (f"{old.size}", f"{new.size}: with {_cut(', '.join(_shown(label, new.children[label], path) for label in added[:_SHOWN]))}")
    return Change(path, kind, *texts, old.size, new.size, rule or new.rule, new.bounded, _rises(old, new))


def _rises(old: Node, new: Node) -> bool:
    return old.form == new.form == "value" and {old.type, new.type} <= {"int", "float"} and not isinstance(new.token, str) and new.token > old.token


# Texts ----------------------------------------------------------------------------------------------------------------------------


def describe(node: Node, path: str = "", depth: int = 2) -> str:
    """A node in at most 120 characters, made of what the snapshot has of it."""
    if node.text:
        return node.text if node.form != "size" else f"{node.size} {node.text}"
    if node.form == "value":
        return "(not shown)" if _is_secret(node, path) else value_text(node)
    if node.form == "size":
        return f"{node.size} {node.type}"
    if node.form == "cache":
        return f"{node.size} in the cache"
    if node.form in ("object", "pool", "seen") or depth == 0:
        return f"<{node.type}>" if node.size is None else f"<{node.type} of {node.size}>"
    shown = list(node.children.items())[-_SHOWN:]
    inner = ", ".join(_shown(label, child, path, depth - 1, named=node.form != "sequence") for label, child in shown)
    if len(node.children) > _SHOWN:
        inner = f"..., {inner}"
    if node.form == "names":
        return _cut(f"{node.type.rpartition('.')[2]}({inner})")
    return _cut(f"[{inner}]" if node.form == "sequence" else f"{{{inner}}}")


def _is_secret(node: Node, path: str) -> bool:
    """Whether it is a value of a name like that, or one of those that the environment has under such names."""
    if node.type not in ("str", "bytes", "int"):
        return False
    return _SECRET.search(path) is not None or (node.type != "int" and any(secret in str(node.token) for secret in _secrets_of_environment()))


@cache
def _secrets_of_environment() -> tuple[str, ...]:
    return tuple(value for name, value in os.environ.items() if _SECRET.search(name) and len(value) >= SECRET_LENGTH)


def _shown(label: str, child: Node, path: str, depth: int = 1, *, named: bool = True) -> str:
    text = describe(child, path + label, depth)
    if label.startswith("{"):
        return text
    return f"{label.strip('.[]')}: {text}" if named else text


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]}...{text[-1]}"


# Rounds ---------------------------------------------------------------------------------------------------------------------------


class Series:
    """Snapshots around the rounds of one request, or of one list of requests.

        series = Series(heap.snapshot(), request="GET /orders")      # BEFORE the request is played for the first time
        for user in ("alice", "bob", "alice", "bob", "alice"):       # users take turns; four rounds at least
            await play(user)
            series.add(heap.snapshot(), user)
        series.findings()
    """

    def __init__(self, base: Snapshot, request: str = "") -> None:
        self.request = request
        self._snapshots = [base]
        self._users: list[str] = []
        self._states = [_states(base)]
        self._steps: list[dict[str, Change]] = []
        self._kept = Kept(base.roots)

    def add(self, snapshot: Snapshot, user: str = "") -> None:
        """After one round that ``user`` has played."""
        self._steps.append({change.path: change for change in diff(self._snapshots[-1], snapshot)})
        self._snapshots = [self._snapshots[0], snapshot]
        self._users.append(user)
        self._kept.add(snapshot.roots, user)
        self._states.append(_states(snapshot))

    def findings(self) -> list[Finding]:
        """The leaks, by path. Raises ValueError when there were too few rounds to tell."""
        if len(self._steps) < ROUNDS:
            raise ValueError(f"{len(self._steps)} rounds are too few: a leak has to be seen in {ROUNDS}")
        total = {change.path: change for change in diff(*self._snapshots)}
        found = [finding for path, change in self._changes(total).items() if (finding := self._judge(path, change, total.get(path)))]
        found = [*_without_consequences(found), *self._seeded()]
        return sorted([*found, *self._of_one_user([finding.path for finding in found])], key=lambda finding: finding.path)

    def _of_one_user(self, paths: list[str]) -> Iterator[Finding]:
        """What stays of one user, where nothing else was found."""
        for path, owner in self._kept.after(ROUNDS).items():
            if not any(path == other or _below(path, other) for other in paths):
                before, after = _node_at(path, self._snapshots[0]), _node_at(path, self._snapshots[1])
                text = describe(after, path) if after is not None else ""
                yield Finding(path, "kept", "-" if before is None else describe(before, path), f"{owner}'s {text}", self.request)

    def _seeded(self) -> Iterator[Finding]:
        for path in self._states[0]:
            states = [state[path] for state in self._states if path in state]
            if len(set(states)) < len(states):
                yield Finding(path, "changed", "a state", "a state that was there before: somebody calls seed() or setstate()", self.request)

    def _changes(self, total: dict[str, Change]) -> dict[str, Change]:
        """The latest change of each path."""
        latest = dict(total)
        for step in self._steps:
            latest.update(step)
        return latest

    def _judge(self, path: str, change: Change, total: Change | None) -> Finding | None:
        if change.rule in ("lasting", "patched"):
            return self._finding(total, total.kind) if total is not None else None
        if change.rule == "open":
            return self._finding(total, "left open") if total is not None and total.grew else None
        # The first round is the one that fills caches, so that what counts begins behind it.
        steps = [step.get(path) for step in self._steps[1:]]
        if all(step is not None and step.grew for step in steps):
            if change.bounded:
                return None
            return self._finding(total or change, "left open" if change.rule == "counted" else "grows", steps)
        if change.rule in ("counted", "held") or change.bounded or change.kind in ("grows", "shrinks"):
            return None
        if all(step is not None and step.rises for step in steps):
            return None  # a counter, the time of the last request: it takes no more room, and is nobody's
        turned = [step for step, (one, other) in zip(steps, pairwise(self._users), strict=True) if one != other or len(set(self._users)) == 1]
        return self._finding(change, change.kind) if len(turned) >= ROUNDS - 1 and all(step is not None for step in turned) else None

    def _finding(self, change: Change, kind: str, steps: list[Change | None] | None = None) -> Finding:
        sizes = tuple(step.size_after for step in steps or [] if step is not None and step.size_after is not None)
        first = (steps[0].size_before,) if steps and steps[0] is not None and steps[0].size_before is not None else ()
        return Finding(change.path, kind, change.before, change.after, self.request, "", first + sizes)


def _node_at(path: str, snapshot: Snapshot) -> Node | None:
    """What a path leads to; None when it leads nowhere."""
    level = [(name, node) for name, node in snapshot.roots.items()]
    while level:
        below = []
        for name, node in level:
            if name == path:
                return node
            if path.startswith(name):
                below += [(name + label, child) for label, child in node.children.items()]
        level = below
    return None


def _states(snapshot: Snapshot) -> dict[str, object]:
    return {path: node.token for path, node in snapshot.roots.items() if node.rule == "seeded"}


def _without_consequences(found: list[Finding]) -> list[Finding]:
    """Without what follows from another finding: what is below it, and living objects of a type where something else grows."""
    paths = {finding.path for finding in found}
    replaced = [finding.path for finding in found if finding.kind in ("rebound", "changed")]
    grows = any(finding.kind in ("grows", "left open") and not finding.path.startswith("objects") for finding in found)
    kept = []
    for finding in found:
        if finding.path in ("descriptors", "tasks", "threads", "objects"):
            if any(path.startswith(f"{finding.path}[") for path in paths):
                continue
        elif any(_below(finding.path, path) for path in replaced):
            continue
        if finding.path.startswith("objects") and grows:
            continue
        kept.append(finding)
    return kept


def _below(path: str, other: str) -> bool:
    return len(path) > len(other) and path.startswith(other) and path[len(other)] in ".[{("
