"""What chunks of WAV, RF64, AIFF and CAF files say of their music: `acid`, `smpl`, `basc`, and Apple Loops' strings.

Only headers and these few small chunks are read. Nobody published `acid` and `basc`: their layouts are those that
libsndfile, JUCE and GStreamer read. `smpl` is Microsoft's and IBM's, CAF Apple's specification.
"""

from __future__ import annotations

import math
import os
import re
import struct
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from model.audio.harmony import key_name
from model.audio.headers import Chunk, chunks_of
from model.audio.said.facts import MOST_BEATS, ROUNDING_BPM, Kind, Said, is_tempo, key_parts, said_by, tempo_of_text

_MOST_BYTES = 64 * 1024  # of one chunk
_APPLE_LOOP = bytes.fromhex("29819273b5bf4aefb78d62d1ef90bb2c")  # the uuid of the chunk with a loop's strings
_UNSET_NOTES = (0, 60)  # writers of `smpl` put one of them where they know no note
_MINIMUM_LOOP_SECONDS = 1.0  # shorter ones are an oscillator's periods


@dataclass
class _Findings:
    """What is gathered while chunks go by."""

    tempo_bpm: float | None = None
    beats: float | None = None
    key: str | None = None
    root: int | None = None
    kind: Kind | None = None
    seconds: float | None = None
    warnings: list[str] = field(default_factory=list)

    def warn(self, warning: str) -> None:
        if len(self.warnings) < 16:
            self.warnings.append(warning)


def said_of_chunks(file: BinaryIO) -> Said:
    """Read what a WAV, RF64 (BW64), AIFF, AIFF-C or CAF file's chunks say; nothing of any other file.

    An `acid` or `smpl` note becomes `root`, never `key`: it has no mode. A tempo that `acid` states without beats is
    its project's and is not taken. Where beats and length contradict a stated tempo, the tempo is taken and the beats
    are not: a tail or a cut changes the length. `basc` and CAF state no tempo; it follows from beats and length.

    Args:
        file: seekable; read from its start, left anywhere.

    Returns:
        `warnings` name each chunk that is cut short, or whose numbers no music has; those are not taken.

    Raises:
        OSError: it cannot be read.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    found = _Findings()
    if head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:] == b"WAVE":
        _read_wav(file, end, found)
    elif head[:4] == b"FORM" and head[8:] in (b"AIFF", b"AIFC"):
        _read_aiff(file, end, found)
    elif head[:4] == b"caff":
        _read_caf(file, end, found)
    _settle(found)
    facts = Said(found.tempo_bpm, found.beats, found.key, found.root, found.kind, warnings=tuple(found.warnings))
    return said_by("chunk", facts)


def chunk_within(file: BinaryIO, names: tuple[bytes, ...]) -> tuple[int, int] | None:
    """Start and size of a WAV's or AIFF's first chunk of one of `names`; None: no such file, or no such chunk."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if head[8:] not in (b"WAVE", b"AIFF", b"AIFC"):
        return None
    for chunk in chunks_of(file, end, "<I" if head[8:] == b"WAVE" else ">I"):
        if chunk.name in names:
            return chunk.start, chunk.size
    return None


def _body(file: BinaryIO, chunk: Chunk, needed: int, found: _Findings) -> bytes | None:
    """A chunk's first `needed` bytes; None, with a warning, if it has fewer."""
    name = chunk.name.decode("ascii", "replace").strip()
    if chunk.size < max(chunk.stated, needed):
        found.warn(f"its {name} chunk is cut short: {chunk.size} bytes of {max(chunk.stated, needed)}")
        return None
    file.seek(chunk.start)
    return file.read(needed)


