"""Scores become aligned stems: on time, audible, the same for the same seed, and no broken file stops the rest."""

import sys
from pathlib import Path

import mido
import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from model.audio import SAMPLE_RATE, load_clip
from model.demo.synthesis import Note
from model.training.commands import train_app
from model.training.patterns import as_patterns
from model.training.render import SOUNDFONTS, NoSoundfont, RenderSettings, render_scores, render_track
from model.training.scores import Part, Score, read_score
from model.training.tracks import find_tracks

TICK_S = 1e-6
SEMITONE = 2 ** (1 / 12)
LOUD = 0.3  # of the strongest partial: every voice's fundamental is, and no window's side lobe
EARLY_S, LATE_S = 0.012, 0.06  # a player is at most two looseness deviations off; a room and an attack blur the onset

SAME_MUSIC = 0.98  # of a perfect correlation: FluidSynth's voices keep a little of what they played before

needs_soundfont = pytest.mark.skipif(
    not any(path.is_file() for path in SOUNDFONTS), reason="no soundfont: apt-get install timgm6mb-soundfont"
)


def write_score(path: Path, program: int = 0, beats: int = 8) -> None:
    """A bass and a drum on every beat, at 120 and then at 60 BPM."""
    midi = mido.MidiFile(ticks_per_beat=480)
    tempo = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=500_000, time=0)])
    tempo.append(mido.MetaMessage("set_tempo", tempo=1_000_000, time=480 * 4))
    midi.tracks.append(tempo)
    for channel, pitch in ((0, 40), (9, 36)):
        track = mido.MidiTrack([mido.Message("program_change", channel=channel, program=program, time=0)])
        for _ in range(beats):
            track.append(mido.Message("note_on", channel=channel, note=pitch, velocity=100, time=0))
            track.append(mido.Message("note_off", channel=channel, note=pitch, velocity=0, time=240))
            track.append(mido.Message("control_change", channel=channel, control=7, value=100, time=240))
        midi.tracks.append(track)
    path.parent.mkdir(parents=True, exist_ok=True)
    midi.save(path)


def score_of(*parts: Part) -> Score:
    """With a beat every half second, in A minor."""
    end_s = max(note.onset_s + note.duration_s for part in parts for note in part.notes)
    return Score(parts, tuple(np.arange(0.0, end_s + 0.5, 0.5).tolist()), (9, "minor"))


def test_a_score_is_read_in_seconds_through_its_tempo_changes(tmp_path: Path) -> None:
    write_score(tmp_path / "score.mid", program=33)
    bass, drums = read_score(tmp_path / "score.mid").parts
    assert (bass.program, bass.is_drums, bass.instrument) == (33, False, "bass")
    assert drums.is_drums
    onsets = [note.onset_s for note in bass.notes]
    assert onsets == pytest.approx([0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0], abs=TICK_S)
    assert bass.notes[0].duration_s == pytest.approx(0.25, abs=TICK_S)
    assert bass.notes[-1].duration_s == pytest.approx(0.5, abs=TICK_S)


def test_the_pedal_holds_a_note_until_it_is_released(tmp_path: Path) -> None:
    track = mido.MidiTrack(
        [
            mido.Message("control_change", control=64, value=127, time=0),
            mido.Message("note_on", note=60, velocity=90, time=0),
            mido.Message("note_off", note=60, velocity=0, time=120),
            mido.Message("control_change", control=64, value=0, time=840),
            mido.Message("note_on", note=62, velocity=90, time=0),
            mido.Message("note_off", note=62, velocity=0, time=480),
        ]
    )
    midi = mido.MidiFile(ticks_per_beat=480)
    midi.tracks.append(track)
    midi.save(tmp_path / "pedal.mid")
    (part,) = read_score(tmp_path / "pedal.mid").parts
    assert [(note.pitch, round(note.duration_s, 3)) for note in part.notes] == [(60, 1.0), (62, 0.5)]


def alike(left: Path, right: Path) -> float:
    """The normalised correlation of two files."""
    x, y = load_clip(left).waveform.astype(float), load_clip(right).waveform.astype(float)
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


def onset_s(wave: np.ndarray) -> float:
    return float(np.flatnonzero(np.abs(wave) > 0.1 * np.abs(wave).max())[0]) / SAMPLE_RATE


