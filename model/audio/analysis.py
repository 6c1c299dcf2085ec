"""What a clip is, musically: its tempo and beats, its key, whether it plays notes, and whether it is a loop.

What is said is believed before what is heard, and a contradiction between the two is told.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model.audio.grid import Grid, folded, same_tempo
from model.audio.harmony import chroma_of, is_relative
from model.audio.hearing import Hearing
from model.audio.said import Said, exact_tempo
from model.audio.said.facts import LONGEST_LOOP_BEATS
from model.audio.windows import MIN_SECONDS, SAMPLE_RATE, Waveform

Kind = Literal["loop", "one-shot", "piece"]

SURE_STEADINESS = 0.25
"""From here on a heard tempo is called sure, and a said one that contradicts it is warned of."""

SURE_KEY = 0.1

AGREEING_TEMPO = 0.02
"""A said and a heard tempo that differ by less are one, whole octaves apart."""

_ONE_SHOT_S = 3.0
_WHOLE_BEATS_S = 0.02  # how far a loop's length may be off a whole number of heard beats


@dataclass(frozen=True)
class Analysis:
    """What a clip is, each fact with its source ("tags", "chunk", "name" or "heard"); None: not known."""

    seconds: float
    tempo_bpm: float | None
    grid: Grid | None  # its tempo folded; None: no steady tempo
    key: str | None
    pitched: bool
    chroma: NDArray[np.float32] | None  # see `harmony.chroma_of`; None: it plays no notes
    kind: Kind
    sources: dict[str, str]
    sure: dict[str, bool]  # of what was heard
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the grid by its first beat and their number."""
        grid = self.grid
        return {
            "seconds": round(self.seconds, 6),
            "tempo_bpm": None if self.tempo_bpm is None else round(self.tempo_bpm, 4),
            "first_beat_s": None if grid is None else round(float(grid.beats_s[0]), 4),
            "key": self.key,
            "pitched": self.pitched,
            "kind": self.kind,
            "sources": self.sources,
            "sure": self.sure,
            "warnings": list(self.warnings),
        }


def analyse(waveform: Waveform, said: Said | None = None, together: Hearing | None = None) -> Analysis:
    """Join what is said of a clip with what is heard in it.

    Args:
        waveform: float32 (samples,) at 16 kHz.
        said: as from `said_of_file`; None: nothing.
        together: of the sum of all stems that begin and end with this one, whose beats are its own; None: it is alone.
    """
    seconds = len(waveform) / SAMPLE_RATE
    said = exact_tempo(seconds, said or Said())
    sources: dict[str, str] = dict(said.sources)
    warnings, sure = list(said.warnings), {}
    audible = seconds > MIN_SECONDS and bool(np.any(waveform))
    hearing = Hearing(waveform if audible else waveform[:0])
    beats = together or hearing
    heard = beats.grid() if audible else None
    tempo, grid = said.tempo_bpm, heard
    if tempo is None and heard is not None:
        tempo, sources["tempo_bpm"] = heard.tempo_bpm, "heard"
        sure["tempo_bpm"] = is_sure(heard)
    elif tempo is not None:
        grid = _said_grid(beats, said, seconds) if audible else None
        if heard is not None and is_sure(heard) and not same_tempo(tempo, heard.tempo_bpm, AGREEING_TEMPO):
            warnings.append(f"{_told(sources['tempo_bpm'], f'{tempo:.5g} BPM')}, but {heard.tempo_bpm:.4g} is heard")
    pitched = hearing.is_pitched()
    key = said.key
    if pitched and (told := hearing.key()):
        name, ahead = told
        if key is None:
            key, sources["key"], sure["key"] = name, "heard", ahead >= SURE_KEY
        elif ahead >= SURE_KEY and name != key and not is_relative(name, key):
            warnings.append(f"{_told(sources['key'], key)}, but {name} is heard")
    kind: Kind | None = said.kind
    if kind is None:
        kind, sources["kind"] = _kind(waveform, seconds, said, grid), "heard"
    chroma = chroma_of(hearing.pitch_classes) if pitched else None
    return Analysis(seconds, tempo, grid, key, pitched, chroma, kind, sources, sure, tuple(warnings))


def is_sure(heard: Grid | None) -> bool:
    """Whether a heard tempo is so far ahead of the next that it is called sure."""
    return heard is not None and heard.steadiness >= SURE_STEADINESS


def _told(source: str, what: str) -> str:
    return f"{what} was said" if source == "said" else f"its {source} says {what}"


def _said_grid(hearing: Hearing, said: Said, seconds: float) -> Grid | None:
    """From the first sample where the clip is whole beats long; else where the beats of that tempo are heard."""
    assert said.tempo_bpm is not None
    if said.beats is not None and said.beats >= 2 and abs(said.beats * 60 / said.tempo_bpm - seconds) < 1e-3:
        return Grid(folded(np.arange(round(said.beats) + 1) * 60 / said.tempo_bpm))
    grid = hearing.grid(said.tempo_bpm)
    return None if grid is None else replace(grid, source="said")


def _kind(waveform: Waveform, seconds: float, said: Said, grid: Grid | None) -> Kind:
    if said.beats is not None and 2 <= said.beats <= LONGEST_LOOP_BEATS:
        return "loop"
    if grid is not None:
        beats = seconds * grid.tempo_bpm / 60
        whole = abs(beats - round(beats)) * 60 / grid.tempo_bpm <= _WHOLE_BEATS_S
        if whole and round(beats) % 4 == 0 and 4 <= beats <= LONGEST_LOOP_BEATS:
            return "loop"
    if seconds <= _ONE_SHOT_S and len(waveform):
        energy = [float(np.square(part).sum()) for part in np.array_split(waveform, 4)]
        if energy[3] < 0.01 * max(energy[0], energy[1]):
            return "one-shot"
    return "piece"
