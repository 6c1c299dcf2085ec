"""What the catalog knows of stems' music, on SQLite and PostgreSQL."""

from dataclasses import replace

import numpy as np
import pytest
from sqlalchemy import update

from indexer.catalog import tables
from indexer.catalog.catalog import Catalog
from indexer.catalog.records import SaidMusic, StemFilter, StemMusic
from tests.unit.indexer.catalog.test_catalog import embeddings, make_live, make_ready, upload

pytestmark = pytest.mark.anyio

GRID = np.arange(17) * 0.5
BEATS = np.array([0.0, 8.5, np.nan])
HEARD = StemMusic(
    kind="loop",
    pitched=True,
    tempo_bpm=120.0,
    key="A minor",
    sources={"tempo_bpm": "heard", "key": "heard", "kind": "heard"},
    sure={"tempo_bpm": True, "key": False},
    beats_s=GRID,
    beat_bpm=120.0,
    warnings=("its end clicks",),
    chroma=np.linspace(-1, 1, 12, dtype=np.float32),
)
UNHEARD = replace(HEARD, pitched=False, tempo_bpm=None, key=None, sources={"kind": "heard"}, sure={}, beats_s=None)
UNHEARD = replace(UNHEARD, beat_bpm=None, kind="one-shot", warnings=(), chroma=None)
AT_100 = replace(HEARD, tempo_bpm=100.0, beat_bpm=100.0, sources={**HEARD.sources, "tempo_bpm": "said"})


async def waiting(catalog: Catalog, name: str, **said: object) -> int:
    _, (stem_id,) = await catalog.add([upload(name, **said)])
    return (await catalog.stem(stem_id)).row


async def store(catalog: Catalog, row: int, music: StemMusic, seed: int = 0) -> bool:
    return await catalog.store_embeddings(row, "f", *embeddings(seed=seed), beats=BEATS, music=music)


async def analysed(catalog: Catalog, name: str, music: StemMusic, **said: object) -> int:
    row = await waiting(catalog, name, **said)
    assert await store(catalog, row, music)
    return row


async def test_an_analysis_is_stored_with_the_embeddings_it_laid(catalog: Catalog) -> None:
    await make_live(catalog, "f")
    row = await analysed(catalog, "a", HEARD)
    stem = (await catalog.stems_by_row([row]))[row]
    assert (stem.kind, stem.pitched, stem.tempo_bpm, stem.key) == ("loop", True, 120.0, "A minor")
    assert (stem.sources, stem.sure, stem.beat_bpm) == (HEARD.sources, HEARD.sure, 120.0)
    assert stem.warnings == ("its end clicks",)
    music = (await catalog.music_of([row]))[row]
    np.testing.assert_array_equal(music.beats_s, GRID)
    np.testing.assert_array_equal(music.chroma, HEARD.chroma)
    assert vars(replace(music, beats_s=None, chroma=None)) == vars(replace(HEARD, beats_s=None, chroma=None))
    stored = (await catalog.embeddings_of([row], "f"))[row]
    for found, given in zip(vars(stored).values(), (*embeddings()[:2], BEATS, embeddings()[2]), strict=False):
        np.testing.assert_array_equal(found, given)
    np.testing.assert_array_equal((await catalog.changes_since(0, "f")).upserted[row].beats, BEATS)
    assert (await catalog.list_stems(StemFilter(keys=("a MINOR",), kinds=("loop",))))[0] == [stem]
    assert (await catalog.values())["kinds"] == ["loop"]


async def test_the_next_analysis_replaces_all_of_the_one_before(catalog: Catalog) -> None:
    await make_live(catalog, "f")
    row = await analysed(catalog, "a", HEARD)
    await store(catalog, row, UNHEARD)
    music = (await catalog.music_of([row]))[row]
    assert vars(music) == vars(UNHEARD)
    assert (await catalog.stems_by_row([row]))[row].warnings == ()


async def test_a_stem_without_beats_is_in_clock_time(catalog: Catalog) -> None:
    await make_live(catalog, "f")
    stem = await catalog.stem(await make_ready(catalog, "a", "f"))
    assert np.isnan((await catalog.embeddings_of([stem.row], "f"))[stem.row].beats).tolist() == [True] * 3
    assert await catalog.music_of([stem.row]) == {}
    assert (stem.kind, stem.pitched, stem.sources, stem.sure) == (None, None, {}, {})


