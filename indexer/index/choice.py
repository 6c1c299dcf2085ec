"""Which kind of FAISS index a catalog gets: the most exact one that its memory and its size allow."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from indexer.index.keys import highest_rank, key_dim

IndexType = Literal["flat", "fp16", "sq8", "ivf"]

# Bytes of a stored coordinate.
CODE_BYTES: dict[IndexType, int] = {"flat": 4, "fp16": 2, "sq8": 1, "ivf": 1}
# Types that learn from a sample of the keys.
LEARNING: frozenset[IndexType | None] = frozenset({"sq8", "ivf"})
# Bytes of a window beside its code: its id (ours and FAISS's), its row, its two errors.
WINDOW_BYTES = 40
# Below this rank the dropped tail is so large that little can be proven; the recall then decides.
LOWEST_RANK = 32
MEMORY_SHARE = 0.25  # the live index and the next one are held at a time, and the service has other needs

_EXACT: tuple[IndexType, ...] = ("flat", "fp16", "sq8")
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def machine_memory() -> int:
    """Bytes of memory of this machine, or of this container where it is given less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CGROUP_LIMITS:
        try:
            memory = min(memory, int(path.read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return memory


@dataclass(frozen=True)
class Limits:
    """What an index may take."""

    memory_bytes: int  # of one generation
    exact_windows: int = 500_000  # windows up to which every key is compared: a search takes a second there
    minimum_recall: float = 0.95  # an approximate index must reach this, else every key is compared after all

    @classmethod
    def of_this_machine(cls) -> "Limits":
        """A share of the machine's memory."""
        return cls(memory_bytes=int(machine_memory() * MEMORY_SHARE))


@dataclass(frozen=True)
class Choice:
    """A kind of index, the rank of its keys, and why."""

    index_type: IndexType
    rank: int
    reason: str


def index_bytes(windows: int, index_type: IndexType, rank: int) -> int:
    """Memory of a sealed index: a key's coordinates, two for each kept direction, and what each window has beside."""
    return windows * (key_dim(2 * rank) * CODE_BYTES[index_type] + WINDOW_BYTES)


def choose(
    windows: int, rank: int, limits: Limits, *, index_type: IndexType | None = None, approximate: bool = True
) -> Choice:
    """The most exact kind that fits.

    Args:
        windows: to be held.
        rank: the highest that the keys may have.
        index_type: told by a person: only the rank is chosen then.
        approximate: whether an approximate type may be chosen at all.
    """
    if not windows:
        return Choice("flat", rank, "the catalog is empty")
    if index_type is not None:
        return _fitting(windows, rank, limits, index_type, f"{index_type} was asked for")
    if approximate and windows > limits.exact_windows:
        why = f"{windows} windows are more than {limits.exact_windows} to compare with each"
        return _fitting(windows, rank, limits, "ivf", why)
    fitting = (kind for kind in _EXACT if index_bytes(windows, kind, rank) <= limits.memory_bytes)
    return _fitting(windows, rank, limits, next(fitting, _EXACT[-1]), "the most exact type that fits")


def _fitting(windows: int, rank: int, limits: Limits, index_type: IndexType, why: str) -> Choice:
    """The type at the highest rank that fits into the memory."""
    budget = f"the budget of {limits.memory_bytes} bytes"
    highest = highest_rank((limits.memory_bytes // windows - WINDOW_BYTES) // CODE_BYTES[index_type])
    if highest >= rank:
        return Choice(
            index_type, rank, f"{why}; {index_bytes(windows, index_type, rank)} bytes of {budget} at rank {rank}"
        )
    lowered = min(rank, max(highest, LOWEST_RANK))
    needed = index_bytes(windows, index_type, lowered)
    fits = f"{needed} bytes of {budget}" if lowered <= highest else f"{needed} bytes, still more than {budget}"
    return Choice(index_type, lowered, f"{why}; rank {lowered} of {rank} since memory is short: {fits}")
