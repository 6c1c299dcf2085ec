"""COCOLA: its front end against librosa, its gradients, and its checkpoints, ours and the authors'."""

import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.ndimage import median_filter
from torch import Tensor
from torch.nn import functional

from model.audio import ClipTooShort
from model.checkpoints import NonFiniteWeights, NotACheckpoint, UnsupportedModel
from model.demo import compose_track

pytest.importorskip("efficientnet_pytorch", reason="the extra `baselines` is not installed")

from model.evaluation.baselines import cocola as baseline
from model.evaluation.systems import NoCheckpoint
from model.training.cocola import Cocola, authors_names, load_cocola, refresh_statistics, save_cocola
from model.training.separation import separate, sliding_median
from tests.lightning import AUTHORS_MODULE, Member, authors_enumerations, lightning_file

RATE = 16_000
DB_TOLERANCE = 0.002  # dB; two orders of summing a mel band in single precision, 80 dB under its maximum
EMBEDDING_TOLERANCE = 1e-4  # of an embedding's largest value: kernels sum in another order at another batch size
DOMINANCE = 20.0  # a tone's and a click's power, in its own channel over the other


@pytest.fixture(scope="module")
def clips() -> Tensor:
    return music(4, 1.5)


@pytest.fixture(scope="module")
def model(clips: Tensor) -> Cocola:
    torch.manual_seed(0)
    model = Cocola()
    refresh_statistics(model, [clips])
    return model.eval()


def music(count: int, seconds: float) -> Tensor:
    """Stems of composed tracks, float32 (count, samples)."""
    stems = [stem.waveform for seed in range(count) for stem in compose_track(seed, seconds, RATE).stems[:1]]
    return torch.from_numpy(np.stack(stems)).float()


# -- front end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [3, 5, 7, 31])
@pytest.mark.parametrize("rows", [16, 17, 32, 301])
def test_the_sliding_median_is_scipys(rows: int, width: int) -> None:
    values = torch.rand(rows, 5, generator=torch.Generator().manual_seed(rows))
    expected = median_filter(values.numpy(), size=(width, 1), mode="reflect")
    assert np.array_equal(sliding_median(values, width).numpy(), expected)


def test_the_mel_spectrograms_are_librosas(model: Cocola, clips: Tensor) -> None:
    librosa = pytest.importorskip("librosa")
    heard = model.frontend(clips).numpy()
    assert heard.shape == (4, 2, 64, 151)
    for clip, channels in zip(clips.numpy(), heard, strict=True):
        spectrum = librosa.stft(clip, n_fft=1024, hop_length=160, win_length=400, pad_mode="reflect")
        for share, channel in zip(librosa.decompose.hpss(spectrum), channels, strict=True):
            power = librosa.feature.melspectrogram(S=np.abs(share) ** 2, sr=RATE, n_mels=64, fmin=60, fmax=7800)
            assert np.abs(channel - librosa.power_to_db(power, ref=np.max)).max() < DB_TOLERANCE


def test_a_steady_tone_is_harmonic_and_a_click_is_percussive(model: Cocola) -> None:
    time = torch.arange(RATE) / RATE
    clicks = torch.zeros(RATE)
    clicks[1000::4000] = 1.0
    power = model.frontend.power(torch.stack([0.5 * torch.sin(2 * torch.pi * 440 * time), clicks])).sum(dim=(2, 3))
    harmonic, percussive = power.unbind(1)
    assert harmonic[0] > DOMINANCE * percussive[0]
    assert percussive[1] > DOMINANCE * harmonic[1]


def test_the_two_shares_sum_to_the_magnitude() -> None:
    magnitude = torch.rand(2, 40, 50, generator=torch.Generator().manual_seed(0))
    magnitude[0, :, :40] = 0.0
    harmonic, percussive = separate(magnitude)
    assert torch.allclose(harmonic + percussive, magnitude)


@pytest.mark.parametrize("shape", [(1, 15, 40), (1, 40, 15)])
def test_too_few_bins_or_frames_to_reflect_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="median over 31"):
        separate(torch.rand(shape))


# -- the model -----------------------------------------------------------------------------------------------------


def test_eight_steps_teach_which_clips_belong_together(clips: Tensor) -> None:
    torch.manual_seed(2)
    model = Cocola(dropout=0.0, drop_connect=0.0)
    both = torch.cat([clips, clips.roll(800, dims=1)])[:, :RATE]
    right, chance = torch.arange(len(clips)), math.log(len(clips))

    def loss_in_use() -> float:
        refresh_statistics(model, [both])
        anchors, positives = model.embed(both).chunk(2)
        return functional.cross_entropy(model.score(anchors, positives), right).item()

    optimiser = torch.optim.Adam(model.parameters(), lr=3e-4)
    assert loss_in_use() > chance
    for _ in range(8):
        anchors, positives = model(both).chunk(2)
        loss = functional.cross_entropy(model.similarity(anchors, positives), right)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss_in_use() < 0.5 * chance


def test_an_embedding_ignores_the_rest_of_its_batch_and_the_mode_of_training(model: Cocola, clips: Tensor) -> None:
    together = model.embed(clips)
    model.train()
    try:
        alone = torch.cat([model.embed(clip[None]) for clip in clips])
        assert model.training
    finally:
        model.eval()
    assert (together - alone).abs().max() < EMBEDDING_TOLERANCE * together.abs().max()
    assert not together.requires_grad


