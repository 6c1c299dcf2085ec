"""Audio files with something wrong or odd about them, and what must come of each."""

import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from model.audio import AudioError, DecodeFailed, TooManyChannels, UnknownFormat
from tests.audio_files import Make, Samples, by_ffmpeg, by_soundfile, channels_of, remuxed

RATE = 44100
UNTOLD = "does not tell how long the file is: it is read to its end"
EARLY = r"ends early: [0-9.]+ s( of [0-9.]+ s)? could be decoded"
CANCEL = r"channels cancel when mixed: channel 1 of \d is heard alone"
W64_DATA = b"data\xf3\xac\xd3\x11"


@dataclass(frozen=True)
class Fault:
    """`says`: a pattern of the warning with which the file is heard where its source is, or nothing; or of the error.

    `whole`: all of it is heard, else only its beginning.
    """

    name: str
    data: Callable[[], bytes]
    says: str = ""
    error: type[AudioError] | None = None
    whole: bool = True

    def __str__(self) -> str:
        return self.name


def made(make: Make, channels: int = 2, rate: int = RATE) -> Callable[[], bytes]:
    return lambda: make(channels_of(rate, channels), rate)


def put(data: bytes, mark: bytes, after: int, instead: bytes) -> bytes:
    """Other bytes, so many behind the beginning of a mark."""
    at = data.index(mark) + after
    return data[:at] + instead + data[at + len(instead) :]


def lying(make: Make, order: str, *places: tuple[bytes, int, int], channels: int = 2) -> Callable[[], bytes]:
    """With numbers (I: 32 bits, Q: 64) at these places behind marks."""

    def data() -> bytes:
        made = make(channels_of(RATE, channels), RATE)
        for mark, after, number in places:
            made = put(made, mark, after, struct.pack(order, number))
        return made

    return data


def odd_chunk(make: Make, order: str, filled: bytes = b"") -> Callable[[], bytes]:
    """With a chunk of odd length before the others, and what fills it up: mostly a zero, or nothing."""
    return lambda: (whole := made(make)())[:12] + b"JUNK" + struct.pack(order, 3) + b"odd" + filled + whole[12:]


