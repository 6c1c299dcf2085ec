"""Stems at another tempo and in another key: onsets, pitches, beats and keys lie where they should."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from model.audio import SAMPLE_RATE
from model.audio.stretch import played
from model.audio.truth import Truth
from model.demo import compose_track, write_track
from model.evaluation.retimed import SEMITONES, SPEEDS, RetimedBank
from model.training.stems import StemBank, load_bank

ONSET_MS = 2.0  # a twentieth of what a listener calls late
CENTS = 5.0  # a twentieth of a semitone
SAME_TEMPO = 1e-4  # a track is a whole number of samples
TRACKS, SECONDS = 6, 12.0


def clicks(at_s: np.ndarray, seconds: float) -> np.ndarray:
    """A short burst at each moment; float32 (samples,)."""
    wave = np.zeros(round(seconds * SAMPLE_RATE) + 400, np.float32)
    burst = np.exp(-np.arange(400) / 80) * np.sin(2 * np.pi * 1500 * np.arange(400) / SAMPLE_RATE)
    for second in at_s:
        wave[round(second * SAMPLE_RATE) :][:400] += burst.astype(np.float32)
    return wave[:-400]


def onset_ms(wave: np.ndarray, second: float) -> float:
    """How late the burst near a moment begins."""
    first = max(0, round((second - 0.1) * SAMPLE_RATE))
    near = np.abs(wave[first : first + round(0.2 * SAMPLE_RATE)])
    return 1000 * ((first + int(np.argmax(near > 0.2 * near.max()))) / SAMPLE_RATE - second)


@pytest.mark.parametrize("speed", [1 / SPEEDS[1], 1 / SPEEDS[0], SPEEDS[0], SPEEDS[1]])
@pytest.mark.parametrize("semitones", [-2, 0, 2])
def test_onsets_lie_where_the_speed_puts_them_from_the_first_to_the_last(speed: float, semitones: int) -> None:
    at_s = np.arange(0.0, 100.0, 0.63)
    samples = round(100 * SAMPLE_RATE / speed)
    wave = played(clicks(at_s, 100.0), samples, semitones)
    assert len(wave) == samples
    assert max(abs(onset_ms(wave, second / speed)) for second in at_s) <= ONSET_MS


@settings(max_examples=20, deadline=None)
@given(st.integers(1_000, 40_000), st.floats(0.85, 1.18))
def test_a_retimed_waveform_is_exactly_as_long_as_asked_for(given_samples: int, speed: float) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, given_samples).astype(np.float32)
    wave = played(noise, round(given_samples / speed), 1)
    assert wave.shape == (round(given_samples / speed),)
    assert wave.any()


def test_a_view_is_heard_as_its_copy() -> None:
    both = np.random.default_rng(0).normal(0, 0.1, (SAMPLE_RATE * 2, 2)).astype(np.float32)
    view = both[:, 0]
    view.flags.writeable = False
    assert not view.flags.c_contiguous
    heard = played(view, 30_000, 2)
    assert heard.any()
    np.testing.assert_array_equal(heard, played(view.copy(), 30_000, 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("retimed")
    for seed in range(TRACKS):
        write_track(compose_track(seed, SECONDS, SAMPLE_RATE), home / "music" / f"{seed}")
    tuned = home / "music" / "tuned"
    tuned.mkdir()
    time_s = np.arange(round(SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    for name in ("notes", "drums"):
        soundfile.write(tuned / f"{name}.flac", 0.2 * np.sin(2 * np.pi * 440 * time_s), SAMPLE_RATE)
    Truth(tuple(np.arange(0, SECONDS, 0.5).tolist()), "A minor", {"notes": True, "drums": False}).write(tuned)
    return home


@pytest.fixture
def bank(folder: Path) -> StemBank:
    return load_bank([folder / "music"], folder / "banks")


def test_stems_that_play_notes_are_transposed_and_others_are_not(bank: StemBank, tmp_path: Path) -> None:
    retimed, track = RetimedBank(bank, tmp_path), len(bank.tracks) - 1
    assert bank.tracks[track].name == "music/tuned"
    for name, wave in zip(bank.tracks[track].stems, retimed.waveforms(track), strict=True):
        steady = wave[SAMPLE_RATE:-SAMPLE_RATE] * np.hanning(len(wave) - 2 * SAMPLE_RATE)
        hz = np.argmax(np.abs(np.fft.rfft(steady, 2**20))) * SAMPLE_RATE / 2**20
        expected = 440 * 2 ** ((retimed.transpose[track] if name == "notes" else 0) / 12)
        assert abs(1200 * np.log2(hz / expected)) <= CENTS


def test_tracks_are_faster_or_slower_within_the_limits_and_as_long_as_that_makes_them(
    bank: StemBank, tmp_path: Path
) -> None:
    retimed = RetimedBank(bank, tmp_path)
    for track, (before, after) in enumerate(zip(bank.tracks, retimed.tracks, strict=True)):
        speed = retimed.speed[track]
        assert SPEEDS[0] <= max(speed, 1 / speed) <= SPEEDS[1]
        assert retimed.transpose[track] in SEMITONES
        assert after.samples == round(before.samples / speed)
        assert retimed.waveforms(track).shape == (len(before.stems), after.samples)
        assert retimed.waveforms(track).any(axis=1).all()
        np.testing.assert_array_equal(retimed.waveforms(track)[:, 5_000:9_000], retimed.waveforms(track, 5_000, 4_000))
    assert {speed > 1 for speed in RetimedBank(bank, tmp_path, seed=1).speed} == {True, False}


def test_a_grid_is_as_much_faster_and_its_tempo_within_the_octave(bank: StemBank, tmp_path: Path) -> None:
    retimed = RetimedBank(bank, tmp_path)
    for before, after, speed in zip(bank.tracks, retimed.tracks, retimed.speed, strict=True):
        octaves = np.log2(after.grid.tempo_bpm / before.grid.tempo_bpm / speed)
        assert octaves == pytest.approx(round(octaves), abs=SAME_TEMPO)
        assert after.grid.beats_s[0] == pytest.approx(before.grid.beats_s[0] / speed)
        assert after.grid.beats_s[-1] <= after.samples / SAMPLE_RATE


@pytest.mark.parametrize(("semitones", "key"), [(-2, "G minor"), (-1, "G# minor"), (1, "Bb minor"), (2, "B minor")])
def test_a_key_is_as_much_higher(bank: StemBank, tmp_path: Path, semitones: int, key: str) -> None:
    drawn = (RetimedBank(bank, tmp_path, seed) for seed in range(100))
    of_wanted = next(retimed for retimed in drawn if retimed.transpose[-1] == semitones)
    assert of_wanted.tracks[-1].key == key


def test_a_stem_sounds_when_it_sounded(bank: StemBank, tmp_path: Path) -> None:
    retimed, second = RetimedBank(bank, tmp_path), SAMPLE_RATE
    for track in range(TRACKS):
        speed = retimed.speed[track]
        np.testing.assert_array_equal(
            retimed.audible(track, round(3 * second / speed), round(4 * second / speed)),
            bank.audible(track, 3 * second, 4 * second),
        )


def test_the_seed_and_the_name_alone_tell_how_a_track_is_changed(bank: StemBank, folder: Path, tmp_path: Path) -> None:
    write_track(compose_track(9, SECONDS, SAMPLE_RATE), tmp_path / "music" / "another")
    write_track(compose_track(3, SECONDS, SAMPLE_RATE), tmp_path / "music" / "3")
    fewer = RetimedBank(load_bank([tmp_path / "music"], tmp_path / "banks"), tmp_path / "kept")
    one, other = RetimedBank(bank, tmp_path / "one"), RetimedBank(bank, tmp_path / "other", seed=1)
    assert [track.name for track in fewer.tracks] == ["music/3", "music/another"]
    assert one.tracks[3].name == "music/3"
    assert (one.speed[3], one.transpose[3]) == (fewer.speed[0], fewer.transpose[0])
    np.testing.assert_array_equal(one.waveforms(3), fewer.waveforms(0))
    assert one.speed != other.speed


def test_stretched_stems_are_kept_and_read_again(bank: StemBank, tmp_path: Path) -> None:
    first = RetimedBank(bank, tmp_path).waveforms(0)
    (kept,) = tmp_path.iterdir()
    made = kept.stat().st_mtime_ns
    np.testing.assert_array_equal(RetimedBank(bank, tmp_path).waveforms(0), first)
    assert [path.stat().st_mtime_ns for path in tmp_path.iterdir()] == [made]
