"""Tracks of our own, composed from a seed: the demo catalog, and music for tests and smoke training.

A track is planned first (key, tempo, metre, form, chords), then each stem is written over that plan and sounded by
`model.demo.synthesis`. So all stems share one key, one tempo and one time origin: bar 1 starts at 0 s. Each part draws
from random numbers of its own, so a change to one leaves the others as they were.

A tick is the grid's unit: a quarter of the beat in 4/4 and 3/4, a sixth of it (the dotted quarter) in 6/8.
"""

from __future__ import annotations

import bisect
import itertools
import math
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.audio.harmony import (
    FAMILIES,
    Chord,
    Family,
    dominant_of,
    key_name,
    nearest_pitch,
    parse_progression,
    scale_under,
    voice_chord,
)
from model.audio.truth import Truth
from model.demo.synthesis import (
    BASS_VOICES,
    CLAP,
    CRASH,
    HAT,
    KEYS_VOICES,
    KICK,
    LEAD_VOICES,
    OPEN_HAT,
    PAD_VOICES,
    RIDE,
    RIM,
    SHAKER,
    SNARE,
    TOM_HIGH,
    TOM_LOW,
    TOM_MID,
    Note,
    Room,
    Waveform,
    play_drums,
    play_voice,
    tune_kit,
)

INSTRUMENTS = ("drums", "bass", "pads", "keys", "lead")

_BARS_PER_SECTION = 4
_LOUDEST = 0.9  # the sum of the stems' magnitudes stays under this, so that no submix clips
_FADE_IN_S = 0.002  # short, because the first downbeat is at 0 s
_FADE_OUT_S = 0.06
_SHORTEST_S, _LONGEST_S = 1.0, 600.0
_LOWEST_RATE = 16_000
_SHORTEST_NOTE_S = 0.03
_FORMS = ("AABA", "ABAB", "AABB", "ABAC", "ABCB")
_LEVELS = {"drums": 0.105, "bass": 0.105, "pads": 0.06, "keys": 0.06, "lead": 0.075}  # RMS of a stem before scaling
_BANDS_HZ = {
    "drums": (30.0, 15_000.0),
    "bass": (28.0, 5_000.0),
    "pads": (110.0, 9_000.0),
    "keys": (90.0, 11_000.0),
    "lead": (150.0, 11_000.0),
}
_WET = {"drums": 0.12, "bass": 0.03, "pads": 0.45, "keys": 0.35, "lead": 0.4}

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
    def beats_per_bar(self) -> int:
        return _METRES[self.metre].beats

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


@dataclass(frozen=True)
class _Metre:
    beats: int
    ticks_per_beat: int
    tempi: tuple[int, int]  # slowest and fastest

    @property
    def ticks(self) -> int:
        return self.beats * self.ticks_per_beat


_METRES = {"4/4": _Metre(4, 4, (76, 132)), "3/4": _Metre(3, 4, (88, 144)), "6/8": _Metre(2, 6, (54, 78))}


@dataclass(frozen=True)
class _Pattern:
    """A drum pattern of one bar: lanes of one character a tick.

    X accent, x plain, o ghost, ? a ghost now and then, . nothing.
    """

    style: str
    metre: str
    lanes: dict[int, tuple[str, ...]]  # a drum's alternatives, one drawn for each section
    swing: float = 0.0  # of half a pair: 1/3 is a triplet
    swing_ticks: int = 1  # what is swung: 1 sixteenths, 2 eighths


