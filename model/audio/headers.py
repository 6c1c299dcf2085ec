"""What headers say of sizes and decoders hide: that a file was cut off, or does not know how long it is."""

import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

from model.audio.formats import W64, AudioFormat

STREAMED = 0x7FFF_0000
"""Recorders that cannot seek back leave a size from here upwards, up to 0xFFFFFFFF."""

SPEAKERS = ("FL", "FR", "FC", "LFE", "BL", "BR", "FLC", "FRC", "BC", "SL", "SR")
"""FFmpeg's names of the places that the mask of a WAV file may name, by bit; what is beyond is nowhere near."""

_MOST_CHUNKS = 512  # takes of long broadcast recordings have a few dozen
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
    to be read in the place of a size that is a lie, by where they stand. `untold`: it does not tell the size.
    `unfilled`: where chunks of odd length end and no byte fills them up, though another follows."""

    present: float = 1.0
    channels: int | None = None
    places: tuple[str, ...] = ()
    mended: dict[int, bytes] = field(default_factory=dict)
    untold: bool = False
    unfilled: list[int] = field(default_factory=list)


class Chunk(NamedTuple):
    """Of an IFF or CAF file. `size`: bytes of it that are in the file, of those stated."""

    name: bytes
    start: int
    size: int
    stated: int


def places_of(kind: AudioFormat, channels: int) -> tuple[str, ...]:
    """Where the channels of a FLAC or Ogg file stand; nothing where their number does not tell."""
    return tuple({"flac": _FLAC_PLACES}.get(kind, _OGG_PLACES).get(channels, "").split())


def read_header(file: BinaryIO, kind: AudioFormat, size: int) -> Header:
    """Walk the chunks of a WAV or AIFF file up to its audio."""
    header, long_size, odd_end = Header(), None, 0
    file.seek(0)
    head = file.read(16)
    if head == W64:
        return _w64_header(file, size)
    if head[:4] == b"BW64":  # ITU-R BS.2088: RF64 by another name, which libsndfile does not know
        header.mended[0] = b"RF64"
    order = ">" if kind == "aiff" else "<"
    for chunk in chunks_of(file, size, order + "I"):
        if chunk.start - 8 == odd_end:
            header.unfilled.append(odd_end)
        odd_end = chunk.start + chunk.size if chunk.stated % 2 else 0
        file.seek(chunk.start)
        body = file.read(min(chunk.size, 24))
        if chunk.name == b"fmt " and len(body) >= 4:
            header.channels = struct.unpack("<H", body[2:4])[0]
            if body[:2] == b"\xfe\xff" and chunk.stated >= 40:
                mask = int.from_bytes(body[20:24], "little")
                header.places = tuple(place for bit, place in enumerate(SPEAKERS) if mask >> bit & 1)
        elif chunk.name == b"COMM" and len(body) >= 2:
            header.channels = struct.unpack(">H", body[:2])[0]
        elif chunk.name == b"ds64" and len(body) >= 16:
            long_size = chunk.start + 8, int(struct.unpack("<Q", body[8:16])[0])
        elif chunk.name in (b"data", b"SSND"):
            there = size - chunk.start
            where, declared = (chunk.start - 4, chunk.stated) if long_size is None else long_size
            if there < declared:
                header.untold = declared >= (STREAMED if long_size is None else _NO_SIZE)
            elif there > declared:
                header.untold = not _ends_at(file, order, chunk.start + declared, size, trusted=declared > 0)
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
        data = next((chunk for chunk in chunks_of(file, size, ">q", 8) if chunk.name == b"data"), None)
        declared = data.start + data.stated if data is not None and data.stated > 0 else 0
    elif kind == "dsf":
        declared = int.from_bytes(head[12:20], "little")
    elif kind == "dsdiff":
        declared = 12 + int.from_bytes(head[4:12], "big")
    elif kind == "au" and head[8:12] != b"\xff\xff\xff\xff":
        declared = int.from_bytes(head[4:8], "big") + int.from_bytes(head[8:12], "big")
    elif kind == "wma" and (at := head.find(_ASF_FILE)) > 0:
        declared = int.from_bytes(head[at + 40 : at + 48], "little")
    return size / declared if size < declared < _NO_SIZE else 1.0


def chunks_of(
    file: BinaryIO, end: int, size_format: str, at: int = 12, warn: Callable[[str], None] = lambda _: None
) -> Iterator[Chunk]:
    """Chunk after chunk of a WAV, AIFF or CAF file from `at`; the first two pad theirs to even lengths, but not every
    writer does it."""
    width = 4 + struct.calcsize(size_format)
    iff = width == 8
    long_data = 0  # RF64 writes the length of its data apart
    for _ in range(_MOST_CHUNKS):
        file.seek(at)
        header = file.read(width)
        if len(header) < width:
            return
        name, (stated,) = header[:4], struct.unpack(size_format, header[4:])
        start = at + width
        if name == b"data" and stated == 0xFFFFFFFF and long_data:
            stated = long_data
        left = max(0, end - start)
        size = left if stated < 0 else min(stated, left)  # CAF: -1 is "to the end"
        if name == b"ds64" and size >= 24:
            (long_data,) = struct.unpack("<8xQ8x", file.read(24))
        yield Chunk(name, start, size, stated)
        at = start + size
        if iff and stated % 2 and (_is_chunk(file, at + 1, end, size_format) or not _is_name(file, at)):
            at += 1
        if at >= end:
            return
    warn(f"more than {_MOST_CHUNKS} chunks: the others are not read")


def _is_chunk(file: BinaryIO, at: int, end: int, size_format: str) -> bool:
    """Whether a chunk begins there, name and size, and ends within the file."""
    if not _is_name(file, at) or len(size := file.read(4)) < 4:
        return False
    return bool(struct.unpack(size_format, size)[0] <= end - at - 8)


def _is_name(file: BinaryIO, at: int) -> bool:
    """Whether a chunk's name stands there: printable, unlike the zero that pads."""
    file.seek(at)
    name = file.read(4)
    return len(name) == 4 and all(0x20 <= byte < 0x7F for byte in name)


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
        (length,) = struct.unpack(order + "4xI", chunk)
        if _is_name(file, start) and start + 8 + length <= size + 1:
            return True
    return False


