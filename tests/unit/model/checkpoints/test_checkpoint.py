"""Facts of checkpoints: what loads, what is refused and by which name, and that nothing in a file is ever run."""

import enum
import io
import json
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from model.checkpoints import (
    CheckpointError,
    ForeignKeys,
    LegacyPickle,
    MissingKeys,
    NonFiniteWeights,
    NotACheckpoint,
    TruncatedCheckpoint,
    UnsafePickle,
    UnsupportedModel,
    WrongShape,
    load_phalar,
    save_phalar,
)
from model.checkpoints.authors import authors_names
from model.phalar import Phalar, untrained_phalar

AUTHORS_MODULE = "contrastive_model.constants"


@pytest.fixture(scope="module")
def phalar() -> Phalar:
    return untrained_phalar(3)


@pytest.fixture
def native(phalar: Phalar, tmp_path: Path) -> Path:
    path = tmp_path / "phalar.safetensors"
    save_phalar(phalar, path, trained=True, notes={"data": "none", "steps": "0"})
    return path


@pytest.fixture
def authors_module() -> Iterator[types.ModuleType]:
    """The authors' enumerations, there only while a test writes a file."""
    package, module = types.ModuleType("contrastive_model"), types.ModuleType(AUTHORS_MODULE)
    module.ModelComparisonMethod = enum.Enum(  # type: ignore[attr-defined]
        "ModelComparisonMethod",
        {"BILINEAR": "bilinear_similarity", "COSINE": "cosine_similarity"},
        module=AUTHORS_MODULE,
    )
    sys.modules |= {"contrastive_model": package, AUTHORS_MODULE: module}
    yield module
    sys.modules.pop("contrastive_model", None)
    sys.modules.pop(AUTHORS_MODULE, None)


class ByValue:
    """Pickles as the authors' enumeration member of this value does."""

    def __init__(self, kind: type, value: str) -> None:
        self.kind, self.value = kind, value

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return self.kind, (self.value,)


def lightning_contents(phalar: Phalar, module: types.ModuleType, method: str = "bilinear_similarity") -> dict[str, Any]:
    """A dictionary of the layout that the authors publish; the CQT kernels, which nothing reads, are cut short."""
    names = authors_names(phalar)
    state = OrderedDict(
        {
            "encoder.cqt_extractor.0.lenghts": phalar.cqt.lengths.clone(),
            "encoder.cqt_extractor.0.cqt_kernels_real": torch.zeros(96, 1, 2),
            "encoder.cqt_extractor.0.cqt_kernels_imag": torch.zeros(96, 1, 2),
        }
    )
    state |= {names[ours]: weight.clone() for ours, weight in phalar.state_dict().items()}
    return {
        "epoch": 499,
        "global_step": 80_000,
        "pytorch-lightning_version": "2.2.1",
        "state_dict": state,
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {
            "embedding_dim": 512,
            "comparison_method": ByValue(module.ModelComparisonMethod, method),
            "backbone_type": "freqtimeseparable",
            "ft_sep_depth": 5,
            "dropout_p": 0.1,
            "do_cqt": True,
        },
    }


def write(contents: object, module: types.ModuleType, path: Path) -> Path:
    torch.save(contents, path)
    # From here on the module does not exist, as on a user's machine.
    sys.modules.pop("contrastive_model", None)
    sys.modules.pop(AUTHORS_MODULE, None)
    return path


# -- native ------------------------------------------------------------------------------------------------------


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


def rewrite(native: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], None]) -> None:
    from safetensors import safe_open

    with safe_open(native, framework="pt") as file:
        weights, metadata = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118
    change(weights, metadata)
    save_file(weights, native, metadata)


def test_a_missing_key_is_named(native: Path) -> None:
    rewrite(native, lambda weights, _: weights.__delitem__("mix.weight"))
    with pytest.raises(MissingKeys, match=r"mix\.weight") as refused:
        load_phalar(native)
    assert refused.value.names == ("mix.weight",)


def test_a_foreign_key_is_named(native: Path) -> None:
    rewrite(native, lambda weights, _: weights.update({"mix.bias": torch.zeros(3)}))
    with pytest.raises(ForeignKeys, match=r"mix\.bias") as refused:
        load_phalar(native)
    assert refused.value.names == ("mix.bias",)


def test_a_wrong_shape_is_named(native: Path) -> None:
    rewrite(native, lambda weights, _: weights.update({"mix.weight": torch.zeros(512, 512)}))
    with pytest.raises(WrongShape, match=r"mix\.weight") as refused:
        load_phalar(native)
    assert refused.value.shape == (512, 512)
    assert refused.value.expected == (1024, 512)


def test_a_weight_that_is_no_number_is_named(native: Path) -> None:
    rewrite(native, lambda weights, _: weights["mix.weight"].view(-1).__setitem__(0, torch.nan))
    with pytest.raises(NonFiniteWeights, match=r"mix\.weight"):
        load_phalar(native)


def test_whole_number_weights_are_refused(native: Path) -> None:
    rewrite(native, lambda weights, _: weights.update({"norm.weight": torch.ones(512, dtype=torch.int32)}))
    with pytest.raises(UnsupportedModel, match=r"norm\.weight"):
        load_phalar(native)


