"""The measure of the product itself, on tracks whose right answers are known by construction."""

import asyncio
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import typer
from numpy.typing import NDArray
from typer.testing import CliRunner

from indexer import Place
from model.audio import SAMPLE_RATE
from model.demo import compose_track, write_track
from model.evaluation.retimed import RetimedBank
from model.training.stems import StemBank, load_bank
from service.commands.evaluate import catalog
from service.search.evaluation import (
    Answer,
    CatalogSettings,
    NothingToAsk,
    choose_tracks,
    draw_queries,
    evaluate_catalog,
    figures,
    rank_among,
)
from service.search.judging import JudgedPlace, Query, judge_place, place_errors_ms
from service.search.retrieval import SCORED_FIRST
from tests.installation import noise_bursts

TRACKS, TRACK_S = 3, 16.0
QUERIES, SECONDS = 3, 8.0  # long enough that some window of it meets the catalog's grid
STRIDE = round(2.5 * SAMPLE_RATE)
Result = dict[str, Any]
Ask = Callable[..., Result]
ONE_SAMPLE_MS = 1000 / SAMPLE_RATE
DOUBLE_NOISE = 3e-3  # -50 dBFS: nearly the same sound, so that a mix is still most like itself
REFINED_MS = 20.0  # a place is told on a grid of 10 ms or finer


def music(seed: int) -> NDArray[np.float32]:
    return compose_track(seed, TRACK_S, SAMPLE_RATE).mix()


def write(path: Path, waveform: NDArray[np.floating]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform, SAMPLE_RATE, subtype="FLOAT")


def bank_of(folder: Path) -> StemBank:
    return load_bank([folder], folder.parent / "banks")


def doubles(folder: Path, *, moved_on: int = 0) -> StemBank:
    """Tracks of two stems, a piece and its double; or the double of a piece some tracks on."""
    rng = np.random.default_rng(0)
    pieces = [music(seed) for seed in range(TRACKS)]
    for number, piece in enumerate(pieces):
        double = pieces[(number + moved_on) % TRACKS]
        write(folder / f"{number}" / "piece.wav", piece)
        write(folder / f"{number}" / "double.wav", 0.9 * double + DOUBLE_NOISE * rng.standard_normal(len(double)))
    return bank_of(folder)


@pytest.fixture(scope="module")
def ask(small_checkpoint: Path) -> Ask:
    """Evaluates a bank with a model whose H is the identity, so that a stem's own audio scores highest."""

    def evaluate(bank: StemBank, retimed: RetimedBank | None = None, **settings: Any) -> Result:
        wanted = CatalogSettings(**({"queries": QUERIES, "seconds": SECONDS} | settings))
        tracks = range(len(bank.tracks))
        return asyncio.run(evaluate_catalog(bank, tracks, wanted, small_checkpoint, retimed=retimed))[0]

    return evaluate


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> StemBank:
    return doubles(tmp_path_factory.mktemp("doubles") / "stems")


@pytest.fixture(scope="module")
def of_doubles(bank: StemBank, ask: Ask) -> Result:
    return ask(bank, rows=("search", "grid", "grid_on_grid"))


@pytest.mark.parametrize("row", ["search", "grid_on_grid"])
def test_a_mix_that_sounds_like_the_missing_stem_finds_it_first(of_doubles: Result, row: str) -> None:
    ranks = of_doubles["rows"][row]["among"]["other_tracks"]
    assert ranks["top1"]["value"] == 1.0
    assert ranks["median_rank"]["value"] == 1
    assert ranks["candidates"] == 2 * TRACKS - 1


def test_a_cut_made_anywhere_is_placed_by_the_search_and_not_by_the_grid(of_doubles: Result) -> None:
    rows = of_doubles["rows"]
    assert rows["search"]["place"]["found"] == QUERIES
    assert rows["search"]["place"]["or_alike"]["within_20_ms"] == 1.0
    assert rows["search"]["place"]["or_alike"]["median_ms"] <= REFINED_MS
    assert rows["grid"]["place"]["exact"]["within_20_ms"] < 0.5


def test_a_cut_made_on_the_grid_is_placed_exactly_by_the_grid(of_doubles: Result) -> None:
    place = of_doubles["rows"]["grid_on_grid"]["place"]
    assert place["found"] == QUERIES
    assert place["or_alike"]["median_ms"] <= ONE_SAMPLE_MS


