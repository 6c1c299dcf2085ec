"""What is heard of a mix, what plays, and where: on the page, and in the modules that it is made of."""

import json

import httpx
import pytest

from model.audio.harmony import key_name
from tests.browser.person import (
    drop,
    note_searches,
    on_the_grid,
    start_demo,
    state,
    tab_to,
    until,
    wait_for_hits,
    wait_until_heard,
)
from tests.installation import add_stem, wait_ready

pytestmark = pytest.mark.browser


def test_loop_is_whole_bars_of_the_mix(page):
    loop = "async ([mix, beats]) => (await import('./static/fitted.js')).loopOf(mix, beats)"
    short = {"duration_s": 10.4, "searched_from_s": 2.0}
    assert page.evaluate(loop, [short, None]) == {"fromS": 0, "lengthS": 10.4}
    assert page.evaluate(loop, [short, {"firstS": 0.25, "everyS": 0.5}]) == {"fromS": 0.25, "lengthS": 10}
    ends_early = short | {"duration_s": 7.99}
    assert page.evaluate(loop, [ends_early, {"firstS": 0, "everyS": 0.5}]) == {"fromS": 0, "lengthS": 8}
    three_beats = short | {"duration_s": 1.7}
    assert page.evaluate(loop, [three_beats, {"firstS": 0, "everyS": 0.5}]) == {"fromS": 0, "lengthS": 1.5}
    long = {"duration_s": 200, "searched_from_s": 40.25}
    assert page.evaluate(loop, [long, None]) == {"fromS": 40.25, "lengthS": 30}
    assert page.evaluate(loop, [long, {"firstS": 0.5, "everyS": 0.5}]) == {"fromS": 40.5, "lengthS": 28}


def test_stem_is_asked_for_where_the_loop_begins(page):
    """At the second of it that sounds there, which is negative where it enters later; what goes round always sounds."""
    rendering = """async ([hit, loop]) => {
        const path = (await import("./static/fitted.js")).renderingOf(hit, loop, { rate: 48000 });
        return path && Object.fromEntries(new URL(path, location.href).searchParams);
    }"""
    loop = {"fromS": 2, "lengthS": 8}
    begun = {"stem": {"id": "a", "kind": "piece", "duration_s": 20}, "start_s": 3, "speed": 1.25, "transpose": -2}
    shape = {"format": "wav", "rate": "48000", "loop": "false"}
    place = {"start_s": "5.5", "duration_s": "8", "speed": "1.25", "transpose": "-2"}
    assert page.evaluate(rendering, [begun, loop]) == shape | place
    assert page.evaluate(rendering, [begun | {"start_s": -5}, loop])["start_s"] == "-2.5"
    assert page.evaluate(rendering, [begun | {"start_s": 19}, loop]) is None
    goes_round = begun | {"stem": begun["stem"] | {"kind": "loop", "duration_s": 4}}
    assert page.evaluate(rendering, [goes_round, loop]).items() >= {"loop": "true", "start_s": "1.5"}.items()
    assert page.evaluate(rendering, [goes_round | {"start_s": -5}, loop])["start_s"] == "1.5"


def test_another_stem_takes_over_on_the_next_beat(page):
    beat = "async (of) => (await import('./static/player.js')).nextBeat(of)"
    of = {"zero": 10, "lengthS": 4, "beats": {"firstS": 0, "everyS": 0.5}}
    assert page.evaluate(beat, of | {"soonest": 11.1}) == pytest.approx(11.5)
    assert page.evaluate(beat, of | {"soonest": 11.5}) == pytest.approx(11.5)
    assert page.evaluate(beat, of | {"soonest": 17.8}) == pytest.approx(18)
    assert page.evaluate(beat, of | {"soonest": 8.7}) == pytest.approx(9)
    assert page.evaluate(beat, of | {"beats": None, "soonest": 11.1}) == pytest.approx(11.1)


def test_only_one_thing_plays_at_a_time(page):
    start_demo(page)
    plays = page.locator(".hit .play")
    plays.nth(0).click()
    first = wait_until_heard(page)["playing"]
    plays.nth(1).click()
    until(page, f"!['', {json.dumps(first)}].includes(document.body.dataset.playing)")
    wait_until_heard(page)
    assert page.locator(".hit.playing").count() == 1
    page.click("#mix-play")
    page.wait_for_selector('body[data-playing="mix"][data-player="playing"]')
    assert page.locator(".hit.playing").count() == 0


