"""The installed Chromium with its own driver: nothing is downloaded, and nothing but loopback is found."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver

CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
MISSING = (
    None
    if CHROMIUM and DRIVER
    else "no `chromium` and `chromedriver` on the PATH; Debian has them as chromium and chromium-driver"
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
    "--disable-domain-reliability",
    "--disable-extensions",
    "--disable-sync",
    "--metrics-recording-only",
    "--password-store=basic",
    "--hide-scrollbars",
    "--lang=en-US",
    # Whatever asks the network all the same finds nobody.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


@contextmanager
def chromium(folder: Path, *, width: int = 1200, height: int = 900) -> Iterator["WebDriver"]:
    """A browser with a fresh profile in `folder` and a page of this size in CSS pixels, gone after the block."""
    from selenium import webdriver

    assert CHROMIUM is not None
    assert DRIVER is not None
    folder.mkdir(parents=True, exist_ok=True)
    scratch = tempfile.mkdtemp(prefix="chromium-")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in (*_SWITCHES, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(switch)
    # Every request that a page makes is noted, so that a test can ask where they went.
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    # With the driver's path given, Selenium starts no manager that would look for one on the network.
    service = webdriver.ChromeService(
        executable_path=DRIVER,
        env={"HOME": str(folder), "PATH": os.environ["PATH"], "TZ": "UTC", "TMPDIR": scratch},
    )
    driver = webdriver.Chrome(options=options, service=service)
    try:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        yield driver
    finally:
        driver.quit()
        # It leaves folders behind, and its sockets need a short path.
        shutil.rmtree(scratch, ignore_errors=True)
