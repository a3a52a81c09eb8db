"""What is known of uvicorn's options, variables and names, and what laraman does with each."""

from __future__ import annotations

import re
from typing import NamedTuple

from laraman.compat.uvicorn import MODULES
from laraman.config import OPTIONS, env_names
from laraman.config.options import did_you_mean, flags

SAME, BETTER, MISSING = "same", "better", "not available"


class Verdict(NamedTuple):
    """What laraman does with it; ``advice`` is what to do, empty for nothing."""

    word: str
    advice: str = ""


_FLAGS = {flag: option for option in OPTIONS.values() if option.metadata["flags"] is not None for flag in flags(option)}
_VARIABLES = {name for option in OPTIONS.values() for name in env_names(option)}
#: Where laraman does more than is asked for.
_BETTER = {
    "reload": "the old code answers until the new is ready",
    "workers": "also `auto`; blocked workers are replaced",
    "limit_max_requests": "the successor is ready first",
    "timeout_graceful_shutdown": "8 s without the option",
    "timeout_worker_healthcheck": "sees a blocked event loop, too",
    "log_config": "an error says file and line",
    "h11_max_incomplete_event_size": "with every parser",
    "reset_contextvars": "requests are apart without it",
}


def of_option(flag: str) -> Verdict:
    option = _FLAGS.get(flag) or _FLAGS.get(f"--{flag[5:]}" if flag.startswith("--no-") else flag)
    if option is None:
        return Verdict(MISSING, f"laraman has no {flag}{did_you_mean(flag, _FLAGS)}")
    if option.name == "http2":
        return Verdict(MISSING, "let the proxy in front speak HTTP/2")
    return Verdict(BETTER, _BETTER[option.name]) if option.name in _BETTER else Verdict(SAME)


def of_keyword(name: str) -> Verdict:
    """An argument of ``uvicorn.run`` and ``uvicorn.Config``."""
    if name in ("app", "headers", "callback_notify", "timeout_notify"):
        return Verdict(SAME)
    option = OPTIONS.get(name)
    if option is None:
        return Verdict(MISSING, f"laraman has no {name}{did_you_mean(name, OPTIONS)}")
    return of_option("--http2") if name == "http2" else Verdict(BETTER, _BETTER[name]) if name in _BETTER else Verdict(SAME)


def of_variable(name: str) -> Verdict:
    return Verdict(SAME) if name in _VARIABLES else Verdict(MISSING, f"laraman does not read it{did_you_mean(name, _VARIABLES)}")


def of_logger(name: str) -> Verdict:
    return Verdict(SAME, "laraman's loggers have uvicorn's names")


def of_name(name: str) -> Verdict:
    """A name within uvicorn, with dots."""
    if worker := re.fullmatch(r"uvicorn(?:\.workers|_worker)\.Uvicorn(H11)?Worker", name):
        return Verdict(SAME, f"gunicorn -k laraman.workers.Laraman{worker[1] or ''}Worker")
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        module, rest = ".".join(parts[:count]), parts[count:]
        if module in MODULES:
            if not rest or rest[0] in MODULES[module]:
                return _at_home(rest[0] if rest else "", module)
            break
    return Verdict(MISSING, "laraman's insides are others; an issue with what it is needed for is welcome")


def _at_home(name: str, module: str) -> Verdict:
    if name in ("run", "Config", "Server", "main") or module == "uvicorn":
        return Verdict(SAME, f"laraman.{name}" if name else "import laraman")
    return Verdict(SAME, "`import laraman.compat.uvicorn` gives laraman's under this name, where uvicorn is not installed")
