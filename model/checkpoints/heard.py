"""Which pieces a model heard in training: its checkpoint tells, so that no figure calls held out what was not.

A split follows from names, and names from folders; whoever renames one, or evaluates another rendering of the same
scores, may ask a model for what it has heard. So a run notes what it trains on, and that of the run it began with.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

HEARD = "heard"
"""The note of a checkpoint with `encode_heard` of all its pieces."""


@dataclass(frozen=True)
class Heard:
    """How many of some tracks a model heard in training; None: its checkpoint does not tell."""

    tracks: int | None
    of: int

    def __str__(self) -> str:
        if self.tracks is None:
            return "the checkpoint does not tell which tracks were heard in training"
        return (
            f"{self.tracks or 'none'} of the {self.of} tracks {'was' if self.tracks == 1 else 'were'} heard in training"
        )


def piece_of(track: str) -> str:
    """What a track is a rendering of: its name up to an "@"."""
    return track.split("@")[0]


def encode_heard(tracks: Iterable[str], *before: str) -> str:
    """Note pieces: the CRC-32 of each name below its root, sorted, as base64 of little-endian 32-bit integers.

    Args:
        tracks: names, as in a `StemBank`.
        before: what earlier runs noted, to be kept.
    """
    keys = {_key(track) for track in tracks}.union(*map(_decoded, before))
    return base64.b64encode(np.array(sorted(keys), dtype="<u4").tobytes()).decode("ascii")


def count_heard(note: str) -> int:
    """How many pieces a note holds."""
    return len(_decoded(note))


def heard_of(notes: Mapping[str, str], tracks: Iterable[str]) -> Heard:
    """Look tracks up in a checkpoint's notes, whatever their root is called."""
    asked = [_key(track) for track in tracks]
    if HEARD not in notes:
        return Heard(None, len(asked))
    heard = _decoded(notes[HEARD])
    return Heard(sum(key in heard for key in asked), len(asked))


def _key(track: str) -> int:
    return zlib.crc32(piece_of(track).partition("/")[2].encode())


def _decoded(note: str) -> set[int]:
    return set(np.frombuffer(base64.b64decode(note), dtype="<u4").tolist())
