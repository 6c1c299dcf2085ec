"""The baselines as systems: each runs from clips to scores, by its package's weights or tiny random ones.

Random are CLAP and MERT, in configurations of a few thousand weights; CDPAM and ViSQOL are the real metrics.
"""

import importlib.util
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from model.demo import compose_track
from model.evaluation.baselines.resampling import resample
from model.evaluation.systems import System, load_system

RATE = 16_000
SYMMETRIC = {"clap", "mert", "cdpam"}
LARGEST = {"clap": 1.0, "mert": 1.0, "cdpam": 0.0, "visqol": 5.0}  # no pair can score more
SECONDS = {"cocola": 1.0, "clap": 1.0, "mert": 1.0, "cdpam": 0.1, "visqol": 1.0}  # CDPAM is slow
TOLERANCE = 1e-4  # of the largest value: kernels sum in another order at another batch size
PACKAGES = {
    "cocola": "efficientnet_pytorch",
    "clap": "transformers",
    "mert": "transformers",
    "cdpam": "cdpam",
    "visqol": "visqol",
}


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: the extra `baselines`")


def tiny_cocola(folder: Path) -> str:
    from model.training.cocola import Cocola, refresh_statistics, save_cocola

    torch.manual_seed(0)
    model = Cocola()
    refresh_statistics(model, [clips("cocola")])
    save_cocola(model, folder / "cocola.safetensors")
    return str(folder / "cocola.safetensors")


def tiny_clap(folder: Path, fusion: bool = False) -> str:
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    torch.manual_seed(0)
    audio = {
        "num_mel_bins": 16,
        "spec_size": 64,
        "window_size": 4,
        "patch_size": 2,
        "patch_stride": [2, 2],
        "patch_embeds_hidden_size": 16,
        "hidden_size": 64,
        "depths": [1, 1, 1],
        "num_hidden_layers": 3,
        "num_attention_heads": [2, 2, 2],
        "enable_fusion": fusion,
        "fusion_type": "channel_map" if fusion else None,
    }
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ClapModel(ClapConfig(audio_config=audio, text_config=text | {"vocab_size": 8}, projection_dim=24)).save_pretrained(
        folder
    )
    ClapFeatureExtractor(feature_size=16, max_length_s=2, truncation="rand_trunc").save_pretrained(folder)
    return str(folder)


def tiny_mert(folder: Path, **fields: object) -> str:
    """Weights of HuBERT, and a `config.json` with the type and the further fields of MERT's."""
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    HubertModel(config).save_pretrained(folder)
    path = folder / "config.json"
    facts = json.loads(path.read_text()) | {
        "model_type": "mert_model",
        "architectures": ["MERTModel"],
        "auto_map": {"AutoModel": "modeling_MERT.MERTModel"},
        "sample_rate": 24_000,
        "feature_extractor_cqt": False,
        "deepnorm": False,
        "attention_relax": -1.0,
    }
    path.write_text(json.dumps(facts | fields))
    return str(folder)


MAKE: dict[str, Callable[[Path], str]] = {"cocola": tiny_cocola, "clap": tiny_clap, "mert": tiny_mert}


@pytest.fixture(scope="module", params=list(PACKAGES))
def named(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, System]:
    name = request.param
    needs(PACKAGES[name])
    checkpoint = MAKE[name](tmp_path_factory.mktemp(name)) if name in MAKE else None
    return name, load_system(name, checkpoint)


def clips(name: str) -> Tensor:
    """Three stems of composed tracks, from where they sound, float32 (3, samples)."""
    length = round(SECONDS[name] * RATE)
    stems = [compose_track(seed, 4.0, RATE).stems[0].waveform[RATE:][:length] for seed in range(3)]
    return torch.from_numpy(np.stack(stems)).float()


def test_a_baseline_scores_all_pairs_of_composed_clips(named: tuple[str, System]) -> None:
    name, system = named
    embeddings = system.embed(clips(name))
    scores = system.score(embeddings[:2], embeddings)
    assert len(embeddings) == 3
    assert scores.shape == (2, 3)
    assert scores.dtype == torch.float32
    assert torch.isfinite(scores).all()
    if name in LARGEST:
        assert (scores <= LARGEST[name] + TOLERANCE).all()
        assert scores[0].argmax() == 0  # nothing fits a clip better than itself, for who hears likeness
        assert scores[1].argmax() == 1
    if name in SYMMETRIC:
        assert torch.allclose(scores[:, :2], scores[:, :2].T, atol=TOLERANCE)


def test_a_baselines_embedding_ignores_the_rest_of_its_batch(named: tuple[str, System]) -> None:
    name, system = named
    waveforms = clips(name)[:2]
    together = system.embed(waveforms)
    alone = torch.cat([system.embed(waveform[None]) for waveform in waveforms])
    assert (together - alone).abs().max() <= TOLERANCE * together.abs().max()


