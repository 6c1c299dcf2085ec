"""Which model: the configured checkpoint, one that a reindex names, or the one behind a fingerprint.

Every model the service uses is kept in the checkpoints folder under its fingerprint, so that a worker can load what an
upload or a query asks for, whatever the settings say by then.
"""

import logging
import os
import tempfile
from pathlib import Path

from indexer import HermitianFold
from model.checkpoints import load_phalar, save_phalar
from model.device import open_device
from model.errors import Told
from model.phalar import Phalar, untrained_phalar
from service.settings import Settings

log = logging.getLogger("phalar.model")

DEFAULT_CHECKPOINT = Path(__file__).parents[2] / "model" / "default.safetensors"
UNTRAINED = (
    "These are seeded random weights, not a trained model: the ranking says nothing about music. "
    "Give a trained checkpoint with PHALAR_CHECKPOINT."
)


class UnknownCheckpoint(Told):
    """A checkpoint that is not in the checkpoints folder: a reindex names it, or the live index needs it."""

    public = "The checkpoints folder has no file {checkpoint!r}."
    checkpoint: str


def configured_model(settings: Settings, device: str = "cpu") -> Phalar:
    """The model that the settings ask for: their checkpoint, else the default one, else seeded weights.

    Raises:
        CheckpointError: the file is not a checkpoint.
        DeviceUnavailable: the device cannot be used.
    """
    if settings.checkpoint is not None:
        return load_phalar(settings.checkpoint, device)
    if DEFAULT_CHECKPOINT.is_file():
        return load_phalar(DEFAULT_CHECKPOINT, device)
    log.warning(UNTRAINED)
    return untrained_phalar().to(open_device(device))


def note_of(model: Phalar) -> str | None:
    """What a user must know of a model; None when there is nothing."""
    return None if model.trained else UNTRAINED


class Models:
    """The models of one installation, by fingerprint."""

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.checkpoint_folder
        self._rank = settings.rank
        self._held: dict[str, Phalar] = {}
        self.configured_fingerprint = self._keep(configured_model(settings)).fingerprint

    def of(self, fingerprint: str) -> Phalar:
        """The model behind a fingerprint. Raises UnknownCheckpoint."""
        if fingerprint not in self._held:
            path = self._path(fingerprint)
            if not path.is_file():
                raise UnknownCheckpoint(path.name)
            self._held[fingerprint] = load_phalar(path)
        return self._held[fingerprint]

    def named(self, name: str) -> Phalar:
        """The model in a file of the checkpoints folder. Raises UnknownCheckpoint, CheckpointError."""
        path = self._folder / name
        try:
            known = Path(name).name == name and path.is_file()
        except (OSError, ValueError):  # longer than a file's name may be, or with a NUL
            known = False
        if not known:
            raise UnknownCheckpoint(name)
        return self._keep(load_phalar(path))

    def file_name(self, fingerprint: str) -> str:
        """The name in the checkpoints folder under which a model is kept."""
        return self._path(fingerprint).name

    def fold(self, fingerprint: str, rank: int | None = None) -> HermitianFold:
        """The fold of a model's Hermitian form, at a rank or the configured one."""
        return HermitianFold(self.of(fingerprint).hermitian, rank or self._rank)

    def _keep(self, model: Phalar) -> Phalar:
        path = self._path(model.fingerprint)
        if not path.is_file():
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
                made = Path(scratch) / path.name
                save_phalar(model, made, trained=model.trained)
                made.chmod(0o600)  # safetensors asks no umask
                os.replace(made, path)
        self._held[model.fingerprint] = model
        return model

    def _path(self, fingerprint: str) -> Path:
        return self._folder / f"{fingerprint}.safetensors"
