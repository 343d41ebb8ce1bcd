"""One browser for all pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.pictures.browser import Browser


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium; where there is none, the test says so."""
    pytest.importorskip("selenium", reason="no selenium: pip install 'fpstated[dev]'")
    from tests.pictures.browser import CHROMEDRIVER, CHROMIUM, Browser

    for name, found in (("chromium", CHROMIUM), ("chromedriver", CHROMEDRIVER)):
        if found is None:
            pytest.skip(f"no {name} on PATH: pages are not looked at")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.driver.quit()
