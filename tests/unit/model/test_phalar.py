"""Facts of the whole model: what embed and score take, give and refuse."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.audio import SAMPLE_RATE, ClipTooShort, Windows
from model.cqt import MOST_SEMITONES, BeatClips
from model.phalar import Phalar, PhalarConfig, untrained_phalar
from model.similarity import to_unit_norm
from tests.clips import clicks

ROUNDING = 1e-6  # the norm of 512 float32 phasors
SEED_0 = "5d7241102387f655e2cc8bd6a61f21f61d3bd447206f8c2b625827b897ec8645"


@pytest.fixture(scope="module")
def phalar() -> Phalar:
    return untrained_phalar(0)


def noise(batch: int, samples: int, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal((batch, samples), dtype=np.float32)


def test_default_configuration_has_the_released_number_of_parameters(phalar: Phalar) -> None:
    assert sum(parameter.numel() for parameter in phalar.parameters()) == 2_293_104


def test_untrained_weights_are_the_same_on_every_machine_and_say_so(phalar: Phalar) -> None:
    assert phalar.fingerprint == SEED_0
    assert not phalar.trained


def test_untrained_weights_follow_the_seed(phalar: Phalar) -> None:
    assert untrained_phalar(1).fingerprint != phalar.fingerprint


def test_embedding_is_complex64_of_unit_norm_without_gradient(phalar: Phalar) -> None:
    embeddings = phalar.embed(noise(2, 20_000))
    assert embeddings.shape == (2, 512)
    assert embeddings.dtype == torch.complex64
    assert not embeddings.requires_grad
    assert (embeddings.norm(dim=1) - 1).abs().max() < ROUNDING


def test_numpy_and_torch_of_any_float_type_give_one_embedding(phalar: Phalar) -> None:
    waveforms = noise(1, 20_000)
    expected = phalar.embed(waveforms)
    assert torch.equal(phalar.embed(torch.from_numpy(waveforms)), expected)
    assert torch.equal(phalar.embed(waveforms.astype(np.float64)), expected)


def test_no_clips_give_no_embeddings(phalar: Phalar) -> None:
    assert phalar.embed(np.zeros((0, 80_000), np.float32)).shape == (0, 512)


def test_silence_gets_a_finite_embedding_of_unit_norm(phalar: Phalar) -> None:
    embedding = phalar.embed(np.zeros((1, 80_000), np.float32))
    assert torch.isfinite(torch.view_as_real(embedding)).all()
    assert abs(embedding.norm().item() - 1) < ROUNDING


@pytest.mark.parametrize("samples", [0, 1, 9_600, 16_384])
def test_short_clips_are_refused_with_the_length_they_need(phalar: Phalar, samples: int) -> None:
    with pytest.raises(ClipTooShort) as refused:
        phalar.embed(np.zeros((1, samples), np.float32))
    assert refused.value.facts == {"seconds": samples / 16_000, "minimum": 1.024}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused(phalar: Phalar, bad: float) -> None:
    waveforms = noise(2, 20_000)
    waveforms[1, 777] = bad
    with pytest.raises(ValueError, match="finite"):
        phalar.embed(waveforms)


def test_other_shapes_and_types_are_refused(phalar: Phalar) -> None:
    with pytest.raises(ValueError, match="shape"):
        phalar.embed(np.zeros(80_000, np.float32))
    with pytest.raises(ValueError, match="shape"):
        phalar.embed(np.zeros((1, 1, 80_000), np.float32))
    with pytest.raises(ValueError, match="int16"):
        phalar.embed(np.zeros((1, 80_000), np.int16))


def test_embed_leaves_a_training_model_in_training() -> None:
    model = untrained_phalar(0).train()
    embedding = model.embed(noise(1, 20_000))
    assert model.training
    assert model.backbone.training
    assert torch.equal(embedding, model.eval().embed(noise(1, 20_000)))


def test_forward_is_embed_before_the_norm_and_has_gradients(phalar: Phalar) -> None:
    waveforms = torch.from_numpy(noise(1, 20_000))
    output = phalar(waveforms)
    assert (output / output.norm() - phalar.embed(waveforms)).abs().max() < ROUNDING
    output.abs().square().sum().backward()
    encoder = [weight for name, weight in phalar.named_parameters() if not name.startswith("similarity.")]
    assert all(weight.grad is not None and torch.isfinite(weight.grad).all() for weight in encoder)
    phalar.zero_grad(set_to_none=True)


def test_training_drops_at_random_and_use_does_not() -> None:
    model = untrained_phalar(0).train()
    waveforms = torch.from_numpy(noise(1, 20_000))
    with torch.no_grad():
        assert not torch.equal(model(waveforms), model(waveforms))
        model.eval()
        assert torch.equal(model(waveforms), model(waveforms))


def test_windows_of_one_pass_are_nearly_those_embedded_alone(phalar: Phalar) -> None:
    """To the last bit where a clip holds one; beside others a window hears what lies at its ends."""
    step, window = phalar.config.step, 3 * SAMPLE_RATE
    assert step == 0.32 * SAMPLE_RATE
    clips = torch.stack([torch.from_numpy(clicks(100.0 + 30 * row, 5.0)) for row in range(2)])
    embedded = phalar.embed_each_step(clips, window)
    assert embedded.shape == (2, 1 + (5 * SAMPLE_RATE - window) // step, 512)
    alone = torch.stack([phalar.embed(clips[:, at * step : at * step + window]) for at in range(embedded.shape[1])], 1)
    alike = (alone[:, :, None].conj() * embedded[:, None]).sum(dim=-1).real  # (clips, alone, of the pass)
    assert alike.diagonal(dim1=1, dim2=2).min() > 0.75  # of random weights and short windows
    assert torch.equal(alike.argmax(dim=2), torch.arange(alike.shape[1]).expand(2, -1)), "and no other step's"
    torch.testing.assert_close(phalar.embed_each_step(clips[:, :window], window)[:, 0], phalar.embed(clips[:, :window]))
    with pytest.raises(ValueError, match="does not fit"):
        phalar.embed_each_step(clips[:, : window - 1], window)


def test_keys_of_one_pass_are_nearly_those_embedded_alone(phalar: Phalar) -> None:
    """To the last bit where there is one; of others a key hears what lies beyond its lowest and highest bins."""
    laid = Windows(np.array([0, 8000, 9000]), np.array([40_000, 40_000, 39_000]), frames=301)
    clips = BeatClips.cut(clicks(110.0, 6.0), laid, phalar.config.hop)
    embedded = phalar.embed_in_keys(clips, 2)
    assert embedded.shape == (3, 5, 512)
    moved = (replace(clips, transpose=torch.full((3,), key)) for key in range(-2, 3))
    alone = torch.stack([phalar.embed_in_beat_time(one) for one in moved], dim=1)
    alike = (alone[:, :, None].conj() * embedded[:, None]).sum(dim=-1).real  # (clips, alone, of the pass)
    assert alike.diagonal(dim1=1, dim2=2).min() > 0.9  # of random weights
    assert torch.equal(alike.argmax(dim=2), torch.arange(5).expand(3, -1)), "and no other key's"
    torch.testing.assert_close(
        phalar.embed_in_keys(clips, 2)[:1], phalar.embed_in_keys(clips[:1], 2), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(phalar.embed_in_keys(clips, 0)[:, 0], phalar.embed_in_beat_time(clips))
    for semitones in (-1, MOST_SEMITONES + 1):
        with pytest.raises(ValueError, match="semitones"):
            phalar.embed_in_keys(clips, semitones)


def test_keys_in_training_are_those_of_clips_moved_there(phalar: Phalar) -> None:
    clips = BeatClips(
        torch.from_numpy(np.stack([clicks(110.0, 6.0), clicks(97.0, 6.0)]))[:, :88_000],
        torch.full((2,), 88_000),
        torch.linspace(0, 550, 501).expand(2, -1),
        torch.tensor([-6, 4]),
    )
    moved = [replace(clips, transpose=clips.transpose.clamp(-5, 5) + key) for key in (-1, 0, 1)]
    inside = replace(clips, transpose=clips.transpose.clamp(-5, 5))
    embedded = to_unit_norm(phalar.in_beat_time(inside, 1).flatten(0, 1)).view(2, 3, -1)
    alone = torch.stack([to_unit_norm(phalar.in_beat_time(one)) for one in moved], dim=1)
    alike = (alone[:, :, None].conj() * embedded[:, None]).sum(dim=-1).real
    assert alike.diagonal(dim1=1, dim2=2).min() > 0.9  # of random weights
    assert torch.equal(alike.argmax(dim=2), torch.arange(3).expand(2, -1)), "and no other key's"
    assert torch.isfinite(phalar.in_beat_time(clips, 5)).all(), "six semitones down, and five keys beside"


def test_score_takes_numpy_and_brings_both_sides_to_unit_norm(phalar: Phalar) -> None:
    x, y = phalar.embed(noise(2, 20_000)), phalar.embed(noise(3, 20_000, seed=1))
    score = phalar.score(x, y)
    assert score.shape == (2, 3)
    assert score.dtype == torch.float32
    assert (phalar.score(3 * x.numpy(), y.numpy() / 7) - score).abs().max() < ROUNDING


def test_score_refuses_other_dimensions(phalar: Phalar) -> None:
    with pytest.raises(ValueError, match="512"):
        phalar.score(np.zeros((1, 511), np.complex64), np.zeros((1, 512), np.complex64))


@pytest.mark.slow
def test_fingerprint_changes_with_any_weight(phalar: Phalar) -> None:
    seen = {phalar.fingerprint}
    for parameter in phalar.parameters():
        first = parameter.data.view(-1)[0].clone()
        parameter.data.view(-1)[0] += 1
        seen.add(phalar.fingerprint)
        parameter.data.view(-1)[0] = first
    assert len(seen) == 1 + len(list(phalar.parameters()))
    assert phalar.fingerprint == SEED_0


@pytest.mark.parametrize("config", [PhalarConfig(lowest_hz=16.5), PhalarConfig(kernel_fronts=True)])
def test_fingerprint_changes_with_the_configuration(config: PhalarConfig) -> None:
    model = Phalar(config)
    model.load_state_dict(untrained_phalar(0).state_dict())
    assert model.fingerprint != SEED_0


@pytest.mark.parametrize(
    ("field", "value"),
    [("depth", 0), ("depth", 10**9), ("bins", 96.0), ("growth", "1.5"), ("dropout", 1.0), ("kernel_fronts", 1)],
)
def test_configuration_refuses_numbers_that_no_model_has(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        PhalarConfig(**{field: value})  # type: ignore[arg-type]


def test_embedding_never_convolves_in_tf32() -> None:
    """Cards and CPUs fill one catalog. Elsewhere the setting stays what it was."""
    model, seen = untrained_phalar(), []
    model.cqt.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    before = torch.backends.cudnn.allow_tf32
    model.embed(torch.zeros(1, 24_000))
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32 is before is True
