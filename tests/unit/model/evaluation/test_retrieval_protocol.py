"""The retrieval protocol: what its figures must be, for systems of which that is known beforehand.

The bank's tracks are composed music in which every stem carries two pilots: a tone whose frequency is the track's, and
a chirp whose frequency tells the place. So a system can be built that knows either, both, or nothing.
"""

import itertools
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor
from typer.testing import CliRunner

from model.checkpoints import save_phalar
from model.checkpoints.heard import HEARD, encode_heard
from model.demo import compose_track
from model.evaluation.commands import evaluate_app
from model.evaluation.results import NoSection, retrieval_markdown, write_section
from model.evaluation.retrieval import (
    RetrievalResult,
    RetrievalSettings,
    TooFewTracks,
    draw_pairs,
    evaluate_retrieval,
    mean_with_interval,
    odds_all_beaten,
    shares_beaten,
)
from model.phalar import untrained_phalar
from model.training.stems import StemBank, load_bank

RATE = 16_000
TRACKS, TRACK_SECONDS = 6, 9.0
TRACK_HZ, TRACK_STEP_HZ = 5_000.0, 100.0
PLACE_HZ, PLACE_HZ_PER_S = 6_500.0, 100.0
WINDOW_S = 2.0
TRACK_BINS = [round((TRACK_HZ + TRACK_STEP_HZ * track) * WINDOW_S) for track in range(TRACKS)]
DECIMATION, PADDING = 8, 8  # of the place's pilot, once it is shifted to 0 Hz: 2 kHz, read every 0.06 Hz
SETTINGS = RetrievalSettings(n_candidates=(2, 4), seconds=WINDOW_S, pairs_per_track=6, other_windows=3)
PLACE_TOLERANCE_S = 0.002  # three steps of that reading, for the music disturbs it
LUCK = 3 * 0.5 / 35**0.5  # three deviations of a fair coin, thrown for each of the 35 pairs that can be delayed


