"""The matched protocol: tempo tells nothing in it, and beat time is what its name says."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor
from typer.testing import CliRunner

from model.audio import SAMPLE_RATE
from model.audio.truth import Truth
from model.cqt import BeatClips, ScaledCQT
from model.demo import compose_track, write_track
from model.evaluation.commands import evaluate_app
from model.evaluation.matched import LIKE_TEMPO, NoBeats, evaluate_matched
from model.evaluation.retrieval import RetrievalSettings, evaluate_retrieval
from model.evaluation.systems import embed_in_beat_time, load_system
from model.phalar import untrained_phalar
from model.training.stems import load_bank

TRACKS, SECONDS = 8, 16.0
SETTINGS = RetrievalSettings(n_candidates=(2, 4), seconds=3.0, pairs_per_track=6, other_windows=0, delays_ms=())
LUCK = 3 * 0.5 / (TRACKS * SETTINGS.pairs_per_track) ** 0.5  # three deviations of a fair coin
SHORTEST, LONGEST = 30, 72  # frames of a beat, as recorded and at 120 BPM
SAME_PERIOD = 0.06  # of its logarithm: the tempi lie further apart
LOUD = 0.75  # of the scaled range: no more than 20 dB under the maximum
SAME_CQT = 0.03  # of the scaled range, 2.4 dB, where it is loud: other windows of time lie under each frame


class HearsTempo:
    """Knows nothing but how soon a clip's onsets come again; between clips that do so equally soon, noise decides."""

    def __init__(self) -> None:
        self.cqt: ScaledCQT = untrained_phalar().cqt

    def embed(self, waveforms: Tensor) -> Tensor:
        return self._period(self.cqt(waveforms))

    def in_beat_time(self, clips: BeatClips) -> Tensor:
        return self._period(self.cqt.in_beat_time(clips))

    def score(self, x: Tensor, y: Tensor) -> Tensor:
        apart, noise = (x[:, None] - y[None]).abs().unbind(dim=2)
        return -(apart / SAME_PERIOD).round() - noise

    def _period(self, cqt: Tensor) -> Tensor:
        onsets = cqt.diff(dim=2).clamp_min(0).mean(dim=1)
        spectrum = torch.fft.rfft(onsets - onsets.mean(dim=1, keepdim=True), n=2048).abs().square()
        again = torch.fft.irfft(spectrum)[:, SHORTEST:LONGEST].argmax(dim=1) + SHORTEST
        return torch.stack([again.float().log(), 1e6 * onsets.mean(dim=1) % 1], dim=1)


