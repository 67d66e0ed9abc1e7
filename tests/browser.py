"""A headless Chromium for tests, spoken to by the DevTools protocol (version 1.3)."""

import asyncio
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import numpy as np


def found():
    """Path of Chromium or Chrome; None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


class Browser:
    """One tab. Everything that it asks the network for, and what its console says, is kept."""

    def __init__(self, program):
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            [
                program,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--remote-debugging-port=0",
                f"--user-data-dir={self._folder.name}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._loop = asyncio.new_event_loop()
        self._numbers = itertools.count(1)
        self.requests, self.errors = [], []
        self._socket = self._run(self._connect())
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    async def _connect(self):
        from tornado.httpclient import AsyncHTTPClient
        from tornado.websocket import websocket_connect

        noted = Path(self._folder.name, "DevToolsActivePort")
        for _ in range(200):
            if noted.exists() and (lines := noted.read_text().split()):
                break
            await asyncio.sleep(0.05)
        listed = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{lines[0]}/json")
        (tab,) = (each for each in json.loads(listed.body) if each["type"] == "page")
        return await websocket_connect(tab["webSocketDebuggerUrl"], max_message_size=1 << 28)

    def _run(self, task):
        return self._loop.run_until_complete(asyncio.wait_for(task, 60))

    def call(self, method, **params):
        """Call a method of the protocol and return its result."""
        return self._run(self._call(method, params))

    async def _call(self, method, params):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        await self._socket.write_message(json.dumps(message))
        while True:
            said = json.loads(await self._socket.read_message())
            match said.get("method"):
                case "Network.requestWillBeSent":
                    self.requests.append(said["params"]["request"]["url"])
                case "Runtime.exceptionThrown":
                    self.errors.append(said["params"]["exceptionDetails"])
                case "Log.entryAdded":
                    self.errors.append(said["params"]["entry"])
            if said.get("id") == number:
                assert "error" not in said, said
                return said["result"]

    def run(self, script):
        """Value of an expression in the page; of a promise, what it becomes."""
        result = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, script, seconds=30):
        """Wait until an expression is true, and return its value."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"{script} did not become true; {self.errors}"
            time.sleep(0.02)
        return value

    def open(self, path, address="", size=(1200, 800), scale=1):
        """Open a file, at a size in CSS pixels."""
        self.requests.clear()
        self.errors.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=size[0],
            height=size[1],
            deviceScaleFactor=scale,
            mobile=size[0] < 700,
        )
        self.call("Page.navigate", url="about:blank")
        self.mouse("Moved", 0, 0)  # away from where the last test left it
        self.call("Page.navigate", url=Path(path).resolve().as_uri() + address)
        self.until("document.documentElement?.dataset.state !== undefined")

    def key(self, name):
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if name == "Enter" and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=name, **text)

    def mouse(self, kind, x, y, **more):
        self.call("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, **more)

    def click(self, x, y):
        for kind in ("Pressed", "Released"):
            self.mouse(kind, x, y, button="left", clickCount=1)

    def text(self, selector):
        return self.run(f"document.querySelector({selector!r}).textContent")

    def picture(self, path=None):
        """Pixels of the window, (H, W, 3) uint8."""
        from PIL import Image

        # What was drawn last is on the screen when another frame begins.
        self.run("new Promise((d) => requestAnimationFrame(() => requestAnimationFrame(d)))")
        data = b64decode(self.call("Page.captureScreenshot")["data"])
        if path is not None:
            Path(path).write_bytes(data)
        return np.asarray(Image.open(BytesIO(data)).convert("RGB"))

    def close(self):
        self.call("Browser.close")
        self._process.wait(10)
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()
        self._folder.cleanup()