def test_the_stem_in_the_mix_outranks_the_missing_one_only_where_it_counts(of_doubles: Result) -> None:
    among = of_doubles["rows"]["search"]["among"]
    assert among["not_in_mix"]["median_rank"]["value"] == 1
    assert among["all"]["median_rank"]["value"] == 2
    assert among["all"]["candidates"] == 2 * TRACKS


def test_stems_shuffled_between_tracks_are_not_found_first(tmp_path: Path, ask: Ask, of_doubles: Result) -> None:
    shuffled = ask(doubles(tmp_path / "stems", moved_on=1), rows=("search",))
    ranks, right = (result["rows"]["search"]["among"]["other_tracks"] for result in (shuffled, of_doubles))
    assert ranks["top1"]["value"] == 0.0
    assert ranks["mean_reciprocal_rank"]["high"] < right["mean_reciprocal_rank"]["low"]


def test_the_same_seed_gives_the_same_figures_to_the_digit(bank: StemBank, ask: Ask) -> None:
    first, second = (ask(bank, queries=2, rows=("grid",))["rows"]["grid"] for _ in range(2))
    assert first["among"] == second["among"]
    assert first["place"] == second["place"]


def test_every_stem_of_a_catalog_gets_a_rank_however_far_down(tmp_path: Path, ask: Ask) -> None:
    stems = SCORED_FIRST + 10  # more than the search scores of its own accord
    for seed in range(stems):
        write(tmp_path / "stems" / f"{seed // 2}" / f"{seed % 2}.wav", noise_bursts(seed, 6.0))
    measured = ask(bank_of(tmp_path / "stems"), queries=8, seconds=5.0, rows=("grid",))["rows"]["grid"]
    assert measured["unranked"] == 0
    assert measured["among"]["all"]["candidates"] == stems
    assert 0.2 < measured["among"]["other_tracks"]["median_rank"]["value"] / stems < 0.8, "unrelated"


def tones(folder: Path, tracks: int = 3) -> StemBank:
    """Tracks of three stems of which the last sounds in its second half only."""
    time_s = np.arange(round(20 * SAMPLE_RATE)) / SAMPLE_RATE
    for number in range(tracks):
        for stem, hz in enumerate((110, 220, 440)):
            tone = 0.1 * np.sin(2 * np.pi * hz * (number + 1) * time_s)
            write(folder / f"{number}" / f"{stem}.wav", np.where((stem == 2) & (time_s < 10), 0, tone))
    return bank_of(folder)


def own_rows(bank: StemBank) -> dict[int, tuple[int, ...]]:
    return {at: tuple(3 * at + stem for stem in range(3)) for at in range(len(bank.tracks))}


@pytest.mark.parametrize("submix", [False, True])
def test_the_missing_stem_sounds_at_both_cuts_and_is_not_in_the_mix(tmp_path: Path, submix: bool) -> None:
    bank = tones(tmp_path / "stems")
    settings = CatalogSettings(queries=60, seconds=4.0, submix=submix)
    queries = draw_queries(bank, own_rows(bank), settings, STRIDE)
    length = 4 * SAMPLE_RATE
    assert len(queries) == 60
    for query in queries:
        assert bank.audible(query.track, query.start, length)[query.missing]
        assert bank.audible(query.track, query.on_grid, length)[query.missing]
        assert query.mixed
        assert query.missing not in query.mixed
        assert query.on_grid % STRIDE == 0
        assert max(query.start, query.on_grid) + length <= bank.tracks[query.track].samples
    assert {len(query.mixed) for query in queries} == {1, 2}
    assert {query.track for query in queries} == {0, 1, 2}


def test_a_stem_is_never_missing_from_a_mix_that_has_the_same_audio(tmp_path: Path) -> None:
    bank = tones(tmp_path / "stems", tracks=1)
    twice = {0: (0, 0, 1)}  # the catalog knows the first two as one stem
    for query in draw_queries(bank, twice, CatalogSettings(queries=30, seconds=4.0), STRIDE):
        assert twice[0][query.missing] not in {twice[0][stem] for stem in query.mixed}


