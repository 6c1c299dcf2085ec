"""A composed track: its stems, its chords, and what is known of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.audio.harmony import Chord
from model.audio.truth import Truth
from model.demo.synthesis import Note, Waveform

_FIRST_WORDS = (
    "Amber", "Silver", "Quiet", "Golden", "Velvet", "Northern", "Paper", "Midnight", "Scarlet", "Hidden", "Winter",
    "Coral", "Electric", "Copper", "Gentle", "Distant", "Ivory", "Lucky", "Crystal", "Wandering", "Sunlit", "Hollow",
    "Emerald", "Restless", "Painted", "Violet", "Morning", "Salted", "Drifting", "Indigo", "Last", "Slow",
)  # fmt: skip
_SECOND_WORDS = (
    "Harbour", "Lantern", "River", "Garden", "Avenue", "Meadow", "Orchard", "Signal", "Window", "Carousel", "Island",
    "Mirror", "Station", "Compass", "Valley", "Letter", "Skyline", "Market", "Canyon", "Feather", "Bridge", "Parade",
    "Lighthouse", "Balcony", "Postcard", "Thunder", "Willow", "Ferry", "Rooftop", "Satellite", "Dancer", "Horizon",
)  # fmt: skip


@dataclass(frozen=True)
class ChordSpan:
    """A chord, the stretch of the track over which it sounds, and the pitch classes that melodies use there."""

    onset_s: float
    duration_s: float
    chord: Chord
    scale: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ComposedStem:
    """One instrument of a track: its sound and the notes it plays.

    waveform is float32 (samples,) at the track's rate, under 0.9 in magnitude, with no offset.
    """

    instrument: str
    waveform: Waveform
    notes: tuple[Note, ...]
    voice: str


@dataclass(frozen=True, eq=False)
class Track:
    """A composed piece. `tempo_bpm` counts quarters, in 6/8 dotted quarters; all stems are equally long."""

    seed: int
    title: str
    key: str
    mode: str
    style: str
    tempo_bpm: float
    metre: str
    sample_rate: int
    chords: tuple[ChordSpan, ...]
    stems: tuple[ComposedStem, ...]

    @property
    def slug(self) -> str:
        """The title as a folder's name."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    @property
    def truth(self) -> Truth:
        """Its beats, its key, and which stems are pitched."""
        seconds = len(self.stems[0].waveform) / self.sample_rate
        beats = np.arange(0.0, seconds, 60.0 / self.tempo_bpm)
        pitched = {stem.instrument: stem.instrument != "drums" for stem in self.stems}
        return Truth(tuple(beats.tolist()), self.key, pitched, {"seed": self.seed, "title": self.title})

    def stem(self, instrument: str) -> ComposedStem:
        """The stem of one instrument; `KeyError` where there is none."""
        for stem in self.stems:
            if stem.instrument == instrument:
                return stem
        raise KeyError(f"{self.title} has no {instrument!r}; it has {', '.join(s.instrument for s in self.stems)}")

    def submix(self, instruments: Iterable[str]) -> Waveform:
        """The sum of some stems, float32 (samples,); none of them clips, alone or together."""
        chosen = [self.stem(instrument).waveform for instrument in dict.fromkeys(instruments)]
        if not chosen:
            raise ValueError("a submix needs at least one instrument")
        return np.asarray(np.sum(chosen, axis=0, dtype=np.float32))

    def mix(self) -> Waveform:
        """The sum of all stems, float32 (samples,)."""
        return self.submix(stem.instrument for stem in self.stems)

    def metadata(self, instrument: str) -> dict[str, Any]:
        """What the service wants to know about a stem, in the fields of `POST /stems`."""
        stem = self.stem(instrument)
        pace = "slow" if self.tempo_bpm < 85 else "fast" if self.tempo_bpm > 118 else "mid-tempo"
        return {
            "title": f"{self.title} ({instrument})",
            "instrument": instrument,
            "tags": [self.style, self.mode, self.metre, pace, stem.voice],
            "track": self.title,
            "collection": "Demo",
            "tempo_bpm": self.tempo_bpm,
            "key": self.key,
        }


def title_of(seed: int) -> str:
    """Two words, another pair for each of 1,024 seeds in a row; a number tells later rounds apart."""
    n = len(_FIRST_WORDS) * len(_SECOND_WORDS)
    # An odd multiplier permutes the residues of a power of two.
    first, second = divmod((seed * 397 + 11) % n, len(_SECOND_WORDS))
    title = f"{_FIRST_WORDS[first]} {_SECOND_WORDS[second]}"
    return title if seed < n else f"{title} {seed // n + 1}"


def write_track(track: Track, home: Path) -> list[Path]:
    """Write a track's stems as 16-bit FLAC, `<home>/<instrument>.flac`, and last its track.json beside them.

    Returns:
        The files, in the order of `track.stems`. The same track gives the same bytes.
    """
    import soundfile  # here, so that composing needs nothing but NumPy

    home.mkdir(parents=True, exist_ok=True)
    paths = [home / f"{stem.instrument}.flac" for stem in track.stems]
    for path, stem in zip(paths, track.stems, strict=True):
        soundfile.write(path, stem.waveform, track.sample_rate, format="FLAC", subtype="PCM_16")
    track.truth.write(home)
    return paths
