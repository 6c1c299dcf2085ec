import numpy as np
import pytest

from model.audio import ClipTooLong, DecodeFailed, load_part
from tests.audio_files import by_soundfile

RATE = 22_050
NOISE = (np.random.default_rng(0).standard_normal((2 * RATE, 2)) * 0.1).astype(np.float32)


def encoded(kind: str) -> bytes:
    return by_soundfile(kind)(NOISE, RATE)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "AIFF", "OGG", "MP3"])
@pytest.mark.parametrize(("first", "count"), [(0, 100), (20_000, 20_000), (16_384, 1), (43_000, None), (40_000, 10**9)])
def test_a_part_is_that_of_the_whole(kind: str, first: int, count: int | None) -> None:
    data = encoded(kind)
    whole = load_part(data, lambda _: (0, None), max_seconds=10)
    part = load_part(data, lambda _: (first, count), max_seconds=10)
    assert (part.first, part.sample_rate, part.samples.dtype) == (first, RATE, np.float32)
    wanted = whole.samples[:, first : None if count is None else first + count]
    assert part.samples.shape == wanted.shape
    assert np.abs(part.samples - wanted).max() < 1e-6
    if kind in ("WAV", "FLAC", "AIFF"):
        assert np.abs(whole.samples - NOISE.T).max() < 1e-4


@pytest.mark.parametrize("kind", ["WAV", "OGG"])
def test_a_part_beyond_the_end_is_empty_and_says_where_the_end_is(kind: str) -> None:
    part = load_part(encoded(kind), lambda _: (10**9, 5), max_seconds=10)
    assert part.samples.shape == (2, 0)
    assert part.first == pytest.approx(2 * RATE, abs=64)


def test_the_limits_of_a_clip_hold_for_what_is_read() -> None:
    with pytest.raises(ClipTooLong):
        load_part(encoded("WAV"), lambda _: (0, None), max_seconds=1)
    with pytest.raises(DecodeFailed):
        load_part(b"RIFF\x04\0\0\0WAVE", lambda _: (0, None), max_seconds=1)


def test_a_file_that_breaks_off_gives_what_is_there() -> None:
    data = encoded("FLAC")
    part = load_part(data[: len(data) // 2], lambda _: (1000, None), max_seconds=10)
    assert 0.3 * 2 * RATE < part.samples.shape[1] < 0.7 * 2 * RATE
    assert np.abs(part.samples - NOISE.T[:, 1000 : 1000 + part.samples.shape[1]]).max() < 1e-4
