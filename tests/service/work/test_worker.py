"""The worker with a real Valkey, catalog, decoder and (seeded) model."""

import asyncio
import hashlib
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from model.audio import SAMPLE_RATE, Windows
from model.checkpoints import save_phalar
from model.cqt import BeatClips
from model.phalar import Phalar, untrained_phalar
from service.api.errors import problem_response
from service.work import batches, worker
from service.work.jobs import EmbedFailed, FingerprintMismatch, NoMemory
from service.work.queue import open_queue
from service.work.worker import Worker
from tests.clips import clicks
from tests.service.work.house import POISON, House, Start, noise, wav
from tests.waiting import SOON_S, eventually

pytestmark = pytest.mark.anyio

# Batches of different sizes and thread counts add up in different orders.
EMBEDDING_TOLERANCE = 1e-5


async def test_a_waveform_that_came_with_the_job_is_not_decoded_again(house: House, start: Start) -> None:
    waveform = noise(1)
    stem_id = await house.upload(wav(waveform))
    sha256 = hashlib.sha256(wav(waveform)).hexdigest()
    await house.blobs.delete(sha256)  # there is nothing to decode
    await house.queue.hand_over(sha256, waveform)
    await house.queue.submit_upload(stem_id, house.fingerprint)
    await start()
    await eventually(house.settled)
    assert await house.states([stem_id]) == ["ready"]


async def test_stem_becomes_ready_with_the_embeddings_that_the_model_gives(
    house: House, start: Start, phalar: Phalar
) -> None:
    waveform = noise(1, 4.0)
    await start()
    (stem_id,) = await house.submit(wav(waveform))
    await eventually(house.settled)
    stem = await house.catalog.stem(stem_id)
    assert stem.state == "ready"
    stored = (await house.catalog.embeddings_of([stem.row], house.fingerprint))[stem.row]
    np.testing.assert_array_equal(stored.windows, np.arange(3))
    np.testing.assert_array_equal(stored.starts_s, [0.0, 2.5, 2.8])
    starts = (stored.starts_s * SAMPLE_RATE).round().astype(int)
    cut = np.stack([waveform[start : start + int(1.2 * SAMPLE_RATE)] for start in starts])
    np.testing.assert_allclose(stored.embedding, phalar.embed(cut).numpy(), atol=EMBEDDING_TOLERANCE)


async def test_stems_of_a_track_are_heard_together_and_share_its_beats(house: House, start: Start) -> None:
    on_beats, between = clicks(110.0, 16.0), clicks(110.0, 16.0, first_s=0.2)
    await start()
    together = await house.submit(wav(on_beats), wav(0.3 * between), track="one")
    alone = await house.submit(wav(between))
    await eventually(house.settled)
    rows = [(await house.catalog.stem(stem_id)).row for stem_id in (*together, *alone)]
    music = await house.catalog.music_of(rows)
    first, second, third = (music[row].beats_s for row in rows)
    np.testing.assert_array_equal(first, second)
    apart_s = abs(third[0] - first[0]) % (60 / 110)
    assert apart_s == pytest.approx(0.2, abs=0.02)
    embedded = (await house.catalog.embeddings_of(rows, house.fingerprint))[rows[0]]
    assert np.isnan(embedded.beats).any()
    assert np.isfinite(embedded.beats).any()


async def test_one_bad_file_fails_alone(house: House, start: Start) -> None:
    ids = await house.submit(wav(noise(1)), b"no audio at all", wav(noise(2)), wav(np.zeros(30_000, np.float32)))
    gone = await house.upload(wav(noise(3)))
    await house.blobs.delete((await house.catalog.stem(gone)).sha256)
    await house.queue.submit_upload(gone, house.fingerprint)
    await start()
    await eventually(house.settled)
    assert await house.states([*ids, gone]) == ["ready", "failed", "ready", "failed", "failed"]
    problems = [(await house.catalog.stem(stem_id)).problem for stem_id in (ids[1], ids[3], gone)]
    assert [said["type"] for said in problems if said] == [
        "/problems/unknown-format",
        "/problems/silent-clip",
        "/problems/audio-missing",
    ]


