"""Scores: MIDI files, read as parts of notes in seconds, with their beats and key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.audio.harmony import likeliest_key
from model.demo.synthesis import (
    CLAP,
    CRASH,
    HAT,
    KICK,
    OPEN_HAT,
    RIDE,
    RIM,
    SHAKER,
    SNARE,
    TOM_HIGH,
    TOM_LOW,
    TOM_MID,
    Note,
)

DRUM_CHANNEL = 9

FAMILIES = (
    "piano", "mallets", "organ", "guitar", "bass", "strings", "ensemble", "brass",
    "reed", "pipe", "synth-lead", "synth-pad", "synth-effects", "ethnic", "percussive", "sound-effects",
)  # fmt: skip
"""General MIDI's, eight programs each."""

DRUMS = {
    35: KICK, 36: KICK, 37: RIM, 38: SNARE, 39: CLAP, 40: SNARE, 41: TOM_LOW, 42: HAT, 43: TOM_LOW, 44: HAT,
    45: TOM_MID, 46: OPEN_HAT, 47: TOM_MID, 48: TOM_HIGH, 49: CRASH, 50: TOM_HIGH, 51: RIDE, 52: CRASH, 53: RIDE,
    54: SHAKER, 55: CRASH, 57: CRASH, 59: RIDE, 69: SHAKER, 70: SHAKER, 82: SHAKER,
}  # fmt: skip  # General MIDI's drums by ours; what is not here is a rim click
_PIECES = {
    KICK: "kick", SNARE: "snare", RIM: "snare", CLAP: "snare", HAT: "hats", OPEN_HAT: "hats", SHAKER: "hats",
    CRASH: "cymbals", RIDE: "cymbals", TOM_LOW: "toms", TOM_MID: "toms", TOM_HIGH: "toms",
}  # fmt: skip  # stems of a kit that is recorded, or programmed, piece by piece; what is not here is percussion
_TONICS = {
    "C": 0, "G": 7, "D": 2, "A": 9, "E": 4, "B": 11, "F#": 6, "C#": 1, "F": 5, "Bb": 10, "Eb": 3, "Ab": 8, "Db": 1,
    "Gb": 6, "Cb": 11, "G#": 8, "D#": 3, "A#": 10,
}  # fmt: skip  # of MIDI's key signatures
FIRST_UNPITCHED = 8 * FAMILIES.index("percussive")  # programs from here on have no pitch that a key would know


