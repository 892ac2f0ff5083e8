"""A Chromium that can be clicked and typed into, by chromedriver's own HTTP interface (W3C WebDriver)."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.report.chromium import CHROMIUM, FLAGS

CHROMEDRIVER = shutil.which("chromedriver")
needs_driver = pytest.mark.skipif(CHROMIUM is None or CHROMEDRIVER is None, reason="no chromium with chromedriver here "
                                  "(Debian's packages chromium and chromium-driver)")
KEYS = {"left": "\ue012", "right": "\ue014", "enter": "\ue007", "escape": "\ue00c", "tab": "\ue004"}


class Browser:
    """One window; use it in a `with`."""

    def __init__(self, width: int = 1000, height: int = 800, dark: bool = False) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.process = subprocess.Popen([str(CHROMEDRIVER), f"--port={port}"], stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        self.base = f"http://127.0.0.1:{port}"
        arguments = [*FLAGS, f"--user-data-dir={self.profile.name}", f"--window-size={width},{height}",
                     *(["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else [])]
        wanted = {"goog:chromeOptions": {"binary": CHROMIUM, "args": arguments}}
        self.session = self._started({"capabilities": {"alwaysMatch": wanted}})

    def _started(self, wanted: dict[str, Any]) -> str:
        for _ in range(100):
            try:
                return str(self._ask("POST", "/session", wanted)["sessionId"])
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        raise TimeoutError("chromedriver does not answer")

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *fault: object) -> None:
        try:
            self._ask("DELETE", f"/session/{self.session}")
        finally:
            self.process.terminate()
            self.process.wait()
            self.profile.cleanup()

    def open(self, page: Path, view: str = "") -> None:
        """Load a page; `view` is what stands behind # in the address."""
        self._ask("POST", f"/session/{self.session}/url", {"url": "about:blank"})
        self._ask("POST", f"/session/{self.session}/url", {"url": f"{page.resolve().as_uri()}#{view}"})

    def phone(self, width: int = 390, height: int = 844) -> None:
        """Show pages as a phone does; windows are never that narrow."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": True}
        self._ask("POST", f"/session/{self.session}/goog/cdp/execute",
                  {"cmd": "Emulation.setDeviceMetricsOverride", "params": size})

    def visit(self, address: str) -> None:
        """Load a page of a server."""
        self._ask("POST", f"/session/{self.session}/url", {"url": address})

    def until(self, script: str, seconds: float = 30) -> Any:
        """What a script returns as soon as that is true."""
        end = time.monotonic() + seconds
        while not (found := self.js(script)):
            if time.monotonic() > end:
                raise TimeoutError(f"{script} is still {found!r} after {seconds} s")
            time.sleep(0.05)
        return found

    def js(self, script: str) -> Any:
        """What a script returns."""
        return self._ask("POST", f"/session/{self.session}/execute/sync", {"script": script, "args": []})

    def settled(self, script: str) -> Any:
        """What a script returns once two frames later it still returns the same."""
        wait = """const done = arguments[arguments.length - 1];
            requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 20)));"""
        while True:
            found = self.js(script)
            self._ask("POST", f"/session/{self.session}/execute/async", {"script": wait, "args": []})
            if self.js(script) == found:
                return found

    def press(self, *keys: str) -> None:
        """Keys by name, or texts, to whatever has the focus."""
        actions = [{"type": kind, "value": one} for key in keys
                   for one in ([KEYS[key]] if key in KEYS else key) for kind in ("keyDown", "keyUp")]
        self._ask("POST", f"/session/{self.session}/actions",
                  {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def picture(self, path: Path) -> None:
        """A screenshot as PNG."""
        path.write_bytes(base64.b64decode(self._ask("GET", f"/session/{self.session}/screenshot")))
