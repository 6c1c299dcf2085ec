"""Our checkpoints: what comes back, and what is refused and by which name."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from model.checkpoints import CheckpointError, NotACheckpoint, TruncatedCheckpoint, load_phalar, save_phalar
from model.checkpoints.errors import ForeignKeys, MissingKeys, NonFiniteWeights, UnsupportedModel, WrongShape
from model.phalar import Phalar


def test_a_saved_model_comes_back_whole(phalar: Phalar, native: Path) -> None:
    loaded = load_phalar(native)
    assert loaded.fingerprint == phalar.fingerprint
    assert loaded.config == phalar.config
    assert loaded.trained
    assert loaded.notes == {"data": "none", "steps": "0"}
    assert not loaded.training
    waveforms = 0.1 * np.random.default_rng(0).standard_normal((1, 20_000), dtype=np.float32)
    assert torch.equal(loaded.embed(waveforms), phalar.embed(waveforms))


def test_untrained_weights_stay_untrained_on_disk(phalar: Phalar, tmp_path: Path) -> None:
    save_phalar(phalar, tmp_path / "seeded.safetensors", trained=False)
    assert not load_phalar(tmp_path / "seeded.safetensors").trained


def test_a_checkpoint_holds_no_cqt_kernels(native: Path) -> None:
    assert native.stat().st_size < 9_300_000  # 2,293,104 float32 weights take 9.17 MB, the kernels 25 MB


def test_saving_replaces_the_old_file_and_leaves_no_other(phalar: Phalar, native: Path) -> None:
    save_phalar(phalar, native)
    assert [path.name for path in native.parent.iterdir()] == [native.name]


def test_a_failed_save_leaves_the_old_file(phalar: Phalar, native: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = native.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        save_phalar(phalar, native)
    assert native.read_bytes() == before
    assert len(list(native.parent.iterdir())) == 1


def rewrite(native: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], object]) -> None:
    from safetensors import safe_open

    with safe_open(native, framework="pt") as file:
        weights, metadata = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118
    change(weights, metadata)
    save_file(weights, native, metadata)


@pytest.mark.parametrize(
    ("name", "weight", "error", "facts"),
    [
        ("mix.weight", None, MissingKeys, {"names": ("mix.weight",)}),
        ("mix.bias", torch.zeros(3), ForeignKeys, {"names": ("mix.bias",)}),
        ("mix.weight", torch.zeros(512, 512), WrongShape, {"shape": (512, 512), "expected": (1024, 512)}),
        ("mix.weight", torch.full((1024, 512), torch.nan), NonFiniteWeights, {"name": "mix.weight"}),
        ("norm.weight", torch.ones(512, dtype=torch.int32), UnsupportedModel, {"value": "torch.int32"}),
    ],
)
def test_a_wrong_weight_is_refused_by_its_name(
    native: Path, name: str, weight: torch.Tensor | None, error: type[CheckpointError], facts: dict[str, object]
) -> None:
    rewrite(native, lambda weights, _: weights.pop(name) if weight is None else weights.update({name: weight}))
    with pytest.raises(error, match=re.escape(name)) as refused:
        load_phalar(native)
    assert {fact: getattr(refused.value, fact) for fact in facts} == facts


@pytest.mark.parametrize(
    ("change", "field"), [({"depth": 10**9}, "depth"), ({"harmonics": 2}, "harmonics"), ({"growth": None}, "growth")]
)
def test_a_configuration_of_another_model_is_refused(native: Path, change: dict[str, object], field: str) -> None:
    def reconfigure(_: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        metadata["config"] = json.dumps(json.loads(metadata["config"]) | change)

    rewrite(native, reconfigure)
    with pytest.raises(UnsupportedModel, match=field):
        load_phalar(native)


def test_a_checkpoint_that_does_not_say_what_beat_time_moves_is_the_model_it_was(phalar: Phalar, native: Path) -> None:
    def forget(_: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        config = json.loads(metadata["config"])
        del config["kernel_fronts"]
        metadata["config"] = json.dumps(config)

    rewrite(native, forget)
    assert load_phalar(native).fingerprint == phalar.fingerprint


@pytest.mark.parametrize("low_bytes", [0x4B50, 0x0280])
def test_a_header_whose_length_looks_like_another_format_still_loads(
    phalar: Phalar, tmp_path: Path, low_bytes: int
) -> None:
    # b"PK" starts a zip and b"\x80\x02" a pickle; safetensors pads its header to a multiple of eight.
    path = tmp_path / "padded.safetensors"
    save_phalar(phalar, path, notes={"": ""})
    length = int.from_bytes(path.read_bytes()[:8], "little")
    wanted = next(size for size in range(low_bytes, 2**20, 2**16) if size > length)
    save_phalar(phalar, path, notes={"": "x" * (wanted - length)})
    assert int.from_bytes(path.read_bytes()[:2], "little") == low_bytes
    assert load_phalar(path).fingerprint == phalar.fingerprint


def test_safetensors_of_another_model_say_so(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(NotACheckpoint, match="another model"):
        load_phalar(tmp_path / "other.safetensors")


@pytest.mark.parametrize("kept", [0.999, 0.5, 0.0005])
def test_truncated_safetensors_say_so(native: Path, kept: float) -> None:
    data = native.read_bytes()
    native.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(TruncatedCheckpoint):
        load_phalar(native)


@pytest.mark.parametrize(
    "data", [b"", b"RIFF", b"hello, I am text\n" * 100, bytes(1000), b"cos\nsystem\n(S'true'\ntR."]
)
def test_other_files_are_no_checkpoint(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(NotACheckpoint):
        load_phalar(tmp_path / "file")
