"""Zero-shot beat tracking, by systems simple enough to know what they hear, on clips of our own."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.audio import SAMPLE_RATE, ClipTooShort
from model.demo import Track, compose_track
from model.evaluation.annotated import SAMPLES_PER_CALL, BadAnnotation, NothingAnnotated, annotated_files, embed_windows
from model.evaluation.beats import (
    BeatSettings,
    beats,
    beats_table,
    embed_metronomes,
    metronome,
    onset_curve,
    read_beats,
    track_beats,
)

mir_beat = pytest.importorskip("mir_eval.beat", reason="the extra `evaluation` is not installed")

SECONDS = 15.0
STEADY = (1, 7, 10)  # a house, a swing and a waltz drummer, who play every beat at 100 to 124 BPM
GOOD_F = 0.95  # a beat missed at either end of some thirty
POOR_F = 0.6  # what a pulse at a wrong tempo reaches
FRAME_S = 0.01


class OnsetSystem:
    """Embeds a clip as its onset envelope; two clips fit as far as their onsets coincide."""

    def embed(self, waveforms: Tensor) -> Tensor:
        level = torch.log(waveforms.unfold(1, 320, 160).square().mean(2) + 1e-6)  # (n, frames)
        onsets = torch.nn.functional.avg_pool1d((level[:, 1:] - level[:, :-1]).clamp(min=0)[:, None], 3, 1, 1)[:, 0]
        centred = onsets - onsets.mean(1, keepdim=True)
        return centred / (centred.norm(dim=1, keepdim=True) + 1e-9)

    def score(self, x: Tensor, y: Tensor) -> Tensor:
        return x @ y.T


class ConstantSystem:
    """Hears nothing."""

    def embed(self, waveforms: Tensor) -> Tensor:
        return torch.ones(len(waveforms), 1)

    def score(self, x: Tensor, y: Tensor) -> Tensor:
        return x @ y.T


@pytest.fixture(scope="module")
def metronomes() -> Tensor:
    return embed_metronomes(OnsetSystem())


def true_beats(track: Track, seconds: float) -> NDArray[np.float64]:
    return np.arange(0.0, seconds, 60.0 / track.tempo_bpm)


@pytest.fixture(scope="module")
def tracks() -> list[Track]:
    return [compose_track(seed, SECONDS, SAMPLE_RATE) for seed in STEADY]


@pytest.fixture
def folder(tracks: list[Track], tmp_path: Path) -> Path:
    """Two annotated clips, one of them with the beats' numbers in its bar, and one clip without annotation."""
    for track in tracks:
        soundfile.write(tmp_path / f"{track.slug}.wav", track.mix(), SAMPLE_RATE)
    for track in tracks[:2]:
        lines = [f"{time:.4f}\t{i % 4 + 1}" for i, time in enumerate(true_beats(track, SECONDS))]
        (tmp_path / f"{track.slug}.beats").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_onsets_that_coincide_find_a_drummers_beats(tracks: list[Track], metronomes: Tensor) -> None:
    for track in tracks:
        found = track_beats(OnsetSystem(), track.stem("drums").waveform, metronomes)
        assert mir_beat.f_measure(true_beats(track, SECONDS), found) > GOOD_F, track.title


def test_found_beats_lie_within_a_step_and_reach_both_ends(tracks: list[Track], metronomes: Tensor) -> None:
    """The last window's beats, where no window starts, are there too."""
    track = tracks[0]
    found = track_beats(OnsetSystem(), track.stem("drums").waveform, metronomes)
    expected = true_beats(track, SECONDS)
    nearest = np.abs(found[:, None] - expected).min(axis=1)
    assert np.median(nearest) < BeatSettings().step_s
    assert found[0] < 0.1
    assert found[-1] > expected[-2]
    assert (found < SECONDS).all()


def test_beats_follow_a_clip_that_starts_later(tracks: list[Track], metronomes: Tensor) -> None:
    delay_s = 0.2
    drums = tracks[0].stem("drums").waveform
    late = np.concatenate([np.zeros(round(delay_s * SAMPLE_RATE), dtype=np.float32), drums])
    found = track_beats(OnsetSystem(), late, metronomes)
    assert mir_beat.f_measure(true_beats(tracks[0], SECONDS) + delay_s, found) > GOOD_F
    assert mir_beat.f_measure(true_beats(tracks[0], SECONDS), found) < POOR_F


