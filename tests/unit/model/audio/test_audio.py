"""What is read of a file, and the error that names the fault of a bad one; every format: test_formats.py."""

import io
import pickle
import struct
import time
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest

from model.audio import SAMPLE_RATE, AudioError, errors, is_silent, load_clip
from tests.audio_files import by_soundfile

SECONDS = 2.0
TONE_HZ = 440.0
LEVEL = 0.5

HOUR_LIMIT_S = 600.0
HOUR_CPU_S = 5.0  # 0.8 s measured, with tracemalloc on
HOUR_BYTES = 1.1 * HOUR_LIMIT_S * SAMPLE_RATE * 4  # the samples up to the limit, and little else


def tone(rate: int, channels: int = 1, seconds: float = SECONDS) -> np.ndarray:
    """The tone in every channel, (frames, channels)."""
    wave = LEVEL * np.sin(2 * np.pi * TONE_HZ * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave[:, None], channels, axis=1)


def encode(samples: np.ndarray, rate: int, kind: str, subtype: str | None = None) -> bytes:
    return by_soundfile(kind, subtype)(samples, rate)


def wav(samples: np.ndarray, rate: int = SAMPLE_RATE) -> bytes:
    return encode(samples, rate, "WAV", "PCM_16")


def film_without_sound() -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for _ in range(5):
            file.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        file.mux(stream.encode(None))
    return out.getvalue()


def test_format_is_what_the_bytes_say_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "stem.mp3"
    path.write_bytes(encode(tone(44100), 44100, "FLAC", "PCM_16"))
    assert load_clip(path).format == "flac"


@pytest.mark.parametrize("kept", [12, 23, 46, 59])
def test_a_file_that_ends_in_its_header_is_refused_without_a_word_beside(kept: int) -> None:
    """libsndfile goes before the start of such a file, which a file of Python's refuses loudly."""
    with pytest.raises(AudioError):
        load_clip(encode(tone(SAMPLE_RATE), SAMPLE_RATE, "AIFF")[:kept])


def test_mono_is_the_mean_of_the_channels() -> None:
    stereo = np.concatenate([tone(SAMPLE_RATE), 0 * tone(SAMPLE_RATE)], axis=1)
    clip = load_clip(encode(stereo, SAMPLE_RATE, "WAV", "FLOAT"))
    np.testing.assert_array_equal(clip.waveform, stereo.astype(np.float32).mean(axis=1))


def test_decoding_twice_gives_the_same_samples(tmp_path: Path) -> None:
    data = encode(tone(44100, 2), 44100, "OGG", "VORBIS")
    (tmp_path / "x").write_bytes(data)
    with (tmp_path / "x").open("rb") as file:
        again = load_clip(file)
    np.testing.assert_array_equal(load_clip(data).waveform, again.waveform)
    np.testing.assert_array_equal(load_clip(data).waveform, load_clip(tmp_path / "x").waveform)