_PATTERNS = (
    _Pattern(
        "house",
        "4/4",
        {
            KICK: ("X...X...X...X...", "X...X...X...X.?."),
            CLAP: ("....X.......X...",),
            OPEN_HAT: ("..x...x...x...x.", "..x...x...x...xo"),
            SHAKER: ("o.xoo.xoo.xoo.xo", "oo?xoo?xoo?xoo?x"),
        },
    ),
    _Pattern(
        "backbeat",
        "4/4",
        {
            KICK: ("X.....x.X.x.....", "X.....xxX.....?.", "X..x....X.x...?."),
            SNARE: ("....X.......X..?", "....X..?....X..."),
            HAT: ("X.o.X.o.X.o.X.o.", "x.x.x.x.x.x.x.x?"),
        },
    ),
    _Pattern(
        "boom bap",
        "4/4",
        {
            KICK: ("X..x....?.X..x..", "X.x....x..X....?", "X......x.xX....."),
            SNARE: ("....X..?.?..X...", "....X.....?.X..o"),
            HAT: ("x.x.x.xox.x.x.x.", "X.o.X.ooX.o.X.o?"),
        },
        0.24,
    ),
    _Pattern(
        "half-time",
        "4/4",
        {
            KICK: ("X.....?...x..x..", "X..x..x.......x.", "X.......?.x....."),
            SNARE: ("........X.......", "........X.....?."),
            HAT: ("x.x.xoxox.x.x.xx", "xoxoxoxoxoxoxxxo"),
            RIM: ("......?.......?.",),
        },
    ),
    _Pattern(
        "breakbeat",
        "4/4",
        {
            KICK: ("X.X.......XX....", "X.x.......x..x..", "X..x..x...X....."),
            SNARE: ("....X..o.o..X..o", "....X..o.o....X."),
            HAT: ("x.x.x.x.x.x.x.x.", "X.x.X.x.X.x.X.x."),
        },
        0.1,
    ),
    _Pattern(
        "bossa",
        "4/4",
        {
            KICK: ("X..xX..xX..xX..x", "X..xX...X..xX..?"),
            RIM: ("x..x..x...x..x..", "x..x...x..x..x.."),
            HAT: ("x.o.x.o.x.o.x.o.",),
            SHAKER: ("oooxoooxoooxooox", "o.xoo.xoo.xoo.xo"),
        },
    ),
    _Pattern(
        "swing",
        "4/4",
        {
            KICK: ("x...o...x...o...", "x...o...x.o.o..."),
            RIDE: ("X...x.xoX...x.x.", "X...x.x.X.o.x.x."),
            HAT: ("....x.......x...",),
            SNARE: ("..?...o.......?.", "......?...?...o."),
        },
        0.3,
        2,
    ),
    _Pattern(
        "waltz",
        "3/4",
        {
            KICK: ("X...........", "X.........?."),
            RIM: ("....x...x...", "....x...x.?."),
            HAT: ("x.o.x.o.x.o.", "x...x.o.x.o."),
        },
        0.18,
        2,
    ),
    _Pattern(
        "three-four",
        "3/4",
        {
            KICK: ("X.....x.....", "X..x........", "X.....x..?.."),
            SNARE: ("........X...", "....o...X..?"),
            HAT: ("X.o.x.o.x.o.", "x.xox.xox.xo"),
        },
    ),
    _Pattern(
        "six-eight",
        "6/8",
        {
            KICK: ("X.........x.", "X...?.....x.", "X.x.......?."),
            SNARE: ("......X.....", "......X...?."),
            HAT: ("X.o.o.X.o.o.", "x.o.oox.o.oo"),
        },
    ),
    _Pattern(
        "afro six",
        "6/8",
        {
            KICK: ("X...x.X...x.", "X.....X...x."),
            RIM: ("x.x..x.x.x..", "x..x.x..x.x."),
            SHAKER: ("X.o.x.X.o.x.", "xoooxoxoooxo"),
        },
    ),
)

_ACCENTS = {"X": 1.0, "x": 0.78, "o": 0.42, "?": 0.4}

# Durations in ticks of one beat's notes; negative is a rest.
_CELLS = {
    4: ((4,), (2, 2), (2, 2), (3, 1), (2, 1, 1), (-2, 2), (1, 1, 2), (-1, 3)),
    6: ((6,), (4, 2), (2, 2, 2), (2, 4), (-2, 2, 2), (3, 3), (-4, 2)),
}

_COMPS = {
    "4/4": ("x.....x...x.....", "..x...x...x...x.", "x..x..x...x..x..", "....x.......x.x.", "x.....x.........",
            "x..x......x.x..."),
    "3/4": ("....x...x...", "x.....x.x...", "....x.x.x..."),
    "6/8": ("x...x.x...x.", "..x.x...x.x.", "x.....x...x."),
}  # fmt: skip
_BASS_RHYTHMS = {
    "4/4": ("x..x..x...x.x...", "x.....x.x..x....", "x..x....x..x..x.", "x...x.x...x.x.x."),
    "3/4": ("x.....x...x.", "x...x...x...", "x..x....x.x."),
    "6/8": ("x...x.x...x.", "x.....x.x.x.", "x..x..x...x."),
}
_BASS_STYLES = {
    "4/4": ("locked", "locked", "eighths", "octaves", "sustained", "riff"),
    "3/4": ("locked", "sustained", "riff", "walking"),
    "6/8": ("locked", "sustained", "riff", "eighths"),
}


@dataclass(frozen=True)
class _Bar:
    """One bar of the plan."""

    index: int
    start: int  # tick
    section: str
    visit: int  # how often this section has come before
    within: int  # bar of its section
    intensity: float


@dataclass(frozen=True)
class _Span:
    start: int  # ticks
    end: int
    chord: Chord
    scale: tuple[int, ...]


