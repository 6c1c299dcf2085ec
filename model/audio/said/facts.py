"""What a file can say of its music, and how one word of it is read: the ground of the others here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from model.audio.harmony import key_name, pitch_class

Source = Literal["said", "tags", "chunk", "name"]
"""Who says it; "said": a person, beside the file."""

Kind = Literal["loop", "one-shot", "piece"]

SLOWEST_BPM, FASTEST_BPM = 20.0, 400.0
"""No music is said to be slower or faster; a number outside is a slip, a placeholder or another thing."""
MOST_BEATS = 20_000
"""An hour at 333 BPM; whatever says more has not counted."""
LONGEST_LOOP_BEATS = 64
"""What is longer is hardly a loop."""
ROUNDING_BPM = 0.5
"""How far a stated tempo may be off by rounding: names and most tags hold whole numbers."""
_BLANKS = "\0 \t\r\n"
_LONGEST_TEXT = 40  # of a tempo or key; a longer one is prose


@dataclass(frozen=True)
class Said:
    """What a file says of its music; None where it says nothing.

    `root` is the pitch class (0..11 from C) of a root or unity note, or of a letter without a mode ("_A_120bpm_"): the
    tonic at most, so it never becomes a `key`. `beats` are quarter notes, and how many the whole clip is long.
    """

    tempo_bpm: float | None = None
    beats: float | None = None
    key: str | None = None
    """As `harmony.key_name` spells it: "F# minor"."""
    root: int | None = None
    kind: Kind | None = None
    sources: Mapping[str, Source] = field(default_factory=dict)
    """Field name -> where it is from, for each field that is not None."""
    warnings: tuple[str, ...] = ()


FACTS = ("tempo_bpm", "beats", "key", "root", "kind")


def said_by(source: Source, said: Said) -> Said:
    """The same with `source` named for each of its facts."""
    return replace(said, sources={fact: source for fact in FACTS if getattr(said, fact) is not None})


def is_tempo(bpm: float) -> bool:
    return math.isfinite(bpm) and SLOWEST_BPM <= bpm <= FASTEST_BPM


def written_alike(a: float, b: float) -> bool:
    """Whether two tempi mean the same grid, as far as writers round: whole numbers, an octave apart or none."""
    return any(abs(a * factor - b) <= ROUNDING_BPM * max(1.0, factor) for factor in (0.5, 1.0, 2.0))


def note_name(pitch: int) -> str:
    """Of a pitch class, as major keys are spelt."""
    return key_name(pitch, "major").split()[0]


def wheel_key(number: int, minor: bool, start: int) -> tuple[int, str]:
    """Tonic and mode at an hour of the wheel of fifths; `start` is that of C major and A minor, 8 or 1."""
    return (7 * (number - start) + (9 if minor else 0)) % 12, "minor" if minor else "major"


def plain_accidentals(text: str) -> str:
    """Musical sharps and flats as # and b."""
    return text.replace("\u266f", "#").replace("\uff03", "#").replace("\u266d", "b")


def tempo_of_text(text: str) -> float | None:
    """The tempo that a tag or chunk writes as text: "128", "127.50", "128,5 BPM".

    Returns:
        None for "0" and "", by which writers say that they do not know.

    Raises:
        ValueError: anything else that is no tempo; the message shows it.
    """
    word = text.strip(_BLANKS).lower()[:_LONGEST_TEXT]
    parts = re.fullmatch(r"(-?[0-9]{1,9})(?:[.,]([0-9]*))?(?: ?bpm)?", word)
    if parts is None and word:
        raise ValueError(f"{text[:_LONGEST_TEXT]!r} is no tempo")
    bpm = 0.0 if parts is None else float(f"{parts[1]}.{parts[2] or 0}")
    if bpm == 0.0:
        return None
    if not is_tempo(bpm):
        raise ValueError(f"{bpm:g} BPM is no tempo")
    return bpm


def key_parts(text: str) -> tuple[int, str] | None:
    """Tonic (pitch class) and mode of a key as a tag writes it: "Am", "F#", "Ebmaj", "A minor", "8A" (Camelot), "1m"
    (Open Key), "8A - 6".

    Returns:
        The mode is "major", "minor", or "" of a letter alone. None for "", and for "o", ID3's word for "off key".

    Raises:
        ValueError: no key; the message shows it.
    """
    word = plain_accidentals(text).strip(_BLANKS)[:_LONGEST_TEXT].split(" - ")[0].strip()
    if word in ("", "o", "O"):
        return None
    if parts := re.fullmatch(r"(0?[1-9]|1[0-2])([ABabdm])", word):
        return wheel_key(int(parts[1]), parts[2] in "Aam", start=8 if parts[2] in "ABab" else 1)
    if parts := re.fullmatch(r"([A-Ga-g])([#b]?)[ _-]?(m|(?i:min|minor|maj|major)|)", word):
        mode = "" if not parts[3] else "major" if parts[3].lower().startswith("ma") else "minor"
        return pitch_class(parts[1], parts[2]), mode
    raise ValueError(f"{text[:_LONGEST_TEXT]!r} is no key")


def key_of_text(text: str) -> str | None:
    """The name of a key that a tag writes, as `key_parts` reads it; a letter alone is major, as ID3 has it for TKEY."""
    parts = key_parts(text)
    return None if parts is None else key_name(parts[0], parts[1] or "major")


def transposed_key(text: str, semitones: float) -> str | None:
    """The name of a key that was moved up; None: what was said is no key, or it is moved into none."""
    try:
        parts = key_parts(text)
    except ValueError:
        return None
    if parts is None or semitones != round(semitones):
        return None
    return key_name((parts[0] + round(semitones)) % 12, parts[1] or "major")
