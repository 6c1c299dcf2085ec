"""File -> mono waveform at 16 kHz; clip -> windows; the errors that say why a file cannot be used."""

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar, Literal

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

if TYPE_CHECKING:
    import av  # FFmpeg's dozens of libraries are loaded where a file needs them

SAMPLE_RATE = 16_000
"""Samples a second of every waveform."""

TOO_SHORT = 16_384
"""A waveform of this many samples (1.024 s) or fewer cannot be analysed: the CQT reflects that many at either end."""

MIN_SECONDS = TOO_SHORT / SAMPLE_RATE
"""A clip must be longer than this, seconds."""

SILENCE_DB = -80.0
"""Audio whose peak lies below this, dBFS, is silent: three steps of 16 bits, so dithered silence counts."""

SILENCE = 10 ** (SILENCE_DB / 20)

SAMPLE_RATES = range(2_000, 768_001)
"""What a header may claim, Hz; beyond it no music was ever recorded."""

FULL_RATE = 48_000
"""Samples a second that a clip of the greatest length and the most channels may have, in each channel."""

LOUDEST = 2.0**31
"""A float file may hold integers as they are, up to this; more is damage, and its square would overflow."""

BLOCK = 16_384
"""Frames decoded at a time. Small, because a decoder that fails inside a block loses that block."""

EARLY_END_S = 0.1
"""A file that decodes to this much less than it declares ended early; padding of MP3 and AAC stays well below."""

AudioFormat = Literal["wav", "flac", "ogg", "opus", "mp3", "aiff", "m4a", "aac"]

Waveform = NDArray[np.float32]
Fact = str | int | float


class AudioError(Exception):
    """A clip that cannot be used.

    `code` names the kind for machines and `str(error)` is a sentence for people. `facts` holds the numbers behind it,
    each also an attribute; the class called with them makes an equal error, in another process too.
    """

    code: ClassVar[str] = "unusable-audio"

    def __init__(self, sentence: str, **facts: Fact) -> None:
        super().__init__(sentence)
        self.facts = facts

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), str(self), self.facts)


class EmptyFile(AudioError):
    """The file has no bytes."""

    code = "empty-file"

    def __init__(self) -> None:
        super().__init__("The file is empty.")


class UnknownFormat(AudioError):
    """The first bytes are of no audio format that we read, whatever the file's name says."""

    code = "unknown-format"

    def __init__(self) -> None:
        super().__init__("This is not audio in a format we read: WAV, FLAC, MP3, Ogg Vorbis, Opus, AIFF, M4A or AAC.")


class NoAudioStream(AudioError):
    """A container, such as a film without sound, that holds no audio."""

    code = "no-audio-stream"

    def __init__(self) -> None:
        super().__init__("The file holds no audio stream.")


class DecodeFailed(AudioError):
    """The file is of a known format but damaged, or coded in a way that our decoders do not know."""

    code = "decode-failed"

    def __init__(self, reason: str) -> None:
        super().__init__(f"The file could not be decoded: {reason}", reason=reason)
        self.reason = reason


class ClipTooShort(AudioError):
    """`seconds` of audio, and the model needs more than `minimum`."""

    code = "clip-too-short"

    def __init__(self, seconds: float, minimum: float = MIN_SECONDS) -> None:
        super().__init__(
            f"The clip lasts {seconds:.3f} s; it must be longer than {minimum:.3f} s.", seconds=seconds, minimum=minimum
        )
        self.seconds = seconds
        self.minimum = minimum


class ClipTooLong(AudioError):
    """More than `maximum` seconds of audio.

    Decoding stops at the limit, so `seconds` is what the file declares or what came until then, whichever is more.
    """

    code = "clip-too-long"

    def __init__(self, seconds: float, maximum: float) -> None:
        super().__init__(f"The clip lasts longer than the {maximum:g} s accepted.", seconds=seconds, maximum=maximum)
        self.seconds = seconds
        self.maximum = maximum


class TooManyChannels(AudioError):
    """The header announces `channels`, and `maximum` are accepted; nothing was decoded."""

    code = "too-many-channels"

    def __init__(self, channels: int, maximum: int) -> None:
        super().__init__(
            f"The clip has {channels} channels; at most {maximum} are accepted.", channels=channels, maximum=maximum
        )
        self.channels = channels
        self.maximum = maximum


