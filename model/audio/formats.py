"""The format of a file, by its first bytes."""

from typing import TYPE_CHECKING, BinaryIO, Literal

if TYPE_CHECKING:
    pass  # FFmpeg's dozens of libraries are loaded where a file needs them


AudioFormat = Literal["wav", "flac", "ogg", "opus", "mp3", "aiff", "m4a", "aac"]
# libsndfile: everything but MP4, raw AAC and MP3. It does read MP3, but breaks the small frames of variable bit rate:
# see docs/decisions/mp3-by-ffmpeg.md.

W64 = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"


def sniff_format(file: BinaryIO) -> AudioFormat | None:
    """Tell the format by the file's first bytes (behind ID3 tags, if any); None: none that we read."""
    start = after_tags(file)
    file.seek(start)
    head = file.read(64)
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return "wav"
    if head[:16] == W64:
        return "wav"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[:4] == b"fLaC":
        return "flac"
    if head[:4] == b"OggS":
        return "opus" if head[28:36] == b"OpusHead" else "ogg"
    if head[4:8] == b"ftyp":
        return "m4a"
    if len(head) >= 4 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        if head[1] & 0xF6 == 0xF0:  # ADTS: twelve ones, layer 0
            return "aac"
        version, layer, bitrate, rate = head[1] >> 3 & 3, head[1] >> 1 & 3, head[2] >> 4, head[2] >> 2 & 3
        # Layer I is left out: nobody sends it, and the byte order mark of UTF-16 text looks like it.
        if version != 1 and layer in (1, 2) and bitrate != 15 and rate != 3:
            return "mp3"
    return "mp3" if start else None


def needs_ffmpeg(head: bytes) -> bool:
    """Whether a file with these first 16 bytes may be one that FFmpeg decodes; all others libsndfile does."""
    return bool(head) and head[:4] not in (b"RIFF", b"RF64", b"FORM", b"fLaC", b"OggS") and head[:16] != W64


def after_tags(file: BinaryIO) -> int:
    """Where the file begins behind its ID3v2 tags, bytes."""
    start = 0
    while True:
        file.seek(start)
        head = file.read(10)
        if head[:3] != b"ID3" or len(head) < 10:
            return start
        a, b, c, d = head[6:]
        start += 10 + (a << 21 | b << 14 | c << 7 | d) + (10 if head[5] & 0x10 else 0)
