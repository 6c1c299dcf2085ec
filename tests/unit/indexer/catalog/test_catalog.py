"""The catalog over a real SQLite file and a real PostgreSQL: the same claims on both."""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from indexer.catalog.catalog import Catalog
from indexer.catalog.records import (
    BadCursor,
    JobNotFound,
    NothingToRollBackTo,
    NulInText,
    Rejected,
    StemFilter,
    StemNotFound,
)
from tests.embeddings import upload

pytestmark = pytest.mark.anyio

D = 4


def embeddings(n: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(n, D)) + 1j * rng.normal(size=(n, D))).astype(np.complex64)
    return np.arange(n, dtype=np.int64), np.arange(n) * 2.5, values


async def make_live(catalog: Catalog, fingerprint: str) -> int:
    generation = await catalog.new_generation(fingerprint)
    assert await catalog.go_live(generation, configured=fingerprint)
    return generation


async def make_ready(catalog: Catalog, name: str, fingerprint: str, **said: object) -> str:
    _, (stem_id,) = await catalog.add([upload(name, **said)])
    row = (await catalog.stem(stem_id)).row
    assert await catalog.store_embeddings(row, fingerprint, *embeddings(seed=row))
    return stem_id


async def test_same_bytes_twice_are_the_same_stem(catalog: Catalog) -> None:
    first, waiting = await catalog.add([upload("a")])
    second, again = await catalog.add([upload("a", title="other name")])
    assert first.items[0].stem_id == second.items[0].stem_id
    assert first.items[0].created
    assert not second.items[0].created
    assert waiting == again  # still queued, so it is handed to the queue again, which costs nothing


async def test_deleted_bytes_come_back_as_a_new_stem(catalog: Catalog) -> None:
    _, (stem_id,) = await catalog.add([upload("a")])
    first_row = (await catalog.stem(stem_id)).row
    await catalog.delete(stem_id)
    with pytest.raises(StemNotFound):
        await catalog.stem(stem_id)
    _, (new_id,) = await catalog.add([upload("a")])
    assert new_id != stem_id
    assert (await catalog.stem(new_id)).row > first_row


async def test_a_rejected_file_does_not_touch_its_neighbours(catalog: Catalog) -> None:
    job, waiting = await catalog.add([upload("a"), Rejected("b.txt", {"type": "unknown-format"}), upload("c")])
    assert [item.state for item in job.items] == ["queued", "failed", "queued"]
    assert job.state == "running"
    assert len(waiting) == 2


async def test_a_job_is_done_when_none_of_its_stems_waits(catalog: Catalog) -> None:
    await make_live(catalog, "f")
    job, (a, b) = await catalog.add([upload("a"), upload("b")])
    await catalog.store_embeddings((await catalog.stem(a)).row, "f", *embeddings())
    assert (await catalog.job(job.id)).state == "running"
    await catalog.mark_failed(b, {"type": "silent-clip"})
    finished = await catalog.job(job.id)
    assert finished.state == "done"
    assert [item.state for item in finished.items] == ["ready", "failed"]


async def test_jobs_of_long_ago_are_forgotten_once_they_are_finished(catalog: Catalog) -> None:
    await make_live(catalog, "f")
    done, (a,) = await catalog.add([upload("a")])
    await catalog.store_embeddings((await catalog.stem(a)).row, "f", *embeddings())
    waiting, _ = await catalog.add([upload("b"), upload("a")])
    refused, _ = await catalog.add([Rejected("c", {"type": "empty-file"})])
    reindex, _ = await catalog.start_reindex({})
    assert await catalog.forget_jobs(older_than_s=60) == 0
    assert await catalog.forget_jobs(older_than_s=-60) == 2
    for gone in (done, refused):
        with pytest.raises(JobNotFound):
            await catalog.job(gone.id)
    assert [item.state for item in (await catalog.job(waiting.id)).items] == ["queued", "ready"]
    assert (await catalog.job(reindex.id)).state == "running"


async def test_a_job_of_refused_files_keeps_their_number(catalog: Catalog) -> None:
    job, _ = await catalog.add([Rejected(name, {"type": "empty-file"}) for name in "ab"])
    assert [item.file_name for item in job.items] == ["a", "b"]
    found = await catalog.job(job.id)
    assert (found.state, found.items, found.result) == ("done", (), {"refused": 2})