@needs_soundfont
@pytest.mark.parametrize("synthesised", [0.0, 1.0], ids=["soundfont", "own synthesiser"])
def test_all_stems_start_where_the_score_says(synthesised: float) -> None:
    """A beat at 2 s (of the score): whichever plays it, at whatever tempo is drawn, all stems enter together."""
    parts = [
        Part(33, False, (Note(2.0, 0.5, 40, 0.8), Note(6.0, 0.5, 40, 0.8))),
        Part(0, True, (Note(2.0, 0.1, 36, 0.8), Note(6.0, 0.1, 36, 0.8))),
        Part(0, False, (Note(2.0, 0.5, 64, 0.8), Note(6.0, 0.5, 64, 0.8))),
    ]
    fonts = tuple(path for path in SOUNDFONTS if path.is_file())
    settings = RenderSettings(soundfonts=fonts, seconds=10.0, synthesised=synthesised)
    for seed in range(4):
        stems = render_track(score_of(*parts), settings, np.random.default_rng(seed))[0]
        assert len(stems) == 3
        onsets = [onset_s(wave) for wave in stems.values()]
        assert min(onsets) >= 2.0 / 1.25 - EARLY_S
        assert max(onsets) - min(onsets) < EARLY_S + LATE_S
        assert max(onsets) <= 2.0 / 0.8 + LATE_S
        assert np.abs(sum(stems.values())).max() < 1


def test_a_kit_in_pieces_is_a_stem_a_piece_and_leaves_no_note_out() -> None:
    beats = tuple(Note(0.5 * n, 0.1, pitch, 0.8) for n, pitch in enumerate((36, 42, 38, 46, 35, 49, 56)))
    pieces = Part(0, True, beats).pieces()
    assert [part.instrument for part in pieces] == ["kick", "hats", "snare", "cymbals", "percussion"]
    assert sorted((n for part in pieces for n in part.notes), key=lambda note: note.onset_s) == list(beats)
    melody = Part(0, False, (Note(0.0, 4.0, 60, 0.8),))
    for share, expected in ((1.0, 6), (0.0, 2)):
        settings = RenderSettings(seconds=4.0, synthesised=1.0, kits_in_pieces=share)
        stems, truth = render_track(score_of(melody, Part(0, True, beats)), settings, np.random.default_rng(0))
        assert len(stems) == expected
        assert set(truth.pitched) == set(stems)
        assert [name for name, pitched in truth.pitched.items() if pitched] == [n for n in stems if "piano" in n]


def test_drums_are_played_from_recorded_hits_where_there_are_any(tmp_path: Path) -> None:
    time = np.arange(4_000) / SAMPLE_RATE
    soundfile.write(tmp_path / "kick.wav", np.sin(2 * np.pi * 1_000 * time) * np.exp(-30 * time), SAMPLE_RATE)
    kick = Part(0, True, tuple(Note(0.5 * n, 0.1, 36, 0.8) for n in range(8)))
    settings = RenderSettings(seconds=4.0, synthesised=1.0, kits=(tmp_path,), from_kits=1.0)
    (stem,) = render_track(score_of(kick), settings, np.random.default_rng(0))[0].values()
    loudest_hz = np.argmax(np.abs(np.fft.rfft(stem))) * SAMPLE_RATE / len(stem)
    assert 600 < loudest_hz < 1_700, "what was recorded, a little higher or lower"


@pytest.mark.parametrize("pitch", [57, 69, 81])
def test_a_sampler_plays_every_note_from_one_at_its_own_pitch_until_its_release(pitch: int) -> None:
    """Half of a note's notes sound at 440 Hz, so it is what is recorded; the others are an octave off."""
    notes = (Note(1.0, 0.5, pitch, 0.8), Note(7.0, 0.5, 69, 0.8), Note(8.0, 0.5, 69, 0.8))
    settings = RenderSettings(seconds=10.0, synthesised=1.0, sampled=1.0, sequenced=1.0)
    rng = np.random.default_rng(1)
    tempo, transposition = rng.uniform(0.8, 1.25), int(rng.integers(-5, 7))
    (stem,) = render_track(score_of(Part(0, False, notes)), settings, np.random.default_rng(1))[0].values()
    begin, end = (round(at / tempo * SAMPLE_RATE) for at in (1.0, 1.5))
    spectrum = np.abs(np.fft.rfft(stem[begin:end] * np.hanning(end - begin), n=SAMPLE_RATE))
    fundamental = 440.0 * 2 ** ((pitch + transposition - 69) / 12)
    loud = np.flatnonzero(spectrum > LOUD * spectrum.max())
    assert loud[0] == pytest.approx(fundamental, rel=SEMITONE - 1), "nothing loud is lower than the note"


