"""Keys, chords and voicings: the part of composing that is the same whatever plays.

Pitches are MIDI numbers (60 is middle C), pitch classes are 0..11 from C.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAJOR = (0, 2, 4, 5, 7, 9, 11)
MIXOLYDIAN = (0, 2, 4, 5, 7, 9, 10)
LYDIAN = (0, 2, 4, 6, 7, 9, 11)
MINOR = (0, 2, 3, 5, 7, 8, 10)
DORIAN = (0, 2, 3, 5, 7, 9, 10)
PHRYGIAN = (0, 1, 3, 5, 7, 8, 10)

_MAJOR_NAMES = ("C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
_MINOR_NAMES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "G#", "A", "Bb", "B")
LETTERS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_ACCIDENTALS = {"": 0, "#": 1, "b": -1}
_QUALITIES = {
    "": (0, 4, 7),
    "m": (0, 3, 7),
    "7": (0, 4, 7, 10),
    "maj7": (0, 4, 7, 11),
    "m7": (0, 3, 7, 10),
    "m7b5": (0, 3, 6, 10),
    "6": (0, 4, 7, 9),
    "m6": (0, 3, 7, 9),
    "sus4": (0, 5, 7),
    "add9": (0, 2, 4, 7),
}
_WIDEST_VOICING = 17


@dataclass(frozen=True)
class Chord:
    """A root (pitch class) and a quality such as "" (major), "m7" or "maj7"."""

    root: int
    quality: str

    @property
    def pitch_classes(self) -> tuple[int, ...]:
        """From the root upwards."""
        return tuple((self.root + interval) % 12 for interval in _QUALITIES[self.quality])


@dataclass(frozen=True)
class Family:
    """Progressions of one flavour, written in C: four chords last four bars, and so do eight."""

    name: str
    mode: str
    scale: tuple[int, ...]
    progressions: tuple[str, ...]


FAMILIES = (
    Family(
        "pop", "major", MAJOR, ("C G Am F", "C Am F G", "F G Em Am", "C Em F G", "Am F C Gsus4", "C G F F C Am F G")
    ),
    Family("folk", "major", MAJOR, ("C F C G", "C Am Dm G", "F C G C", "Am Em F G", "C Em Am F C Dm G G")),
    Family("jazz", "major", MAJOR, ("Dm7 G7 Cmaj7 Am7", "Cmaj7 A7 Dm7 G7", "Em7 A7 Dm7 G7", "Fmaj7 Em7 Dm7 Cmaj7")),
    Family("soul", "major", MAJOR, ("Cmaj7 E7 Am7 C7", "Fmaj7 Fm6 Em7 A7", "Cmaj7 D7 Dm7 G7", "Am7 D7 Fmaj7 G7")),
    Family("rock", "major", MIXOLYDIAN, ("C Bb F C", "C Gm7 Bb F", "F C Bb C", "Bb F C C")),
    Family("dream", "major", LYDIAN, ("Cmaj7 D Cmaj7 Bm7", "Cadd9 D Em7 D", "Am7 D Cmaj7 Em7", "Cmaj7 Gmaj7 D Em7")),
    Family(
        "ballad",
        "minor",
        MINOR,
        ("Cm Ab Eb Bb", "Cm Fm Ab G7", "Ab Bb Cm Eb", "Fm Cm Ab Bb", "Cm G7 Cm Eb Fm Cm Ab G7"),
    ),
    Family("noir", "minor", MINOR, ("Cm Bb Ab G7", "Dm7b5 G7 Cm7 Abmaj7", "Fm7 Bb7 Ebmaj7 Abmaj7", "Cm7 C7 Fm7 G7")),
    Family("funk", "minor", DORIAN, ("Cm7 F7 Cm7 F7", "Cm7 Dm7 Ebmaj7 F7", "Ebmaj7 F7 Cm7 Gm7", "Cm7 Bb F Gm7")),
    Family("desert", "minor", PHRYGIAN, ("Cm Db Cm Bbm", "Db Eb Cm Cm", "Ab Bbm Db Cm", "Cm Bbm Ab Db")),
)


def pitch_class(letter: str, accidental: str) -> int:
    """Of "F" and "#", in either case; the accidental is "", "#" or "b"."""
    return (LETTERS[letter.upper()] + _ACCIDENTALS[accidental.lower()]) % 12


def parse_chord(symbol: str) -> Chord:
    """Read a chord symbol such as "F#m7".

    Raises:
        ValueError: no such root or quality.
    """
    parts = re.fullmatch(r"([A-G])([b#]?)(.*)", symbol)
    if parts is None or parts[3] not in _QUALITIES:
        raise ValueError(f"no chord is written {symbol!r}")
    return Chord(pitch_class(parts[1], parts[2]), parts[3])


def parse_progression(progression: str, tonic: int) -> list[Chord]:
    """Read a progression written in C and move it to the key of `tonic` (pitch class)."""
    chords = [parse_chord(symbol) for symbol in progression.split()]
    return [Chord((chord.root + tonic) % 12, chord.quality) for chord in chords]


def key_name(tonic: int, mode: str) -> str:
    """Name a key as a musician spells it: "F# minor", "Ab major"."""
    return f"{(_MINOR_NAMES if mode == 'minor' else _MAJOR_NAMES)[tonic]} {mode}"


def tonic_of(name: str) -> int | None:
    """The tonic of a key's major, or relative major, as a pitch class: 0 for "C major" and "A minor"; None: no key."""
    parts = re.fullmatch(r"([A-G])([b#]?) (major|minor)", name)
    if parts is None:
        return None
    return (pitch_class(parts[1], parts[2]) + (3 if parts[3] == "minor" else 0)) % 12


