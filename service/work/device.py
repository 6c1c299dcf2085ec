"""The models on their device: windows in, embeddings out."""

import logging
import re
from collections import OrderedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.audio import SAMPLE_RATE, Windows
from model.checkpoints import CheckpointError, load_phalar
from model.cqt import BeatClips
from model.device import open_device
from model.errors import Told
from model.phalar import Phalar
from service.settings import Settings
from service.work.batches import Clips, InKeys, Overlapping, embeddings_each
from service.work.models import configured_model

log = logging.getLogger("phalar.worker")

MODELS_HELD = 2  # the live one, and the one a reindex is on its way to


class UnknownModel(Told):
    says = "no checkpoint with the fingerprint {fingerprint} is kept"
    fingerprint: str
    held: tuple[str, ...]


class NonFiniteEmbedding(Exception):
    """The network gave a NaN or an infinity."""


class DeviceFull(Told):
    """Somebody else has the device's memory: that says nothing of the window."""

    says = "the device {device} has no memory for a single window"
    device: str


class DeviceLost(Told):
    """The device no longer answers, whatever it is asked: only a new process may find it well again."""

    says = "the device {device} no longer answers ({reason}); what was in hand is left to others"
    device: str
    reason: str


class Device:
    """The models on their device. Everything here runs in the worker's one device thread."""

    def __init__(self, settings: Settings, place: int = 0) -> None:
        if settings.torch_threads:
            torch.set_num_threads(settings.torch_threads)
        self._settings = settings
        self._held: OrderedDict[str, Phalar] = OrderedDict()
        self.batch_limit = settings.most_windows
        self.device = open_device(settings.device, place, max(1, settings.workers))
        model = configured_model(settings).to(self.device)
        self._held[model.fingerprint] = model
        if self.device.type != "cpu":
            # What fits is found before anybody waits, and the first batch finds all plans and kernels made.
            self.embed(
                model.fingerprint, np.full((self.batch_limit, round(settings.window_s * SAMPLE_RATE)), 0.1, "f4")
            )

    def embed(self, fingerprint: str, clips: Clips) -> NDArray[np.complex64]:
        """Embed windows with the model of this fingerprint: complex64 (n, D), or (n, m D) for clips of m windows or
        keys each.

        Where memory does not suffice the batch is halved, now and from now on.

        Raises:
            DeviceFull, DeviceLost, UnknownModel, NonFiniteEmbedding, and whatever a window makes the model raise.
        """
        model = self._model(fingerprint)
        done: list[NDArray[np.complex64]] = []
        start = 0
        while start < len(clips):
            part = clips[start : start + self.batch_limit]
            try:
                embedding = _embed(model, part).cpu().numpy()
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    self._require_answer(model, error)
                    raise
                if len(part) == 1:
                    raise DeviceFull(str(model.device)) from error
                self.batch_limit = len(part) // 2
                log.warning("no memory for %d windows at once; from now on %d", len(part), self.batch_limit)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            if not np.isfinite(embedding).all():
                raise NonFiniteEmbedding("the network gave numbers that are not finite")
            done.append(embedding.astype(np.complex64, copy=False))
            start += len(part)
        return np.concatenate(done)

    def _require_answer(self, model: Phalar, error: Exception) -> None:
        """Tell a window that cannot be embedded from a device that can do nothing more. Raises DeviceLost."""
        try:
            torch.zeros(1, device=model.device).sum().item()
        except RuntimeError as lost:
            if not _out_of_memory(lost):
                raise DeviceLost(str(model.device), str(error).partition("\n")[0]) from error

    def require(self, fingerprint: str) -> int:
        """Have this model at hand; returns the length of its embeddings. Raises UnknownModel."""
        return self._model(fingerprint).config.dimension

    def silence(self, fingerprint: str, laid: Windows) -> NDArray[np.complex64]:
        """What windows are answered with that are silent: zeros. Raises UnknownModel."""
        return np.zeros((len(laid), embeddings_each(laid) * self.require(fingerprint)), np.complex64)

    def _model(self, fingerprint: str) -> Phalar:
        if fingerprint not in self._held:
            self._held[fingerprint] = self._load(fingerprint)
            if len(self._held) > MODELS_HELD:
                self._held.popitem(last=False)
        self._held.move_to_end(fingerprint)
        return self._held[fingerprint]

    def _load(self, fingerprint: str) -> Phalar:
        path = self._settings.checkpoint_folder / f"{fingerprint}.safetensors"
        try:
            if not re.fullmatch("[0-9a-f]{64}", fingerprint):
                raise FileNotFoundError(fingerprint)
            model = load_phalar(path, self.device)
        except (CheckpointError, OSError) as error:
            log.warning("cannot load the model %s: %s", fingerprint, error)
            raise UnknownModel(fingerprint, tuple(self._held)) from error
        if model.fingerprint != fingerprint:
            log.error("%s holds the model %s", path, model.fingerprint)
            raise UnknownModel(fingerprint, tuple(self._held))
        return model


def _embed(model: Phalar, clips: Clips) -> Tensor:
    match clips:
        case BeatClips():
            return model.embed_in_beat_time(clips)
        case InKeys():
            return model.embed_in_keys(clips.clips, clips.semitones).flatten(1)
        case Overlapping():
            return model.embed_each_step(torch.from_numpy(clips.clips), clips.inner).flatten(1)
    return model.embed(clips)


NO_MEMORY = ("can't allocate memory", "_ALLOC_FAILED", "CUDA error: out of memory")
"""How it is said in words: by torch's allocator on a CPU, by cuFFT, cuBLAS and cuDNN, and by CUDA itself."""


def _out_of_memory(error: BaseException) -> bool:
    """torch has an error of its own for its allocator on a card only; all others say it in words."""
    in_words = isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or in_words