@needs_soundfont
def test_rendering_repeats_goes_on_and_reports_what_is_broken(tmp_path: Path) -> None:
    scores = tmp_path / "scores"
    write_score(scores / "folk" / "one.mid")
    write_score(scores / "two.MID", program=73)
    (scores / "broken.mid").write_bytes(b"MThd and nothing more")
    settings = RenderSettings(seconds=4.0)
    first = {r.track: r for r in render_scores(scores, tmp_path / "out", settings)}
    assert set(first) == {"broken", "folk__one", "two"}
    assert first["broken"].problem
    assert first["two"].stems == 2
    tracks, dropped = find_tracks(tmp_path / "out")
    assert [track.name for track in tracks] == ["folk__one", "two"]
    assert not dropped
    made = [(tmp_path / "out" / track.name).stat().st_mtime_ns for track in tracks]
    again = {r.track: r for r in render_scores(scores, tmp_path / "out", settings)}
    assert again == first
    assert made == [(tmp_path / "out" / track.name).stat().st_mtime_ns for track in tracks]
    list(render_scores(scores, tmp_path / "elsewhere", settings))
    for track in tracks:
        for stem, (path,) in track.stems.items():
            there = tmp_path / "elsewhere" / track.name / f"{stem}.flac"
            assert alike(path, there) > SAME_MUSIC
            assert len(load_clip(path).waveform) == 4 * SAMPLE_RATE


@needs_soundfont
def test_two_processes_render_the_same_music_beside_torchs_threads(tmp_path: Path) -> None:
    """A pool that was forked from a process with such threads waited forever."""
    import torch

    torch.randn(400, 400) @ torch.randn(400, 400)
    write_score(tmp_path / "scores" / "one.mid")
    write_score(tmp_path / "scores" / "two.mid", program=40)
    settings = RenderSettings(seconds=4.0)
    for jobs in (1, 2):
        list(render_scores(tmp_path / "scores", tmp_path / str(jobs), settings, jobs))
    files = [path.relative_to(tmp_path / "1") for path in sorted((tmp_path / "1").rglob("*.flac"))]
    assert len(files) == 4
    for file in files:
        assert alike(tmp_path / "1" / file, tmp_path / "2" / file) > SAME_MUSIC


@needs_soundfont
def test_variants_of_a_score_differ(tmp_path: Path) -> None:
    write_score(tmp_path / "scores" / "one.mid")
    settings = RenderSettings(seconds=4.0, variants=2)
    list(render_scores(tmp_path / "scores", tmp_path / "out", settings))
    folders = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert folders == ["one", "one@1"]
    one, other = (sorted((tmp_path / "out" / name).glob("*.flac"))[0].read_bytes() for name in folders)
    assert one != other
    first, second = (sorted((tmp_path / "out" / name).glob("*.flac"))[0] for name in folders)
    assert alike(first, second) < 0.9, "unlike what one rendering repeats to"


@needs_soundfont
def test_of_two_scores_of_one_name_one_is_rendered_and_the_other_said(tmp_path: Path) -> None:
    for name in ("one.mid", "one.midi"):
        write_score(tmp_path / "scores" / name)
    hidden, rendered = render_scores(tmp_path / "scores", tmp_path / "out", RenderSettings(seconds=4.0), jobs=2)
    assert hidden.problem == "one.midi has the name of one.mid: give it another"
    assert (rendered.problem, rendered.stems) == (None, 2)


def test_without_what_plays_scores_it_says_what_to_install_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mido", None)
    for name in ("scores/one.mid", "scores/two.mid", "font.sf2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    asked = [str(tmp_path / name) for name in ("scores", "out", "font.sf2")]
    run = CliRunner().invoke(train_app, ["render", *asked[:2], "--soundfont", asked[2], "--jobs", "1"])
    assert run.exit_code == 1
    assert run.stderr.count("phalar-retrieval[train]") == 1


def test_without_a_soundfont_it_says_what_to_install(tmp_path: Path) -> None:
    settings = RenderSettings(soundfonts=(tmp_path / "none.sf2",))
    with pytest.raises(NoSoundfont, match=r"none\.sf2"):
        list(render_scores(tmp_path, tmp_path / "out", settings))


@pytest.mark.parametrize("seed", range(6))
def test_patterns_repeat_on_the_beat_and_rest(seed: int) -> None:
    rng = np.random.default_rng(seed)
    melody = [Note(0.25 * at, 0.2, int(rng.integers(50, 70)), 0.8) for at in range(256)]
    looped = as_patterns(score_of(Part(0, False, tuple(melody)), Part(33, False, tuple(melody[::4]))), 16.0, rng)
    assert {part.is_drums for part in looped.parts} == {True, False}, "a drum machine joins"
    assert np.diff(looped.beats_s) == pytest.approx(0.5)
    assert looped.beats_s[-1] >= 16.0
    for part in looped.parts:
        heard = {(round(8 * note.onset_s), note.pitch) for note in part.notes}
        blocks = [{(at % 32, pitch) for at, pitch in heard if at // 32 == block} for block in range(5)]
        playing = [block for block in blocks if block]
        assert playing[0], "no part rests for ever"
        if not part.is_drums:
            repeats = [a == b for a, b in zip(blocks, blocks[2:], strict=False) if a and b]
            assert all(repeats), "after two blocks, 16 beats, at the latest"
    rendered, truth = render_track(looped, RenderSettings(synthesised=1.0, seconds=8.0), rng)
    assert len(rendered) >= 3
    assert len(truth.beats_s) > 10
