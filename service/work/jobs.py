"""What the queue carries: an upload or a query, and what may become of it."""

import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model.audio import Windows
from model.errors import Told

Kind = Literal["uploads", "queries"]


class QueueError(Told):
    """The queue could not do what it was asked."""


class EmbedFailed(QueueError):
    says = "the query could not be embedded: {reason}"
    reason: str


class WorkersLost(QueueError):
    """As many workers ended with a query in hand as may: killed by it, or for reasons of their own."""

    public = "The workers that had this mix ended before it was embedded; sent again, it may succeed."


class NoMemory(QueueError):
    """Somebody else has the memory of a worker's device: that says nothing of the mix."""

    public = "The device that embeds mixes has no free memory; sent again later, this one may succeed."


class FingerprintMismatch(QueueError):
    """The workers do not hold the model that a job asks for."""

    wanted: str
    held: tuple[str, ...]

    def __str__(self) -> str:
        return f"the job asks for model {self.wanted[:16]}, the worker holds {[held[:16] for held in self.held]}"


class KilledItsWorker(Told):
    """A stem ended the process that embedded it as often as it may."""

    public = "Embedding this stem {reason}."
    reason: str


class StemNotEmbedded(Exception):
    """A stem that decodes, and that the model could make nothing of; the log says why."""

    public = "The model could make nothing of this stem."


class AllWindowsSilent(StemNotEmbedded):
    """There is nothing to be embedded."""

    public = "All of its windows are silent."


@dataclass(frozen=True)
class UploadJob:
    """Embed a stem's windows with the model of this fingerprint."""

    entry: str
    stem_id: str
    fingerprint: str
    deliveries: int = 1

    kind: Literal["uploads"] = "uploads"


@dataclass(frozen=True, eq=False)
class QueryJob:
    """Embed windows of one waveform and send them back.

    `waveform` float32 (samples,) at 16 kHz; `expires` in the seconds of this machine's monotonic clock; `who` asks.
    """

    entry: str
    reply_to: str
    fingerprint: str
    waveform: NDArray[np.float32]
    laid: Windows
    expires: float
    deliveries: int = 1
    who: str = ""

    kind: Literal["queries"] = "queries"

    @property
    def expired(self) -> bool:
        return time.monotonic() >= self.expires


@dataclass(frozen=True)
class Poisoned:
    """A job that has killed its worker as often as it may; to be failed with a reason, never run again."""

    job: UploadJob | QueryJob

    @property
    def reason(self) -> str:
        times = "twice" if self.job.deliveries == 2 else f"{self.job.deliveries} times"
        return f"killed its worker {times}"


Job = UploadJob | QueryJob | Poisoned
