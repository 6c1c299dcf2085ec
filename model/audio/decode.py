"""File -> mono waveform at 16 kHz, or a part of it as it is."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import soundfile
import soxr

if TYPE_CHECKING:
    import av  # FFmpeg's dozens of libraries are loaded where a file needs them
import model.audio.errors as errors
from model.audio.codecs import CODECS, SKIP_MANUAL, WINDOWS_MEDIA, frames_before_the_music
from model.audio.downmix import Downmix
from model.audio.formats import HEAD, AudioFormat, after_tags, demuxer_of, other_kind, sniff_format
from model.audio.headers import Filled, FromStart, Header, Mended, ogg_end, places_of, present_of, read_header
from model.audio.windows import SAMPLE_RATE, SILENCE_DB, TOO_SHORT, Waveform, is_silent, peak_of

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
    """Decode a file, mix it to mono and resample it to 16 kHz.

    Mono is the mean of the channels; by their places where a layout says them of more than two; and the strongest
    channel alone, with a warning, where they cancel (`Downmix`). The first sample is the music's: what an encoder put
    before it is left out, by what the file says or else by what its codec is known to need.
    The format is what the first bytes say, never the name. Reading is by blocks and ends at the first limit, so memory
    is bounded by `max_seconds`, whatever the header declares. A file that breaks off is kept as far as it goes, with a
    warning. The same bytes give the same waveform, but for the last bits, in which a decoder's vector code may differ.
    This decodes in the caller's process: bytes from strangers belong in `service.work.uploads.Decoder`.

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
        clip, strongest = _mixed(file, max_seconds, max_channels)
        if strongest is not None:  # twice, so that no other file costs what only this one needs
            clip, _ = _mixed(file, max_seconds, max_channels, only=strongest)
            cancel = f"The channels cancel when mixed: channel {strongest + 1} of {clip.channels} is heard alone."
            clip = replace(clip, warnings=(*clip.warnings, cancel))
    if is_silent(clip.waveform):
        peak_db = float(20 * np.log10(max(peak_of(clip.waveform), 1e-10)))
        raise errors.SilentClip(peak_db=peak_db, floor_db=SILENCE_DB)
    return clip


def _mixed(
    file: BinaryIO, max_seconds: float | None, max_channels: int, only: int | None = None
) -> tuple[Clip, int | None]:
    """The clip, silent or not, by all of its channels or by one, and which is to be heard where all of them cancel."""
    with _open_stream(file, max_channels) as stream:
        downmix = Downmix(stream.channels, stream.places, only=only)
        clip, frames = _collect(stream, downmix, max_seconds, max_channels)
        return clip, downmix.cancelled(frames)


@dataclass(frozen=True, eq=False)
class Part:
    """Frames of a recording as they are: `samples` is float32 (channels, n), from frame `first` on, at `sample_rate`
    Hz, finite. Fewer than asked where the recording ends."""

    samples: Waveform
    sample_rate: int
    first: int


def load_part(
    source: Path | bytes | BinaryIO,
    wanted: Callable[[int], tuple[int, int | None]],
    *,
    max_seconds: float,
    max_channels: int = 8,
) -> Part:
    """Decode some of a file, all its channels at its own rate. What breaks off is kept as far as it goes.

    Args:
        source, max_seconds, max_channels: as of `load_clip`, and as of the whole file, if all of it is read.
        wanted: given the rate, the first frame and how many (None: all that follow).

    Raises:
        AudioError, OSError: as `load_clip`; but short or silent audio is no error.
    """
    with _opened(source) as file, _open_stream(file, max_channels) as stream:
        first, count = wanted(stream.sample_rate)
        at = stream.seek(first) if stream.seek is not None else 0
        pieces: list[Waveform] = []
        try:
            for block in _within_limits(stream, max_seconds, max_channels):
                low = max(0, first - at)
                high = len(block) if count is None else min(len(block), first + count - at)
                if low < high:
                    pieces.append(block[low:high])
                at += len(block)
                if count is not None and at >= first + count:
                    break
        except errors.DecodeFailed:
            if not pieces:
                raise
    samples = np.concatenate(pieces).T if pieces else np.zeros((stream.channels, 0), np.float32)
    return Part(samples, stream.sample_rate, min(first, at))


