"""A real browser for tests and benchmarks: headless Chromium, driven by chromedriver over the WebDriver protocol."""

from __future__ import annotations

import base64
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any

import psutil
import requests

from binsweep.tracking.processes import free_port

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars"
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element in WebDriver's JSON
KEYS = {"Tab": "\ue004", "Enter": "\ue007", "Escape": "\ue00c", "ArrowDown": "\ue015", "End": "\ue010"}


def missing() -> str:
    """What is not here for a browser; empty if all is."""
    chromium = which("chromium") or which("google-chrome")
    return "" if chromium and which("chromedriver") else "no chromium and chromedriver here"


class Browser:
    """One window. What a script logs, and what the page's policy refuses, is kept by the browser until `complaints`."""

    def __init__(self, url: str, driver: int) -> None:
        self._url, self._driver = url, driver

    def cpu_seconds(self) -> float:
        """What its processes have used of the cores."""
        family = psutil.Process(self._driver).children(recursive=True)
        return sum(sum(process.cpu_times()[:2]) for process in family)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        answer = requests.request(method, f"{self._url}{path}", json=body, timeout=120)
        value = answer.json()["value"]
        if not answer.ok:
            raise AssertionError(f"{path}: {value['error']}: {value['message'].splitlines()[0]}")
        return value

    def go(self, url: str) -> None:
        self._ask("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that a script returns, also one that it waits for."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def until(self, script: str, *arguments: Any, seconds: float = 40.0) -> Any:
        """What a script returns, as soon as that is true."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := self.run(script, *arguments):
                return found
            time.sleep(0.05)
        text = self.run("return document.body.innerText")
        raise AssertionError(f"not within {seconds:g} s: {script} {arguments}\n{text[:3000]}")

    def text(self) -> str:
        return str(self.run("return document.body.innerText"))

    def wait_for(self, text: str, seconds: float = 40.0) -> None:
        self.until("return document.body.innerText.includes(arguments[0])", text, seconds=seconds)

    def button(self, text: str) -> dict[str, str]:
        """The visible button or link of this text or label; in the dialog, while one is open."""
        found = self.until(
            "const all = (document.querySelector('dialog[open]') ?? document).querySelectorAll('button, a');"
            "const named = [...all].filter(e => !e.disabled && e.offsetParent !== null &&"
            " (e.textContent.trim() === arguments[0] || e.getAttribute('aria-label') === arguments[0]));"
            "return named[0] ?? null",
            text,
        )
        assert isinstance(found, dict)
        return found

    def press(self, text: str) -> None:
        """A click where the mouse would be: it fails if something lies above the button."""
        self._ask("POST", f"/element/{self.button(text)[ELEMENT]}/click", {})

    def fill(self, css: str, text: str) -> None:
        found = self._ask("POST", "/element", {"using": "css selector", "value": css})[ELEMENT]
        self._ask("POST", f"/element/{found}/clear", {})
        self._ask("POST", f"/element/{found}/value", {"text": text})

    def type(self, *keys: str) -> None:
        """Keys at whatever has the focus, by name or as characters."""
        actions = [
            {"type": kind, "value": KEYS.get(key, key)} for key in keys for kind in ("keyDown", "keyUp")
        ]
        self._ask("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def size(self, width: int, height: int, dark: bool | None = None) -> None:
        """The size of the page, as a phone or a screen has it."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._cdp("Emulation.setDeviceMetricsOverride", metrics)
        if dark is not None:
            feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            self._cdp("Emulation.setEmulatedMedia", {"features": [feature]})

    def _cdp(self, command: str, parameters: dict[str, Any]) -> Any:
        return self._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def picture(self, file: Path, whole: bool = False) -> None:
        """A screenshot of what is in sight, or of the whole page."""
        found = self._cdp("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": whole})
        file.write_bytes(base64.b64decode(found["data"]))

    def complaints(self) -> list[str]:
        """What the console has got since the last call."""
        return [
            f"{one['level']} {one['message']}" for one in self._ask("POST", "/se/log", {"type": "browser"})
        ]


@contextmanager
def browser() -> Iterator[Browser]:
    """A fresh browser with an empty profile; both processes end with the block."""
    port = free_port()
    with (
        tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile,
        subprocess.Popen(
            [str(which("chromedriver")), f"--port={port}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as driver,
    ):
        base = f"http://127.0.0.1:{port}"
        try:
            _wait(base)
            options = {
                "binary": which("chromium") or which("google-chrome"),
                "args": [*FLAGS.split(), f"--user-data-dir={profile}"],
            }
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            answer = requests.post(
                f"{base}/session", json={"capabilities": {"alwaysMatch": wanted}}, timeout=90
            )
            session = f"{base}/session/{answer.json()['value']['sessionId']}"
            try:
                yield Browser(session, driver.pid)
            finally:
                requests.delete(session, timeout=30)
        finally:
            driver.terminate()


def _wait(base: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if requests.get(f"{base}/status", timeout=2).json()["value"]["ready"]:
                return
        except (requests.RequestException, ValueError):
            time.sleep(0.1)
    raise AssertionError("chromedriver does not answer")