def write_stems(folder: Path, tracks: int) -> None:
    """Composed tracks with pilots, `<folder>/<track>/<instrument>.wav`."""
    time = np.arange(round(TRACK_SECONDS * RATE)) / RATE
    place = np.sin(2 * np.pi * (PLACE_HZ + PLACE_HZ_PER_S / 2 * time) * time)
    for seed in range(tracks):
        pilots = 0.1 * (place + np.sin(2 * np.pi * (TRACK_HZ + TRACK_STEP_HZ * seed) * time))
        (folder / f"track-{seed}").mkdir(parents=True)
        for stem in compose_track(seed, TRACK_SECONDS, RATE).stems:
            path = folder / f"track-{seed}" / f"{stem.instrument}.wav"
            soundfile.write(path, 0.5 * stem.waveform + pilots, RATE, subtype="PCM_16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("protocol")
    write_stems(home / "stems", TRACKS)
    return home


@pytest.fixture(scope="module")
def bank(folder: Path) -> StemBank:
    bank = load_bank([folder / "stems"], folder / "cache")
    assert len(bank.tracks) == TRACKS
    return bank


class HearsPilots:
    """Embeds a window as its track, its place in seconds, and a number that depends on its samples by luck alone."""

    def embed(self, waveforms: Tensor) -> Tensor:
        return torch.tensor([self._heard(waveform.numpy()) for waveform in waveforms], dtype=torch.float64)

    def _heard(self, waveform: NDArray[np.float32]) -> tuple[float, float, float]:
        track = int(np.abs(np.fft.rfft(waveform)[TRACK_BINS]).argmax())
        time = np.arange(len(waveform)) / RATE
        tone = waveform * np.exp(-2j * np.pi * (PLACE_HZ + PLACE_HZ_PER_S / 2 * time) * time)  # the chirp, held still
        slow = tone.reshape(-1, DECIMATION).mean(axis=1)
        spectrum = np.abs(np.fft.fft(slow, PADDING * len(slow)))[: PADDING * len(slow) // 2]
        place = int(spectrum.argmax()) / (PADDING * WINDOW_S) / PLACE_HZ_PER_S
        return track, place, np.random.default_rng(zlib.crc32(waveform.tobytes())).random()


class KnowsTheTrackOnly(HearsPilots):
    """Right about tracks; within one, any window is as good as another, by luck."""

    def score(self, x: Tensor, y: Tensor) -> Tensor:
        return (x[:, None, 0] == y[:, 0]) + 0.5 * y[:, 2]


class KnowsThePlace(HearsPilots):
    """The farther from the anchor's place, the lower, to the second; deaf to tracks."""

    def score(self, x: Tensor, y: Tensor) -> Tensor:
        return -(x[:, None, 1] - y[:, 1]).abs()


class TellsTheLag(HearsPilots):
    """The seconds by which what one hears is later in the track than what the other does."""

    def score(self, x: Tensor, y: Tensor) -> Tensor:
        return x[:, None, 1] - y[:, 1]


class PrefersOtherPlacesOfTheTrack(HearsPilots):
    """Every other window of the anchor's track scores higher than its own positive; other tracks lower than any."""

    def score(self, x: Tensor, y: Tensor) -> Tensor:
        far = (x[:, None, 1] - y[:, 1]).abs()
        return 100.0 * (x[:, None, 0] == y[:, 0]) + far


class Guesses(HearsPilots):
    """Luck alone."""

    def score(self, x: Tensor, y: Tensor) -> Tensor:
        return y[:, 2].expand(len(x), len(y))


class Always:
    """One score for everything."""

    def __init__(self, value: float) -> None:
        self.value = value

    def embed(self, waveforms: Tensor) -> Tensor:
        return torch.zeros(len(waveforms), 1)

    def score(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.full((len(x), len(y)), self.value)


def measure(system: HearsPilots | Always, bank: StemBank, settings: RetrievalSettings = SETTINGS) -> RetrievalResult:
    return evaluate_retrieval(system, bank, range(TRACKS), settings)


def test_a_system_that_knows_the_track_is_always_right(bank: StemBank) -> None:
    result = measure(KnowsTheTrackOnly(), bank)
    assert {count: share.value for count, share in result.candidates.items()} == {2: 1.0, 4: 1.0}
    assert result.pairs == TRACKS * SETTINGS.pairs_per_track
    assert not [note for note in result.notes if "candidates" in note]


def test_a_system_deaf_to_time_gets_chance_on_other_windows_and_on_delays(bank: StemBank) -> None:
    result = measure(KnowsTheTrackOnly(), bank)
    assert result.time.chance == 1 / 4
    assert result.time.low <= 1 / 4 <= result.time.high < 1
    for delay in result.delays[1:]:
        assert delay.lower.chance == 1 / 2
        assert delay.lower.value == pytest.approx(1 / 2, abs=LUCK)


def test_a_system_that_guesses_gets_chance_within_the_interval(bank: StemBank) -> None:
    result = measure(Guesses(), bank)
    for count, share in result.candidates.items():
        assert share.chance == 1 / count
        assert share.low <= share.chance <= share.high < 1


def test_a_system_that_hears_time_finds_the_true_window_and_every_delay(bank: StemBank) -> None:
    result = measure(KnowsThePlace(), bank)
    assert result.time.value == 1
    assert [delay.delay_ms for delay in result.delays] == [0, *SETTINGS.delays_ms]
    assert all(delay.lower.value == 1 for delay in result.delays[1:])


def test_a_delayed_positive_lags_by_exactly_that_time(bank: StemBank) -> None:
    for delay in measure(TellsTheLag(), bank).delays:
        assert delay.score == pytest.approx(delay.delay_ms / 1000, abs=PLACE_TOLERANCE_S)


def test_negatives_never_come_from_the_anchors_track(bank: StemBank) -> None:
    result = measure(PrefersOtherPlacesOfTheTrack(), bank)
    assert all(share.value == 1 for share in result.candidates.values())
    assert result.time.value == 0


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_ties_and_scores_that_are_no_number_count_as_misses(bank: StemBank, value: float) -> None:
    result = measure(Always(value), bank)
    assert all(share.value == 0 for share in result.candidates.values())
    assert result.time.value == 0
    assert all(delay.lower.value == 0 for delay in result.delays[1:])


def test_renderings_of_one_piece_are_no_negatives_of_each_other() -> None:
    scores = np.array([[3.0, 9.0, 1.0, 5.0], [9.0, 3.0, 1.0, 1.0], [1.0, 1.0, 3.0, 1.0], [1.0, 1.0, 1.0, 3.0]])
    tracks, pieces = np.array([4, 7, 9, 9]), np.array(["a", "a", "b", "b"])
    beaten, allowed = shares_beaten(scores, tracks, pieces)
    assert allowed.tolist() == [[False, False, True], [False, False, True], [True, True, False], [True, True, False]]
    assert beaten[0, 2] == 1 / 2  # of track 9, one window scores lower than the anchor's own, one higher


@pytest.mark.parametrize("negatives", [1, 2, 3])
def test_odds_equal_the_mean_over_every_choice_of_tracks(negatives: int) -> None:
    rng = np.random.default_rng(1)
    beaten = rng.choice([0.0, 0.25, 0.5, 1.0], size=(20, 6))
    allowed = np.ones((20, 6), dtype=bool)
    allowed[np.arange(20), rng.integers(6, size=20)] = False
    allowed[:10, 2] = False
    expected = [
        np.mean([np.prod(row[list(chosen)]) for chosen in itertools.combinations(np.flatnonzero(may), negatives)])
        for row, may in zip(beaten, allowed, strict=True)
    ]
    np.testing.assert_allclose(odds_all_beaten(beaten, allowed, negatives), expected, atol=1e-12)


def test_odds_stay_probabilities_among_many_tracks() -> None:
    beaten = np.random.default_rng(0).uniform(0.9, 1.0, size=(5, 2000))
    odds = odds_all_beaten(beaten, np.ones_like(beaten, dtype=bool), 63)
    np.testing.assert_allclose(odds, 0.95**63, rtol=0.1)


def test_an_interval_contains_the_mean_and_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        groups = np.repeat(np.arange(30).astype(str), 4)
        of_group = rng.beta(2, 2, size=30)
        values = (rng.random(120) < np.repeat(of_group, 4)).astype(np.float64)
        mean, low, high = mean_with_interval(values, groups, trial)
        assert low <= mean <= high
        covered += low <= 0.5 <= high
    assert 180 <= covered <= 199  # 95 % of 200, give or take three deviations and the bootstrap's known optimism


def test_an_interval_is_wider_where_a_tracks_pairs_agree() -> None:
    values = np.tile([1.0, 0.0], 40)
    together = mean_with_interval(np.sort(values), np.repeat(np.arange(20).astype(str), 4))
    apart = mean_with_interval(values, np.arange(80).astype(str))
    assert together[2] - together[1] > 1.5 * (apart[2] - apart[1])


def test_the_same_seed_gives_the_same_numbers_and_another_seed_other_pairs(bank: StemBank) -> None:
    once, again = (measure(Guesses(), bank, RetrievalSettings((2, 4), 2.0, seed=5)) for _ in range(2))
    assert once == again
    assert measure(Guesses(), bank, RetrievalSettings((2, 4), 2.0, seed=6)).candidates != once.candidates


def test_a_tracks_pairs_do_not_depend_on_the_other_tracks(bank: StemBank) -> None:
    of_all, _ = draw_pairs(bank, range(TRACKS), SETTINGS)
    of_two, _ = draw_pairs(bank, [4, 1], SETTINGS)
    assert [pair for pair in of_all if pair.track == 4] == [pair for pair in of_two if pair.track == 4]
    assert all(not set(pair.anchor) & set(pair.positive) for pair in of_all)


def test_most_pairs_takes_one_of_every_track_before_a_second(bank: StemBank) -> None:
    limited = RetrievalSettings((2,), 2.0, most_pairs=TRACKS)
    pairs, _ = draw_pairs(bank, range(TRACKS), limited)
    assert sorted(pair.track for pair in pairs) == list(range(TRACKS))


def test_fewer_tracks_than_candidates_give_fewer_candidates_and_say_so(bank: StemBank) -> None:
    result = measure(KnowsTheTrackOnly(), bank, RetrievalSettings((4, 64), 2.0, other_windows=0, delays_ms=()))
    assert list(result.candidates) == [4, TRACKS]
    assert result.notes == ("64 candidates need 63 other tracks; there are 5: 6 instead",)
    assert result.time is None
    assert result.delays == ()


def test_tracks_shorter_than_a_window_are_named(bank: StemBank) -> None:
    with pytest.raises(TooFewTracks) as raised:
        measure(Guesses(), bank, RetrievalSettings(seconds=TRACK_SECONDS + 1))
    assert (raised.value.usable, raised.value.given) == (0, TRACKS)
    _, notes = draw_pairs(bank, [0], RetrievalSettings(seconds=TRACK_SECONDS + 1))
    assert notes == ["stems/track-0: no window of 10 s in which two stems sound"]


def test_windows_without_room_are_left_out_of_time_and_delays_and_counted(bank: StemBank) -> None:
    result = measure(Guesses(), bank, RetrievalSettings((2,), seconds=TRACK_SECONDS, pairs_per_track=1))
    assert (result.time, result.delays) == (None, ())
    assert [note[:10] for note in result.notes] == ["6 of 6 pai", "6 of 6 pai"]


def test_progress_ends_with_every_window_embedded(bank: StemBank) -> None:
    seen: list[tuple[int, int]] = []
    evaluate_retrieval(Always(0.0), bank, range(TRACKS), SETTINGS, lambda done, most: seen.append((done, most)))
    assert seen[-1][0] == seen[-1][1]
    assert all(most == seen[-1][1] for _, most in seen)


@pytest.fixture(scope="module")
def arguments(folder: Path) -> list[str]:
    checkpoint = folder / "untrained.safetensors"
    heard = encode_heard(["elsewhere/track-0@1", "elsewhere/track-99"])
    save_phalar(untrained_phalar(), checkpoint, trained=False, notes={HEARD: heard})
    given = f"retrieval --stems {folder / 'stems'} --cache {folder / 'cache'} --checkpoint {checkpoint}"
    return [*given.split(), "--candidates", "2,8", "--seconds", "2", "--pairs-per-track", "1"]


def test_the_command_prints_one_json_object(arguments: list[str]) -> None:
    run = CliRunner().invoke(evaluate_app, [*arguments, "--no-time", "--json"])
    assert run.exit_code == 0, run.output
    answer = json.loads(run.stdout)
    assert list(answer["candidates"]) == ["2", "6"]
    for share in answer["candidates"].values():
        assert set(share) == {"accuracy", "low", "high", "chance", "pairs"}
        assert share["low"] <= share["accuracy"] <= share["high"]
    assert answer["heard"] == 1
    assert (answer["time"], answer["delays"], answer["left_out"]) == (None, {}, [])


def test_the_command_prints_tables_of_candidates_time_and_delays(arguments: list[str]) -> None:
    run = CliRunner().invoke(evaluate_app, arguments)
    assert run.exit_code == 0, run.output
    for heading in ("Positives of other tracks", "Other windows of the same track", "The positive delayed", "250 ms"):
        assert heading in run.stdout
    assert f"1 of the {TRACKS} tracks was heard in training" in run.stdout
    assert "never trained" in run.stderr


@pytest.mark.parametrize(
    ("change", "code", "sentence"),
    [
        (["--candidates", "8,many"], 2, "whole numbers"),
        (["--candidates", "8,1"], 2, "2 or more"),
        (["--system", "oracle"], 2, "no system is called"),
        (["--checkpoint", "missing.safetensors"], 1, "missing.safetensors"),
        (["--seconds", "1"], 1, "1.024"),
        (["--device", "mars"], 1, "'mars' cannot be used"),
        (["--section", "drums"], 2, "--page and --section go together"),
        (["--section", "drums", "--page", __file__, "--checkpoint", "missing"], 1, "needs the lines"),
    ],
)
def test_the_command_refuses_in_one_sentence(arguments: list[str], change: list[str], code: int, sentence: str) -> None:
    run = CliRunner().invoke(evaluate_app, arguments + change)
    assert run.exit_code == code
    assert sentence in run.stderr
    assert "Traceback" not in run.output


def test_answers_of_two_systems_become_one_markdown_table(bank: StemBank) -> None:
    knows, guesses = (measure(system, bank).as_dict() for system in (KnowsTheTrackOnly(), Guesses()))
    lines = retrieval_markdown({"knows": knows, "guesses": guesses}).splitlines()
    assert lines[0] == "| system | K = 2 | K = 4 | own other windows | lower at 250 ms |"
    assert lines[2] == "| chance | 50.0% | 25.0% | 25.0% | 50.0% |"
    assert lines[3].startswith("| knows | 100.0% (100.0% to 100.0%) | 100.0% (100.0% to 100.0%) |")
    assert len(lines) == 5
    held_out = retrieval_markdown({"knows": knows | {"heard": 0}, "guesses": guesses | {"heard": 0}})
    assert held_out.splitlines()[-1] == f"None of them heard any of the {TRACKS} tracks in training."
    leaked = retrieval_markdown({"knows": knows | {"heard": 3}, "guesses": guesses | {"heard": 0}})
    assert leaked.splitlines()[-1] == f"knows heard 3 of the {TRACKS} tracks in training."
    with pytest.raises(ValueError, match="one measurement"):
        retrieval_markdown({"knows": knows, "guesses": guesses | {"seed": 1}})
    without_time = {"knows": knows, "guesses": guesses | {"time": None, "delays": {}}}
    assert retrieval_markdown(without_time).splitlines()[0] == "| system | K = 2 | K = 4 |"


def test_a_section_of_a_page_is_replaced_and_the_rest_stays(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text("# Results\n<!-- results: songs -->\nold\n<!-- end of songs -->\nafter\n")
    for _ in range(2):
        write_section(page, "songs", "| new |\n")
    assert page.read_text() == "# Results\n<!-- results: songs -->\n| new |\n<!-- end of songs -->\nafter\n"
    with pytest.raises(NoSection, match="results: drums"):
        write_section(page, "drums", "")
