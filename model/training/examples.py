"""Seeded examples out of a bank of stems: an anchor and its positive, and their sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.audio import SAMPLE_RATE
from model.errors import Told
from model.training.stems import StemBank


class TooFewTracks(Told, ValueError):
    """Too few tracks have examples for a batch; `which` says what an example asks of one."""

    says = "{found} of the {tracks} tracks to train on have {which}; a batch needs {needed}"
    found: int
    tracks: int
    which: str
    needed: int


@dataclass(frozen=True)
class Example:
    """Which stems of a track, over which window, make an anchor and its positive."""

    track: int
    start: int  # sample
    anchor: tuple[int, ...]  # stems, by their row
    positive: tuple[int, ...]  # others


def draw_examples(
    bank: StemBank, tracks: Sequence[int], count: int, samples: int, rng: np.random.Generator, unpitched: float = 0.0
) -> list[Example]:
    """Draw examples of different tracks: a window, and two disjoint submixes of random sizes that sound in it.

    Args:
        bank: of the stems.
        tracks: to draw from, by their place in the bank; each at most once, so that all others are true negatives.
        count: examples wanted.
        samples: length of a window.
        rng: every choice is drawn from it.
        unpitched: see `draw_submixes`.

    Returns:
        `count` examples.

    Raises:
        TooFewTracks: fewer than `count` have such a window (in ten tries each).
    """
    examples: list[Example] = []
    for track in rng.permutation(np.asarray(tracks, dtype=np.int64)):
        if len(examples) == count:
            break
        example = draw_example(bank, int(track), samples, rng, unpitched)
        if example is not None:
            examples.append(example)
    if len(examples) < count:
        window = f"a window of {samples / SAMPLE_RATE:g} s in which two stems sound"
        raise TooFewTracks(len(examples), len(tracks), window, count)
    return examples


def draw_example(
    bank: StemBank, track: int, samples: int, rng: np.random.Generator, unpitched: float = 0.0
) -> Example | None:
    """One example of one track, see `draw_submixes`; None where ten places have no two stems that sound."""
    room = bank.tracks[track].samples - samples
    if room < 0:
        return None
    for _ in range(10):
        start = int(rng.integers(room + 1))
        submixes = draw_submixes(bank.audible(track, start, samples), rng, bank.tracks[track].pitched, unpitched)
        if submixes is not None:
            return Example(track, start, *submixes)
    return None


def draw_submixes(
    audible: NDArray[np.bool_], rng: np.random.Generator, pitched: Sequence[bool] = (), unpitched: float = 0.0
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Two disjoint submixes of random sizes of the stems that sound; None where fewer than two do.

    Args:
        audible: which stems sound, (stems,).
        rng: every choice is drawn from it.
        pitched: which stems play notes.
        unpitched: part of the draws of which one side, either, has only stems that play none, where there are some.
    """
    sounding = np.flatnonzero(audible)
    if len(sounding) < 2:
        return None
    if unpitched and rng.random() < unpitched:
        struck = [stem for stem in sounding.tolist() if not pitched[stem]]
        if struck:
            one = tuple(rng.permutation(struck).tolist()[: int(rng.integers(1, len(struck) + 1))])
            rest = rng.permutation([stem for stem in sounding.tolist() if stem not in one]).tolist()
            if rest:
                other = tuple(rest[: int(rng.integers(1, len(rest) + 1))])
                return (one, other) if rng.random() < 0.5 else (other, one)
    shuffled = rng.permutation(sounding).tolist()
    first = int(rng.integers(1, len(sounding)))
    second = int(rng.integers(1, len(sounding) - first + 1))
    return tuple(shuffled[:first]), tuple(shuffled[first : first + second])


def draw_decoys(
    bank: StemBank,
    examples: Sequence[Example],
    count: int,
    samples: int,
    shifts: tuple[int, int],
    rng: np.random.Generator,
) -> list[Example]:
    """The first examples once more with their positive at the wrong time: the same sound, where it does not fit.

    Args:
        bank: of the stems.
        examples: as from `draw_examples`, of `samples` each.
        count: of decoys, at most as many as examples.
        samples: length of a window.
        shifts: the nearest and the farthest, samples; equally often each octave between, earlier or later.
        rng: every choice is drawn from it.

    Returns:
        `count` examples without an anchor.
    """
    decoys = []
    for example in examples[:count]:
        shift = round(float(np.exp(rng.uniform(*np.log(shifts)))))
        places = [example.start + sign * shift for sign in rng.permutation([-1, 1])]
        room = bank.tracks[example.track].samples - samples
        fitting = [place for place in places if 0 <= place <= room]
        start = int(fitting[0]) if fitting else room - example.start  # a track hardly longer than its window
        decoys.append(Example(example.track, start, (), example.positive))
    return decoys


def mix_examples(bank: StemBank, examples: Sequence[Example], length: int) -> tuple[Tensor, Tensor]:
    """Sum the submixes of examples.

    Args:
        bank: of the stems.
        examples: n of them.
        length: of a window, samples.

    Returns:
        Anchors and positives, each float32 (n, length), on the CPU.
    """
    sides = ([(e.track, e.start, e.anchor) for e in examples], [(e.track, e.start, e.positive) for e in examples])
    anchors, positives = (mix_stretches(bank, side, length) for side in sides)
    return anchors, positives


def mix_stretches(
    bank: StemBank,
    stretches: Sequence[tuple[int, int, tuple[int, ...]]],
    length: int,
    gains: Sequence[Sequence[float]] | None = None,
) -> Tensor:
    """Sum stems of stretches, each a track, its first sample and some stems: float32 (n, length), on the CPU.

    A bank may be larger than a card's memory, and mixing is little work: cards get mixes. What lies beyond a track's
    ends is silence. `gains`: of each stretch's stems, as factors; None: as the bank has them.
    """
    mixed = torch.zeros(len(stretches), length)
    for number, (row, (at, start, stems)) in enumerate(zip(mixed, stretches, strict=True)):
        track = bank.tracks[at]
        first, last = max(0, start), min(track.samples, start + length)
        for stem, gain in zip(stems, gains[number] if gains else [1.0] * len(stems), strict=True):
            begin = track.offset + stem * track.samples
            row[first - start : last - start].add_(
                bank.samples[track.part][begin + first : begin + last], alpha=gain / 32_768
            )
    return mixed