def compatible_keys(name: str) -> tuple[str, ...]:
    """The keys that mix with one, by DJs' rule (Camelot's neighbours): itself, its relative, and a fifth either way.

    Returns:
        Each in every spelling: "F# minor", "F#m", "Gb minor", "Gbm"; major ones "A major" and "A". () if `name` is no
        key's, see `key_name`.
    """
    tonic, mode = tonic_of(name), name.rpartition(" ")[2]
    if tonic is None:
        return ()
    relative = "major" if mode == "minor" else "minor"
    found = []
    for major, one in ((tonic, mode), (tonic, relative), (tonic + 7, mode), (tonic - 7, mode)):
        wanted = (major - (3 if one == "minor" else 0)) % 12
        for letter, accidental in itertools.product(LETTERS, _ACCIDENTALS):
            if pitch_class(letter, accidental) == wanted:
                found += [f"{letter}{accidental} {one}", f"{letter}{accidental}{'m' if one == 'minor' else ''}"]
    return tuple(found)


def dominant_of(chord: Chord) -> Chord:
    """The seventh chord a fifth above, which leads to `chord`."""
    return Chord((chord.root + 7) % 12, "7")


def scale_under(chord: Chord, scale: Iterable[int]) -> tuple[int, ...]:
    """Pitch classes that sound right over `chord`: its own, and the key's that do not rub against a borrowed one.

    Over E7 in C major, G# is borrowed, so G and A step back.
    """
    scale_set = set(scale)
    own = set(chord.pitch_classes)
    borrowed = own - scale_set
    calm = {p for p in scale_set if all((p - b) % 12 not in (1, 11) for b in borrowed)}
    return tuple(sorted(own | calm))


def nearest_pitch(target: float, pitch_classes: Iterable[int], low: int, high: int) -> int:
    """The pitch of one of `pitch_classes` within [low, high] that is nearest to `target`; the lower one of two."""
    allowed = set(pitch_classes)
    return min((p for p in range(low, high + 1) if p % 12 in allowed), key=lambda p: (abs(p - target), p))


