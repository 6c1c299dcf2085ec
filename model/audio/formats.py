"""The format of a file, by its first bytes, and who decodes it."""

import struct
from typing import BinaryIO, Literal, TypeVar

AudioFormat = Literal[
    "wav", "flac", "ogg", "opus", "mp3", "aiff", "m4a", "aac", "caf", "matroska", "webm", "wavpack", "wma", "ac3",
    "eac3", "dts", "ape", "musepack", "dsf", "dsdiff", "tta", "tak", "au", "amr",
]  # fmt: skip

Name = TypeVar("Name", bound=str)

ENDINGS = frozenset({
    "wav", "wave", "bwf", "rf64", "w64", "flac", "mp3", "mp2", "ogg", "oga", "opus", "aif", "aiff", "aifc", "m4a",
    "m4b", "mp4", "aac", "caf", "mka", "webm", "weba", "wv", "wma", "ac3", "ec3", "eac3", "dts", "ape", "mpc", "dsf",
    "dff", "tta", "tak", "au", "snd", "amr",
})  # fmt: skip
"""What names of audio files end with; those of films, which we read too, are left out: people keep them elsewhere."""

HEAD = 4096
"""As many of a file's first bytes as tell its format, and who decodes it."""

W64 = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
_ASF = b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c"
_EBML = b"\x1a\x45\xdf\xa3"

