"""What goes into the encoder: a file decoded to a waveform and cut into windows, and what a clip is musically."""

from model.audio.decode import SAMPLE_RATES, Clip, Part, load_clip, load_part
from model.audio.errors import (
    AudioError,
    ClipTooLong,
    ClipTooShort,
    DecodeFailed,
    EmptyFile,
    NoAudioStream,
    NonFiniteSamples,
    SilentClip,
    TooManyChannels,
    TooManySamples,
    UnknownFormat,
)
from model.audio.formats import ENDINGS, HEAD, AudioFormat, demuxer_of, needs_ffmpeg
from model.audio.harmony import compatible_keys, tonic_of
from model.audio.stem_files import StemPart, stem_of_file, stems_in_file
from model.audio.windows import MIN_SECONDS, SAMPLE_RATE, Waveform, Windows, cut_windows, is_silent, window_starts
