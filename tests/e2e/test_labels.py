"""The shop's labels: a picture is uploaded, task workers make small ones of it, and its page hears over the gateway how far that is."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from PIL import Image

from tests.conftest import DEADLINE, find_tool, wait_until
from tests.e2e.browser import Browser
from tests.e2e.test_examples import command
from tests.example import Guest, start_example

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Server

NUMBER = "0123456789abcdef" * 2


@pytest.fixture(scope="module")
def example(shared_server: Callable[..., Server]) -> Server:
    return start_example(shared_server)


@pytest.fixture
def client(example: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=example.url, timeout=20) as session:
        yield session


def image(width: int, height: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.effect_noise((width, height), 50).save(file, kind)
    return file.getvalue()


def test_pictures_are_made_of_an_upload_and_its_page_hears_how_far_it_is(example: Server, client: httpx.Client) -> None:
    with Guest(example, "ada") as ada:
        ada.say(type="watch", upload=NUMBER)
        ada.hear("watching", upload=NUMBER)
        sent = image(1600, 800)
        answer = client.post("/label", files={"file": ("label.png", sent)}, data={"watch": NUMBER}, headers={"accept": "application/json"})
        assert answer.status_code == 200
        assert [ada.hear("progress", upload=NUMBER)["done"] for _ in range(3)] == [1, 2, 3]
    label = answer.json()
    assert (label["name"], label["size"]) == ("label.png", len(sent))
    assert [(picture["name"], picture["width"], picture["height"]) for picture in label["pictures"]] == [
        *(("bag", 1200, 600), ("page", 480, 240), ("list", 96, 48))
    ]
    for picture in label["pictures"]:
        got = client.get(picture["url"])
        assert got.headers["content-type"] == "image/webp"
        with Image.open(io.BytesIO(got.content)) as found:
            assert found.size == (picture["width"], picture["height"])


def test_the_command_of_the_page(example: Server, tmp_path: Path) -> None:
    find_tool("curl")
    (tmp_path / "picture.png").write_bytes(image(50, 50))
    line = command("curl").replace("http://127.0.0.1:8000", example.url)
    answer = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE).stdout
    assert [picture["name"] for picture in json.loads(answer)["pictures"]] == ["bag", "page", "list"]


def test_a_form_without_a_script_gets_a_page(client: httpx.Client) -> None:
    page = client.post("/label", files={"file": ("label.jpg", image(50, 50, "JPEG"))})
    assert (page.status_code, page.text.count("<img ")) == (200, 3)


def test_pictures_are_to_be_forgotten(example: Server, client: httpx.Client) -> None:
    def waiting() -> int:
        return sum(row["queued"] for row in example.connections() if row.get("name") == "deferred tasks")

    before = waiting()
    assert client.post("/label", files={"file": ("label.png", image(50, 50))}).status_code == 200
    assert waiting() == before + 1


def test_a_killed_task_worker_fails_one_upload(example: Server, client: httpx.Client) -> None:
    for row in example.processes("task"):
        os.kill(row["pid"], signal.SIGKILL)
    wait_until(lambda: client.post("/label", files={"file": ("label.png", image(50, 50))}).status_code == 200, what="a label of the successors")


@pytest.mark.parametrize("request_", [{}, {"upload": 7}, {"upload": "x"}, {"upload": NUMBER.upper()}, {"upload": NUMBER + "\n"}])
def test_nobody_watches_what_is_no_upload(example: Server, request_: dict[str, Any]) -> None:
    with Guest(example, "bob") as bob:
        bob.say(type="watch", **request_)
        assert bob.hear("error")["code"] == "upload"


@pytest.mark.parametrize(
    ("files", "status", "text"),
    [
        ({"file": ("label.png", b"GIF89a, or not")}, 422, "this is no picture"),
        ({"file": ("label.png", b"")}, 422, "this is no picture"),
        ({"file": ("label.bmp", image(20, 20, "BMP"))}, 422, "this is no picture"),
        ({"file": ("label.png", image(200, 200)[:20_000])}, 422, "this picture is broken"),
        ({"file": ("label.png", image(10_000, 5_001, "GIF")[:100_000])}, 422, "this picture has more than 50 million pixels"),
        ({"file": ("label.png", bytes(5 * 1024 * 1024 + 1))}, 413, "a picture has 5 MiB at most"),
        ({"file": ("label.png", bytes(11 * 1024 * 1024))}, 413, "a picture has 5 MiB at most"),
        ({"file": (None, "no file")}, 422, "choose a file"),
    ],
)
def test_what_is_no_picture_is_said(client: httpx.Client, files: Any, status: int, text: str) -> None:
    answer = client.post("/label", files=files)
    assert (answer.status_code, answer.text) == (status, text)


@pytest.mark.parametrize("path", ["0" * 32 + "/bag", "0" * 32 + "/secret", "..%2F..%2Fetc/bag", "x/bag"])
def test_there_are_no_other_pictures(client: httpx.Client, path: str) -> None:
    assert client.get(f"/label/{path}").status_code == 404


def test_a_page_in_a_browser(example: Server, tmp_path: Path) -> None:
    browser = Browser(tmp_path)
    try:
        page = browser.open(f"{example.url}/label")
        page.evaluate(
            "new Promise(resolve => { const canvas = document.createElement('canvas'); canvas.width = 900; canvas.height = 600;"
            " canvas.getContext('2d').fillRect(9, 9, 99, 99); canvas.toBlob(blob => { const files = new DataTransfer();"
            " files.items.add(new File([blob], 'label.png')); document.querySelector('[type=file]').files = files.files; resolve(true); }); })"
        )
        page.click("#send button")
        page.wait("document.querySelector('#progress').textContent === '3 of 3 pictures'", what="the progress, over the gateway")
        page.wait("[...document.images].filter(image => image.complete && image.naturalWidth).length === 3", what="the pictures")
        assert page.texts("figcaption") == ["bag, 900 by 600", "page, 480 by 320", "list, 96 by 64"]
        picture = tmp_path / "label.png"
        page.screenshot(picture)
        assert picture.read_bytes().startswith(b"\x89PNG")
    finally:
        browser.close()
