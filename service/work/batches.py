"""Waveforms in hand, and which of their windows go to the device as one micro-batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from indexer import StemMusic
from model.audio import Windows, cut_windows, is_silent
from model.cqt import BeatClips
from model.phalar import PhalarConfig
from service.work.jobs import QueryJob, UploadJob

HOP, STEP = PhalarConfig().hop, PhalarConfig().step


@dataclass(eq=False, kw_only=True)
class Work:
    """A waveform in hand. `parts`: its windows, those of one kind after the other. `windows` are the indices, over all
    parts, of those that are not silent; `taken` of them have gone to the device, `embedding` grows in their order."""

    job: UploadJob | QueryJob
    waveform: NDArray[np.float32]
    parts: tuple[Windows, ...]
    windows: NDArray[np.int64]
    taken: int = 0
    embedding: list[NDArray[np.complex64]] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Windows that the device has not been given."""
        return len(self.windows) - self.taken

    @property
    def complete(self) -> bool:
        return sum(map(len, self.embedding)) == len(self.windows)

    @property
    def kind(self) -> tuple[str, tuple[int, int, int, int]]:
        """Of the next window: what those of one batch have in common."""
        part, _ = self._part_of(self.taken)
        return self.job.fingerprint, self.parts[part].kind

    @property
    def alike(self) -> int:
        """How many of the next windows are of that kind."""
        part, begin = self._part_of(self.taken)
        return int(np.searchsorted(self.windows, begin + len(self.parts[part]))) - self.taken

    def cut(self, start: int, end: int) -> Clips:
        """Windows start to end of those that are not silent, all of one kind."""
        part, begin = self._part_of(start)
        return cut(self.waveform, self.parts[part][self.windows[start:end] - begin])

    def _part_of(self, at: int) -> tuple[int, int]:
        """The part of a window that is not silent, and the index of that part's first window."""
        begin = 0
        for number, part in enumerate(self.parts):
            if self.windows[at] < begin + len(part):
                return number, begin
            begin += len(part)
        raise IndexError(f"there is no window {at}")


@dataclass(frozen=True, eq=False)
class Overlapping:
    """Clips, float32 (n, samples), each heard as all windows of `inner` samples that begin a step apart in it."""

    clips: NDArray[np.float32]
    inner: int

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, which: slice) -> Overlapping:
        return Overlapping(self.clips[which], self.inner)


@dataclass(frozen=True, eq=False)
class InKeys:
    """Clips in beat time, each heard in every key from so many semitones down to so many up."""

    clips: BeatClips
    semitones: int

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, which: slice) -> InKeys:
        return InKeys(self.clips[which], self.semitones)


Clips = NDArray[np.float32] | BeatClips | Overlapping | InKeys
"""What a device embeds at once: float32 (n, samples) as recorded, clips in beat time, clips of windows, or clips in
keys."""


def cut(waveform: NDArray[np.float32], laid: Windows) -> Clips:
    """Windows of a waveform, at least one."""
    if laid.frames is not None:
        in_beats = BeatClips.cut(waveform, laid, HOP)
        return InKeys(in_beats, laid.semitones) if laid.semitones else in_beats
    clips = cut_windows(waveform, laid.starts, int(laid.lengths[0]))
    return clips if laid.inner is None else Overlapping(clips, laid.inner)


def embeddings_each(laid: Windows) -> int:
    """How many embeddings each of these windows gets: of windows of one length, at least one."""
    inner = 1 if laid.inner is None else 1 + (int(laid.lengths[0]) - laid.inner) // STEP
    return inner * (2 * laid.semitones + 1)


def joined(clips: Sequence[Clips]) -> Clips:
    """All of them; all of one kind."""
    match clips[0]:
        case BeatClips():
            return BeatClips.joined([some for some in clips if isinstance(some, BeatClips)])
        case InKeys(semitones=semitones):
            return InKeys(BeatClips.joined([some.clips for some in clips if isinstance(some, InKeys)]), semitones)
        case Overlapping(inner=inner):
            return Overlapping(np.concatenate([some.clips for some in clips if isinstance(some, Overlapping)]), inner)
    return np.concatenate([some for some in clips if isinstance(some, np.ndarray)])


@dataclass(eq=False, kw_only=True)
class StemWork(Work):
    """A stem, decoded; `row` is its number in the catalog."""

    job: UploadJob
    row: int
    beats: NDArray[np.float64]  # where each window begins on the stem's grid; NaN in clock time
    music: StemMusic


@dataclass(eq=False, kw_only=True)
class QueryWork(Work):
    """A query."""

    job: QueryJob


Batch = list[tuple[Work, int, int]]
"""What goes to the device as one: works, and from which of their windows to which."""


LATELY_S = 1.0  # after a query another is likely: until then micro-batches of uploads are smaller
LATELY_SHARE = 4  # so many times
SERVED_S = 10.0  # what a caller had fades away with this time constant


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
        works: with windows left, at least one; the batch is of the first one's model and kind of window.
        limit: most windows in the batch.

    Returns:
        (work, start, end) of its windows that are not silent. Works get even shares, and what one cannot use goes to
        the others, so that a long one does not keep short ones waiting.
    """
    kind = works[0].kind
    alike = [work for work in works if work.kind == kind]
    alike.sort(key=lambda work: work.alike)
    batch: Batch = []
    for position, work in enumerate(alike):
        share = min(-(-limit // (len(alike) - position)), work.alike)
        if share > 0:
            batch.append((work, work.taken, work.taken + share))
            work.taken += share
            limit -= share
    return batch


class Served:
    """Who had how many windows embedded lately. Whoever had the fewest goes first: who asks without end keeps nobody
    waiting who asks now and then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._windows: dict[str, float] = {}
        self._at = clock()

    def first(self, works: Sequence[QueryWork], limit: int) -> list[QueryWork]:
        """The queries of the next micro-batch, one at least: of as few callers as fill it."""
        fade = math.exp((self._at - self._clock()) / SERVED_S)
        self._at = self._clock()
        self._windows = {who: had * fade for who, had in self._windows.items() if had * fade > 0.01}
        chosen: list[QueryWork] = []
        for who in sorted({work.job.who for work in works}, key=lambda who: self._windows.get(who, 0.0)):
            if sum(work.left for work in chosen) < limit:
                chosen += [work for work in works if work.job.who == who]
        return chosen

    def count(self, batch: Batch) -> None:
        """A micro-batch of queries goes to the device."""
        for work, start, end in batch:
            if isinstance(work, QueryWork):
                self._windows[work.job.who] = self._windows.get(work.job.who, 0.0) + end - start


def loud(waveform: NDArray[np.float32], parts: Sequence[Windows]) -> NDArray[np.int64]:
    """Indices of the windows that are not silent, int64, over all parts. Raises ValueError where a window leaves the
    waveform."""
    found: list[bool] = []
    for part in parts:
        if not part.fit(len(waveform)):
            raise ValueError(f"a window leaves a waveform of {len(waveform)} samples")
        for span in zip(part.starts.tolist(), (part.starts + part.lengths).tolist(), strict=True):
            found.append(not is_silent(waveform[slice(*span)]))
    return np.flatnonzero(found).astype(np.int64)