def _unpack(file: BinaryIO, chunk: Chunk, layout: str) -> tuple[Any, ...]:
    file.seek(chunk.start)
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _read_wav(file: BinaryIO, end: int, found: _Findings) -> None:
    rate, block, frames, is_pcm = 0, 0, None, False
    data_size, loop = None, None
    for chunk in chunks_of(file, end, "<I", warn=found.warn):
        if chunk.name == b"fmt " and chunk.size >= 16:
            kind, _, rate, _, block, _ = _unpack(file, chunk, "<HHIIHH")
            is_pcm = kind in (1, 3, 0xFFFE)
        elif chunk.name == b"fact" and chunk.size >= 4:
            (frames,) = _unpack(file, chunk, "<I")
        elif chunk.name == b"data" and data_size is None:
            data_size = chunk.size
        elif chunk.name == b"acid" and (body := _body(file, chunk, 24, found)):
            _take_acid(body, found)
        elif chunk.name == b"smpl" and (body := _body(file, chunk, 36, found)):
            loop = _take_smpl(file, chunk, body, found) or loop
    if is_pcm and block and data_size is not None:
        frames = data_size // block
    if rate and frames and (is_pcm or frames != 0xFFFFFFFF):
        found.seconds = frames / rate
        if loop in ((0, frames - 1), (0, frames)) and found.kind is None and found.seconds >= _MINIMUM_LOOP_SECONDS:
            found.kind = "loop"


def _take_acid(body: bytes, found: _Findings) -> None:
    flags, note, _, _, beats, _, _, tempo = struct.unpack("<IHHfIHHf", body)
    one_shot, has_note, on_disk = flags & 1, flags & 2, flags & 8
    if has_note:
        if note <= 127:
            found.root = note % 12
        else:
            found.warn(f"its acid chunk has root note {note}, which is no MIDI note")
    if one_shot:
        found.kind = "one-shot"
        return  # beats and tempo are then its project's
    if not 1 <= beats <= MOST_BEATS:
        found.warn(f"its acid chunk counts {beats} beats, so its tempo of {tempo:g} BPM is not believed")
        return
    found.beats = float(beats)
    found.kind = None if on_disk else "loop"
    if is_tempo(tempo):
        found.tempo_bpm = tempo
    else:
        found.warn(f"its acid chunk has a tempo of {tempo:g} BPM")


def _take_smpl(file: BinaryIO, chunk: Chunk, body: bytes, found: _Findings) -> tuple[int, int] | None:
    """The first and last frame of the sampler's loop, if it has one."""
    note, loops = struct.unpack("<12xI12xI4x", body)
    if note > 127:
        found.warn(f"its smpl chunk has unity note {note}, which is no MIDI note")
    elif note not in _UNSET_NOTES and found.root is None:
        found.root = note % 12
    if not loops or chunk.size < 60:
        return None
    kind, start, last = _unpack(file, chunk, "<40xIII8x")
    return (start, last) if kind == 0 else None  # 0: forward


def _read_aiff(file: BinaryIO, end: int, found: _Findings) -> None:
    for chunk in chunks_of(file, end, ">I", warn=found.warn):
        if chunk.name == b"COMM" and chunk.size >= 18:
            frames, exponent, mantissa = _unpack(file, chunk, ">2xI2xHQ")
            rate = math.ldexp(mantissa, min(exponent, 0x4040) - 0x3FFF - 63)
            found.seconds = frames / rate if rate >= 1 else None
        elif chunk.name == b"basc" and (body := _body(file, chunk, 18, found)):
            _take_basc(body, found)


def _take_basc(body: bytes, found: _Findings) -> None:
    beats, note, scale, _, unit, kind = struct.unpack(">4xI5H", body)
    if note > 127:
        found.warn(f"its basc chunk has root note {note}, which is no MIDI note")
    elif note:
        found.root = note % 12
        mode = {1: "minor", 2: "major"}.get(scale)
        found.key = key_name(found.root, mode) if mode else None
    if kind == 2:  # readers differ on what 0 and 1 mean, and one-shots have no beats
        found.kind = "one-shot"
    elif beats:
        _take_beats("basc", beats, unit, found)


