"""`unleak app` in a headless Chromium: every room's whole way, errors as words, cancel, two people, keyboard, phone.

The tests start and stop the server themselves. They are skipped only where no browser is installed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

for needed in ("gradio", "playwright", "axe_playwright_python"):
    pytest.importorskip(needed, reason=f"NOT TESTED in a browser: no {needed}; pip install -e '.[dev]'")

import browser  # noqa: E402
from unleak.app.page import ROOMS  # noqa: E402
from unleak.app.serve import Server  # noqa: E402

pytestmark = pytest.mark.skipif(
    browser.CHROMIUM is None, reason="NOT TESTED in a browser: none is installed; apt-get install chromium"
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(port=0) as one:
        yield one


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser.chromium() as one:
        yield one


@pytest.fixture
def page(server: Server, chromium: Any) -> Iterator[Any]:
    """Somebody's page, whose browser asked nobody but the server, and on which no script failed."""
    one = browser.opened(chromium, server.url)
    asked, failed = [], []
    one.on("request", lambda request: asked.append(request.url))
    one.on("pageerror", lambda error: failed.append(str(error)))
    browser.settings(one)
    yield one
    assert not failed and all(url.startswith((server.url, "data:", "blob:", "about:")) for url in asked)
    assert "Traceback" not in one.content()
    one.context.close()


def downloaded(page: Any, button: str) -> str:
    with page.expect_download() as download:
        page.get_by_text(button).locator("visible=true").click()
    return download.value.suggested_filename


def test_the_way_through_the_words(page: Any) -> None:
    page.get_by_label("Prompt", exact=True).fill("a bat and a racket")
    page.get_by_role("checkbox", name="racket").wait_for()
    assert page.get_by_role("checkbox", name="bat").is_checked()
    browser.press(page, "Diagnose")
    assert browser.report(page, "diagnose").get_by_text("Who changes whom").count() == 1
    page.get_by_role("radio", name="racket").check()
    page.locator(".pixels img:visible").first.wait_for()
    assert downloaded(page, "Page (HTML)") == "diagnose.html" and downloaded(page, "Data (JSON)") == "diagnose.json"
    browser.press(page, "Repair")
    assert browser.report(page, "repair").get_by_text("After, from the same noise").count() == 1


def test_the_way_through_the_regions(page: Any) -> None:
    browser.room(page, "Regions")
    browser.press(page, "Draw a picture from the caption")
    browser.paint(page, (0.1, 0.2), (0.4, 0.3))
    browser.press(page, "Edit")
    report = browser.report(page, "edit")
    assert report.get_by_role("cell", name="given").count() == 1
    page.locator(".pixels img:visible").first.wait_for()
    page.get_by_role("tab", name="Draw by regions").click()
    browser.press(page, "Draw")
    assert browser.report(page, "regions").get_by_text("with their regions").count() == 1


def test_the_way_through_the_copies_and_the_lint(page: Any) -> None:
    browser.settings(page, "0:2")
    browser.room(page, "Copies")
    browser.press(page, "Score")
    assert browser.report(page, "scan").get_by_text("Renbrith concert poster").count() == 1
    browser.press(page, "Draw before and after")
    assert browser.report(page, "guard").get_by_text("After, from the same noise").count() == 1
    browser.room(page, "Lint")
    browser.press(page, "Lint")
    assert browser.report(page, "lint").get_by_text("Prompts, riskiest first").count() == 1
    assert downloaded(page, "All, with pictures (ZIP)") == "unleak-lint.zip"


