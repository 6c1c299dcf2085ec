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


def test_words_narrow_a_search_to_the_stems_that_have_them(page, make_clip):
    drop(page, make_clip())
    wait_for_hits(page)
    page.locator("#filters summary").click()
    page.fill('#filters input[name="q"]', "bass")
    with page.expect_response("**/retrieve") as response:
        page.locator("#find").click()
    found = [hit["stem"] for hit in response.value.json()["hits"]]
    assert found
    assert all("bass" in f"{stem['title']} {stem['instrument']}".lower() for stem in found)
