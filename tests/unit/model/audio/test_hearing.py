"""What is heard of a clip: a click track's tempo and beats to the millisecond, and which stems play notes."""

import numpy as np
import pytest
import torch

from model.audio import SAMPLE_RATE
from model.audio.analysis import is_sure
from model.audio.grid import LOWEST_BPM
from model.audio.hearing import ANOTHER_TEMPO, Hearing, _median_around
from model.demo import compose_track
from tests.clips import clicks

SECONDS = 24.0
SAME_TEMPO = 2e-4  # the share by which frames may miss a tempo over the clip
SAME_BEAT_S = 0.012  # a frame is 10 ms
BESIDE_A_BEAT = 0.1  # of a beat: onsets of chords are slow


@pytest.mark.parametrize("tempo_bpm", [90.0, 120.0, 133.3, 165.0])
def test_a_click_tracks_tempo_and_beats_are_heard(tempo_bpm: float) -> None:
    grid = Hearing(clicks(tempo_bpm, SECONDS, 0.3)).grid()
    assert grid is not None
    assert grid.source == "heard"
    assert grid.tempo_bpm == pytest.approx(tempo_bpm, rel=SAME_TEMPO)
    beats = (grid.beats_s - 0.3) / (60 / tempo_bpm)
    off_s = np.abs(beats - np.round(beats)) * 60 / tempo_bpm
    assert off_s[:4].max() < SAME_BEAT_S
    assert off_s.max() < SAME_BEAT_S + SAME_TEMPO * SECONDS


@pytest.mark.parametrize(("tempo_bpm", "heard_bpm"), [(60.0, 120.0), (200.0, 100.0)])
def test_half_and_double_tempo_are_one(tempo_bpm: float, heard_bpm: float) -> None:
    grid = Hearing(clicks(tempo_bpm, SECONDS, 0.3)).grid()
    assert grid is not None
    assert LOWEST_BPM <= grid.tempo_bpm < 2 * LOWEST_BPM
    assert grid.tempo_bpm == pytest.approx(heard_bpm, rel=SAME_TEMPO)


def shuffle_of(tempo_bpm: float, seconds: float = SECONDS) -> np.ndarray:
    """Beats in bars of four, and between them the third third, as in swing: a rhythm of two likely tempi."""
    rng = np.random.default_rng(0)
    out = rng.normal(0, 1e-4, round(seconds * SAMPLE_RATE)).astype(np.float32)
    click = (rng.normal(0, 0.3, 400) * np.exp(-np.arange(400) / 80)).astype(np.float32)
    for third in range(int(seconds / 20 * tempo_bpm) - 3):
        if third % 3 != 1:
            begin = round(third * 20 / tempo_bpm * SAMPLE_RATE)
            out[begin : begin + 400] += click * (1.0 if third % 12 == 0 else 0.5)
    return out


@pytest.mark.parametrize("seconds", [8.0, 24.0])
def test_swing_is_heard_by_its_beat_and_its_thirds_come_second(seconds: float) -> None:
    first, second = Hearing(shuffle_of(120.0, seconds)).grids(most=2)
    assert first.tempo_bpm == pytest.approx(120.0, rel=1e-3)
    assert abs(np.log2(second.tempo_bpm / first.tempo_bpm)) > np.log2(1 + ANOTHER_TEMPO)
    assert second.tempo_bpm == pytest.approx(90.0, rel=1e-3)
    assert (first.source, second.source, second.steadiness) == ("heard", "heard", 0.0)
    assert Hearing(shuffle_of(120.0, seconds)).grid().steadiness == first.steadiness


def test_of_two_tempi_at_once_both_are_heard_and_neither_is_sure() -> None:
    assert is_sure(Hearing(clicks(110.0, SECONDS)).grid())
    both = Hearing(clicks(110.0, SECONDS) + clicks(97.0, SECONDS)).grids(most=2)
    assert sorted(grid.tempo_bpm for grid in both) == pytest.approx([97.0, 110.0], rel=SAME_TEMPO)
    assert not is_sure(both[0])
    assert not is_sure(None)