@pytest.mark.parametrize(
    ("change", "field"),
    [({"depth": 10**9}, "depth"), ({"harmonics": 2}, "harmonics"), ({"growth": None}, "growth")],
)
def test_a_configuration_of_another_model_is_refused(native: Path, change: dict[str, object], field: str) -> None:
    def reconfigure(_: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        metadata["config"] = json.dumps(json.loads(metadata["config"]) | change)

    rewrite(native, reconfigure)
    with pytest.raises(UnsupportedModel, match=field):
        load_phalar(native)


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


# -- the authors' Lightning file -----------------------------------------------------------------------------------


def test_a_lightning_file_gives_the_same_fingerprint_and_is_trained(
    phalar: Phalar, native: Path, authors_module: types.ModuleType, tmp_path: Path
) -> None:
    path = write(lightning_contents(phalar, authors_module), authors_module, tmp_path / "PHALAR_best.ckpt")
    loaded = load_phalar(path)
    assert loaded.fingerprint == phalar.fingerprint == load_phalar(native).fingerprint
    assert loaded.trained
    assert loaded.notes["global_step"] == "80000"
    assert AUTHORS_MODULE not in sys.modules


def test_a_converted_lightning_file_keeps_its_fingerprint(
    phalar: Phalar, authors_module: types.ModuleType, tmp_path: Path
) -> None:
    path = write(lightning_contents(phalar, authors_module), authors_module, tmp_path / "PHALAR_best.ckpt")
    save_phalar(load_phalar(path), tmp_path / "out.safetensors")
    converted = load_phalar(tmp_path / "out.safetensors")
    assert converted.fingerprint == phalar.fingerprint
    assert converted.notes["source"] == "Lightning checkpoint"


def test_lightning_weights_may_be_views_and_of_half_precision(
    phalar: Phalar, authors_module: types.ModuleType, tmp_path: Path
) -> None:
    contents = lightning_contents(phalar, authors_module)
    name = "encoder.mlp.3.W.weight"
    weight = contents["state_dict"][name]
    contents["state_dict"][name] = torch.cat([weight, weight]).T.contiguous().T[1024:]
    contents["state_dict"]["encoder.mlp.1.weight"] = torch.ones(512, dtype=torch.bfloat16)
    loaded = load_phalar(write(contents, authors_module, tmp_path / "views.ckpt"))
    assert torch.equal(loaded.mix.weight, weight)
    assert torch.equal(loaded.norm.weight, torch.ones(512))


def test_a_lightning_file_with_other_keys_or_shapes_is_refused_by_their_names(
    phalar: Phalar, authors_module: types.ModuleType, tmp_path: Path
) -> None:
    whole = lightning_contents(phalar, authors_module)
    path = tmp_path / "changed.ckpt"

    lacking = whole | {"state_dict": dict(whole["state_dict"])}
    del lacking["state_dict"]["encoder.mlp.2.b"]
    torch.save(lacking, path)
    with pytest.raises(MissingKeys, match=r"encoder\.mlp\.2\.b"):
        load_phalar(path)

    torch.save(whole | {"state_dict": whole["state_dict"] | {"loss.weight": torch.ones(1)}}, path)
    with pytest.raises(ForeignKeys, match=r"loss\.weight"):
        load_phalar(path)

    torch.save(whole | {"state_dict": whole["state_dict"] | {"encoder.mlp.2.b": torch.ones(511)}}, path)
    with pytest.raises(WrongShape, match=r"encoder\.mlp\.2\.b"):
        load_phalar(path)

    other_cqt = whole["state_dict"] | {"encoder.cqt_extractor.0.lenghts": phalar.cqt.lengths + 1}
    torch.save(whole | {"state_dict": other_cqt}, path)
    with pytest.raises(UnsupportedModel, match="CQT"):
        load_phalar(path)


@pytest.mark.parametrize(
    ("parameter", "value"),
    [("backbone_type", "transformer"), ("do_cqt", False), ("ft_sep_depth", -1), ("spec_pool_norm", "channel")],
)
def test_another_architecture_is_refused_by_name(
    phalar: Phalar, authors_module: types.ModuleType, tmp_path: Path, parameter: str, value: object
) -> None:
    contents = lightning_contents(phalar, authors_module)
    contents["hyper_parameters"][parameter] = value
    with pytest.raises(UnsupportedModel, match="depth" if parameter == "ft_sep_depth" else parameter):
        load_phalar(write(contents, authors_module, tmp_path / "other.ckpt"))


def test_another_comparison_method_is_refused(phalar: Phalar, authors_module: types.ModuleType, tmp_path: Path) -> None:
    contents = lightning_contents(phalar, authors_module, method="cosine_similarity")
    with pytest.raises(UnsupportedModel, match="cosine_similarity"):
        load_phalar(write(contents, authors_module, tmp_path / "cosine.ckpt"))


@pytest.mark.parametrize("kept", [0.999, 0.5, 0.001])
def test_a_truncated_lightning_file_says_so(
    phalar: Phalar, authors_module: types.ModuleType, tmp_path: Path, kept: float
) -> None:
    path = write(lightning_contents(phalar, authors_module), authors_module, tmp_path / "cut.ckpt")
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(TruncatedCheckpoint):
        load_phalar(path)


def test_a_flipped_bit_in_a_lightning_files_weights_is_found(
    phalar: Phalar, authors_module: types.ModuleType, tmp_path: Path
) -> None:
    path = write(lightning_contents(phalar, authors_module), authors_module, tmp_path / "flipped.ckpt")
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


# -- files that would run code -------------------------------------------------------------------------------------


class Attack:
    """Unpickles by running a command that leaves a file behind."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.function, self.arguments


def _place_in_root(contents: dict[str, Any], attack: object) -> object:
    return attack


def _place_beside(contents: dict[str, Any], attack: object) -> object:
    return contents | {"callbacks": attack}


def _place_in_parameters(contents: dict[str, Any], attack: object) -> object:
    contents["hyper_parameters"]["optimizer"] = {"schedule": [{"warm_up": (attack,)}]}
    return contents


def _place_among_weights(contents: dict[str, Any], attack: object) -> object:
    contents["state_dict"]["encoder.mlp.2.b"] = attack
    return contents


@pytest.mark.parametrize("place", [_place_in_root, _place_beside, _place_in_parameters, _place_among_weights])
@pytest.mark.parametrize("function", [os.system, eval, os.mkdir])
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_nothing(
    phalar: Phalar,
    authors_module: types.ModuleType,
    tmp_path: Path,
    place: Callable[[dict[str, Any], object], object],
    function: Callable[..., object],
) -> None:
    marker = tmp_path / "ran"
    argument = {
        os.system: f"touch {marker}",
        eval: f"__import__('pathlib').Path({str(marker)!r}).touch()",
        os.mkdir: str(marker),
    }[function]
    attack = Attack(function, argument)
    path = write(place(lightning_contents(phalar, authors_module), attack), authors_module, tmp_path / "evil.ckpt")
    with pytest.raises(UnsafePickle, match=function.__name__) as refused:
        load_phalar(path)
    assert function.__name__ in refused.value.name
    assert not marker.exists()


def test_the_attack_of_these_tests_is_real(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    pickle.loads(pickle.dumps(Attack(os.system, f"touch {marker}")))
    assert marker.exists()


def test_a_bare_pickle_is_refused_unread(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "old.ckpt").write_bytes(pickle.dumps(Attack(os.system, f"touch {marker}"), protocol=2))
    with pytest.raises(LegacyPickle):
        load_phalar(tmp_path / "old.ckpt")
    assert not marker.exists()


def torch_file_of(program: bytes, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
    return path


@pytest.mark.parametrize(
    ("program", "error"),
    [
        # A dotted name would walk from an allowed module to whatever that module imports.
        (b"\x80\x04\x8c\x1bcontrastive_model.constants\x8c\tos.system\x93.", UnsafePickle),
        (b"\x80\x02ctorch\nload\n.", UnsafePickle),
        (b"\x80\x02cbuiltins\ngetattr\n.", UnsafePickle),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor\n.", UnsafePickle),
        # BUILD would change what our own stand-ins are.
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x08\x00\x00\x00__call__K\x01s\x86b.", NotACheckpoint),
        (b"\x80\x02ccollections\nOrderedDict\n}b.", NotACheckpoint),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", NotACheckpoint),
        (b"\x80\x02X\x05\x00\x00\x00thingQ.", NotACheckpoint),
        (b"\x80\x02", NotACheckpoint),
        (b"\x80\x02" + b"(" * 3 + b"t.", NotACheckpoint),
        (b"garbage", NotACheckpoint),
    ],
)
def test_crafted_pickles_are_refused(tmp_path: Path, program: bytes, error: type[CheckpointError]) -> None:
    with pytest.raises(error):
        load_phalar(torch_file_of(program, tmp_path / "crafted.ckpt"))


def test_a_tensor_that_reaches_beyond_its_storage_is_refused(
    phalar: Phalar, authors_module: types.ModuleType, tmp_path: Path
) -> None:
    path = write(lightning_contents(phalar, authors_module), authors_module, tmp_path / "whole.ckpt")
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in entries if name.endswith("data.pkl"))
    # The 512 biases of the activation: their stride of 1 becomes 2.
    place = entries[name].index(b"encoder.mlp.2.b")
    offset = entries[name].index(b"M\x00\x02\x85", place) + 4  # after the shape (512,)
    stride = entries[name].index(b"K\x01\x85", offset)
    entries[name] = entries[name][:stride] + b"K\x02\x85" + entries[name][stride + 3 :]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for entry, data in entries.items():
            archive.writestr(entry, data)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(NotACheckpoint, match="beyond its storage"):
        load_phalar(path)


def test_a_compressed_torch_file_is_refused_before_it_fills_memory(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    with pytest.raises(NotACheckpoint, match="compressed"):
        load_phalar(tmp_path / "bomb.ckpt")
