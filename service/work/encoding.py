"""Samples -> the bytes of an audio file, in the child that decoded them."""

import io
import struct
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import soundfile

from model.audio import AudioError
from service.work.fitting import Fitting, Samples

FittedFormat = Literal["wav", "flac", "mp3", "ogg"]
BLOCK = 16_384
"""Frames encoded at a time: libvorbis keeps what it is given at once on its stack."""

MP3_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
_SUBTYPES = {"flac": ("FLAC", "PCM_24"), "mp3": ("MP3", "MPEG_LAYER_III"), "ogg": ("OGG", "VORBIS")}


class FormatCannotHold(AudioError):
    code = "format-cannot-hold"
    says = "A {format} file cannot hold {channels} channels at {rate} Hz."
    format: str
    channels: int
    rate: int


class FittedTooLong(AudioError):
    code = "fitted-too-long"
    says = "The fitted audio would last {seconds:g} s, of {maximum:g} s at most."
    seconds: float
    maximum: float


@dataclass(frozen=True)
class Order:
    """A fitted file: how its audio is to sound and how loud, in which format, how much silence stands before it, and
    whether its channels become one."""

    fitting: Fitting = field(default_factory=Fitting)
    format: FittedFormat = "wav"
    lead_s: float = 0.0
    gain_db: float = 0.0
    mono: bool = False

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, told: dict[str, Any]) -> "Order":
        return cls(Fitting(**told["fitting"]), told["format"], told["lead_s"], told["gain_db"], told["mono"])


def encode(samples: Samples, rate: int, format: FittedFormat) -> bytes:
    """A file of samples: float32 (channels, n). WAV holds them as they are, FLAC as integers of 24 bits.

    Raises:
        FormatCannotHold.
    """
    assert format in get_args(FittedFormat)
    frames = np.ascontiguousarray(samples.T)
    channels = len(samples)
    if format == "wav":
        return _wav(frames, rate)
    if format == "mp3" and (channels > 2 or rate not in MP3_RATES):
        raise FormatCannotHold(format, channels, rate)
    kind, subtype = _SUBTYPES[format]
    written = io.BytesIO()
    try:
        with soundfile.SoundFile(written, "w", rate, channels, subtype, format=kind) as sound:
            for at in range(0, len(frames), BLOCK):
                sound.write(frames[at : at + BLOCK])
    except soundfile.LibsndfileError:
        raise FormatCannotHold(format, channels, rate) from None
    return written.getvalue()


def _wav(frames: Samples, rate: int) -> bytes:
    """Floats with no clock in the header, which libsndfile writes: the same samples are the same bytes."""
    channels, data = frames.shape[1], frames.astype("<f4", copy=False).tobytes()
    if len(data) > 2**32 - 100:
        raise FormatCannotHold("wav", channels, rate)
    fmt = struct.pack("<4sIHHIIHHH", b"fmt ", 18, 3, channels, rate, rate * channels * 4, channels * 4, 32, 0)
    fact = struct.pack("<4sII", b"fact", 4, len(frames))
    body = b"WAVE" + fmt + fact + struct.pack("<4sI", b"data", len(data))
    return b"".join((struct.pack("<4sI", b"RIFF", len(body) + len(data)), body, data))