def voice_chord(chord: Chord, previous: tuple[int, ...] | None, low: int = 52, high: int = 76) -> tuple[int, ...]:
    """Four pitches of `chord`, lowest first, that move as little as they can from `previous`.

    [low, high] spans 19 semitones or more.
    """
    classes = chord.pitch_classes
    options = [[p for p in range(low, high + 1) if p % 12 == c] for c in classes]
    if len(classes) == 3:  # a triad doubles its root or its fifth, whichever the range allows
        options.append([p for p in range(low, high + 1) if p % 12 in (classes[0], classes[2])])
    centre = (low + high) / 2

    def cost(voicing: tuple[int, ...]) -> float:
        gaps = [b - a for a, b in itertools.pairwise(voicing)]
        crowded = sum(4.0 for gap in gaps if gap < 2) + (3.0 if gaps[0] < 3 else 0.0)
        drift = 0.8 * abs(sum(voicing) / len(voicing) - centre)
        motion = 0.0 if previous is None else sum(abs(a - b) for a, b in zip(voicing, previous, strict=True))
        return motion + crowded + drift

    voicings = {
        tuple(sorted(v))
        for v in itertools.product(*options)
        if len(set(v)) == len(v) and max(v) - min(v) <= _WIDEST_VOICING
    }
    return min(voicings, key=lambda v: (cost(v), v))


_PROFILES = {
    "major": (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
    "minor": (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
}
"""How well each pitch class fits a key, from its tonic upwards: Krumhansl and Kessler (1982), probe tones."""

HEARD_PROFILES = {
    "major": (0.748, 0.060, 0.488, 0.082, 0.670, 0.460, 0.096, 0.715, 0.104, 0.366, 0.057, 0.400),
    "minor": (0.712, 0.084, 0.474, 0.618, 0.049, 0.460, 0.105, 0.747, 0.404, 0.067, 0.133, 0.330),
}
"""The same by Temperley (2001), counted in the examples of a book on harmony: right more often of heard chroma."""


def key_fits(
    weights: NDArray[np.floating[Any]], profiles: Mapping[str, tuple[float, ...]] = _PROFILES
) -> dict[tuple[int, str], float]:
    """How well each key's profile correlates with how much of each pitch class sounds.

    Args:
        weights: (12,), not negative, from C upwards.
        profiles: by mode.

    Returns:
        By tonic (pitch class) and "major" or "minor"; empty where all weigh the same.
    """
    if float(np.ptp(weights)) == 0.0:
        return {}
    return {
        (tonic, mode): float(np.corrcoef(weights, np.roll(profile, tonic))[0, 1])
        for mode, profile in profiles.items()
        for tonic in range(12)
    }


def likeliest_key(weights: NDArray[np.floating[Any]]) -> tuple[int, str] | None:
    """The key that fits best, see `key_fits`: tonic and mode; None where all pitch classes weigh the same."""
    fits = key_fits(weights)
    return max(fits, key=lambda key: fits[key]) if fits else None


def chroma_of(weights: NDArray[np.floating[Any]]) -> NDArray[np.float32] | None:
    """How much of each pitch class sounds, so that the product of two clips' is their correlation.

    Of the weights the roots are compared, so that a note that is held does not drown all others.

    Args:
        weights: (12,), not negative, from C upwards.

    Returns:
        float32 (12,), about their mean and of norm 1; None where all weigh the same. Rolled by one it is that of the
        clip a semitone up.
    """
    roots = np.sqrt(weights)
    about = roots - roots.mean()
    norm = float(np.linalg.norm(about))
    return (about / norm).astype(np.float32) if norm > 1e-9 * float(roots.max(initial=0.0)) else None


def is_relative(one: str, other: str) -> bool:
    """Whether two keys, by name, are each other's relatives, with the same notes: "A minor" and "C major"."""
    return one != other and tonic_of(one) is not None and tonic_of(one) == tonic_of(other)
