"""Waveforms in hand, and which of their windows go to the device as one micro-batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from model.audio import cut_windows, is_silent
from service.work.jobs import QueryJob, UploadJob


@dataclass(eq=False, kw_only=True)
class Work:
    """A waveform in hand. `windows` are the indices of those that are not silent, `starts` the first samples of all;
    `taken` of them have gone to the device, `embedding` grows in their order."""

    job: UploadJob | QueryJob
    waveform: NDArray[np.float32]
    starts: NDArray[np.int64]
    windows: NDArray[np.int64]
    length: int
    taken: int = 0
    embedding: list[NDArray[np.complex64]] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Windows that the device has not been given."""
        return len(self.windows) - self.taken

    @property
    def complete(self) -> bool:
        return sum(map(len, self.embedding)) == len(self.windows)

    def cut(self, start: int, end: int) -> NDArray[np.float32]:
        """Windows start to end of those that are not silent, float32 (end - start, length)."""
        return cut_windows(self.waveform, self.starts[self.windows[start:end]], self.length)


@dataclass(eq=False, kw_only=True)
class StemWork(Work):
    """A stem, decoded; `row` is its number in the catalog."""

    job: UploadJob
    row: int


@dataclass(eq=False, kw_only=True)
class QueryWork(Work):
    """A query."""

    job: QueryJob


Batch = list[tuple[Work, int, int]]
"""What goes to the device as one: works, and from which of their windows to which."""


LATELY_S = 1.0  # after a query another is likely: until then micro-batches of uploads are smaller
LATELY_SHARE = 4  # so many times


def upload_limit(most: int, since_query_s: float) -> int:
    """Most windows of uploads that go to the device at once: whoever asks next waits for them.

    Args:
        most: where no query has come lately.
        since_query_s: how long ago the device had one.
    """
    return max(1, most // LATELY_SHARE) if since_query_s < LATELY_S else most


def share_out(works: Sequence[Work], limit: int) -> Batch:
    """Choose the next micro-batch, and count its windows as taken.

    Args:
        works: with windows left, at least one; the batch is of the first one's model and length.
        limit: most windows in the batch.

    Returns:
        (work, start, end) of its windows that are not silent. Works get even shares, and what one cannot use goes to
        the others, so that a long one does not keep short ones waiting.
    """
    kind = (works[0].job.fingerprint, works[0].length)
    alike = [work for work in works if (work.job.fingerprint, work.length) == kind]
    alike.sort(key=lambda work: work.left)
    batch: Batch = []
    for position, work in enumerate(alike):
        share = min(-(-limit // (len(alike) - position)), work.left)
        if share > 0:
            batch.append((work, work.taken, work.taken + share))
            work.taken += share
            limit -= share
    return batch


def loud(waveform: NDArray[np.float32], starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Indices of the windows that are not silent, int64. Raises ValueError where a window leaves the waveform."""
    if len(starts) and not (starts.min() >= 0 and starts.max() + length <= len(waveform)):
        raise ValueError(f"windows of {length} samples leave a waveform of {len(waveform)}")
    loud = [index for index, start in enumerate(starts) if not is_silent(waveform[start : start + length])]
    return np.array(loud, np.int64)