class TooManySamples(AudioError):
    """More than `maximum` samples over all channels: as the longest clip of the most channels has at 48 kHz.

    A few hundred kilobytes can declare a minute of a processor's work. Decoding stops at the limit.
    """

    code = "too-many-samples"

    def __init__(self, maximum: int) -> None:
        super().__init__(
            f"The clip has more than {maximum} samples over all channels: use fewer channels or a lower sample rate.",
            maximum=maximum,
        )
        self.maximum = maximum


class NonFiniteSamples(AudioError):
    """A sample is NaN, infinite or beyond 2**31; `seconds` says where the block that holds it begins."""

    code = "non-finite-samples"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"The clip has samples that are not finite numbers (or absurdly large), after {seconds:.1f} s.",
            seconds=seconds,
        )
        self.seconds = seconds


class SilentClip(AudioError):
    """No sample of the mono mix is louder than `floor_db` dBFS."""

    code = "silent-clip"

    def __init__(self, peak_db: float, floor_db: float) -> None:
        super().__init__(
            f"The clip is silent: mixed to mono, no sample is louder than {floor_db:.0f} dBFS.",
            peak_db=peak_db,
            floor_db=floor_db,
        )
        self.peak_db = peak_db
        self.floor_db = floor_db


def _rebuild(kind: type[AudioError], sentence: str, facts: dict[str, Fact]) -> AudioError:
    return AudioError(sentence, **facts) if kind is AudioError else kind(**facts)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Clip:
    """A decoded file: `waveform` is float32 (samples,), mono at 16 kHz, finite; the rest says what the file was.

    `sample_rate` (Hz) and `channels` are the file's own, `warnings` sentences for people about what was lost.
    """

    waveform: Waveform
    sample_rate: int
    channels: int
    format: AudioFormat
    warnings: tuple[str, ...] = ()

    @property
    def duration_s(self) -> float:
        return len(self.waveform) / SAMPLE_RATE


def load_clip(source: Path | bytes | BinaryIO, *, max_seconds: float | None = None, max_channels: int = 8) -> Clip:
    """Decode a file, mix it to mono (the mean of its channels) and resample it to 16 kHz.

    The format is what the first bytes say, never the name. Reading is by blocks and ends at the first limit, so memory
    is bounded by `max_seconds`, whatever the header declares. A file that breaks off is kept as far as it goes, with a
    warning. The same bytes give the same waveform, but for the last bits, in which a decoder's vector code may differ.
    This decodes in the caller's process: bytes from strangers belong in `service.uploads.Decoder`.

    Args:
        source: a path, the file's bytes, or a seekable file open for reading bytes.
        max_seconds: longest clip accepted; None: any.
        max_channels: most channels accepted.

    Raises:
        AudioError: the first of these that holds. Before decoding: EmptyFile, UnknownFormat, NoAudioStream,
            TooManyChannels, DecodeFailed (an impossible sample rate, a header that makes no sense). While decoding:
            NonFiniteSamples, ClipTooLong, TooManySamples. At the end: DecodeFailed (it broke off too early),
            ClipTooShort, SilentClip.
        OSError: the path cannot be read.
    """
    with _opened(source) as file:
        size = file.seek(0, io.SEEK_END)
        if size == 0:
            raise EmptyFile
        kind = sniff_format(file)
        if kind is None:
            raise UnknownFormat
        with (_open_av if kind in _AV_FORMATS else _open_soundfile)(file, kind, size, max_channels) as stream:
            return _collect(stream, max_seconds, max_channels)


def sniff_format(file: BinaryIO) -> AudioFormat | None:
    """Tell the format by the file's first bytes (behind ID3 tags, if any); None: none that we read."""
    start = _after_tags(file)
    file.seek(start)
    head = file.read(64)
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return "wav"
    if head[:16] == _W64:
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
    return bool(head) and head[:4] not in (b"RIFF", b"RF64", b"FORM", b"fLaC", b"OggS") and head[:16] != _W64


def _after_tags(file: BinaryIO) -> int:
    """Where the file begins behind its ID3v2 tags, bytes."""
    start = 0
    while True:
        file.seek(start)
        head = file.read(10)
        if head[:3] != b"ID3" or len(head) < 10:
            return start
        a, b, c, d = head[6:]
        start += 10 + (a << 21 | b << 14 | c << 7 | d) + (10 if head[5] & 0x10 else 0)


