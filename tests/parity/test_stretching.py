"""An embedding of what is as if played otherwise, against that of the audio which a stretcher made so."""

import numpy as np
import pytest
import torch

from model.audio import SAMPLE_RATE, ClipTooShort
from model.audio.stretch import played
from model.checkpoints import load_phalar
from model.cqt import MOST_SEMITONES
from model.demo import compose_track
from model.phalar import FASTEST, Phalar
from service.work.models import DEFAULT_CHECKPOINT


@pytest.fixture(scope="module")
def phalar() -> Phalar:
    return load_phalar(DEFAULT_CHECKPOINT)


@pytest.mark.parametrize(("speed", "semitones", "least", "mean"), [
    (1.05, 0, 0.95, 0.975),
    (0.9, 0, 0.9, 0.945),
    (1.0, 2, 0.88, 0.925),
    (1.0, -2, 0.89, 0.94),
    (1.12, -1, 0.83, 0.91),
])  # fmt: skip
def test_embedding_as_if_played_is_that_of_the_stretched_audio(
    phalar: Phalar, speed: float, semitones: int, least: float, mean: float
) -> None:
    """By cosine: a stretcher smears attacks and adds its colour, and a model that hears finer hears more of that."""
    cosines = []
    for seed in range(3):
        for stem in compose_track(seed, 12.0, SAMPLE_RATE).stems:
            clip = np.ascontiguousarray(stem.waveform[: 12 * SAMPLE_RATE], np.float32)
            stretched = played(clip, round(len(clip) / speed), semitones)
            first, length = 2 * SAMPLE_RATE, 5 * SAMPLE_RATE
            cut = clip[round(first * speed) : round((first + length) * speed)]
            if not np.abs(cut).max() > 1e-3:
                continue
            as_if = phalar.embed(cut[None], speed=speed, transpose=semitones)[0]
            really = phalar.embed(stretched[None, first : first + length])[0]
            cosines.append(float((as_if.conj() * really).sum().real))
    assert len(cosines) >= 10
    assert min(cosines) >= least
    assert np.mean(cosines) >= mean


def test_as_recorded_nothing_is_read_elsewhere(phalar: Phalar) -> None:
    clips = 0.1 * torch.randn(2, 40_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(phalar.embed(clips, speed=1.0, transpose=0), phalar.embed(clips))
    nearly = phalar.embed(clips, speed=1.0 + 1e-12, transpose=0)
    assert (nearly - phalar.embed(clips)).abs().max() < 1e-3, "the path for other speeds ends at the same numbers"


def test_what_cannot_be_played_so_is_refused(phalar: Phalar) -> None:
    clips = torch.zeros(1, 40_000)
    for speed, transpose in ((0.0, 0), (-1.0, 0), (float("nan"), 0), (10_000.0, 0), (1.0, MOST_SEMITONES + 1)):
        with pytest.raises(ValueError, match=r"speed|transpose"):
            phalar.embed(clips, speed=speed, transpose=transpose)
    with pytest.raises(ClipTooShort) as caught:
        phalar.embed(clips, speed=FASTEST)
    assert caught.value.seconds == 40_000 / SAMPLE_RATE / FASTEST
