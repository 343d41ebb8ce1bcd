"""A real headless Chromium for the tests of pages: one for all, without a network, with a profile of its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER: Final = shutil.which("chromedriver")
#: The last two: no name is found and no address is reached, so a page that asks for anything has an error.
_FLAGS: Final = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1600,900"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9"),
)


class Browser:
    """A browser with one page open."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        assert CHROMEDRIVER is not None
        options = Options()
        options.binary_location = CHROMIUM
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))

    def open(self, page: Path) -> None:
        """Open a file."""
        self.driver.get(page.as_uri())

    def errors(self) -> list[str]:
        """What the console says since the last time: errors, warnings, what the page's policy has stopped."""
        return [entry["message"] for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def one(self, selector: str) -> WebElement:
        """The element."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """The texts of all such elements."""
        return [each.text for each in self.driver.find_elements(By.CSS_SELECTOR, selector)]

    def press(self, *keys: str) -> None:
        """Press keys where the focus is."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def hover(self, selector: str) -> None:
        """Point at an element."""
        ActionChains(self.driver).move_to_element(self.one(selector)).perform()

    def click(self, selector: str) -> None:
        """Click in the middle of an element."""
        ActionChains(self.driver).move_to_element(self.one(selector)).click().perform()

    def js(self, expression: str) -> Any:  # noqa: ANN401 -- whatever it is
        """The value of an expression in the page."""
        return self.driver.execute_script(f"return {expression}")

    def prefers(self, scheme: str) -> None:
        """Prefer light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
