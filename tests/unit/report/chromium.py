"""A page in headless Chromium, driven over its DevTools protocol: what it logs, fetches and shows."""

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)
_SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--disable-domain-reliability",
    "--metrics-recording-only",
    "--password-store=basic",
    "--hide-scrollbars",
    # Whatever asks the network all the same finds nobody.
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-port=0",
)


@dataclass
class Look:
    """What became of a page."""

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """Console messages, errors and violations of the page's policy."""
    wide: int = 0
    """How far the page reaches beyond the window, in CSS pixels."""
    title: str = ""
    picture: bytes = field(default=b"", repr=False)


@contextmanager
def browser(folder: Path) -> Iterator["Browser"]:
    """A browser with a profile in `folder`, gone after the block."""
    assert CHROMIUM is not None
    process = subprocess.Popen(
        [CHROMIUM, *_SWITCHES, f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"HOME": str(folder), "PATH": "/usr/bin:/bin"},
    )
    try:
        yield Browser(folder)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Browser:
    """Opens pages, one tab each."""

    def __init__(self, folder: Path) -> None:
        from websockets.sync.client import connect

        places = folder / "DevToolsActivePort"
        until = time.monotonic() + 60
        while not (places.is_file() and len(lines := places.read_text().splitlines()) == 2):
            assert time.monotonic() < until, "Chromium did not open its port within a minute"
            time.sleep(0.05)
        self._socket = connect(f"ws://127.0.0.1:{lines[0]}{lines[1]}", max_size=None, proxy=None)
        self._number = 0
        self._events: list[dict[str, Any]] = []

    def look(
        self, page: Path, *, width: int, height: int = 900, dark: bool = False, script: str = ""
    ) -> Look:
        """Open `page` in a window of this size; `script` is run in it before the picture is taken."""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        self._events.clear()
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])
        self._ask("Page.navigate", url=page.as_uri())
        self._until("Page.loadEventFired")
        if script:
            self._run(script)
        look = Look(
            title=str(self._run("document.title")),
            wide=int(self._run("document.documentElement.scrollWidth - window.innerWidth")),
            picture=base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"]),
        )
        for event in self._events:
            said = event["params"]
            match event["method"]:
                case "Network.requestWillBeSent":
                    look.requests.append(said["request"]["url"])
                case "Log.entryAdded":
                    look.complaints.append(said["entry"]["text"])
                case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown":
                    look.complaints.append(json.dumps(said))
                case "Page.javascriptDialogOpening":
                    look.complaints.append(f"dialog: {said['message']}")
        self._ask("Target.closeTarget", targetId=target)
        del self._session
        return look

    def _run(self, script: str) -> Any:
        return self._ask("Runtime.evaluate", expression=script, returnByValue=True)["result"].get(
            "value"
        )

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if session := getattr(self, "_session", None):
            message["sessionId"] = session
        self._socket.send(json.dumps(message))
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def _until(self, method: str) -> None:
        while not any(event["method"] == method for event in self._events):
            self._receive()

    def _receive(self) -> dict[str, Any]:
        message = dict(json.loads(self._socket.recv(timeout=60)))
        if "method" in message:
            self._events.append(message)
        return message