def test_a_system_that_hears_no_time_finds_no_good_beats(tracks: list[Track]) -> None:
    """Scores that are noise rise somewhere, and librosa makes some pulse of it: that is chance."""

    class NoiseSystem(ConstantSystem):
        def score(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.randn(len(y), generator=torch.Generator().manual_seed(0)).expand(len(x), -1)

    track = tracks[0]
    found = track_beats(NoiseSystem(), track.stem("drums").waveform, embed_metronomes(NoiseSystem()))
    assert len(found) > 0
    assert mir_beat.f_measure(true_beats(track, SECONDS), found) < POOR_F


def test_onset_curve_counts_a_rise_that_neighbouring_tempi_share() -> None:
    scores = np.zeros((40, 300))
    scores[10:20, 100:] = 1.0  # stays up: one rise, at 100
    scores[30, 200:] = 1.0  # a single tempo's
    curve = onset_curve(scores)
    assert np.flatnonzero(curve > 0.5 * curve.max()).tolist() == [100, 101]
    assert curve[190:].max() == 0.0
    assert not onset_curve(np.full((40, 300), 3.0)).any()


def test_metronome_clicks_on_its_beats() -> None:
    settings = BeatSettings()
    clicks = metronome(120, settings)
    assert (len(clicks), clicks.dtype) == (round(settings.window_s * SAMPLE_RATE), np.float32)
    assert np.abs(clicks).max() == pytest.approx(0.5)
    loud = np.flatnonzero(np.abs(clicks) > 0.1) / SAMPLE_RATE
    onsets = loud[np.diff(loud, prepend=-1.0) > 0.2]
    np.testing.assert_allclose(onsets, 0.02 + 0.5 * np.arange(10), atol=FRAME_S)


def test_windows_of_several_calls_are_embedded_in_order() -> None:
    waveform = np.random.default_rng(0).normal(size=7 * SAMPLE_RATE).astype(np.float32)
    window = 5 * SAMPLE_RATE
    starts = np.arange(SAMPLES_PER_CALL // window + 5) * 400
    together = embed_windows(OnsetSystem(), waveform, starts, window)
    each = torch.cat([embed_windows(OnsetSystem(), waveform, starts[i : i + 1], window) for i in range(len(starts))])
    torch.testing.assert_close(together, each)


def test_a_clip_of_one_window_is_refused(metronomes: Tensor) -> None:
    with pytest.raises(ClipTooShort, match=r"longer than 5\.000 s"):
        track_beats(OnsetSystem(), np.ones(5 * SAMPLE_RATE, dtype=np.float32), metronomes)


def test_a_folder_of_clips_is_measured(folder: Path) -> None:
    soundfile.write(folder / "short.wav", np.full(3 * SAMPLE_RATE, 0.1, dtype=np.float32), SAMPLE_RATE)
    (folder / "short.beats").write_text("1.0\n")
    seen: list[tuple[int, int]] = []
    result = beats(OnsetSystem(), folder, progress=lambda done, most: seen.append((done, most)))
    assert len(result.files) == 2
    assert result.mean > GOOD_F
    assert result.low <= result.mean <= result.high
    assert result.blind < POOR_F
    assert sorted(entry.reason.split(":")[0] for entry in result.left_out)[0] == "ClipTooShort"
    assert any(entry.reason.startswith("no ") for entry in result.left_out)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    read = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert read["files"][0]["f_measure"] == result.files[0].f_measure
    assert len(read["left_out"]) == 2
    assert len(beats_table(result).rows) == 2


def test_a_system_that_hears_nothing_scores_nothing(folder: Path) -> None:
    assert beats(ConstantSystem(), folder).mean == 0.0


def test_a_folder_without_annotations_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.wav", np.full(SAMPLE_RATE * 6, 0.1, dtype=np.float32), SAMPLE_RATE)
    assert annotated_files(tmp_path, ".beats", read_beats)[0] == []
    with pytest.raises(NothingAnnotated, match=r"\.beats"):
        beats(OnsetSystem(), tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0.5\nx\n", ":2: 'x' is no time"),
        ("1\n0.5", ":2: 0.5 s is out"),
        ("-1", ":1:"),
        ("nan", ":1:"),
        ("#\n", "nothing is annotated"),
        ("0.5 Zähler", "not in UTF-8"),
    ],
)
def test_a_bad_annotation_is_named_by_its_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "clip.beats"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(BadAnnotation, match=message):
        read_beats(path)


def test_the_last_clips_bad_annotation_is_told_before_the_first_is_measured(folder: Path) -> None:
    soundfile.write(folder / "zzz.wav", np.full(6 * SAMPLE_RATE, 0.1, dtype=np.float32), SAMPLE_RATE)
    (folder / "zzz.beats").write_text("first beat\n")
    measured: list[int] = []
    with pytest.raises(BadAnnotation, match=r"zzz\.beats:1"):
        beats(OnsetSystem(), folder, progress=lambda done, most: measured.append(done))
    assert not measured


def test_an_annotation_of_a_windows_editor_is_read(tmp_path: Path) -> None:
    (tmp_path / "clip.beats").write_text("0.5\n1.0\n", encoding="utf-8-sig")
    assert read_beats(tmp_path / "clip.beats").tolist() == [0.5, 1.0]