@dataclass(frozen=True)
class _Stream:
    """An opened file: what its header says, and its audio as float32 blocks (frames, channels).

    `declared_s` is None when the header does not tell the length. `present` is the part of the declared audio bytes
    that the file really has; `ended` is False when the container lacks its end mark. `places`: see `Downmix`.
    """

    format: AudioFormat
    sample_rate: int
    channels: int
    blocks: Iterator[Waveform]
    declared_s: float | None = None
    present: float = 1.0
    ended: bool = True
    seek: Callable[[int], int] | None = None  # go to a frame, or to the end; returns which
    places: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@contextmanager
def _open_stream(file: BinaryIO, max_channels: int) -> Iterator[_Stream]:
    size = file.seek(0, io.SEEK_END)
    if size == 0:
        raise errors.EmptyFile
    kind = sniff_format(file)
    file.seek(after_tags(file))
    head = file.read(HEAD)
    if kind is None:
        raise errors.UnknownFormat(other_kind(head))
    demuxer = demuxer_of(kind, head)
    if demuxer is None:
        opened = _open_soundfile(file, kind, size, max_channels)
    else:
        opened = _open_av(file, kind, demuxer, head, size, max_channels)
    with opened as stream:
        yield stream


def _within_limits(stream: _Stream, max_seconds: float | None, max_channels: int) -> Iterator[Waveform]:
    """The stream's blocks, checked one by one."""
    rate, frames = stream.sample_rate, 0
    most = None if max_seconds is None else int(max_seconds * max_channels * FULL_RATE)
    if most is not None and max_seconds is not None and stream.declared_s is not None:
        declared = stream.declared_s * rate * stream.channels
        if stream.declared_s <= max_seconds and declared > most:  # else it is too long, and decoding tells by how much
            raise errors.TooManySamples(most)
    for block in stream.blocks:
        peak = peak_of(block)
        if not peak <= LOUDEST:  # NaN compares false
            raise errors.NonFiniteSamples(seconds=frames / rate)
        frames += len(block)
        if max_seconds is not None and frames > max_seconds * rate:
            raise errors.ClipTooLong(seconds=max(frames / rate, stream.declared_s or 0.0), maximum=max_seconds)
        if most is not None and frames * stream.channels > most:
            raise errors.TooManySamples(most)
        yield block


def _collect(stream: _Stream, downmix: Downmix, max_seconds: float | None, max_channels: int) -> tuple[Clip, int]:
    """The clip, silent or not, and how many frames of the file it is made of."""
    rate, frames = stream.sample_rate, 0
    resampler = (
        None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    )
    pieces: list[Waveform] = []
    failure: errors.DecodeFailed | None = None
    try:
        for block in _within_limits(stream, max_seconds, max_channels):
            frames += len(block)
            mono = downmix.mix(block)
            pieces.append(mono if resampler is None else resampler.resample_chunk(mono))
    except errors.DecodeFailed as error:
        failure = error
    if resampler is not None:
        pieces.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    waveform = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)

    decoded_s = frames / rate
    declared_s = decoded_s / stream.present if stream.present < 1 else stream.declared_s
    short_of = declared_s is not None and declared_s - decoded_s > EARLY_END_S
    warnings = stream.warnings
    extent = ""
    if short_of or not stream.ended or (failure and declared_s is None):
        extent = f"{decoded_s:.1f} s of {declared_s:.1f} s" if short_of else f"{decoded_s:.1f} s"
        warnings = (*warnings, f"The file ends early: {extent} could be decoded.")
    if len(waveform) <= TOO_SHORT:
        if failure or extent:
            raise failure or errors.DecodeFailed(f"it ends early, after {extent}")
        raise errors.ClipTooShort(seconds=decoded_s)
    return Clip(waveform, rate, stream.channels, stream.format, warnings), frames


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
        raise errors.TooManyChannels(channels=channels, maximum=max_channels)
    if channels < 1 or sample_rate not in SAMPLE_RATES:
        raise errors.DecodeFailed(f"the header claims {channels} channels at {sample_rate} Hz")


