"""What is found of uvicorn in a project's files, where, and what is said of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from laraman.doctor.uses import Use, find
from laraman.doctor.verdicts import BETTER, MISSING, SAME, of_keyword, of_name, of_option, of_variable

if TYPE_CHECKING:
    from pathlib import Path


def found(directory: Path, name: str, text: str) -> list[tuple[int, str, str]]:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return [(int(use.place.rpartition(":")[2]), use.kind, use.name) for use in find(directory)]


PYTHON = """
import uvicorn
import uvicorn.config as settings
from uvicorn.main import Server as S, run
from other import uvicorn_like
settings.LOGGING_CONFIG["formatters"]
S.handle_exit
uvicorn.run(
    "main:app",
    port=1,
    reload=True,
)
run(other, workers=2)
logging.getLogger("uvicorn.access")
os.environ["UVICORN_PORT"]
subprocess.run(["uvicorn", "main:app", "--host=::", "--http2"])
os.system("uvicorn main:app --workers 2 && other --option")
worker_class = "uvicorn.workers.UvicornWorker"
uvicorn_like.run(nothing=1)
"a text about uvicorn"
"""


def test_python(tmp_path: Path) -> None:
    assert sorted(found(tmp_path, "pkg/main.py", PYTHON)) == [
        (3, "name", "uvicorn.config"),
        (4, "name", "uvicorn.main.Server"),
        (4, "name", "uvicorn.main.run"),
        (6, "name", "uvicorn.config.LOGGING_CONFIG"),
        (7, "name", "uvicorn.main.Server.handle_exit"),
        (8, "name", "uvicorn.run"),
        (10, "argument", "port"),
        (11, "argument", "reload"),
        (13, "argument", "workers"),
        (14, "logger", "uvicorn.access"),
        (15, "variable", "UVICORN_PORT"),
        (16, "option", "--host"),
        (16, "option", "--http2"),
        (17, "option", "--workers"),
        (18, "name", "uvicorn.workers.UvicornWorker"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("Dockerfile", 'CMD ["uvicorn", "a:b", "--host", "::"]\nRUN pip --quiet\n', [(1, "option", "--host")]),
        ("Dockerfile.prod", "CMD uvicorn a:b \\\n  --port 80 \\\n  --reload\nRUN pip --quiet", [(2, "option", "--port"), (3, "option", "--reload")]),
        (
            "Dockerfile",
            "ENV WEB_CONCURRENCY=2\n# uvicorn --port 1\nRUN pip install uvicorn[standard] --upgrade\n",
            [(1, "variable", "WEB_CONCURRENCY")],
        ),
        ("Procfile", "web: gunicorn -k uvicorn.workers.UvicornWorker a:b", [(1, "name", "uvicorn.workers.UvicornWorker")]),
        ("compose.yml", "command:\n  - uvicorn\n  - a:b\n  - --port\n  - '80'\nother: --option", [(4, "option", "--port")]),
        ("web.service", "ExecStart=/opt/venv/bin/uvicorn a:b --uds /run/x; other --option", [(1, "option", "--uds")]),
        (
            "start.sh",
            "export UVICORN_WORKERS=2\nexec uvicorn a:b --fd 3 | tee --append log",
            [(1, "variable", "UVICORN_WORKERS"), (2, "option", "--fd")],
        ),
        ("logging.ini", "qualname=uvicorn.access", [(1, "logger", "uvicorn.access")]),
        ("broken.py", "this is no Python: uvicorn a:b --port", [(1, "option", "--port")]),
        ("notes.md", "uvicorn a:b --port 1", []),
        (".venv/x.py", "import uvicorn.config", []),
        ("node_modules/x.py", "import uvicorn.config", []),
    ],
)
def test_other_files(tmp_path: Path, name: str, text: str, expected: list[tuple[int, str, str]]) -> None:
    assert found(tmp_path, name, text) == expected


def test_an_environment_is_not_the_project_s(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "pyvenv.cfg").touch()
    assert found(tmp_path, "own/lib/x.py", "import uvicorn.config") == []


def test_what_cannot_be_read_or_decoded_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "dangling.py").symlink_to(tmp_path / "nowhere")
    (tmp_path / "bytes.sh").write_bytes(b"\xff\xfe uvicorn a:b --port 1")
    assert [use.name for use in find(tmp_path)] == ["--port"]


@pytest.mark.parametrize(
    ("verdict", "word", "advice"),
    [
        (of_option("--host"), SAME, ""),
        (of_option("--no-access-log"), SAME, ""),
        (of_option("--reload"), BETTER, "until the new is ready"),
        (of_option("--http2"), MISSING, "proxy"),
        (of_option("--hots"), MISSING, "'--host'"),
        (of_keyword("app"), SAME, ""),
        (of_keyword("ssl_context_factory"), SAME, ""),
        (of_keyword("nonsense"), MISSING, "nonsense"),
        (of_variable("WEB_CONCURRENCY"), SAME, ""),
        (of_variable("UVICORN_HEADERS"), SAME, ""),
        (of_variable("UVICORN_NONSENSE"), MISSING, "does not read"),
        (of_name("uvicorn.run"), SAME, "laraman.run"),
        (of_name("uvicorn.main.Server.handle_exit"), SAME, "laraman.Server"),
        (of_name("uvicorn.config.LOGGING_CONFIG"), SAME, "laraman.compat.uvicorn"),
        (of_name("uvicorn.workers.UvicornH11Worker"), SAME, "laraman.workers.LaramanH11Worker"),
        (of_name("uvicorn_worker.UvicornWorker"), SAME, "laraman.workers.LaramanWorker"),
        (of_name("uvicorn.protocols.http.h11_impl.H11Protocol"), MISSING, "insides"),
        (of_name("uvicorn.config.Nonsense"), MISSING, "insides"),
    ],
)
def test_verdicts(verdict: tuple[str, str], word: str, advice: str) -> None:
    assert verdict[0] == word
    assert advice in verdict[1]


def test_a_use_says_where(tmp_path: Path) -> None:
    found(tmp_path, "a/b.py", "import uvicorn\n\nuvicorn.run(a, http2=True)\n")
    assert Use("a/b.py:3", "argument", "http2", of_option("--http2")) in find(tmp_path)
