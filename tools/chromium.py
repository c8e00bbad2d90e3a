"""A page in a real browser: opened, asked, typed into, and taken a picture of.

Speaks the DevTools protocol with a headless Chromium over two pipes, so that nothing listens; all
names but loopback's are unknown to it. What the browser complains of (a policy that was broken, an
error of a script) is kept, and `complaints` gives it.
"""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
_FIRST_FREE = 10  # descriptors from here on are in nobody's way
_FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-gpu",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--password-store=basic",
)
_PLACED = (  # the browser reads orders from descriptor 3 and answers on 4
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4);"
    " os.execv(sys.argv[3], sys.argv[3:])"
)


class BrowserError(Exception):
    """The browser has ended, does not answer, or says that an order failed."""


def found() -> str | None:
    """The browser's program; None where there is none."""
    return next((path for path in map(shutil.which, NAMES) if path is not None), None)


class _Pipe:
    """Orders and what is answered: JSON, each ended by a zero byte."""

    def __init__(self, orders: int, answers: int, patience: float) -> None:
        self._orders, self._answers = orders, answers
        self._patience = patience
        self._read = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None, **params: Any) -> dict[str, Any]:
        """What comes of an order; the events on the way are kept."""
        self._number += 1
        order: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if session is not None:
            order["sessionId"] = session
        os.write(self._orders, json.dumps(order).encode() + b"\0")
        end = time.monotonic() + self._patience
        while True:
            message = self._next(end)
            if message.get("id") != self._number:
                self.events.append(message)
            elif "error" in message:
                raise BrowserError(f"{method}: {message['error'].get('message')}")
            else:
                result: dict[str, Any] = message["result"]
                return result

    def _next(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._answers], [], [], max(end - time.monotonic(), 0))
            more = os.read(self._answers, 1 << 16) if ready else b""
            if not more:
                raise BrowserError("the browser has ended" if ready else "no answer in time")
            self._read += more
        line, _, self._read = self._read.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message


class Page:
    """One tab."""

    def __init__(self, pipe: _Pipe, patience: float) -> None:
        self._pipe = pipe
        self._patience = patience
        target = pipe.call("Target.createTarget", None, url="about:blank")["targetId"]
        attached = pipe.call("Target.attachToTarget", None, targetId=target, flatten=True)
        self._session: str = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            self._call(f"{domain}.enable")

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._pipe.call(method, self._session, **params)

    def look(self, width: int, height: int, *, dark: bool = False, scale: float = 1.0) -> None:
        """The window's size, and the colours that its user likes."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str) -> None:
        """Goes there; `until` says when it is as far as one wants it."""
        answer = self._call("Page.navigate", url=url)
        if "errorText" in answer:
            raise BrowserError(f"{url}: {answer['errorText']}")

    def value(self, expression: str) -> Any:
        """What an expression (or what it promises) is in the page, as plain data."""
        answer = self._call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise BrowserError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def until(self, expression: str) -> Any:
        """Asks until it is true; BrowserError if it does not become so."""
        end = time.monotonic() + self._patience
        while True:
            with contextlib.suppress(BrowserError):  # the page may not be there yet
                found = self.value(expression)
                if found:
                    return found
            if time.monotonic() > end:
                raise BrowserError(f"never true: {expression}")
            time.sleep(0.02)

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self._call("Input.insertText", text=text)

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """A PNG of the page, or of what the window shows of it."""
        shot = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def requested(self) -> list[str]:
        """Every address that was asked for."""
        return [
            event["params"]["request"]["url"]
            for event in self._pipe.events
            if event.get("method") == "Network.requestWillBeSent"
        ]

    def forget(self) -> None:
        """What was asked for and complained of until now."""
        self.value("0")  # events that are on their way come first
        self._pipe.events.clear()

    def complaints(self) -> list[str]:
        """What the browser has complained of so far."""
        self.value("0")  # events that are on their way come first
        found = []
        for event in self._pipe.events:
            params = event.get("params", {})
            if event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
                found.append(str(params["entry"]["text"]))
            elif event.get("method") == "Runtime.exceptionThrown":
                found.append(str(params["exceptionDetails"]))
            elif event.get("method") == "Audits.issueAdded":
                found.append(str(params["issue"]["code"]))
        return found


@contextlib.contextmanager
def browser(patience: float = 60.0) -> Iterator[Page]:
    """A page of a browser of its own, which is gone afterwards. patience: seconds that an order,
    or `until`, may take. Raises BrowserError."""
    program = found()
    if program is None:
        raise BrowserError("no browser: apt install chromium")
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        theirs_in, ours_out = _pipe()
        ours_in, theirs_out = _pipe()
        for ours in (ours_in, ours_out):
            stack.callback(os.close, ours)
        flags = [*_FLAGS, f"--user-data-dir={directory}"]
        if os.geteuid() == 0:
            flags.append("--no-sandbox")  # which Chromium cannot have as root
        words = [sys.executable, "-S", "-c", _PLACED, str(theirs_in), str(theirs_out)]
        process = subprocess.Popen(
            [*words, program, *flags],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)  # so that the browser's end is heard
        os.close(theirs_out)
        pipe = _Pipe(ours_out, ours_in, patience)
        try:
            yield Page(pipe, patience)
        finally:
            with contextlib.suppress(BrowserError, OSError):
                pipe.call("Browser.close", None)
            _end(process)


def _pipe() -> tuple[int, int]:
    ends = []
    for end in os.pipe():
        ends.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE))
        os.close(end)
    return ends[0], ends[1]


def _end(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
