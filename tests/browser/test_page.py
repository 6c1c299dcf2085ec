"""A person's path over the page: give it a mix, see what fits, hear it in place."""

import json
import re

import httpx
import pytest

from model.audio.harmony import key_name
from tests.browser.person import (
    drop,
    note_searches,
    on_the_grid,
    shown_stems,
    start_demo,
    state,
    tab_to,
    until,
    wait_for_hits,
    wait_until_heard,
)

pytestmark = pytest.mark.browser

WIDTHS = (320, 390, 820, 1280)


def test_dropping_a_clip_shows_hits_that_play(page, make_clip):
    drop(page, make_clip())
    wait_for_hits(page)
    hits = page.locator(".hit")
    assert hits.count() > 1
    assert hits.first.locator(".rank").inner_text() == "1"
    place = hits.first.locator(".place").inner_text()
    assert re.fullmatch(r"from \d+:\d\d\.\d\d|enters \d+\.\d\d s into your mix", place)

    hits.first.locator(".play").click()
    assert wait_until_heard(page)["playing"] == hits.first.get_attribute("data-stem")
    page.keyboard.press("Escape")
    page.wait_for_selector('body[data-player="idle"]')


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


def test_demo_mix_leaves_its_own_stems_out(page):
    page.get_by_label("Try a demo mix").check()
    on_the_grid(page)
    page.wait_for_selector("#demo-stems input")
    chosen = page.eval_on_selector_all("#demo-stems input:checked", "boxes => boxes.map((box) => box.value)")
    assert chosen
    page.click("#find")
    wait_for_hits(page)
    shown = page.eval_on_selector_all(".hit", "hits => hits.map((hit) => hit.dataset.stem)")
    assert not set(shown) & set(chosen)


def test_tempo_and_key_that_were_heard_can_be_corrected_by_keyboard(page, make_clip):
    note_searches(page)
    drop(page, make_clip())  # on every half second something begins
    wait_for_hits(page)
    default = {"limit": "10", "align": "beats", "max_stretch": "0.12", "max_transpose": "2"}
    assert page.evaluate("asked") == [default]
    assert float(page.locator("#heard-tempo").input_value()) == pytest.approx(120, rel=0.005)
    assert page.locator("#heard-tempo-source").inner_text().startswith("heard")
    assert "Hear it" in page.locator("#heard-key option").first.inner_text()

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
        first |= {"speed": 1.04, "transpose": 2, "cost": 0.28, "score": 3.2, "start_s": -2.08}
        first["stem"] |= {"kind": "one-shot", "tempo_bpm": 96, "sources": {"tempo_bpm": "name", "kind": "heard"}}
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
    assert "Score 3.20 = 3.48 \N{MINUS SIGN} 0.28 for playing it otherwise" in first.inner_text()
    second.get_by_text("More").click()
    assert "otherwise" not in second.inner_text()
    first.locator(".play").click()
    wait_until_heard(page)
    assert page.locator("#now-place").inner_text() == "enters 2.00 s into your mix, 4 % faster, 2 semitones up"


def test_filters_widen_to_compatible_keys_and_half_and_double_tempi(page):
    page.locator("#filters summary").click()
    page.get_by_label("Compatible keys too").check()
    page.get_by_label("Half and double too").check()
    asked = "document.querySelector('#curl').textContent"
    assert "key_match" not in page.evaluate(asked)
    assert "tempo_octaves" not in page.evaluate(asked)
    page.fill("#tempo-max", "100")
    page.locator('#filters input[name="key"]').first.check()
    page.locator('#filters input[name="kind"]').first.check()
    line = page.evaluate(asked)
    for field in ("key_match=compatible", "tempo_octaves=true", "tempo_max=100", "kind="):
        assert f"'{field}" in line
    assert page.locator("#filter-count").inner_text() == "3"


def test_untrained_weights_are_announced(page, live_service):
    if httpx.get(f"{live_service.rstrip('/')}/readyz").json()["model"]["trained"]:
        assert page.locator("#untrained").is_hidden()
        return
    banner = page.locator("#untrained")
    assert banner.is_visible()
    assert "untrained" in banner.inner_text().lower()
    box = banner.bounding_box()
    assert box["y"] + box["height"] < page.viewport_size["height"]


def test_unreadable_file_shows_the_problem_and_the_next_works(page, make_clip, tmp_path):
    on_the_grid(page)
    liar = tmp_path / "shopping-list.wav"
    liar.write_text("eggs, milk, a bass line")
    drop(page, liar)
    problem = page.locator("#problem .problem")
    problem.wait_for()
    assert problem.locator("h2").inner_text().strip()
    assert problem.locator("p").first.inner_text().strip()
    assert page.locator(".hit").count() == 0
    assert problem.get_by_text("Try again").is_visible()

    drop(page, make_clip())
    wait_for_hits(page)
    assert page.locator("#problem .problem").count() == 0


