"""Checkpoints: save, load, convert and average them, and what they tell of their training."""

from model.checkpoints.average import NotAlike, average_models
from model.checkpoints.errors import (
    ForeignKeys,
    LegacyPickle,
    MissingKeys,
    NonFiniteWeights,
    UnsupportedModel,
    WrongShape,
)
from model.checkpoints.heard import Heard, count_heard, heard_of, piece_of
from model.checkpoints.native import load_phalar, save_phalar
from model.checkpoints.torch_archive import CheckpointError, NotACheckpoint, TruncatedCheckpoint, UnsafePickle
