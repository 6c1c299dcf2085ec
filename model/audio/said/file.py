"""What a file says of its music - tempo, beats, key, loop or one-shot - in its tags, its chunks and its name.

Believed in this order; what the user says comes before all of it, and what is heard after, elsewhere.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from tinytag import TinyTag, TinyTagException, UnsupportedFormatError

from model.audio.said.chunks import chunk_within, said_of_chunks
from model.audio.said.facts import (
    FACTS,
    LONGEST_LOOP_BEATS,
    ROUNDING_BPM,
    Said,
    is_tempo,
    key_of_text,
    key_parts,
    note_name,
    said_by,
    tempo_of_text,
    written_alike,
)
from model.audio.said.name import said_of_name
from model.audio.said.ogg import ogg_comments

T = TypeVar("T")
_TEMPO_TAGS = ("bpm", "tempo")
_KEY_TAGS = ("initial_key", "initialkey", "key")  # TKEY, TXXX:initialkey and Vorbis INITIALKEY, KEY
_MOST_BYTES, _MOST_READS = 4 * 1024 * 1024, 4_000  # for a tag reader: a cover within, not a file of tiny tags
_WRITTEN_BPM = 0.005  # half of the second decimal, which is the last that tools write of a tempo
_CUT_SECONDS = 0.00025  # two samples of 8 kHz: writers cut a loop at a whole sample, and a resampler at one of its own


_THE = {"said": "it was uploaded as", "tags": "its tags say", "chunk": "its chunks say", "name": "its name says"}


class _Spent(Exception):
    """A tag reader took more than a tag is worth."""


class _Part(io.RawIOBase):
    """A part of a file as a file, that may be read only so much and so often."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0
        self._bytes, self._reads = _MOST_BYTES, _MOST_READS

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self._at)
        size = left if size is None or size < 0 else min(size, left)
        self._bytes -= size
        self._reads -= 1
        if self._bytes < 0 or self._reads < 0:
            raise _Spent
        self._file.seek(self._start + self._at)
        got = self._file.read(size)
        self._at += len(got)
        return got

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._reads -= 1
        if self._reads < 0:
            raise _Spent
        at = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence] + offset
        if at < 0:
            raise OSError("before the start")
        self._at = at
        return at

    def tell(self) -> int:
        return self._at


def said_of_tags(file: BinaryIO) -> Said:
    """Read a file's tags: ID3 (also a WAV's and an AIFF's), Vorbis comments, MP4, WMA.

    By tinytag, which is given up after 4 MiB or 4,000 reads; Ogg's comments by ours.

    Args:
        file: seekable; left anywhere.

    Returns:
        tempo_bpm and key of TBPM, BPM, TEMPO, tmpo and TKEY, INITIALKEY, KEY. `warnings` name a value that is neither a
        tempo nor a key, and tags that cannot be read; a tempo of 0 and the key "o" say nothing.

    Raises:
        OSError: the file cannot be read.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start, head = 0, file.read(12)
    if head[:4] in (b"RIFF", b"RF64", b"BW64", b"FORM"):
        within = chunk_within(file, (b"id3 ", b"ID3 "))
        if within is None:
            return Said()
        start, size = within
    part = cast(BinaryIO, _Part(file, start, size))
    try:
        tags = (
            ogg_comments(part, (*_TEMPO_TAGS, *_KEY_TAGS))
            if head[:4] == b"OggS"
            else TinyTag.get(file_obj=part, duration=False).other
        )
    except UnsupportedFormatError:
        return Said()
    except TinyTagException:
        return Said(warnings=("its tags cannot be read",))
    warnings: list[str] = []
    tempo = _first(tempo_of_text, (text for tag in _TEMPO_TAGS for text in tags.get(tag, ())), warnings)
    key = _first(key_of_text, (text for tag in _KEY_TAGS for text in tags.get(tag, ())), warnings)
    return said_by("tags", Said(tempo_bpm=tempo, key=key, warnings=tuple(warnings)))


def _first(read: Callable[[str], T | None], texts: Iterable[str], warnings: list[str]) -> T | None:
    """What the first text says that says anything."""
    for text in list(texts)[:8]:
        try:
            value = read(text)
        except ValueError as error:
            warnings.append(f"its tags: {error}")
        else:
            if value is not None:
                return value
    return None


def said_of_file(path: str | os.PathLike[str], name: str | None = None) -> Said:
    """Read all that a file says, tags before chunks before name; see `joined`.

    Args:
        path: the file.
        name: its name, where the file is not stored under it.

    Raises:
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as file:
        sources = [said_of_tags(file), said_of_chunks(file), said_of_name(Path(path).name if name is None else name)]
    return joined(sources)


