"""A person's path over the page: give it a mix, see what fits, hear it in place."""

import os
import re

import httpx
import pytest

from tests.browser.person import (
    drop,
    no_serious_faults,
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


def test_demo_mix_leaves_its_own_stems_out(page):
    start_demo(page)
    chosen = page.eval_on_selector_all("#demo-stems input:checked", "boxes => boxes.map((box) => box.value)")
    assert chosen
    assert not set(shown_stems(page)) & set(chosen)


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


def test_a_filter_that_cannot_be_is_shown_where_filters_are_folded(page, make_clip):
    on_the_grid(page)
    drop(page, make_clip())
    wait_for_hits(page)
    page.locator("#filters summary").click()
    page.fill("#tempo-min", "0.5")
    page.locator("#filters summary").click()
    page.click("#find")
    assert page.locator("#tempo-min").is_visible()
    assert page.evaluate("document.activeElement.id") == "tempo-min"


def test_find_brings_the_answer_to_a_phones_view_each_time(page, make_clip):
    on_the_grid(page)
    page.set_viewport_size({"width": 390, "height": 800})
    drop(page, make_clip())
    wait_for_hits(page)
    page.evaluate("scrollTo(0, 0)")
    page.click("#find")
    until(page, "Math.abs(document.querySelector('#results').getBoundingClientRect().top) < innerHeight / 4")


def test_what_the_service_was_away_for_is_said_and_can_be_asked_again(page, make_clip):
    on_the_grid(page)
    drop(page, make_clip())
    wait_for_hits(page)
    hit = page.locator(".hit").first
    away = "The service cannot be reached"
    page.context.set_offline(True)
    for asked in (hit.locator(".star"), hit.get_by_text("Download", exact=True)):
        asked.click()
        hit.get_by_role("alert").get_by_text(away).wait_for()
    hit.get_by_text("More").click()
    hit.locator(".why").get_by_text(away).wait_for()
    page.context.set_offline(False)
    with page.expect_download():
        hit.get_by_text("Download", exact=True).click()
    assert hit.locator(".player-problem").text_content() == ""
    hit.locator(".why").get_by_text("Try again").click()
    hit.get_by_text("Score in other keys").wait_for()


def test_untrained_weights_are_announced(page, live_service):
    if httpx.get(f"{live_service}/readyz").json()["model"]["trained"]:
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
    drop(page, make_clip(), liar)
    page.get_by_role("heading", name="One mix at a time").wait_for()
    assert state(page)["search"] == "idle"
    drop(page, liar)
    page.get_by_role("heading", name="Not audio that we can read").wait_for()
    problem = page.locator("#problem .problem")
    assert problem.locator("h2").inner_text().strip()
    assert problem.locator("p").first.inner_text().strip()
    assert page.locator(".hit").count() == 0
    assert problem.get_by_text("Try again").is_visible()
    page.get_by_label("Try a demo mix").check()
    problem.wait_for(state="detached")
    assert page.locator("#welcome").is_visible()

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
    assert page.evaluate("document.activeElement.id") == "results"
    wait_for_hits(page)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"status": "starting", "model": None, "index": None, "queue": None, "stems": None}, "Starting…"),
        ({"status": "unreachable", "model": None, "index": None}, "The index server cannot be reached"),
        ({"title": "The catalog cannot be reached", "status": 503}, "The catalog cannot be reached"),
    ],
)
def test_a_service_that_is_not_ready_says_why_until_it_is(browser, live_service, answer, said):
    context = browser.new_context()
    page = context.new_page()
    page.route("**/readyz", lambda route: route.fulfill(status=503, json=answer), times=1)
    page.goto(live_service)
    page.locator("#status").get_by_text(said, exact=True).wait_for()
    page.wait_for_selector('body[data-service="ready"]')
    context.close()


def test_a_page_that_asks_too_often_does_not_call_the_service_away(page):
    limit = {"type": "/problems/too-many-requests", "title": "Too many requests", "status": 429}
    page.route("**/readyz", lambda route: route.fulfill(status=429, json=limit))
    with page.expect_response("**/readyz"):
        pass
    page.wait_for_timeout(200)
    assert page.locator("#status").inner_text().startswith("Ready")


def test_a_file_that_was_changed_since_it_was_chosen_is_named(page, make_clip, tmp_path):
    mix, liar = make_clip("bounce.wav"), tmp_path / "notes.wav"
    liar.write_text("not a sound")
    page.route("**/retrieve", lambda route: route.fulfill(status=503, json={"title": "Busy"}), times=1)
    page.set_input_files("#mix-file", mix)
    again = page.get_by_role("button", name="Try again")
    again.wait_for()
    page.get_by_role("link", name="Add stems").click()
    page.set_input_files("#add-files", [mix, liar])
    os.utime(mix, (0, 0))
    again.click()
    page.get_by_role("heading", name="bounce.wav cannot be read any more").wait_for()
    page.click("#add-send")
    page.locator("#add-list li", has_text="bounce.wav cannot be read any more").wait_for()
    page.locator("#add-list li", has_text="Not audio that we can read").wait_for()


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
    assert page.locator("#heard").is_visible()
    page.check('input[name="source"][value="file"]')
    page.check('input[name="source"][value="demo"]')
    assert page.locator("#song").is_visible()
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
    limit, later = {"title": "Too many requests"}, {"Retry-After": "1"}
    page.route("**/jobs/*", lambda route: route.fulfill(status=429, json=limit, headers=later), times=1)
    page.click("#add-send")
    row = page.locator('#add-list li[data-file="added-bass.wav"]')
    try:
        page.wait_for_selector('#add-list li[data-file="added-bass.wav"][data-state="ready"]')
        page.wait_for_selector('#add-list li[data-file="notes.wav"][data-state="failed"]')
        assert row.locator(".add-state").inner_text() == "ready"
        assert len(page.locator('#add-list li[data-file="notes.wav"] .add-state').inner_text()) > len("failed")
        listed = httpx.get(f"{live_service}/stems", params={"track": "Browser test"}).json()["stems"]
        assert [(stem["file_name"], stem["tempo_bpm"]) for stem in listed] == [("added-bass.wav", 120.0)]
        page.get_by_role("button", name="Clear the finished").click()
        assert page.locator("#add-list li").count() == 1
        assert page.evaluate("document.activeElement.id") == "add-files"
    finally:
        for stem in httpx.get(f"{live_service}/stems", params={"track": "Browser test"}).json()["stems"]:
            httpx.delete(f"{live_service}/stems/{stem['id']}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_has_no_serious_faults_and_never_scrolls_sideways(page, scheme):
    page.emulate_media(color_scheme=scheme)
    start_demo(page)
    page.locator(".hit .play").first.click()
    wait_until_heard(page)
    page.evaluate("document.querySelectorAll('details').forEach((panel) => (panel.open = true))")
    no_serious_faults(page)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, f"{width} px, {scheme}"
