"""``laraman.compat.uvicorn``: uvicorn's names, where it is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import laraman

#: Makes the interpreter one where uvicorn is not installed.
HIDDEN = """
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] == "uvicorn" else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Hiding, sys.meta_path)
"""


def fresh(code: str, *, hidden: bool) -> str:
    program = (HIDDEN if hidden else "") + code
    result = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=Path(laraman.__file__).parents[1], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_without_it_there_is_no_uvicorn() -> None:
    assert fresh("try:\n    import uvicorn\nexcept ImportError as exc:\n    print(exc)", hidden=True) == "No module named 'uvicorn'"


def test_every_name_is_there_and_is_laramans() -> None:
    code = (
        "import importlib, laraman.compat.uvicorn as compat\n"
        "for module, names in compat.MODULES.items():\n"
        "    for name in names:\n"
        "        getattr(importlib.import_module(module), name)\n"
        "import uvicorn, uvicorn.config, uvicorn.server, laraman\n"
        "from uvicorn.logging import TRACE_LOG_LEVEL\n"
        "print(uvicorn.Server is laraman.Server is uvicorn.server.Server, uvicorn.Config is laraman.Config is uvicorn.config.Config,"
        " uvicorn.run is laraman.run, TRACE_LOG_LEVEL, uvicorn.config.LOG_LEVELS['trace'], hasattr(uvicorn, 'nonsense'), 'run' in dir(uvicorn))"
    )
    assert fresh(code, hidden=True) == "True True True 5 5 False True"


def test_modules_are_there_without_being_imported() -> None:
    code = (
        "import laraman.compat.uvicorn, uvicorn\n"
        "uvicorn.config.LOGGING_CONFIG['formatters']['access']['fmt'] = '%(message)s'\n"
        "from laraman.log import LOGGING_CONFIG\n"
        "print(LOGGING_CONFIG['formatters']['access']['fmt'], uvicorn.logging.DefaultFormatter.__name__, uvicorn.middleware.wsgi.__name__)"
    )
    assert fresh(code, hidden=True) == "%(message)s DefaultFormatter uvicorn.middleware.wsgi"


def test_the_path_of_an_access_log_of_ones_own() -> None:
    rest = {"type": "http", "client": None, "method": "GET", "http_version": "1.1"}
    scopes = [{**rest, "path": "/a b/ü", "query_string": b""}, {**rest, "path": "/", "query_string": b"q=%20&r"}]
    code = f"from uvicorn.protocols.utils import get_path_with_query_string as get\nprint(*map(get, {scopes!r}))"
    assert fresh(f"import laraman.compat.uvicorn\n{code}", hidden=True) == fresh(code, hidden=False) == "/a%20b/%C3%BC /?q=%20&r"


def test_the_names_are_those_of_the_real_one() -> None:
    code = (
        "import importlib, laraman.compat.uvicorn as compat\n"
        "for module, names in compat.MODULES.items():\n"
        "    if module == 'uvicorn.workers': continue\n"  # it warns that it is a package of its own by now
        "    real = importlib.import_module(module)\n"
        "    print(*[f'{module}.{name}' for name in names if not hasattr(real, name)])"
    )
    assert fresh(code, hidden=False).split() == []


def test_the_real_one_stays_as_it_is() -> None:
    code = (
        "import uvicorn\nbefore = dict(vars(uvicorn)), dict(vars(uvicorn.Server))\n"
        "import laraman.compat.uvicorn as compat\n"
        "compat.MODULES['uvicorn.gone'] = {}\n"  # a module that the installed release has no more
        "try:\n    import uvicorn.gone\nexcept ImportError:\n    pass\nelse:\n    raise AssertionError('half of it is ours')\n"
        "print(before == (dict(vars(uvicorn)), dict(vars(uvicorn.Server))), 'site-packages' in uvicorn.__file__)"
    )
    assert fresh(code, hidden=False) == "True True"


def test_a_master_that_imports_it_stays_free_of_event_loops() -> None:
    code = "import laraman.compat.uvicorn, uvicorn, sys; uvicorn.Config; print(*{'asyncio', 'anyio'} & set(sys.modules))"
    assert fresh(code, hidden=True) == ""
