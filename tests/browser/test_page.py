"""A person's path over the page: give it a mix, see what fits, hear it in place."""

import base64
import json
import re
import time
from pathlib import Path

import httpx
import pytest

from model.audio.harmony import key_name

pytestmark = pytest.mark.browser

WIDTHS = (320, 390, 820, 1280)
TAB_LIMIT = 120
PATIENCE_S = 120
# The schedule is computed from the hit's own start; only JSON lies in between.
START_TOLERANCE_S = 1e-6
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
    """Embed each mix once and not 63 times: for tests that are not about alignment."""
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


def test_dropping_a_clip_shows_hits_that_play(page, make_clip):
    drop(page, make_clip())
    wait_for_hits(page)
    hits = page.locator(".hit")
    assert hits.count() > 1
    assert hits.first.locator(".rank").inner_text() == "1"
    place = hits.first.locator(".place").inner_text()
    assert re.fullmatch(r"from \d+:\d\d\.\d\d|enters \d+\.\d\d s into your mix", place)

    hits.first.locator(".play").click()
    heard = wait_until_heard(page)
    assert heard["playing"] == hits.first.get_attribute("data-stem")
    start_s = float(hits.first.get_attribute("data-start"))
    schedule = json.loads(heard["schedule"])
    mix_s, stem_s = (schedule[role]["offsetS"] - schedule[role]["delayS"] for role in ("mix", "stem"))
    assert stem_s - mix_s == pytest.approx(start_s, abs=START_TOLERANCE_S)

    page.keyboard.press("Escape")
    page.wait_for_selector('body[data-player="idle"]')


def test_player_starts_both_sources_where_the_hit_says(page):
    """A stem that has begun is entered at its second; one that enters late waits for it; a seek keeps both together."""
    schedule = """async (query) => (await import("./static/player.js")).schedule(query)"""
    late = page.evaluate(schedule, {"at": 0, "lengthS": 8, "mixS": 8, "stemS": 20, "startS": -1.25})
    assert late["mix"] == {"delayS": 0, "offsetS": 0, "durationS": 8}
    assert late["stem"] == {"delayS": 1.25, "offsetS": 0, "durationS": 6.75}
    begun = page.evaluate(schedule, {"at": 0, "lengthS": 8, "mixS": 8, "stemS": 20, "startS": 15.5})
    assert begun["stem"] == {"delayS": 0, "offsetS": 15.5, "durationS": 4.5}
    sought = page.evaluate(schedule, {"at": 3, "lengthS": 8, "mixS": 8, "stemS": 20, "startS": -1.25})
    assert sought["mix"] == {"delayS": 0, "offsetS": 3, "durationS": 5}
    assert sought["stem"] == {"delayS": 0, "offsetS": 1.75, "durationS": 5}
    first = """async ([start, listen]) => (await import("./static/player.js")).firstSecond(start, listen)"""
    assert page.evaluate(first, [15.5, "both"]) == 0
    assert page.evaluate(first, [-1.25, "both"]) == 0
    assert page.evaluate(first, [-75, "both"]) == 73
    assert page.evaluate(first, [-75, "stem"]) == 75
    over = page.evaluate(schedule, {"at": 6, "lengthS": 8, "mixS": 8, "stemS": 20, "startS": 15.5})
    assert over["stem"] is None


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
    page.locator(".hit").first.get_by_text("Stem alone").click()
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
    assert page.evaluate("asked.at(-1)") == default | said
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


def test_hit_says_how_it_is_to_be_played_and_that_it_is_heard_as_recorded(page):
    way = "async ([speed, transpose]) => (await import('./static/format.js')).way(speed, transpose)"
    assert page.evaluate(way, [1, 0]) == page.evaluate(way, [1.0002, 0]) == "as recorded"
    assert page.evaluate(way, [0.985, 0]) == "1.5 % slower"
    assert page.evaluate(way, [1, -1]) == "1 semitone down"

    def fit(route):
        """What untrained weights seldom prefer: the first hit, as if it fitted otherwise."""
        answer = route.fetch().json()
        first = answer["hits"][0]
        first |= {"speed": 1.04, "transpose": 2, "cost": 0.28, "score": 3.2, "start_s": -2.08}
        first["stem"] |= {"kind": "loop", "tempo_bpm": 96, "sources": {"tempo_bpm": "name", "kind": "heard"}}
        first["stem"]["sure"] = {}
        route.fulfill(json=answer)

    page.route("**/retrieve", fit)
    start_demo(page)
    first, second = page.locator(".hit").nth(0), page.locator(".hit").nth(1)
    assert first.locator(".way").inner_text() == "4 % faster, 2 semitones up"
    assert first.locator(".place").inner_text() == "enters 2.00 s into your mix"
    assert "heard as recorded" in first.inner_text()
    assert first.locator(".chip").all_inner_texts()[-1] == "loop"
    assert first.locator(".meta .fact").first.get_attribute("title").startswith("from the file")
    assert second.locator(".way").inner_text() == "as recorded"
    assert "heard as recorded" not in second.inner_text()
    first.get_by_text("Windows").click()
    assert "Score 3.20 = 3.48 \N{MINUS SIGN} 0.28 for playing it otherwise" in first.inner_text()
    second.get_by_text("Windows").click()
    assert "otherwise" not in second.inner_text()
    first.locator(".play").click()
    schedule = json.loads(wait_until_heard(page)["schedule"])
    assert schedule["stem"]["delayS"] - schedule["mix"]["delayS"] == pytest.approx(2.0, abs=START_TOLERANCE_S)
    assert "heard as recorded" in page.locator("#now-place").inner_text()


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
    assert re.search(r"proven exact on the shift grid|not proven exact", facts, re.IGNORECASE)
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


def shown_stems(page) -> list[str]:
    return page.eval_on_selector_all(".hit", "hits => hits.map((hit) => hit.dataset.stem)")


def test_going_back_or_reloading_shows_the_last_answer_without_another_upload(page, watch, live_service, make_clip):
    on_the_grid(page)
    drop(page, make_clip("first.wav"))
    wait_for_hits(page)
    asked, hits = len([url for url in watch.requests if url.endswith("/retrieve")]), shown_stems(page)

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
    page.click("#find")
    page.get_by_text("has to be dropped again").wait_for()
    assert len([url for url in watch.requests if url.endswith("/retrieve")]) == asked

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
