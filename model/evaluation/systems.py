"""What the protocols measure: anything that embeds clips and scores embeddings, be it Phalar or a baseline."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from model.audio.stretch import played
from model.cqt import BeatClips, ScaledCQT
from model.phalar import PhalarConfig
from model.training.variants import load_trained

DEFAULT_CHECKPOINT = Path(__file__).parents[1] / "default.safetensors"
"""The model that we ship."""

BASELINES = ("chroma", "cocola", "clap", "mert", "cdpam", "visqol")
"""Modules of `model.evaluation.baselines`; each has `load(checkpoint, device) -> System`."""

SYSTEMS = ("phalar", *BASELINES)


class System(Protocol):
    """Clips in, scores of all against all out; the protocols ask nothing else of a model."""

    def embed(self, waveforms: Tensor) -> Tensor:
        """float32 (n, samples) at 16 kHz, mono -> (n, ...), whatever `score` takes. No row depends on another."""
        ...

    def score(self, x: Tensor, y: Tensor) -> Tensor:
        """The score of all against all, float32 (n, m), higher is better."""
        ...


def embed_in_beat_time(system: System, clips: BeatClips) -> Tensor:
    """Embed clips as if each were played at 120 BPM and in another key.

    Phalar moves what its CQT shows. Whatever reads waveforms, or a spectrogram in which no key can be moved, gets the
    audio stretched and transposed.
    """
    if isinstance(getattr(system, "cqt", None), ScaledCQT):
        return cast(Tensor, cast(Any, system).in_beat_time(clips))
    return system.embed(stretched(clips))


def stretched(clips: BeatClips) -> Tensor:
    """The clips' audio in beat time, see `played`: float32 (n, samples)."""
    wanted = (clips.places.shape[1] - 1) * PhalarConfig().hop
    rows = [
        torch.from_numpy(played(waveform[: int(samples)].cpu().numpy(), wanted, float(semitones)))
        for waveform, samples, semitones in zip(clips.waveforms, clips.samples, clips.transpose, strict=True)
    ]
    return torch.stack(rows).to(clips.waveforms.device)


class UnknownSystem(ValueError):
    """A name that no system has."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no system is called {name!r}; there are {', '.join(SYSTEMS)}")


class NoCheckpoint(FileNotFoundError):
    """No checkpoint was given, and none is shipped with this installation."""

    def __init__(self) -> None:
        super().__init__("no checkpoint: name one, since this installation ships no trained model")


def package(module: str, whose: str, extra: str) -> Any:
    """A module that only some need; raises ImportError, which says who and how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        name = f"{whose} needs {module.partition('.')[0]}"
        raise ImportError(f"{name}: pip install 'phalar-retrieval[{extra}]'") from error


def load_system(name: str, checkpoint: str | None = None, device: str = "cpu") -> System:
    """A system by its name, ready to be measured.

    Args:
        name: one of SYSTEMS; "phalar" takes whatever our trainer wrote, an ablation's or COCOLA's checkpoint too.
        checkpoint: a file, or what the baseline takes in its place, such as a name on the Hugging Face hub;
            None: the model that we ship, or the baseline's own default.
        device: a torch device.

    Raises:
        UnknownSystem: of that name there is none.
        NoCheckpoint: none given, and we ship none.
        FileNotFoundError: no such file.
        CheckpointError: a file that `load_phalar` refuses.
        ImportError: the baseline needs a package that is not installed; the message names the extra.
    """
    if name == "phalar":
        if checkpoint is None and not DEFAULT_CHECKPOINT.is_file():
            raise NoCheckpoint
        return cast(System, load_trained(DEFAULT_CHECKPOINT if checkpoint is None else checkpoint, device))
    if name in BASELINES:
        return cast(System, import_module(f"model.evaluation.baselines.{name}").load(checkpoint, device))
    raise UnknownSystem(name)