def test_stem_alone_keeps_its_place_when_the_mix_joins(page):
    start_demo(page)
    page.locator(".hit").first.get_by_text("Solo").click()
    alone = wait_until_heard(page)
    assert alone["listen"] == "stem"
    page.get_by_label("Mix + stem").check()
    joined = state(page)
    assert joined["listen"] == "both"
    assert joined["schedule"] == alone["schedule"]
    assert float(joined["position"]) >= float(alone["position"])


def test_tempo_and_key_that_were_heard_can_be_corrected_by_keyboard(page, make_clip):
    note_searches(page)
    drop(page, make_clip())  # on every half second something begins
    wait_for_hits(page)
    default = {"limit": "10", "align": "beats", "max_stretch": "0.12", "max_transpose": "2"}
    assert page.evaluate("asked") == [default]
    assert float(page.locator("#heard-tempo").input_value()) == pytest.approx(120, rel=0.005)
    assert page.locator("#heard-tempo-source").inner_text().startswith("heard")
    assert "As heard" in page.locator("#heard-key option").first.inner_text()

    tab_to(page, "#heard-tempo")
    page.keyboard.press("Control+A")
    page.keyboard.type("63")
    page.keyboard.press("Enter")
    page.wait_for_selector('#heard-tempo-source:has-text("said; heard as 1")')
    tab_to(page, "#heard-double")
    page.keyboard.press("Space")
    assert page.locator("#heard-tempo").input_value() == "126"
    tab_to(page, "#heard-key")
    page.keyboard.type("A minor")
    tab_to(page, "#max-stretch")
    page.keyboard.press("Home")
    assert page.locator("#max-stretch-value").inner_text() == "not at all"
    tab_to(page, "#max-transpose")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.locator("#max-transpose-value").inner_text() == "1 semitone"
    until(page, "asked.at(-1).max_transpose === '1'")
    said = {"tempo_bpm": "126", "mix_key": "A minor", "max_stretch": "0", "max_transpose": "1"}
    last = page.evaluate("asked.at(-1)")
    assert last.pop("mix_id")  # no second upload
    assert last == default | said
    wait_for_hits(page)
    assert page.locator("#heard").is_visible()
    assert page.locator("#heard-tempo").input_value() == "126"
    assert page.locator("#heard-key").input_value() == "A minor"
    assert page.locator("#heard-key-source").inner_text() == "said"
    assert "126" in page.evaluate("document.querySelector('#curl').textContent")
    with page.expect_request("**/explain?*") as explained:
        page.locator(".hit").first.get_by_text("More").click()
    assert "tempo_bpm=126" in explained.value.url


def test_keys_are_spelt_as_the_service_spells_them(page):
    assert page.eval_on_selector_all("#heard-key option", "options => options.slice(1).map(({ value }) => value)") == [
        key_name(tonic, mode) for mode in ("major", "minor") for tonic in range(12)
    ]


def test_taps_choose_among_what_may_have_been_heard(page):
    tempo = "async ([taps, heard]) => (await import('./static/tap.js')).tempoOf(taps, heard)"
    assert page.evaluate(tempo, [[0, 490, 1010], None]) is None
    taps = [0, 490, 1010, 1485, 2020]  # 118.8 a minute
    assert page.evaluate(tempo, [taps, None]) == 119
    assert page.evaluate(tempo, [taps, 119.53]) == 119.53
    assert page.evaluate(tempo, [taps, 59.61]) == pytest.approx(119.22)
    assert page.evaluate(tempo, [taps, 178.8]) == pytest.approx(119.2)
    assert page.evaluate(tempo, [taps, 132]) == 119
    tapped = "async ([taps, now]) => (await import('./static/tap.js')).tapped(taps, now)"
    assert page.evaluate(tapped, [[0, 500], 530]) == [0, 500]
    assert page.evaluate(tapped, [[0, 500], 9_000]) == [9_000]


