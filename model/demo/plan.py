"""What all the stems of a composed track agree on: metre, tempo, key, form and chords."""

from __future__ import annotations

import bisect
import math
import zlib
from dataclasses import dataclass

import numpy as np

from model.audio.harmony import FAMILIES, Chord, Family, dominant_of, parse_progression, scale_under
from model.demo.patterns import METRES, PATTERNS, Metre, Pattern
from model.demo.synthesis import Note

BARS_PER_SECTION = 4
SHORTEST_NOTE_S = 0.03
_FORMS = ("AABA", "ABAB", "AABB", "ABAC", "ABCB")


@dataclass(frozen=True)
class Bar:
    """One bar of the plan."""

    index: int
    start: int  # tick
    section: str
    visit: int  # how often this section has come before
    within: int  # bar of its section
    intensity: float


@dataclass(frozen=True)
class Span:
    start: int  # ticks
    end: int
    chord: Chord
    scale: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """What all the stems of a track agree on."""

    seed: int
    seconds: float
    metre_name: str
    tempo_bpm: int
    tonic: int
    family: Family
    pattern: Pattern
    bars: tuple[Bar, ...]
    spans: tuple[Span, ...]

    @property
    def metre(self) -> Metre:
        return METRES[self.metre_name]

    @property
    def tick_s(self) -> float:
        return 60.0 / self.tempo_bpm / self.metre.ticks_per_beat

    def rng(self, part: str) -> np.random.Generator:
        """Random numbers of one part's own."""
        return np.random.default_rng([self.seed, zlib.crc32(part.encode())])

    def seconds_at(self, tick: float) -> float:
        """When a tick sounds, swing included."""
        half = self.pattern.swing_ticks
        pair, within = divmod(tick, 2 * half)
        late = self.pattern.swing * half
        late *= min(within, 2 * half - within) / half
        return (pair * 2 * half + within + late) * self.tick_s

    def span_at(self, tick: int) -> Span:
        """The chord that sounds at a tick; past the end, the last one."""
        return self.spans[bisect.bisect_right(self.spans, tick, key=lambda span: span.start) - 1]

    def note(self, rng: np.random.Generator, tick: int, ticks: float, pitch: int, velocity: float) -> Note:
        """A note as a person plays it: a few milliseconds off, never quite as loud as the last."""
        off = float(np.clip(rng.normal(0.0, 0.0025), -0.006, 0.006))
        onset = max(0.0, self.seconds_at(tick) + off)
        duration = max(SHORTEST_NOTE_S, self.seconds_at(tick + ticks) - self.seconds_at(tick))
        loud = float(np.clip(velocity * rng.normal(1.0, 0.06), 0.1, 1.0))
        return Note(onset, duration, pitch, loud)


def plan_track(seed: int, seconds: float) -> Plan:
    rng = np.random.default_rng([seed, zlib.crc32(b"plan")])
    # Seeds in a row take turns, so that even a small catalog has every metre, family and key: any six seeds visit the
    # metres, ten the families, twelve the keys (by fourths).
    metre_name = ("4/4", "4/4", "6/8", "4/4", "3/4", "4/4")[seed % 6]
    family = FAMILIES[(7 * seed) % len(FAMILIES)]
    tonic = (5 * seed + 9) % 12
    metre = METRES[metre_name]
    patterns = [p for p in PATTERNS if p.metre == metre_name]
    pattern = patterns[int(rng.integers(len(patterns)))]
    slowest, fastest = metre.tempi
    if pattern.style == "house":
        slowest = 112
    tempo = int(rng.integers(slowest, fastest + 1))
    bar_s = metre.ticks * 60.0 / tempo / metre.ticks_per_beat
    two_a_bar = metre_name != "3/4" and bar_s >= 1.8
    choices = [p for p in family.progressions if two_a_bar or len(p.split()) == BARS_PER_SECTION]
    order = rng.permutation(len(choices))
    progressions = {s: parse_progression(choices[order[i % len(order)]], tonic) for i, s in enumerate("ABC")}
    form = _FORMS[int(rng.integers(len(_FORMS)))]
    levels = {s: float(level) for s, level in zip("ABC", rng.permutation((0.55, 0.75, 0.95)), strict=True)}

    # One section more than sounds: the last notes lead into it, as they would in a longer track.
    n_sections = math.ceil(seconds / (bar_s * BARS_PER_SECTION)) + 1
    bars: list[Bar] = []
    spans: list[Span] = []
    visits = dict.fromkeys("ABC", 0)
    for i in range(n_sections):
        section, following = form[i % len(form)], form[(i + 1) % len(form)]
        chords = progressions[section]
        first = i * BARS_PER_SECTION * metre.ticks
        width = BARS_PER_SECTION * metre.ticks // len(chords)
        stretches = [(first + j * width, first + (j + 1) * width, chord) for j, chord in enumerate(chords)]
        target = progressions[following][0]
        if metre_name != "3/4" and rng.random() < 0.4 and stretches[-1][2].root != dominant_of(target).root:
            start, end, chord = stretches.pop()  # a secondary dominant turns the last half bar towards what comes
            middle = end - metre.ticks // 2
            if middle > start:
                stretches.append((start, middle, chord))
            stretches.append((middle, end, dominant_of(target)))
        scale = tuple((tonic + p) % 12 for p in family.scale)
        spans += [Span(a, b, c, scale_under(c, scale)) for a, b, c in stretches]
        for within in range(BARS_PER_SECTION):
            index = i * BARS_PER_SECTION + within
            intensity = min(1.0, levels[section] + 0.08 * visits[section] + 0.03 * within)
            bars.append(Bar(index, index * metre.ticks, section, visits[section], within, intensity))
        visits[section] += 1
    return Plan(seed, seconds, metre_name, tempo, tonic, family, pattern, tuple(bars), tuple(spans))
