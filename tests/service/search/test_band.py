"""What is kept of a mix that is searched with again, and the measure of sets of stems."""

import asyncio
from pathlib import Path
from unittest.mock import AsyncMock

import numpy as np
import pytest

from model.audio import SAMPLE_RATE, Windows
from model.training.stems import StemBank, load_bank
from service.search.band_evaluation import (
    BandAnswer,
    BandSettings,
    band_figures,
    draw_band_queries,
    evaluate_band,
    instrument_of,
)
from service.search.in_process import DirectEmbedder, Kept
from service.search.remembered import Remembering
from service.settings import Settings
from service.work.models import Models
from tests.command import phalar
from tests.installation import noise_bursts
from tests.service.search.test_evaluate_catalog import write

TRACKS = 3


@pytest.fixture(scope="module")
def stems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tracks of four instruments whose stems are nearly the same sound."""
    folder = tmp_path_factory.mktemp("tracks") / "stems"
    rng = np.random.default_rng(0)
    for track in range(TRACKS):
        piece = noise_bursts(track, 12.0)
        for number, name in enumerate(("bass", "drums", "piano", "reed")):
            noise = 0.003 * rng.standard_normal(len(piece))
            write(folder / f"{track}" / f"{number:02d}-{name}.wav", 0.2 * piece + noise)
    return folder


@pytest.fixture(scope="module")
def bank(stems: Path) -> StemBank:
    return load_bank([stems], stems.parent / "banks")


def test_what_was_embedded_of_a_mix_is_not_embedded_again(tmp_path: Path, small_checkpoint: Path) -> None:
    settings = Settings(data=tmp_path, checkpoint=small_checkpoint)
    embedder, waveform, kept = AsyncMock(wraps=DirectEmbedder(settings)), noise_bursts(0, 6.0), Kept()
    fingerprint = Models(settings).configured_fingerprint

    def embed(mix: str, semitones: int) -> np.ndarray:
        laid = Windows(np.arange(3) * 4000, np.full(3, 64_000), 501, semitones=semitones)
        return asyncio.run(Remembering(embedder, kept, mix).embed(fingerprint, waveform, laid, 9))

    first = embed("a", 1)
    assert len(first) == 3
    assert np.array_equal(first, embed("a", 1))
    assert embedder.embed.await_count == 1
    more = embed("a", 2)
    assert 3 * more.shape[1] == 5 * first.shape[1]
    assert embedder.embed.await_count == 2, "more keys are another question"
    assert np.array_equal(embed("a", 1), more.reshape(3, 5, -1)[:, 1:4].reshape(3, -1)), "fewer are a part of them"
    embed("b", 1)
    assert embedder.embed.await_count == 3, "another mix tells nothing of this one"


def test_an_instrument_is_named_by_the_file_or_by_ear() -> None:
    time_s = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    low, high = (np.sin(2 * np.pi * hz * time_s).astype(np.float32) for hz in (80, 440))
    assert instrument_of("03-synth-lead", low, True) == "synth-lead"
    assert instrument_of("3_Lead", low, True) == "bass"
    assert instrument_of("3_Lead", high, True) == "other"
    assert instrument_of("3_Lead", low, False) == "drums"


def test_three_instruments_are_missing_and_none_of_them_is_mixed(bank: StemBank) -> None:
    rows = {track: tuple(range(4 * track, 4 * track + 4)) for track in range(TRACKS)}
    instruments = {track: ["bass", "drums", "piano", "reed"] for track in range(TRACKS)}
    queries = draw_band_queries(bank, rows, instruments, BandSettings(queries=9, seconds=6.0))
    assert sorted(query.track for query in queries) == sorted([0, 1, 2] * 3)
    for query in queries:
        assert len({*query.missing, *query.mixed}) == 4
        assert len(query.missing) == 3


def test_stems_that_sound_like_the_mix_are_found_alone_and_as_a_set(bank: StemBank, small_checkpoint: Path) -> None:
    asked = BandSettings(queries=2, seconds=8.0)
    found = asyncio.run(evaluate_band(bank, range(TRACKS), asked, small_checkpoint))
    for way in ("alone", "in_set", "mean"):
        assert found["ways"][way]["all_right"]["value"] >= 0.5, "by chance one of 27"
        assert found["ways"][way]["of_one_piece"]["value"] >= 0.5
    assert found["more_than_alone"]["mean"]["top1"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert found["chance"]["all_right"] == pytest.approx(1 / 27)
    assert found["candidates"] == TRACKS


def test_the_command_prints_both_ways_and_what_is_not_known_of_the_model(stems: Path, small_checkpoint: Path) -> None:
    cached = ("--stems", stems, "--cache", stems.parent / "banks", "--jobs", "1")
    told = phalar("evaluate", "band", *cached, "--checkpoint", small_checkpoint, "--queries", "1")
    assert told.exit_code == 0, told.stderr
    assert "three searches" in told.stdout
    assert "the checkpoint does not tell which tracks were heard in training" in told.stdout


def test_a_set_is_as_much_better_as_its_queries_are() -> None:
    def answer(alone: list[int], in_set: list[int]) -> BandAnswer:
        ranks, same = {"alone": alone, "in_set": in_set, "mean": in_set}, ("alone", "in_set", "mean")
        return BandAnswer(ranks, [4, 4, 4], dict.fromkeys(same, 1.0), dict.fromkeys(same, 0.5), {"sets": 1.0})

    figures = band_figures([answer([1, 2, 4], [1, 1, 2]), answer([1, 1, 1], [1, 1, 1])], np.array(["a", "b"]), 0)
    assert figures["ways"]["alone"]["top1"]["value"] == pytest.approx((1 / 3 + 1) / 2)
    assert figures["more_than_alone"]["in_set"]["top1"]["value"] == pytest.approx((1 / 3) / 2)
    assert figures["ways"]["in_set"]["all_right"]["value"] == 0.5