def test_beats_are_drawn_where_the_tempo_is_sure_or_said(page):
    beats = "async ([told, mix]) => (await import('./static/heard.js')).beatsOf(told, mix)"
    told = {"tempo_bpm": 120, "first_beat_s": 0.25, "sources": {"tempo_bpm": "heard"}, "sure": {"tempo_bpm": True}}
    assert page.evaluate(beats, [told, {}]) == {"firstS": 0.25, "everyS": 0.5}
    assert page.evaluate(beats, [told | {"sure": {"tempo_bpm": False}}, {}]) is None
    none = {"tempo_bpm": None, "first_beat_s": None, "sources": {}, "sure": {}}
    assert page.evaluate(beats, [none, {}]) is None
    said = told | {"sources": {"tempo_bpm": "said"}, "sure": {}}
    assert page.evaluate(beats, [said, {"said": {"tempo_bpm": 60}}]) == {"firstS": 0.25, "everyS": 1}
    painted = """async (beats) => {
        const { drawLane } = await import("./static/waveform.js");
        const canvas = document.body.appendChild(document.createElement("canvas"));
        canvas.style = "display: block; width: 400px; height: 40px";
        drawLane(canvas, { from: 0, to: 4, mix: null, stem: null, beats });
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, 1);
        return [...Array(canvas.width).keys()].filter((x) => data[4 * x + 3]);
    }"""
    assert page.evaluate(painted, {"firstS": 1.25, "everyS": 0.5}) == [25, 75, 125, 175, 225, 275, 325, 375]
    assert page.evaluate(painted, {"firstS": 0, "everyS": 0.01}) == []
    assert page.evaluate(painted, None) == []


def test_hit_says_how_it_is_played(page):
    way = "async ([speed, transpose]) => (await import('./static/format.js')).way(speed, transpose)"
    assert page.evaluate(way, [1, 0]) == page.evaluate(way, [1.0002, 0]) == "as recorded"
    assert page.evaluate(way, [0.985, 0]) == "1.5 % slower"
    assert page.evaluate(way, [1, -1]) == "1 semitone down"

    def fit(route):
        """What untrained weights seldom prefer: the first hit, as if it fitted otherwise."""
        answer = route.fetch().json()
        first = answer["hits"][0]
        first |= {"speed": 1.04, "transpose": 2, "score": 3.2, "start_s": -2.08}
        first |= {"cost": 0.28, "harmony_cost": 0.75, "length_cost": 0.55}
        first["stem"] |= {
            "pitched": True,
            "kind": "one-shot",
            "tempo_bpm": 96,
            "sources": {"tempo_bpm": "name", "kind": "heard"},
        }
        first["stem"]["sure"] = {}
        route.fulfill(json=answer)

    page.route("**/retrieve", fit)
    start_demo(page)
    first, second = page.locator(".hit").nth(0), page.locator(".hit").nth(1)
    assert first.locator(".way").inner_text() == "4 % faster, 2 semitones up"
    assert first.locator(".place").inner_text() == "enters 2.00 s into your mix"
    assert first.locator(".chip").all_inner_texts()[-1] == "one-shot"
    assert first.locator(".meta .fact").first.get_attribute("title").startswith("from the file")
    assert second.locator(".way").inner_text() == "as recorded"
    first.get_by_text("More").click()
    less = "\N{MINUS SIGN} 0.28 for playing it otherwise \N{MINUS SIGN} 0.75 for its notes beside the mix's"
    assert f"Score 3.20 = 4.78 {less} \N{MINUS SIGN} 0.55 for its length" in first.inner_text()
    second.get_by_text("More").click()
    assert "otherwise" not in second.inner_text()
    first.locator(".play").click()
    wait_until_heard(page)
    assert page.locator("#now-place").inner_text() == "enters 2.00 s into your mix, 4 % faster, 2 semitones up"


def test_a_demo_mix_of_stems_that_the_browser_cannot_decode_is_heard(page, make_clip, live_service):
    with httpx.Client(base_url=live_service) as client:
        stem_id = add_stem(client, make_clip("bass.aiff").read_bytes(), "bass.aiff", track="As AIFF")
        try:
            wait_ready(client, stem_id)
            page.reload()
            page.get_by_label("Try a demo mix").check()
            page.select_option("#demo-track", "As AIFF")
            page.locator(f'#demo-stems input[value="{stem_id}"]').wait_for(state="attached")
            page.click("#mix-play")
            wait_until_heard(page)
        finally:
            client.delete(f"/stems/{stem_id}")


def test_mix_the_browser_cannot_decode_still_gets_hits(page, make_clip):
    on_the_grid(page)
    drop(page, make_clip("mix.aiff"))
    wait_for_hits(page)
    page.get_by_text("is not possible in this browser").wait_for()
    page.locator(".hit .play").first.click()
    heard = wait_until_heard(page)
    assert heard["listen"] == "stem"
    assert json.loads(heard["schedule"])["mix"] is None
