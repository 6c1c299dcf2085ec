"""Checkpoints: save, load, convert and average them, and what they tell of their training."""

from model.checkpoints.average import NotAlike, average_models
from model.checkpoints.checkpoint import (
    ForeignKeys,
    LegacyPickle,
    MissingKeys,
    NonFiniteWeights,
    UnsupportedModel,
    WrongShape,
    load_phalar,
    save_phalar,
)
from model.checkpoints.heard import Heard, count_heard, heard_of, piece_of
from model.checkpoints.torch_archive import CheckpointError, NotACheckpoint, TruncatedCheckpoint, UnsafePickle