@pytest.fixture(scope="module")
def clicking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tracks that differ by their tempo alone: two stems of noisy clicks on every beat."""
    folder = tmp_path_factory.mktemp("clicks") / "clicking"
    rng = np.random.default_rng(0)
    for number, tempo in enumerate(np.geomspace(88, 165, TRACKS)):
        beats = np.arange(0.0, SECONDS, 60 / tempo)
        home = folder / f"{number}"
        home.mkdir(parents=True)
        for stem in ("left", "right"):
            wave = rng.normal(0, 2e-3, round(SECONDS * SAMPLE_RATE))
            for beat in beats[:-1]:
                begin = round(beat * SAMPLE_RATE)
                wave[begin : begin + 800] += rng.normal(0, 0.2, 800) * np.exp(-np.arange(800) / 200)
            soundfile.write(home / f"{stem}.flac", wave, SAMPLE_RATE)
        Truth(tuple(beats.tolist()), None, {"left": False, "right": False}).write(home)
    return folder


def test_tempo_tells_tracks_as_recorded_and_nothing_once_matched(clicking: Path, tmp_path: Path) -> None:
    bank = load_bank([clicking], tmp_path)
    recorded = evaluate_retrieval(HearsTempo(), bank, range(TRACKS), SETTINGS)
    matched = evaluate_matched(HearsTempo(), bank, range(TRACKS), SETTINGS)
    assert recorded.candidates[2].value > 0.9
    assert recorded.candidates[4].value > 0.8
    assert matched.candidates[2].value == pytest.approx(0.5, abs=LUCK)
    assert matched.candidates[4].value == pytest.approx(0.25, abs=LUCK)


class HearsRecordedTempo:
    """Knows no beat, only about which tempo a clip was recorded at; between clips of like tempo noise decides."""

    def __init__(self) -> None:
        self.cqt: ScaledCQT = untrained_phalar().cqt

    def in_beat_time(self, clips: BeatClips) -> Tensor:
        noise = 1e6 * clips.waveforms.abs().mean(dim=1) % 1
        return torch.stack([clips.samples.float().log2(), noise], dim=1)

    def score(self, x: Tensor, y: Tensor) -> Tensor:
        apart, noise = (x[:, None] - y[None]).abs().unbind(dim=2)
        return -(apart > np.log2(LIKE_TEMPO)).float() - noise


def test_candidates_of_like_tempo_unmask_what_only_hears_a_recordings_tempo(clicking: Path, tmp_path: Path) -> None:
    bank = load_bank([clicking], tmp_path)
    matched = evaluate_matched(HearsRecordedTempo(), bank, range(TRACKS), SETTINGS)
    assert matched.candidates[2].value > 0.8
    assert list(matched.of_like_tempo) == [2], "no track has three others of like tempo"
    assert matched.of_like_tempo[2].value == pytest.approx(0.5, abs=LUCK)
    assert matched.of_like_tempo[2].chance == 0.5
    assert matched.as_dict()["of_like_tempo"]["2"]["pairs"] == TRACKS * SETTINGS.pairs_per_track


def tones(seconds: float, speed: float, semitones: int) -> Tensor:
    """A melody played so much faster and higher: every note its own pitch and onset."""
    time = np.arange(round(seconds / speed * SAMPLE_RATE)) / SAMPLE_RATE
    wave = np.zeros_like(time)
    for number, pitch in enumerate((220.0, 330.0, 277.18, 440.0, 247.0, 370.0)):
        since = time * speed - 0.5 * number
        hz = pitch * 2 ** (semitones / 12)
        wave += (since > 0) * np.exp(-4 * np.maximum(since, 0)) * np.sin(2 * np.pi * hz * time)
    return torch.from_numpy(wave.astype(np.float32) * 0.2)


@pytest.mark.parametrize(("speed", "semitones"), [(1.0, 0), (1.25, 0), (0.8, 0), (1.0, 3), (1.0, -4), (1.1, 2)])
def test_beat_time_is_the_cqt_of_the_same_music_at_that_tempo_and_in_that_key(speed: float, semitones: int) -> None:
    cqt = untrained_phalar().cqt
    wanted = cqt(tones(3.0, 1.0, semitones)[None])
    played = tones(3.0, speed, 0)
    places = (torch.arange(301) / speed).clamp_max(len(played) // 160)[None]
    clips = BeatClips(played[None], torch.tensor([len(played)]), places, torch.tensor([semitones]))
    loud = wanted > LOUD

    def apart(clips: BeatClips) -> float:
        return float((cqt.in_beat_time(clips) - wanted)[loud].abs().mean())

    assert apart(clips) < SAME_CQT
    other = BeatClips(played[None], clips.samples, places, torch.tensor([semitones - 1 if semitones else 1]))
    assert apart(other) > 3 * SAME_CQT


def test_stretched_audio_is_near_what_the_frames_say(tmp_path: Path) -> None:
    """A baseline that reads waveforms hears the same music: python-stretch beside the CQT's own frames."""
    played = tones(4.0, 1.2, 0)
    places = (torch.arange(401) / 1.2).clamp_max(len(played) // 160)[None]
    clips = BeatClips(played[None], torch.tensor([len(played)]), places, torch.tensor([2]))
    chroma = load_system("chroma")

    class Waveforms:
        embed, score = chroma.embed, chroma.score

    of_frames, of_audio = embed_in_beat_time(chroma, clips), embed_in_beat_time(Waveforms(), clips)
    assert float(chroma.score(of_frames, of_audio)) > 0.8


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("music") / "composed"
    for seed in range(4):
        write_track(compose_track(seed, 8.0, SAMPLE_RATE), folder / f"{seed}")
    return folder


def call_of(stems: Path, cache: Path) -> list[str]:
    return ["retrieval", "--stems", str(stems), "--cache", str(cache), "--candidates", "2,4", "--seconds", "2",
            "--pairs-per-track", "2", "--jobs", "1", "--system", "chroma", "--matched", "--json"]  # fmt: skip


def test_the_command_answers_both_protocols_and_repeats_to_the_digit(composed: Path, tmp_path: Path) -> None:
    call = call_of(composed, tmp_path)
    first, second = (CliRunner().invoke(evaluate_app, call) for _ in range(2))
    assert first.exit_code == 0, first.stderr
    assert first.stdout == second.stdout
    answer = json.loads(first.stdout)
    assert set(answer["matched"]) == {"2", "4"}
    assert set(answer["matched"]["2"]) == {"accuracy", "low", "high", "chance", "pairs"}
    assert set(answer["keys"]) == {"1", "-1", "2", "-2", "3", "5", "6"}
    assert set(answer["keys"]["1"]) == {"score", "share_lower", "low", "high", "pairs"}
    assert set(answer["late"]) == {"sixteenth", "eighth", "beat"}
    assert answer["keys"]["6"]["share_lower"] > 0.9, "chroma hears a tritone"
    assert answer["late"]["beat"]["pairs"] == 8
    shown = CliRunner().invoke(evaluate_app, call[:-1])
    assert "Matched" in shown.stdout
    assert "+1 semitones" in shown.stdout


def test_anchors_that_are_drums_alone_are_not_asked_for_the_key(composed: Path, tmp_path: Path) -> None:
    bank = load_bank([composed], tmp_path)
    settings = replace(SETTINGS, n_candidates=(2,), pairs_per_track=12, delays_ms=(10,))
    measured = evaluate_matched(load_system("chroma"), bank, range(4), settings)
    of_all, of_both = (keys[6].lower for keys in (measured.keys, measured.keys_of_pitched_pairs))
    assert of_both.pairs < of_all.pairs
    assert of_both.value > of_all.value


def test_songs_without_a_steady_tempo_are_named_and_not_guessed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for song in ("drifting", "noise"):
        (tmp_path / "songs" / song).mkdir(parents=True)
        for stem in ("a", "b"):
            noise = rng.normal(0, 0.1, 12 * SAMPLE_RATE)
            soundfile.write(tmp_path / "songs" / song / f"{stem}.flac", noise, SAMPLE_RATE)
    bank = load_bank([tmp_path / "songs"], tmp_path / "cache")
    with pytest.raises(NoBeats, match="steady tempo"):
        evaluate_matched(load_system("chroma"), bank, range(2), SETTINGS)


@pytest.fixture(scope="module")
def answer(composed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command says of the chroma baseline, as a file."""
    folder = tmp_path_factory.mktemp("answers")
    (folder / "chroma.json").write_text(CliRunner().invoke(evaluate_app, call_of(composed, folder)).stdout)
    return folder / "chroma.json"


def test_a_page_shows_both_protocols_side_by_side(answer: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- results: here -->\n<!-- end of here -->\n")
    given = ["table", str(answer), "--page", str(page), "--section"]
    done = CliRunner().invoke(evaluate_app, [*given, "here"])
    assert done.exit_code == 0, done.stderr
    assert "| chroma |" in page.read_text()
    header = next(line for line in page.read_text().splitlines() if line.startswith("| system"))
    assert [cell.strip() for cell in header.split("|")[2:6]] == ["K = 2", "K = 4", "matched, K = 2", "matched, K = 4"]
    assert "lower a semitone up" in header
    refused = CliRunner().invoke(evaluate_app, [*given, "drums"])
    assert refused.exit_code == 1
    assert "results: drums" in refused.stderr
    again = CliRunner().invoke(evaluate_app, ["table", str(answer), str(answer), *given[2:], "here"])
    assert again.exit_code == 1
    assert "one name" in again.stderr
    (tmp_path / "cut.json").write_text('{"tracks": ')
    cut = CliRunner().invoke(evaluate_app, ["table", str(answer), str(tmp_path / "cut.json"), *given[2:], "here"])
    assert cut.exit_code == 1
    assert "cut.json: not what --json gives" in cut.stderr


def test_the_picture_shows_each_model_and_is_the_same_file_again(answer: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `evaluation` is not installed")
    drawn = []
    for name in ("one.svg", "two.svg"):
        done = CliRunner().invoke(evaluate_app, ["picture", str(answer), "--out", str(tmp_path / name)])
        assert done.exit_code == 0, done.stderr
        drawn.append((tmp_path / name).read_bytes())
    assert drawn[0] == drawn[1]
    assert b"<svg" in drawn[0]
    (tmp_path / "recorded.json").write_text(json.dumps({"candidates": {}, "delays": {}}))
    for given, to, said in ((tmp_path / "recorded.json", "no.svg", "--matched"), (answer, "no.xyz", "not supported")):
        refused = CliRunner().invoke(evaluate_app, ["picture", str(given), "--out", str(tmp_path / to)])
        assert refused.exit_code == 1
        assert said in refused.stderr


def test_a_picture_of_sureness_has_a_curve_for_each_of_many_sets(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `evaluation` is not installed")
    sureness = {"error": 0.1, "bins": [{"said": 0.2, "true": 0.3, "weight": 1.0}]}
    sets = [tmp_path / f"set {number}.json" for number in range(5)]
    for path in sets:
        path.write_text(json.dumps({"rows": {"beats": {"sureness": sureness}}}))
    drawn = CliRunner().invoke(evaluate_app, ["picture", *map(str, sets), "--out", str(tmp_path / "sure.svg")])
    assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "sure.svg").stat().st_size
