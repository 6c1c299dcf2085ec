"""Laws of windows and of decoding, over sizes nobody would choose by hand."""

import io

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.audio import SAMPLE_RATE, AudioError, cut_windows, load_clip, window_starts

WINDOWS = st.tuples(st.integers(1, 5000), st.integers(1, 3000), st.integers(1, 3000))

STREAMED = 1e-6  # float32 rounding of blocks against the whole


@given(WINDOWS)
@example((100, 100, 50))
@example((100, 101, 50))
@example((101, 100, 50))
def test_windows_lie_a_stride_apart_and_the_last_ends_with_the_clip(sizes: tuple[int, int, int]) -> None:
    samples, window, stride = sizes
    starts = window_starts(samples, window, stride)
    assert starts.dtype == np.int64
    assert starts[0] == 0
    assert starts[-1] == max(samples - window, 0)
    np.testing.assert_array_equal(starts[:-1], stride * np.arange(len(starts) - 1))
    if len(starts) > 1:
        assert 1 <= starts[-1] - starts[-2] <= stride


@given(WINDOWS)
def test_windows_cover_every_sample_where_the_stride_does_not_exceed_them(sizes: tuple[int, int, int]) -> None:
    samples, window, stride = sizes
    covered = np.zeros(samples, bool)
    for start in window_starts(samples, window, min(stride, window)):
        covered[start : start + window] = True
    assert covered.all()


@given(WINDOWS)
def test_cut_windows_are_slices_of_the_waveform(sizes: tuple[int, int, int]) -> None:
    samples, window, stride = sizes
    waveform = np.arange(samples, dtype=np.float32)
    starts = window_starts(samples, window, max(stride, samples // 20 + 1))
    cut = cut_windows(waveform, starts, window)
    assert cut.shape == (len(starts), min(window, samples))
    for row, start in zip(cut, starts, strict=True):
        np.testing.assert_array_equal(row, waveform[start : start + window])
    cut[:] = -1
    assert waveform[0] == 0  # a copy


@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(-2000, 2000))
def test_window_outside_the_waveform_is_refused(samples: int, window: int, start: int) -> None:
    if 0 <= start <= samples - min(window, samples):
        return
    with pytest.raises(ValueError, match="leave"):
        cut_windows(np.zeros(samples, np.float32), np.array([start]), window)


@given(st.tuples(st.integers(-1, 2), st.integers(-1, 2), st.integers(-1, 2)).filter(lambda sizes: min(sizes) < 1))
def test_windows_of_nothing_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        window_starts(*sizes)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([8000, 11025, 16000, 22050, 44100, 47999, 96000]),
    st.integers(1, 4),
    st.floats(1.1, 2.5),
    st.integers(0, 2**32 - 1),
)
def test_decoding_by_blocks_equals_resampling_the_whole(rate: int, channels: int, seconds: float, seed: int) -> None:
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, (round(seconds * rate), channels)).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="FLOAT")
    clip = load_clip(file.getvalue())
    whole = soxr.resample(samples.mean(axis=1), rate, SAMPLE_RATE, quality="HQ")
    np.testing.assert_allclose(clip.waveform, whole, atol=STREAMED)


def _seeds() -> list[bytes]:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (24_000, 2))
    files = []
    kinds = [("WAV", "PCM_16"), ("WAVEX", "PCM_16"), ("RF64", "PCM_16"), ("W64", "PCM_16"), ("AIFF", "PCM_16")]
    kinds += [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", None), ("CAF", "PCM_16"), ("AU", "PCM_16")]
    for kind, subtype in kinds:
        file = io.BytesIO()
        soundfile.write(file, noise, SAMPLE_RATE, format=kind, subtype=subtype)
        files.append(file.getvalue())
    return files


SEEDS = _seeds()


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=4),
    st.floats(0, 1),
)
def test_damaged_file_is_a_clip_or_an_audio_error(data: bytes, damage: list[tuple[float, bytes]], kept: float) -> None:
    broken = bytearray(data)
    for place, garbage in damage:
        at = int(place**4 * len(data))  # most hits in the headers
        broken[at : at + len(garbage)] = garbage
    try:
        clip = load_clip(bytes(broken[: int(kept * len(broken))]), max_seconds=60)
    except AudioError as error:
        assert str(error)  # noqa: PT017 - either way is right
    else:
        assert np.isfinite(clip.waveform).all()
        assert 1.024 < clip.duration_s <= 60.1
