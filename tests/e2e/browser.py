"""A headless Chromium, driven over the DevTools protocol."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.conftest import DEADLINE, wait_until

if TYPE_CHECKING:
    from pathlib import Path

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync "
    "--disable-dev-shm-usage --window-size=900,700 --remote-debugging-port=0"
).split()


def find_chromium() -> str:
    """Its path. Where it is not installed a user's test is skipped, and CI's fails."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    if os.environ.get("CI") == "true":
        pytest.fail("chromium is not installed")
    pytest.skip("chromium is not installed (apt-get install chromium)")


class Browser:
    """One process tree with a profile of its own, gone when ``close`` returns."""

    def __init__(self, directory: Path) -> None:
        self._process = subprocess.Popen(
            [find_chromium(), *FLAGS, f"--user-data-dir={directory / 'profile'}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._pages: list[Page] = []
        active = directory / "profile" / "DevToolsActivePort"
        port = wait_until(lambda: active.exists() and active.read_text().partition("\n")[0], what="the browser's port")
        self._url = f"http://127.0.0.1:{port}"

    def open(self, url: str, width: int = 900, height: int = 700) -> Page:
        """A tab with this page, loaded."""
        answer = httpx.put(f"{self._url}/json/new?about:blank", timeout=DEADLINE)
        page = Page(answer.json()["webSocketDebuggerUrl"], width, height)
        self._pages.append(page)
        page.go(url)
        return page

    def close(self) -> None:
        for page in self._pages:
            page.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # the others of its session
        self._process.wait(DEADLINE)


class Page:
    """One tab."""

    def __init__(self, debugger: str, width: int, height: int) -> None:
        self._connecting = connect(debugger, max_size=64 * 1024 * 1024, compression=None, proxy=None)
        self._socket = self._connecting.__enter__()
        self._number = 0
        self.call("Page.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)  # or only one tab at a time could be typed into
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; events in between are dropped."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        deadline = time.monotonic() + DEADLINE
        while True:
            answer = json.loads(self._socket.recv(timeout=max(0.0, deadline - time.monotonic())))
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def go(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'", what=f"{url} in the browser")

    def evaluate(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str, what: str = "") -> Any:
        """Ask until the answer is true, and return it."""
        return wait_until(lambda: self.evaluate(expression), what=what or expression)

    def text(self, selector: str) -> str:
        """Of the first element that matches."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    def texts(self, selector: str) -> list[str]:
        return list(self.evaluate(f"[...document.querySelectorAll({json.dumps(selector)})].map(element => element.innerText)"))

    def type(self, selector: str, text: str) -> None:
        """Put the text into this field and press Enter, as somebody with a keyboard does."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")
        self.call("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")

    def click(self, selector: str) -> None:
        """Where it is on the screen: what is hidden, or covered, is not clicked."""
        place = self.wait(
            f"(() => {{ const element = document.querySelector({json.dumps(selector)}); const box = element && element.getBoundingClientRect();"
            " return box && box.width && [box.x + box.width / 2, box.y + box.height / 2]; })()",
            what=f"{selector} on the page",
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        self._connecting.__exit__(None, None, None)