async def test_a_stem_is_ready_only_under_the_live_fingerprint(catalog: Catalog) -> None:
    await make_live(catalog, "live")
    _, (stem_id,) = await catalog.add([upload("a")])
    row = (await catalog.stem(stem_id)).row
    await catalog.store_embeddings(row, "other", *embeddings())
    assert (await catalog.stem(stem_id)).state == "queued"
    await catalog.store_embeddings(row, "live", *embeddings())
    assert (await catalog.stem(stem_id)).state == "ready"


async def test_storing_for_a_deleted_stem_stores_nothing(catalog: Catalog) -> None:
    await make_live(catalog, "f")
    _, (stem_id,) = await catalog.add([upload("a")])
    row = (await catalog.stem(stem_id)).row
    await catalog.delete(stem_id)
    assert not await catalog.store_embeddings(row, "f", *embeddings())
    assert await catalog.embeddings_of([row], "f") == {}


async def test_changes_since_tells_every_change_exactly_once(catalog: Catalog) -> None:
    await make_live(catalog, "f")
    a = await make_ready(catalog, "a", "f")
    b = await make_ready(catalog, "b", "f")
    rows = {name: (await catalog.stem(name)).row for name in (a, b)}
    first = await catalog.changes_since(0, "f")
    assert set(first.upserted) == set(rows.values())
    await catalog.delete(a)
    second = await catalog.changes_since(first.seq, "f")
    assert second.upserted == {}
    assert second.removed == {rows[a]}
    third = await catalog.changes_since(second.seq, "f")
    assert (third.upserted, third.removed) == ({}, frozenset())


async def test_clock_values_are_taken_in_commit_order(catalog: Catalog) -> None:
    await make_live(catalog, "f")
    applied: dict[int, int] = {}
    seq = 0

    async def follow() -> None:
        nonlocal seq
        while len(applied) < 20:
            changes = await catalog.changes_since(seq, "f")
            assert changes.seq >= seq
            for row in changes.upserted:
                applied[row] = applied.get(row, 0) + 1
            seq = changes.seq
            await asyncio.sleep(0)

    async def write(start: int) -> None:
        for n in range(start, start + 5):
            await make_ready(catalog, f"n{n}", "f")

    async with asyncio.timeout(30):
        await asyncio.gather(follow(), *(write(n * 5) for n in range(4)))
    assert set(applied.values()) == {1}


async def test_filters_restrict_as_they_say(catalog: Catalog) -> None:
    await make_live(catalog, "f")
    bass = await make_ready(catalog, "a", "f", instrument="bass", tags=("warm", "live"), tempo_bpm=120.0, track="one")
    drums = await make_ready(catalog, "b", "f", instrument="drums", tags=("warm",), tempo_bpm=90.0, track="two")
    plain = await make_ready(catalog, "c", "f")

    async def allowed(**wanted: object) -> set[str]:
        rows = await catalog.rows_allowed(StemFilter(**wanted))  # type: ignore[arg-type]
        assert rows is not None
        return {stem.id for stem in (await catalog.stems_by_row(rows.tolist())).values()}

    assert await catalog.rows_allowed(StemFilter()) is None
    assert await allowed(instruments=("bass", "drums")) == {bass, drums}
    assert await allowed(tags=("warm", "live")) == {bass}
    assert await allowed(tempo_min=100.0) == {bass}
    assert await allowed(tempo_max=100.0) == {drums}
    assert await allowed(exclude=(bass,)) == {drums, plain}
    assert await allowed(exclude_tracks=("one",)) == {drums, plain}
    assert await allowed(keys=("C major",)) == set()


async def test_pages_hold_every_stem_once(catalog: Catalog) -> None:
    await catalog.add([upload(f"n{n}") for n in range(7)])
    seen: list[str] = []
    cursor = None
    while True:
        page, cursor = await catalog.list_stems(StemFilter(), limit=3, cursor=cursor)
        seen += [stem.file_name for stem in page]
        if cursor is None:
            break
    assert seen == [f"n{n}.flac" for n in range(7)]
    for cursor in ("'; drop table stems", "s99999999999"):
        with pytest.raises(BadCursor):
            await catalog.list_stems(StemFilter(), cursor=cursor)


