"""A headless Chromium, driven by its DevTools protocol over a pipe: no port, no driver, no package but the browser.

The protocol: JSON messages that end in a NUL; the browser reads from descriptor 3 and writes to descriptor 4.
"""

import base64
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

from tests.support.programs import needed

PATIENCE = 30.0  # seconds that a page may take: the machine may be busy
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-breakpad",
         "--disable-features=OptimizationHints,Translate", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
         "--hide-scrollbars", "--window-size=1280,1600", "--remote-debugging-pipe")
KEY_CODES = {"Tab": 9, "Enter": 13, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39}
SHIFT, CTRL = 8, 2  # the protocol's numbers of modifiers
# Puts the two ends of our pipes where the browser looks for them: first out of the way, as they may be 3 or 4.
LAUNCHER = ("import fcntl, os, sys; ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]];"
            "os.dup2(ends[0], 3); os.dup2(ends[1], 4); os.execv(sys.argv[3], sys.argv[3:])")


class Browser:
    """A running browser, by the two ends of its pipes."""

    def __init__(self, to_browser, from_browser):
        self._to, self._from = to_browser, from_browser
        self._buffer, self._last = b"", 0
        self._readable = select.poll()
        self._readable.register(from_browser, select.POLLIN)

    @contextmanager
    def tab(self):
        """A tab that shares nothing with those before it: no storage, no cache, no permission."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        try:
            yield Page(self, context)
        finally:
            self.call("Target.disposeBrowserContext", browserContextId=context)

    def call(self, method, session=None, events=None, **parameters):
        """Call a method of the protocol and return its result; other messages of the session go to ``events``."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._last:
            if session and answer.get("sessionId") == session:
                events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _receive(self):
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            assert self._readable.poll(1000 * max(0, end - time.monotonic())), "the browser does not answer"
            received = os.read(self._from, 1 << 20)
            assert received, "the browser has ended"
            self._buffer += received
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


class Page:
    """A tab. ``events`` are all that the browser has sent about it, oldest first; ``context`` is its own."""

    def __init__(self, browser, context):
        self._browser, self.context = browser, context
        self.events = []
        target = browser.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """Call a method of the protocol for this tab and return its result."""
        return self._browser.call(method, self._session, self.events, **parameters)

    def evaluate(self, script):
        """The value of a JavaScript expression in the page; promises are awaited."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, script):
        """Poll an expression until it is true, and return its value."""
        end = time.monotonic() + PATIENCE
        while not (value := self.evaluate(script)):
            assert time.monotonic() < end, f"within {PATIENCE:g} s this did not come to be: {script}"
            time.sleep(0.05)
        return value

    def type(self, text):
        """Put text in where the focus is."""
        self.call("Input.insertText", text=text)

    def press(self, key, modifiers=0):
        """Press a key of KEY_CODES and let it go."""
        event = {"key": key, "code": key, "windowsVirtualKeyCode": KEY_CODES[key], "modifiers": modifiers}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **event, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def resize(self, width, height, scheme="light"):
        """Have a window of this size in CSS pixels, and a user who prefers ``scheme``."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def told(self, method):
        """The parameters of all events of a name."""
        return [event["params"] for event in self.events if event["method"] == method]

    def screenshot(self, path, whole=True):
        """Save the whole page, or what the window shows of it, as PNG or WebP: whichever the name of the file says."""
        picture = self.call("Page.captureScreenshot", format=path.suffix[1:], quality=36, captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(picture["data"]))


@contextmanager
def chromium(directory):
    """A browser that keeps its files in ``directory``."""
    program = needed("chromium", *NAMES)
    (browser_reads, to_browser), (from_browser, browser_writes) = os.pipe(), os.pipe()
    with open(directory / "chromium.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(browser_reads), str(browser_writes), program, *FLAGS,
             f"--user-data-dir={directory / 'profile'}"], pass_fds=(browser_reads, browser_writes),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, "HOME": str(directory)},
            start_new_session=True)
    os.close(browser_reads)
    os.close(browser_writes)
    try:
        yield Browser(to_browser, from_browser)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(to_browser)
        os.close(from_browser)
