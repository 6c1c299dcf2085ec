"""A real Chromium on the real page. `live_service` (tests/conftest.py) is the base URL of a running `phalar serve`."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CLIP_RATE = 44_100


@dataclass
class Watch:
    """What a page said and asked for while a test drove it."""

    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def foreign(self, base: str) -> list[str]:
        """The requests that left the service: none is allowed, whatever the page does."""
        return [url for url in self.requests if not url.startswith((base + "/", "data:", "blob:"))]


@pytest.fixture(scope="module")  # no longer than that: Playwright keeps an event loop running in this thread
def browser() -> Iterator[object]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = next((found for name in CHROMIUMS if (found := shutil.which(name))), None)
    if executable is None:
        pytest.skip(f"no Chromium on this machine (looked for {', '.join(CHROMIUMS)}): the page was NOT tested")
    with playwright.sync_playwright() as driver:
        # Without its sandbox, because containers often forbid it; it only ever sees our own page.
        chromium = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def page(browser, live_service: str, watch: Watch) -> Iterator[object]:
    """The page, loaded and ready. After each test: no script error, no CSP refusal, no request to anywhere else."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(120_000)  # a search embeds dozens of windows; a busy two-core machine takes its time
    page.on("pageerror", lambda error: watch.complaints.append(str(error)))
    page.on("console", lambda said: _note(watch, said))
    page.on("request", lambda request: watch.requests.append(request.url))
    page.goto(live_service)
    page.wait_for_selector('body[data-service="ready"]')
    yield page
    assert watch.complaints == []
    assert watch.foreign(live_service) == []
    context.close()


def _note(watch: Watch, said) -> None:
    # Chromium itself writes this line for every 4xx and 5xx; the tests that provoke one read the problem on the page.
    if said.type in ("error", "warning") and not said.text.startswith("Failed to load resource"):
        watch.complaints.append(said.text)


@pytest.fixture
def make_clip(tmp_path: Path) -> Callable[..., Path]:
    """A few chords as a file; `seed` makes the bytes, and so the stem's identity, differ."""

    def make(name: str = "mix.wav", seconds: float = 8.0, seed: int = 0) -> Path:
        rng = np.random.default_rng(seed)
        time = np.arange(round(seconds * CLIP_RATE)) / CLIP_RATE
        beat = (time % 0.5) / 0.5
        tones = rng.choice([220.0, 261.6, 329.6, 392.0], 3, replace=False)
        chord = np.sin(2 * np.pi * tones[:, None] * time).sum(axis=0)
        waveform = 0.15 * chord * np.exp(-4 * beat) + 0.01 * rng.standard_normal(time.size)
        path = tmp_path / name
        sf.write(path, waveform.astype(np.float32), CLIP_RATE)
        return path

    return make