# In this order; of what begins with more than one mark, all are named: at which byte, and which.
_MARKS: list[tuple[AudioFormat, dict[int, bytes]]] = [
    ("wav", {0: b"RIFF", 8: b"WAVE"}), ("wav", {0: b"RF64", 8: b"WAVE"}), ("wav", {0: b"BW64", 8: b"WAVE"}),
    ("wav", {0: W64}),
    ("aiff", {0: b"FORM", 8: b"AIFF"}), ("aiff", {0: b"FORM", 8: b"AIFC"}),
    ("flac", {0: b"fLaC"}), ("ogg", {0: b"OggS"}),
    *(("m4a", {4: atom}) for atom in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")),
    ("caf", {0: b"caff"}), ("webm", {0: _EBML}), ("wavpack", {0: b"wvpk"}), ("wma", {0: _ASF}),
    ("dts", {0: b"\x7f\xfe\x80\x01"}), ("ape", {0: b"MAC "}), ("musepack", {0: b"MP+"}), ("musepack", {0: b"MPCK"}),
    ("dsf", {0: b"DSD "}), ("dsdiff", {0: b"FRM8", 12: b"DSD "}), ("tta", {0: b"TTA1"}), ("tak", {0: b"tBaK"}),
    ("au", {0: b".snd"}), ("amr", {0: b"#!AMR\n"}), ("amr", {0: b"#!AMR-WB\n"}),
]  # fmt: skip

# What people take for audio, or would like us to read; told by name.
_OTHERS: list[tuple[str, dict[int, bytes]]] = [
    ("a MIDI file, which holds notes and no sound", {0: b"MThd"}),
    ("an AVI film", {0: b"RIFF", 8: b"AVI "}),
    ("a Flash film", {0: b"FLV\x01"}),
    ("an MPEG transport stream", {0: b"\x47", 188: b"\x47"}),
    ("an MPEG film", {0: b"\x00\x00\x01\xba"}),
    ("a RealMedia file", {0: b".RMF"}),
    ("a SoundFont", {0: b"RIFF", 8: b"sfbk"}),
    ("a ReCycle loop (REX)", {0: b"CAT ", 8: b"REX2"}),
    ("an archive; send the files in it", {0: b"PK\x03\x04"}),
    ("an archive; send the files in it", {0: b"Rar!"}),
    ("an archive; send the files in it", {0: b"7z\xbc\xaf\x27\x1c"}),
    ("a picture", {0: b"\x89PNG"}),
    ("a picture", {0: b"\xff\xd8\xff"}),
    ("a PDF", {0: b"%PDF"}),
]

# By FFmpeg, each by the demuxer named and never by its own guess. All others are libsndfile's, which also reads MP3,
# but breaks the small frames of variable bit rate: see docs/decisions/mp3-by-ffmpeg.md.
_DEMUXERS: dict[AudioFormat, str] = {
    "mp3": "mp3", "m4a": "mp4", "aac": "aac", "caf": "caf", "matroska": "matroska", "webm": "matroska", "wavpack": "wv",
    "wma": "asf", "ac3": "ac3", "eac3": "eac3", "dts": "dts", "ape": "ape", "dsf": "dsf", "dsdiff": "iff", "tta": "tta",
    "tak": "tak", "au": "au", "amr": "amr",
}  # fmt: skip
# kbit/s of MPEG 1 by layer (III is 1), and of MPEG 2 and 2.5.
_KBPS_1 = {
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
}
_KBPS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_SOUNDFILE_WAV = {0x1, 0x2, 0x3, 0x6, 0x7, 0x11, 0x31, 0x40, 0x64, 0xFFFE}
"""Codes of the fmt chunk that libsndfile decodes: PCM, ADPCM, float, A-law, mu-law, GSM; the last names another."""


def sniff_format(file: BinaryIO) -> AudioFormat | None:
    """Tell the format by the file's first bytes (behind ID3 tags, if any); None: none that we read."""
    start = after_tags(file)
    file.seek(start)
    return format_of(file.read(HEAD)) or ("mp3" if start else None)


def format_of(head: bytes) -> AudioFormat | None:
    """The format of a file with these first bytes, as `sniff_format` tells it where no tag comes before."""
    kind = _marked(head, _MARKS)
    if kind == "ogg":
        return "opus" if _ogg_packet(head).startswith(b"OpusHead") else "ogg"
    if kind == "webm":
        return "webm" if b"webm" in head[:64] else "matroska"
    if kind is not None or len(head) < 4:
        return kind
    if head[:2] == b"\x0b\x77" and len(head) > 5:  # the version of the bit stream: E-AC-3 from 11 on
        return "eac3" if head[5] >> 3 > 10 else "ac3"
    if head[0] == 0xFF and head[1] & 0xF6 == 0xF0:  # ADTS: twelve ones, layer 0
        return "aac"
    if _mp3_frame(head) is not None or (not other_kind(head) and _holds_mp3(head)):
        return "mp3"
    return None


def other_kind(head: bytes) -> str:
    """What a file that we do not read is, in words, where its first bytes tell; else nothing."""
    return _marked(head, _OTHERS) or ""


def demuxer_of(kind: AudioFormat, head: bytes) -> str | None:
    """FFmpeg's name of what opens a file of this format and first bytes; None where libsndfile reads it."""
    if kind == "ogg":
        return None if _ogg_packet(head).startswith(b"\x01vorbis") else "ogg"
    if kind == "wav" and head[:4] == b"RIFF":
        code = _wav_code(head)
        return None if code is None or code in _SOUNDFILE_WAV else "wav"
    if kind == "musepack":
        return "mpc8" if head[:4] == b"MPCK" else "mpc"
    return _DEMUXERS.get(kind)


def needs_ffmpeg(head: bytes) -> bool:
    """Whether a file with these first bytes may be one that FFmpeg decodes; all others libsndfile does, or nobody."""
    kind = format_of(head)
    return head[:3] == b"ID3" or (kind is not None and demuxer_of(kind, head) is not None)


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


def _mp3_frame(header: bytes) -> int | None:
    """How many bytes the frame of an MP3 or MP2 has that begins so, 0 where it does not tell; None: none begins so."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer, bitrate, rate = header[1] >> 3 & 3, header[1] >> 1 & 3, header[2] >> 4, header[2] >> 2 & 3
    # Layer I is left out: nobody sends it, and the byte order mark of UTF-16 text looks like it.
    if version == 1 or layer not in (1, 2) or bitrate == 15 or rate == 3:
        return None
    bits = 1000 * (_KBPS_1[layer] if version == 3 else _KBPS_2)[bitrate]
    hz = (44_100, 48_000, 32_000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    return (72 if layer == 1 and version != 3 else 144) * bits // hz + (header[2] >> 1 & 1) if bits else 0


def _holds_mp3(head: bytes) -> bool:
    """Whether three frames follow each other behind something else: zeros, or the rest of a frame, as in what was
    recorded from a stream. FFmpeg finds them too."""
    for begin in range(len(head)):
        at = begin
        for _ in range(3):
            size = _mp3_frame(head[at : at + 4])
            if not size:
                break
            at += size
        else:
            return True
    return False


def _marked(head: bytes, table: list[tuple[Name, dict[int, bytes]]]) -> Name | None:
    for name, marks in table:
        if all(head[at : at + len(mark)] == mark for at, mark in marks.items()):
            return name
    return None


def _ogg_packet(head: bytes) -> bytes:
    """The beginning of the first packet of an Ogg file."""
    return head[27 + head[26] :] if len(head) > 27 else b""


def _wav_code(head: bytes) -> int | None:
    """How a WAV file says that its audio is coded; None where its first bytes do not come to that."""
    at = 12
    while len(chunk := head[at : at + 10]) == 10:
        name, size, code = struct.unpack("<4sIH", chunk)
        if name == b"fmt ":
            return int(code)
        at += 8 + size + (size & 1)
    return None