def test_each_kind_of_error_is_words_and_nothing_that_was_typed_is_lost(page: Any) -> None:
    def refused(button: str, said: str) -> None:
        page.get_by_role("button", name=button, exact=True).locator("visible=true").click()
        page.locator("p.bad:visible", has_text=said).wait_for()
        page.get_by_test_id("toast-body").get_by_text(re.compile(re.escape(said))).first.wait_for()
        page.get_by_role("button", name=button, exact=True).locator("visible=true").click(trial=True)

    prompt = page.get_by_label("Prompt", exact=True)
    prompt.fill("")
    refused("Diagnose", "prompt")
    prompt.fill("a <b>thing</b> of mine")
    refused("Repair", "no item is named in 'a <b>thing</b> of mine'")
    browser.settings(page, "3,3")
    prompt.fill("a bat and a racket")
    refused("Diagnose", "twice")
    prompt.fill("a [bat] and a [racket]")
    page.get_by_label("Model", exact=True).fill("no/where/at/all")
    page.keyboard.press("Enter")
    browser.settings(page)
    refused("Diagnose", "no model 'no/where/at/all'")
    assert prompt.input_value() == "a [bat] and a [racket]"
    browser.room(page, "Regions")
    refused("Edit", "there is no picture")


def test_a_job_is_cancelled_and_another_person_is_served_in_turn(page: Any, server: Server, chromium: Any) -> None:
    other = browser.opened(chromium, server.url)
    browser.settings(page, "0:32", "1000")
    page.get_by_role("button", name="Diagnose").click()
    page.locator("p:visible", has_text="passes through the model").wait_for()
    browser.settings(other)
    browser.room(other, "Lint")
    other.get_by_role("button", name="Lint", exact=True).click()
    other.locator("p:visible", has_text="Waiting: 1 job comes before yours.").wait_for()
    assert page.get_by_role("button", name="Repair", exact=True).is_disabled()
    page.get_by_role("button", name="Cancel").locator("visible=true").click()
    page.locator("p[role=alert]:visible", has_text="Cancelled").wait_for()
    browser.report(other, "lint")
    other.context.close()
    browser.settings(page)
    browser.press(page, "Repair")


def test_a_page_that_is_closed_stops_its_job(server: Server, chromium: Any) -> None:
    page = browser.opened(chromium, server.url)
    browser.settings(page, "0:32", "1000")
    page.get_by_role("button", name="Diagnose").click()
    page.locator("p:visible", has_text="passes through the model").wait_for()
    (job,) = server.desk.jobs
    page.context.close()
    assert job.cancelled.wait(30)


def test_everything_is_done_by_keyboard(page: Any) -> None:
    page.get_by_label("Prompt", exact=True).focus()
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.innerText") == "Diagnose":
            break
    page.keyboard.press("Enter")
    page.locator("p.good:visible").wait_for()
    page.get_by_role("tab", name="Words").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_role("tab", name="Edit a picture").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark_and_is_accessible(server: Server, chromium: Any, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = browser.opened(chromium, server.url, browser.PHONE, color_scheme=scheme)
    paper = page.evaluate("getComputedStyle(document.querySelector('.gradio-container')).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(23, 24, 26)"}[scheme]
    found = {}
    for name in ROOMS:
        browser.room(page, name)
        page.wait_for_timeout(500)
        assert browser.sideways(page) == 0, name
        serious = [v for v in Axe().run(page).response["violations"] if v["impact"] in ("serious", "critical")]
        found |= {(name, v["id"], node["html"][:200]): node["failureSummary"] for v in serious for node in v["nodes"]}
    assert not found
    page.context.close()


def test_a_server_that_is_stopped_while_it_draws_ends_and_leaves_the_page_as_it_is(chromium: Any) -> None:
    command = [sys.executable, "-m", "unleak", "app", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})
    try:
        page = browser.opened(chromium, process.stdout.readline().strip())
        browser.settings(page, "0:32", "1000")
        page.get_by_label("Prompt", exact=True).fill("a bat and a racket")
        page.get_by_role("button", name="Diagnose").click()
        page.locator("p:visible", has_text="passes through the model").wait_for()
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
        assert process.returncode == 130 and "interrupted" in told and "Traceback" not in told
        assert page.get_by_label("Prompt", exact=True).input_value() == "a bat and a racket"
        assert "Traceback" not in page.content()
        page.context.close()
    finally:
        process.kill()
