"""PHALAR: the encoder that keeps musical phase, its checkpoints, and the audio that goes into it.

Names whose modules import torch wait until they are first used: a process that only decodes audio, or prints a
command's help, starts in a fifth of a second and stays small. Such a name stands in `_NEEDS_TORCH`, in the imports
below it that type checkers read, and in `__all__`; any other is imported here at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from model.audio import (
    MIN_SECONDS,
    SAMPLE_RATE,
    AudioError,
    AudioFormat,
    Clip,
    ClipTooLong,
    ClipTooShort,
    DecodeFailed,
    EmptyFile,
    NoAudioStream,
    NonFiniteSamples,
    SilentClip,
    TooManyChannels,
    UnknownFormat,
    cut_windows,
    is_silent,
    load_clip,
    window_starts,
)
from model.compose import ComposedStem, Track, compose_track, write_track
from model.synthesis import Note

if TYPE_CHECKING:
    from model.checkpoint import (
        ForeignKeys,
        LegacyPickle,
        MissingKeys,
        NonFiniteWeights,
        UnsupportedModel,
        WrongShape,
        load_phalar,
        save_phalar,
    )
    from model.phalar import Phalar, PhalarConfig, untrained_phalar
    from model.torch_archive import CheckpointError, NotACheckpoint, TruncatedCheckpoint, UnsafePickle

__all__ = [
    "MIN_SECONDS",
    "SAMPLE_RATE",
    "AudioError",
    "AudioFormat",
    "CheckpointError",
    "Clip",
    "ClipTooLong",
    "ClipTooShort",
    "ComposedStem",
    "DecodeFailed",
    "EmptyFile",
    "ForeignKeys",
    "LegacyPickle",
    "MissingKeys",
    "NoAudioStream",
    "NonFiniteSamples",
    "NonFiniteWeights",
    "NotACheckpoint",
    "Note",
    "Phalar",
    "PhalarConfig",
    "SilentClip",
    "TooManyChannels",
    "Track",
    "TruncatedCheckpoint",
    "UnknownFormat",
    "UnsafePickle",
    "UnsupportedModel",
    "WrongShape",
    "compose_track",
    "cut_windows",
    "is_silent",
    "load_clip",
    "load_phalar",
    "save_phalar",
    "untrained_phalar",
    "window_starts",
    "write_track",
]

# name -> its module, as in "Phalar": "model.phalar"
_NEEDS_TORCH: dict[str, str] = {
    "CheckpointError": "model.torch_archive",
    "ForeignKeys": "model.checkpoint",
    "LegacyPickle": "model.checkpoint",
    "MissingKeys": "model.checkpoint",
    "NonFiniteWeights": "model.checkpoint",
    "NotACheckpoint": "model.torch_archive",
    "Phalar": "model.phalar",
    "PhalarConfig": "model.phalar",
    "TruncatedCheckpoint": "model.torch_archive",
    "UnsafePickle": "model.torch_archive",
    "UnsupportedModel": "model.checkpoint",
    "WrongShape": "model.checkpoint",
    "load_phalar": "model.checkpoint",
    "save_phalar": "model.checkpoint",
    "untrained_phalar": "model.phalar",
}


def __getattr__(name: str) -> object:
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module 'model' has no attribute {name!r}")
    return getattr(import_module(_NEEDS_TORCH[name]), name)
