"""One model of several: the mean of their weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from model.checkpoints.heard import HEARD, encode_heard
from model.checkpoints.native import load_phalar
from model.phalar import Phalar


class NotAlike(ValueError):
    """Models of another configuration, or only one: there is nothing to average."""


def average_models(paths: Sequence[Path]) -> Phalar:
    """Average the weights of models that share their beginning: a run, and the one that it began with.

    Mitchell Wortsman et al., "Model soups", arXiv:2203.05482: such models lie in one valley, and the middle of it is
    often better than either side. Of models that were trained apart the mean is worth nothing.

    Args:
        paths: of checkpoints that `load_phalar` takes; all count the same.

    Returns:
        Phalar in evaluation mode. Its notes are the last one's, and `averaged` with the SHA-256 of each file; `heard`
        is what any of them heard, where all tell it.

    Raises:
        NotAlike: fewer than two, or of different configurations.
        CheckpointError: one of the files cannot be loaded.
    """
    models = [load_phalar(path) for path in paths]
    if len(models) < 2:
        raise NotAlike(f"an average needs two checkpoints, not {len(models)}")
    if any(model.config != models[0].config for model in models):
        raise NotAlike("the checkpoints are of different configurations")
    states = [model.state_dict() for model in models]
    mean = Phalar(models[0].config)
    mean.load_state_dict({name: torch.stack([state[name] for state in states]).mean(dim=0) for name in states[0]})
    mean.trained = all(model.trained for model in models)
    notes = {name: note for name, note in models[-1].notes.items() if name != HEARD}
    notes["averaged"] = json.dumps([hashlib.sha256(path.read_bytes()).hexdigest() for path in paths])
    heard = [model.notes.get(HEARD) for model in models]
    if all(heard):
        notes[HEARD] = encode_heard((), *filter(None, heard))
    mean.notes = notes
    return mean.eval()