# -- one by one ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [22_050, 24_000, 48_000])
def test_resampling_keeps_a_tone_and_its_length(rate: int) -> None:
    time = np.arange(RATE) / RATE
    tone = torch.from_numpy(np.sin(2 * np.pi * 440 * time)[None]).float()
    resampled = resample(tone, rate).numpy()
    assert resampled.shape == (1, rate)
    expected = np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    middle = slice(rate // 4, -rate // 4)
    assert np.abs(resampled[0] - expected)[middle].max() < 1e-3


def test_claps_embedding_is_its_models_for_the_same_features(tmp_path: Path) -> None:
    needs("transformers")
    from transformers import AutoFeatureExtractor, ClapModel

    path = tiny_clap(tmp_path)
    waveforms = clips("clap")
    features = AutoFeatureExtractor.from_pretrained(path)(
        list(resample(waveforms, 48_000).numpy()), sampling_rate=48_000, return_tensors="pt", truncation="rand_trunc"
    )
    with torch.no_grad():
        expected: Any = ClapModel.from_pretrained(path).eval().get_audio_features(features["input_features"])
    assert torch.allclose(load_system("clap", path).embed(waveforms), expected.pooler_output, atol=1e-5)


def test_clap_takes_the_beginning_of_a_long_clip_every_time(tmp_path: Path) -> None:
    needs("transformers")
    system = load_system("clap", tiny_clap(tmp_path))
    long = torch.from_numpy(compose_track(0, 5.0, RATE).stems[0].waveform[None]).float()
    assert torch.equal(system.embed(long), system.embed(long))
    # Beyond 2 s and what the resampling filter reaches, nothing is heard.
    assert torch.allclose(system.embed(long), system.embed(long[:, : 3 * RATE]), atol=1e-5)


def test_a_clap_that_draws_at_random_is_refused(tmp_path: Path) -> None:
    needs("transformers")
    with pytest.raises(ValueError, match="drawn at random"):
        load_system("clap", tiny_clap(tmp_path, fusion=True))


def test_mert_is_the_mean_of_huberts_last_layer(tmp_path: Path) -> None:
    needs("transformers")
    from transformers import HubertModel

    path = tiny_mert(tmp_path)
    embeddings = load_system("mert", path).embed(clips("mert"))
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "hubert"}))
    hubert: Any = HubertModel.from_pretrained(path).eval()
    with torch.no_grad():
        expected = hubert(resample(clips("mert"), 24_000)).last_hidden_state.mean(dim=1)
    assert torch.allclose(embeddings, expected, atol=1e-5)


@pytest.mark.parametrize("field", ["feature_extractor_cqt", "deepnorm"])
def test_a_mert_that_is_no_hubert_is_refused_by_name(tmp_path: Path, field: str) -> None:
    needs("transformers")
    from model.evaluation.baselines.mert import UnsupportedMert

    with pytest.raises(UnsupportedMert, match=field):
        load_system("mert", tiny_mert(tmp_path, **{field: True}))


def test_a_mert_without_some_weights_is_refused_by_their_names(tmp_path: Path) -> None:
    needs("transformers")
    with pytest.raises(ValueError, match=r"encoder\.layers\.2"):
        load_system("mert", tiny_mert(tmp_path, num_hidden_layers=3))


def test_cdpam_is_the_distance_of_its_package() -> None:
    needs("cdpam")
    from model.evaluation.baselines.cdpam import RATE as CDPAM_RATE

    system: Any = load_system("cdpam")
    waveforms = clips("cdpam")[:2]
    whole = torch.round(resample(waveforms, CDPAM_RATE) * 32_768)
    with torch.no_grad():
        acoustics = [functional.normalize(system.network.base_encoder(row[None, None])[1], dim=1) for row in whole]
        distance = system.network.model_dist(*acoustics)
    embeddings = system.embed(waveforms)
    assert system.score(embeddings[:1], embeddings[1:]).item() == pytest.approx(-distance.item(), rel=1e-3)
    assert distance.item() > 0


def test_a_cdpam_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    needs("cdpam")
    header = [pickle.dumps(part, protocol=2) for part in (119547037146038801333356, 1001, {"little_endian": True})]
    (tmp_path / "evil.pth").write_bytes(b"".join(header) + f"cos\nmkdir\n(V{tmp_path}/ran\ntR.".encode())
    with pytest.raises(pickle.UnpicklingError, match="mkdir"):
        load_system("cdpam", str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


def test_visqol_prefers_a_little_noise_to_much() -> None:
    needs("visqol")
    system = load_system("visqol")
    clip = clips("visqol")[:1]
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))
    degraded = system.embed(torch.cat([clip + 0.001 * noise, clip + 0.1 * noise]))
    little, much = system.score(system.embed(clip), degraded)[0]
    assert 1.0 <= much < little <= 5.0


def test_visqol_is_refused_on_an_accelerator() -> None:
    needs("visqol")
    with pytest.raises(ValueError, match="CPU only"):
        load_system("visqol", None, "cuda")
