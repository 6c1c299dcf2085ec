"""Into the song: hits are heard at the mix's tempo and in its key, kept with it, and taken away as files."""

import base64
import io
import json
import zipfile
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
import soundfile as sf
import soxr

from tests.browser.person import (
    drop,
    no_serious_faults,
    on_the_grid,
    shown_stems,
    state,
    tab_to,
    until,
    wait_for_hits,
    wait_until_heard,
)

pytestmark = pytest.mark.browser

RATE = 48_000
LATEST_S = 0.010  # what a hit may be off by
LOUDNESS_LU = 0.1  # what two meters of BS.1770 may differ by
RESAMPLED = 1e-3  # power by which two resamplers of 44.1 kHz differ
BEAT_S = 1e-3  # a beat is told as a float of the audio clock

RENDER = """async ([answer, n, file, role]) => {
    const { decode, RATE } = await import("./static/clips.js");
    const { amplitude, levelOf, stemOver } = await import("./static/fitted.js");
    const { groundOf } = await import("./static/ground.js");
    const { Sound } = await import("./static/player.js");
    const bytes = Uint8Array.from(atob(file), (c) => c.charCodeAt(0)).buffer;
    const { loop, mix: hear } = groundOf(answer, { placed: [], audio: () => decode(bytes) });
    const [mix, stem] = await Promise.all([hear(), stemOver(answer.hits[n], loop)]);
    const gain = amplitude(await levelOf(stem, mix));
    const context = new OfflineAudioContext(1, Math.round((0.5 + 1.5 * loop.lengthS) * RATE), RATE);
    const volumes = { mix: Number(role === "mix"), stem: Number(role === "stem") };
    const sound = new Sound(context, { mix, stem, gain, begin: 0.5, offsetS: 0, volumes });
    sound.out.connect(context.destination);
    const samples = new Uint8Array((await context.startRendering()).getChannelData(0).buffer);
    let text = "";
    for (let i = 0; i < samples.length; i += 32768) text += String.fromCharCode(...samples.subarray(i, i + 32768));
    return { loop, gain, samples: btoa(text) };
}"""


