"""A page as a person uses it: waits until a text is there, clicks on words, fills fields, takes pictures."""

import json
import os
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver
    from selenium.webdriver.remote.webelement import WebElement

PICTURES = "LORALINE_SCREENSHOTS"
"""The environment variable with the folder for pictures; without it they lie in the test's own."""
PATIENCE = 120.0
"""Seconds until something that needs no training is on the page of a busy machine."""
_TEXT = "return document.body ? document.body.innerText : ''"
_SCROLL = "arguments[0]?.scrollIntoView(); return arguments[0] !== null"
_Found = TypeVar("_Found")


class Page:
    """One tab. Elements that a page draws anew between two looks are looked for again."""

    def __init__(self, driver: "WebDriver", pictures: Path) -> None:
        """Pictures lie in `pictures`, unless the environment names another folder."""
        self.driver = driver
        self.pictures = Path(os.environ.get(PICTURES) or pictures)

    def open(self, url: str) -> None:
        """Go there; a second time, too, where only what is behind `#` has changed."""
        self.rest()
        self.driver.get(url)

    def rest(self) -> None:
        """Show nothing: the graph of a run that goes on is drawn without end, and takes half a core."""
        self.driver.get("about:blank")

    @property
    def text(self) -> str:
        """What can be read on the page."""
        return str(self.driver.execute_script(_TEXT)).replace("\xa0", " ")

    def until(
        self, look: Callable[[], _Found], *, what: str = "", seconds: float = PATIENCE
    ) -> _Found:
        """What `look` finds, as soon as it finds something."""
        from selenium.common.exceptions import WebDriverException

        deadline = time.monotonic() + seconds
        while True:
            problem = ""
            try:
                if found := look():
                    return found
            except WebDriverException as error:
                problem = str(error.msg)
            if time.monotonic() > deadline:
                self.picture("missing")
                raise AssertionError(
                    f"{what or 'it'} was not on {self.driver.current_url} within {seconds:.0f} s; what was "
                    f"seen is in {self.pictures / 'missing.png'}. {problem}\n{self.text}"
                )
            time.sleep(0.2)

    def wait_for(self, *texts: str, seconds: float = PATIENCE) -> None:
        """Until all of them can be read."""
        for text in texts:
            self.until(lambda t=text: t in self.text, what=repr(text), seconds=seconds)

    def find(self, xpath: str, *, seconds: float = PATIENCE) -> "WebElement":
        """The first element of this kind that is seen."""
        found = self.until(lambda: self._seen(xpath), what=xpath, seconds=seconds)
        assert found is not None
        return found

    def scroll_to(self, xpath: str) -> None:
        """Until the element is at the top: lists draw only what is seen."""
        self.until(lambda: self.driver.execute_script(_SCROLL, self._seen(xpath)), what=xpath)

    def click(self, xpath: str) -> None:
        """On the first element of this kind, once it is seen and nothing lies above it."""

        def clicked() -> bool:
            if (element := self._seen(xpath)) is None:
                return False
            element.click()
            return True

        self.until(clicked, what=xpath)

    def press(self, words: str) -> None:
        """The button that says so."""
        self.click(f"//button[normalize-space()={_quoted(words)}]")

    def write(self, xpath: str, text: str) -> None:
        """Into the field, until it stands there."""

        def written() -> bool:
            if (field := self._seen(xpath)) is None:
                return False
            field.clear()
            field.send_keys(text)
            return field.get_property("value") == text

        self.until(written, what=xpath)

    def links(self, part: str) -> dict[str, str]:
        """Words and address of each link whose address has this part."""
        script = """return [...document.querySelectorAll('a')].filter(a => a.href.includes(arguments[0]))
            .map(a => [a.innerText.trim(), a.href])"""
        found = self.driver.execute_script(script, part)
        return {words: address for words, address in found if words}

    def hosts(self) -> set[str]:
        """Whom the pages asked for something since the last call."""
        messages = [
            json.loads(it["message"])["message"] for it in self.driver.get_log("performance")
        ]
        asked = [
            urlsplit(message["params"]["request"]["url"])
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]
        return {
            url.hostname for url in asked if url.scheme.startswith(("http", "ws")) and url.hostname
        }

    def picture(self, name: str) -> None:
        """What is seen now, as NAME.png."""
        from PIL import Image

        self.pictures.mkdir(parents=True, exist_ok=True)
        # The last animations: a picture of half a menu helps nobody.
        time.sleep(1)
        seen = Image.open(BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")
        # A palette: a third of the bytes, and nobody sees it.
        seen.quantize(256, dither=Image.Dither.NONE).save(
            self.pictures / f"{name}.png", optimize=True
        )

    def colours(self, element: "WebElement") -> list[tuple[int, Any]]:
        """How many pixels of each colour an element has; what is drawn on a canvas cannot be read."""
        from PIL import Image

        seen = Image.open(BytesIO(element.screenshot_as_png)).convert("RGB")
        return seen.getcolors(1 << 24) or []

    def _seen(self, xpath: str) -> "WebElement | None":
        found = self.driver.find_elements("xpath", xpath)
        return next((it for it in found if it.is_displayed()), None)


def _quoted(words: str) -> str:
    return f'"{words}"' if "'" in words else f"'{words}'"
