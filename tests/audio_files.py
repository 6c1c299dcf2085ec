"""Audio files as they come: every container, codec, number of channels and rate that we say we read, made here."""

import io
import itertools
import struct
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from model.audio import SAMPLE_RATE, AudioFormat, Waveform

SECONDS = 1.3
BAND_HZ = (80, 3000)  # what every rate here can carry
LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 6: "5.1", 8: "7.1"}

Samples = NDArray[np.float32]
Make = Callable[[Samples, int], bytes]
"""Samples (frames, channels) and their rate, Hz -> a file."""


@cache
def source() -> Waveform:
    """Noise in steps of loudness, nothing before it and nothing after: it is like itself at one place only."""
    rng = np.random.default_rng(20)
    spectrum = np.fft.rfft(rng.normal(0, 1, round(SECONDS * SAMPLE_RATE)))
    at_hz = np.fft.rfftfreq(round(SECONDS * SAMPLE_RATE), 1 / SAMPLE_RATE)
    spectrum[(at_hz < BAND_HZ[0]) | (at_hz > BAND_HZ[1])] = 0
    noise = np.fft.irfft(spectrum)
    noise *= np.repeat(rng.uniform(0.1, 1, 13), len(noise) // 13)
    wave: Waveform = (0.5 * noise / abs(noise).max()).astype(np.float32)
    return wave


def channels_of(rate: int, channels: int) -> Samples:
    """The source in every channel, each a little softer than the last, (frames, channels)."""
    wave = soxr.resample(source(), SAMPLE_RATE, rate, "HQ") if rate != SAMPLE_RATE else source()
    return np.stack([wave * 0.9**channel for channel in range(channels)], axis=1).astype(np.float32)


def by_soundfile(kind: str, subtype: str | None = None) -> Make:
    def make(samples: Samples, rate: int) -> bytes:
        out = io.BytesIO()
        soundfile.write(out, samples, rate, format=kind, subtype=subtype)
        return out.getvalue()

    return make


def by_ffmpeg(muxer: str, codec: str, **options: str) -> Make:
    """`options`: the container's; more than one stream, or a film beside it, by `film` and `streams`."""
    film, streams = bool(options.pop("film", "")), int(options.pop("streams", "1"))
    bit_rate = int(options.pop("bit_rate", "192000"))

    def make(samples: Samples, rate: int) -> bytes:
        layout = LAYOUTS[samples.shape[1]]
        with tempfile.TemporaryDirectory() as folder:  # a file, because some containers are written twice
            path = Path(folder) / "encoded"
            with av.open(str(path), "w", format=muxer, options=options) as file:
                if film:
                    picture = file.add_stream("mpeg4", rate=25)
                    picture.width = picture.height = 32
                outs = [file.add_stream(codec, rate=rate, layout=layout) for _ in range(streams)]
                for number, out in enumerate(outs):
                    out.bit_rate = bit_rate
                    resampler = av.AudioResampler(format=out.codec_context.format, layout=layout, rate=rate)
                    planes = np.ascontiguousarray((samples if number == 0 else -samples[::-1]).T)
                    frame = av.AudioFrame.from_ndarray(planes, "fltp", layout)
                    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
                    for ready in [*resampler.resample(frame), *resampler.resample(None)]:
                        file.mux(out.encode(ready))
                    file.mux(out.encode(None))
                if film:
                    for _ in range(round(25 * SECONDS)):
                        file.mux(picture.encode(av.VideoFrame(32, 32, "yuv420p")))
                    file.mux(picture.encode(None))
            return path.read_bytes()

    return make


def remuxed(muxer: str, make: Make) -> Make:
    """The packets of another file in another container."""

    def moved(samples: Samples, rate: int) -> bytes:
        out = io.BytesIO()
        with av.open(io.BytesIO(make(samples, rate))) as given, av.open(out, "w", format=muxer) as file:
            stream = file.add_stream_from_template(given.streams.audio[0])
            for packet in given.demux(given.streams.audio[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    file.mux(packet)
        return out.getvalue()

    return moved


def dsd(samples: Samples, rate: int) -> list[bytes]:
    """One bit a sample at 64 times 44.1 kHz, for each channel, the first bit the lowest."""
    wave = np.repeat(samples, 64 * 44100 // rate, axis=0)
    level = np.cumsum(np.clip(wave + 1, 0, 2) / 2, axis=0, dtype=np.float64)
    bits = np.diff(np.floor(level), axis=0, prepend=0).astype(np.uint8)
    return [np.packbits(bits[:, channel], bitorder="little").tobytes() for channel in range(wave.shape[1])]


def dsf(samples: Samples, rate: int) -> bytes:
    planes = dsd(samples, rate)
    frames, block = 8 * len(planes[0]), 4096
    padded = [plane + bytes(-len(plane) % block) for plane in planes]
    data = b"".join(plane[at : at + block] for at in range(0, len(padded[0]), block) for plane in padded)
    places = 1 if len(planes) == 1 else 2
    fmt = struct.pack("<IIIIIIQII", 1, 0, places, len(planes), 64 * 44100, 1, frames, block, 0)
    body = b"fmt " + struct.pack("<Q", 52) + fmt + b"data" + struct.pack("<Q", 12 + len(data)) + data
    return b"DSD " + struct.pack("<QQQ", 28, 28 + len(body), 0) + body


def dsdiff(samples: Samples, rate: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return name + struct.pack(">Q", len(data)) + data + bytes(len(data) & 1)

    planes = [np.unpackbits(np.frombuffer(plane, np.uint8), bitorder="little") for plane in dsd(samples, rate)]
    data = np.stack([np.packbits(plane) for plane in planes], axis=1).tobytes()
    names = b"".join([b"SLFT", b"SRGT"][: len(planes)]) if len(planes) == 2 else b"C000"
    properties = chunk(b"FS  ", struct.pack(">I", 64 * 44100))
    properties += chunk(b"CHNL", struct.pack(">H", len(planes)) + names) + chunk(b"CMPR", b"DSD \x0enot compressed\0")
    body = b"DSD " + chunk(b"FVER", b"\x01\x05\x00\x00") + chunk(b"PROP", b"SND " + properties) + chunk(b"DSD ", data)
    return b"FRM8" + struct.pack(">Q", len(body)) + body


def without_lame(make: Make) -> Make:
    """The same MP3 with a count of frames and nobody's name: what many an encoder writes."""

    def named(samples: Samples, rate: int) -> bytes:
        data = bytearray(make(samples, rate))
        at = max(data.find(b"Info"), data.find(b"Xing")) + 120
        data[at : at + 24] = bytes(24)
        return bytes(data)

    return named


@dataclass(frozen=True)
class Row:
    """A container and a codec in it, and how exactly they keep what they are given.

    `place_s`: how far off a sound may come; `padding_s`: how much longer than the source a file may come, where nothing
    in it says how much its encoder added; `shorter_s`: or shorter, where its encoder does not write its last samples;
    `likeness`: the least correlation with the source.
    """

    container: str
    codec: str
    format: AudioFormat
    make: Make
    channels: tuple[int, ...] = (1, 2)
    rates: tuple[int, ...] = (16000, 44100, 48000)
    place_s: float = 0.001
    padding_s: float = 0.001
    likeness: float = 0.999
    shorter_s: float = 0.001


LOSSY = {"place_s": 0.003, "likeness": 0.97, "shorter_s": 0.003}
PADDED = {**LOSSY, "padding_s": 0.1}
MUSIC = (22050, 44100, 48000)
OPUS = (48000,)
MANY = (1, 2, 6)

ROWS = [
    *(
        Row("WAV", name, "wav", by_soundfile("WAV", subtype), channels, rates, likeness=likeness)
        for name, subtype, channels, rates, likeness in (
            ("PCM, 8 bits", "PCM_U8", (1, 2), (8000, 44100), 0.998),
            ("PCM, 16 bits", "PCM_16", (1, 2, 3, 6, 8), (8000, 44100, 96000), 0.999),
            ("PCM, 24 bits", "PCM_24", MANY, (44100, 192000), 0.999),
            ("PCM, 32 bits", "PCM_32", (2,), (48000,), 0.999),
            ("float, 32 bits", "FLOAT", MANY, (11025, 48000), 0.999),
            ("float, 64 bits", "DOUBLE", (2,), (44100,), 0.999),
            ("mu-law", "ULAW", (1, 2), (8000, 44100), 0.998),
            ("A-law", "ALAW", (1, 2), (8000, 44100), 0.998),
        )
    ),
    Row("WAV", "ADPCM, IMA", "wav", by_soundfile("WAV", "IMA_ADPCM"), (1, 2), (44100,), **PADDED),
    Row("WAV", "ADPCM, Microsoft", "wav", by_soundfile("WAV", "MS_ADPCM"), (1, 2), (44100,), **PADDED),
    Row("WAV", "MP3", "wav", by_ffmpeg("wav", "libmp3lame"), (1, 2), (44100,), **PADDED),
    Row("WAV, extensible", "PCM, 16 bits", "wav", by_soundfile("WAVEX", "PCM_16"), MANY, (44100, 48000)),
    Row("RF64", "PCM, 24 bits", "wav", by_soundfile("RF64", "PCM_24"), MANY, (44100,)),
    Row("Wave64", "PCM, 16 bits", "wav", by_soundfile("W64", "PCM_16"), MANY, (44100,)),
    Row("AIFF", "PCM, 16 bits", "aiff", by_soundfile("AIFF", "PCM_16"), MANY, (22050, 44100)),
    Row("AIFF", "PCM, 24 bits", "aiff", by_soundfile("AIFF", "PCM_24"), (1, 2), (96000,)),
    Row("AIFF-C", "float, 32 bits", "aiff", by_soundfile("AIFF", "FLOAT"), (1, 2), (48000,)),
    Row("AU", "PCM, 16 bits", "au", by_soundfile("AU", "PCM_16"), (1, 2), (8000, 44100)),
    Row("FLAC", "FLAC, 16 bits", "flac", by_soundfile("FLAC", "PCM_16"), (1, 2, 3, 6, 8), (16000, 44100, 96000)),
    Row("FLAC", "FLAC, 24 bits", "flac", by_soundfile("FLAC", "PCM_24"), (1, 2), (48000,)),
    Row("Ogg", "FLAC", "ogg", by_ffmpeg("ogg", "flac"), MANY),
    Row("CAF", "PCM, 16 bits", "caf", by_ffmpeg("caf", "pcm_s16be"), MANY, (16000, 44100)),
    Row("CAF", "PCM, 24 bits", "caf", by_ffmpeg("caf", "pcm_s24le"), (1, 2), (48000,)),
    Row("CAF", "float, 32 bits", "caf", by_ffmpeg("caf", "pcm_f32le"), (1, 2), (44100,)),
    Row("CAF", "Apple Lossless", "caf", by_ffmpeg("caf", "alac"), (1, 2), (44100,)),
    Row("MP4", "Apple Lossless", "m4a", by_ffmpeg("ipod", "alac"), MANY, (44100, 48000)),
    Row("MP4", "FLAC", "m4a", by_ffmpeg("mp4", "flac"), (1, 2), (44100,)),
    Row("QuickTime", "PCM, 16 bits", "m4a", by_ffmpeg("mov", "pcm_s16be"), (1, 2), (44100,)),
    Row("QuickTime", "PCM, 24 bits", "m4a", by_ffmpeg("mov", "pcm_s24le"), (1, 2), (48000,)),
    Row("Matroska", "PCM, 16 bits", "matroska", by_ffmpeg("matroska", "pcm_s16le"), MANY, (44100,)),
    Row("Matroska", "float, 32 bits", "matroska", by_ffmpeg("matroska", "pcm_f32le"), (2,), (48000,)),
    Row("Matroska", "FLAC", "matroska", by_ffmpeg("matroska", "flac"), MANY, (44100,)),
    Row("Matroska", "Apple Lossless", "matroska", by_ffmpeg("matroska", "alac"), (2,), (44100,)),
    Row("Matroska", "WavPack", "matroska", by_ffmpeg("matroska", "wavpack"), (2,), (44100,)),
    Row("WavPack", "WavPack", "wavpack", by_ffmpeg("wv", "wavpack"), MANY, (16000, 44100, 96000)),
    Row("TTA", "True Audio", "tta", by_ffmpeg("tta", "tta"), (1, 2), (44100, 48000)),
    Row("DSF", "DSD", "dsf", dsf, (2,), (44100,), likeness=0.95),
    Row("DSDIFF", "DSD", "dsdiff", dsdiff, (1,), (44100,), likeness=0.95),
    Row("MP3", "MP3, by libsndfile", "mp3", by_soundfile("MP3", "MPEG_LAYER_III"), (1, 2), MUSIC, **LOSSY),
    Row("MP3", "MP3, with LAME's header", "mp3", by_ffmpeg("mp3", "libmp3lame"), (1, 2), (16000, *MUSIC), **LOSSY),
    Row("MP3", "MP3, no encoder named", "mp3", without_lame(by_ffmpeg("mp3", "libmp3lame")), (1, 2), MUSIC, **PADDED),
    Row("MP3", "MP3, no header", "mp3", by_ffmpeg("mp3", "libmp3lame", write_xing="0"), (1, 2), MUSIC, **PADDED),
    Row("MP2", "MP2", "mp3", by_ffmpeg("mp2", "mp2"), (1, 2), (44100, 48000), **PADDED | {"shorter_s": 0.011}),
    Row("ADTS", "AAC", "aac", by_ffmpeg("adts", "aac"), (1, 2, 6), MUSIC, **PADDED),
    Row("MP4", "AAC", "m4a", by_ffmpeg("ipod", "aac"), (1, 2, 6), MUSIC, **PADDED),
    Row("MP4", "AAC, no edit list", "m4a", by_ffmpeg("mp4", "aac", use_editlist="0"), (1, 2), (44100,), **PADDED),
    Row("MP4", "AAC, in fragments", "m4a", by_ffmpeg("mp4", "aac", movflags="frag_keyframe+empty_moov"), (1, 2),
        (44100,), **PADDED),
    Row("MP4", "AAC, beside a film", "m4a", by_ffmpeg("mp4", "aac", film="yes"), (1, 2), (44100,), **PADDED),
    Row("MP4", "MP3", "m4a", by_ffmpeg("mp4", "libmp3lame"), (2,), (44100,), **PADDED),
    Row("MP4", "Opus", "m4a", by_ffmpeg("mp4", "libopus"), (1, 2), OPUS, **PADDED),
    Row("MP4", "AC-3", "m4a", by_ffmpeg("mp4", "ac3"), (2, 6), (48000,), **PADDED),
    Row("Ogg", "Vorbis", "ogg", by_soundfile("OGG", "VORBIS"), (1, 2, 6), MUSIC, **LOSSY),
    Row("Ogg", "Opus", "opus", by_soundfile("OGG", "OPUS"), (1, 2), OPUS, **LOSSY),
    Row("Ogg", "Opus, by FFmpeg", "opus", by_ffmpeg("ogg", "libopus"), (1, 2, 6), OPUS, **LOSSY),
    Row("WebM", "Opus", "webm", by_ffmpeg("webm", "libopus"), (1, 2, 6), OPUS, **PADDED),
    Row("WebM", "Vorbis", "webm", remuxed("webm", by_soundfile("OGG", "VORBIS")), (1, 2), MUSIC, **PADDED),
    Row("Matroska", "Vorbis", "matroska", remuxed("matroska", by_soundfile("OGG", "VORBIS")), (2,), (44100,),
        **PADDED),
    Row("Matroska", "Opus, beside a film", "matroska", by_ffmpeg("matroska", "libopus", film="yes"), (2,), OPUS,
        **PADDED),
    Row("Matroska", "AAC", "matroska", by_ffmpeg("matroska", "aac"), (1, 2), MUSIC, **PADDED),
    Row("Matroska", "MP3", "matroska", by_ffmpeg("matroska", "libmp3lame"), (2,), (44100,), **PADDED),
    Row("Matroska", "AC-3", "matroska", by_ffmpeg("matroska", "ac3"), (2, 6), (48000,), **PADDED),
    Row("CAF", "MP3", "caf", by_ffmpeg("caf", "libmp3lame"), (2,), (44100,), **LOSSY),
    Row("CAF", "ADPCM, IMA", "caf", by_ffmpeg("caf", "adpcm_ima_qt"), (1, 2), (44100,), **PADDED),
    Row("ASF", "WMA 1", "wma", by_ffmpeg("asf", "wmav1"), (1, 2), (22050, 44100), **PADDED),
    Row("ASF", "WMA 2", "wma", by_ffmpeg("asf", "wmav2"), (1, 2), MUSIC, **PADDED),
    Row("ASF", "MP3", "wma", by_ffmpeg("asf", "libmp3lame"), (2,), (44100,), **PADDED),
    Row("AC-3", "AC-3", "ac3", by_ffmpeg("ac3", "ac3"), MANY, (44100, 48000), **PADDED),
    Row("E-AC-3", "E-AC-3", "eac3", by_ffmpeg("eac3", "eac3"), MANY, (48000,), **PADDED),
    Row("AMR", "AMR, narrow", "amr", by_ffmpeg("amr", "libopencore_amrnb", bit_rate="12200"), (1,), (8000,),
        **PADDED | {"likeness": 0.7}),
]  # fmt: skip


def by_program(*command: str) -> Make:
    """By a program that reads `in` and writes `out`."""

    def make(samples: Samples, rate: int) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            soundfile.write(Path(folder) / "in", samples, rate, format="WAV", subtype="PCM_16")
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
            return (Path(folder) / "out").read_bytes()

    return make


DEBIAN = ("ffmpeg", "-i", "in", "-strict", "-2", "-c:a")
BY_FFMPEG_OF_DEBIAN = [
    Row("DTS", "DTS", "dts", by_program(*DEBIAN, "dca", "-f", "dts", "out"), (2,), (44100, 48000),
        **PADDED | {"shorter_s": 0.012}),
    Row("Ogg", "Speex", "ogg", by_program(*DEBIAN, "libspeex", "-f", "ogg", "out"), (1,), (8000, 16000, 32000),
        **PADDED | {"likeness": 0.7, "shorter_s": 0.02}),
]  # fmt: skip


@dataclass(frozen=True)
class Cell:
    row: Row
    channels: int
    rate: int

    def __str__(self) -> str:
        return f"{self.row.container} {self.row.codec} {self.channels} {self.rate}".replace(",", "")

    def bytes(self) -> bytes:
        return self.row.make(channels_of(self.rate, self.channels), self.rate)


def cells_of(rows: list[Row]) -> list[Cell]:
    return [Cell(row, *both) for row in rows for both in itertools.product(row.channels, row.rates)]


CELLS = cells_of(ROWS)


def place_and_likeness(heard: Waveform) -> tuple[float, float]:
    """How many seconds later than in the source the same sound comes, and how alike the two are there."""
    size = 1 << (len(heard) + len(source())).bit_length()
    product = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(source(), size)), size)
    best = int(np.argmax(product))
    before, peak, after = product[best - 1], product[best], product[(best + 1) % size]
    lag = (best if best < size // 2 else best - size) + (before - after) / (2 * (before - 2 * peak + after))
    return lag / SAMPLE_RATE, float(peak / np.sqrt((heard @ heard) * (source() @ source())))