def rendered(page, answer: dict, n: int, mix: Path, role: str) -> tuple[dict[str, float], float, np.ndarray]:
    """The loop, the stem's amplitude, and what one side of a hit sounds like from the loop's first sample on: one and a
    half times round, by the page's own schedule in an OfflineAudioContext."""
    out = page.evaluate(RENDER, [answer, n, base64.b64encode(mix.read_bytes()).decode(), role])
    samples = np.frombuffer(base64.b64decode(out["samples"]), np.float32)
    assert not samples[: RATE // 2].any()
    return out["loop"], out["gain"], samples[RATE // 2 :]


def recorded(audio: bytes | Path) -> np.ndarray:
    """A file as mono samples at 48 kHz."""
    samples, rate = sf.read(io.BytesIO(audio) if isinstance(audio, bytes) else audio, always_2d=True)
    return soxr.resample(samples.mean(axis=1), rate, RATE)


def attacks(samples: np.ndarray) -> np.ndarray:
    """How much louder each millisecond is than the ten before it."""
    power = np.square(samples[: len(samples) // 48 * 48]).reshape(-1, 48).mean(axis=1)
    level = np.log10(power + 1e-3 * power.max() + 1e-12)
    before = np.convolve(np.pad(level, (10, 0), mode="edge"), np.full(10, 0.1), mode="valid")[: len(level)]
    return np.maximum(0.0, level - before)


def late_s(heard: np.ndarray, expected: np.ndarray) -> float:
    """How much later attacks are heard than expected, both a value a millisecond."""
    lags = range(-60, 61)
    inner = slice(60, len(heard) - 60)
    match = [float(heard[inner] @ expected[60 - lag : len(heard) - 60 - lag]) for lag in lags]
    return lags[int(np.argmax(match))] / 1000


def test_loudness_is_that_of_another_meter(page):
    """ITU-R BS.1770 by ffmpeg's ebur128: a loud part, a soft one that is gated out in part, and silence."""
    rng = np.random.default_rng(0)
    level = np.repeat([0.3, 0.02, 0.0, 0.1], RATE * 2)
    samples = (rng.standard_normal((2, len(level))) * level * [[1.0], [0.5]]).astype(np.float32)
    graph = av.filter.Graph()
    source = graph.add_abuffer(sample_rate=RATE, format="fltp", layout="stereo")
    meter, sink = graph.add("ebur128", "metadata=1"), graph.add("abuffersink")
    source.link_to(meter)
    meter.link_to(sink)
    graph.configure()
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
    frame.sample_rate = RATE
    source.push(frame)
    source.push(None)
    told = None
    while True:
        try:
            told = sink.pull().metadata
        except (av.error.EOFError, av.error.BlockingIOError):
            break
    measure = """async (text) => {
        const { decode } = await import("./static/clips.js");
        const { loudnessOf } = await import("./static/loudness.js");
        return loudnessOf(await decode(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer));
    }"""

    def loudness(clip: np.ndarray) -> float:
        file = io.BytesIO()
        sf.write(file, clip.T, RATE, format="WAV", subtype="FLOAT")
        return page.evaluate(measure, base64.b64encode(file.getvalue()).decode())

    assert loudness(samples) == pytest.approx(float(told["lavfi.r128.I"]), abs=LOUDNESS_LU)
    assert loudness(samples[:, :RATE] * 1e-6) == -np.inf


def complete_the_band(page) -> None:
    page.locator("#band summary").click()
    for instrument in ("bass", "drums"):
        page.locator(f'#band-instruments input[value="{instrument}"]').check()
    page.locator("#band-go").click()
    page.wait_for_selector('#answer-title:has-text("A band for")')


def test_a_song_is_built_from_hits_and_taken_away(page, demo_folder, tmp_path, live_service, watch):
    mix = demo_folder / "mix.flac"
    with page.expect_response("**/retrieve") as response:
        drop(page, mix)
    wait_for_hits(page)
    answer = response.value.json()

    # Each hit in time with the mix, over the seam as well.
    for n, hit in enumerate(answer["hits"][:4]):
        loop, gain, stem = rendered(page, answer, n, mix, "stem")
        own = recorded(httpx.get(live_service + hit["stem"]["audio_url"]).content)
        seconds = hit["start_s"] + (loop["fromS"] + np.arange(round(loop["lengthS"] * 1000)) / 1000) * hit["speed"]
        if hit["stem"]["kind"] == "loop":
            seconds %= hit["stem"]["duration_s"]
        expected = np.interp(seconds, np.arange(len(own) // 48) / 1000, attacks(own), left=0, right=0)
        length = round(loop["lengthS"] * RATE)
        if seconds[0] > hit["stem"]["duration_s"] - 0.1:  # it ends where the mix begins
            continue
        assert abs(late_s(attacks(stem[:length]), expected)) <= LATEST_S, hit["stem"]["title"]
        np.testing.assert_allclose(stem[length + RATE // 10 : length + RATE], stem[RATE // 10 : RATE], atol=1e-4)
        assert gain > 0
    loop, _, heard = rendered(page, answer, 0, mix, "mix")
    inner = slice(RATE // 10, round(loop["lengthS"] * RATE) - RATE // 10)
    once = recorded(mix)[round(loop["fromS"] * RATE) :]
    wrong = heard[inner] - 0.5 * once[inner]
    assert np.square(wrong).mean() < RESAMPLED * np.square(heard[inner]).mean()

    # By keyboard: the sound follows on a beat, and the mix goes on.
    page.locator("#results").focus()
    page.keyboard.press("Space")
    hits = shown_stems(page)
    began = json.loads(wait_until_heard(page)["schedule"])["mix"]
    for n, key in ((1, "ArrowDown"), (2, "ArrowDown"), (1, "ArrowUp"), (3, "4")):
        page.keyboard.press(key)
        until(page, f"document.body.dataset.playing === {json.dumps(hits[n])}")
        plan = json.loads(state(page)["schedule"])
        assert plan["mix"] == began
        beats = (
            (plan["stem"]["offsetS"] + loop["fromS"] - answer["mix"]["first_beat_s"]) * answer["mix"]["tempo_bpm"] / 60
        )
        assert beats == pytest.approx(round(beats), abs=BEAT_S)
        since = plan["stem"]["atS"] - began["atS"] - plan["stem"]["offsetS"]
        assert since / loop["lengthS"] == pytest.approx(round(since / loop["lengthS"]), abs=BEAT_S)
        assert page.evaluate("document.activeElement.closest('.hit').dataset.stem") == hits[n]
    page.keyboard.press("Space")
    page.wait_for_selector('body[data-player="idle"]')

    on_the_grid(page)  # from here on as recorded: each search embeds the mix once
    # Keep one: it is part of the mix that is asked about next, without another upload.
    kept = [hits[1]]
    with page.expect_request("**/retrieve") as request:
        page.locator(".hit").nth(1).get_by_text("Keep").click()
    wait_for_hits(page)
    assert 'name="mix_id"' in request.value.post_data  # Chromium tells nobody a body that holds a file
    assert page.locator("#placed li").count() == 1
    assert kept[0] not in shown_stems(page)

    # The rest of the band.
    complete_the_band(page)
    kept += shown_stems(page)
    page.locator("#keep-all").dblclick()
    until(page, f"document.querySelectorAll('#placed li').length === {len(kept)}")
    wait_for_hits(page)

    no_serious_faults(page)
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    no_serious_faults(page)

    with page.expect_download() as download:
        page.locator("#export").click()
    archive = zipfile.ZipFile(download.value.path())
    names = archive.namelist()
    waves = [name for name in names if name.endswith(".wav")]
    assert len(waves) >= len(kept)
    length = sf.info(mix).frames
    for name in waves:
        with archive.open(name) as file:
            info = sf.info(io.BytesIO(file.read()))
            assert (info.samplerate, info.frames) == (sf.info(mix).samplerate, length)
    assert {Path(name).suffix for name in names} >= {".dawproject", ".rpp", ".txt"}

    gone = {"type": "/problems/stem-not-found", "title": "No such stem", "stem_id": kept[0]}
    page.route("**/retrieve", lambda route: route.fulfill(status=404, json=gone), times=1)
    page.click("#find")
    page.locator("#problem").get_by_text("is no longer in the catalog").wait_for()
    page.locator("#placed li").first.get_by_text("Remove").click()
    until(page, f"document.querySelectorAll('#placed li').length === {len(kept) - 1}")
    wait_for_hits(page)


def test_a_stem_chosen_instead_of_another_has_its_place(page, make_clip):
    on_the_grid(page)
    drop(page, make_clip())
    wait_for_hits(page)
    complete_the_band(page)
    page.locator(".hit .play").first.click()
    wait_until_heard(page)
    page.locator(".hit .instead").first.select_option(index=1)
    page.wait_for_selector('body[data-player="idle"]')
    assert page.locator("#transport").is_hidden(), "what has gone is not to be played again"
    page.locator("#results").focus()
    page.keyboard.press("1")
    assert wait_until_heard(page)["playing"] == shown_stems(page)[0]


def test_a_hit_is_kept_with_the_mix_that_found_it(page, make_clip):
    on_the_grid(page)
    drop(page, make_clip("found.wav"))
    wait_for_hits(page)
    page.get_by_label("Try a demo mix").check()
    page.wait_for_selector("#demo-stems input")
    page.locator(".hit").first.get_by_text("Keep").click()
    page.locator("#placed li").wait_for()
    wait_for_hits(page)
    assert page.evaluate("document.activeElement.id") == "song", "where the keyboard goes on"
    assert page.is_checked('input[name="source"][value="file"]')
    assert "found.wav" in page.locator("#answer-title").inner_text()


def test_a_hit_is_dragged_out_as_it_is_heard(page, make_clip):
    drop(page, make_clip())
    wait_for_hits(page)
    kind, name, url = page.evaluate(
        """() => {
            const dataTransfer = new DataTransfer();
            const drag = new DragEvent("dragstart", { dataTransfer, cancelable: true, bubbles: true });
            document.querySelector(".hit").dispatchEvent(drag);
            const [kind, name, ...url] = dataTransfer.getData("DownloadURL").split(":");
            return [kind, name, url.join(":")];
        }"""
    )
    assert (kind, name[-4:]) == ("audio/wav", ".wav")
    clip, rate = sf.read(io.BytesIO(httpx.get(url).content))
    assert 0 < len(clip) / rate <= 8 + 1e-3


def test_keys_are_shown_and_can_be_turned_off(page, make_clip):
    drop(page, make_clip())
    wait_for_hits(page)
    page.locator("#results").focus()
    page.keyboard.press("?")
    assert page.locator("#keys-dialog").is_visible()
    page.locator("#keys-on").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    page.keyboard.press("?")
    assert not page.locator("#keys-dialog").is_visible()
    assert state(page)["player"] == "idle"
    tab_to(page, "#keys-button")
    page.keyboard.press("Enter")
    page.locator("#keys-on").check()
    page.get_by_role("button", name="Close").click()
    page.keyboard.press("1")
    wait_until_heard(page)