@dataclass(frozen=True)
class Part:
    """One instrument of a score: its General MIDI program (0 to 127), and its notes in seconds."""

    program: int
    is_drums: bool
    notes: tuple[Note, ...]
    piece: str = "drums"  # or the one piece of the kit that these notes play

    @property
    def instrument(self) -> str:
        return self.piece if self.is_drums else FAMILIES[self.program // 8]

    def pieces(self) -> list[Part]:
        """A kit as a part for each of its pieces, in the order in which they enter."""
        played: dict[str, list[Note]] = {}
        for note in self.notes:
            played.setdefault(_PIECES.get(DRUMS.get(note.pitch, -1), "percussion"), []).append(note)
        return [Part(self.program, True, tuple(notes), piece) for piece, notes in played.items()]


@dataclass(frozen=True)
class Score:
    """A MIDI file: its parts, its beats in seconds (dotted ones where the metre counts in threes), and its key."""

    parts: tuple[Part, ...]
    beats_s: tuple[float, ...]
    key: tuple[int, str] | None  # tonic (pitch class) and mode: what the file says, or else what its notes suggest


def read_score(path: Path) -> Score:
    """A MIDI file, with a part for each of its tracks and channels that has notes.

    A note that the sustain pedal holds ends when the pedal is released.

    Raises:
        OSError, ValueError, EOFError: the file cannot be read as MIDI.
    """
    import mido

    midi = mido.MidiFile(path, clip=True)
    timeline = [(0, 0.0, 500_000)]  # tick, seconds, microseconds a beat
    tempi = [(tick, m.tempo) for track in midi.tracks for tick, m in _absolute(track) if m.type == "set_tempo"]
    for tick, tempo in sorted(tempi):
        timeline.append((tick, _seconds(timeline, tick, midi.ticks_per_beat), tempo))
    parts = []
    for track in midi.tracks:
        sounding: dict[tuple[int, int], tuple[float, int]] = {}
        held: dict[int, dict[int, tuple[float, int]]] = {}  # by the pedal: channel -> pitch -> onset, velocity
        pedal: set[int] = set()
        programs: dict[int, int] = {}
        notes: dict[int, list[Note]] = {}

        def end(channel: int, pitch: int, started: tuple[float, int], now: float, notes: Any = notes) -> None:
            onset, velocity = started
            if now > onset:
                notes.setdefault(channel, []).append(Note(onset, now - onset, pitch, velocity / 127))

        now = 0.0
        for tick, message in _absolute(track):
            now = _seconds(timeline, tick, midi.ticks_per_beat)
            if message.type == "program_change":
                programs.setdefault(message.channel, message.program)
            elif message.type == "control_change" and message.control == 64:
                if message.value >= 64:
                    pedal.add(message.channel)
                else:
                    pedal.discard(message.channel)
                    for pitch, started in held.pop(message.channel, {}).items():
                        end(message.channel, pitch, started, now)
            elif message.type in ("note_on", "note_off"):
                channel, pitch = message.channel, message.note
                struck = message.type == "note_on" and message.velocity > 0
                if struck and (before := held.get(channel, {}).pop(pitch, None)):
                    end(channel, pitch, before, now)
                if before := sounding.pop((channel, pitch), None):
                    if channel in pedal and not struck:
                        held.setdefault(channel, {})[pitch] = before
                    else:
                        end(channel, pitch, before, now)
                if struck:
                    sounding[channel, pitch] = now, message.velocity
        for (channel, pitch), started in sounding.items():
            end(channel, pitch, started, now)
        for channel, pitches in held.items():
            for pitch, started in pitches.items():
                end(channel, pitch, started, now)
        for channel, played in notes.items():
            ordered = tuple(sorted(played, key=lambda note: (note.onset_s, note.pitch)))
            parts.append(Part(programs.get(channel, 0), channel == DRUM_CHANNEL, ordered))
    end_s = max((note.onset_s + note.duration_s for part in parts for note in part.notes), default=0.0)
    return Score(tuple(parts), _beats(midi, timeline, end_s), _key(midi, parts))


def _beats(midi: Any, timeline: list[tuple[int, float, int]], end_s: float) -> tuple[float, ...]:
    """Every beat's second, to the first beyond the end."""
    metres = sorted(
        (
            (tick, m.numerator, m.denominator)
            for t in midi.tracks
            for tick, m in _absolute(t)
            if m.type == "time_signature"
        ),
        key=lambda metre: metre[0],
    )
    beats: list[float] = []
    tick, numerator, denominator = 0.0, 4, 4
    while not beats or beats[-1] < end_s:
        beats.append(_seconds(timeline, tick, midi.ticks_per_beat))
        while metres and metres[0][0] <= tick:
            _, numerator, denominator = metres.pop(0)
        in_threes = denominator >= 8 and numerator % 3 == 0
        quarters = 4 / denominator * 3 if in_threes else 1.0
        tick += max(1.0, quarters * midi.ticks_per_beat)
        if metres and tick > metres[0][0]:  # a new bar begins on a beat
            tick = float(metres[0][0])
    return tuple(beats)


def _key(midi: Any, parts: Sequence[Part]) -> tuple[int, str] | None:
    signatures = [message.key for track in midi.tracks for message in track if message.type == "key_signature"]
    if signatures:
        tonic = _TONICS[signatures[0].rstrip("m")]
        return tonic, "minor" if signatures[0].endswith("m") else "major"
    weights = np.zeros(12)
    for part in parts:
        for note in part.notes if not part.is_drums else ():
            weights[note.pitch % 12] += note.duration_s
    return likeliest_key(weights)


def _absolute(track: Any) -> Iterator[tuple[int, Any]]:
    tick = 0
    for message in track:
        tick += message.time
        yield tick, message


def _seconds(timeline: list[tuple[int, float, int]], tick: float, ticks_per_beat: int) -> float:
    since, seconds, tempo = next(change for change in reversed(timeline) if change[0] <= tick)
    return seconds + (tick - since) * tempo / (1e6 * max(1, ticks_per_beat))


def score_files(folder: Path) -> list[Path]:
    """Every MIDI file below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".mid", ".midi"))