async def test_silent_windows_get_no_embedding_and_the_others_keep_their_place(house: House, start: Start) -> None:
    quiet_start = np.concatenate([np.zeros(3 * SAMPLE_RATE, np.float32), noise(1, 1.5)])
    await start()
    (stem_id,) = await house.submit(wav(quiet_start))
    await eventually(house.settled)
    row = (await house.catalog.stem(stem_id)).row
    stored = (await house.catalog.embeddings_of([row], house.fingerprint))[row]
    np.testing.assert_array_equal(stored.windows, [1, 2])
    np.testing.assert_array_equal(stored.starts_s, [2.5, 3.3])


@pytest.fixture
def breakable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model breaks on a batch with a window of the peak POISON."""
    embed = Phalar.embed

    def breaks(self: Phalar, windows: Any) -> torch.Tensor:
        if (np.abs(windows).max(axis=1) == POISON).any():
            raise ArithmeticError("it broke")
        return embed(self, windows)

    monkeypatch.setattr(Phalar, "embed", breaks)


@pytest.mark.usefixtures("breakable")
async def test_stem_that_breaks_the_model_fails_alone(house: House, start: Start) -> None:
    ids = await house.submit(wav(noise(1)), wav(noise(2, peak=POISON)), wav(noise(3)))
    await start()
    await eventually(house.settled)
    assert await house.states(ids) == ["ready", "failed", "ready"]
    said = (await house.catalog.stem(ids[1])).problem
    assert said["detail"] == "The model could make nothing of this stem."
    assert "it broke" not in str(said), "why is for the log"


async def test_deleted_stems_job_is_just_acknowledged(house: House, start: Start) -> None:
    (stem_id,) = await house.submit(wav(noise(1)))
    await house.catalog.delete(stem_id)
    await start()
    await eventually(house.settled)
    assert (await house.catalog.counts()) == {"queued": 0, "ready": 0, "failed": 0}


async def test_query_is_embedded_and_its_silent_windows_are_zero(house: House, start: Start, phalar: Phalar) -> None:
    await start()
    length = int(1.1 * SAMPLE_RATE)
    waveform = np.concatenate([np.zeros(2 * SAMPLE_RATE, np.float32), noise(1, 2.0)])
    starts = np.array([0, 2 * SAMPLE_RATE, 2 * SAMPLE_RATE + 640], np.int64)
    answer = await house.embed(waveform, Windows.in_clock_time(starts, length))
    assert not answer[0].any()
    expected = phalar.embed(np.stack([waveform[at : at + length] for at in starts[1:]])).numpy()
    np.testing.assert_allclose(answer[1:], expected, atol=EMBEDDING_TOLERANCE)


async def test_clips_of_a_query_are_answered_with_the_embeddings_of_their_windows(
    house: House, start: Start, phalar: Phalar
) -> None:
    await start()
    inner, length = int(1.1 * SAMPLE_RATE), int(1.5 * SAMPLE_RATE)
    waveform = np.concatenate([np.zeros(2 * SAMPLE_RATE, np.float32), noise(1, 2.0)])
    laid = Windows.in_clock_time(np.array([0, 2 * SAMPLE_RATE, 2 * SAMPLE_RATE + 640], np.int64), length)
    answer = await house.embed(waveform, replace(laid, inner=inner))
    clips = np.stack([waveform[at : at + length] for at in laid.starts[1:].tolist()])
    expected = phalar.embed_each_step(torch.from_numpy(clips), inner).numpy()
    assert expected.shape == (2, 2, 512)
    np.testing.assert_allclose(answer[1:].reshape(2, 2, 512), expected, atol=EMBEDDING_TOLERANCE)
    assert not answer[0].any()


async def test_windows_in_keys_are_answered_with_the_embeddings_of_every_key(
    house: House, start: Start, phalar: Phalar
) -> None:
    await start()
    length = int(1.5 * SAMPLE_RATE)
    waveform = np.concatenate([np.zeros(2 * SAMPLE_RATE, np.float32), noise(1, 2.0)])
    laid = Windows(np.array([0, 2 * SAMPLE_RATE]), np.array([length, length - 800]), frames=151, semitones=1)
    answer = await house.embed(waveform, laid)
    expected = phalar.embed_in_keys(BeatClips.cut(waveform, laid[1:], phalar.config.hop), 1).numpy()
    np.testing.assert_allclose(answer[1:].reshape(1, 3, 512), expected, atol=EMBEDDING_TOLERANCE)
    assert not answer[0].any()
    silent = await house.embed(waveform, laid[:1])
    assert silent.shape == (1, 3 * 512)
    assert not silent.any()


async def test_uploads_take_smaller_batches_while_queries_come(
    house: House, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "LATELY_S", 10 * SOON_S)
    embed, sizes = Phalar.embed, []

    def counted(self: Phalar, windows: Any) -> torch.Tensor:
        sizes.append(len(windows))
        return embed(self, windows)

    monkeypatch.setattr(Phalar, "embed", counted)
    worker = await start()
    worker._asked_at = -20 * SOON_S
    await house.submit(wav(noise(1, seconds=12.5)))
    await eventually(house.settled)
    assert max(sizes) == house.settings.most_windows
    sizes.clear()
    await house.embed(noise(2))
    await house.submit(wav(noise(3, seconds=12.5)))
    await eventually(house.settled)
    assert max(sizes) == house.settings.most_windows // batches.LATELY_SHARE


async def test_query_that_makes_no_sense_is_answered_with_its_reason(house: House, start: Start) -> None:
    await start()
    with pytest.raises(EmbedFailed, match="leave"):
        await house.embed(noise(1), Windows.in_clock_time(np.array([10**6]), 19_000))
    with pytest.raises(EmbedFailed, match=r"1\.024"):
        await house.embed(noise(1), Windows.in_clock_time(np.array([0]), 1_000))


async def test_other_model_is_loaded_from_the_checkpoints_and_an_unknown_one_refused(
    house: House, start: Start
) -> None:
    other = untrained_phalar(1)
    house.settings.checkpoint_folder.mkdir()
    save_phalar(other, house.settings.checkpoint_folder / f"{other.fingerprint}.safetensors", trained=False)
    await start()
    waveform = noise(1)
    answer = await house.embed(waveform, model=other.fingerprint)
    np.testing.assert_allclose(answer, other.embed(waveform[None]).numpy(), atol=EMBEDDING_TOLERANCE)
    with pytest.raises(FingerprintMismatch) as mismatch:
        await house.embed(waveform, model="0" * 64)
    assert set(mismatch.value.held) == {house.fingerprint, other.fingerprint}
    stem_id = await house.upload(wav(noise(2)))
    await house.queue.submit_upload(stem_id, "0" * 64)

    async def acknowledged() -> bool:
        return (await house.queue.depths())["uploads"] == 0

    await eventually(acknowledged)
    assert await house.states([stem_id]) == ["queued"], "the sweep brings it back for the live model"


async def test_query_does_not_wait_for_the_uploads_before_it(
    house: House, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    embed = Phalar.embed

    def slow(self: Phalar, windows: Any) -> torch.Tensor:
        order.append("query" if windows.shape[1] == 17_000 else "batch")
        time.sleep(0.05)
        return embed(self, windows[:1]).expand(len(windows), -1)

    monkeypatch.setattr(Phalar, "embed", slow)
    await start()
    await house.submit(wav(noise(1, 300.0)))
    await eventually(lambda: len(order) > 0)
    before = len(order)
    await house.embed(noise(2), Windows.in_clock_time(np.array([0]), 17_000))
    answered = order.index("query")
    # The one on the device when it was sent, and one that may begin while it is on its way.
    assert answered - before <= 2
    assert not await house.settled(), "the uploads went on"


async def test_queries_that_wait_together_are_embedded_in_one_batch(
    house: House, start: Start, monkeypatch: pytest.MonkeyPatch, phalar: Phalar
) -> None:
    sizes: list[int] = []
    workers: list[Worker] = []
    embed = Phalar.embed

    def counted(self: Phalar, windows: Any) -> torch.Tensor:
        sizes.append(len(windows))
        until = time.monotonic() + SOON_S
        # The first to arrive finds the device idle and need not wait for the others; those have come when it is done.
        others = len(asked) - len(windows)
        while len(sizes) == 1 and not (workers and len(workers[0]._queries) == others) and time.monotonic() < until:
            time.sleep(0.001)
        return embed(self, windows)

    waveforms = [noise(seed) for seed in range(3)]
    asked = [asyncio.create_task(house.embed(waveform)) for waveform in waveforms]

    async def waiting() -> bool:
        return (await house.queue.depths())["queries"] == len(asked)

    await eventually(waiting)
    monkeypatch.setattr(Phalar, "embed", counted)
    workers.append(await start())
    answers = await asyncio.gather(*asked)
    assert sizes in ([3], [1, 2], [2, 1])
    for waveform, answer in zip(waveforms, answers, strict=True):
        np.testing.assert_allclose(answer, embed(phalar, waveform[None]).numpy(), atol=EMBEDDING_TOLERANCE)


@pytest.mark.usefixtures("breakable")
async def test_query_that_breaks_the_model_fails_alone_among_those_of_its_batch(house: House, start: Start) -> None:
    waveforms = [noise(1), noise(2, peak=POISON), noise(3)]
    await start()
    first, broken, last = await asyncio.gather(*map(house.embed, waveforms), return_exceptions=True)
    assert isinstance(first, np.ndarray)
    assert isinstance(last, np.ndarray)
    assert isinstance(broken, EmbedFailed)
    assert "it broke" in str(broken)


async def test_query_that_meets_a_device_without_memory_may_come_again(
    house: House, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    await start()
    monkeypatch.setattr(Phalar, "embed", full)
    with pytest.raises(NoMemory) as refused:
        await house.embed(noise(1))
    answer = problem_response(refused.value)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")


async def test_stem_whose_beats_cannot_be_heard_fails_and_is_not_tried_for_ever(
    house: House, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    analyse = worker.analyse

    def breaks(waveform: Any, *others: Any) -> Any:
        if np.abs(waveform).max() == POISON:
            raise ValueError("no such tempo")
        return analyse(waveform, *others)

    monkeypatch.setattr(worker, "analyse", breaks)
    ids = await house.submit(wav(noise(1)), wav(noise(2, peak=POISON)))
    await start()
    await eventually(house.settled)
    assert await house.states(ids) == ["ready", "failed"]


async def test_stopped_worker_gives_back_what_it_has_not_finished(
    house: House, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    embed = Phalar.embed

    def slow(self: Phalar, windows: Any) -> torch.Tensor:
        loop.call_soon_threadsafe(begun.set)
        time.sleep(0.1)
        return embed(self, windows[:1]).expand(len(windows), -1)

    monkeypatch.setattr(Phalar, "embed", slow)
    worker = await start()
    ids = await house.submit(*(wav(noise(seed, 60.0)) for seed in range(3)))
    await asyncio.wait_for(begun.wait(), SOON_S)
    worker.stop()
    other = open_queue(house.settings, "other")

    async def comes_back() -> bool:
        jobs = await other.take(1, 0)
        return any(getattr(job, "deliveries", None) == 1 for job in jobs)

    await eventually(comes_back)
    await other.aclose()
    assert "ready" not in await house.states(ids)
