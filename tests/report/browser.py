"""A headless Chromium driven over its debugging pipe (Chrome DevTools Protocol): pages from disk, no network, no driver."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CODES = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SWITCH = "QUANT_HARNESS_TEST_BROWSER"
"""The environment variable that is `none` where the browser that is there shall not be used: CI found that it draws nothing."""
LACKING = "no Chromium that draws pages is installed; add one with: apt-get install chromium"

READY = "document.documentElement?.dataset.ready === 'true'"
"""What the report's own script says once all is drawn."""


def find() -> str | None:
    """The program, or None where tests with a browser are skipped, for the reason LACKING."""
    if os.environ.get(SWITCH) == "none":
        return None
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab. `requests`: URLs asked for; `errors`: console errors, exceptions, violations of the page's policy."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._buffer = b""
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self.requests: list[str] = []
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def open(
        self, path: Path, *, width: int = 1400, height: int = 1000, dark: bool = False, fragment: str = "", ready: str = READY
    ) -> None:
        """Opens the page anew, with `#fragment` in its address, and waits until `ready` holds."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=path.as_uri() + (f"#{fragment}" if fragment else ""))
        self.wait(ready)

    def wait(self, condition: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not self.evaluate(condition):
            if time.monotonic() > end:
                raise TimeoutError(f"{condition} did not come true; errors: {self.errors}")
            time.sleep(0.05)

    def evaluate(self, script: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def choose(self, menu: str, value: str) -> None:
        found = self.evaluate(
            f"(() => {{ const m = document.getElementById({json.dumps(menu)}); m.value = {json.dumps(value)};"
            " m.dispatchEvent(new Event('change', {bubbles: true})); return m.value; })()"
        )
        assert found == value, f"{menu} has no choice {value!r}"
        self.wait("!document.documentElement.dataset.drawing")  # the chart follows the answer

    def press(self, *keys: str) -> None:
        """Presses keys one after another where the focus is."""
        for key in keys:
            for kind in ("keyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=CODES[key])

    def screenshot(self, path: Path, *, full: bool = True) -> None:
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)["data"]
        path.write_bytes(base64.b64decode(data))

    def call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                return answer["result"]
            self._event(answer)

    def _event(self, event: dict[str, Any]) -> None:
        kind, data = event.get("method", ""), event.get("params", {})
        if kind == "Network.requestWillBeSent":
            self.requests.append(data["request"]["url"])
        elif kind == "Runtime.exceptionThrown":
            details = data["exceptionDetails"]
            self.errors.append(str(details.get("exception", {}).get("description") or details.get("text")))
        elif kind == "Runtime.consoleAPICalled" and data["type"] in {"error", "assert", "warning"}:
            self.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in data["args"]))
        elif kind == "Log.entryAdded" and data["entry"]["level"] in {"error", "warning"}:
            self.errors.append(data["entry"]["text"])

    def _next(self) -> dict[str, Any]:
        with selectors.DefaultSelector() as selector:
            selector.register(self._read, selectors.EVENT_READ)
            while b"\0" not in self._buffer:
                if not selector.select(timeout=60):
                    raise TimeoutError("chromium does not answer")
                chunk = os.read(self._read, 1 << 16)
                if not chunk:
                    raise EOFError("chromium has ended")
                self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))


@contextlib.contextmanager
def page(program: str) -> Iterator[Page]:
    """A fresh browser with a profile of its own, ended on exit."""
    to_child, from_us = os.pipe()
    to_us, from_child = os.pipe()

    def pipes() -> None:  # the debugging pipe is file descriptors 3 (read) and 4 (write)
        os.dup2(to_child, 1023)
        os.dup2(from_child, 1022)
        os.dup2(1023, 3)
        os.dup2(1022, 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            program,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
        ]
        command += ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
        command += ["--disable-quic", "--host-resolver-rules=MAP * ~NOTFOUND", "about:blank"]
        process = subprocess.Popen(
            command,
            preexec_fn=pipes,
            close_fds=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_child)
        os.close(from_child)
        try:
            yield Page(to_us, from_us)
        finally:
            process.kill()
            process.wait()
            os.close(to_us)
            os.close(from_us)