async def test_a_worker_is_told_what_was_said(catalog: Catalog) -> None:
    _, (stem_id,) = await catalog.add([upload("a", tempo_bpm=92.0, key="Am", track="one", kind="piece")])
    job = await catalog.stem_for_embedding(stem_id)
    assert job is not None
    assert (job.state, job.duration_s, job.track, job.said_beats) == ("queued", 10.0, "one", None)
    assert (job.tempo_bpm, job.key, job.kind) == (92.0, "Am", "piece")
    assert job.sources == {"tempo_bpm": "said", "key": "said", "kind": "said"}


async def test_what_was_said_outlasts_what_is_heard(catalog: Catalog) -> None:
    await make_live(catalog, "f")
    row = await analysed(catalog, "a", AT_100, tempo_bpm=100.0, key="C major")
    stem = (await catalog.stems_by_row([row]))[row]
    assert (stem.tempo_bpm, stem.key) == (100.0, "C major")
    assert stem.sources == {"tempo_bpm": "said", "key": "said", "kind": "heard"}
    assert stem.sure == {}


async def test_an_analysis_by_another_tempo_than_the_one_said_now_is_not_stored(catalog: Catalog) -> None:
    await make_live(catalog, "f")
    row = await waiting(catalog, "a", tempo_bpm=90.0)
    assert not await store(catalog, row, AT_100)
    assert not await store(catalog, row, HEARD)
    assert await catalog.music_of([row]) == {}
    assert not await catalog.embeddings_exist(row, "f")
    assert (await catalog.counts())["queued"] == 1


async def test_an_analysis_by_a_tempo_that_is_not_said_any_more_is_not_stored(catalog: Catalog) -> None:
    row = await waiting(catalog, "a")
    assert not await store(catalog, row, AT_100)
    assert not await catalog.embeddings_exist(row, "f")


async def test_beat_times_are_asked_for_around_the_octaves_end(catalog: Catalog) -> None:
    await make_live(catalog, "f")
    slow, middle, fast = [
        await analysed(catalog, f"{bpm}", replace(HEARD, tempo_bpm=bpm, beat_bpm=bpm)) for bpm in (86.0, 120.0, 168.0)
    ]
    none = await analysed(catalog, "none", UNHEARD)

    async def found(**wanted: object) -> list[int]:
        rows = await catalog.rows_allowed(StemFilter(**wanted))  # type: ignore[arg-type]
        assert rows is not None
        return rows.tolist()

    assert await found(beat_bpm=(100.0, 140.0)) == [middle]
    assert await found(beat_bpm=(160.0, 90.0)) == [slow, fast]
    assert await found(in_beat_time=True) == [slow, middle, fast]
    assert await found(in_beat_time=False) == [none]
    assert await found(kinds=("one-shot", "piece")) == [none]
    assert await found(as_recorded_bpm=(100.0, 140.0)) == [middle, none], "what has no tempo may have any"


async def test_half_and_double_tempo_are_found_where_they_are_meant(catalog: Catalog) -> None:
    await make_live(catalog, "f")
    half, same, double, other = [
        await make_ready(catalog, f"{bpm}", "f", tempo_bpm=bpm) for bpm in (60.0, 120.0, 240.0, 90.0)
    ]

    async def found(**wanted: object) -> list[str]:
        return [stem.id for stem in (await catalog.list_stems(StemFilter(**wanted)))[0]]  # type: ignore[arg-type]

    assert await found(tempo_min=119.0, tempo_max=121.0) == [same]
    assert await found(tempo_min=119.0, tempo_max=121.0, tempo_octaves=True) == [half, same, double]
    assert await found(tempo_min=200.0, tempo_octaves=True) == [same, double]  # 120 is the half of 240
    assert await found(tempo_max=100.0) == [half, other]


async def test_siblings_are_the_stems_that_begin_and_end_together(catalog: Catalog) -> None:
    await make_live(catalog, "f")
    row = await waiting(catalog, "drums", track="one")
    await analysed(catalog, "bass", HEARD, track="ONE")
    await waiting(catalog, "keys", track="one")
    await waiting(catalog, "other", track="two")
    await waiting(catalog, "loop")
    longer = upload("pads", track="one")
    assert longer.facts is not None
    await catalog.add([replace(longer, facts=replace(longer.facts, duration_s=10.06))])
    assert await catalog.siblings(row) == [upload(name).sha256 for name in ("bass", "keys")]


