"""The chord probe, on chroma of clips of our own, whose chords are known."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from model.audio import SAMPLE_RATE
from model.demo import Track, compose_track
from model.evaluation.annotated import BadAnnotation, NothingAnnotated
from model.evaluation.chords import (
    ChordSettings,
    Span,
    TooFewClips,
    chords,
    chords_table,
    label_window,
    probe,
    probe_features,
    read_chords,
    reduce_chord,
)

pytest.importorskip("mir_eval.chord", reason="the extra `evaluation` is not installed")
pytest.importorskip("sklearn", reason="the extra `evaluation` is not installed")

HARTE = {"": "maj", "m": "min", "7": "7", "maj7": "maj7", "m7": "min7", "m7b5": "hdim7", "6": "maj6", "m6": "min6"}
HARTE |= {"sus4": "sus4", "add9": "maj(9)"}
ROOTS = ("C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
SECONDS = 12.0
CLIPS = 20
FAR_OVER_CHANCE = 0.3  # of accuracy
NEAR_CHANCE = 0.1


class ChromaSystem:
    """Embeds a clip as the energy of its pitch classes."""

    def embed(self, waveforms: Tensor) -> Tensor:
        power = torch.fft.rfft(waveforms * torch.hann_window(waveforms.shape[1])).abs().square()
        hz = torch.fft.rfftfreq(waveforms.shape[1], 1 / SAMPLE_RATE)
        heard = (hz > 60.0) & (hz < 1500.0)
        classes = torch.round(12 * torch.log2(hz[heard] / 440.0) + 69).long() % 12
        chroma = torch.zeros(len(waveforms), 12).index_add_(1, classes, power[:, heard]).sqrt()
        return chroma / (chroma.norm(dim=1, keepdim=True) + 1e-9)

    def score(self, x: Tensor, y: Tensor) -> Tensor:
        return x @ y.T


def write_clip(track: Track, folder: Path) -> None:
    soundfile.write(folder / f"{track.slug}.wav", track.submix(["bass", "pads", "keys"]), SAMPLE_RATE)
    lines = [
        f"{s.onset_s:.4f} {s.onset_s + s.duration_s:.4f} {ROOTS[s.chord.root]}:{HARTE[s.chord.quality]}"
        for s in track.chords
    ]
    (folder / f"{track.slug}.chords").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chords")
    for seed in range(CLIPS):
        write_clip(compose_track(seed, SECONDS, SAMPLE_RATE), folder)
    return folder


def test_probe_reads_chords_off_chroma(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    result = chords(ChromaSystem(), folder, progress=lambda done, most: seen.append((done, most)))
    assert result.accuracy > result.chance + FAR_OVER_CHANCE
    assert all(fold.accuracy > fold.chance for fold in result.folds)
    assert sum(fold.clips for fold in result.folds) == CLIPS
    assert sum(fold.windows for fold in result.folds) == sum(result.labels.values())
    assert result.unclear > 0
    assert seen[-1] == (CLIPS, CLIPS)
    assert json.loads(json.dumps(result.as_dict(), allow_nan=False))["folds"][0]["accuracy"] == result.folds[0].accuracy
    assert len(chords_table(result).rows) == 5


def test_probe_is_no_better_than_chance_on_shuffled_labels() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 6, 400)
    features = (np.eye(6)[truth] + 0.1 * rng.normal(size=(400, 6))).astype(np.float32)
    clips = [f"clip {i // 20}" for i in range(400)]
    right = probe(features, [str(label) for label in truth], clips)
    shuffled = probe(features, [str(label) for label in rng.permutation(truth)], clips)
    assert np.mean([fold.accuracy for fold in right]) > 0.95
    assert np.mean([fold.accuracy - fold.chance for fold in shuffled]) < NEAR_CHANCE


def test_no_clip_is_trained_on_and_tested_on() -> None:
    """A probe that knows each clip by heart, and nothing else, gets none right."""
    clips = [f"clip {i // 10}" for i in range(100)]
    features = np.repeat(np.eye(10, dtype=np.float32), 10, axis=0)
    assert [fold.accuracy for fold in probe(features, clips, clips)] == [0.0] * 5


def test_probe_features_of_complex_embeddings_are_both_parts() -> None:
    embeddings = torch.tensor([[1 + 2j, 3 - 4j]])
    assert probe_features(embeddings).tolist() == [[1, 2, 3, -4]]
    assert probe_features(torch.ones(2, 3, 4)).shape == (2, 12)


@pytest.mark.parametrize(
    ("label", "reduced"),
    [
        ("N", "N"),
        ("C", "C:maj"),
        ("Bb:min7/b3", "A#:min"),
        ("F#:hdim7", "F#:min"),
        ("E:7(#9)", "E:maj"),
        ("G:sus4", None),
        ("D:5", None),
        ("X", None),
    ],
)
def test_chord_labels_keep_root_and_third(label: str, reduced: str | None) -> None:
    assert reduce_chord(label) == reduced


def test_a_window_is_labelled_by_what_fills_most_of_it() -> None:
    spans = [Span(0.0, 1.0, "C:maj"), Span(1.0, 2.5, "F:maj"), Span(2.5, 3.0, "C:maj"), Span(3.0, 9.0, None)]
    settings = ChordSettings(window_s=2.0, majority=0.6)
    assert label_window(spans, 0.0, settings) is None  # half and half
    assert label_window(spans, 0.5, settings) == "F:maj"
    assert label_window(spans, 5.0, settings) is None  # a chord without a third
    assert label_window(spans, 8.0, settings) is None  # half of it after the last chord
    split = [Span(0.0, 0.7, "C:maj"), Span(0.7, 1.3, "F:maj"), Span(1.3, 2.0, "C:maj")]
    assert label_window(split, 0.0, settings) == "C:maj"  # together 1.4 s of 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0 1 C:maj\n1 2\n", ":2:"),
        ("0 1 H:maj", ":1: 'H:maj' is no chord"),
        ("2 1 C:maj", ":1: 2 to 1 s"),
        ("nan 1 C", ":1:"),
        ("# nothing\n\n", "nothing is annotated"),
    ],
)
def test_a_bad_annotation_is_named_by_its_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "clip.chords"
    path.write_text(content)
    with pytest.raises(BadAnnotation, match=message):
        read_chords(path)


def test_too_few_clips_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NothingAnnotated):
        chords(ChromaSystem(), tmp_path)
    for path in sorted(folder.glob("*.wav"))[:4]:
        (tmp_path / path.name).symlink_to(path)
        (tmp_path / f"{path.stem}.chords").write_text(path.with_suffix(".chords").read_text())
    with pytest.raises(TooFewClips, match="4 clips"):
        chords(ChromaSystem(), tmp_path)


def test_clips_that_cannot_be_used_are_listed(folder: Path, tmp_path: Path) -> None:
    for path in sorted(folder.glob("*.wav"))[:6]:
        (tmp_path / path.name).symlink_to(path)
        if path != sorted(folder.glob("*.wav"))[0]:
            (tmp_path / f"{path.stem}.chords").write_text(path.with_suffix(".chords").read_text())
    (tmp_path / "broken.wav").write_bytes(b"not audio")
    (tmp_path / "broken.chords").write_text("0 1 C:maj\n")
    result = chords(ChromaSystem(), tmp_path)
    assert len(result.left_out) == 2
    assert sum(fold.clips for fold in result.folds) == 5
