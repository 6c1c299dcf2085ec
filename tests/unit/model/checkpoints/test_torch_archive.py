"""Nothing in a torch file is ever run, and a crafted one is refused."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.checkpoints import LegacyPickle, NotACheckpoint, UnsafePickle, load_phalar
from tests.lightning import Attack, Lightning

Place = Callable[[dict[str, Any], object], object]
PLACES: dict[str, Place] = {
    "root": lambda contents, attack: attack,
    "beside": lambda contents, attack: contents | {"callbacks": attack},
    "parameters": lambda contents, attack: contents | {"hyper_parameters": {"schedule": [{"warm_up": (attack,)}]}},
    "weights": lambda contents, attack: contents | {"state_dict": contents["state_dict"] | {"encoder.mlp.2.b": attack}},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("function", [os.system, eval, os.mkdir])
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_nothing(
    lightning: Lightning, tmp_path: Path, place: str, function: Callable[..., object]
) -> None:
    marker = tmp_path / "ran"
    argument = {
        os.system: f"touch {marker}",
        eval: f"__import__('pathlib').Path({str(marker)!r}).touch()",
        os.mkdir: str(marker),
    }[function]
    attack = Attack(function, argument)
    path = lightning.write(PLACES[place](lightning.contents(), attack))
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
    "program",
    [
        # A dotted name would walk from an allowed module to whatever that module imports.
        b"\x80\x04\x8c\x1bcontrastive_model.constants\x8c\tos.system\x93.",
        b"\x80\x02ctorch\nload\n.",
        b"\x80\x02cbuiltins\ngetattr\n.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor\n.",
        # BUILD would change what is allowed, or our own stand-ins.
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x08\x00\x00\x00__call__K\x01s\x86b.",
        b"\x80\x02ccollections\nOrderedDict\n}b.",
        b"\x80\x02cpathlib\nPath\n}X\x08\x00\x00\x00__init__K\x01sb.",
        b"\x80\x02ctorch\nFloatStorage\n)R.",
        b"\x80\x02X\x05\x00\x00\x00thingQ.",
        b"\x80\x02",
        b"\x80\x02" + b"(" * 3 + b"t.",
        b"garbage",
    ],
)
def test_crafted_pickles_are_refused(tmp_path: Path, program: bytes) -> None:
    with pytest.raises((UnsafePickle, NotACheckpoint)):
        load_phalar(torch_file_of(program, tmp_path / "crafted.ckpt"))


def test_a_tensor_that_reaches_beyond_its_storage_is_refused(lightning: Lightning) -> None:
    path = lightning.write(lightning.contents())
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
    with pytest.raises(NotACheckpoint, match="cannot be read"):
        load_phalar(path)


def test_a_compressed_torch_file_is_refused_before_it_fills_memory(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    with pytest.raises(NotACheckpoint, match="compressed"):
        load_phalar(tmp_path / "bomb.ckpt")