def test_the_score_is_the_bilinear_form_of_squashed_embeddings(model: Cocola) -> None:
    x, y = torch.randn(3, 512), torch.randn(5, 512)
    squashed = [np.tanh((e - e.mean(1, keepdims=True)) / e.std(1, keepdims=True)) for e in (x.numpy(), y.numpy())]
    expected = squashed[0] @ model.similarity.weight.detach().numpy() @ squashed[1].T
    assert np.allclose(model.score(x, y).numpy(), expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(model.score(x, y[:3]), model.score(y[:3], x).T)


def test_refreshed_statistics_are_those_of_the_weights_and_batches(clips: Tensor) -> None:
    torch.manual_seed(0)
    model = Cocola(dropout=0.0).eval()
    for layer in model.modules():
        if hasattr(layer, "running_var"):
            layer.running_var.fill_(7.0)
    refresh_statistics(model, [clips[:2], clips[2:]])
    assert not model.training
    halves = [model.backbone._conv_stem(model.frontend(half)) for half in (clips[:2], clips[2:])]
    first = model.backbone._bn0
    assert first.momentum == pytest.approx(0.01)
    means = torch.stack([half.mean(dim=(0, 2, 3)) for half in halves]).mean(dim=0)
    assert torch.allclose(first.running_mean, means, rtol=1e-3, atol=1e-3)


def test_silence_gets_a_finite_embedding(model: Cocola) -> None:
    assert torch.isfinite(model.embed(torch.zeros(1, RATE))).all()


def test_a_clip_of_under_two_fifths_of_a_second_is_refused(model: Cocola) -> None:
    assert model.embed(torch.rand(1, 6400)).shape == (1, 512)
    with pytest.raises(ClipTooShort):
        model.embed(torch.rand(1, 6399))


# -- our checkpoints -----------------------------------------------------------------------------------------------


def test_a_saved_model_loads_with_the_same_embeddings(model: Cocola, clips: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "cocola.safetensors"
    save_cocola(model, path, notes={"steps": "3"})
    assert os.listdir(tmp_path) == ["cocola.safetensors"]
    loaded = load_cocola(path, "cpu")
    assert not loaded.training
    assert torch.equal(loaded.embed(clips), model.embed(clips))


def test_other_safetensors_are_refused_by_their_cause(model: Cocola, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, path, {"format": "phalar-1"})
    with pytest.raises(NotACheckpoint, match="phalar-1"):
        load_cocola(path)
    save_file(weights | {"project.3.bias": torch.full((512,), torch.nan)}, path, {"format": "cocola-1"})
    with pytest.raises(NonFiniteWeights, match=r"project\.3\.bias"):
        load_cocola(path)
    path.write_bytes(b"RIFF" * 100)
    with pytest.raises(NotACheckpoint):
        load_cocola(path)


def test_cocola_without_a_checkpoint_is_refused() -> None:
    with pytest.raises(NoCheckpoint):
        baseline.load(None)


# -- the authors' checkpoint ---------------------------------------------------------------------------------------


def contents_of(model: Cocola) -> dict[str, Any]:
    """A dictionary of the layout that PHALAR's authors publish COCOLA in."""
    names = authors_names(model)
    parameters = {
        "learning_rate": 0.004,
        "embedding_dim": 512,
        "embedding_mode": Member("EmbeddingMode", "random"),
        "input_type": Member("ModelInputType", "double_channel_harmonic_percussive"),
        "dropout_p": 0.1,
        "backbone_type": "efficientnet",
        "pool_type": "avg",
        "input_freq_bins": 64,
        "comparison_method": Member("ModelComparisonMethod", "cocola_similarity"),
        "do_cqt": False,
    }
    return lightning_file({names[ours]: weight.clone() for ours, weight in model.state_dict().items()}, parameters)


def written(contents: object, path: Path) -> Path:
    with authors_enumerations():
        torch.save(contents, path)
    return path


def test_the_authors_names_are_those_of_their_code(model: Cocola) -> None:
    names = set(authors_names(model).values())
    assert len(names) == len(model.state_dict())
    assert {
        "encoder.backbone.model._conv_stem.weight",
        "encoder.backbone.model._blocks.15._project_conv.weight",
        "encoder.backbone.model._bn1.num_batches_tracked",
        "encoder.mlp.0.weight",
        "encoder.mlp.1.running_var",
        "encoder.mlp.3.bias",
        "similarity.w",
        "similarity.layer_norm.weight",
        "similarity.layer_norm.bias",
    } <= names


def test_a_lightning_file_gives_the_same_embeddings(model: Cocola, clips: Tensor, tmp_path: Path) -> None:
    loaded = load_cocola(written(contents_of(model), tmp_path / "COCOLA_best.ckpt"))
    assert torch.equal(loaded.embed(clips), model.embed(clips))
    assert AUTHORS_MODULE not in sys.modules


@pytest.mark.parametrize(
    ("parameter", "value", "named"),
    [
        ("backbone_type", "freqtimeseparable", "backbone_type"),
        ("pool_type", "spec_pool", "pool_type"),
        ("final_mlp_norm", "ln", "final_mlp_norm"),
        ("final_mlp", False, "final_mlp"),
        ("comparison_method", Member("ModelComparisonMethod", "bilinear_similarity"), "bilinear_similarity"),
    ],
)
def test_another_architecture_is_refused_by_name(
    model: Cocola, tmp_path: Path, parameter: str, value: object, named: str
) -> None:
    contents = contents_of(model)
    contents["hyper_parameters"][parameter] = value
    with pytest.raises(UnsupportedModel, match=named):
        load_cocola(written(contents, tmp_path / "other.ckpt"))