def cut(make: Make, rate: int = RATE) -> Callable[[], bytes]:
    """The first six tenths of a file of three times the source."""

    def data() -> bytes:
        whole = make(np.tile(channels_of(rate, 2), (3, 1)), rate)
        return whole[: len(whole) * 6 // 10]

    return data


def with_layout(shape: Callable[[Samples], Samples], make: Make, rate: int = RATE) -> Callable[[], bytes]:
    return lambda: make(np.ascontiguousarray(shape(channels_of(rate, 1)), dtype=np.float32), rate)


def inverted(samples: Samples) -> Samples:
    return np.hstack([samples, -0.9 * samples])


def only_lfe(samples: Samples) -> Samples:
    return np.hstack([0 * samples] * 3 + [samples] + [0 * samples] * 2)


def around(samples: Samples) -> Samples:
    """5.1 whose surrounds cancel its front."""
    return np.hstack([samples, samples, 0 * samples, 0 * samples, -samples, -samples])


def unknown_codec() -> bytes:
    data = by_ffmpeg("matroska", "pcm_s16le")(channels_of(RATE, 2), RATE)
    return data.replace(b"A_PCM/INT/LIT", b"A_XYZ/INT/LIT")


WAV, AIFF = by_soundfile("WAV", "PCM_16"), by_soundfile("AIFF", "PCM_16")
RF64, W64 = by_soundfile("RF64", "PCM_16"), by_soundfile("W64", "PCM_16")
FLAC, MP3 = by_soundfile("FLAC", "PCM_16"), by_ffmpeg("mp3", "libmp3lame")
BARE_MP3 = by_ffmpeg("mp3", "libmp3lame", write_xing="0", id3v2_version="0")
AAC, CAF = by_ffmpeg("mp4", "aac"), by_ffmpeg("caf", "pcm_s16be")
OPUS = by_ffmpeg("matroska", "libopus")
OGG, SECOND_OGG = (made(by_ffmpeg("ogg", "libopus", serial_offset=serial), rate=48000) for serial in ("1", "2"))
TOP = 0xFFFF_FFFF
LIST = b"LIST\4\0\0\0INFO"

FAULTS = [
    *(
        Fault(f"WAV, {count} ch., data size {size:#x}", lying(WAV, "<I", (b"data", 4, size), channels=count), UNTOLD)
        for count in (1, 2)
        for size in (0, 1, 4097, 0x7FFF_F000, TOP)
    ),
    Fault("WAV, RIFF and data size 0", lying(WAV, "<I", (b"RIFF", 4, 0), (b"data", 4, 0)), UNTOLD),
    Fault("WAV, RIFF size 36, data size 0", lying(WAV, "<I", (b"RIFF", 4, 36), (b"data", 4, 0)), UNTOLD),
    Fault("WAV, RIFF and data size greatest", lying(WAV, "<I", (b"RIFF", 4, TOP), (b"data", 4, TOP)), UNTOLD),
    Fault("WAV, data size 0, a chunk behind", lambda: lying(WAV, "<I", (b"data", 4, 0))() + LIST, UNTOLD),
    Fault("WAV, data size beyond the end", lying(WAV, "<I", (b"data", 4, 400_000)), EARLY),
    Fault("WAV, a chunk behind its audio", lambda: made(WAV)() + LIST),
    Fault("WAV, odd bytes behind its end", lambda: made(WAV)() + bytes(999) + 999 * b"\xf0"),
    Fault("WAV, an odd chunk that nothing fills up", odd_chunk(WAV, "<I")),
    Fault("WAV, an odd chunk that a letter fills up", odd_chunk(WAV, "<I", b"X")),
    Fault("AIFF, an odd chunk that nothing fills up", odd_chunk(AIFF, ">I")),
    Fault("WAV, an ID3 tag before it", lambda: b"ID3\4\0\0\0\0\0\x0a" + bytes(10) + made(WAV)()),
    *(
        Fault(f"RF64, data size {size:#x}", lying(RF64, "<Q", (b"ds64", 16, size)), UNTOLD)
        for size in (0, 4097, 2**64 - 1)
    ),
    *(Fault(f"Wave64, data size {size:#x}", lying(W64, "<Q", (W64_DATA, 16, size)), UNTOLD) for size in (0, 24, 2**63)),
    *(
        Fault(f"AIFF, sound size {size:#x}", lying(AIFF, ">I", (b"SSND", 4, size)), UNTOLD)
        for size in (0, 8, 4097, TOP)
    ),
    Fault("AIFF, no frames counted", lying(AIFF, ">I", (b"COMM", 10, 0))),
    *(Fault(f"CAF, data size {size:#x}", lying(CAF, ">Q", (b"data", 4, size))) for size in (0, 2**64 - 1)),
    Fault("BW64", lambda: b"BW64" + made(RF64)()[4:]),
    Fault("FLAC, an ID3 tag behind it", lambda: made(FLAC)() + b"TAG" + bytes(125)),
    Fault("MP3, zeros before it", lambda: bytes(500) + made(BARE_MP3)()),
    Fault("MP3, the rest of a frame before it", lambda: 3 * made(BARE_MP3)()[100:350] + made(BARE_MP3)()),
    Fault("Ogg Opus, another one behind it", lambda: OGG() + SECOND_OGG(), "several recordings, one behind the other"),
    Fault("FLAC, no length told", lambda: put(made(FLAC)(), b"fLaC", 22, bytes(4))),
    *(
        Fault(f"{name}, cut off", cut(make, rate), EARLY, whole=False)
        for name, make, rate in (
            ("WAV", WAV, RATE),
            ("AIFF", AIFF, RATE),
            ("FLAC", FLAC, RATE),
            ("Ogg FLAC", by_ffmpeg("ogg", "flac"), RATE),
            ("Ogg Vorbis", by_soundfile("OGG", "VORBIS"), RATE),
            ("Ogg Opus", by_soundfile("OGG", "OPUS"), 48000),
            ("MP3", MP3, RATE),
            ("AAC in ADTS", by_ffmpeg("adts", "aac"), RATE),
            ("MP4, its index in front", by_ffmpeg("ipod", "aac", movflags="faststart"), RATE),
            ("MP4, in fragments", by_ffmpeg("mp4", "aac", movflags="frag_keyframe+empty_moov"), RATE),
            ("CAF", CAF, RATE),
            ("Matroska", OPUS, 48000),
            ("WebM", remuxed("webm", by_soundfile("OGG", "VORBIS")), RATE),
            ("True Audio", by_ffmpeg("tta", "tta"), RATE),
            ("WMA", by_ffmpeg("asf", "wmav2"), RATE),
            ("AU", by_soundfile("AU", "PCM_16"), RATE),
        )
    ),
    Fault("MP4, cut off before its index", cut(AAC), "index is missing or damaged", DecodeFailed),
    Fault("MP4, two audio streams", made(by_ffmpeg("mp4", "aac", streams="2")), "holds 2 audio streams: the first"),
    Fault("Matroska, three audio streams", made(by_ffmpeg("matroska", "flac", streams="3")), "holds 3 audio streams"),
    Fault("Matroska, a codec of no name", unknown_codec, "coded in a way that is not known", DecodeFailed),
    Fault("WAV, a codec not listed", made(by_ffmpeg("wav", "g722"), 1, 16000), "coded as g722", DecodeFailed),
    Fault("stereo that cancels", with_layout(inverted, WAV), CANCEL),
    Fault("stereo that cancels, as Opus", with_layout(inverted, OPUS, 48000), CANCEL),
    Fault("5.1 that cancels", with_layout(around, FLAC), CANCEL),
    Fault("5.1, all in LFE", with_layout(only_lfe, FLAC), "channel 4 of 6 is heard alone"),
    *(
        Fault(f"WAV, {channels} channels", made(WAV, channels), f"{channels} channels", TooManyChannels)
        for channels in (9, 16, 32, 64)
    ),
    *(
        Fault(name, lambda head=head: head + bytes(4000), words, UnknownFormat)  # type: ignore[misc]
        for name, head, words in (
            ("MIDI", b"MThd\0\0\0\6", "a MIDI file"),
            ("AVI", b"RIFF\0\x10\0\0AVI LIST", "an AVI film"),
            ("SoundFont", b"RIFF\0\x10\0\0sfbk", "a SoundFont"),
            ("ReCycle", b"CAT \0\0\0\0REX2", "a ReCycle loop"),
            ("RealMedia", b".RMF\0\0\0\x12", "a RealMedia file"),
            ("Flash", b"FLV\1\5", "a Flash film"),
            ("ZIP", b"PK\3\4", "an archive"),
            ("PNG", b"\x89PNG\r\n\x1a\n", "a picture"),
            ("PDF", b"%PDF-1.7", "a PDF"),
            ("MPEG program stream", b"\0\0\1\xba", "an MPEG film"),
        )
    ),
]  # fmt: skip
