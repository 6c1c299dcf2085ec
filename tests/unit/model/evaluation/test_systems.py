"""Systems by name: which checkpoint they take, and what is refused."""

from pathlib import Path

import pytest
import torch

from model.checkpoints import NotACheckpoint, save_phalar
from model.evaluation import systems
from model.evaluation.systems import NoCheckpoint, UnknownSystem, load_system
from model.phalar import untrained_phalar


def test_phalar_is_loaded_from_the_checkpoint_given(tmp_path: Path) -> None:
    model = untrained_phalar(seed=3)
    save_phalar(model, tmp_path / "three.safetensors", trained=False)
    system = load_system("phalar", str(tmp_path / "three.safetensors"))
    clips = torch.randn(2, 32_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(system.embed(clips), model.embed(clips))
    assert system.score(system.embed(clips), system.embed(clips)).shape == (2, 2)


def test_phalar_without_a_checkpoint_is_the_shipped_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = untrained_phalar(seed=4)
    save_phalar(model, tmp_path / "default.safetensors", trained=False)
    monkeypatch.setattr(systems, "DEFAULT_CHECKPOINT", tmp_path / "default.safetensors")
    clips = torch.randn(1, 32_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_system("phalar").embed(clips), model.embed(clips))


def test_phalar_without_any_checkpoint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systems, "DEFAULT_CHECKPOINT", tmp_path / "default.safetensors")
    with pytest.raises(NoCheckpoint, match="no checkpoint"):
        load_system("phalar")


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "song.wav").write_bytes(b"RIFF" * 100)
    with pytest.raises(NotACheckpoint):
        load_system("phalar", str(tmp_path / "song.wav"))


def test_an_unknown_system_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UnknownSystem, match=r"oracle.*phalar, chroma, cocola, clap, mert, cdpam, visqol"):
        load_system("oracle")
