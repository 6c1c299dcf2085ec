"""COCOLA, trained by us or by its authors."""

from model.evaluation.systems import NoCheckpoint
from model.training.cocola import Cocola, load_cocola


def load(checkpoint: str | None, device: str = "cpu") -> Cocola:
    """COCOLA of a checkpoint; it has no default weights.

    Raises:
        CheckpointError: the file cannot be used; its child says why.
        NoCheckpoint: none given.
        OSError: the file cannot be read.
    """
    if checkpoint is None:
        raise NoCheckpoint
    return load_cocola(checkpoint, device)
