"""What a person does on the page, and waits for."""

import base64
import time
from importlib.resources import files
from pathlib import Path

TAB_LIMIT = 120
PATIENCE_S = 120
AUDIBLE_LEVEL = 1e-4  # root mean square; silence measures 0 exactly


def drop(page, *files: Path, on: str = "body") -> None:
    """Drop files as a person's file manager does: enter, over, drop."""
    transfer = page.evaluate_handle(
        """files => {
            const transfer = new DataTransfer();
            for (const [name, text] of files) {
                transfer.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name));
            }
            return transfer;
        }""",
        [[file.name, base64.b64encode(file.read_bytes()).decode()] for file in files],
    )
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event(on, event, {"dataTransfer": transfer})


def wait_for_hits(page) -> None:
    page.wait_for_selector('body[data-search="done"]')
    page.wait_for_selector(".hit")


def state(page) -> dict[str, str]:
    return page.evaluate("({ ...document.body.dataset })")


def until(page, expression: str) -> None:
    """Wait for a JavaScript expression. Playwright's own wait_for_function needs eval, which the page's CSP forbids."""
    deadline = time.monotonic() + PATIENCE_S
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"still not so after {PATIENCE_S} s: {expression}"
        page.wait_for_timeout(50)


def wait_until_heard(page) -> dict[str, str]:
    """Playing, on a clock that moves, with samples that are not silence."""
    page.wait_for_selector('body[data-player="playing"][data-audio="running"]')
    until(page, "Number(document.body.dataset.position) > 0.2")
    until(page, f"Number(document.body.dataset.level) > {AUDIBLE_LEVEL}")
    return state(page)


def on_the_grid(page) -> None:
    """Embed each mix once: for tests that are not about alignment."""
    page.get_by_label("It starts on the catalog").check()


def tab_to(page, selector: str) -> None:
    for _ in range(TAB_LIMIT):
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{selector} cannot be reached with the Tab key")


def start_demo(page) -> None:
    on_the_grid(page)
    page.get_by_label("Try a demo mix").check()
    page.wait_for_selector("#demo-stems input")
    page.click("#find")
    wait_for_hits(page)


def note_searches(page) -> None:
    """Keep the fields of each search in `asked`, without its file: Chromium tells nobody a body that holds one."""
    page.evaluate(
        """() => {
            const { fetch } = window;
            window.asked = [];
            window.fetch = (url, options) => {
                const words = [...(options?.body ?? [])].filter(([, value]) => typeof value === "string");
                if (url.endsWith("/retrieve")) window.asked.push(Object.fromEntries(words));
                return fetch(url, options);
            };
        }"""
    )


def shown_stems(page) -> list[str]:
    return page.eval_on_selector_all(".hit", "hits => hits.map((hit) => hit.dataset.stem)")


def no_serious_faults(page) -> None:
    """axe finds nothing serious."""
    page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text())
    found = page.evaluate("async () => (await axe.run()).violations")
    faults = [
        (one["id"], [node["html"][:150] for node in one["nodes"]])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert faults == []
