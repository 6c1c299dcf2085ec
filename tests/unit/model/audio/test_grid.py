"""Beat time: tempi fold into one octave, beats become seconds, and beats that cannot be are refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from model.audio import SAMPLE_RATE
from model.audio.grid import WINDOW_BEATS, BadGrid, Grid, beat_windows, said_grid, same_tempo
from model.audio.truth import BadTruth, read_truth, tempo_map
from model.demo import compose_track, write_track
from model.training.stems import load_bank


def test_slow_beats_are_split_and_fast_ones_paired() -> None:
    assert said_grid(np.arange(8) * 1.0, 8.0).tempo_bpm == pytest.approx(120)
    fast = said_grid(np.arange(32) * 0.25, 8.0)
    assert fast.tempo_bpm == pytest.approx(120)
    assert fast.beats_s[0] == 0, "the first beat, which begins a bar, stays one"


def test_seconds_follow_a_tempo_that_changes_and_go_on_beyond_both_ends() -> None:
    grid = said_grid(np.array([1.0, 1.5, 2.0, 2.6, 3.2]), 4.0)
    assert grid.seconds_at(np.array([0.5, 3.5, -1.0, 5.0])) == pytest.approx([1.25, 2.9, 0.5, 3.8])


def test_beats_are_told_by_their_seconds_within_a_grid_and_beyond_either_end() -> None:
    grid = Grid(np.cumsum(np.linspace(0.4, 0.6, 30)))
    beats = np.array([-2.0, -0.25, 0.0, 3.5, 24.0, 29.0, 33.3])
    assert grid.beats_at(grid.seconds_at(beats)) == pytest.approx(beats, abs=1e-9)
    assert grid.beats_at(np.array([1.0, 2.0])[:, None]).shape == (2, 1)


def test_windows_start_where_they_fit_into_the_clip() -> None:
    grid = said_grid(np.arange(1, 9) * 0.5, 4.6)  # beats at 0.5 to 4 s
    assert grid.starts(4, 4.6).tolist() == [-1, 0, 1, 2, 3, 4]
    assert grid.starts(10, 4.6).tolist() == []


@pytest.mark.parametrize(("beats", "starts_s"), [(4, [0.0]), (8, [0.0, 2.5]), (12, [0.0, 2.5, 5.0])])
def test_a_loop_that_goes_round_has_whole_windows_that_begin_in_its_first_round(beats: int, starts_s: list) -> None:
    found = beat_windows(Grid(np.arange(beats + 1) * 0.5), 16 * beats // 2 * SAMPLE_RATE)
    assert found is not None
    assert (found[0].starts / SAMPLE_RATE).tolist() == starts_s
    assert (found[0].lengths == WINDOW_BEATS * SAMPLE_RATE // 2).all()
    assert found[0].frames == WINDOW_BEATS * 50 + 1


@pytest.mark.parametrize("tempo_bpm", [120.0, 150.15601323018888, 152.2945407587203, 152.82573529742092])
def test_no_loop_loses_its_last_beat_to_rounding(tempo_bpm: float) -> None:
    samples = round(16 * 60 / tempo_bpm * SAMPLE_RATE)
    grid = Grid(np.arange(17) * 60 / (60 * 16 / (samples / SAMPLE_RATE)))  # as of a loop whose tempo is made exact
    found = beat_windows(grid, samples)
    assert found is not None
    assert found[1].tolist() == [0.0, 5.0, 6.0]


@pytest.mark.parametrize(
    ("beats", "reason"),
    [
        ([0.5], "two beats"),
        ([0.0, 0.5, 0.5], "order"),
        ([0.0, float("nan")], "order"),
        ([-0.5, 0.0, 0.5], "outside"),
        ([0.0, 0.5, 9.0], "outside"),
    ],
)
def test_beats_that_cannot_be_are_refused(beats: list[float], reason: str) -> None:
    with pytest.raises(BadGrid, match=reason):
        said_grid(np.array(beats), 4.0)


def test_a_composed_track_says_its_beats_its_key_and_its_pitched_stems(tmp_path: Path) -> None:
    track = compose_track(5, 8.0, SAMPLE_RATE)
    track.truth.write(tmp_path)
    truth = read_truth(tmp_path)
    assert truth is not None
    assert np.diff(truth.beats_s) == pytest.approx(60 / track.tempo_bpm, abs=1e-5)
    assert truth.key == track.key
    assert [stem for stem, pitched in truth.pitched.items() if not pitched] == ["drums"]
    assert tempo_map(truth.beats_s) == [(0.0, pytest.approx(track.tempo_bpm, rel=1e-4))]


@pytest.mark.parametrize(
    "text",
    ["{", '{"beats_s": 3}', '{"beats_s": [0, "x"]}', '{"beats_s": [0, 1], "key": 3}', '{"beats_s": [], "stems": 1}'],
)
def test_a_track_json_of_another_shape_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "track.json").write_text(text)
    with pytest.raises(BadTruth):
        read_truth(tmp_path)


@pytest.mark.parametrize(
    ("beats", "reason"), [([-1.0, 0.0, 1.0], "-1 s"), ([0.0, 0.5, 60.0], "60 s"), ([0.5, 0.2, 0.1], "order")]
)
def test_a_track_json_that_contradicts_its_stems_gives_no_grid_and_is_named(
    tmp_path: Path, beats: list[float], reason: str
) -> None:
    home = tmp_path / "tracks" / "one"
    write_track(compose_track(1, 4.0, SAMPLE_RATE), home)
    (home / "track.json").write_text(json.dumps({"beats_s": beats}))
    bank = load_bank([tmp_path / "tracks"], tmp_path / "cache")
    assert bank.tracks[0].grid is None
    (said,) = bank.dropped
    assert said.track == "tracks/one"
    assert reason in said.reason


def test_tempi_are_one_within_a_share_whatever_the_octave() -> None:
    tempi = np.array([1.004, 2.0, 0.5, 1.006, 1.5])
    assert same_tempo(tempi, 1.0, 0.005).tolist() == [True, True, True, False, False]
