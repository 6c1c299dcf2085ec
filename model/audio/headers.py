"""What headers say of sizes and decoders hide: that a file was cut off, or does not know how long it is."""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from model.audio.formats import W64, AudioFormat

STREAMED = 0x7FFF_0000
"""Recorders that cannot seek back leave a size from here upwards, up to 0xFFFFFFFF."""

SPEAKERS = ("FL", "FR", "FC", "LFE", "BL", "BR", "FLC", "FRC", "BC", "SL", "SR")
"""FFmpeg's names of the places that the mask of a WAV file may name, by bit; what is beyond is nowhere near."""

_NO_SIZE = 2**62  # of 64 bits: no file is as large
_ASF_FILE = b"\xa1\xdc\xab\x8c\x47\xa9\xcf\x11\x8e\xe4\x00\xc0\x0c\x20\x53\x65"
_W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"

# Where channels stand in FLAC and in Vorbis and Opus, by their number.
_FLAC_PLACES = {
    3: "FL FR FC", 4: "FL FR BL BR", 5: "FL FR FC BL BR", 6: "FL FR FC LFE BL BR", 7: "FL FR FC LFE BC SL SR",
    8: "FL FR FC LFE BL BR SL SR",
}  # fmt: skip
_OGG_PLACES = {
    3: "FL FC FR", 4: "FL FR BL BR", 5: "FL FC FR BL BR", 6: "FL FC FR BL BR LFE", 7: "FL FC FR SL SR BC LFE",
    8: "FL FC FR SL SR BL BR LFE",
}  # fmt: skip


@dataclass
class Header:
    """`present`: which part of the audio bytes that it declares the file has, 1 when it does not tell. `mended`: bytes
    to be read in the place of a size that is a lie, by where they stand. `untold`: it does not tell the size."""

    present: float = 1.0
    channels: int | None = None
    places: tuple[str, ...] = ()
    mended: dict[int, bytes] = field(default_factory=dict)
    untold: bool = False


def places_of(kind: AudioFormat, channels: int) -> tuple[str, ...]:
    """Where the channels of a FLAC or Ogg file stand; nothing where their number does not tell."""
    return tuple({"flac": _FLAC_PLACES}.get(kind, _OGG_PLACES).get(channels, "").split())


def read_header(file: BinaryIO, kind: AudioFormat, size: int) -> Header:
    """Walk the chunks of a WAV or AIFF file up to its audio."""
    header, long_size = Header(), None
    file.seek(0)
    if file.read(16) == W64:
        return _w64_header(file, size)
    order = ">" if kind == "aiff" else "<"
    for at, name, length, chunk in _chunks(file, order, size):
        if name == b"fmt " and len(chunk) >= 12:
            header.channels = struct.unpack("<H", chunk[10:12])[0]
            if chunk[8:10] == b"\xfe\xff" and length >= 40:
                mask = int.from_bytes(chunk[28:32], "little")
                header.places = tuple(place for bit, place in enumerate(SPEAKERS) if mask >> bit & 1)
        elif name == b"COMM" and len(chunk) >= 10:
            header.channels = struct.unpack(">H", chunk[8:10])[0]
        elif name == b"ds64" and len(chunk) >= 24:
            long_size = at + 16, int(struct.unpack("<Q", chunk[16:24])[0])
        elif name in (b"data", b"SSND"):
            there = size - at - 8
            where, declared = (at + 4, length) if long_size is None else long_size
            if there < declared:
                header.untold = declared >= (STREAMED if long_size is None else _NO_SIZE)
            elif there > declared:
                header.untold = not _ends_at(file, order, at + 8 + declared, size, trusted=declared > 0)
            if 0 < there < declared:
                header.present = 1.0 if header.untold else there / declared
            if header.untold:
                header.mended[where] = struct.pack(order + ("I" if long_size is None else "Q"), there)
            break
    return header