def joined(sources: Sequence[Said]) -> Said:
    """Take each fact from the first source that has it.

    Returns:
        `warnings` hold those of all sources, and where two contradict each other: tempi that are neither the same nor
        an octave apart, keys, a key and a root note, loop and one-shot. The first in order is taken.
    """
    whole, warnings = Said(), [warning for said in sources for warning in said.warnings]
    for said in sources:
        warnings += _contradictions(whole, said)
        new = [fact for fact in FACTS if getattr(whole, fact) is None and getattr(said, fact) is not None]
        whole = replace(
            whole,
            sources={**whole.sources, **{fact: said.sources[fact] for fact in new}},
            **{fact: getattr(said, fact) for fact in new},
        )
    return replace(whole, warnings=tuple(warnings))


def _contradictions(first: Said, second: Said) -> list[str]:
    """What `second` says otherwise than `first`, which is believed."""
    told: list[tuple[str, str, str, str]] = []
    if first.tempo_bpm and second.tempo_bpm and not written_alike(first.tempo_bpm, second.tempo_bpm):
        told.append(("tempo_bpm", f"{first.tempo_bpm:.5g} BPM", "tempo_bpm", f"{second.tempo_bpm:.5g} BPM"))
    if first.key and second.key and first.key != second.key:
        told.append(("key", first.key, "key", second.key))
    elif first.key and second.root is not None and _tonic(first.key) != second.root:
        told.append(("key", first.key, "root", f"a root note of {note_name(second.root)}"))
    elif first.root is not None and second.key and _tonic(second.key) != first.root:
        told.append(("root", f"a root note of {note_name(first.root)}", "key", second.key))
    if first.kind and second.kind and first.kind != second.kind:
        told.append(("kind", first.kind, "kind", second.kind))
    return [f"{_THE[first.sources[a]]} {believed}, {_THE[second.sources[b]]} {other}" for a, believed, b, other in told]


def _tonic(key: str) -> int | None:
    parts = key_parts(key)
    return None if parts is None else parts[0]


def exact_tempo(seconds: float, said: Said) -> Said:
    """Give a clip that is a whole number of beats long the tempo that makes it so, and its beats.

    Writers cut a loop at a whole sample and round its tempo to two decimals, so a clip is taken as whole where its
    beats at the stated tempo are within that rounding of a whole number: 0.005 BPM over its length, and 0.25 ms; one
    longer than LONGEST_LOOP_BEATS of a whole number of fours, or one song in twenty would be whole by chance. Where
    beats are stated too, and length and beats agree with the tempo within 0.5 BPM (tempi in whole numbers), they are
    believed.

    Args:
        seconds: how long the clip is, from its sample count.
        said: what is said of it.

    Returns:
        `said` with tempo_bpm and beats set, their sources kept; the same where no tempo and no beats are said, of a
        one-shot, and of a clip that is no whole number of beats long.
    """
    if said.kind == "one-shot" or not (math.isfinite(seconds) and seconds > 0):
        return said
    tempo = said.tempo_bpm
    beats = said.beats if said.beats and said.beats == round(said.beats) else None
    if beats is not None and is_tempo(held := 60 * beats / seconds) and abs(held - (tempo or held)) <= ROUNDING_BPM:
        source = said.sources["tempo_bpm" if tempo is not None else "beats"]
    elif tempo is not None:
        bar = 1 if seconds * tempo / 60 <= LONGEST_LOOP_BEATS else 4  # the longer, the more are whole by chance
        beats = float(bar * round(seconds * tempo / 60 / bar))
        slack = (seconds * _WRITTEN_BPM + _CUT_SECONDS * tempo) / 60
        if beats < 1 or abs(seconds * tempo / 60 - beats) > slack:
            return said
        source = said.sources["tempo_bpm"]
    else:
        return said
    return replace(
        said,
        tempo_bpm=60 * beats / seconds,
        beats=beats,
        sources={**said.sources, "tempo_bpm": source, "beats": said.sources.get("beats", source)},
    )