async def test_what_a_file_says_is_kept_with_its_sources(catalog: Catalog) -> None:
    sources = {"tempo_bpm": "tags", "key": "said", "kind": "name"}
    music = SaidMusic(96.0, "Cm", "loop", 16.0, sources, warnings=("its tags say 96 BPM, its name says 100 BPM",))
    _, (stem_id,) = await catalog.add([replace(upload("a", key="Cm"), music=music)])
    stem, job = await catalog.stem(stem_id), await catalog.stem_for_embedding(stem_id)
    assert job is not None
    assert (stem.tempo_bpm, stem.key, stem.kind, job.said_beats) == (96.0, "Cm", "loop", 16.0)
    assert stem.sources == job.sources == sources
    assert stem.warnings == music.warnings
    assert (await catalog.list_stems(StemFilter(keys=("cm",), kinds=("loop",))))[0] == [stem]


async def test_a_loops_exact_tempo_is_found_as_it_was_written(catalog: Catalog) -> None:
    music = SaidMusic(92.99997, None, None, 16.0, {"tempo_bpm": "name"})
    _, (stem_id,) = await catalog.add([replace(upload("a"), music=music)])
    for wanted in (StemFilter(tempo_min=93.0), StemFilter(tempo_max=92.99), StemFilter(tempo_min=93.02)):
        found, _ = await catalog.list_stems(wanted)
        assert [stem.id for stem in found] == ([stem_id] if wanted.tempo_min == 93.0 else [])


async def ready(catalog: Catalog, **said: object) -> str:
    """The id of a stem of which more was heard."""
    await make_live(catalog, "f")
    row = await analysed(catalog, "a", replace(HEARD, tempo_bpm=said.get("tempo_bpm", 120.0)), **said)  # type: ignore[arg-type]
    return (await catalog.stems_by_row([row]))[row].id


async def test_another_tempo_sends_a_stem_back_under_every_model(catalog: Catalog) -> None:
    stem_id = await ready(catalog)
    row = (await catalog.stem(stem_id)).row
    assert await catalog.store_embeddings(row, "next", *embeddings())
    before = (await catalog.position())[1]
    stem = await catalog.change_metadata(stem_id, {"tempo_bpm": 96.0}, beats=16.0)
    assert (stem.state, stem.windows, stem.tempo_bpm, stem.key, stem.kind) == ("queued", 0, 96.0, None, None)
    assert (stem.sources, stem.sure, stem.beat_bpm, stem.warnings) == ({"tempo_bpm": "said"}, {}, None, ())
    assert not await catalog.embeddings_exist(row, "f")
    assert not await catalog.embeddings_exist(row, "next")
    assert await catalog.queued() == [stem_id]
    assert (await catalog.changes_since(before, "f")).removed == {row}
    assert await catalog.music_of([row]) == {}
    assert (await catalog.list_stems(StemFilter(keys=("A minor",))))[0] == []
    job = await catalog.stem_for_embedding(stem_id)
    assert job is not None
    assert (job.tempo_bpm, job.said_beats) == (96.0, 16.0)


@pytest.mark.parametrize(
    "changed",
    [{"tempo_bpm": 120.0}, {"key": "E minor"}, {"key": "no key"}, {"kind": "piece"}, {"title": "x", "tags": ["y"]}],
)
async def test_what_does_not_move_the_beats_leaves_a_stem_ready(catalog: Catalog, changed: dict[str, object]) -> None:
    stem_id = await ready(catalog)
    stem = await catalog.change_metadata(stem_id, changed)
    assert (stem.state, stem.windows, stem.beat_bpm) == ("ready", 3, 120.0)
    for fact in ("tempo_bpm", "key", "kind"):
        assert stem.sources[fact] == ("said" if fact in changed else "heard")
        assert fact not in changed or (getattr(stem, fact) == changed[fact] and fact not in stem.sure)


@pytest.mark.parametrize(("fact", "said"), [("tempo_bpm", 96.0), ("key", "Am"), ("kind", "piece")])
async def test_a_fact_that_is_taken_back_is_to_be_heard(catalog: Catalog, fact: str, said: object) -> None:
    stem_id = await ready(catalog, **{fact: said})
    stem = await catalog.change_metadata(stem_id, {fact: None})
    assert (stem.state, getattr(stem, fact), stem.sources, stem.sure) == ("queued", None, {}, {})
    again = await catalog.change_metadata(stem_id, {fact: None})  # nothing more to take back
    assert again == stem


