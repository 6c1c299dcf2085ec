"""What goes into the encoder: a file decoded to a waveform and cut into windows, and what a clip is musically."""

from model.audio.decode import (
    MIN_SECONDS,
    SAMPLE_RATE,
    AudioError,
    AudioFormat,
    Clip,
    ClipTooLong,
    ClipTooShort,
    DecodeFailed,
    EmptyFile,
    NoAudioStream,
    NonFiniteSamples,
    SilentClip,
    TooManyChannels,
    UnknownFormat,
    Waveform,
    cut_windows,
    is_silent,
    load_clip,
    needs_ffmpeg,
    window_starts,
)
