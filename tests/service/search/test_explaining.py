"""Why a stem fits: known answers, with a model that scores a stem's own audio highest."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from model.audio import SAMPLE_RATE, SilentClip
from model.audio.grid import Grid
from service.search.explaining import Explanation, explain
from service.search.in_process import DirectEmbedder
from service.settings import Settings
from service.work.models import Models
from tests.clips import riff

TEMPO_BPM = 120.0
GRID = Grid(np.arange(0, 16, 60 / TEMPO_BPM))


@pytest.fixture(scope="module")
def explained(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory):
    settings = Settings(data=tmp_path_factory.mktemp("data"), device="cpu", checkpoint=small_checkpoint)
    models = Models(settings)
    fingerprint = models.configured_fingerprint
    embedder = DirectEmbedder(settings)

    def of(mix: np.ndarray, stem: np.ndarray, grid: Grid | None = GRID) -> Explanation:
        return asyncio.run(explain(models.fold(fingerprint), fingerprint, embedder, mix, stem, grid, 60.0))

    return of


def test_a_stem_fits_itself_best_in_its_key_and_on_its_beat(explained) -> None:
    music = riff(3, TEMPO_BPM)[: 8 * SAMPLE_RATE]
    why = explained(music, music)
    assert why.score == pytest.approx(1.0, abs=1e-4)
    assert max(why.keys, key=why.keys.__getitem__) == 0
    assert max(why.shifts, key=why.shifts.__getitem__) == 0.0
    assert why.pitch > 0
    assert why.rhythm > 0
    assert why.to_s - why.from_s == pytest.approx(5.0, abs=0.01)
    assert why.from_s % 0.5 == pytest.approx(0.0, abs=1e-6)
    assert len(why.parts) == 10
    assert list(why.octaves) == pytest.approx([16.35 * 2**octave for octave in range(8)])


def test_what_a_stem_does_not_play_costs_nothing_and_what_it_plays_does(explained) -> None:
    time_s = np.arange(8 * SAMPLE_RATE) / SAMPLE_RATE
    low = (0.3 * np.sin(2 * np.pi * 55 * time_s) * (time_s % 1 < 0.5)).astype(np.float32)
    why = explained(low, low)
    least_and_most = (min(why.octaves, key=why.octaves.__getitem__), max(why.octaves, key=why.octaves.__getitem__))
    assert least_and_most[1] == pytest.approx(16.35 * 2)  # 33 to 65 Hz
    assert abs(why.octaves[least_and_most[0]]) < 0.05 < why.octaves[least_and_most[1]]


def test_without_beats_windows_of_five_seconds_are_taken_and_a_short_mix_is_whole(explained) -> None:
    music = riff(1, TEMPO_BPM)
    assert explained(music, music, None).to_s - explained(music, music, None).from_s == pytest.approx(5.0, abs=0.01)
    short = music[: 2 * SAMPLE_RATE]
    assert explained(short, short).to_s == pytest.approx(2.0, abs=0.01)


def test_where_nothing_sounds_together_nothing_is_explained(explained) -> None:
    music = riff(1, TEMPO_BPM)[: 6 * SAMPLE_RATE]
    with pytest.raises(SilentClip, match="nowhere at the same time"):
        explained(music, np.zeros_like(music))