async def test_a_new_model_goes_live_only_when_it_has_seen_every_ready_stem(catalog: Catalog) -> None:
    await make_live(catalog, "old")
    a = await make_ready(catalog, "a", "old")
    generation = await catalog.new_generation("new")
    assert not await catalog.go_live(generation, configured="new")
    b = await make_ready(catalog, "b", "old")
    assert await catalog.count_lacking("new") == 2
    assert (await catalog.lacking("new"), await catalog.lacking("new", 1)) == ([a, b], [a])
    await catalog.store_embeddings((await catalog.stem(b)).row, "new", *embeddings())
    assert (await catalog.count_lacking("new"), await catalog.lacking("new")) == (1, [a])
    await catalog.store_embeddings((await catalog.stem(a)).row, "new", *embeddings())
    assert await catalog.go_live(generation, configured="new")
    alias = await catalog.alias()
    assert alias is not None
    assert (alias.fingerprint, alias.previous_fingerprint) == ("new", "old")


async def test_forgotten_models_go_a_few_stems_at_a_time_so_that_others_may_write(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_live(catalog, "new")
    rows = [(await catalog.stem(await make_ready(catalog, name, "new"))).row for name in "abcde"]
    for row in rows:
        await catalog.store_embeddings(row, "old", *embeddings())
    monkeypatch.setattr("indexer.catalog.embeddings.FORGOTTEN_AT_ONCE", 2)
    writes, write = [0], catalog.database.write

    def counted() -> Any:
        writes[0] += 1
        return write()

    monkeypatch.setattr(catalog.database, "write", counted)
    await catalog.forget_models({"new"})
    assert writes == [3]
    assert await catalog.embeddings_of(rows, "old") == {}
    assert list(await catalog.embeddings_of(rows, "new")) == rows


async def test_a_stem_the_new_model_refuses_answers_until_the_switch_and_after_a_rollback(catalog: Catalog) -> None:
    await make_live(catalog, "old")
    a = await make_ready(catalog, "a", "old")
    await catalog.mark_failed(a, {"type": "silent-clip"}, fingerprint="new")
    assert (await catalog.stem(a)).state == "ready"
    assert await catalog.go_live(await catalog.new_generation("new"), configured="new")
    assert (await catalog.stem(a)).state == "failed"
    before = (await catalog.position())[1]
    await catalog.roll_back()
    assert ((await catalog.stem(a)).state, (await catalog.stem(a)).problem) == ("ready", None)
    assert len((await catalog.changes_since(before, "old")).upserted) == 1
    await catalog.roll_back()
    assert (await catalog.stem(a)).state == "failed"


async def test_rolling_back_sends_stems_of_the_new_model_alone_to_wait(catalog: Catalog) -> None:
    with pytest.raises(NothingToRollBackTo):
        await catalog.roll_back()
    old = await make_live(catalog, "old")
    a = await make_ready(catalog, "a", "old")
    await catalog.store_embeddings((await catalog.stem(a)).row, "new", *embeddings())
    new = await catalog.new_generation("new")
    assert await catalog.go_live(new, configured="new")
    b = await make_ready(catalog, "b", "new")
    alias = await catalog.roll_back()
    assert (alias.generation, alias.previous) == (old, new)
    assert (await catalog.stem(a)).state == "ready"
    assert await catalog.queued() == [b]


async def test_only_one_reindex_runs_at_a_time(catalog: Catalog) -> None:
    job, new = await catalog.start_reindex({"rank": None})
    same, again = await catalog.start_reindex({"rank": 64})
    assert (job.id, new, again) == (same.id, True, False)
    await catalog.finish_job(job.id, result={"generation": 2})
    assert (await catalog.job(job.id)).state == "done"
    assert await catalog.unfinished_reindex() is None


async def test_lists_are_sorted_alike_wherever_the_catalog_lies(catalog: Catalog) -> None:
    await make_live(catalog, "f")
    for name in ("b", "Z", "a", "é", "_"):
        await make_ready(catalog, name, "f", instrument=name, tags=("b", "Z", "a"))
    found = await catalog.values()
    assert (found["instruments"], found["tags"]) == (["Z", "_", "a", "b", "é"], ["Z", "a", "b"])
    assert (await catalog.list_stems(StemFilter(), limit=1))[0][0].tags == ("Z", "a", "b")


async def test_text_with_a_nul_is_refused_by_name_wherever_it_comes_from(catalog: Catalog) -> None:
    for ask in (
        catalog.add([upload("a", title="a\0b")]),
        catalog.add([upload("a", tags=("a\0b",))]),
        catalog.stem("\0"),
        catalog.job("\0"),
        catalog.list_stems(StemFilter(instruments=("\0",))),
        catalog.rows_allowed(StemFilter(exclude=("\0",), tags=("warm",))),
    ):
        with pytest.raises(NulInText):
            await ask
    assert await catalog.counts() == {"queued": 0, "ready": 0, "failed": 0}


async def test_more_rows_than_one_statement_holds_are_found(catalog: Catalog) -> None:
    assert await catalog.stems_by_row(range(1, 40_000)) == {}
    assert await catalog.rows_allowed(StemFilter(exclude=tuple(map(str, range(1000))))) is not None


# Several processes on one database; a second Catalog has nothing in common with the first but the database.


@pytest.fixture
async def replica(url: str, catalog: Catalog) -> AsyncIterator[Catalog]:
    opened = await Catalog.open(url)
    yield opened
    await opened.close()


async def test_the_same_bytes_sent_to_two_replicas_at_once_are_one_stem(catalog: Catalog, replica: Catalog) -> None:
    names = [f"n{n}" for n in range(8)]
    first, second = await asyncio.gather(
        catalog.add([upload(name) for name in names]), replica.add([upload(name) for name in reversed(names)])
    )
    assert set(first[1]) == set(second[1])
    created = [item.created for job, _ in (first, second) for item in job.items]
    assert sum(created) == len(names)


async def test_two_replicas_start_one_reindex_between_them(catalog: Catalog, replica: Catalog) -> None:
    started = await asyncio.gather(*(side.start_reindex({}) for side in (catalog, replica) * 3))
    assert len({job.id for job, _ in started}) == 1
    assert [new for _, new in started].count(True) == 1


async def test_rows_appear_in_the_order_of_their_numbers(catalog: Catalog, replica: Catalog) -> None:
    """A page's cursor is a row: a smaller one that appeared later would be on no page."""
    seen: list[int] = []

    async def follow() -> None:
        cursor: str | None = None
        while len(seen) < 20:
            page, _ = await catalog.list_stems(StemFilter(), limit=500, cursor=cursor)
            seen.extend(stem.row for stem in page)
            cursor = f"s{seen[-1]}" if seen else None

    async def write(side: Catalog, name: str) -> None:
        for n in range(5):
            await side.add([upload(f"{name}{n}"), upload(f"{name}{n}+")])

    async with asyncio.timeout(60):
        await asyncio.gather(follow(), write(catalog, "a"), write(replica, "b"))
    assert len(set(seen)) == 20


async def test_a_deletion_and_an_upload_of_the_same_bytes_leave_no_half_stem(
    catalog: Catalog, replica: Catalog
) -> None:
    for n in range(5):
        _, (stem_id,) = await catalog.add([upload("a")])
        await catalog.mark_failed(stem_id, {"type": "silent-clip"})
        _, (job, _) = await asyncio.gather(catalog.delete(stem_id), replica.add([upload("a")]))
        left, _ = await catalog.list_stems(StemFilter())
        assert len(left) == (0 if job.items[0].stem_id == stem_id else 1), n
        for stem in left:
            assert stem.sha256 == upload("a").sha256
            await catalog.delete(stem.id)


async def test_a_name_is_held_by_one_at_a_time(catalog: Catalog, replica: Catalog) -> None:
    holders: list[str] = []

    async def hold(side: Catalog, *names: str) -> None:
        for _ in range(5):
            async with side.alone(*names):
                holders.append("in")
                await asyncio.sleep(0.005)
                holders.append("out")

    async with asyncio.timeout(60):
        await asyncio.gather(hold(catalog, "a", "b"), hold(replica, "b", "a"), hold(replica, "b"))
    assert holders == ["in", "out"] * 15


HOLD = """
import asyncio, sys
from indexer import Catalog

async def hold():
    async with (await Catalog.open(sys.argv[1])).alone("a"):
        print("held", flush=True)
        await asyncio.sleep(600)

asyncio.run(hold())
"""


async def test_a_name_is_free_again_when_its_holder_is_killed(catalog: Catalog, url: str) -> None:
    holder = await asyncio.create_subprocess_exec(sys.executable, "-c", HOLD, url, stdout=asyncio.subprocess.PIPE)
    assert holder.stdout is not None
    assert await holder.stdout.readline() == b"held\n"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2), catalog.alone("a"):
            pass
    async with catalog.alone("b"):
        pass
    holder.kill()
    async with asyncio.timeout(60), catalog.alone("a"):
        pass
    await holder.wait()
