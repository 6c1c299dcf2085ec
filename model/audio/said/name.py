"""What a file's name says of its music, as sample packs, DJs and DAWs name files.

Read word by word, in time linear in the name. What is ambiguous is not read: what is not said can still be heard.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from dataclasses import dataclass

from model.audio.formats import ENDINGS
from model.audio.harmony import key_name, pitch_class
from model.audio.said.facts import Kind, Said, is_tempo, plain_accidentals, said_by, wheel_key, written_alike


def _each(words: str) -> frozenset[str]:
    return frozenset(words.split())


_EXTENSIONS = ENDINGS | _each("rx2 rex asd reapeaks")
# A number with one or two decimals and what clings to it ("92.5bpm"), or with more where it may be a tempo
# ("93.312bpm", not "01.120bpm"); or letters, digits and sharps.
_WORD = re.compile(r"(?:[0-9]+[.,][0-9]{1,2}|(?:[6-9]|1[0-9])[0-9][.,][0-9]{3,})(?![0-9])(?:[^\W_]|#)*|(?:[^\W_]|#)+")
_ACCIDENTAL_WORD = re.compile(r"(?<![^\W_])([A-G])[ _-]?(sharp|flat)(?=[ _-]?(?:min|maj))", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]{1,5}(?:[.,][0-9]+)?")
_MARKED = re.compile(rf"(?:bpm)?({_NUMBER.pattern})(?:bpm)?")
_BARE = re.compile(r"[1-9][0-9]{1,2}(?:[.,][0-9]+)?")
_SLOWEST_BARE, _FASTEST_BARE = 60.0, 200.0  # of a number that nothing marks as a tempo; rarer tempi have a mark

_SHORT_KEY = re.compile(r"([A-G])([#b]?)m")
_LONG_KEY = re.compile(r"([A-G])([#b]?)(maj|major|min|minor)", re.IGNORECASE)
_NOTE = re.compile(r"([A-Ga-g])([#b]?)")
_CAMELOT = re.compile(r"(0?[1-9]|1[0-2])([AB])")
_MODES = {"maj": "major", "major": "major", "min": "minor", "minor": "minor"}

_BEFORE_AN_INDEX = _each(
    "track trk take tk no nr num number part pt version ver v vol volume song sample preset fx mix note vel velocity"
    " disc disk cd side scene clip session room kick snare clap hat hihat perc tom rim crash ride shot hit"
)
_BEFORE_A_MODEL = _each(
    "tr sh juno jx mpc tb ms cr dx tx op mc jp jupiter arp sp rd cs prophet model dr er rz lm sr sk"
)
_UNITS = _each("bit bits k khz hz kbps kbit kb db ms s sec secs seconds percent bars bar beats cents st")
_RHYTHM = _each("loop break breaks breakbeat beat groove drum drumloop drumbreak dnb")
_MANY = _each("loops samples hits sounds oneshots shots stems")  # "100 drum loops" counts them
_TO = ("-", "/", "\u2013")
_BEFORE_EM = _each("get let give make show beat kill tell keep hit catch got feed bring take of")


@dataclass(frozen=True)
class _Word:
    text: str
    before: str
    """What stands between it and the word before."""

    @property
    def lower(self) -> str:
        return self.text.lower()

    @property
    def number(self) -> float | None:
        return float(self.text.replace(",", ".")) if _NUMBER.fullmatch(self.text) else None


@dataclass(frozen=True)
class _Key:
    first: int
    last: int
    """The words it is written in."""
    key: str


def said_of_name(name: str) -> Said:
    """Read tempo, key and kind from a file's name; of a path, its last part.

    Args:
        name: any characters, any length.

    Returns:
        tempo_bpm: "120bpm", "BPM 120", "tempo 120" between 20 and 400. A number without such a mark is one only between
            60 and 200, and only beside a key, between underscores in a name with a key or soon followed by "loop", or
            before a word of rhythm ("174 drum break"). Of two tempi an octave apart, the higher.
        key: "Am", "F#m", "Bbmaj", "D#_minor", "A Minor", "key of A" and Camelot's "8A". "Am" and "Em" are English words
            too: not read beside "I", after an hour ("3 Am") or a verb ("Get Em"). "1A" to "6B" are takes unless a
            tempo, brackets or the name's start mark them. Chords ("Am7") and lower-case "am" are no keys.
        root: where no key is, a letter with a sharp, or with a flat as the last word or beside the tempo; a mere letter
            beside the tempo ("_A_120bpm_"), or C to G as the last of three or more words joined by underscores
            ("kick_01_C"): packs name one-shots by their note, but count variants A and B.
        kind: where the name has one of the words "loop" and "one-shot".
        warnings: tempi or keys that contradict each other; then none is taken.
    """
    words = _words_of(name)
    warnings: list[str] = []
    marked = _marked_tempi(words)
    keys = _keys(words, set(marked))
    tempi = marked or _bare_tempi(words, keys)
    tempo = max(tempi.values(), default=None)
    if tempo is not None and not all(written_alike(tempo, other) for other in tempi.values()):
        warnings.append("the name states several tempi: " + ", ".join(f"{bpm:g}" for bpm in sorted(tempi.values())[:4]))
        tempo = None
    named = sorted({found.key for found in keys})
    if len(named) > 1:
        warnings.append("the name states several keys: " + ", ".join(named[:4]))
    roots = set() if named else _roots(words, set(tempi))
    said = Said(
        tempo_bpm=tempo,
        key=named[0] if len(named) == 1 else None,
        root=roots.pop() if len(roots) == 1 else None,
        kind=_kind(words),
        warnings=tuple(warnings),
    )
    return said_by("name", said)


def _words_of(name: str) -> list[_Word]:
    name = re.split(r"[/\\]", name)[-1] or name
    stem, dot, extension = name.rpartition(".")
    if dot and extension.lower() in _EXTENSIONS:
        name = stem
    name = unicodedata.normalize("NFKC", plain_accidentals(name))
    name = _ACCIDENTAL_WORD.sub(lambda found: found[1].upper() + ("#" if found[2].lower() == "sharp" else "b"), name)
    words, end = [], 0
    for found in _WORD.finditer(name):
        words.append(_Word(found[0], name[end : found.start()]))
        end = found.end()
    return [*words, _Word("", name[end:])]  # so that every word has one after it


def _marked_tempi(words: list[_Word]) -> dict[int, float]:
    """Tempi that the name marks as such, by the place of their number."""
    found: dict[int, float] = {}
    for i, word in enumerate(words):
        before, after = words[i - 1].number if i else None, words[i + 1].number if i + 1 < len(words) else None
        clinging = _MARKED.fullmatch(word.lower) if "bpm" in word.lower else None
        if clinging:
            place, bpm = i, float(clinging[1].replace(",", "."))
        elif word.lower == "bpm" and before is not None and is_tempo(before) and not _numbered(words, i):
            place, bpm = i - 1, before
        elif word.lower in ("bpm", "tempo") and after is not None:
            place, bpm = i + 1, after
        else:
            continue
        if is_tempo(bpm):
            found[place] = bpm
            low = words[place - 1].number if place else None
            if low is not None and words[place].before in _TO and low >= _SLOWEST_BARE and is_tempo(low):
                found[place - 1] = low  # a range: "90-95bpm"
    return found


def _numbered(words: list[_Word], i: int) -> bool:
    """Whether what stands before the word "bpm" is a number of files rather than a tempo: "Loop 25 BPM 140"."""
    before, after = words[i - 1].number or 0.0, words[i + 1].number or 0.0
    unit = words[i + 2].lower if i + 2 < len(words) else ""
    return before < _SLOWEST_BARE <= after <= _FASTEST_BARE and unit not in _UNITS


def _bare_tempi(words: list[_Word], keys: list[_Key]) -> dict[int, float]:
    """Numbers that only their neighbours make tempi, by their place; those beside a key before all others."""
    beside_key, others = {}, {}
    edges = {found.first - 1 for found in keys} | {found.last + 1 for found in keys}
    for i, word in enumerate(words[:-1]):
        bpm, before, after = word.number, words[i - 1].lower if i else "", words[i + 1]
        if bpm is None or not _BARE.fullmatch(word.text):
            continue
        if after.number == 2 * bpm >= 2 * _SLOWEST_BARE and after.before in _TO and words[i + 2].lower not in _UNITS:
            others[i + 1] = 2 * bpm  # half and double of one tempo
        if (
            not _SLOWEST_BARE <= bpm <= _FASTEST_BARE
            or before.rstrip("0123456789") in _BEFORE_AN_INDEX
            or before in _BEFORE_A_MODEL
            or after.lower in _UNITS
            or after.before.startswith("%")
            or word.before in ("'", ".", ":")
        ):
            continue
        underscored = (i == 0 or "_" in word.before) and "_" in after.before
        loop_follows = any(other.lower.endswith("loop") for other in words[i + 1 : i + 5])
        counted = any(other.lower in _MANY for other in words[i + 1 : i + 4])
        if i in edges:
            beside_key[i] = bpm
        elif (underscored and (keys or loop_follows or before.endswith("loop"))) or (
            after.lower in _RHYTHM and not counted
        ):
            others[i] = bpm
    return beside_key or others


def _keys(words: list[_Word], tempi: set[int]) -> list[_Key]:
    """Every key that the name spells out."""
    found = []
    for i, word in enumerate(words[:-1]):
        text, after = word.text, words[i + 1]
        before = words[i - 1].lower if i else ""
        of = before == "of" and i > 1 and words[i - 2].lower == "key"
        short, long, note = _SHORT_KEY.fullmatch(text), _LONG_KEY.fullmatch(text), _NOTE.fullmatch(text)
        article = text == "a" and after.before == " " and before not in ("of", "in", "key")
        if short and not _is_english(words, i):
            found.append(_Key(i, i, key_name(pitch_class(short[1], short[2]), "minor")))
        elif long:
            found.append(_Key(i, i, key_name(pitch_class(long[1], long[2]), _MODES[long[3].lower()])))
        elif note and after.lower in _MODES and len(after.before) == 1 and not article:
            if words[i + 2].text in ("7", "9", "11", "13"):
                continue  # a chord
            found.append(_Key(i, i + 1, key_name(pitch_class(note[1], note[2]), _MODES[after.lower])))
        elif note and of:
            found.append(_Key(i, i, key_name(pitch_class(note[1], note[2]), "major")))
        elif (camelot := _CAMELOT.fullmatch(text)) and _is_camelot(words, i, int(camelot[1]), tempi):
            found.append(_Key(i, i, key_name(*wheel_key(int(camelot[1]), camelot[2] == "A", start=8))))
    return found


def _is_english(words: list[_Word], i: int) -> bool:
    """Whether "Am" or "Em" is a word of a title."""
    before = words[i - 1] if i else _Word("", "")
    spaced = words[i].before == " "
    if words[i].text == "Am":
        hour = spaced and before.number is not None and before.number <= 12 and not before.text.startswith("0")
        return hour or "i" in (before.lower, words[i + 1].lower)
    return words[i].text == "Em" and spaced and before.lower in _BEFORE_EM


def _is_camelot(words: list[_Word], i: int, number: int, tempi: set[int]) -> bool:
    """Whether "8A" is a key: takes are counted so too, but seldom to seven."""
    if i and words[i - 1].lower in _BEFORE_AN_INDEX:
        return False
    start, end = words[i].before, words[i + 1].before
    bracketed = start[-1:] in ("(", "[") and end[:1] in (")", "]")
    return number >= 7 or _beside(words, i, tempi) or bracketed or (i == 0 and " - " in end)


def _beside(words: list[_Word], i: int, tempi: set[int]) -> bool:
    """Whether word `i` stands beside the number of a tempo, or beside its "bpm"."""
    return i - 1 in tempi or i + 1 in tempi or (i > 1 and words[i - 1].lower == "bpm" and i - 2 in tempi)


def _roots(words: list[_Word], tempi: set[int]) -> set[int]:
    """Pitch classes of letters without a mode, where they are no mere letters."""
    found = set()
    last = len(words) - 2
    for i, word in enumerate(words[:-1]):
        note = _NOTE.fullmatch(word.text)
        if note is None or not word.text[0].isupper():
            continue
        closing = i == last >= 2 and word.text in "CDEFG" and word.before == words[i - 1].before == "_"
        told = note[2] == "#" or (note[2] == "b" and i == last)  # "Bb Clarinet" is an instrument
        if told or closing or _beside(words, i, tempi):
            found.add(pitch_class(note[1], note[2]))
    return found


def _kind(words: list[_Word]) -> Kind | None:
    bare = [word.lower.rstrip("0123456789") for word in words]
    shot = any(word in ("oneshot", "oneshots") for word in bare) or any(
        first == "one" and second in ("shot", "shots") for first, second in itertools.pairwise(bare)
    )
    loop = any(word.endswith(("loop", "loops")) for word in bare)
    return None if shot == loop else "loop" if loop else "one-shot"