def window_starts(samples: int, window: int, stride: int) -> NDArray[np.int64]:
    """Place windows over a clip.

    Args:
        samples: length of the clip, at least 1.
        window: length of a window in samples, at least 1.
        stride: from one start to the next in samples, at least 1.

    Returns:
        int64 (n,), rising from 0, a stride apart; the last one lies closer if it must, so that its window ends with the
        clip. Where stride <= window every sample is covered. A clip no longer than a window has one, at 0.

    Raises:
        ValueError: a number below 1.
    """
    if min(samples, window, stride) < 1:
        raise ValueError(f"samples={samples}, window={window} and stride={stride} must each be at least 1")
    last = max(samples - window, 0)
    starts = np.arange(0, last + 1, stride, dtype=np.int64)
    return starts if starts[-1] == last else np.append(starts, np.int64(last))


def cut_windows(waveform: Waveform, starts: NDArray[np.int64], window: int) -> Waveform:
    """Cut windows out of a waveform.

    Args:
        waveform: float32 (samples,).
        starts: int64 (n,), samples, as from `window_starts`.
        window: length of a window in samples.

    Returns:
        float32 (n, window), a copy; row i equals waveform[starts[i] : starts[i] + window]. A waveform shorter than a
        window is one window of its own length: (n, samples).

    Raises:
        ValueError: a window would reach outside the waveform.
    """
    length = min(window, len(waveform))
    if len(starts) and not (starts.min() >= 0 and starts.max() + length <= len(waveform)):
        raise ValueError(f"windows of {length} samples at {starts.min()}..{starts.max()} leave {len(waveform)} samples")
    return np.lib.stride_tricks.sliding_window_view(waveform, length)[starts]


def is_silent(waveform: Waveform) -> bool:
    """Whether no sample reaches -80 dBFS; such a clip or window gets no embedding."""
    return _peak(waveform) < SILENCE


@dataclass(frozen=True)
class _Stream:
    """An opened file: what its header says, and its audio as float32 blocks (frames, channels).

    `declared_s` is None when the header does not tell the length. `present` is the part of the declared audio bytes
    that the file really has; `ended` is False when the container lacks its end mark.
    """

    format: AudioFormat
    sample_rate: int
    channels: int
    blocks: Iterator[Waveform]
    declared_s: float | None = None
    present: float = 1.0
    ended: bool = True


def _collect(stream: _Stream, max_seconds: float | None, max_channels: int) -> Clip:
    rate, frames = stream.sample_rate, 0
    most = None if max_seconds is None else int(max_seconds * max_channels * FULL_RATE)
    if most is not None and max_seconds is not None and stream.declared_s is not None:
        declared = stream.declared_s * rate * stream.channels
        if stream.declared_s <= max_seconds and declared > most:  # else it is too long, and decoding tells by how much
            raise TooManySamples(most)
    resampler = (
        None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    )
    pieces: list[Waveform] = []
    failure: DecodeFailed | None = None
    try:
        for block in stream.blocks:
            peak = _peak(block)
            if not peak <= LOUDEST:  # NaN compares false
                raise NonFiniteSamples(seconds=frames / rate)
            frames += len(block)
            if max_seconds is not None and frames > max_seconds * rate:
                raise ClipTooLong(seconds=max(frames / rate, stream.declared_s or 0.0), maximum=max_seconds)
            if most is not None and frames * stream.channels > most:
                raise TooManySamples(most)
            mono = block.mean(axis=1, dtype=np.float32)
            pieces.append(mono if resampler is None else resampler.resample_chunk(mono))
    except DecodeFailed as error:
        failure = error
    if resampler is not None:
        pieces.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    waveform = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)

    decoded_s = frames / rate
    declared_s = decoded_s / stream.present if stream.present < 1 else stream.declared_s
    short_of = declared_s is not None and declared_s - decoded_s > EARLY_END_S
    warnings: tuple[str, ...] = ()
    extent = ""
    if short_of or not stream.ended or (failure and declared_s is None):
        extent = f"{decoded_s:.1f} s of {declared_s:.1f} s" if short_of else f"{decoded_s:.1f} s"
        warnings = (f"The file ends early: {extent} could be decoded.",)
    if len(waveform) <= TOO_SHORT:
        if failure or warnings:
            raise failure or DecodeFailed(f"it ends early, after {extent}")
        raise ClipTooShort(seconds=decoded_s)
    if is_silent(waveform):
        raise SilentClip(peak_db=float(20 * np.log10(max(_peak(waveform), 1e-10))), floor_db=SILENCE_DB)
    return Clip(waveform, rate, stream.channels, stream.format, warnings)


