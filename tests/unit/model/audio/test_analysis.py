"""What a clip is, musically: what is said is believed, what is heard fills the gaps, and contradictions are told."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from model.audio import SAMPLE_RATE
from model.audio.analysis import analyse
from model.audio.harmony import is_relative
from model.audio.said import Said
from model.demo import compose_track
from tests.clips import clicks
from tests.command import phalar


def test_a_loop_of_a_said_tempo_has_that_tempo_exactly_and_a_grid_from_its_first_sample() -> None:
    told = analyse(clicks(127.0, 16 * 60 / 127), Said(tempo_bpm=127.0, sources={"tempo_bpm": "name"}))
    assert told.kind == "loop"
    assert told.tempo_bpm == pytest.approx(127.0, abs=1e-3)
    assert told.grid is not None
    assert told.grid.beats_s[0] == 0.0
    assert told.sources["tempo_bpm"] == "name"
    assert not told.warnings


@pytest.mark.parametrize("said_bpm", [87.0, 174.0])
def test_a_said_tempo_is_heard_for_where_the_clip_begins_anywhere(said_bpm: float) -> None:
    told = analyse(clicks(174.0, 7.3, first_s=0.2), Said(tempo_bpm=said_bpm, sources={"tempo_bpm": "tags"}))
    assert told.tempo_bpm == said_bpm
    assert told.grid is not None
    late = (told.grid.beats_s - 0.2) % (60 / 174)
    assert np.minimum(late, 60 / 174 - late).max() < 0.02
    assert not told.warnings, "half and double are one"


def test_what_is_said_wins_and_what_is_heard_otherwise_is_told() -> None:
    told = analyse(clicks(140.0, 20.3), Said(tempo_bpm=120.0, sources={"tempo_bpm": "name"}))
    assert told.tempo_bpm == 120.0
    assert any("120 BPM, but 140 is heard" in warning for warning in told.warnings)


def test_without_a_word_tempo_and_key_are_heard() -> None:
    track = compose_track(3, 24.0, SAMPLE_RATE)
    told = analyse(sum(stem.waveform for stem in track.stems if stem.instrument != "drums"))
    assert told.pitched
    assert told.key == track.truth.key or is_relative(told.key, track.truth.key)
    assert told.sources["key"] == "heard"
    drums = next(stem.waveform for stem in track.stems if stem.instrument == "drums")
    alone = analyse(drums)
    truth = 60 / float(np.median(np.diff(track.truth.beats_s)))
    octaves = np.log2(alone.tempo_bpm / truth)
    assert abs(octaves - round(octaves)) < 0.01
    assert alone.key is None
    assert not alone.pitched


@pytest.mark.parametrize("clip", [np.zeros(8 * SAMPLE_RATE, np.float32), np.zeros(100, np.float32)])
def test_silence_and_a_blink_tell_nothing(clip: np.ndarray) -> None:
    told = analyse(clip)
    assert (told.tempo_bpm, told.grid, told.key, told.pitched) == (None, None, None, False)


def test_a_hit_that_dies_away_is_a_one_shot() -> None:
    hit = np.random.default_rng(0).normal(0, 0.3, 2 * SAMPLE_RATE) * np.exp(-np.arange(2 * SAMPLE_RATE) / 3000)
    assert analyse(hit.astype(np.float32)).kind == "one-shot"


def test_the_command_tells_each_file_a_line_and_names_what_it_cannot_read(tmp_path: Path) -> None:
    loop = tmp_path / "Beat_125bpm_Am.wav"
    soundfile.write(loop, clicks(125.0, 8 * 60 / 125), SAMPLE_RATE)
    (tmp_path / "broken.wav").write_bytes(b"RIFF....")
    done = phalar("analyse", loop, tmp_path / "broken.wav", "--json")
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert (told["tempo_bpm"], told["key"], told["kind"]) == (125.0, "A minor", "loop")
    assert told["sources"]["key"] == "name"
    assert "broken.wav" in done.stderr
    shown = phalar("analyse", loop)
    assert "125.00" in shown.stdout