@pytest.mark.parametrize("kind", ["WAV", "RF64", "W64", "AIFF", "FLAC", "MP3"])
def test_cut_off_file_is_kept_with_what_it_lost(kind: str) -> None:
    rng = np.random.default_rng(0)  # noise, so that FLAC cannot put it all at the front
    data = encode(rng.uniform(-0.5, 0.5, (5 * 44100, 1)), 44100, kind)
    clip = load_clip(data[: len(data) * 6 // 10])
    assert 2.5 < clip.duration_s < 3.5
    assert clip.warnings == (f"The file ends early: {clip.duration_s:.1f} s of 5.0 s could be decoded.",)


def test_flac_that_declares_hours_is_measured_by_what_it_decodes_to() -> None:
    data = bytearray(encode(tone(44100), 44100, "FLAC", "PCM_16"))
    data[22:26] = struct.pack(">I", 2 * 3600 * 44100)
    clip = load_clip(bytes(data), max_seconds=10)
    assert clip.warnings == ("The file ends early: 2.0 s of 7200.0 s could be decoded.",)


def many_channels(channels: int) -> bytes:
    fmt = struct.pack("<HHIIHH", 1, channels, 44100, 44100 * channels * 2, channels * 2, 16)
    sizes = [struct.pack("<I", size) for size in (4 + 24 + 8 + 4096, 16, 4096)]
    return b"RIFF" + sizes[0] + b"WAVEfmt " + sizes[1] + fmt + b"data" + sizes[2] + bytes(4096)


def absurd_rate(rate: int) -> bytes:
    data = bytearray(wav(tone(SAMPLE_RATE)))
    data[24:28] = struct.pack("<I", rate)
    return bytes(data)


def with_sample(value: float) -> bytes:
    samples = tone(SAMPLE_RATE)
    samples[20_000] = value
    return encode(samples, SAMPLE_RATE, "WAV", "FLOAT")


MP3 = encode(tone(44100, seconds=3.0), 44100, "MP3")

BAD_FILES: list[tuple[str, bytes, type[AudioError], str]] = [
    ("no bytes", b"", errors.EmptyFile, "empty"),
    ("text named .wav", b"this is not a sound\n" * 100, errors.UnknownFormat, "not audio"),
    ("UTF-16 text", "no sound at all".encode("utf-16"), errors.UnknownFormat, "not audio"),
    ("an ID3 tag over nothing", b"ID3\x04\x00\x00\x00\x00\x00\x10" + bytes(16), errors.DecodeFailed, "decoded"),
    ("a WAVE header alone", wav(tone(SAMPLE_RATE))[:44], errors.ClipTooShort, "0.000 s"),
    ("a WAVE with no samples", wav(np.zeros((0, 1))), errors.ClipTooShort, "0.000 s"),
    ("FLAC that is garbage", b"fLaC" + bytes(range(256)) * 8, errors.DecodeFailed, "decoded"),
    ("Ogg that is garbage", b"OggS" + bytes(range(256)) * 8, errors.DecodeFailed, "decoded"),
    ("MP4 that is garbage", b"\x00\x00\x00\x20ftypM4A " + bytes(range(256)) * 8, errors.DecodeFailed, "decoded"),
    ("AAC that is garbage", b"\xff\xf1" + bytes(range(256)) * 8, errors.DecodeFailed, "decoded"),
    ("an mp3 cut before a second", MP3[: len(MP3) // 4], errors.DecodeFailed, "ends early, after 0.[0-9] s of 3.0 s"),
    ("a film without sound", film_without_sound(), errors.NoAudioStream, "no audio stream"),
    ("one second", wav(tone(SAMPLE_RATE, seconds=1.0)), errors.ClipTooShort, "1.000 s"),
    ("exactly the minimum", wav(tone(SAMPLE_RATE, seconds=1.024)), errors.ClipTooShort, "1.024 s"),
    ("silence", wav(np.zeros((5 * SAMPLE_RATE, 2))), errors.SilentClip, "silent"),
    ("dither", wav(np.random.default_rng(0).integers(-2, 3, (80_000, 1)) / 32768), errors.SilentClip, "silent"),
    ("5000 channels", many_channels(5000), errors.TooManyChannels, "5000 channels"),
    ("no channels", many_channels(0), errors.DecodeFailed, "decoded"),
    ("0 Hz", absurd_rate(0), errors.DecodeFailed, "decoded"),
    ("10 MHz", absurd_rate(10_000_000), errors.DecodeFailed, "10000000 Hz"),
    ("NaN", with_sample(np.nan), errors.NonFiniteSamples, "not finite"),
    ("infinity", with_sample(-np.inf), errors.NonFiniteSamples, "not finite"),
    ("a bomb of a sample", with_sample(1e30), errors.NonFiniteSamples, "absurdly large"),
]


@pytest.mark.parametrize(("data", "error", "words"), [pytest.param(*case[1:], id=case[0]) for case in BAD_FILES])
def test_bad_file_gets_the_error_that_names_its_fault(data: bytes, error: type[AudioError], words: str) -> None:
    with pytest.raises(error, match=words):
        load_clip(data)


def test_clip_just_over_the_minimum_is_taken() -> None:
    assert len(load_clip(wav(tone(SAMPLE_RATE, seconds=16_385 / SAMPLE_RATE))).waveform) == 16_385


@pytest.mark.parametrize("kind", ["FLAC", "WAV"])
def test_few_bytes_that_cost_much_to_decode_are_refused_at_once(kind: str) -> None:
    """Eight channels at 655 kHz: no limit of length or of channels is passed."""
    seconds, rate = 4.0, 655_350
    data = encode(np.full((round(seconds * rate), 8), LEVEL, np.float32), rate, kind)
    begun = time.process_time()
    with pytest.raises(errors.TooManySamples) as caught:
        load_clip(data, max_seconds=10.0)
    assert time.process_time() - begun < 0.5
    assert caught.value.maximum == 10 * 8 * 48_000
    assert load_clip(encode(tone(192_000, 2), 192_000, kind), max_seconds=SECONDS).channels == 2


@pytest.mark.slow
def test_hour_of_silence_is_left_at_the_limit(hour_of_silence: Path) -> None:
    assert hour_of_silence.stat().st_size < 2**20
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(errors.ClipTooLong) as caught:
        load_clip(hour_of_silence, max_seconds=HOUR_LIMIT_S)
    took = time.process_time() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.seconds == 3600
    assert took < HOUR_CPU_S
    assert peak < HOUR_BYTES


def test_long_clip_is_refused_with_the_length_it_declares() -> None:
    with pytest.raises(errors.ClipTooLong) as caught:
        load_clip(wav(tone(SAMPLE_RATE, seconds=4.0)), max_seconds=3.0)
    assert (caught.value.seconds, caught.value.maximum) == (4.0, 3.0)


def test_clip_of_exactly_the_longest_length_is_taken() -> None:
    assert load_clip(wav(tone(SAMPLE_RATE)), max_seconds=SECONDS).duration_s == SECONDS


def test_audio_error_survives_a_process_border() -> None:
    for error in (
        errors.EmptyFile(),
        errors.ClipTooShort(seconds=0.6),
        errors.DecodeFailed("no"),
        errors.TooManyChannels(64, 8),
        errors.TooManySamples(100),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), copy.facts) == (type(error), str(error), error.facts)


def test_audio_error_codes_are_unique_and_kebab_case() -> None:
    codes = [kind.code for kind in AudioError.__subclasses__() if kind.__module__ == "model.audio.errors"]
    assert len(set(codes)) == len(codes) == 10
    assert all(code == code.lower() and " " not in code and "_" not in code for code in codes)


def test_is_silent_draws_its_line_at_80_db_under_full_scale() -> None:
    wave = np.zeros(1000, np.float32)
    wave[500] = -0.99e-4
    assert is_silent(wave)
    wave[500] = -1.01e-4
    assert not is_silent(wave)