def test_tracks_without_two_stems_at_a_time_are_refused_by_name(tmp_path: Path) -> None:
    bank = tones(tmp_path / "stems", tracks=1)
    with pytest.raises(NothingToAsk, match="none of 1 tracks"):
        draw_queries(bank, own_rows(bank), CatalogSettings(seconds=30.0), STRIDE)


def test_a_limit_on_tracks_draws_some_of_a_split_by_the_seed(tmp_path: Path) -> None:
    bank = tones(tmp_path / "stems")
    assert choose_tracks(bank, "all", None, seed=0) == [0, 1, 2]
    drawn = {tuple(choose_tracks(bank, "all", 2, seed)) for seed in range(20)}
    assert drawn == {(0, 1), (0, 2), (1, 2)}
    of_splits = [track for split in ("train", "validation", "test") for track in choose_tracks(bank, split, None, 0)]
    assert sorted(of_splits) == [0, 1, 2]


def test_a_rank_counts_only_stems_that_are_not_left_out_and_one_that_is_not_named_is_the_last() -> None:
    assert rank_among([7, 3, 9, 4], 4, set(), stems=6) == 4
    assert rank_among([7, 3, 9, 4], 4, {7, 9}, stems=6) == 2
    assert rank_among([7, 3], 4, {7, 5}, stems=6) == 4


def test_a_place_where_the_stem_repeats_is_told_apart_and_is_as_right() -> None:
    bar = np.random.default_rng(0).standard_normal(3 * SAMPLE_RATE).astype(np.float32)
    stem = np.tile(bar, 4)
    start, length = SAMPLE_RATE, 4 * SAMPLE_RATE
    error_ms, alike_ms = place_errors_ms(stem, start, length, found_s=4.01)
    assert error_ms == pytest.approx(3010)
    assert alike_ms == pytest.approx(10, abs=ONE_SAMPLE_MS)


def test_a_place_where_something_else_sounds_is_as_wrong_as_it_is_far() -> None:
    stem = np.random.default_rng(0).standard_normal(12 * SAMPLE_RATE).astype(np.float32)
    for found_s in (4.0, 9.5, -2.0, 40.0):  # within the stem, beyond its end, before its beginning, nowhere near
        error_ms, alike_ms = place_errors_ms(stem, SAMPLE_RATE, 4 * SAMPLE_RATE, found_s)
        assert error_ms == alike_ms == pytest.approx(abs(found_s - 1) * 1000)


def answer_of(
    rank: int,
    candidates: int,
    error_ms: float | None = None,
    alike_ms: float = 0.0,
    beat: tuple[float | None, float | None] = (None, None),
    played: tuple[bool, bool | None] = (True, None),
) -> Answer:
    same = ("other_tracks", "not_in_mix", "all")
    return Answer(
        dict.fromkeys(same, rank),  # type: ignore[arg-type]
        dict.fromkeys(same, candidates),  # type: ignore[arg-type]
        ranked=True,
        place=None if error_ms is None else JudgedPlace(error_ms, alike_ms, *beat, *played),
        took_ms={"total": 1.0},
    )


def test_every_rank_once_is_exactly_what_chance_gives() -> None:
    answers = [answer_of(rank, 40) for rank in range(1, 41)]
    ranks = figures(answers, np.array([f"{n}" for n in range(40)]), seed=0)["among"]["other_tracks"]
    for name in ("top1", "top5", "top10", "mean_reciprocal_rank", "median_rank"):
        assert ranks[name]["value"] == pytest.approx(ranks[name]["chance"])
    assert ranks["top10"]["low"] < ranks["top10"]["value"] < ranks["top10"]["high"]


def test_an_interval_comes_from_tracks_not_from_queries() -> None:
    answers = [answer_of(1 if n < 20 else 30, 40) for n in range(40)]
    apart = figures(answers, np.array([f"{n}" for n in range(40)]), seed=0)["among"]["all"]["top1"]
    of_two = figures(answers, np.array(["a"] * 20 + ["b"] * 20), seed=0)["among"]["all"]["top1"]
    assert apart["value"] == of_two["value"] == 0.5
    assert (of_two["low"], of_two["high"]) == (0.0, 1.0)
    assert 0.2 < apart["low"] < apart["high"] < 0.8


