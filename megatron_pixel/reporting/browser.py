"""A real browser without a window, for pictures of pages and for checks of them: Chromium over its debugging pipe."""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from megatron_pixel.config.errors import UserError

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 60.0
"""Seconds that the browser gets for an answer."""


def find_browser() -> str | None:
    """Path of a Chromium or Chrome on this machine."""
    return next((path for program in PROGRAMS if (path := shutil.which(program))), None)


class Browser:
    """One page in a headless Chromium, which talks through two pipes: no port, no driver, no package.

    Attributes:
        complaints: what went wrong on the page: errors of scripts, warnings, failed requests.
        requests: addresses that it asked for.

    Raises:
        UserError: there is no browser, or it does not answer.
    """

    def __init__(self) -> None:
        path = find_browser()
        if path is None:
            raise UserError(
                "no Chromium or Chrome was found; on Debian and Ubuntu: apt-get install chromium-headless-shell"
            )
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()

        def lay_pipes() -> None:
            # It reads from descriptor 3 and writes to 4; both numbers may be taken by the ends that are to be moved.
            source, sink = os.dup(theirs_in), os.dup(theirs_out)
            high_source, high_sink = os.dup2(source, 100), os.dup2(sink, 101)
            os.dup2(high_source, 3)
            os.dup2(high_sink, 4)

        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
        options += ["--no-first-run", "--disable-dev-shm-usage", f"--user-data-dir={self._profile.name}"]
        self._process = subprocess.Popen(
            [path, *options],
            preexec_fn=lay_pipes,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer = b""
        self._number = 0
        self._loaded = False
        self._session: str | None = None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def show(self, file: Path, width: int, dark: bool = False, height: int = 900) -> None:
        """Open a file in a window of ``width`` x ``height`` pixels, on a light or a dark screen."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._loaded = False
        self._call("Page.navigate", url=file.resolve().as_uri())
        end = time.monotonic() + PATIENCE
        while not self._loaded:
            self._receive(end)

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise ValueError(f"{expression}: {found['exceptionDetails'].get('text')}")
        return found["result"].get("value")

    def point(self, x: float, y: float) -> None:
        """Move the pointer."""
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def picture(self, path: Path, height: int | None = None) -> None:
        """Write a PNG of the whole page, or of its upper part."""
        width, whole = self.ask("[innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": min(whole, height or whole), "scale": 1}
        data = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        """End the browser."""
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)
        self._profile.cleanup()

    def __enter__(self) -> "Browser":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        end = time.monotonic() + PATIENCE
        while True:
            answer = self._receive(end)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise UserError(f"the browser refuses {method}: {answer['error'].get('message')}")
                return answer["result"]

    def _receive(self, end: float) -> dict[str, Any]:
        """The next message; what is told of the page is kept."""
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            part = os.read(self._in, 1 << 20) if ready else b""
            if not part:
                raise UserError(
                    "the browser does not answer" if self._process.poll() is None else "the browser has died"
                )
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        method, told = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(told["exceptionDetails"].get("text")))
        elif method == "Log.entryAdded":
            self.complaints.append(f"{told['entry']['level']}: {told['entry']['text']}")
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(f"console: {told.get('args')}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"][:200])
        elif method == "Network.loadingFailed":
            self.complaints.append(f"failed request: {told.get('errorText')}")
        return message