def test_answer_says_how_far_it_looked_and_how_long_it_took(page, make_clip):
    drop(page, make_clip())
    wait_for_hits(page)
    assert re.search(r"Looked at .* s.*(ms apart|grid)", page.locator("#answer-mix").inner_text())
    facts = page.locator("#facts").inner_text()
    assert re.search(r"proven exact at the starts that were tried|not proven exact", facts, re.IGNORECASE)
    assert re.search(r"total [\d.]+ (ms|s)", facts)
    assert re.search(r"generation \d+", facts)


def test_keyboard_alone_finds_and_plays(page):
    tab_to(page, 'input[name="source"]')
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#demo-stems input")
    tab_to(page, 'input[name="align"]')
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    assert page.locator('input[value="grid"]').is_checked()
    tab_to(page, "#find")
    page.keyboard.press("Enter")
    wait_for_hits(page)
    tab_to(page, ".hit .play")
    page.keyboard.press("Enter")
    wait_until_heard(page)
    tab_to(page, '#transport input[name="listen"]')
    page.keyboard.press("ArrowRight")
    assert state(page)["listen"] == "stem"
    tab_to(page, "#balance")
    page.keyboard.press("Home")
    assert page.locator("#balance").input_value() == "-1"
    page.keyboard.press("Escape")
    page.wait_for_selector('body[data-player="idle"]')


def test_keyboard_alone_chooses_a_file(page, make_clip):
    on_the_grid(page)
    with page.expect_file_chooser() as chooser:
        # Asked for before the way there: a press can overtake the interception, but nothing that is evaluated can.
        tab_to(page, "#mix-file")
        page.keyboard.press("Space")
    chooser.value.set_files(make_clip())
    wait_for_hits(page)


def test_curl_line_repeats_the_search(page, make_clip):
    on_the_grid(page)
    page.locator("#filters summary").click()
    page.fill("#tempo-min", "60")
    page.fill("#limit", "3")
    page.set_input_files("#mix-file", make_clip('it\'s "mine".wav'))
    wait_for_hits(page)
    assert page.locator(".hit").count() <= 3
    page.locator("#curl-panel summary").click()
    line = page.locator("#curl").inner_text()
    assert "/retrieve'" in line
    assert """-F 'file=@"it'\\''s \\"mine\\".wav"'""" in line
    assert "'limit=3'" in line
    assert "'tempo_min=60'" in line


def test_locked_service_asks_for_a_key_and_sends_it(page, make_clip):
    on_the_grid(page)
    seen = []

    def lock(route):
        seen.append(route.request.headers.get("authorization"))
        if seen[-1] == "Bearer open sesame":
            route.fallback()
            return
        problem = {"type": "key-required", "title": "An API key is needed", "detail": "Send it as Bearer."}
        route.fulfill(status=401, json=problem)

    page.route("**/retrieve", lock)
    drop(page, make_clip())
    page.locator("#key-input").wait_for()
    page.keyboard.type("open sesame")
    page.keyboard.press("Enter")
    wait_for_hits(page)
    assert seen == [None, "Bearer open sesame"]
    assert page.evaluate("sessionStorage.length") == 1
    assert page.evaluate("localStorage.length") == 0
    assert "open sesame" not in page.locator("#curl").inner_text()


def test_busy_service_says_when_to_come_back(page, make_clip):
    on_the_grid(page)
    problem = {"type": "queue-full", "title": "Too many queries are waiting", "detail": "64 wait already."}
    later = {"Retry-After": "7"}
    page.route("**/retrieve", lambda route: route.fulfill(status=503, json=problem, headers=later), times=1)
    drop(page, make_clip())
    page.get_by_text("come back in 7 s").wait_for()
    page.get_by_role("button", name="Try again").click()
    wait_for_hits(page)


def test_starting_service_is_shown_until_it_is_ready(browser, live_service):
    context = browser.new_context()
    page = context.new_page()
    starting = {"status": "starting", "model": None, "index": None, "queue": None, "stems": None}
    page.route("**/readyz", lambda route: route.fulfill(status=503, json=starting), times=1)
    page.goto(live_service)
    page.get_by_text("Starting").wait_for()
    page.wait_for_selector('body[data-service="ready"]')
    context.close()


def test_mix_the_browser_cannot_decode_still_gets_hits(page, make_clip):
    on_the_grid(page)
    drop(page, make_clip("mix.aiff"))
    wait_for_hits(page)
    page.get_by_text("is not possible in this browser").wait_for()
    page.locator(".hit .play").first.click()
    heard = wait_until_heard(page)
    assert heard["listen"] == "stem"
    assert json.loads(heard["schedule"])["mix"] is None