def _peak(samples: Waveform) -> float:
    """The largest magnitude; NaN when there is one."""
    return float(max(samples.max(), -samples.min())) if samples.size else 0.0


@contextmanager
def _opened(source: Path | bytes | BinaryIO) -> Iterator[BinaryIO]:
    if isinstance(source, Path):
        with source.open("rb") as file:
            yield file
    elif isinstance(source, bytes):
        yield io.BytesIO(source)
    else:
        yield source


def _refuse_header(sample_rate: int, channels: int, max_channels: int) -> None:
    if channels > max_channels:
        raise TooManyChannels(channels=channels, maximum=max_channels)
    if channels < 1 or sample_rate not in SAMPLE_RATES:
        raise DecodeFailed(f"the header claims {channels} channels at {sample_rate} Hz")


# libsndfile: everything but MP4, raw AAC and MP3. It does read MP3, but breaks the small frames of variable bit rate:
# see docs/decisions/mp3-by-ffmpeg.md.

_W64 = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
_SOUNDFILE_FORMATS = {"wav": {"WAV", "WAVEX", "RF64", "W64"}, "aiff": {"AIFF"}, "flac": {"FLAC"}}
_SOUNDFILE_FORMATS |= {"ogg": {"OGG"}, "opus": {"OGG"}}
_UNKNOWN_FRAMES = 2**62  # libsndfile's word for "not told" is 2**63 - 1