_SOUNDFILE_FORMATS = {"wav": {"WAV", "WAVEX", "RF64", "W64"}, "aiff": {"AIFF"}, "flac": {"FLAC"}}
_SOUNDFILE_FORMATS |= {"ogg": {"OGG"}, "opus": {"OGG"}}
_UNKNOWN_FRAMES = 2**62  # libsndfile's word for "not told" is 2**63 - 1


class _Sequential(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """Reads without the seek that soundfile does around each block: it fails, or loses the block, in damaged files."""

    at = 0  # frame

    def seekable(self) -> bool:
        return False


@contextmanager
def _open_soundfile(file: BinaryIO, kind: AudioFormat, size: int, max_channels: int) -> Iterator[_Stream]:
    header = read_header(file, kind, size) if kind in ("wav", "aiff") else Header()
    if header.channels is not None and header.channels > max_channels:  # libsndfile gives no number of too many
        raise errors.TooManyChannels(channels=header.channels, maximum=max_channels)
    ended, chained = ogg_end(file, size) if kind in ("ogg", "opus") else (True, False)
    file.seek(0)
    read = Mended(file, header.mended) if header.mended else file
    try:
        sound = _Sequential(FromStart(Filled(read, header.unfilled) if header.unfilled else read))
    except soundfile.LibsndfileError as error:
        raise _unreadable(error) from error
    with sound:
        if sound.format not in _SOUNDFILE_FORMATS[kind]:
            raise errors.UnknownFormat
        _refuse_header(sound.samplerate, sound.channels, max_channels)
        declared_s = sound.frames / sound.samplerate if 0 < sound.frames < _UNKNOWN_FRAMES else None
        places = header.places if kind in ("wav", "aiff") else places_of(kind, sound.channels)
        warnings: tuple[str, ...] = ()
        if header.untold:
            warnings = ("The header does not tell how long the file is: it is read to its end.",)
        elif chained:
            warnings = ("The file holds several recordings, one behind the other: the first one is heard.",)
        blocks = _soundfile_blocks(sound)
        seek = _seeker(sound) if kind in ("wav", "aiff", "flac") and declared_s is not None else None
        yield _Stream(
            kind, sound.samplerate, sound.channels, blocks, declared_s, header.present, ended, seek, places, warnings
        )


def _seeker(sound: _Sequential) -> Callable[[int], int]:
    def seek(frame: int) -> int:
        try:
            sound.at = int(sound.seek(min(frame, sound.frames)))
            return sound.at
        except soundfile.LibsndfileError as error:
            raise _unreadable(error) from error

    return seek


def _soundfile_blocks(sound: _Sequential) -> Iterator[Waveform]:
    """No more than is there: of a FLAC file with a tag at its end libsndfile loses the block that reaches into it."""
    try:
        while len(block := sound.read(min(BLOCK, sound.frames - sound.at), dtype="float32", always_2d=True)):
            sound.at += len(block)
            yield block
    except soundfile.LibsndfileError as error:
        raise _unreadable(error) from error


def _unreadable(error: soundfile.LibsndfileError) -> Exception:
    if error.code == _SFE_MALLOC_FAILED:
        return MemoryError()
    if error.code == _SFE_BAD_FILE:
        return errors.DecodeFailed("there is no audio in it")
    return errors.DecodeFailed(error.error_string.removeprefix("Error : ").rstrip("."))


# Codes of libsndfile's private header, stable since 2000.
_SFE_BAD_FILE = 7
_SFE_MALLOC_FAILED = 17


# FFmpeg: only these, and never by its own guess.

_TELL_LENGTH = {"m4a", "caf", "wavpack", "ape", "musepack", "dsf", "dsdiff", "tta", "tak", "ogg"}


@contextmanager
def _open_av(
    file: BinaryIO, kind: AudioFormat, demuxer: str, head: bytes, size: int, max_channels: int
) -> Iterator[_Stream]:
    import av

    present = present_of(file, kind, head, size)
    told = kind in _TELL_LENGTH or (kind == "mp3" and _mp3_tells_length(file))
    ended = kind != "ogg" or ogg_end(file, size)[0]
    file.seek(0)
    try:
        # Probing opens decoders too: the list keeps it from those for pictures and films.
        options = {"codec_whitelist": ",".join(sorted(CODECS))}
        container = av.open(file, "r", format=demuxer, options=options, metadata_errors="replace")
    except av.InvalidDataError as error:
        raise errors.DecodeFailed("its header or its index is missing or damaged") from error
    except (av.FFmpegError, ValueError) as error:
        raise _av_failure(error) from error
    with container:
        if not container.streams.audio:
            raise errors.NoAudioStream
        stream = container.streams.audio[0]
        context = stream.codec_context
        if context is None or context.name not in CODECS:
            coded = "in a way that is not known" if context is None else f"as {context.name}"
            raise errors.DecodeFailed(f"its audio is coded {coded}, which we do not decode")
        _refuse_header(context.sample_rate, context.channels, max_channels)
        context.thread_count = 1
        declared_s = None
        if told and stream.duration and stream.time_base:
            declared_s = float(stream.duration * stream.time_base)
        elif kind in ("webm", "matroska") and container.duration and len(container.streams) == 1:
            declared_s = container.duration / av.time_base
        several = len(container.streams.audio)
        warnings = (f"The file holds {several} audio streams: the first one is heard.",) if several > 1 else ()
        places = tuple(channel.name for channel in context.layout.channels)
        blocks = _av_blocks(container, stream, context.sample_rate)
        yield _Stream(
            kind, context.sample_rate, context.channels, blocks, declared_s, present, ended, None, places, warnings
        )


def _mp3_tells_length(file: BinaryIO) -> bool:
    """Whether the first frame holds a count of frames; if not, FFmpeg's duration is a guess from the bit rate."""
    file.seek(after_tags(file))
    frame = file.read(200)
    return any(mark in frame for mark in (b"Xing", b"Info", b"VBRI"))


def _av_blocks(
    container: "av.container.InputContainer", stream: "av.AudioStream", sample_rate: int
) -> Iterator[Waveform]:
    from av import FFmpegError

    if stream.codec_context.name in WINDOWS_MEDIA:  # FFmpeg would leave out two frames, and its own encoder writes one
        stream.codec_context.flags2 |= SKIP_MANUAL
    late: int | None = None
    frames = _av_frames(container, stream)
    while True:
        try:
            packet, frame = next(frames, (None, None))
        except (FFmpegError, ValueError) as error:
            raise _av_failure(error) from error
        if packet is None or frame is None:
            return
        if frame.sample_rate != sample_rate:
            raise errors.DecodeFailed(f"the sample rate changes from {sample_rate} to {frame.sample_rate} Hz")
        if late is None:
            late = frames_before_the_music(stream.codec_context, packet, frame.samples, container.metadata)
        samples = frame.to_ndarray()
        samples = samples.T if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels)
        if samples.dtype.kind == "u":
            samples = samples.astype(np.float32) - np.float32(128.0)
            samples /= np.float32(128.0)
        elif samples.dtype.kind != "f":
            samples = samples / np.float32(2.0 ** (8 * samples.dtype.itemsize - 1))
        left_out = min(late, len(samples))
        late -= left_out
        yield samples[left_out:].astype(np.float32, copy=False)


def _av_frames(container: "av.container.InputContainer", stream: "av.AudioStream") -> Iterator[Any]:
    """Each decoded frame with the file's first packet."""
    first = None
    for packet in container.demux(stream):
        first = first or packet
        for frame in packet.decode():
            yield first, frame


def _av_failure(error: Exception) -> Exception:
    if isinstance(error, MemoryError):
        return MemoryError()
    return errors.DecodeFailed(getattr(error, "strerror", None) or str(error))
