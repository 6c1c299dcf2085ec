"""Finding a stem again: by words, and by a star."""

import httpx
import pytest

from tests.browser.person import drop, shown_stems, wait_for_hits

pytestmark = pytest.mark.browser


def test_a_starred_hit_is_all_that_a_search_among_favourites_finds(page, make_clip, live_service):
    drop(page, make_clip())
    wait_for_hits(page)
    stem_id = shown_stems(page)[1]
    star = page.locator(f'.hit[data-stem="{stem_id}"] .star')
    with page.expect_response(lambda response: response.request.method == "PATCH") as changed:
        star.click()
    assert changed.value.ok
    page.locator(f'.hit[data-stem="{stem_id}"] .star[aria-pressed="true"]').wait_for()
    page.locator("#filters summary").click()
    page.get_by_label("Favourites only").check()
    try:
        with page.expect_response("**/retrieve"):
            page.locator("#find").click()
        wait_for_hits(page)
        assert shown_stems(page) == [stem_id]
    finally:
        httpx.patch(f"{live_service}/stems/{stem_id}", json={"favourite": False}).raise_for_status()


def test_a_saved_search_fills_the_form_again_after_a_reload_and_can_be_forgotten(page, make_clip, live_service):
    page.locator("#filters summary").click()
    page.locator('#filters label:has(input[name="instrument"])').first.click()
    page.fill('#filters input[name="q"]', "bass")
    page.fill("#limit", "3")
    page.locator('input[name="align"][value="grid"]').check()
    saving = page.get_by_label("Name of this search")
    saving.fill("Bässe / <b>")
    saving.press("Enter")
    page.get_by_text("Saved as “Bässe / <b>”.").wait_for()
    asked = page.locator("#curl").text_content()
    (saved,) = httpx.get(f"{live_service}/searches").json()["searches"]
    assert (saved["name"], saved["search"]["q"], saved["search"]["limit"]) == ("Bässe / <b>", "bass", 3)
    page.reload()
    page.locator("#filters summary").click()
    page.get_by_role("button", name="Bässe / <b>", exact=True).click()
    page.wait_for_timeout(1000)  # by then, whoever moved a slider would have asked
    assert page.locator("#problem .problem").count() == 0, "there is no mix to search with"
    assert page.locator("#curl").text_content() == asked
    page.get_by_role("button", name="Forget “Bässe / <b>”").click()
    page.locator("#saved-list li").wait_for(state="detached")
    assert page.evaluate("document.activeElement.id") == "saved-name"
    assert httpx.get(f"{live_service}/searches").json() == {"searches": []}


def test_what_a_saved_search_asks_beside_the_form_is_said(page, live_service):
    search = {"rating_min": 4, "tag": [], "q": None, "favourite": False, "key_match": "exact", "max_transpose": 0}
    httpx.put(f"{live_service}/searches/rated", json=search).raise_for_status()
    try:
        page.reload()
        page.locator("#filters summary").click()
        page.get_by_role("button", name="rated", exact=True).click()
        said = "“rated” also says favourite, rating_min, which this page does not ask."
        assert page.locator("#saved-note").text_content() == said
    finally:
        httpx.delete(f"{live_service}/searches/rated").raise_for_status()


def test_after_a_reload_the_form_asks_what_the_answer_was_asked(page, make_clip):
    page.locator("#filters summary").click()
    page.fill('#filters input[name="q"]', "e")
    page.fill("#limit", "3")
    page.fill("#tempo-max", "100")
    page.get_by_label("Half and double too").check()
    page.locator('#filters input[name="key"]').first.check()
    page.get_by_label("Compatible keys too").check()
    drop(page, make_clip())
    page.wait_for_selector('body[data-search="done"]')
    with page.expect_response("**/retrieve"):
        page.locator("#max-stretch").fill("20")
    page.wait_for_selector('body[data-search="done"]')
    asked, filters = page.locator("#curl").text_content(), page.locator("#filter-count").inner_text()
    assert ("max_stretch=0.2" in asked, "key_match=compatible" in asked, filters) == (True, True, "3")
    page.reload()
    page.locator('#filters input[name="key"]').first.wait_for(state="attached")
    assert page.locator("#curl").text_content() == asked
    assert page.locator("#filter-count").inner_text() == filters
    assert page.locator("#max-stretch-value").inner_text() == "20 %"
