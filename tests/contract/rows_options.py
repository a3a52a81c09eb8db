"""1.1: every option of uvicorn's command with a value that is no default, as both commands understand it.

tests/config/test_uvicorn_options.py has what else there is to say of each: forms, defaults, variables, words.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from laraman.config import OPTIONS
from laraman.config.options import is_switch
from tests.config.test_uvicorn_options import COMPANIONS, OPTIONS_FLAG, PARAMETERS, field_of, ours, plain, sample, theirs
from tests.contract.table import Row

if TYPE_CHECKING:
    from tests.contract.scenes import Actor

HERE = Path(__file__).parent
#: Those that have to be there.
PATHS = {"reload_dirs": str(HERE), "env_file": str(HERE / "__init__.py"), "log_config": str(HERE / "__init__.py")}
#: uvicorn takes only whole seconds here.
WHOLE = ("timeout_keep_alive", "timeout_graceful_shutdown", "timeout_worker_healthcheck")


def words(name: str) -> tuple[list[str], Any]:
    """What stands on the command line, and what it means."""
    field = field_of(name)
    flag = OPTIONS_FLAG[field]
    if name == "app":
        return ["shop:app"], "shop:app"
    if is_switch(OPTIONS[field]):
        on = OPTIONS[field].default is not True
        return [flag if on else f"--no{flag[1:]}"], on
    text, value = (PATHS[name], PATHS[name]) if name in PATHS else ("7", 7) if name in WHOLE else sample(field)
    return [flag, text], [value] if isinstance(OPTIONS[field].default, tuple) else value


def row(name: str) -> Row:
    line, value = words(name)
    every = [*line, *(part for other, text in COMPANIONS.get(field_of(name), {}).items() for part in (OPTIONS_FLAG[other], text))]

    def do(actor: Actor) -> Any:
        if actor.name == "uvicorn":
            return plain(theirs(every if name == "app" else ["shop:app", *every])[name])
        return plain(getattr(ours(every), field_of(name)))

    parameter = PARAMETERS[name]
    return Row(f"1.1 {'APP' if name == 'app' else parameter.opts[0]}, 1.0 1", " ".join(line), do, value, on="")


ROWS = [row(name) for name in PARAMETERS if name not in ("version", "http2")]