def test_places_are_judged_where_the_stem_was_found() -> None:
    answers = [answer_of(1, 40, 5.0, 5.0), answer_of(2, 40, 3000.0, 15.0), answer_of(30, 40)]
    place = figures(answers, np.array(["a", "b", "c"]), seed=0)["place"]
    assert place["found"] == 2
    assert place["exact"] == {"median_ms": 1502.5, "within_20_ms": 0.5, "within_100_ms": 0.5}
    assert place["or_alike"] == {"median_ms": 10.0, "within_20_ms": 1.0, "within_100_ms": 1.0}


def test_places_whole_beats_beside_the_right_one_are_in_time() -> None:
    beats = [(5.0, 400.0), (39.0, 400.0), (41.0, 800.0), (None, None)]
    answers = [answer_of(1, 40, 9000.0, 9000.0, beat) for beat in beats]
    in_time = figures(answers, np.array(list("abcd")), seed=0)["place"]["in_time"]
    assert in_time["of"] == 3
    assert in_time["median_ms"] == 39.0
    assert in_time["share"] == pytest.approx(2 / 3)
    assert in_time["chance"] == pytest.approx((0.2 + 0.2 + 0.1) / 3), "80 ms of 400, of 400 and of 800"
    nothing = figures([answer_of(1, 40, 1.0, 1.0)], np.array(["a"]), seed=0)["place"]["in_time"]
    assert nothing == {"share": None, "chance": None, "median_ms": None, "of": 0}


def test_speed_and_transposition_are_judged_where_the_stem_was_found_and_plays_notes() -> None:
    played = [(True, True), (True, None), (False, False), (True, False)]
    answers = [answer_of(1, 40, 1.0, played=either) for either in played] + [answer_of(30, 40)]
    measured = figures(answers, np.array(list("abcde")), seed=0)
    assert measured["speed"] == {"right": 0.75, "of": 4}
    assert measured["transpose"] == {"right": pytest.approx(1 / 3), "of": 3}
    nothing = figures([answer_of(30, 40)], np.array(["a"]), seed=0)
    assert nothing["speed"] == nothing["transpose"] == {"right": None, "of": 0}


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> StemBank:
    folder = tmp_path_factory.mktemp("composed") / "stems"
    for seed in range(TRACKS):
        write_track(compose_track(seed, TRACK_S, SAMPLE_RATE), folder / f"{seed}")
    return bank_of(folder)


@pytest.mark.parametrize("stem", ["drums", "keys"])
def test_the_right_place_of_a_retimed_stem_undoes_what_was_done_to_it(
    composed: StemBank, tmp_path: Path, stem: str
) -> None:
    held = RetimedBank(composed, tmp_path)
    start, length, whole = 3 * SAMPLE_RATE, 4 * SAMPLE_RATE, Place(1.0, 3.0, ())
    for track, banked in enumerate(composed.tracks):
        query = Query(track, banked.stems.index(stem), (), start, start)
        speed, transpose = held.speed[track], held.transpose[track]
        right = replace(whole, start_s=3.0 / speed, speed=1 / speed, transpose=-transpose)
        judged = judge_place(composed, held, query, start, length, right)
        assert max(judged.error_ms, judged.alike_ms) <= ONE_SAMPLE_MS
        assert judged.off_beat_ms == pytest.approx(0.0, abs=1e-6)
        assert judged.speed_right
        assert judged.transpose_right is (None if stem == "drums" else True)
        as_it_lies = judge_place(composed, held, query, start, length, whole)
        assert as_it_lies.error_ms == pytest.approx(3000 * abs(1 - 1 / speed), abs=ONE_SAMPLE_MS)
        assert not as_it_lies.speed_right
        assert not as_it_lies.transpose_right
        unchanged = judge_place(composed, composed, query, start, length, whole)
        assert (unchanged.error_ms, unchanged.off_beat_ms, unchanged.speed_right) == (0.0, 0.0, True)


def test_a_place_is_judged_by_the_beats_of_its_track(composed: StemBank, monkeypatch: pytest.MonkeyPatch) -> None:
    track = composed.tracks[0]
    assert track.grid is not None
    beat_ms, start, length = 60_000 / track.grid.tempo_bpm, 3 * SAMPLE_RATE, 4 * SAMPLE_RATE
    query = Query(0, track.stems.index("keys"), (), start, start)
    for beats, off_beats in ((8.0, 0.0), (-3.0, 0.0), (8.5, 0.5), (5.25, 0.25)):
        judged = judge_place(composed, composed, query, start, length, Place(1.0, 3.0 + beats * beat_ms / 1000, ()))
        assert judged.beat_ms == pytest.approx(beat_ms)
        assert judged.off_beat_ms == pytest.approx(off_beats * beat_ms, abs=1e-3)
    monkeypatch.setattr(composed, "tracks", (replace(track, grid=None), *composed.tracks[1:]))
    judged = judge_place(composed, composed, query, start, length, Place(1.0, 3.0, ()))
    assert (judged.error_ms, judged.off_beat_ms, judged.beat_ms) == (0.0, None, None)


