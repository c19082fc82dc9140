"""A headless Chromium for tests of pages, driven over its pipe for debuggers; nothing but the standard library.

    python tests/helpers/browser.py --install       # Debian's package, as root, with apt-get

Whatever it might ask the network for is refused, and what a page asks for is noted (`requests`).
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PACKAGES = ("chromium", "fonts-dejavu-core")
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--proxy-server=127.0.0.1:9", "--remote-debugging-pipe", "--hide-scrollbars",
)  # fmt: skip
SECONDS = 60.0  # for one answer of the browser


class BrowserError(Exception):
    """There is no browser, it cannot be installed, or it does not answer."""


def program() -> str | None:
    """The path of a Chromium; None if there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def install() -> None:
    """Install Chromium with apt-get where it is missing. Raises BrowserError where that is impossible."""
    if program():
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise BrowserError(
            f"No Chromium ({', '.join(NAMES)}). To install it needs root and apt-get: not both are here."
        )
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode != 0:
            raise BrowserError(f"`{' '.join(command)}` failed:\n{done.stdout[-3000:]}")
    if not program():
        raise BrowserError(f"{' '.join(PACKAGES)}: installed, and there is still no Chromium.")


class Browser:
    """`with Browser() as browser:` one page of a Chromium that keeps nothing.

    requests: the addresses that the page has asked for; refused: those of them that its policy stopped. messages: what
    it wrote to the console, violations of its policy included. dialogs: the texts of the windows that its scripts
    opened, each closed at once.
    """

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.refused: list[str] = []
        self._asked: dict[str, str] = {}
        self.messages: list[str] = []
        self.dialogs: list[str] = []
        self._number = 0
        self._session: str | None = None
        self._rest = b""
        self._loaded = 0

    def __enter__(self) -> Browser:
        if (path := program()) is None:
            raise BrowserError(f"No Chromium: none of {', '.join(NAMES)} is on the PATH.")
        self._folder = tempfile.TemporaryDirectory(prefix="browser-")
        read_here, self._write = os.pipe()
        self._read, write_here = os.pipe()
        for end in (read_here, write_here):
            os.set_inheritable(end, True)
        # The browser reads its orders from descriptor 3 and answers on 4.
        line = f'exec "$0" "$@" 3<&{read_here} 4>&{write_here}'
        flags = [*FLAGS, f"--user-data-dir={self._folder.name}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", line, path, *flags],
            pass_fds=(read_here, write_here), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, env={**os.environ, "HOME": self._folder.name},
        )  # fmt: skip
        os.close(read_here)
        os.close(write_here)
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._write)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # its own session: the browser and its helpers
        self._process.wait()
        os.close(self._read)
        for _ in range(20):  # its helpers may still be writing there
            shutil.rmtree(self._folder.name, ignore_errors=True)
            if not os.path.exists(self._folder.name):
                break
            time.sleep(0.1)
        self._folder.cleanup()

    def call(self, method: str, **given: Any) -> dict[str, Any]:
        """Give an order of Chrome's debugging protocol and return its answer. Raises BrowserError."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": given}
        if self._session and not method.startswith("Target."):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']}")
                return answer["result"]

    def open(self, address: str | Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Show a page (a path, or an address) in a window of this size, and wait until it is there."""
        phone = width < 600
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url="about:blank")  # an address that differs only behind "#" would load nothing
        self._wait()
        before = self._loaded
        url = address.resolve().as_uri() if isinstance(address, Path) else address
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + SECONDS
        while self._loaded == before and time.monotonic() < deadline:
            self._next()
        self._wait()

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page. Raises BrowserError if it throws."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise BrowserError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """Click the middle of the first element that a selector names, with a mouse."""
        find = f"const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
        middle = "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2];"
        place = self.evaluate(f"(() => {{ {find} {middle} }})()")
        for kind in ("mousePressed", "mouseReleased"):
            where = {"x": place[0], "y": place[1], "button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=kind, **where)

    def screenshot(self, path: Path, whole: bool = False) -> Path:
        """Write what is seen, or the whole page, as PNG."""
        clip: dict[str, Any] = {}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"clip": {**size, "scale": 1}}
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **clip)
        path.write_bytes(base64.b64decode(answer["data"]))
        return path

    def _wait(self) -> None:
        deadline = time.monotonic() + SECONDS
        while self.evaluate("document.readyState") != "complete" and time.monotonic() < deadline:
            time.sleep(0.02)

    def _next(self) -> dict[str, Any]:
        """The next message of the browser; events are noted on the way."""
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self._read, 1 << 20) if ready else b""
            if not piece:
                raise BrowserError("The browser has ended, or does not answer.")
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(line)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, told: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
            self._asked[told["requestId"]] = told["request"]["url"]
        elif event == "Network.loadingFailed" and told.get("blockedReason") == "csp":
            self.refused.append(self._asked.get(told["requestId"], ""))
        elif event == "Page.loadEventFired":
            self._loaded += 1
        elif event == "Log.entryAdded":
            self.messages.append(told["entry"]["text"])
        elif event == "Runtime.consoleAPICalled":
            self.messages.append(" ".join(str(each.get("value")) for each in told["args"]))
        elif event == "Runtime.exceptionThrown":
            self.messages.append(str(told["exceptionDetails"]))
        elif event == "Page.javascriptDialogOpening":
            self.dialogs.append(told["message"])
            self._number += 1
            order = {"id": self._number, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
            os.write(self._write, json.dumps({**order, "sessionId": self._session}).encode() + b"\0")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--install", action="store_true", required=True)
    parser.parse_args()
    try:
        install()
    except BrowserError as error:
        sys.exit(str(error))