def ogg_end(file: BinaryIO, size: int) -> tuple[bool, bool]:
    """Whether the last Ogg page is whole and marked as the last: libsndfile measures what is there and asks no more.
    And whether it is of another recording than the file begins with, which libsndfile does not read."""
    first = set()
    file.seek(0)
    while len(page := file.read(27)) == 27 and page[5] & 2:  # all streams of a recording begin before any goes on
        first.add(page[14:18])
        file.seek(sum(file.read(page[26])), io.SEEK_CUR)
    tail = min(size, 2 * 65_307)  # twice the largest page
    file.seek(size - tail)
    data = file.read(tail)
    at = data.rfind(b"OggS")
    if at < 0 or at + 27 > len(data):
        return False, False
    segments = data[at + 27 : at + 27 + data[at + 26]]
    whole = at + 27 + data[at + 26] + sum(segments) <= len(data)
    return bool(data[at + 5] & 4) and whole, data[at + 14 : at + 18] not in first


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


class Filled:
    """A file that reads as if a zero stood before each of some bytes, which are told in order."""

    def __init__(self, file: BinaryIO | Mended, before: list[int]) -> None:
        self._file = file
        self._zeros = [at + earlier for earlier, at in enumerate(before)]
        self._at = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            offset += self._file.seek(0, io.SEEK_END) + len(self._zeros)
        elif whence == io.SEEK_CUR:
            offset += self._at
        if offset < 0:
            raise ValueError(offset)
        self._at = offset
        return offset

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        data, end = b"", self._at + size
        while self._at < end:
            earlier = sum(zero < self._at for zero in self._zeros)
            if self._at in self._zeros:
                piece = b"\0"
            else:
                self._file.seek(self._at - earlier)
                piece = self._file.read(min([end, *self._zeros[earlier:]]) - self._at)
            if not piece:
                break
            data += piece
            self._at += len(piece)
        return data


class FromStart:
    """A file in which nobody goes before its start: in a damaged one libsndfile would, and soundfile has no way to tell
    it that it cannot. The file stays where it is."""

    def __init__(self, file: BinaryIO | Mended | Filled) -> None:
        self._file = file

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (ValueError, OSError):
            return self._file.tell()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
