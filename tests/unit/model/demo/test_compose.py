"""What the composer promises: one key, one tempo and one time origin for all stems of a track."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile

from model.audio.harmony import FAMILIES, Chord, parse_chord, parse_progression, scale_under, voice_chord
from model.demo.compose import INSTRUMENTS, compose_track
from model.demo.track import Track, title_of, write_track

RATE = 22_050  # lower than the default, for speed; the notes do not depend on it
SEEDS = range(6)  # six in a row have every metre
PLAYED_EARLY_S = 0.007  # a note starts at most 6 ms before its tick
SILENT_RMS = 10 ** (-60 / 20)
FADE_S = 0.002  # the shortest fade
OFFSET = 1e-4  # 80 dB under full scale
ONE_LSB = 1.01 / 32768  # 16 bits, with the rounding of the reader
NEAR_PITCH = 0.03  # of the frequency; a semitone is 0.059


@pytest.fixture(scope="module")
def tracks() -> list[Track]:
    return [compose_track(seed, 20.0, RATE) for seed in SEEDS]


def chords_at(track: Track, onset_s: float) -> list[int]:
    """Indices of the chords at a note's onset: two around a change, where a note may be early or late."""
    return [
        i
        for i, span in enumerate(track.chords)
        if span.onset_s - PLAYED_EARLY_S <= onset_s <= span.onset_s + span.duration_s + PLAYED_EARLY_S
    ]


