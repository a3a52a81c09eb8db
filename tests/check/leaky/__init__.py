"""An application that leaks in every way of the catalogue (seed-systems, B4), one endpoint for each row."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
APP, SERVICES = f"{__name__}.app", f"{__name__}.services"


@dataclass(frozen=True, slots=True)
class Leak:
    """What is to be found after ``route`` was played. In ``path`` a * stands for any number. ``prevented`` says why an operation of its own,
    as the server gives one to each request, does not leak that.
    """

    row: int
    path: str
    kind: str
    prevented: str = ""
    #: What changes with it.
    also: str = ""

    @property
    def route(self) -> str:
        return f"/leaks/{self.row}"

    def is_at(self, path: str) -> bool:
        return re.fullmatch(re.escape(self.path).replace(r"\*", r"\d+"), path) is not None

    @property
    def place(self) -> str:
        """file:line of the line with the comment ``leak`` and the row's number."""
        for file in sorted(HERE.glob("*.py")):
            for number, line in enumerate(file.read_text().splitlines(), 1):
                if re.search(rf"# leak {self.row}\b", line):
                    return f"{file.name}:{number}"
        raise LookupError(self.row)


LEAKS = {
    leak.row: leak
    for leak in (
        Leak(1, f"{APP}.LAST_USER", "rebound"),
        Leak(2, f"{APP}.VISITS", "grows"),
        Leak(3, f"{APP}.Report.owner", "rebound"),
        Leak(4, f"{SERVICES}.basket.owner", "rebound"),
        Leak(5, f"{APP}.add.__defaults__.into", "grows"),
        Leak(6, f"{APP}.tally.__closure__.visitors", "rebound"),
        Leak(7, f"{APP}.profile", "grows"),
        Leak(8, "app.state.user", "rebound"),
        Leak(9, "contextvars['tenant']", "rebound", "each operation has a context of its own"),
        Leak(10, "contextvars['settings']['owner']", "rebound"),
        Leak(11, f"{SERVICES}.per_thread[thread *]['user']", "rebound"),
        Leak(12, "tests.check.framework._active[thread *]['language']", "rebound"),
        Leak(13, f"{SERVICES}.engine.pool.checkedout()", "left open"),
        Leak(14, "process.environment", "changed"),
        Leak(15, "process.cwd", "changed"),
        Leak(16, "process.umask", "changed"),
        Leak(17, "process.locale", "changed"),
        Leak(18, "process.timezone", "changed", also="process.environment"),
        Leak(19, "process.warnings", "changed"),
        Leak(20, "process.logging", "changed"),
        Leak(21, "random.getstate()", "changed"),
        Leak(22, "process.recursion", "changed"),
        Leak(23, "process.signals", "changed"),
        Leak(24, "process.path", "changed"),
        Leak(25, "process.tracing", "changed"),
        Leak(26, f"tasks['{APP}.poll']", "left open"),
        Leak(27, "descriptors['/dev/null']", "left open"),
        Leak(28, "process.decimal", "changed"),
        Leak(29, f"objects['{APP}.Row']", "grows"),
        Leak(30, "textwrap.fill", "patched"),
    )
}