@dataclass(frozen=True)
class _Plan:
    """What all the stems of a track agree on."""

    seed: int
    seconds: float
    metre_name: str
    tempo_bpm: int
    tonic: int
    family: Family
    pattern: _Pattern
    bars: tuple[_Bar, ...]
    spans: tuple[_Span, ...]

    @property
    def metre(self) -> _Metre:
        return _METRES[self.metre_name]

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

    def span_at(self, tick: int) -> _Span:
        """The chord that sounds at a tick; past the end, the last one."""
        return self.spans[bisect.bisect_right(self.spans, tick, key=lambda span: span.start) - 1]

    def note(self, rng: np.random.Generator, tick: int, ticks: float, pitch: int, velocity: float) -> Note:
        """A note as a person plays it: a few milliseconds off, never quite as loud as the last."""
        off = float(np.clip(rng.normal(0.0, 0.0025), -0.006, 0.006))
        onset = max(0.0, self.seconds_at(tick) + off)
        duration = max(_SHORTEST_NOTE_S, self.seconds_at(tick + ticks) - self.seconds_at(tick))
        loud = float(np.clip(velocity * rng.normal(1.0, 0.06), 0.1, 1.0))
        return Note(onset, duration, pitch, loud)


def _plan(seed: int, seconds: float) -> _Plan:
    rng = np.random.default_rng([seed, zlib.crc32(b"plan")])
    # Seeds in a row take turns, so that even a small catalog has every metre, family and key: any six seeds visit the
    # metres, ten the families, twelve the keys (by fourths).
    metre_name = ("4/4", "4/4", "6/8", "4/4", "3/4", "4/4")[seed % 6]
    family = FAMILIES[(7 * seed) % len(FAMILIES)]
    tonic = (5 * seed + 9) % 12
    metre = _METRES[metre_name]
    patterns = [p for p in _PATTERNS if p.metre == metre_name]
    pattern = patterns[int(rng.integers(len(patterns)))]
    slowest, fastest = metre.tempi
    if pattern.style == "house":
        slowest = 112
    tempo = int(rng.integers(slowest, fastest + 1))
    bar_s = metre.ticks * 60.0 / tempo / metre.ticks_per_beat
    two_a_bar = metre_name != "3/4" and bar_s >= 1.8
    choices = [p for p in family.progressions if two_a_bar or len(p.split()) == _BARS_PER_SECTION]
    order = rng.permutation(len(choices))
    progressions = {s: parse_progression(choices[order[i % len(order)]], tonic) for i, s in enumerate("ABC")}
    form = _FORMS[int(rng.integers(len(_FORMS)))]
    levels = {s: float(level) for s, level in zip("ABC", rng.permutation((0.55, 0.75, 0.95)), strict=True)}

    # One section more than sounds: the last notes lead into it, as they would in a longer track.
    n_sections = math.ceil(seconds / (bar_s * _BARS_PER_SECTION)) + 1
    bars: list[_Bar] = []
    spans: list[_Span] = []
    visits = dict.fromkeys("ABC", 0)
    for i in range(n_sections):
        section, following = form[i % len(form)], form[(i + 1) % len(form)]
        chords = progressions[section]
        first = i * _BARS_PER_SECTION * metre.ticks
        width = _BARS_PER_SECTION * metre.ticks // len(chords)
        stretches = [(first + j * width, first + (j + 1) * width, chord) for j, chord in enumerate(chords)]
        target = progressions[following][0]
        if metre_name != "3/4" and rng.random() < 0.4 and stretches[-1][2].root != dominant_of(target).root:
            start, end, chord = stretches.pop()  # a secondary dominant turns the last half bar towards what comes
            middle = end - metre.ticks // 2
            if middle > start:
                stretches.append((start, middle, chord))
            stretches.append((middle, end, dominant_of(target)))
        scale = tuple((tonic + p) % 12 for p in family.scale)
        spans += [_Span(a, b, c, scale_under(c, scale)) for a, b, c in stretches]
        for within in range(_BARS_PER_SECTION):
            index = i * _BARS_PER_SECTION + within
            intensity = min(1.0, levels[section] + 0.08 * visits[section] + 0.03 * within)
            bars.append(_Bar(index, index * metre.ticks, section, visits[section], within, intensity))
        visits[section] += 1
    return _Plan(seed, seconds, metre_name, tempo, tonic, family, pattern, tuple(bars), tuple(spans))


def _hits(lane: str) -> list[int]:
    return [i for i, c in enumerate(lane) if c != "."]