def test_of_a_blink_nothing_is_heard() -> None:
    blink = Hearing(np.ones(100, np.float32))
    assert (blink.grids(), blink.key(), blink.is_pitched()) == ([], None, False)


@pytest.mark.parametrize(
    "waveform",
    [
        np.random.default_rng(0).normal(0, 0.1, 24 * SAMPLE_RATE).astype(np.float32),
        np.zeros(24 * SAMPLE_RATE, np.float32),
        np.concatenate([clicks(tempo_bpm, 60 / tempo_bpm) for tempo_bpm in np.linspace(100, 150, 48)]),
        clicks(120.0, 2.0),
        np.zeros(0, np.float32),
    ],
    ids=["noise", "silence", "drift", "two seconds", "nothing"],
)
def test_without_a_steady_tempo_there_is_no_grid(waveform: np.ndarray) -> None:
    assert Hearing(waveform).grid() is None


def off_beats(tempo_bpm: float, first_s: float, gain: float) -> np.ndarray:
    """A chord with its bass on every beat, and between beats a hi-hat that is louder."""
    rng, beat = np.random.default_rng(0), round(60 / tempo_bpm * SAMPLE_RATE)
    at = np.arange(beat) / SAMPLE_RATE
    out = rng.normal(0, 1e-4, round(SECONDS * SAMPLE_RATE))
    hat = rng.normal(0, 0.4, 800) * np.exp(-np.arange(800) / 200)
    for number, begin in enumerate(range(round(first_s * SAMPLE_RATE), len(out) - 2 * beat, beat)):
        root = 55 * 2 ** ((0, 5, 7, 3)[number % 4] / 12)
        notes = sum(0.08 * np.sin(2 * np.pi * root * step * at) for step in (1, 2, 3, 4, 5))
        out[begin : begin + beat] += notes * np.minimum(1, at / 0.02)
        out[begin + beat // 2 : begin + beat // 2 + 800] += hat
    return (gain * out).astype(np.float32)


@pytest.mark.parametrize("gain", [1.0, 0.01])
def test_beats_are_where_chords_and_basses_change_not_where_it_is_loudest(gain: float) -> None:
    grid = Hearing(off_beats(125.0, 0.3, gain)).grid()
    assert grid is not None
    beats = (grid.beats_s - 0.3) * 125 / 60
    assert np.abs(beats - np.round(beats)).max() < BESIDE_A_BEAT


@pytest.mark.parametrize("seed", [0, 3])
def test_drums_are_told_from_notes(seed: int) -> None:
    track = compose_track(seed, 6.0, SAMPLE_RATE)
    assert {stem.instrument: Hearing(stem.waveform).is_pitched() for stem in track.stems} == {
        "drums": False, "bass": True, "pads": True, "keys": True, "lead": True,
    }  # fmt: skip


def test_a_chord_is_heard_as_its_pitch_classes_wherever_they_lie() -> None:
    at = np.arange(6 * SAMPLE_RATE) / SAMPLE_RATE
    for pitches in ((48, 64, 79), (49, 65, 80)):
        tones = [0.1 * np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * at) for pitch in pitches]
        heard = Hearing(np.sum(tones, axis=0, dtype=np.float32)).pitch_classes
        assert {int(pitch) for pitch in np.argsort(heard)[-3:]} == {pitch % 12 for pitch in pitches}
        assert np.sort(heard)[-3:].sum() > 0.95 * heard.sum()
    assert not Hearing(np.zeros(6 * SAMPLE_RATE, np.float32)).pitch_classes.any()


def test_a_bin_is_compared_with_the_median_of_it_and_three_on_either_side() -> None:
    decibels = np.random.default_rng(0).normal(size=(20, 50)).astype(np.float32)
    padded = np.pad(decibels, ((3, 3), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 7, axis=0)
    np.testing.assert_array_equal(_median_around(torch.from_numpy(decibels)), np.median(windows, axis=2))
