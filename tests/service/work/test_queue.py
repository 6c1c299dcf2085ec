"""The queue on a real Valkey: nothing is lost, queries go first, and a job that kills its worker is found out."""

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

from service.local.valkey import EmbeddedValkey
from service.work.jobs import EmbedFailed, FingerprintMismatch, Poisoned, QueryJob, UploadJob
from service.work.queue import EmbedTimeout, consumer_name
from service.work.streams import QueueFull
from tests.service.work.queues import (
    CLAIM_AFTER_S,
    MODEL,
    SOON_MS,
    WAVEFORM,
    WINDOWS,
    Open,
    drain,
    forget_everything,
    give_up,
    is_answered,
    query_goes,
    query_waits,
    submit,
    take_query,
)
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


# Uploads.


async def test_upload_is_outstanding_until_it_is_done(opened: Open) -> None:
    api, worker = opened(), opened("a")
    await api.submit_upload("s1", MODEL)
    assert await api.outstanding_uploads() == {"s1"}
    (job,) = await worker.take(8, SOON_MS)
    assert (job.stem_id, job.fingerprint, job.deliveries) == ("s1", MODEL, 1)
    assert await api.outstanding_uploads() == {"s1"}
    await worker.done(job)
    assert await api.outstanding_uploads() == set()
    assert await api.depths() == {"uploads": 0, "queries": 0}


