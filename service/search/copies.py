"""Which stems are the same audio: at another rate or level, in another container, as stereo or mono."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from indexer import Catalog, StemEmbeddings

SAME_LENGTH_S = 0.05  # coders pad
ALIKE = 0.96
"""Mean |<a, b>| of windows: docs/decisions/one-hit-for-one-recording.md has what was measured."""
AT_ONCE = 32  # stems that are looked at before it is asked whether there are enough

Windows = tuple[NDArray[np.int64], NDArray[np.complex64]]


@dataclass
class Groups:
    """Stems without their copies, in the order that they came."""

    copies: dict[int, list[int]] = field(default_factory=dict)
    """Of each stem that is kept, by row, the rows that came later and are copies of it."""
    looked_at: dict[int, int] = field(default_factory=dict)
    """For each that is kept, how many came until then, itself among them."""


async def grouped(
    catalog: Catalog, fingerprint: str, rows: Sequence[int], wanted: int, mixed: Sequence[int] = ()
) -> Groups:
    """Keep the first of stems that are copies of each other.

    Args:
        catalog: has their embeddings.
        fingerprint: the model by whose embeddings they are compared.
        rows: of stems, best first.
        wanted: how many are to be kept; those after them are not looked at.
        mixed: stems that neither they nor their copies are wanted of.
    """
    groups = Groups()
    lengths = await catalog.durations([*mixed, *rows])
    rows = [row for row in rows if row in lengths]
    known: dict[int, Windows] = {}

    def is_copy(row: int, other: int) -> bool:
        near = other in lengths and abs(lengths[other] - lengths[row]) <= SAME_LENGTH_S
        return near and row in known and other in known and are_copies(known[row], known[other])

    def group(some: Sequence[int], begin: int) -> None:
        for looked_at, row in enumerate(some, start=begin + 1):
            if len(groups.copies) >= wanted:
                return
            of = next((other for other in (*mixed, *groups.copies) if is_copy(row, other)), None)
            if of is None:
                groups.copies[row], groups.looked_at[row] = [], looked_at
            elif of in groups.copies:
                groups.copies[of].append(row)

    for begin in range(0, len(rows), AT_ONCE):
        some = rows[begin : begin + AT_ONCE]
        compared = _of_one_length({row: lengths[row] for row in (*mixed, *groups.copies, *some) if row in lengths})
        found = await catalog.embeddings_of([row for row in compared if row not in known], fingerprint)
        known |= {row: _by_clock(stem) for row, stem in found.items()}
        await asyncio.to_thread(group, some, begin)
        if len(groups.copies) >= wanted:
            break
    return groups


def are_copies(one: Windows, other: Windows) -> bool:
    """Whether two stems of one length are the same audio.

    Args:
        one, other: numbers of their windows by the clock, int64 (n,), and their embeddings, complex64 (n, D).
    """
    _, ours, theirs = np.intersect1d(one[0], other[0], return_indices=True)
    if 2 * len(ours) <= max(len(one[0]), len(other[0])):  # a level may silence some windows
        return False
    alike = np.abs(np.einsum("nd,nd->n", one[1][ours].conj(), other[1][theirs]))
    return bool(alike.mean() >= ALIKE)


def _by_clock(stem: StemEmbeddings) -> Windows:
    chosen = np.isnan(stem.beats)
    return stem.windows[chosen], stem.embedding[chosen]


def _of_one_length(lengths: Mapping[int, float]) -> list[int]:
    """Those that are as long as another one."""
    ordered = sorted(lengths, key=lambda row: lengths[row])
    near = np.diff([lengths[row] for row in ordered], prepend=-np.inf, append=np.inf) <= SAME_LENGTH_S
    return [row for row, before, after in zip(ordered, near[:-1], near[1:], strict=True) if before or after]
