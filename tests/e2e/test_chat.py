"""The chat's page in a real browser: what people do, and what they must not notice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.conftest import DEADLINE, wait_until
from tests.e2e.browser import Browser, Page
from tests.e2e.tools import wait_workers, workers
from tests.example import start_example

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Server


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    running = Browser(tmp_path)
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
def example(server: Callable[..., Server]) -> Server:
    return start_example(server)


def enter(browser: Browser, server: Server, nick: str, room: str = "lobby") -> Page:
    page = browser.open(f"{server.url}/chat?room={room}")
    page.type("#nick", nick)
    online(page)
    return page


def online(page: Page) -> None:
    page.wait("document.querySelector('#state').dataset.state === 'online'", what="the page's connection")


def said(page: Page) -> list[str]:
    """The texts on the page, without those that wait for their receipt."""
    return page.texts("#messages li:not(.waiting):not(.note) p")


def hears(page: Page, text: str) -> None:
    wait_until(lambda: text in said(page), what=f"{text!r} on the page")


def test_two_pages_chat(example: Server, browser: Browser, tmp_path: Path) -> None:
    ada, bob = enter(browser, example, "ada"), enter(browser, example, "bob")
    for page in (ada, bob):
        wait_until(lambda page=page: [name.split()[0] for name in page.texts("#members li")] == ["ada", "bob"], what="both names")
    ada.type("#text", "Good morning! Has anybody tried the new Nyeri?")
    hears(bob, "Good morning! Has anybody tried the new Nyeri?")
    bob.type("#text", "<b>Yes</b>, blackcurrant. <img src=x onerror=\"document.title='broken'\">")
    hears(ada, "<b>Yes</b>, blackcurrant. <img src=x onerror=\"document.title='broken'\">")
    assert httpx.post(f"{example.url}/api/rooms/lobby/messages", json={"from": "the kitchen", "text": "Cake is out."}, timeout=10).status_code == 202
    for page in (ada, bob):
        hears(page, "Cake is out.")
        assert page.evaluate("document.title") == "Chat · Long Pour"
    picture = Path(os.environ.get("LARAMAN_SCREENSHOT") or tmp_path / "chat.png")
    ada.screenshot(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_private_message_is_seen_by_its_target_alone(example: Server, browser: Browser) -> None:
    ada, bob, eve = (enter(browser, example, nick) for nick in ("ada", "bob", "eve"))
    ada.click("#members button[title='Write to bob alone']")
    ada.type("#text", "Between us")
    for page in (ada, bob):
        hears(page, "Between us")
    assert httpx.post(f"{example.url}/api/users/bob/messages", json={"text": "Your cup is ready."}, timeout=10).status_code == 202
    hears(bob, "Your cup is ready.")
    ada.click("#to")
    ada.type("#text", "To all")
    hears(eve, "To all")
    assert said(eve) == ["To all"]
    assert "Your cup is ready." not in said(ada)


def test_rooms_are_apart(example: Server, browser: Browser) -> None:
    ada, bob = enter(browser, example, "ada"), enter(browser, example, "bob")
    bob.click("[data-room=huila]")
    bob.wait("document.querySelector('#title').textContent === 'Huila'")
    ada.wait("document.querySelector('#count').textContent === '1'")
    ada.type("#text", "anybody?")
    hears(ada, "anybody?")
    bob.click("[data-room=lobby]")
    wait_until(lambda: bob.text("#count") == "2", what="both in the room")
    ada.type("#text", "welcome back")
    hears(bob, "welcome back")
    assert said(bob) == ["welcome back"]


def test_a_taken_nickname_asks_for_another(example: Server, browser: Browser) -> None:
    enter(browser, example, "ada")
    other = browser.open(f"{example.url}/chat")
    other.type("#nick", "ada")
    other.wait("document.querySelector('#refused').textContent.includes('already')")
    other.evaluate("document.querySelector('#nick').value = ''")
    other.type("#nick", "ada lovelace")
    online(other)


def test_a_reload_is_not_noticed(example: Server, browser: Browser) -> None:
    """Every message that is said meanwhile arrives once and in order, and neither page loses its connection."""
    ada, bob = enter(browser, example, "ada"), enter(browser, example, "bob")
    old = set(workers(example))
    reload = subprocess.Popen([sys.executable, "-m", "laraman", "reload"], cwd=example.directory, env=example.environ, stdout=subprocess.DEVNULL)
    sent = say_while(ada, lambda: reload.poll() is None)
    assert reload.wait(DEADLINE) == 0
    wait_workers(example, 2, without=old)
    sent += say_while(ada, lambda: False, start=len(sent))
    for page in (ada, bob):
        hears(page, sent[-1])
        assert said(page) == sent
        assert page.texts("#messages .note") == []


def test_killed_workers_lose_nothing_that_was_said(example: Server, browser: Browser) -> None:
    ada, bob = enter(browser, example, "ada"), enter(browser, example, "bob")
    victim, *_ = workers(example)
    os.kill(victim, signal.SIGKILL)
    sent = say_while(ada, lambda: victim in workers(example))
    victims = wait_workers(example, 2, without={victim})
    for pid in victims:
        os.kill(pid, signal.SIGSTOP)
    sent += say_while(ada, lambda: False, start=len(sent))  # lies in a worker that will never look at it: the page has to say it again
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    sent += say_while(ada, lambda: bool({*victims} & {*workers(example)}), start=len(sent))
    wait_workers(example, 2, without={*victims})
    sent += say_while(ada, lambda: False, start=len(sent))
    for page in (ada, bob):
        wait_until(lambda page=page: {*said(page)} == {*sent}, what="everything that was said")
        assert sorted(said(page)) == sorted(sent)  # each once; what had to be said again may be late
        assert page.texts("#messages .note") == []


def test_pages_come_back_after_a_restart(example: Server, browser: Browser) -> None:
    ada, bob = enter(browser, example, "ada"), enter(browser, example, "bob", "huila")
    for page in (ada, bob):
        page.evaluate("window.same = true")
    assert example.cli("restart").returncode == 0
    for page in (ada, bob):
        page.wait("document.querySelector('#messages').innerText.includes('Reconnected')", what="the new connection")
        online(page)
        assert page.evaluate("window.same"), "the page was loaded anew"
    assert (ada.text("#title"), bob.text("#title")) == ("The counter", "Huila")
    bob.click("[data-room=lobby]")
    wait_until(lambda: ada.text("#count") == "2", what="both in the room")
    bob.type("#text", "still here")
    hears(ada, "still here")


def test_on_a_phone_everything_is_within_reach(example: Server, browser: Browser) -> None:
    phone = browser.open(f"{example.url}/chat?nick=ada", 390, 780)
    online(phone)
    phone.type("#text", "x" * 500)
    hears(phone, "x" * 500)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    assert phone.evaluate("document.querySelector('#composer').getBoundingClientRect().bottom") <= 780
    phone.click("[data-room=sidamo]")
    phone.wait("document.querySelector('#title').textContent === 'Sidamo'")


def say_while(page: Page, goes_on: Callable[[], bool], start: int = 0) -> list[str]:
    """Say numbers, at least one, ten a second, as long as it goes on; what was said."""
    sent: list[str] = []
    deadline = time.monotonic() + DEADLINE
    while True:
        sent.append(f"number {start + len(sent)}")
        page.type("#text", sent[-1])
        if not goes_on():
            return sent
        assert time.monotonic() < deadline, "it did not come to an end"
        time.sleep(0.1)
