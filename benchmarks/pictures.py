"""The pictures of the page in the docs, taken of a running service with its demo catalog.

    make run                                   # in another window
    python -m benchmarks.pictures http://127.0.0.1:8000

writes `docs/page.png` and `docs/tour-*.png`, and prints what the tour's export holds. It needs Playwright and a
Chromium.
"""

import argparse
import shutil
import zipfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

DOCS = Path(__file__).parents[1] / "docs"
TRACK, MISSING = "Amber Mirror", "bass"
BAND = ("lead", "pads")
HEARD_MS = 1_500  # so that the playhead stands somewhere
SEEN = 6  # hits on a picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of a service that was started with --demo")
    parser.add_argument("--out", type=Path, default=DOCS, help="the folder of the pictures")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1360, "height": 900})
        page.set_default_timeout(300_000)  # a busy machine takes its time
        page.goto(arguments.url)
        page.wait_for_selector('body[data-service="ready"]')
        _tour(page, arguments.out)
        browser.close()


def _tour(page: Page, out: Path) -> None:
    """From a mix that lacks its bass to an export."""
    page.get_by_label("Try a demo mix").check()
    page.locator("#demo-track").select_option(TRACK)
    page.wait_for_selector("#demo-stems input")
    for label in page.locator("#demo-stems label").all():
        label.locator("input").set_checked(label.inner_text() in ("drums", "keys"))
    page.click("#find")
    _answered(page)
    _play(page, 3)
    _shoot(page, out / "page.png")

    page.keyboard.press("Escape")
    page.locator(f".hit:has(.chip:text-is('{MISSING}'))").first.get_by_text("Keep").click()
    page.wait_for_selector("#placed li")
    _answered(page)
    _play(page, 3)
    _shoot(page, out / "tour-kept.png")

    page.keyboard.press("Escape")
    page.locator("#band summary").click()
    for instrument in BAND:
        page.locator(f'#band-instruments input[value="{instrument}"]').check()
    page.locator("#band-go").click()
    page.wait_for_selector("#answer-title:has-text('A band for')")
    _answered(page)
    _shoot(page, out / "tour-band.png")

    page.locator("#keep-all").click()
    page.wait_for_selector(f"#placed li:nth-child({1 + len(BAND)})")
    page.wait_for_selector('body[data-search="done"]')
    page.locator("#band summary").click()
    with page.expect_download() as download:
        page.locator("#export").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        print("\n".join(archive.namelist()))

    page.set_viewport_size({"width": 390, "height": 844})
    _play(page, 1)
    _shoot(page, out / "tour-phone.png", at="#song")


def _answered(page: Page) -> None:
    """The hits are there, and the waveforms of those that can be seen."""
    page.wait_for_selector('body[data-search="done"]')
    seen = min(SEEN, page.locator(".hit").count())
    page.wait_for_selector(f".hit:nth-child({seen})[data-gain]")


def _play(page: Page, n: int) -> None:
    """The n-th hit, by its key."""
    page.locator("#results").focus()
    page.keyboard.press(str(n))
    page.wait_for_selector('body[data-player="playing"]')
    page.wait_for_timeout(HEARD_MS)


def _shoot(page: Page, path: Path, at: str = "body") -> None:
    page.evaluate("selector => document.querySelector(selector).scrollIntoView()", at)
    options: dict[str, Any] = {"path": path, "animations": "disabled"}
    page.screenshot(**options)


if __name__ == "__main__":
    main()