def _write_drums(plan: _Plan) -> tuple[list[Note], dict[int, list[int]]]:
    """Drum notes, and the ticks of each bar's kicks, to which the bass locks."""
    rng = plan.rng("drums")
    metre = plan.metre
    notes: list[Note] = []
    kicks: dict[int, list[int]] = {}
    chosen: dict[tuple[str, int], str] = {}
    for bar in plan.bars:
        # One alternative of each lane a section; a second visit may bring another.
        for drum, lanes in plan.pattern.lanes.items():
            if bar.within == 0:
                chosen[bar.section, drum] = lanes[int(rng.integers(len(lanes)))]
        filled = metre.ticks
        if bar.within == _BARS_PER_SECTION - 1:
            filled -= metre.ticks_per_beat * int(rng.integers(1, 3)) if metre.beats > 2 else metre.ticks_per_beat
        elif bar.within == 1 and rng.random() < 0.35:
            filled -= metre.ticks_per_beat // 2
        kicks[bar.index] = []
        for drum in plan.pattern.lanes:
            for tick in _hits(chosen[bar.section, drum]):
                mark = chosen[bar.section, drum][tick]
                dice = rng.random(2)
                if tick >= filled and drum != KICK:
                    continue
                if mark == "?" and dice[0] > 0.35 * bar.intensity + 0.15:
                    continue
                if mark == "o" and dice[0] > 0.55 + 0.45 * bar.intensity:
                    continue
                played = drum
                if drum == HAT and tick == metre.ticks - 2 and dice[1] < 0.3:
                    played = OPEN_HAT
                if drum == KICK:
                    kicks[bar.index].append(bar.start + tick)
                velocity = _ACCENTS[mark] * (0.72 + 0.28 * bar.intensity)
                notes.append(plan.note(rng, bar.start + tick, 1, played, velocity))
        if bar.within == 0 and rng.random() < (0.5 if bar.index == 0 else 0.8):
            notes.append(plan.note(rng, bar.start, 4, CRASH, 0.5 + 0.3 * bar.intensity))
        notes += _drum_fill(plan, rng, bar, filled)
    return sorted(notes, key=lambda note: note.onset_s), kicks