async def test_a_failed_stem_stays_failed_at_another_tempo(catalog: Catalog) -> None:
    _, (stem_id,) = await catalog.add([upload("a")])
    await catalog.mark_failed(stem_id, {"type": "x"})
    stem = await catalog.change_metadata(stem_id, {"tempo_bpm": 96.0})
    assert (stem.state, stem.tempo_bpm) == ("failed", 96.0)


async def test_a_tempo_said_while_a_worker_analyses_wins(catalog: Catalog) -> None:
    await make_live(catalog, "f")
    _, (stem_id,) = await catalog.add([upload("a")])
    row = (await catalog.stem(stem_id)).row
    await catalog.change_metadata(stem_id, {"tempo_bpm": 96.0})
    assert not await store(catalog, row, HEARD)
    assert await catalog.queued() == [stem_id]
    at_96 = replace(HEARD, tempo_bpm=96.0, beat_bpm=96.0, sources={"tempo_bpm": "said", "kind": "heard"}, key=None)
    assert await store(catalog, row, at_96)
    assert (await catalog.stem(stem_id)).state == "ready"


async def forget_beats(catalog: Catalog, fingerprint: str) -> None:
    """Leave embeddings as a release stored them that knew no beats."""
    async with catalog._database.write() as sql:
        await sql.execute(
            update(tables.embeddings).where(tables.embeddings.c.fingerprint == fingerprint).values(beats=None)
        )


async def test_stems_of_an_earlier_release_are_embedded_by_a_reindex_and_answer_meanwhile(catalog: Catalog) -> None:
    await make_live(catalog, "f")
    stem_id, done = await make_ready(catalog, "a", "f"), await make_ready(catalog, "b", "f")
    assert await catalog.lacking("f") == []
    row = (await catalog.stem(stem_id)).row
    before = (await catalog.embeddings_of([row], "f"))[row].embedding
    await forget_beats(catalog, "f")
    assert await catalog.lacking("f") == [stem_id, done]
    assert not await catalog.embeddings_exist(row, "f")
    generation = await catalog.new_generation("f")
    assert not await catalog.go_live(generation, configured="f")
    stem = (await catalog.stems_by_row([row]))[row]
    assert (stem.state, stem.windows) == ("ready", 3)
    np.testing.assert_array_equal((await catalog.embeddings_of([row], "f"))[row].embedding, before)
    seq = (await catalog.position())[1]
    assert await catalog.store_embeddings(row, "f", *embeddings(5, seed=9), beats=np.arange(5.0), music=HEARD)
    assert list((await catalog.changes_since(seq, "f")).upserted) == [row]
    assert await catalog.embeddings_exist(row, "f")
    assert await catalog.lacking("f") == [done]
    assert (await catalog.stem(stem_id)).windows == 5


async def test_a_stem_that_cannot_be_embedded_again_is_found_as_before_and_says_so(catalog: Catalog) -> None:
    await make_live(catalog, "f")
    stem_id = await make_ready(catalog, "a", "f")
    await forget_beats(catalog, "f")
    await catalog.mark_failed(stem_id, {"type": "x", "detail": "It killed its worker."}, fingerprint="f")
    stem = await catalog.stem(stem_id)
    assert (stem.state, stem.problem, stem.windows) == ("ready", None, 3)
    assert stem.warnings == ("It is found as an earlier release embedded it: It killed its worker.",)
    assert await catalog.lacking("f") == []
    assert (await catalog.embeddings_of([stem.row], "f"))[stem.row].embedding.shape == (3, 4)


async def test_a_roll_back_to_an_earlier_releases_embeddings_keeps_every_stem(catalog: Catalog) -> None:
    old = await make_live(catalog, "f")
    stem_id = await make_ready(catalog, "a", "f")
    row = (await catalog.stem(stem_id)).row
    await forget_beats(catalog, "f")
    assert await catalog.store_embeddings(row, "next", *embeddings(5), beats=np.arange(5.0), music=HEARD)
    assert [await catalog.window_count(model) for model in ("f", "next", "none")] == [3, 5, 0]
    assert (await catalog.stem(stem_id)).windows == 3
    assert await catalog.go_live(await catalog.new_generation("next"), configured="next")
    assert (await catalog.stem(stem_id)).windows == 5
    assert (await catalog.roll_back()).generation == old
    stem = await catalog.stem(stem_id)
    assert (stem.state, stem.windows) == ("ready", 3)
