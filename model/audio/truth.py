"""`track.json`: what is known of a track that was made here: its beats, tempo and key, and which stems are pitched.

It lies beside the stems of what `phalar train render` plays and the composer writes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

FILE = "track.json"

STEADY_TEMPO = 1e-3
"""Beats that differ by less than this share have one tempo."""


class BadTruth(ValueError):
    """A track.json that says what cannot be; tells which entry."""


@dataclass(frozen=True)
class Truth:
    """What is known of a track."""

    beats_s: tuple[float, ...]  # seconds, in order
    key: str | None  # such as "F# minor"
    pitched: Mapping[str, bool]  # by stem: whether it plays notes, rather than drums
    made: Mapping[str, Any] = field(default_factory=dict)  # how it was made, for the reader

    def write(self, folder: Path) -> None:
        """As track.json in a track's folder."""
        facts = {
            "beats_s": [round(beat, 6) for beat in self.beats_s],
            "tempo_map": tempo_map(self.beats_s),
            "key": self.key,
            "stems": {stem: {"pitched": pitched} for stem, pitched in self.pitched.items()},
            "made": dict(self.made),
        }
        (folder / FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def tempo_map(beats_s: Sequence[float]) -> list[tuple[float, float]]:
    """Where another tempo begins: seconds, and beats a minute."""
    tempi: list[tuple[float, float]] = []
    for beat, following in pairwise(beats_s):
        tempo = 60.0 / (following - beat)
        if not tempi or abs(tempo / tempi[-1][1] - 1) > STEADY_TEMPO:
            tempi.append((round(beat, 6), round(tempo, 4)))
    return tempi


def read_truth(folder: Path) -> Truth | None:
    """What a track's folder says of it; None where it says nothing of its beats.

    Raises:
        BadTruth: not JSON, or an entry of another type. Whether beats and stems agree with the sound, the caller sees.
        OSError: the file cannot be read.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadTruth(f"{FILE} is no JSON: {error}") from error
    if not isinstance(facts, dict) or "beats_s" not in facts:
        return None
    beats, key, stems = facts["beats_s"], facts.get("key"), facts.get("stems", {})
    if not isinstance(beats, list) or not all(_is_number(beat) for beat in beats):
        raise BadTruth(f"{FILE}: beats_s is a list of seconds")
    if key is not None and not isinstance(key, str):
        raise BadTruth(f"{FILE}: key is a name, not {key!r}")
    if not isinstance(stems, dict) or not all(isinstance(stem, dict) for stem in stems.values()):
        raise BadTruth(f"{FILE}: stems is a table of stems")
    pitched = {str(name): stem["pitched"] for name, stem in stems.items() if isinstance(stem.get("pitched"), bool)}
    return Truth(tuple(map(float, beats)), key, pitched)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
