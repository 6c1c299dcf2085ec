"""What is found by words, kept as a favourite, changed together and saved: the same on SQLite and PostgreSQL."""

import asyncio
import sqlite3
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.catalog.catalog import Catalog
from indexer.catalog.edits import AT_ONCE
from indexer.catalog.records import SearchNotFound, StemFilter, TooManySearches
from indexer.catalog.selecting import conditions
from indexer.catalog.words import words_of
from tests.unit.indexer.catalog.test_catalog import make_live, make_ready, upload

pytestmark = pytest.mark.anyio


async def titles(catalog: Catalog, **wanted: object) -> set[str]:
    found, _ = await catalog.list_stems(StemFilter(**wanted))  # type: ignore[arg-type]
    rows = await catalog.rows_allowed(StemFilter(**wanted))  # type: ignore[arg-type]
    ready = {stem.row for stem in found if stem.state == "ready"}
    assert rows is None or set(rows.tolist()) == ready
    return {stem.title for stem in found}


async def test_words_are_found_in_every_name_whatever_their_case_and_accents(catalog: Catalog) -> None:
    await make_live(catalog, "f")
    said = {
        "title": "Café Bass_01",
        "instrument": "Upright",
        "track": "Straße",
        "collection": "Größe",
        "tags": ("Wärm",),
    }
    await make_ready(catalog, "a", "f", **said)
    await make_ready(catalog, "drums (take 2)", "f", title="Kick")
    for text in ("cafe", "BASS", "bass 01", "upr", "strasse", "GROSSE", "warm cafe", "Cafe\u0301 wa"):
        assert await titles(catalog, text=text) == {"Café Bass_01"}, text
    assert await titles(catalog, text="take dru") == {"Kick"}, "what its file was called"
    assert await titles(catalog, text="dru take") == set(), "only the last word may be a beginning"
    assert await titles(catalog, text="cafe", instruments=("upright",), tags=("wärm",)) == {"Café Bass_01"}
    assert await titles(catalog, text="cafe kick") == set()
    assert await titles(catalog, text="--- *") == set(), "no words"


async def test_the_search_for_words_follows_every_change(catalog: Catalog) -> None:
    await make_live(catalog, "f")
    stem = await make_ready(catalog, "first", "f", tags=("old",))
    await catalog.change_metadata(stem, {"title": "Second", "tags": ["new"]})
    assert await titles(catalog, text="second new") == {"Second"}
    assert await titles(catalog, text="old") == set()
    await catalog.change_metadata(stem, {"tempo_bpm": 120.0})
    await catalog.change_metadata(stem, {"track": "Third"})
    assert await titles(catalog, text="third second new first") == {"Second"}
    await catalog.delete(stem)
    assert await titles(catalog, text="third") == set()


@pytest.mark.parametrize(
    "text", ["a AND", '"', "a OR b*", "NEAR(a, 2)", "title: x", "'a' & !b | (", "-a ^b {", "\\", "%"]
)
async def test_operators_are_text(catalog: Catalog, text: str) -> None:
    await make_live(catalog, "f")
    await make_ready(catalog, "a", "f", title=f"x {text} y")
    assert len(await titles(catalog, text=text)) == bool(words_of([text]))


@given(st.text(st.one_of(st.sampled_from(string.punctuation + " "), st.characters(exclude_categories=["Cs"]))))
def test_no_text_is_a_wrong_question(text: str) -> None:
    with sqlite3.connect(":memory:") as sql:
        sql.execute("CREATE VIRTUAL TABLE stem_words USING fts5(words, tokenize='ascii', detail='none')")
        sql.execute("INSERT INTO stem_words(rowid, words) VALUES (1, ?)", (" ".join(words_of([text])),))
        (condition,) = conditions(StemFilter(text=text), postgresql=False)
        asked = next(value for value in condition.compile().params.values())
        found = sql.execute("SELECT rowid FROM stem_words WHERE stem_words MATCH ?", (asked,)).fetchall()
    sql.close()
    assert found == ([(1,)] if words_of([text]) else [])