class _Sequential(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """Reads without the seek that soundfile does around each block: it fails, or loses the block, in damaged files."""

    def seekable(self) -> bool:
        return False


@contextmanager
def _open_soundfile(file: BinaryIO, kind: AudioFormat, size: int, max_channels: int) -> Iterator[_Stream]:
    present, channels = _read_chunks(file, kind, size) if kind in ("wav", "aiff") else (1.0, None)
    if channels is not None and channels > max_channels:  # libsndfile gives no number when it finds too many
        raise TooManyChannels(channels=channels, maximum=max_channels)
    ended = _ogg_ended(file, size) if kind in ("ogg", "opus") else True
    file.seek(0)
    try:
        sound = _Sequential(file)
    except soundfile.LibsndfileError as error:
        raise _unreadable(error) from error
    with sound:
        if sound.format not in _SOUNDFILE_FORMATS[kind]:
            raise UnknownFormat
        _refuse_header(sound.samplerate, sound.channels, max_channels)
        declared_s = sound.frames / sound.samplerate if 0 < sound.frames < _UNKNOWN_FRAMES else None
        blocks = _soundfile_blocks(sound)
        yield _Stream(kind, sound.samplerate, sound.channels, blocks, declared_s, present, ended)


def _soundfile_blocks(sound: soundfile.SoundFile) -> Iterator[Waveform]:
    try:
        while len(block := sound.read(BLOCK, dtype="float32", always_2d=True)):
            yield block
    except soundfile.LibsndfileError as error:
        raise _unreadable(error) from error


def _unreadable(error: soundfile.LibsndfileError) -> Exception:
    if error.code == _SFE_MALLOC_FAILED:
        return MemoryError()
    if error.code == _SFE_BAD_FILE:
        return DecodeFailed("there is no audio in it")
    return DecodeFailed(error.error_string.removeprefix("Error : ").rstrip("."))


# Codes of libsndfile's private header, stable since 2000.
_SFE_BAD_FILE = 7
_SFE_MALLOC_FAILED = 17


def _read_chunks(file: BinaryIO, kind: AudioFormat, size: int) -> tuple[float, int | None]:
    """Walk the chunks of a WAV or AIFF file, because libsndfile hides that a file was cut off.

    Returns:
        Which part of the audio bytes that the header declares the file has (1 when it does not tell), and the channels.
    """
    file.seek(0)
    head = file.read(24)
    if head[:16] == _W64:  # its header tells the size of the whole file
        declared = int.from_bytes(head[16:], "little")
        return min(size / max(declared, 1), 1.0), None
    order = ">" if kind == "aiff" else "<"
    channels: int | None = None
    long_size = None
    at = 12
    for _ in range(1000):  # no honest file has more chunks before its audio
        file.seek(at)
        chunk = file.read(40)
        if len(chunk) < 8:
            break
        name, length = struct.unpack(order + "4sI", chunk[:8])
        if name == b"fmt " and len(chunk) >= 12:
            channels = struct.unpack("<H", chunk[10:12])[0]
        elif name == b"COMM" and len(chunk) >= 10:
            channels = struct.unpack(">H", chunk[8:10])[0]
        elif name == b"ds64" and len(chunk) >= 24:
            long_size = struct.unpack("<Q", chunk[16:24])[0]
        elif name in (b"data", b"SSND"):
            declared = long_size if long_size is not None else length if length < _STREAMED else 0
            present = size - at - 8
            return (present / declared if 0 < present < declared else 1.0), channels
        at += 8 + length + (length & 1)
    return 1.0, channels


_STREAMED = 0x7FFF_0000  # recorders that cannot seek back leave a size from here upwards, up to 0xFFFFFFFF


def _ogg_ended(file: BinaryIO, size: int) -> bool:
    """Whether the last Ogg page is whole and marked as the last: libsndfile measures what is there and asks no more."""
    tail = min(size, 2 * 65_307)  # twice the largest page
    file.seek(size - tail)
    data = file.read(tail)
    at = data.rfind(b"OggS")
    if at < 0 or at + 27 > len(data):
        return False
    segments = data[at + 27 : at + 27 + data[at + 26]]
    return bool(data[at + 5] & 4) and at + 27 + data[at + 26] + sum(segments) <= len(data)


# FFmpeg: only these, and never by its own guess.

_AV_FORMATS: dict[AudioFormat, str] = {"m4a": "mp4", "aac": "aac", "mp3": "mp3"}
_AV_CODECS = "aac,aac_latm,alac,mp3float,mp3,flac,opus,ac3,eac3"


@contextmanager
def _open_av(file: BinaryIO, kind: AudioFormat, size: int, max_channels: int) -> Iterator[_Stream]:
    import av

    told = kind == "m4a" or (kind == "mp3" and _mp3_tells_length(file))
    file.seek(0)
    try:
        # Probing opens decoders too: the list keeps it from those for pictures and films.
        container = av.open(
            file, "r", format=_AV_FORMATS[kind], options={"codec_whitelist": _AV_CODECS}, metadata_errors="replace"
        )
    except (av.FFmpegError, ValueError) as error:
        raise _av_failure(error) from error
    with container:
        if not container.streams.audio:
            raise NoAudioStream
        stream = container.streams.audio[0]
        context = stream.codec_context
        _refuse_header(context.sample_rate, context.channels, max_channels)
        context.thread_count = 1
        declared_s = None
        if told and stream.duration and stream.time_base:
            declared_s = float(stream.duration * stream.time_base)
        blocks = _av_blocks(container, stream, context.sample_rate)
        yield _Stream(kind, context.sample_rate, context.channels, blocks, declared_s)


def _mp3_tells_length(file: BinaryIO) -> bool:
    """Whether the first frame holds a count of frames; if not, FFmpeg's duration is a guess from the bit rate."""
    file.seek(_after_tags(file))
    frame = file.read(200)
    return any(mark in frame for mark in (b"Xing", b"Info", b"VBRI"))


def _av_blocks(
    container: "av.container.InputContainer", stream: "av.AudioStream", sample_rate: int
) -> Iterator[Waveform]:
    from av import FFmpegError

    frames = container.decode(stream)
    while True:
        try:
            frame = next(frames, None)
        except (FFmpegError, ValueError) as error:
            raise _av_failure(error) from error
        if frame is None:
            return
        if frame.sample_rate != sample_rate:
            raise DecodeFailed(f"the sample rate changes from {sample_rate} to {frame.sample_rate} Hz")
        samples = frame.to_ndarray()
        samples = samples.T if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels)
        if samples.dtype.kind != "f":
            samples = samples / np.float32(2.0 ** (8 * samples.dtype.itemsize - 1))
        yield samples.astype(np.float32, copy=False)


def _av_failure(error: Exception) -> Exception:
    if isinstance(error, MemoryError):
        return MemoryError()
    return DecodeFailed(getattr(error, "strerror", None) or str(error))