def present_of(file: BinaryIO, kind: AudioFormat, head: bytes, size: int) -> float:
    """Which part of the bytes that its header declares a file has, of a format whose demuxer does not tell; else 1."""
    declared = 0
    if kind == "wav":
        return read_header(file, kind, size).present
    if kind == "caf":
        at = 8
        for _ in range(1000):
            file.seek(at)
            name, length = struct.unpack(">4sq", file.read(12).ljust(12, b"\0"))
            at += 12 + length
            if name == b"data" or not 0 < length < size:
                declared = at if name == b"data" and length > 0 else 0
                break
    elif kind == "dsf":
        declared = int.from_bytes(head[12:20], "little")
    elif kind == "dsdiff":
        declared = 12 + int.from_bytes(head[4:12], "big")
    elif kind == "au" and head[8:12] != b"\xff\xff\xff\xff":
        declared = int.from_bytes(head[4:8], "big") + int.from_bytes(head[8:12], "big")
    elif kind == "wma" and (at := head.find(_ASF_FILE)) > 0:
        declared = int.from_bytes(head[at + 40 : at + 48], "little")
    return size / declared if size < declared < _NO_SIZE else 1.0


def _chunks(file: BinaryIO, order: str, size: int) -> Iterator[tuple[int, bytes, int, bytes]]:
    """Where each chunk begins, its name, length and first 40 bytes."""
    at = 12
    for _ in range(1000):  # no honest file has more chunks before its audio
        file.seek(at)
        chunk = file.read(48)
        if len(chunk) < 8:
            return
        name, length = struct.unpack(order + "4sI", chunk[:8])
        yield at, name, length, chunk
        at += 8 + length + (length & 1)


def _ends_at(file: BinaryIO, order: str, at: int, size: int, *, trusted: bool) -> bool:
    """Whether audio may well end here: a chunk begins here, or behind a byte that fills up the last one; or the file
    ends, which what it says of its whole size tells too where that is trusted."""
    file.seek(4)
    whole = 8 + int(struct.unpack(order + "I", file.read(4))[0])
    for start in (at, at + 1):
        file.seek(start)
        chunk = file.read(8)
        if len(chunk) < 8 or (trusted and whole == start):
            return True
        name, length = struct.unpack(order + "4sI", chunk)
        if all(0x20 <= letter < 0x7F for letter in name) and start + 8 + length <= size + 1:
            return True
    return False


def _w64_header(file: BinaryIO, size: int) -> Header:
    declared = int.from_bytes(file.read(8), "little")  # of the whole file
    header, at = Header(present=min(size / max(declared, 1), 1.0)), 40
    for _ in range(1000):
        if at > size:
            break
        file.seek(at)
        chunk = file.read(24)
        if len(chunk) < 24:
            break
        (length,) = struct.unpack("<Q", chunk[16:])
        if chunk[:16] == _W64_DATA:
            if length <= 24 < size - at or length >= _NO_SIZE:
                header.mended[at + 16] = struct.pack("<Q", size - at)
                header.present, header.untold = 1.0, True
            break
        at += max(24, length + (-length & 7))
    return header


class Mended:
    """A file that reads as if other bytes stood in some places."""

    def __init__(self, file: BinaryIO, mended: dict[int, bytes]) -> None:
        self._file, self._mended = file, mended

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        at = self._file.tell()
        data = self._file.read(size)
        for start, instead in self._mended.items():
            if at < start + len(instead) and start < at + len(data):
                whole = bytearray(data)
                for offset, byte in enumerate(instead, start - at):
                    if 0 <= offset < len(whole):
                        whole[offset] = byte
                data = bytes(whole)
        return data


class FromStart:
    """A file in which nobody goes before its start: in a damaged one libsndfile would, and soundfile has no way to tell
    it that it cannot. The file stays where it is."""

    def __init__(self, file: BinaryIO | Mended) -> None:
        self._file = file

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (ValueError, OSError):
            return self._file.tell()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
