"""The authors' checkpoints: what loads, and what is refused and by which name."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoints import NotACheckpoint, TruncatedCheckpoint, load_phalar, save_phalar
from model.checkpoints.errors import ForeignKeys, MissingKeys, UnsupportedModel, WrongShape
from model.phalar import Phalar
from tests.lightning import AUTHORS_MODULE, Lightning, Member


def test_a_lightning_file_gives_the_same_fingerprint_and_is_trained(
    phalar: Phalar, native: Path, lightning: Lightning
) -> None:
    path = lightning.write(lightning.contents())
    loaded = load_phalar(path)
    assert loaded.fingerprint == phalar.fingerprint == load_phalar(native).fingerprint
    assert loaded.trained
    assert loaded.notes["global_step"] == "80000"
    assert AUTHORS_MODULE not in sys.modules


def test_a_converted_lightning_file_keeps_its_fingerprint(phalar: Phalar, lightning: Lightning, tmp_path: Path) -> None:
    path = lightning.write(lightning.contents())
    save_phalar(load_phalar(path), tmp_path / "out.safetensors")
    converted = load_phalar(tmp_path / "out.safetensors")
    assert converted.fingerprint == phalar.fingerprint
    assert converted.notes["source"] == "Lightning checkpoint"


def test_lightning_weights_may_be_views_and_of_half_precision(lightning: Lightning) -> None:
    contents = lightning.contents()
    name = "encoder.mlp.3.W.weight"
    weight = contents["state_dict"][name]
    contents["state_dict"][name] = torch.cat([weight, weight]).T.contiguous().T[1024:]
    contents["state_dict"]["encoder.mlp.1.weight"] = torch.ones(512, dtype=torch.bfloat16)
    loaded = load_phalar(lightning.write(contents))
    assert torch.equal(loaded.mix.weight, weight)
    assert torch.equal(loaded.norm.weight, torch.ones(512))


def test_a_lightning_file_with_other_keys_or_shapes_is_refused_by_their_names(
    phalar: Phalar, lightning: Lightning
) -> None:
    whole = lightning.contents()
    state, lengths = whole["state_dict"], {"encoder.cqt_extractor.0.lenghts": phalar.cqt.lengths + 1}
    lacking = {name: weight for name, weight in state.items() if name != "encoder.mlp.2.b"}
    for other, error, match in (
        (lacking, MissingKeys, r"encoder\.mlp\.2\.b"),
        (state | {"loss.weight": torch.ones(1)}, ForeignKeys, r"loss\.weight"),
        (state | {"encoder.mlp.2.b": torch.ones(511)}, WrongShape, r"encoder\.mlp\.2\.b"),
        (state | lengths, UnsupportedModel, "CQT"),
    ):
        with pytest.raises(error, match=match):
            load_phalar(lightning.write(whole | {"state_dict": other}))


@pytest.mark.parametrize(
    ("parameter", "value", "named"),
    [
        ("backbone_type", "transformer", "backbone_type"),
        ("do_cqt", False, "do_cqt"),
        ("ft_sep_depth", -1, "depth"),
        ("spec_pool_norm", "channel", "spec_pool_norm"),
        ("comparison_method", Member("ModelComparisonMethod", "cosine_similarity"), "cosine_similarity"),
    ],
)
def test_another_architecture_is_refused_by_name(
    lightning: Lightning, parameter: str, value: object, named: str
) -> None:
    contents = lightning.contents()
    contents["hyper_parameters"][parameter] = value
    with pytest.raises(UnsupportedModel, match=named):
        load_phalar(lightning.write(contents))


@pytest.mark.parametrize("kept", [0.999, 0.5, 0.001])
def test_a_truncated_lightning_file_says_so(lightning: Lightning, kept: float) -> None:
    path = lightning.write(lightning.contents())
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(TruncatedCheckpoint):
        load_phalar(path)


def test_a_flipped_bit_in_a_lightning_files_weights_is_found(phalar: Phalar, lightning: Lightning) -> None:
    path = lightning.write(lightning.contents())
    data = bytearray(path.read_bytes())
    place = data.index(phalar.mix.weight.detach().numpy().tobytes()[:64])
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(TruncatedCheckpoint, match="CRC"):
        load_phalar(path)


@pytest.mark.parametrize("contents", [{"epoch": 3}, {"state_dict": {"weight": 3}}, [1, 2], "text", torch.zeros(3)])
def test_a_torch_file_without_a_state_dict_is_no_checkpoint(tmp_path: Path, contents: object) -> None:
    torch.save(contents, tmp_path / "other.pt")
    with pytest.raises(NotACheckpoint, match="state_dict"):
        load_phalar(tmp_path / "other.pt")


def test_a_zip_of_something_else_is_no_checkpoint(tmp_path: Path) -> None:
    np.savez(tmp_path / "arrays.npz", weight=np.zeros(3))
    with pytest.raises(NotACheckpoint, match=r"data\.pkl"):
        load_phalar(tmp_path / "arrays.npz")