def test_going_back_or_reloading_shows_the_last_answer_without_another_upload(page, live_service, make_clip):
    on_the_grid(page)
    drop(page, make_clip("first.wav"))
    wait_for_hits(page)
    hits = shown_stems(page)

    page.get_by_role("link", name="API docs").click()
    page.wait_for_url("**/docs")
    page.go_back()
    wait_for_hits(page)
    page.reload()
    wait_for_hits(page)
    assert shown_stems(page) == hits
    assert "first.wav" in page.locator("#answer-title").inner_text()
    assert "Drop the mix again" in page.locator("#warnings").inner_text()
    page.locator(".hit .play").first.click()
    assert wait_until_heard(page)["listen"] == "stem"
    on_the_grid(page)
    with page.expect_request("**/retrieve") as request:  # the service kept the mix for a while
        page.click("#find")
    assert 'name="mix_id"' in request.value.post_data
    until(page, "document.body.dataset.player === 'idle'")
    wait_for_hits(page)
    assert shown_stems(page) == hits
    over = {"type": "/problems/mix-not-found", "title": "No such mix"}
    page.route("**/retrieve", lambda route: route.fulfill(status=404, json=over), times=1)
    page.click("#find")
    page.get_by_text("has to be dropped again").wait_for()

    drop(page, make_clip("second.wav", seed=1))
    page.get_by_text("for second.wav").wait_for()
    assert "Drop the mix again" not in page.locator("#warnings").inner_text()
    page.get_by_role("link", name="API docs").click()
    page.wait_for_url("**/docs")
    page.goto(live_service)  # a new visit, not a return
    page.wait_for_selector('body[data-service="ready"]')
    assert page.locator(".hit").count() == 0


def test_a_demo_mix_still_plays_with_its_hits_after_a_reload(page):
    on_the_grid(page)
    page.get_by_label("Try a demo mix").check()
    page.locator("#demo-stems input").first.uncheck()
    page.click("#find")
    wait_for_hits(page)
    hits, ticked = shown_stems(page), "[...document.querySelectorAll('#demo-stems input')].map((box) => box.checked)"
    mix = page.evaluate(ticked)
    page.reload()
    wait_for_hits(page)
    assert shown_stems(page) == hits
    page.wait_for_selector("#demo-stems input")
    assert page.evaluate(ticked) == mix
    page.locator(".hit .play").first.click()
    assert wait_until_heard(page)["listen"] == "both"


def test_added_stems_report_each_its_own_state(page, live_service, make_clip, tmp_path):
    liar = tmp_path / "notes.wav"
    liar.write_text("not a sound")
    good = make_clip("added-bass.wav", seconds=6.0, seed=20260505)
    page.get_by_role("link", name="Add stems").click()
    page.fill("#add-track", "Browser test")
    page.fill("#add-tempo", "120")
    drop(page, good, liar, on="#add-drop")
    assert page.locator("#add-list li").count() == 2
    page.click("#add-send")
    row = page.locator('#add-list li[data-file="added-bass.wav"]')
    try:
        page.wait_for_selector('#add-list li[data-file="added-bass.wav"][data-state="ready"]')
        page.wait_for_selector('#add-list li[data-file="notes.wav"][data-state="failed"]')
        assert row.locator(".add-state").inner_text() == "ready"
        assert len(page.locator('#add-list li[data-file="notes.wav"] .add-state').inner_text()) > len("failed")
        listed = httpx.get(f"{live_service.rstrip('/')}/stems", params={"track": "Browser test"}).json()["stems"]
        assert [(stem["file_name"], stem["tempo_bpm"]) for stem in listed] == [("added-bass.wav", 120.0)]
    finally:
        for stem in httpx.get(f"{live_service.rstrip('/')}/stems", params={"track": "Browser test"}).json()["stems"]:
            httpx.delete(f"{live_service.rstrip('/')}/stems/{stem['id']}")


def test_every_control_has_a_name(page):
    start_demo(page)
    page.locator(".hit .play").first.click()
    wait_until_heard(page)
    page.evaluate("document.querySelectorAll('details').forEach((panel) => (panel.open = true))")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, a, summary, canvas")]
            .filter((element) => element.checkVisibility())
            .filter((element) => {
                const labels = [...(element.labels ?? [])].map((label) => label.textContent).join("");
                return !(element.getAttribute("aria-label") || labels || element.textContent).trim();
            })
            .map((element) => element.outerHTML.slice(0, 120))"""
    )
    assert nameless == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_never_scrolls_sideways(page, scheme):
    page.emulate_media(color_scheme=scheme)
    start_demo(page)
    page.locator(".hit .play").first.click()
    wait_until_heard(page)
    page.evaluate("document.querySelectorAll('details').forEach((panel) => (panel.open = true))")
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, f"{width} px, {scheme}"
