"""Equal to what the authors' implementation computes; tests/data/reference.md says where the arrays come from."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.checkpoints.authors import authors_names
from model.phalar import Phalar

CQT_TOLERANCE = 2e-3  # of the scaled dB range: 0.16 dB, room for a CQT by another algorithm
POOLED_TOLERANCE = 1e-3  # phasors of mean magnitude 1 after twenty-one residual branches in float32
EMBEDDING_TOLERANCE = 1e-4  # of a unit-norm embedding
SCORE_TOLERANCE = 1e-4

REFERENCE = np.load(Path(__file__).parents[1] / "data" / "reference.npz")
CLIPS = range(5)


def recipe_weights(name: str, shape: torch.Size) -> Tensor:
    """The weight of the authors' name `name`, by the recipe that made the arrays."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) ^ 20260505)
    normal = torch.randn(shape, generator=generator)
    if len(shape) >= 2:
        weights = normal / (shape.numel() / shape[0]) ** 0.5
    elif name.endswith(".b"):
        weights = -0.1 + 0.02 * normal
    else:
        weights = 0.5 + 0.1 * normal
    return weights.bfloat16().float()


@pytest.fixture(scope="module")
def phalar() -> Phalar:
    model = Phalar()
    names = authors_names(model)
    model.load_state_dict(
        {ours: recipe_weights(names[ours], weight.shape) for ours, weight in model.state_dict().items()}
    )
    return model.eval()


def waveform(clip: int) -> Tensor:
    return torch.from_numpy(REFERENCE[f"waveform_{clip}"])[None]


def reference_embedding(clip: int) -> np.ndarray:
    real, imaginary = REFERENCE["embedding"][clip].astype(np.float64)
    embedding = real + 1j * imaginary
    return embedding / np.linalg.norm(embedding)


@pytest.mark.parametrize("clip", CLIPS)
def test_cqt_equals_the_authors(phalar: Phalar, clip: int) -> None:
    expected = REFERENCE[f"cqt_db_{clip}"]
    cqt = phalar.cqt(waveform(clip))[0].numpy()
    assert cqt.shape == expected.shape
    assert np.abs(cqt - expected).max() < CQT_TOLERANCE


@pytest.mark.parametrize("clip", CLIPS)
def test_pooled_phasors_equal_the_authors(phalar: Phalar, clip: int) -> None:
    real, imaginary = REFERENCE["pooled"][clip]
    with torch.no_grad():
        pooled = phalar.pool(waveform(clip))[0].numpy()
    assert np.abs(pooled - (real + 1j * imaginary)).max() < POOLED_TOLERANCE


@pytest.mark.parametrize("clip", CLIPS)
def test_embedding_equals_the_authors(phalar: Phalar, clip: int) -> None:
    embedding = phalar.embed(waveform(clip))[0].numpy()
    assert np.abs(embedding - reference_embedding(clip)).max() < EMBEDDING_TOLERANCE


def test_score_equals_the_authors(phalar: Phalar) -> None:
    embeddings = torch.cat([phalar.embed(waveform(clip)) for clip in CLIPS])
    score = phalar.score(embeddings, embeddings).numpy()
    assert np.abs(score - REFERENCE["score"]).max() < SCORE_TOLERANCE


def test_hermitian_form_gives_the_authors_score_in_numpy(phalar: Phalar) -> None:
    embeddings = np.stack([reference_embedding(clip) for clip in CLIPS])
    score = np.einsum("ni,ij,mj->nm", embeddings.conj(), phalar.hermitian, embeddings, optimize=True).real
    assert np.abs(score - REFERENCE["score"]).max() < SCORE_TOLERANCE
