"""Laws of the composer, for any seed."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from model.audio.harmony import FAMILIES, parse_progression, voice_chord
from model.demo.compose import compose_track

RATE = 16_000
SHORTEST_NOTE_S = 0.03  # no note starts later before the end
FEW = settings(max_examples=12, deadline=None)  # a track takes about 0.1 s


@FEW
@given(seed=st.integers(0, 2**40), seconds=st.floats(1.0, 6.0))
def test_stems_are_finite_equally_long_and_never_clip_together(seed: int, seconds: float) -> None:
    track = compose_track(seed, seconds, RATE)
    waveforms = np.array([s.waveform for s in track.stems])
    assert waveforms.shape == (5, round(seconds * RATE))
    assert np.isfinite(waveforms).all()
    assert np.abs(waveforms).sum(axis=0).max() <= 0.9


@FEW
@given(seed=st.integers(0, 10_000), seconds=st.floats(1.0, 6.0), more=st.floats(0.0, 6.0))
def test_longer_track_begins_with_the_shorter_ones_notes(seed: int, seconds: float, more: float) -> None:
    short, long = compose_track(seed, seconds, RATE), compose_track(seed, seconds + more, RATE)
    assert (short.key, short.tempo_bpm, short.metre) == (long.key, long.tempo_bpm, long.metre)
    for a, b in zip(short.stems, long.stems, strict=True):
        begun = [(n.onset_s, n.pitch, n.velocity) for n in b.notes if n.onset_s < seconds - SHORTEST_NOTE_S]
        assert [(n.onset_s, n.pitch, n.velocity) for n in a.notes] == begun


@FEW
@given(seed=st.integers(0, 10_000))
def test_notes_lie_within_the_track(seed: int) -> None:
    track = compose_track(seed, 5.0, RATE)
    for stem in track.stems:
        assert list(stem.notes) == sorted(stem.notes, key=lambda n: (n.onset_s, n.pitch))
        for note in stem.notes:
            assert 0.0 <= note.onset_s < 5.0
            assert 0.0 < note.duration_s <= 5.0 - note.onset_s
            assert 0.0 < note.velocity <= 1.0


@given(family=st.sampled_from(FAMILIES), tonic=st.integers(0, 11), low=st.integers(48, 60), width=st.integers(19, 30))
def test_voicing_has_all_the_chords_tones_and_stays_in_range(family, tonic: int, low: int, width: int) -> None:
    voicing = None
    for progression in family.progressions:
        for chord in parse_progression(progression, tonic):
            voicing = voice_chord(chord, voicing, low, low + width)
            assert len(voicing) == 4
            assert low <= voicing[0] < voicing[1] < voicing[2] < voicing[3] <= low + width
            assert {p % 12 for p in voicing} == set(chord.pitch_classes)