def _take_beats(name: str, beats: int, unit: int, found: _Findings) -> None:
    """An Apple Loop's beats; `unit` is the lower number of its metre, in which they are counted."""
    if unit not in (1, 2, 4, 8, 16, 32):
        found.warn(f"its {name} chunk counts beats of a 1/{unit} note")
    elif beats * 4 / unit > MOST_BEATS:
        found.warn(f"its {name} chunk counts {beats} beats")
    else:
        found.beats = beats * 4 / unit
        found.kind = "loop"


def _read_caf(file: BinaryIO, end: int, found: _Findings) -> None:
    rate, packet_bytes, packet_frames, frames, data_size = 0.0, 0, 0, 0, 0
    info: dict[str, str] = {}
    loop: dict[str, str] = {}
    for chunk in chunks_of(file, end, ">q", 8, warn=found.warn):
        if chunk.name == b"desc" and chunk.size >= 32:
            rate, packet_bytes, packet_frames = _unpack(file, chunk, ">d8xII8x")
        elif chunk.name == b"pakt" and chunk.size >= 24:
            (frames,) = _unpack(file, chunk, ">8xq8x")
        elif chunk.name == b"data" and chunk.size >= 4:
            data_size = chunk.size - 4  # an edit count precedes the audio
        elif chunk.name in (b"info", b"uuid") and 4 <= chunk.size <= _MOST_BYTES:
            body = _body(file, chunk, chunk.size, found) or b""
            if chunk.name == b"info":
                info = _strings(body)
            elif body[:16] == _APPLE_LOOP:
                loop = _strings(body[16:])
    if packet_bytes and packet_frames:
        frames = data_size // packet_bytes * packet_frames
    if math.isfinite(rate) and rate >= 1 and frames > 0:
        found.seconds = frames / rate
    _take_strings({**info, **loop}, found)


def _strings(body: bytes) -> dict[str, str]:
    """Pairs of NUL-ended UTF-8 strings, the number of pairs before them."""
    words = body[4:].decode("utf-8", "replace").split("\0")
    return {key.lower(): value for key, value in zip(words[::2], words[1::2], strict=False)}


def _take_strings(strings: dict[str, str], found: _Findings) -> None:
    signature, scale = strings.get("key signature", ""), strings.get("key type", "").lower()
    try:
        key = key_parts(signature)
    except ValueError:
        found.warn(f"its key signature {signature[:40]!r} is none")
    else:
        if key is not None:
            found.root = key[0]
            mode = scale if scale in ("major", "minor") else key[1]
            found.key = key_name(found.root, mode) if mode else None
    try:
        found.tempo_bpm = tempo_of_text(strings.get("tempo", ""))
    except ValueError as error:
        found.warn(f"of its tempo: {error}")
    beats, unit = (
        strings.get("beat count", "0").strip(),
        strings.get("time signature", "4/4").rpartition("/")[2].strip(),
    )
    if not re.fullmatch("[0-9]{1,9} [0-9]{1,4}", f"{beats} {unit}"):
        found.warn(f"its beat count {beats[:40]!r} is none")
    elif int(beats):
        _take_beats("Apple Loop", int(beats), int(unit), found)


def _settle(found: _Findings) -> None:
    """Hold tempo, beats and length against each other."""
    if found.beats is None or not found.seconds:
        return
    held = 60 * found.beats / found.seconds
    if found.tempo_bpm is None:
        if is_tempo(held):
            found.tempo_bpm = held
        else:
            found.warn(f"{found.beats:g} beats in {found.seconds:.3f} s are no tempo")
            found.beats = None
    elif abs(held - found.tempo_bpm) > ROUNDING_BPM:
        found.warn(f"{found.beats:g} beats in {found.seconds:.3f} s are not its {found.tempo_bpm:g} BPM")
        found.beats = None
