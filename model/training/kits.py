"""Drum kits of single recorded hits, as samplers and trackers play them: which file is which drum, by its name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
import soxr

from model.audio import SAMPLE_RATE, Waveform
from model.demo import synthesis as ours
from model.demo.synthesis import Note

ENDINGS = (".flac", ".wav", ".aiff")
LONGEST_S = 2.5  # of a hit
ONE_KIT = 0.4  # part of the stems whose drums are all of one folder, as far as it has them
CUT_SHORT = 0.35  # part of the hits that fade early
DETUNED = 0.15  # octaves by which hits usually deviate
QUIET = 0.02  # of a hit's peak: what comes before is cut

_NAMES = (
    (re.compile(r"^(loop|ambi|guit|vinyl|bass|misc|glitch_bass)_"), None),
    (
        re.compile(r"hat.?(open|op\b|op_)|openhat|hhopen|^ho_0|_ohh|hhat.*open|hihat-(semi-)?open|cymbal_open"),
        ours.OPEN_HAT,
    ),
    (re.compile(r"hat|hh|cymbal_(closed|pedal)|elec_(tick|blip|plip|ping)"), ours.HAT),
    (re.compile(r"kick|^bd|_bd_|bassdrum|_k_0|drum_bass|djembe.*bass|cajonthumps|dununba1 head"), ours.KICK),
    (re.compile(r"clap|snap|cajonslap"), ours.CLAP),
    (
        re.compile(r"rim|stick|clave|woodblock|click|cowbell|cb|agogo|elec_(wood|bong|flip|pop)|tabla_(te|ke|na)|bell"),
        ours.RIM,
    ),
    (re.compile(r"snare|^sn|_sn_|^sd"), ours.SNARE),
    (re.compile(r"crash|china|splash|cymbal_(hard|soft)|elec_cymbal|^cc_|cra_"), ours.CRASH),
    (re.compile(r"ride|^rd|^rc_|paiste"), ours.RIDE),
    (re.compile(r"shaker|maraca|tambourine|swash|kenkeni|elec_(triangle|chime)"), ours.SHAKER),
    (re.compile(r"tom.*(lo|floor|-0)|floortom|^ft_|tabla_ghe|sangban|bongolo|conga_2"), ours.TOM_LOW),
    (re.compile(r"tom.*hi|bongohi|tabla_tun|djembe.*(slap|tone)|conga_1"), ours.TOM_HIGH),
    (re.compile(r"tom|^tm|^t[12]_|drum_[12]|vp drum|fuzz"), ours.TOM_MID),
)
"""The first that a file's name holds, in lower case; None: no single hit."""

_STRENGTH = re.compile(r"[-_ ]?(\d+|hard(est)?|soft(est)?|med)?\.[a-z]+$")  # one drum, struck several times


@dataclass(frozen=True)
class Kits:
    """By drum, its recordings: the same one at several strengths together, by folder and name."""

    hits: Mapping[int, Mapping[tuple[Path, str], tuple[Path, ...]]]

    @classmethod
    def below(cls, folders: Sequence[Path]) -> Kits:
        """All below some folders whose names tell a drum."""
        hits: dict[int, dict[tuple[Path, str], tuple[Path, ...]]] = {}
        for path in sorted(path for folder in folders for path in folder.rglob("*")):
            drum = drum_of(path.name)
            if drum is not None:
                same = hits.setdefault(drum, {})
                which = path.parent, _STRENGTH.sub("", path.name.lower())
                same[which] = (*same.get(which, ()), path)
        return cls(hits)

    def have(self, notes: Sequence[Note]) -> bool:
        """Whether each of these drums was recorded."""
        return {note.pitch for note in notes} <= set(self.hits)

    def play(self, notes: Sequence[Note], samples: int, rng: np.random.Generator) -> Waveform:
        """Notes of drums that it has, ours being their pitches: float32 (samples,), not yet levelled."""
        folders = sorted({folder for drums in self.hits.values() for folder, _ in drums})
        home = folders[int(rng.integers(len(folders)))] if rng.random() < ONE_KIT else None
        drums = {drum: self._strike(drum, home, rng) for drum in sorted({note.pitch for note in notes})}
        out = np.zeros(samples, np.float32)
        for note in notes:
            hit = drums[note.pitch]
            at = round(note.onset_s * SAMPLE_RATE)
            length = min(len(hit), samples - at)
            if length > 0:
                out[at : at + length] += np.float32(note.velocity**1.2) * hit[:length]
        return out

    def _strike(self, drum: int, home: Path | None, rng: np.random.Generator) -> Waveform:
        """One recording of a drum, from a folder where that has it, as high and as long as drawn."""
        every = self.hits[drum]
        names = [name for name in every if name[0] == home] or list(every)
        same = every[names[int(rng.integers(len(names)))]]
        hit = _recorded(same[int(rng.integers(len(same)))])
        speed = 2 ** float(rng.normal(0.0, DETUNED))
        hit = np.interp(np.arange(0, len(hit) - 1, speed), np.arange(len(hit)), hit)
        if rng.random() < CUT_SHORT:
            hit = hit * np.exp(-np.arange(len(hit)) / (SAMPLE_RATE * rng.uniform(0.03, 0.3)))
        return np.asarray(rng.uniform(0.5, 1.0) * hit, np.float32)


def drum_of(name: str) -> int | None:
    """Which of our drums a file's name tells; None: none, or it is no recording."""
    low = name.lower()
    if not low.endswith(ENDINGS):
        return None
    return next((drum for pattern, drum in _NAMES if pattern.search(low)), None)


@lru_cache(maxsize=1024)
def _recorded(path: Path) -> Waveform:
    """A hit from its onset on, peak 1, mono: float32 (samples,)."""
    channels, rate = soundfile.read(path, dtype="float32", always_2d=True)
    hit = soxr.resample(channels.mean(axis=1), rate, SAMPLE_RATE)[: round(LONGEST_S * SAMPLE_RATE)]
    peak = float(np.abs(hit).max(initial=0.0))
    if not peak:
        return np.zeros(1, np.float32)
    begin = int(np.argmax(np.abs(hit) > QUIET * peak))
    return np.asarray(hit[begin:] / peak, np.float32)
