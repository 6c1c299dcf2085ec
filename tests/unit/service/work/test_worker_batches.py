"""How a worker shares the device out."""

import numpy as np

from indexer import StemMusic
from model.audio import Windows
from service.work.batches import StemWork, share_out
from service.work.jobs import UploadJob


def stem(name: str, windows: int, length: int = 80_000, fingerprint: str = "f") -> StemWork:
    job = UploadJob("1-0", name, fingerprint)
    return work_of(job, Windows.in_clock_time(np.arange(windows), length))


def work_of(job: UploadJob, *parts: Windows) -> StemWork:
    count = np.arange(sum(map(len, parts)))
    music = StemMusic("piece", False, None, None, {}, {}, None, None)
    empty = np.empty(0, np.float32)
    return StemWork(job=job, row=1, waveform=empty, parts=parts, windows=count, beats=count / 1.0, music=music)


def shares(works: list[StemWork], limit: int) -> dict[str, tuple[int, int]]:
    return {work.job.stem_id: (start, end) for work, start, end in share_out(works, limit)}


def test_long_stem_does_not_keep_short_ones_waiting() -> None:
    works = [stem("long", 480), stem("a", 3), stem("b", 7)]
    assert shares(works, 16) == {"a": (0, 3), "b": (0, 7), "long": (0, 6)}
    assert shares([works[0]], 16) == {"long": (6, 22)}


def test_batch_is_full_when_there_are_windows_enough() -> None:
    works = [stem(str(i), 1 + i) for i in range(8)]
    taken = 0
    while any(work.left for work in works):
        batch = share_out([work for work in works if work.left], 5)
        size = sum(end - start for _, start, end in batch)
        assert size == min(5, 36 - taken)
        taken += size


def test_more_stems_than_places_get_one_window_each() -> None:
    assert len(shares([stem(str(i), 2) for i in range(9)], 4)) == 4


def test_only_windows_of_one_length_and_one_model_share_a_batch() -> None:
    works = [stem("a", 2), stem("short", 1, length=30_000), stem("b", 2), stem("next", 2, fingerprint="e")]
    assert shares(works, 16) == {"a": (0, 2), "b": (0, 2)}


def test_windows_by_the_clock_and_on_beats_go_apart_and_those_on_beats_together() -> None:
    def both(name: str, clock: int, beats: int) -> StemWork:
        on_beats = Windows(np.arange(beats), np.full(beats, 90_000), frames=501)
        return work_of(UploadJob("1-0", name, "f"), Windows.in_clock_time(np.arange(clock), 80_000), on_beats)

    works = [both("a", 3, 2), both("b", 1, 4)]
    assert shares(works, 16) == {"a": (0, 3), "b": (0, 1)}
    assert shares(works, 4) == {"a": (3, 5), "b": (1, 3)}
    assert shares(works[1:], 16) == {"b": (3, 5)}