async def test_pages_of_a_search_hold_every_stem_once(catalog: Catalog) -> None:
    await catalog.add([upload(f"{word} {n}") for n in range(5) for word in ("bass", "drums")])
    cursor, found = None, []
    while True:
        page, cursor = await catalog.list_stems(StemFilter(text="ba"), limit=2, cursor=cursor)
        found += [stem.title for stem in page]
        if cursor is None:
            break
    assert found == [f"bass {n}" for n in range(5)]


async def test_favourites_and_ratings_are_kept_and_filtered_by(catalog: Catalog) -> None:
    await make_live(catalog, "f")
    for name, said in (("a", {"favourite": True, "rating": 5}), ("b", {"rating": 0}), ("c", {})):
        await make_ready(catalog, name, "f", **said)
    assert await titles(catalog, favourite=True) == {"a"}
    assert await titles(catalog, favourite=False) == {"b", "c"}
    assert await titles(catalog, rating_min=0) == {"a", "b"}, "one that is not rated has no stars"
    (c,), _ = await catalog.list_stems(StemFilter(text="c"))
    assert (c.favourite, c.rating) == (False, None)
    assert (await catalog.change_metadata(c.id, {"favourite": True, "rating": 3})).favourite
    assert await titles(catalog, favourite=True, rating_min=3) == {"a", "c"}


async def test_many_are_changed_a_few_in_each_transaction(catalog: Catalog) -> None:
    await catalog.add([upload(f"n{n}", track="old", tags=("x",)) for n in range(AT_ONCE + 5)] + [upload("other")])
    wanted = StemFilter(tracks=("old",))
    count, until = await catalog.count_stems(wanted)
    assert count == AT_ONCE + 5
    # What is changed does not pass the filter any more; what comes later is not meant.
    await catalog.add([upload("later", track="old")])
    after: int | None = 0
    changed = []
    while after is not None:
        some, queued, after = await catalog.change_some(wanted, lambda stem: ({"track": "new"}, None), after, until)
        changed.append(some)
        assert queued == []
    assert changed == [AT_ONCE, 5]
    assert (await catalog.count_stems(StemFilter(tracks=("new",))))[0] == count
    assert (await catalog.count_stems(StemFilter(text="new", tags=("x",))))[0] == count
    assert await titles(catalog, tracks=("old",)) == {"later"}


async def test_many_that_get_another_tempo_wait_to_be_embedded_again(catalog: Catalog) -> None:
    await make_live(catalog, "f")
    stem = await make_ready(catalog, "a", "f", tempo_bpm=120.0)
    same = await make_ready(catalog, "b", "f", tempo_bpm=90.0)
    changed, queued, _ = await catalog.change_some(StemFilter(), lambda stem: ({"tempo_bpm": 90.0}, None), 0, 100)
    assert (changed, queued) == (2, [stem])
    assert (await catalog.stem(same)).state == "ready"


async def test_saved_searches_are_each_owners_and_not_without_end(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.catalog.searches.MOST_SEARCHES", 3)
    await catalog.save_search("one", "late", {"tag": ["warm"]})
    await catalog.save_search("one", "late", {"tag": ["cold"], "limit": 3})
    assert await catalog.saved_search("one", "late") == {"tag": ["cold"], "limit": 3}
    assert await catalog.saved_searches("two") == {}
    with pytest.raises(SearchNotFound):
        await catalog.delete_search("two", "late")
    for n in range(2):
        await catalog.save_search("one", f"s{n}", {})
    with pytest.raises(TooManySearches):
        await catalog.save_search("one", "one more", {})
    await catalog.save_search("one", "late", {})
    await catalog.delete_search("one", "late")
    assert sorted(await catalog.saved_searches("one")) == sorted(f"s{n}" for n in range(2))


async def test_words_are_found_while_stems_are_changed(catalog: Catalog) -> None:
    await catalog.add([upload(f"bass {n}") for n in range(20)])
    found, _ = await catalog.list_stems(StemFilter(text="bass"))

    async def rename() -> None:
        for stem in found:
            await catalog.change_metadata(stem.id, {"title": f"{stem.title} deep"})

    renaming = asyncio.create_task(rename())
    while not renaming.done():
        assert len(await titles(catalog, text="bass")) == len(found)
    await renaming
    assert len(await titles(catalog, text="deep")) == len(found)