def test_a_retimed_catalog_is_asked_by_the_mixes_as_recorded(composed: StemBank, tmp_path: Path, ask: Ask) -> None:
    """The model hears what is alike, and nothing else: a mix is most like the stems of its own track, as recorded."""
    recorded, retimed = (ask(composed, held, rows=("grid",)) for held in (None, RetimedBank(composed, tmp_path)))
    assert (recorded["retimed"], retimed["retimed"]) == (False, True)
    assert recorded["catalog"]["stems"] == retimed["catalog"]["stems"] == 5 * TRACKS
    for result in (recorded, retimed):
        assert result["rows"]["grid"]["unranked"] == 0
    assert recorded["rows"]["grid"]["speed"] == {"right": 1.0, "of": recorded["rows"]["grid"]["place"]["found"]}
    found = retimed["rows"]["grid"]["speed"]["of"]
    assert retimed["rows"]["grid"]["speed"] == {"right": 0.0, "of": found}, "today's search plays stems as they are"
    assert found


def test_the_command_prints_one_json_object_and_leaves_a_users_data_alone(
    tmp_path: Path, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubles(tmp_path / "stems")
    users = tmp_path / "mine.sqlite"
    monkeypatch.setenv("PHALAR_DATABASE_URL", f"sqlite+aiosqlite:///{users}")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    app = typer.Typer()
    app.command()(catalog)
    options: dict[str, object] = {
        "--stems": tmp_path / "stems",
        "--checkpoint": small_checkpoint,
        "--cache": tmp_path / "banks",
    }
    options |= {"--queries": 2, "--tracks": 2, "--align": "grid", "--jobs": 1}
    words = [str(word) for pair in options.items() for word in pair]
    taught = tmp_path / "taught.safetensors"
    ended = CliRunner().invoke(app, [*words, "--json", "--learn-sureness", str(taught)])
    assert ended.exit_code == 0, ended.output
    answer = json.loads(ended.stdout)
    assert answer["catalog"]["tracks"] == 2
    assert answer["catalog"]["stems"] == 4
    assert list(answer["rows"]) == ["grid", "grid_on_grid"]
    assert answer["rows"]["grid"]["among"]["all"]["queries"] == 2
    assert answer["model"]["trained"]
    assert not users.exists()
    assert not list(tmp_path.glob("phalar-evaluation-*")), "its folder is thrown away"

    assert not (tmp_path / "banks" / "retimed").exists()

    assert answer["rows"]["grid"]["sureness"] is None, "the model was not taught it"

    shown = CliRunner().invoke(app, [*words, "--retimed", "--checkpoint", str(taught), "--align", "beats"])
    assert "How sure, beats" in shown.stdout
    assert "speed" in shown.stdout
    assert len(list((tmp_path / "banks" / "retimed").iterdir())) == 2, "a file a track, kept"
    assert "chance" in shown.stdout


def test_what_is_stored_at_another_tempo_and_in_another_key_is_found_on_beats_alone(tmp_path: Path) -> None:
    """With the model that ships: the stand-in's score is gone within the few milliseconds that a heard beat is off."""
    bank = doubles(tmp_path / "stems")
    asked = CatalogSettings(queries=QUERIES, seconds=SECONDS, rows=("beats", "search"))
    held = RetimedBank(bank, tmp_path)
    rows = asyncio.run(evaluate_catalog(bank, range(TRACKS), asked, retimed=held))[0]["rows"]
    assert rows["beats"]["among"]["other_tracks"]["top1"]["value"] == 1.0
    assert rows["beats"]["speed"] == rows["beats"]["transpose"] == {"right": 1.0, "of": QUERIES}
    assert rows["beats"]["place"]["in_time"]["share"] > 0.5
    assert rows["search"]["speed"]["right"] == 0.0
