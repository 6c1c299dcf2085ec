"""What is heard of a clip: a click track's tempo and beats to the millisecond, and which stems play notes."""

import numpy as np
import pytest

from model.audio import SAMPLE_RATE
from model.audio.grid import LOWEST_BPM
from model.audio.hearing import hear_grid, is_pitched
from model.demo import compose_track

SECONDS = 24.0
SAME_TEMPO = 1e-3  # the share of all tempi by which candidates and frames may miss one
SAME_BEAT_S = 0.012  # a frame is 10 ms


def clicks(tempo_bpm: float, first_s: float = 0.3, drift: float = 0.0) -> np.ndarray:
    """A click on every beat, the last ones so much faster than the first."""
    rng = np.random.default_rng(0)
    out = rng.normal(0, 1e-4, round(SECONDS * SAMPLE_RATE)).astype(np.float32)
    click = rng.normal(0, 0.3, 400) * np.exp(-np.arange(400) / 80)
    at = first_s
    while at < SECONDS - 0.1:
        begin = round(at * SAMPLE_RATE)
        out[begin : begin + 400] += click.astype(np.float32)
        at += 60 / tempo_bpm / (1 + drift * at / SECONDS)
    return out


@pytest.mark.parametrize("tempo_bpm", [90.0, 120.0, 133.3, 165.0])
def test_a_click_tracks_tempo_and_beats_are_heard(tempo_bpm: float) -> None:
    grid = hear_grid(clicks(tempo_bpm))
    assert grid is not None
    assert grid.source == "heard"
    assert grid.tempo_bpm == pytest.approx(tempo_bpm, rel=SAME_TEMPO)
    beats = (grid.beats_s - 0.3) / (60 / tempo_bpm)
    off_s = np.abs(beats - np.round(beats)) * 60 / tempo_bpm
    assert off_s[:4].max() < SAME_BEAT_S
    assert off_s.max() < SAME_BEAT_S + SAME_TEMPO * SECONDS


@pytest.mark.parametrize(("tempo_bpm", "heard_bpm"), [(60.0, 120.0), (200.0, 100.0)])
def test_half_and_double_tempo_are_one(tempo_bpm: float, heard_bpm: float) -> None:
    grid = hear_grid(clicks(tempo_bpm))
    assert grid is not None
    assert LOWEST_BPM <= grid.tempo_bpm < 2 * LOWEST_BPM
    assert grid.tempo_bpm == pytest.approx(heard_bpm, rel=SAME_TEMPO)


@pytest.mark.parametrize(
    "waveform",
    [
        np.random.default_rng(0).normal(0, 0.1, 24 * SAMPLE_RATE).astype(np.float32),
        np.zeros(24 * SAMPLE_RATE, np.float32),
        clicks(120.0, drift=0.5),
        clicks(120.0)[: 2 * SAMPLE_RATE],
        np.zeros(0, np.float32),
    ],
    ids=["noise", "silence", "drift", "two seconds", "nothing"],
)
def test_without_a_steady_tempo_there_is_no_grid(waveform: np.ndarray) -> None:
    assert hear_grid(waveform) is None


def test_drums_are_told_from_notes() -> None:
    track = compose_track(3, 6.0, SAMPLE_RATE)
    assert {stem.instrument: is_pitched(stem.waveform) for stem in track.stems} == {
        "drums": False, "bass": True, "pads": True, "keys": True, "lead": True,
    }  # fmt: skip