def _drum_fill(plan: _Plan, rng: np.random.Generator, bar: _Bar, filled: int) -> list[Note]:
    """A run over snare and toms from tick `filled` of a bar to its end."""
    length = plan.metre.ticks - filled
    if length <= 0:
        return []
    soft = RIM if RIM in plan.pattern.lanes or RIDE in plan.pattern.lanes else SNARE
    drums = ((soft, TOM_HIGH, TOM_MID, TOM_LOW), (SNARE, SNARE, TOM_MID, TOM_LOW), (soft, soft, SNARE, SNARE))[
        int(rng.integers(3))
    ]
    notes = []
    for tick in range(length):
        on_eighth = tick % 2 == 0
        if rng.random() < (0.92 if on_eighth else 0.25 + 0.4 * bar.intensity):
            drum = drums[min(3, tick * 4 // length)]
            velocity = (0.45 + 0.4 * (tick + 1) / length) * (1.0 if on_eighth else 0.75)
            notes.append(plan.note(rng, bar.start + filled + tick, 1, drum, velocity))
    return notes


_EIGHTH = 2  # ticks


def _bass_rhythm(plan: _Plan, kicks: dict[int, list[int]], style: str) -> list[tuple[int, float, bool]]:
    """When the bass plays: tick, the share of the time to the next note, whether a chord or bar starts there."""
    rhythm = plan.rng("bass rhythm")
    metre = plan.metre
    rhythms = {s: _hits(str(rhythm.choice(_BASS_RHYTHMS[plan.metre_name]))) for s in "ABC"}
    events: list[tuple[int, float, bool]] = []
    for bar in plan.bars:
        ticks: set[int]
        gate = 0.9
        if style == "locked":
            ticks = set(kicks[bar.index])
            if rhythm.random() < 0.5 * bar.intensity:
                ticks.add(bar.start + metre.ticks - _EIGHTH)
        elif style == "eighths":
            ticks = {t for t in range(bar.start, bar.start + metre.ticks, _EIGHTH) if rhythm.random() < 0.94}
            gate = 0.72
        elif style == "octaves":
            ticks = set(range(bar.start, bar.start + metre.ticks, _EIGHTH))
            gate = 0.6
        elif style == "walking":
            ticks = set(range(bar.start, bar.start + metre.ticks, metre.ticks_per_beat))
            if rhythm.random() < 0.35:
                ticks.add(bar.start + int(rhythm.integers(metre.beats)) * metre.ticks_per_beat + _EIGHTH)
        elif style == "riff":
            ticks = {bar.start + t for t in rhythms[bar.section] if t == 0 or rhythm.random() < 0.9}
            gate = 0.8
        else:
            ticks = {bar.start + metre.ticks - metre.ticks_per_beat // 2} if rhythm.random() < 0.5 else set()
            if rhythm.random() < 0.4:
                ticks.add(bar.start + metre.ticks // 2)
        roots = {s.start for s in plan.spans if bar.start <= s.start < bar.start + metre.ticks}
        for tick in sorted(ticks | roots | {bar.start}):
            events.append((tick, gate, tick in roots or tick == bar.start))
    return events


def _write_bass(plan: _Plan, kicks: dict[int, list[int]]) -> list[Note]:
    """Bass notes: chord roots where the kick falls, fifths and octaves between, steps of the scale into the next."""
    rng = plan.rng("bass")
    metre = plan.metre
    styles = _BASS_STYLES[plan.metre_name]
    style = "walking" if plan.pattern.style == "swing" else styles[int(rng.integers(len(styles)))]
    events = _bass_rhythm(plan, kicks, style)
    notes: list[Note] = []
    pitch = 38.0
    end = plan.bars[-1].start + metre.ticks
    for i, (tick, gate, anchored) in enumerate(events):
        following = events[i + 1][0] if i + 1 < len(events) else end
        span = plan.span_at(tick)
        chord = span.chord
        root = nearest_pitch(0.6 * pitch + 0.4 * 36.0, [chord.root], 28, 45)
        leads = following == span.end and tick > span.start and following < end
        dice = rng.random()
        if anchored:
            played = root
        elif style == "octaves":
            played = root + 12 * ((tick - span.start) // _EIGHTH % 2)
        elif leads and (style == "walking" or dice < 0.55):
            target = nearest_pitch(root, [plan.span_at(following).chord.root], 28, 45)
            side = -1 if rng.random() < 0.5 else 1
            played = nearest_pitch(target + 2 * side, set(span.scale) - {target % 12}, 28, 48)
        elif style == "walking":
            played = nearest_pitch(pitch + float(rng.choice((-4, 3, 4, 5))), chord.pitch_classes, 28, 48)
        elif dice < 0.62:
            played = root
        elif dice < 0.8:
            played = nearest_pitch(root + 7, chord.pitch_classes[2:3], 28, 48)
        else:
            played = root + 12
        beat = tick % metre.ticks_per_beat == 0
        velocity = (0.92 if anchored else 0.8 if beat else 0.7) * (0.8 + 0.2 * plan.bars[tick // metre.ticks].intensity)
        notes.append(plan.note(rng, tick, gate * min(following - tick, metre.ticks), played, velocity))
        pitch = played if played < root + 12 else root
    return notes


def _write_pads(plan: _Plan) -> list[Note]:
    """Each chord in four voices that move as little as they can; restruck within long chords now and then."""
    rng = plan.rng("pads")
    restrike = rng.random() < 0.5
    notes: list[Note] = []
    voicing: tuple[int, ...] | None = None
    for span in plan.spans:
        if voicing is not None and span.start % (_BARS_PER_SECTION * plan.metre.ticks) == 0:
            # Each section starts in another inversion, so that its return is no copy.
            shift = int(rng.integers(-4, 5))
            voicing = tuple(pitch + shift for pitch in voicing)
        voicing = voice_chord(span.chord, voicing)
        bar = plan.bars[span.start // plan.metre.ticks]
        cuts = [span.start, span.end]
        length = span.end - span.start
        if restrike and length == plan.metre.ticks and rng.random() < 0.6:
            late = plan.metre.ticks // 2 + int(rng.choice((0, -2, 2)))
            cuts.insert(1, span.start + late)
        for start, end in itertools.pairwise(cuts):
            moved = list(voicing)
            if start != span.start:  # the top voice answers with another tone of the chord
                moved[-1] = nearest_pitch(
                    voicing[-1] + float(rng.choice((-4, 4))), span.chord.pitch_classes, voicing[-2] + 1, 81
                )
            for voice, pitch in enumerate(moved):
                velocity = (0.62, 0.58, 0.6, 0.7)[voice] * (0.8 + 0.25 * bar.intensity)
                notes.append(plan.note(rng, start, 0.97 * (end - start), pitch, velocity))
    return notes


def _write_keys(plan: _Plan) -> list[Note]:
    """Arpeggios, comping or broken chords over the progression, another figure for each section."""
    rng = plan.rng("keys")
    metre = plan.metre
    figures = {s: str(rng.choice(("arpeggio", "arpeggio", "comp", "broken"))) for s in "ABC"}
    order = "up"
    comps = {s: _hits(str(rng.choice(_COMPS[plan.metre_name]))) for s in "ABC"}
    sixteenths = plan.tick_s > 0.15 or (plan.tick_s > 0.115 and rng.random() < 0.5)
    notes: list[Note] = []
    voicing: tuple[int, ...] | None = None
    last_start = -1
    position = 0
    for bar in plan.bars:
        figure = figures[bar.section]
        if bar.within % 2 == 0:
            order = str(rng.choice(("up", "down", "swing", "skip")))
        rate = 1 if figure == "arpeggio" and sixteenths and bar.intensity > 0.6 else 2
        ticks = comps[bar.section] if figure == "comp" else list(range(0, metre.ticks, rate))
        for i, offset in enumerate(ticks):
            tick = bar.start + offset
            span = plan.span_at(tick)
            if voicing is None or span.start != last_start:
                voicing = voice_chord(span.chord, voicing, 57, 79)
                last_start, position = span.start, 0
            beat = offset % metre.ticks_per_beat == 0
            velocity = (0.82 if beat else 0.64) * (0.78 + 0.22 * bar.intensity)
            dice = rng.random()
            if figure == "comp":
                following = ticks[i + 1] if i + 1 < len(ticks) else metre.ticks
                if dice < 0.1 and i > 0:
                    continue
                length = min(following - offset, 3) * (0.55 if dice < 0.6 else 0.9)
                notes += [plan.note(rng, tick, length, pitch, velocity * 0.8) for pitch in voicing]
                continue
            if dice < 0.1 and not beat:
                position += 1
                continue
            ladder = (*voicing, voicing[0] + 12, voicing[1] + 12)
            if figure == "broken":
                pitch = ladder[(0, 2, 1, 3, 2, 4, 1, 3)[position % 8]]
            else:
                pitch = ladder[_arpeggio_step(order, position, len(ladder))]
            notes.append(plan.note(rng, tick, rate * (1.6 if figure == "broken" else 0.95), pitch, velocity))
            position += 1
    return notes


def _arpeggio_step(order: str, position: int, n: int) -> int:
    if order == "up":
        return position % n
    if order == "down":
        return n - 1 - position % n
    if order == "swing":
        around = position % (2 * n - 2)
        return around if around < n else 2 * n - 2 - around
    return (position * 2 + position // 3) % n


Motif = list[tuple[int, int, int]]  # tick within the phrase, ticks, steps away from the phrase's centre


def _write_motif(rng: np.random.Generator, metre: _Metre) -> Motif:
    """Two bars of melody without its pitches: rhythm, an arch, and a rest to breathe at the end."""
    beats = 2 * metre.beats
    cells = _CELLS[metre.ticks_per_beat]
    bank = [cells[int(i)] for i in rng.integers(len(cells), size=3)]  # few cells, so that the ear finds a pattern
    last = beats - int(rng.integers(1, 3)) if metre.beats > 2 else beats - 1
    motif: Motif = []
    peak = rng.uniform(0.3, 0.8) * beats
    height = rng.uniform(4.0, 9.0)
    for beat in range(last):
        final = beat == last - 1
        cell = (metre.ticks_per_beat,) if final else bank[int(rng.integers(len(bank)))]
        tick = beat * metre.ticks_per_beat
        for ticks in cell:
            if ticks > 0:
                arch = height * (1.0 - abs(tick / metre.ticks_per_beat - peak) / beats * 2.0) - height / 3.0
                motif.append((tick, ticks, round(arch + float(rng.normal(0.0, 2.2)))))
            tick += abs(ticks)
    if motif[-1][0] + motif[-1][1] < beats * metre.ticks_per_beat and rng.random() < 0.6:
        tick, ticks, step = motif[-1]
        motif[-1] = (tick, ticks + metre.ticks_per_beat // 2, step)
    return motif


def _write_lead(plan: _Plan) -> list[Note]:
    """A melody of two-bar phrases: a section's motif, its answer, and at each return a little more."""
    rng = plan.rng("lead")
    metre = plan.metre
    motifs = {(s, half): _write_motif(rng, metre) for s in "ABC" for half in (0, 1)}
    for s in "ABC":  # most answers start as the call did
        if rng.random() < 0.65:
            cut = metre.ticks
            call, answer = motifs[s, 0], motifs[s, 1]
            motifs[s, 1] = [n for n in call if n[0] < cut] + [n for n in answer if n[0] >= cut]
    centre = float(rng.uniform(69.0, 75.0))
    low, high = 60, 86
    notes: list[Note] = []
    pitch = round(centre)
    for bar in plan.bars:
        if bar.within % 2:
            continue
        motif = motifs[bar.section, bar.within // 2]
        lift = 2.0 * (bar.intensity - 0.75) * 5.0
        for i, (offset, ticks, step) in enumerate(motif):
            tick = bar.start + offset
            span = plan.span_at(tick)
            strong = offset % metre.ticks_per_beat == 0 or ticks >= metre.ticks_per_beat or i == len(motif) - 1
            dice = rng.random(3)
            if bar.visit and dice[0] < 0.12 and 0 < i < len(motif) - 1:
                continue
            target = 0.75 * (centre + lift + step) + 0.25 * pitch
            if bar.visit and dice[1] < 0.2:
                target += float(rng.choice((-4, -3, 3, 4)))
            classes = span.chord.pitch_classes if strong else span.scale
            pitch = nearest_pitch(target, classes, low, high)
            if len(notes) > 1 and notes[-1].pitch == pitch == notes[-2].pitch:  # three in a row is enough
                pitch = nearest_pitch(target + (3 if dice[1] < 0.5 else -3), set(classes) - {pitch % 12}, low, high)
            velocity = (0.85 if strong else 0.7) * (0.82 + 0.18 * bar.intensity)
            gate = 0.92 if dice[2] < 0.8 else 0.6
            if ticks >= 4 and dice[2] < 0.15:  # a grace step first
                grace = nearest_pitch(pitch - 2, set(span.scale) - {pitch % 12}, low - 3, high)
                notes.append(plan.note(rng, tick, 0.9, grace, 0.75 * velocity))
                notes.append(plan.note(rng, tick + 1, (ticks - 1) * gate, pitch, velocity))
            else:
                notes.append(plan.note(rng, tick, ticks * gate, pitch, velocity))
    return notes


def _pump(kicks: Sequence[float], samples: int, sample_rate: int, depth: float) -> Waveform:
    """A gain that dips by `depth` at each kick and swells back; float32 (samples,)."""
    gain = np.ones(samples, dtype=np.float32)
    n = int(0.35 * sample_rate)
    t = np.arange(n, dtype=np.float32) / np.float32(sample_rate)
    dip = np.float32(1.0) - np.float32(depth) * np.minimum(t / 0.01, 1.0) * np.exp(-t / 0.12) * (1.0 - t / 0.35)
    for kick in kicks:
        start = int(kick * sample_rate)
        stretch = gain[start : start + n]
        np.minimum(stretch, dip[: len(stretch)], out=stretch)
    return gain


def _echo(dry: Waveform, delay: int, feedback: float) -> Waveform:
    """Two fainter repeats, `delay` samples apart."""
    out = dry.copy()
    for repeat in (1, 2):
        shift = repeat * delay
        if shift < len(dry):
            out[shift:] += np.float32(feedback**repeat) * dry[:-shift]
    return out


def _balance(stems: dict[str, Waveform], sample_rate: int) -> dict[str, Waveform]:
    """Bring each stem to its level, fade the ends, and scale all by one gain so that no submix clips."""
    levelled: dict[str, Waveform] = {}
    for instrument, waveform in stems.items():
        rms = float(np.sqrt(np.mean(np.square(waveform), dtype=np.float64)))
        crest = 5.0 * rms
        # Rounds off only what stands out of the stem, as a tape would.
        tamed = np.asarray(np.tanh(waveform / np.float32(crest)), dtype=np.float32)
        tamed -= np.float32(np.mean(tamed, dtype=np.float64))
        fade_in, fade_out = int(_FADE_IN_S * sample_rate), int(_FADE_OUT_S * sample_rate)
        tamed[:fade_in] *= np.linspace(0.0, 1.0, fade_in, dtype=np.float32)
        tamed[-fade_out:] *= np.cos(np.linspace(0.0, np.pi / 2, fade_out, dtype=np.float32)) ** 2
        level = float(np.sqrt(np.mean(np.square(tamed), dtype=np.float64)))
        levelled[instrument] = tamed * np.float32(_LEVELS[instrument] / level)
    loudest = float(np.max(np.sum([np.abs(w) for w in levelled.values()], axis=0)))
    gain = np.float32(min(1.0, _LOUDEST * 0.999 / loudest))
    return {instrument: waveform * gain for instrument, waveform in levelled.items()}


def _title(seed: int) -> str:
    """Two words, another pair for each of 1,024 seeds in a row; a number tells later rounds apart."""
    n = len(_FIRST_WORDS) * len(_SECOND_WORDS)
    # An odd multiplier permutes the residues of a power of two.
    first, second = divmod((seed * 397 + 11) % n, len(_SECOND_WORDS))
    title = f"{_FIRST_WORDS[first]} {_SECOND_WORDS[second]}"
    return title if seed < n else f"{title} {seed // n + 1}"


def compose_track(seed: int, seconds: float = 20.0, sample_rate: int = 44_100) -> Track:
    """Compose and sound a track.

    Args:
        seed: 0 or more; the same seed gives the same samples (on one machine), and another seed another track.
        seconds: 1 to 600. A longer track begins with the notes of a shorter one.
        sample_rate: Hz, 16,000 or more.

    Returns:
        A Track with the five stems of INSTRUMENTS, each float32 (round(seconds * sample_rate),). The sum of their
        magnitudes stays under 0.9.

    Raises:
        ValueError: an argument outside its domain.
    """
    if seed < 0:
        raise ValueError(f"a seed is 0 or more, not {seed}")
    if not _SHORTEST_S <= seconds <= _LONGEST_S:
        raise ValueError(f"a track lasts {_SHORTEST_S:g} to {_LONGEST_S:g} s, not {seconds:g}")
    if sample_rate < _LOWEST_RATE:
        raise ValueError(f"a track needs a sample rate of {_LOWEST_RATE} Hz or more, not {sample_rate}")
    plan = _plan(seed, seconds)
    samples = round(seconds * sample_rate)
    drums, kicks = _write_drums(plan)
    written = {
        "drums": drums,
        "bass": _write_bass(plan, kicks),
        "pads": _write_pads(plan),
        "keys": _write_keys(plan),
        "lead": _write_lead(plan),
    }
    notes = {
        instrument: tuple(
            Note(n.onset_s, min(n.duration_s, seconds - n.onset_s), n.pitch, n.velocity)
            for n in sorted(part, key=lambda n: (n.onset_s, n.pitch))
            if n.onset_s < seconds - _SHORTEST_NOTE_S
        )
        for instrument, part in written.items()
    }

    choice = plan.rng("voices")
    voices = {
        "bass": BASS_VOICES[int(choice.integers(len(BASS_VOICES)))],
        "pads": PAD_VOICES[int(choice.integers(len(PAD_VOICES)))],
        "keys": KEYS_VOICES[int(choice.integers(len(KEYS_VOICES)))],
        "lead": LEAD_VOICES[int(choice.integers(len(LEAD_VOICES)))],
    }
    room = Room(samples, sample_rate, float(choice.uniform(0.7, 1.3)), plan.rng("room"))
    pumping = float(choice.uniform(0.35, 0.6)) if plan.pattern.style == "house" else 0.15
    repeats = float(choice.uniform(0.12, 0.3))

    dry = {"drums": play_drums(tune_kit(plan.rng("kit")), notes["drums"], samples, sample_rate, plan.rng("hits"))}
    for instrument, voice in voices.items():
        dry[instrument] = play_voice(voice, notes[instrument], samples, sample_rate, plan.rng(f"{instrument} voice"))
    kick_times = [n.onset_s for n in notes["drums"] if n.pitch == KICK]
    dry["pads"] *= _pump(kick_times, samples, sample_rate, pumping)
    three_eighths = round(plan.metre.ticks_per_beat * 0.75 * plan.tick_s * sample_rate)
    dry["lead"] = _echo(dry["lead"], three_eighths, repeats)
    placed = {name: room.place(dry[name], _WET[name], *_BANDS_HZ[name]) for name in INSTRUMENTS}
    waveforms = _balance(placed, sample_rate)

    chords = tuple(
        ChordSpan(s.start * plan.tick_s, (s.end - s.start) * plan.tick_s, s.chord, s.scale)
        for s in plan.spans
        if s.start * plan.tick_s < seconds
    )
    return Track(
        seed=seed,
        title=_title(seed),
        key=key_name(plan.tonic, plan.family.mode),
        mode=plan.family.mode,
        style=f"{plan.family.name} {plan.pattern.style}",
        tempo_bpm=float(plan.tempo_bpm),
        metre=plan.metre_name,
        sample_rate=sample_rate,
        chords=chords,
        stems=tuple(
            ComposedStem(name, waveforms[name], notes[name], voices[name].name if name in voices else "acoustic kit")
            for name in INSTRUMENTS
        ),
    )


def write_track(track: Track, folder: Path) -> list[Path]:
    """Write a track's stems as 16-bit FLAC, `<folder>/<title-slug>/<instrument>.flac`, and its track.json beside them.

    Returns:
        The files, in the order of `track.stems`. The same track gives the same bytes.
    """
    import soundfile  # here, so that composing needs nothing but NumPy

    home = folder / track.slug
    home.mkdir(parents=True, exist_ok=True)
    paths = []
    for stem in track.stems:
        path = home / f"{stem.instrument}.flac"
        soundfile.write(path, stem.waveform, track.sample_rate, format="FLAC", subtype="PCM_16")
        paths.append(path)
    track.truth.write(home)
    return paths
