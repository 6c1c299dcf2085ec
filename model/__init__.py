"""PHALAR: the encoder that keeps musical phase, its checkpoints, and the audio that goes into it.

Names whose modules import torch, or make commands, wait until they are first used: a process that only decodes audio,
or prints a command's help, starts in a fifth of a second and stays small. Such a name stands in `_LATE`, in the imports
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
    TooManySamples,
    UnknownFormat,
    cut_windows,
    is_silent,
    load_clip,
    needs_ffmpeg,
    window_starts,
)
from model.compose import ComposedStem, Track, compose_track, write_track
from model.device import DeviceUnavailable, best_device, facts_of, open_device, why_no_card
from model.synthesis import Note

if TYPE_CHECKING:
    from model.axial_kernel import fastest_kernel
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
    from model.evaluation.beats import heard_beats, off_the_beat_s
    from model.evaluation.commands import SplitChoice, default_cache, evaluate_app, open_bank, show_answer
    from model.evaluation.retrieval import mean_with_interval
    from model.phalar import Phalar, PhalarConfig, untrained_phalar
    from model.torch_archive import CheckpointError, NotACheckpoint, TruncatedCheckpoint, UnsafePickle
    from model.training.average import NotAlike, average_models
    from model.training.commands import train_app
    from model.training.heard import Heard, count_heard, heard_of
    from model.training.render import SOUNDFONTS
    from model.training.stems import StemBank, load_bank, piece_of, split_of

__all__ = [
    "MIN_SECONDS",
    "SAMPLE_RATE",
    "SOUNDFONTS",
    "AudioError",
    "AudioFormat",
    "CheckpointError",
    "Clip",
    "ClipTooLong",
    "ClipTooShort",
    "ComposedStem",
    "DecodeFailed",
    "DeviceUnavailable",
    "EmptyFile",
    "ForeignKeys",
    "Heard",
    "LegacyPickle",
    "MissingKeys",
    "NoAudioStream",
    "NonFiniteSamples",
    "NonFiniteWeights",
    "NotACheckpoint",
    "NotAlike",
    "Note",
    "Phalar",
    "PhalarConfig",
    "SilentClip",
    "SplitChoice",
    "StemBank",
    "TooManyChannels",
    "TooManySamples",
    "Track",
    "TruncatedCheckpoint",
    "UnknownFormat",
    "UnsafePickle",
    "UnsupportedModel",
    "WrongShape",
    "average_models",
    "best_device",
    "compose_track",
    "count_heard",
    "cut_windows",
    "default_cache",
    "evaluate_app",
    "facts_of",
    "fastest_kernel",
    "heard_beats",
    "heard_of",
    "is_silent",
    "load_bank",
    "load_clip",
    "load_phalar",
    "mean_with_interval",
    "needs_ffmpeg",
    "off_the_beat_s",
    "open_bank",
    "open_device",
    "piece_of",
    "save_phalar",
    "show_answer",
    "split_of",
    "train_app",
    "untrained_phalar",
    "why_no_card",
    "window_starts",
    "write_track",
]

# name -> its module, as in "Phalar": "model.phalar"
_LATE: dict[str, str] = {
    "CheckpointError": "model.torch_archive",
    "ForeignKeys": "model.checkpoint",
    "LegacyPickle": "model.checkpoint",
    "MissingKeys": "model.checkpoint",
    "NonFiniteWeights": "model.checkpoint",
    "NotACheckpoint": "model.torch_archive",
    "NotAlike": "model.training.average",
    "Phalar": "model.phalar",
    "PhalarConfig": "model.phalar",
    "TruncatedCheckpoint": "model.torch_archive",
    "UnsafePickle": "model.torch_archive",
    "UnsupportedModel": "model.checkpoint",
    "WrongShape": "model.checkpoint",
    "SOUNDFONTS": "model.training.render",
    "SplitChoice": "model.evaluation.commands",
    "StemBank": "model.training.stems",
    "average_models": "model.training.average",
    "default_cache": "model.evaluation.commands",
    "evaluate_app": "model.evaluation.commands",
    "fastest_kernel": "model.axial_kernel",
    "load_bank": "model.training.stems",
    "load_phalar": "model.checkpoint",
    "Heard": "model.training.heard",
    "count_heard": "model.training.heard",
    "heard_beats": "model.evaluation.beats",
    "heard_of": "model.training.heard",
    "mean_with_interval": "model.evaluation.retrieval",
    "off_the_beat_s": "model.evaluation.beats",
    "open_bank": "model.evaluation.commands",
    "piece_of": "model.training.stems",
    "save_phalar": "model.checkpoint",
    "show_answer": "model.evaluation.commands",
    "split_of": "model.training.stems",
    "train_app": "model.training.commands",
    "untrained_phalar": "model.phalar",
}


def __getattr__(name: str) -> object:
    if name not in _LATE:
        raise AttributeError(f"module 'model' has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)
