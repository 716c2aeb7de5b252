"""The app in a headless Chromium: `python tests/browser.py FOLDER` writes pictures of every room.

Playwright drives the browser that this machine has; it brings none of its own.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 960}
LONG = 90_000  #: milliseconds; a slow machine is no fault


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser: Any, url: str, size: dict[str, int] = DESKTOP, **options: Any) -> Any:
    """A page of somebody new, ready to be used."""
    page = browser.new_context(viewport=size, **options).new_page()
    page.set_default_timeout(LONG)
    page.goto(url)
    page.get_by_role("button", name="Diagnose").wait_for()
    page.wait_for_timeout(1000)  # until its scripts listen
    return page


def room(page: Any, name: str) -> None:
    """Go to a room."""
    page.get_by_role("tab", name=name, exact=True).click()


def settings(page: Any, seeds: str = "0", steps: str = "2") -> None:
    """What is asked of the model."""
    page.get_by_label("Seeds").fill(seeds)
    page.get_by_label("Steps").fill(steps)


def press(page: Any, button: str) -> None:
    """Press a button of the room that is seen, and wait until its job is done."""
    done = page.locator("p.good:visible")
    before = done.get_attribute("data-job") if done.count() else 0
    page.get_by_role("button", name=button, exact=True).locator("visible=true").click()
    page.locator(f"p.good:visible:not([data-job='{before}'])").wait_for()


def report(page: Any, verb: str) -> Any:
    """The page of the command line that a job shows."""
    frame = page.frame_locator(f"iframe[title='unleak {verb}']")
    frame.get_by_text(f"unleak {verb}").first.wait_for()
    return frame


def paint(page: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """One stroke on the canvas that is seen, in shares of its picture, which is a square in its middle."""
    box = page.locator("canvas:visible").first
    box.scroll_into_view_if_needed()
    page.wait_for_timeout(1000)
    where = box.bounding_box()
    side = 0.89 * min(where["width"], where["height"])
    x, y = where["x"] + (where["width"] - side) / 2, where["y"] + (where["height"] - side) / 2
    page.mouse.move(x + start[0] * side, y + start[1] * side)
    page.mouse.down()
    page.mouse.move(x + end[0] * side, y + end[1] * side, steps=8)
    page.mouse.up()


def sideways(page: Any) -> int:
    """How many pixels of the page are beyond its right edge."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def pictures(folder: Path) -> None:
    """A picture of every room with its results; the first also narrow and dark."""
    from unleak.app.serve import Server

    def save(page: Any, name: str, height: int) -> None:
        page.mouse.move(0, 0)
        page.set_viewport_size({**page.viewport_size, "height": height})
        page.evaluate("window.scrollTo(0, 0)")
        page.wait_for_timeout(1500)
        page.screenshot(path=folder / f"app-{name}.png")

    with Server(port=0) as server, chromium() as browser:
        page = opened(browser, server.url)
        press(page, "Diagnose")
        report(page, "diagnose")
        save(page, "words", 1700)
        room(page, "Regions")
        press(page, "Draw a picture from the caption")
        for start, end in (((0.1, 0.12), (0.42, 0.12)), ((0.1, 0.24), (0.42, 0.24)), ((0.1, 0.34), (0.42, 0.34))):
            paint(page, start, end)
        press(page, "Edit")
        report(page, "edit")
        save(page, "regions", 2300)
        room(page, "Copies")
        press(page, "Score")
        press(page, "Draw before and after")
        report(page, "guard")
        save(page, "copies", 1700)
        room(page, "Lint")
        press(page, "Lint")
        report(page, "lint")
        save(page, "lint", 1300)
        page = opened(browser, server.url, PHONE, device_scale_factor=2)
        press(page, "Diagnose")
        report(page, "diagnose")
        save(page, "narrow", 1900)
        page = opened(browser, server.url, color_scheme="dark")
        press(page, "Repair")
        report(page, "repair")
        save(page, "dark", 1500)


if __name__ == "__main__":
    pictures(Path(sys.argv[1]))
