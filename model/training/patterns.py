"""A score as a sequencer plays it: each part a loop of a few bars, that comes in and drops out.

Trackers, grooveboxes and loop libraries make music of few notes, exact repetition and long rests; scores do not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.demo.synthesis import CLAP, HAT, KICK, OPEN_HAT, RIM, SHAKER, SNARE, TOM_MID, Note
from model.training.scores import Part, Score

_BAR = 4  # beats
_STEPS = 4  # of a beat
_BLOCK = 8  # beats for which a part plays on, or rests
_PLAYING = 0.75  # part of the blocks
_OWN_KIT = 0.5  # part of the scores with drums that are given others
_KICKS = ((0, 4, 8, 12), (0, 6, 8, 14), (0, 10), (0, 3, 6, 10), (0, 7, 10), (0, 8, 11), (0, 2, 8, 10), (0,))
_SNARES = ((4, 12), (8,), (4, 12, 15), (4, 10, 12), (12,), ())


def as_patterns(score: Score, seconds: float, rng: np.random.Generator) -> Score:
    """Loops of a stretch of a score, long enough for so many seconds at any tempo that a rendering has.

    All parts with notes repeat after the same 4 to 16 beats, so that their harmonies meet; drums after 4 or 8. Where
    the score has no drums, and for half of those that have some, a drum machine plays: in part its own pattern, in
    part the rhythm of another part.

    Args:
        score: with at least two beats.
        seconds: wanted.
        rng: every choice is drawn from it.
    """
    beats_s = np.array(score.beats_s)
    period_s = float(np.median(np.diff(beats_s)))
    onsets = [
        np.interp([note.onset_s for note in part.notes], beats_s, np.arange(len(beats_s))) for part in score.parts
    ]
    first = _busy_bar(onsets, rng)
    length = int(rng.choice([_BAR, 2 * _BAR, 2 * _BAR, 4 * _BAR]))
    quantised = rng.random() < 0.7
    loops: list[tuple[Part, list[tuple[float, Note]], int]] = []
    drums_too = rng.random() >= _OWN_KIT
    for part, at in zip(score.parts, onsets, strict=True):
        repeated = int(rng.choice([_BAR, 2 * _BAR])) if part.is_drums else length
        inside = [
            (beat - first, note)
            for beat, note in zip(at.tolist(), part.notes, strict=True)
            if first <= beat < first + repeated
        ]
        if inside and (drums_too or not part.is_drums):
            loops.append((part, inside, repeated))
    if not any(part.is_drums for part, _, _ in loops):
        loops.append(_drum_machine([[beat for beat, _ in notes] for _, notes, _ in loops], rng))
    total = int(np.ceil(1.3 * seconds / period_s / _BLOCK)) * _BLOCK
    parts = []
    for part, notes, repeated in loops:
        playing = rng.random(total // _BLOCK) < _PLAYING
        playing[int(rng.integers(len(playing)))] = True
        played = [
            dataclasses.replace(note, onset_s=beat * period_s)
            for again in range(0, total, repeated)
            for offset, note in notes
            if (beat := again + (round(offset * _STEPS) / _STEPS if quantised else offset)) < total
            and playing[int(beat) // _BLOCK]
        ]
        if played:
            parts.append(dataclasses.replace(part, notes=tuple(sorted(played, key=lambda note: note.onset_s))))
    return Score(tuple(parts), tuple((np.arange(total + 1) * period_s).tolist()), score.key)


def _busy_bar(onsets: Sequence[NDArray[np.float64]], rng: np.random.Generator) -> int:
    """The first beat of a bar of the score in which most parts play, or nearly."""
    last = max((int(beats[-1]) for beats in onsets if len(beats)), default=0)
    bars = np.arange(0, max(1, last), _BAR)
    sounding = np.array([sum(bool(((beats >= bar) & (beats < bar + _BAR)).any()) for beats in onsets) for bar in bars])
    return int(rng.choice(bars[sounding >= sounding.max() - 1]))


def _drum_machine(
    others: Sequence[Sequence[float]], rng: np.random.Generator
) -> tuple[Part, list[tuple[float, Note]], int]:
    """One or two bars of sixteenths: the part, its notes and their beats, and after how many beats they repeat."""
    bars = int(rng.integers(1, 3))
    steps = 4 * _STEPS * bars
    rhythm = sorted({round(beat * _STEPS) % steps for beat in others[int(rng.integers(len(others)))]}) if others else []
    every = np.arange(steps)
    follows = rng.random() < 0.4 and rhythm
    hits: dict[int, Sequence[int]] = {
        KICK: rhythm if follows and len(rhythm) <= steps // 2 else _in_each(_KICKS, bars, rng),
        (SNARE, CLAP, RIM)[int(rng.integers(3))]: _in_each(_SNARES, bars, rng),
        HAT: every[:: int(rng.choice([1, 2, 2, 4]))].tolist(),
    }
    if rng.random() < 0.4:
        hits[OPEN_HAT] = every[2::4].tolist()
    if rng.random() < 0.5:
        pieces = (TOM_MID, SHAKER, RIM)
        evenly = {int(k * steps // n) for n in [int(rng.integers(3, 8)) * bars] for k in range(n)}
        hits.setdefault(pieces[int(rng.integers(3))], rhythm if rhythm and rng.random() < 0.5 else sorted(evenly))
    accent = float(rng.uniform(0.0, 0.3))
    notes = [
        (step / _STEPS, Note(0.0, 0.2, pitch, 0.9 - accent * (step % 4 != 0)))
        for pitch, where in hits.items()
        for step in where
    ]
    return Part(0, True, ()), notes, bars * _BAR


def _in_each(bars: Sequence[Sequence[int]], count: int, rng: np.random.Generator) -> list[int]:
    """A pattern of one bar, and beside it another or the same."""
    chosen = [bars[int(rng.integers(len(bars)))]] * count
    if rng.random() < 0.5:
        chosen[-1] = bars[int(rng.integers(len(bars)))]
    return [16 * bar + step for bar, pattern in enumerate(chosen) for step in pattern]