def test_composer_needs_nothing_but_numpy() -> None:
    program = (
        "import sys, types\n"
        "for room in ('audio', 'demo'):\n"
        "    package = sys.modules[f'model.{room}'] = types.ModuleType(room); package.__path__ = [f'model/{room}']\n"
        "import model.demo.compose\n"
        "assert not {'torch', 'soundfile', 'scipy', 'librosa'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_same_seed_gives_same_samples_and_notes() -> None:
    first, second = compose_track(3, 4.0), compose_track(3, 4.0)
    for a, b in zip(first.stems, second.stems, strict=True):
        assert a.notes == b.notes
        assert a.waveform.tobytes() == b.waveform.tobytes()
    assert (first.title, first.key, first.tempo_bpm) == (second.title, second.key, second.tempo_bpm)


def test_different_seeds_differ_in_title_key_tempo_and_melody() -> None:
    twelve = [compose_track(seed, 2.0, 16_000) for seed in range(12)]
    assert len({t.title for t in twelve}) == 12
    assert len({t.key.split()[0] for t in twelve}) >= 11  # twelve tonics; C# and Db are spelled apart, G# and Ab too
    assert {t.mode for t in twelve} == {"major", "minor"}
    assert {t.metre for t in twelve} == {"4/4", "3/4", "6/8"}
    assert len({t.tempo_bpm for t in twelve}) >= 8
    assert len({tuple(n.pitch for n in t.stem("lead").notes) for t in twelve}) == 12


def test_stems_are_audible_and_without_offset(tracks: list[Track]) -> None:
    for track in tracks:
        assert tuple(s.instrument for s in track.stems) == INSTRUMENTS
        for stem in track.stems:
            waveform = stem.waveform
            assert waveform.dtype == np.float32
            assert abs(waveform.mean(dtype=np.float64)) < OFFSET
            windows = [waveform[int(s * RATE) : int((s + 5.0) * RATE)] for s in np.arange(0.0, 15.1, 2.5)]
            silent = sum(np.sqrt(np.mean(w**2)) < SILENT_RMS for w in windows)
            assert silent * 4 <= len(windows)


def test_stems_start_and_end_at_rest(tracks: list[Track]) -> None:
    for track in tracks:
        for stem in track.stems:
            assert abs(stem.waveform[0]) < OFFSET
            assert abs(stem.waveform[-1]) < OFFSET
            assert np.abs(stem.waveform[-int(FADE_S * RATE) :]).max() < 0.02


def test_mix_is_the_sum_of_all_stems(tracks: list[Track]) -> None:
    for track in tracks:
        total = np.sum([s.waveform for s in track.stems], axis=0, dtype=np.float32)
        np.testing.assert_array_equal(track.mix(), total)
        np.testing.assert_array_equal(track.submix(["bass", "bass"]), track.stem("bass").waveform)


def test_bar_after_bar_is_no_copy(tracks: list[Track]) -> None:
    """No two windows of 2.5 s of a stem are the same sound, whatever the notes repeat."""
    for track in tracks:
        for stem in track.stems:
            windows = stem.waveform[: 20 * RATE // 8 * 8].reshape(8, -1)
            spectra = np.abs(np.fft.rfft(windows))
            spectra /= np.linalg.norm(spectra, axis=1, keepdims=True)
            alike = spectra @ spectra.T - np.eye(8)
            assert alike.max() < 0.999


def test_harmony_instruments_play_the_chord(tracks: list[Track]) -> None:
    for track in tracks:
        for instrument in ("pads", "keys"):
            for note in track.stem(instrument).notes:
                spans = [track.chords[i] for i in chords_at(track, note.onset_s)]
                assert any(note.pitch % 12 in s.chord.pitch_classes for s in spans), (track.title, note)


def test_bass_and_lead_stay_in_the_chords_scale(tracks: list[Track]) -> None:
    for track in tracks:
        for instrument in ("bass", "lead"):
            for note in track.stem(instrument).notes:
                spans = [track.chords[i] for i in chords_at(track, note.onset_s)]
                assert any(note.pitch % 12 in s.scale for s in spans), (track.title, note)


def test_bass_starts_each_chord_on_its_root(tracks: list[Track]) -> None:
    for track in tracks:
        notes = track.stem("bass").notes
        for span in track.chords:
            near = [n for n in notes if abs(n.onset_s - span.onset_s) < PLAYED_EARLY_S]
            assert any(n.pitch % 12 == span.chord.root for n in near), (track.title, span)


def test_bass_sounds_the_pitches_of_its_notes(tracks: list[Track]) -> None:
    for track in tracks:
        held = [n for n in track.stem("bass").notes if n.duration_s > 0.3][:8]
        for note in held:
            start = round((note.onset_s + 0.05) * RATE)
            stop = round((note.onset_s + note.duration_s) * RATE)
            tone = track.stem("bass").waveform[start:stop]
            spectrum = np.abs(np.fft.rfft(tone * np.hanning(len(tone)), 1 << 17))
            spectrum[: int(25.0 / RATE * (1 << 17))] = 0.0
            found = np.argmax(spectrum) * RATE / (1 << 17)
            expected = 440.0 * 2.0 ** ((note.pitch - 69) / 12.0)
            assert abs(found / expected - 1.0) < NEAR_PITCH, (track.title, note)


def test_track_is_written_as_flac_the_same_twice(tracks: list[Track], tmp_path) -> None:
    track = tracks[0]
    first, second = write_track(track, tmp_path / "a"), write_track(track, tmp_path / "b")
    assert first == [tmp_path / "a" / f"{instrument}.flac" for instrument in INSTRUMENTS]
    for a, b, stem in zip(first, second, track.stems, strict=True):
        assert a.read_bytes() == b.read_bytes()
        read, rate = soundfile.read(a, dtype="float32")
        assert rate == RATE
        np.testing.assert_allclose(read, stem.waveform, atol=ONE_LSB)


def test_metadata_names_track_instrument_key_and_tempo(tracks: list[Track]) -> None:
    metadata = tracks[1].metadata("bass")
    assert set(metadata) == {"title", "instrument", "tags", "track", "collection", "tempo_bpm", "key"}
    assert metadata["instrument"] == "bass"
    assert metadata["track"] == tracks[1].title
    assert metadata["collection"] == "Demo"
    assert metadata["tempo_bpm"] == tracks[1].tempo_bpm
    assert metadata["key"] == tracks[1].key
    assert all(isinstance(tag, str) and tag for tag in metadata["tags"])


def test_titles_are_unique_past_the_words() -> None:
    assert len({title_of(seed) for seed in range(2100)}) == 2100


def test_track_without_the_instrument_says_which_it_has(tracks: list[Track]) -> None:
    with pytest.raises(KeyError, match="drums, bass, pads, keys, lead"):
        tracks[0].stem("oboe")
    with pytest.raises(ValueError, match="at least one instrument"):
        tracks[0].submix([])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1,), "seed"),
        ((0, 0.5), "lasts"),
        ((0, float("nan")), "lasts"),
        ((0, 1e6), "lasts"),
        ((0, 2.0, 8000), "sample rate"),
    ],
)
def test_composer_refuses_what_it_cannot_play(arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose_track(*arguments)


def test_chord_symbols_read_as_musicians_write_them() -> None:
    assert parse_chord("F#m7").pitch_classes == (6, 9, 1, 4)
    assert parse_chord("Bbmaj7").pitch_classes == (10, 2, 5, 9)
    assert parse_progression("Dm7 G7", tonic=2) == [Chord(4, "m7"), Chord(9, "7")]
    with pytest.raises(ValueError, match="H7"):
        parse_chord("H7")


def test_every_familys_progressions_can_be_read() -> None:
    for family in FAMILIES:
        for progression in family.progressions:
            assert len(parse_progression(progression, 0)) in (4, 8)


def test_scale_steps_back_from_a_borrowed_tone() -> None:
    over_e7 = scale_under(parse_chord("E7"), (0, 2, 4, 5, 7, 9, 11))
    assert 8 in over_e7  # G#
    assert 7 not in over_e7


def test_voices_move_less_than_a_third_each_from_chord_to_chord() -> None:
    voicing = None
    for chord in parse_progression("C Am7 Dm7 G7 Cmaj7 F G C", 0):
        following = voice_chord(chord, voicing)
        assert {p % 12 for p in following} == set(chord.pitch_classes)
        if voicing is not None:
            assert sum(abs(a - b) for a, b in zip(following, voicing, strict=True)) < 4 * 4
        voicing = following