async def test_a_waveform_sent_with_an_upload_is_there_for_one_worker_and_not_for_ever(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, worker = opened(), opened("a")
    waveform = np.arange(8, dtype=np.float32)
    await api.hand_over("with", waveform)
    monkeypatch.setattr("service.work.queue.HANDED_OVER_TTL_S", 1)
    await api.hand_over("late", waveform)
    handed = await worker.handed_over("with")
    np.testing.assert_array_equal(handed, waveform)
    assert await worker.handed_over("with") is None
    assert await worker.handed_over("without") is None
    await asyncio.sleep(1.1)
    assert await worker.handed_over("late") is None


async def test_a_waveform_sent_with_an_upload_stays_out_of_the_journal_and_the_upload_does_not(
    opened: Open, tmp_path: Path
) -> None:
    server = EmbeddedValkey(tmp_path)
    with server:
        api = opened(url=server.url)
        await api.submit_upload("s1", MODEL)
        await api.hand_over("sha", WAVEFORM)
        assert await api._redis.strlen(api._waveform_key("sha")) == WAVEFORM.nbytes
    written = sum(path.stat().st_size for path in server.folder.rglob("*.aof"))
    assert 0 < written < WAVEFORM.nbytes / 10
    with server:
        assert await opened(url=server.url).outstanding_uploads() == {"s1"}


async def test_full_stream_refuses_with_the_facts(opened: Open) -> None:
    api = opened(max_uploads=2)
    for stem_id in ("s1", "s2"):
        await api.submit_upload(stem_id, MODEL)
    with pytest.raises(QueueFull) as full:
        await api.submit_upload("s3", MODEL)
    assert (full.value.kind, full.value.depth, full.value.limit) == ("uploads", 2, 2)
    assert full.value.retry_after_s > 0
    assert await api.outstanding_uploads() == {"s1", "s2"}


async def test_outstanding_uploads_are_all_of_them_page_after_page(opened: Open) -> None:
    api = opened(max_uploads=5000)
    await submit(api, 2500)
    assert await api.outstanding_uploads() == {f"s{i}" for i in range(2500)}


async def test_unfinished_jobs_come_back_one_at_a_time(opened: Open) -> None:
    api, worker = opened(), opened("a")
    await submit(api, 3)
    assert len(await worker.take(8, 0)) == 3
    await api.submit_upload("fresh", MODEL)
    restarted = opened("a")
    for i in range(3):
        (job,) = await restarted.take(8, 0)
        assert (job.stem_id, job.deliveries) == (f"s{i}", 2)
        assert await restarted.take(8, 0) == [], "nothing is handed out beside it"
        await restarted.done(job)
    (job,) = await restarted.take(8, 0)
    assert (job.stem_id, job.deliveries) == ("fresh", 1)


async def test_only_the_job_that_kills_its_worker_is_poisoned(opened: Open) -> None:
    api = opened()
    await submit(api, 8)
    ended: list[UploadJob | Poisoned] = []
    lives = 0
    while await api.outstanding_uploads():
        lives += 1
        assert lives < 5
        worker = opened("a")
        while jobs := await worker.take(8, 0):
            if any(isinstance(job, UploadJob) and job.stem_id == "s3" for job in jobs):
                break  # it dies with all it has in hand
            for job in jobs:
                assert not isinstance(job, QueryJob)
                ended.append(job)
                await worker.done(job)
    assert lives == 3, "it was killed twice, and the third came to an end"
    (poisoned,) = (job for job in ended if isinstance(job, Poisoned))
    assert poisoned.job.stem_id == "s3"
    assert poisoned.reason == "killed its worker twice"
    assert {job.stem_id for job in ended if isinstance(job, UploadJob)} == {f"s{i}" for i in range(8)} - {"s3"}
    assert await api.depths() == {"uploads": 0, "queries": 0}


async def test_silent_workers_jobs_are_taken_over_and_a_beating_ones_are_not(opened: Open) -> None:
    api, alive, dead = opened(), opened("alive"), opened("dead")
    await api.submit_upload("s1", MODEL)
    await alive.take(8, 0)
    await api.submit_upload("s2", MODEL)
    await dead.take(8, 0)

    async def go_on_beating() -> None:
        while True:
            await alive.beat({})
            await asyncio.sleep(CLAIM_AFTER_S / 8)

    beating = asyncio.create_task(go_on_beating())
    await asyncio.sleep(2 * CLAIM_AFTER_S)
    (job,) = await opened("other").take(8, 0)
    assert (job.stem_id, job.deliveries) == ("s2", 2)
    assert await opened("third").take(8, 0) == []
    beating.cancel()
    await asyncio.gather(beating, return_exceptions=True)


async def test_left_over_job_waits_until_the_uploads_in_hand_are_done(opened: Open) -> None:
    api, worker, dead = opened(), opened("a"), opened("dead")
    await api.submit_upload("s1", MODEL)
    await dead.take(8, 0)
    await api.submit_upload("s2", MODEL)
    (mine,) = await worker.take(8, 0)
    await asyncio.sleep(CLAIM_AFTER_S * 1.5)
    await worker.beat({})
    await api.submit_upload("s3", MODEL)
    assert await worker.take(8, 0) == []
    await worker.done(mine)
    (job,) = await worker.take(8, 0)
    assert job.stem_id == "s1"


async def test_released_jobs_have_nothing_to_answer_for(opened: Open) -> None:
    api = opened()
    await submit(api, 3)
    for _ in range(5):
        worker = opened("a")
        assert await worker.take(8, 0)
        await worker.release()
    other = await drain(opened("b"))
    assert [type(job) for job in other] == [UploadJob] * 3


async def test_flushed_redis_is_taken_up_again(opened: Open) -> None:
    api, worker = opened(), opened("a")
    await api.submit_upload("s1", MODEL)
    (lost,) = await worker.take(8, 0)
    waiting = asyncio.create_task(worker.take(8, SOON_MS))
    await asyncio.sleep(0.05)
    await forget_everything(api)
    await api.submit_upload("s2", MODEL)
    (job,) = await waiting or await worker.take(8, SOON_MS)
    assert job.stem_id == "s2"
    await worker.done(lost)
    await worker.done(job)
    assert await api.depths() == {"uploads": 0, "queries": 0}


async def test_dead_consumers_are_forgotten_but_not_what_they_owe(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.work.taking.REAP_AFTER_S", 0.05)
    api, idle, owing = opened(), opened("idle"), opened("owing", claim_after_s=60)
    await api.submit_upload("s0", MODEL)
    (done,) = await idle.take(8, 0)
    await idle.done(done)
    await api.submit_upload("s1", MODEL)
    await owing.take(8, 0)
    await asyncio.sleep(0.1)
    await opened("a", claim_after_s=60).take(8, 0)
    consumers = await api._redis.xinfo_consumers(api._streams["uploads"], "workers")
    assert {consumer["name"] for consumer in consumers} - {b"a"} == {b"owing"}


# Queries.


async def test_query_comes_back_as_it_was_sent_and_its_answer_too(opened: Open) -> None:
    api, worker = opened(), opened("a")
    asking = asyncio.create_task(api.embed(MODEL, WAVEFORM, WINDOWS, 10))
    job = await take_query(worker)
    np.testing.assert_array_equal(job.waveform, WAVEFORM)
    for name in ("starts", "lengths"):
        np.testing.assert_array_equal(getattr(job.laid, name), getattr(WINDOWS, name))
    assert (job.laid.frames, job.laid.inner, job.laid.semitones, job.fingerprint) == (501, 14_000, 2, MODEL)
    assert 5 < job.expires - time.monotonic() <= 10
    await is_answered(asking, worker, job)
    assert await api.depths() == {"uploads": 0, "queries": 0}


async def test_a_query_stays_out_of_the_journal_taken_or_not(opened: Open, tmp_path: Path) -> None:
    server = EmbeddedValkey(tmp_path)
    with server:
        api, worker = opened(url=server.url), opened("a", url=server.url)
        asking = [asyncio.create_task(api.embed(MODEL, WAVEFORM, WINDOWS, 10)) for _ in range(2)]
        await query_waits(api)
        await take_query(worker)
        await give_up(*asking)
    written = sum(path.stat().st_size for path in server.folder.rglob("*.aof"))
    assert 0 < written < WAVEFORM.nbytes / 10
    with server:
        again = opened("a", url=server.url)
        assert (await again.depths())["queries"] == 0
        await again.submit_upload("s1", MODEL)
        (job,) = await again.take(8, 0)
        assert isinstance(job, UploadJob), "what the journal says of queries that it never held is harmless"


async def test_queries_go_before_uploads(opened: Open) -> None:
    api, worker = opened(), opened("a")
    await api.submit_upload("s1", MODEL)
    asking = asyncio.create_task(api.embed(MODEL, WAVEFORM, WINDOWS, 10))
    await query_waits(api)
    first, second = await worker.take(8, 0)
    assert isinstance(first, QueryJob)
    assert isinstance(second, UploadJob)
    await give_up(asking)


async def test_worker_with_full_hands_still_takes_queries(opened: Open) -> None:
    api, worker = opened(), opened("a")
    await api.submit_upload("s1", MODEL)
    asking = asyncio.create_task(api.embed(MODEL, WAVEFORM, WINDOWS, 10))
    (job,) = await worker.take(8, SOON_MS, uploads=False)
    assert isinstance(job, QueryJob)
    await worker.fail(job, EmbedFailed("it snowed"))
    with pytest.raises(EmbedFailed, match="it snowed"):
        await asking


async def test_mismatch_names_both_models(opened: Open) -> None:
    api, worker = opened(), opened("a")
    asking = asyncio.create_task(api.embed(MODEL, WAVEFORM, WINDOWS, 10))
    await worker.fail(await take_query(worker), FingerprintMismatch(MODEL, ("e" * 64,)))
    with pytest.raises(FingerprintMismatch) as mismatch:
        await asking
    assert (mismatch.value.wanted, mismatch.value.held) == (MODEL, ("e" * 64,))


async def test_query_without_a_worker_times_out_and_leaves_nothing(opened: Open) -> None:
    api = opened()
    with pytest.raises(EmbedTimeout):
        await api.embed(MODEL, WAVEFORM, WINDOWS, 0.1)
    await query_goes(api)


async def test_cancelled_query_is_removed(opened: Open) -> None:
    api = opened()
    asking = asyncio.create_task(api.embed(MODEL, WAVEFORM, WINDOWS, 60))
    await query_waits(api)
    await give_up(asking)
    await query_goes(api)


async def test_worker_is_told_of_a_query_that_nobody_waits_for_any_more(opened: Open) -> None:
    api, worker = opened(), opened("a")
    asking = [asyncio.create_task(api.embed(MODEL, WAVEFORM, WINDOWS, 60)) for _ in range(2)]
    jobs = [await take_query(worker) for _ in asking]
    assert await worker.abandoned(jobs) == []
    asking[0].cancel()
    (gone,) = await eventually(lambda: worker.abandoned(jobs))
    await worker.done(gone)
    await give_up(*asking)


async def test_query_past_its_deadline_is_not_handed_out(opened: Open) -> None:
    api, worker = opened(), opened("a")
    entry = await api._add(
        "queries",
        {"reply_to": "nobody", "fingerprint": MODEL, "waveform": b"", "spans": b"", "frames": 0, "inner": 0}
        | {"semitones": 0, "ttl_ms": 50},
    )
    assert entry
    await asyncio.sleep(0.1)
    assert await worker.take(8, 0) == []
    assert (await api.depths())["queries"] == 0


async def test_full_query_stream_refuses(opened: Open) -> None:
    api = opened(max_queries=1)
    asking = asyncio.create_task(api.embed(MODEL, WAVEFORM, WINDOWS, 60))
    await query_waits(api)
    with pytest.raises(QueueFull) as full:
        await api.embed(MODEL, WAVEFORM, WINDOWS, 60)
    assert full.value.kind == "queries"
    await give_up(asking)


async def test_query_survives_a_flush(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.work.queue.BLOCK_S", 0.1)
    api, worker = opened(), opened("a")
    asking = asyncio.create_task(api.embed(MODEL, WAVEFORM, WINDOWS, 10))
    await take_query(worker)
    await forget_everything(api)
    job = await take_query(worker)
    await is_answered(asking, worker, job)


async def test_workers_figures_reach_the_api_and_go_with_the_worker(opened: Open) -> None:
    api, worker = opened(), opened("a")
    await worker.beat({"windows": 16, "embed_seconds": 0.5})
    assert await api.worker_stats() == {"a": {"windows": 16.0, "embed_seconds": 0.5}}
    await worker.release()
    assert await api.worker_stats() == {}


async def test_cancellation_is_never_swallowed(opened: Open) -> None:
    worker = opened("a")

    async def serve() -> None:
        while True:
            await worker.take(1, 1000)

    for attempt in range(200):
        serving = asyncio.create_task(serve())
        await asyncio.sleep(attempt * 1e-5)
        serving.cancel()
        done, _ = await asyncio.wait([serving], timeout=0.5)
        assert done, f"it went on, cancelled after {attempt * 10} microseconds"


async def test_a_job_whose_delivery_was_lost_has_nothing_to_answer_for(opened: Open) -> None:
    """The server counts a delivery whose answer went down with its connection; the worker never saw the job."""
    api, worker = opened(), opened("a")
    assert await worker.take(8, 0) == []
    await api.submit_upload("s1", MODEL)
    for _ in range(3):
        await api._redis.xreadgroup("workers", "a", {api._streams["uploads"]: ">"})
        worker._reclaim_at = 0.0
        (job,) = await worker.take(8, 0)
        assert job.deliveries == 1
        worker._drop(job)  # and again it is lost
    restarted = opened("a")
    (job,) = await restarted.take(8, 0)
    assert job.deliveries == 2, "its worker died with it"


async def test_workers_names_differ_where_hosts_and_slots_do_not(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    assert consumer_name(0, one) == consumer_name(0, one)
    names = [consumer_name(0, one), consumer_name(1, one), consumer_name(0, other)]
    names += [consumer_name(None, one), consumer_name(None, one)]
    assert len(set(names)) == len(names)
