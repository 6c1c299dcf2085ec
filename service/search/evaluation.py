"""`phalar evaluate catalog`: one stem is missing from a mix; does the search find it among all stems, and its place?

The product's own measure. Every stem of every track goes into one catalog; a query is the sum of a track's other stems,
cut where the missing one sounds. The catalog may hold all of them at another tempo and in another key than that mix.
Models, catalog, index, search and refinement are the service's own, in a folder that is thrown away; only HTTP, the
queue and the decoder are left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from model.audio import SAMPLE_RATE
from model.checkpoints import heard_of, piece_of
from model.errors import Told
from model.evaluation.retimed import RetimedBank, key_of
from model.evaluation.retrieval import mean_with_interval
from model.training.stems import StemBank
from model.training.tracks import split_of
from service.search.in_process import SearchedCatalog
from service.search.judging import JudgedPlace, Query, judge_place
from service.search.mix import Align
from service.search.retrieval import Wish
from service.search.sureness import UNRANKED, Sureness, calibration, learn

Drawn = TypeVar("Drawn")
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many of it are done, and how many there are."""

Row = Literal["beats", "told", "search", "grid", "grid_on_grid"]
ROWS: tuple[Row, ...] = get_args(Row)
"""What is asked: a mix cut anywhere with align=beats, the same with its tempo and its key said as those of the stems
are, with align=search and grid; and with align=grid a mix cut where windows of the catalog start, for which alone that
is meant."""

ONE_PLACE: tuple[Row, ...] = ("grid", "grid_on_grid")
"""Where a single place is tried, so that a score tells nothing of how sure a hit is."""

_HOW: dict[Row, Align] = {"beats": "beats", "told": "beats", "search": "search", "grid": "grid", "grid_on_grid": "grid"}

Among = Literal["other_tracks", "not_in_mix", "all"]
AMONG: tuple[Among, ...] = get_args(Among)
"""Whom the missing stem must outrank: the stems of all other tracks; beside these the stems of its own track that are
not in the mix; beside these the stems in the mix, which a search for audio cannot know and may well return."""

TOP = (1, 5, 10)
FOUND_WITHIN = max(TOP)  # ranks among the stems of other tracks at which the place of a stem is judged
WITHIN_MS = (20, 100)
IN_TIME_MS = 40
TRIES = 10  # places of a track that are tried for one query


class NothingToAsk(Told, ValueError):
    """No track has a place where two stems sound."""

    says = "none of {tracks} tracks has a stretch of {seconds:g} s in which two different stems sound"
    tracks: int
    seconds: float


@dataclass(frozen=True)
class CatalogSettings:
    """What is asked of the catalog."""

    queries: int = 50
    seconds: float = 8.0  # of a mix
    seed: int = 0  # of the queries and of the bootstrap
    submix: bool = False  # a random part of the other stems, not all of them
    rows: tuple[Row, ...] = ROWS


@dataclass(frozen=True)
class Answer:
    """What came of one query in one row."""

    ranks: dict[Among, int]
    candidates: dict[Among, int]  # how many stems were ranked, the missing one among them
    ranked: bool  # False: the search did not name the stem at all, and it counts as the last
    place: JudgedPlace | None  # None: not found
    took_ms: dict[str, float]  # by stage
    own_score: float = UNRANKED
    strangers: tuple[float, ...] = ()  # scores of the stems of other tracks, those that were not named among them


async def evaluate_catalog(
    bank: StemBank,
    tracks: Sequence[int],
    settings: CatalogSettings,
    checkpoint: Path | None = None,
    device: str = "cpu",
    progress: Progress = lambda what, done, total: None,
    retimed: RetimedBank | None = None,
) -> tuple[dict[str, Any], Sureness | None]:
    """Put the tracks into a catalog, take stems out of mixes, and ask for them.

    Args:
        bank: of the stems.
        tracks: all that the catalog holds and that queries are drawn from, by their place in the bank.
        settings: what is asked.
        checkpoint: None: the one that the service would load.
        device: a torch device.
        progress: see `Progress`.
        retimed: the bank at other tempi and in other keys; then the catalog holds these, and mixes are as recorded.
            None: it holds what is asked for as it was recorded.

    Returns:
        For JSON: ranks and places, with the chance of each; shares and the mean reciprocal rank have 95 % intervals, by
        a bootstrap over tracks. Renderings of one piece ("name@1", "name@2") count as one track. Times are those of the
        search in this process, in which every stem is ranked. And what the first row tells of how sure a score is.

    Raises:
        NothingToAsk: no track has a stretch in which two different stems sound.
        CheckpointError: the checkpoint cannot be loaded.
    """
    held = retimed or bank
    async with SearchedCatalog.thrown_away(checkpoint, device=device) as installed:
        rows: dict[int, tuple[int, ...]] = {}
        for done, track in enumerate(tracks, start=1):
            rows[track] = await installed.add(held, track)
            progress("tracks embedded", done, len(tracks))
        index = await installed.go_live()
        queries = draw_queries(bank, rows, settings, round(installed.settings.stride_s * SAMPLE_RATE))
        pieces = np.array([piece_of(bank.tracks[query.track].name) for query in queries], dtype=np.str_)
        answers: dict[Row, list[Answer]] = {row: [] for row in settings.rows}
        for done, query in enumerate(queries, start=1):
            for row in settings.rows:
                answers[row].append(await _ask(installed, bank, held, rows, query, row, settings.seconds))
            progress("queries asked", done, len(queries))
        known = Sureness.of_notes(installed.notes)
        answer = {
            "model": installed.model,
            "heard": heard_of(installed.notes, (bank.tracks[track].name for track in tracks)).tracks,
            "catalog": {"tracks": len(tracks), "stems": index.stems, "windows": index.windows},
            "retimed": retimed is not None,
            "tracks_asked": len({query.track for query in queries}),
            **asdict(settings),
            "rows": {
                row: figures(answers[row], pieces, settings.seed, None if row in ONE_PLACE else known)
                for row in settings.rows
            },
        }
        own, strangers = _scores(answers[settings.rows[0]])
        return answer, learn(own, strangers) if len(strangers) else None


def draw_queries(
    bank: StemBank, rows: Mapping[int, tuple[int, ...]], settings: CatalogSettings, stride: int
) -> list[Query]:
    """Draw the queries, one of every track in turn, in an order that the seed tells.

    Args:
        bank: of the stems.
        rows: by track, the number under which the catalog knows each stem; those of one number are one stem, which is
            never missing from a mix that has it.
        settings: how many, how long, and of how many stems.
        stride: samples from one window of the catalog to the next.

    Raises:
        NothingToAsk: no track has a stretch in which two different stems sound.
    """
    rng, length = np.random.default_rng(settings.seed), round(settings.seconds * SAMPLE_RATE)

    def draw(track: int) -> Query | None:
        """None where ten places have no two stems that sound there and at the grid beside it."""
        room, own = bank.tracks[track].samples - length, rows[track]
        for _ in range(TRIES if room >= 0 else 0):
            start = int(rng.integers(room + 1))
            on_grid = min(round(start / stride), room // stride) * stride
            here, there = bank.audible(track, start, length), bank.audible(track, on_grid, length)
            sounding = np.flatnonzero(here & there)
            if not len(sounding):
                continue
            missing = int(rng.choice(sounding))
            others = [int(stem) for stem in sounding if own[stem] != own[missing]]
            if not others:
                continue
            if settings.submix:
                mixed = rng.permutation(others)[: int(rng.integers(1, len(others) + 1))].tolist()
            else:
                mixed = [stem for stem in np.flatnonzero(here | there).tolist() if own[stem] != own[missing]]
            return Query(track, missing, tuple(sorted(mixed)), start, on_grid)
        return None

    return draw_in_turn(rng.permutation([*rows]).tolist(), settings.queries, settings.seconds, draw)


def draw_in_turn(order: list[int], most: int, seconds: float, draw: Callable[[int], Drawn | None]) -> list[Drawn]:
    """At most so many queries, one of every track in turn; a track of which none can be drawn is asked no more.

    Raises:
        NothingToAsk: there is none, of `seconds`.
    """
    left = list(order)
    queries: list[Drawn] = []
    while left and len(queries) < most:
        for track in list(left):
            query = draw(track)
            if query is None:
                left.remove(track)
            elif len(queries) < most:
                queries.append(query)
    if not queries:
        raise NothingToAsk(len(order), seconds)
    return queries


async def _ask(
    installed: SearchedCatalog,
    bank: StemBank,
    held: StemBank | RetimedBank,
    rows: Mapping[int, tuple[int, ...]],
    query: Query,
    row: Row,
    seconds: float,
) -> Answer:
    start, length = query.on_grid if row == "grid_on_grid" else query.start, round(seconds * SAMPLE_RATE)
    stems = bank.waveforms(query.track)
    mix = stems[list(query.mixed), start : start + length].sum(axis=0)
    own = rows[query.track]
    missing = own[query.missing]
    of_piece = {
        other
        for track, others in rows.items()
        if piece_of(bank.tracks[track].name) == piece_of(bank.tracks[query.track].name)
        for other in others
    } - {missing}
    left_out: dict[Among, set[int]] = {
        "other_tracks": of_piece,
        "not_in_mix": {own[stem] for stem in query.mixed},
        "all": set(),
    }
    wish = Wish(limit=FOUND_WITHIN + len(of_piece), align=_HOW[row])
    if row == "told":
        grid, key = bank.tracks[query.track].grid, await asyncio.to_thread(key_of, bank, query.track)
        wish = replace(wish, tempo_bpm=grid.tempo_bpm if grid else None, key=key)
    places, took_ms = await installed.find(mix, wish)
    ranks = {among: rank_among(list(places), missing, left_out[among], installed.stems) for among in AMONG}
    hit, place = places.get(missing), None
    if hit is not None and ranks["other_tracks"] <= FOUND_WITHIN:
        place = await asyncio.to_thread(judge_place, bank, held, query, start, length, hit)
    return Answer(
        ranks=ranks,
        candidates={among: installed.stems - len(left_out[among]) for among in AMONG},
        ranked=hit is not None,
        place=place,
        took_ms=took_ms,
        own_score=UNRANKED if hit is None else hit.score,
        strangers=tuple(
            places[other].score if other in places else UNRANKED
            for others in rows.values()
            for other in others
            if other not in of_piece and other != missing
        ),
    )


def _scores(answers: Sequence[Answer]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of the missing stems, and of those of other tracks."""
    strangers = np.array([score for answer in answers for score in answer.strangers])
    return np.array([answer.own_score for answer in answers]), strangers


def rank_among(order: Sequence[int], row: int, left_out: set[int], stems: int) -> int:
    """The rank of a stem, counted from 1 and without those left out; the last one where the order lacks it."""
    ahead = [other for other in order if other not in left_out]
    return ahead.index(row) + 1 if row in ahead else stems - len(left_out)


def figures(
    answers: Sequence[Answer], pieces: NDArray[np.str_], seed: int, known: Sureness | None = None
) -> dict[str, Any]:
    """The measures of one row.

    Args:
        answers: n of them.
        pieces: (n,), the track of each; a bootstrap draws whole tracks.
        seed: of the bootstrap.
        known: what the model says of how sure a score is.
    """
    found = [answer.place for answer in answers if answer.place is not None]
    return {
        "among": {
            among: _rank_figures(
                np.array([answer.ranks[among] for answer in answers]),
                np.array([answer.candidates[among] for answer in answers]),
                pieces,
                seed,
            )
            for among in AMONG
        },
        "unranked": sum(not answer.ranked for answer in answers),
        "place": {
            "found": len(found),
            "exact": _place_figures([place.error_ms for place in found]),
            "or_alike": _place_figures([place.alike_ms for place in found]),
            "in_time": _in_time(found),
        },
        "speed": _right([place.speed_right for place in found]),
        "transpose": _right([place.transpose_right for place in found]),
        "sureness": _sureness_figures(known, answers),
        "median_ms": median_ms([answer.took_ms for answer in answers]),
    }


def median_ms(took_ms: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each stage."""
    return {stage: round(float(np.median([took[stage] for took in took_ms])), 1) for stage in took_ms[0]}


def _rank_figures(
    ranks: NDArray[np.int64], candidates: NDArray[np.int64], pieces: NDArray[np.str_], seed: int
) -> dict[str, Any]:
    """Shares and means with their interval, and what a random order is expected to reach."""

    def measured(values: NDArray[np.float64], chance: NDArray[np.float64]) -> dict[str, float]:
        value, low, high = mean_with_interval(values, pieces, seed)
        return {"value": value, "low": low, "high": high, "chance": float(chance.mean())}

    tops = {f"top{top}": measured((ranks <= top).astype(np.float64), np.minimum(1.0, top / candidates)) for top in TOP}
    harmonic = np.array([np.sum(1 / np.arange(1, count + 1)) for count in candidates])
    return {
        "queries": len(ranks),
        "candidates": float(candidates.mean()),
        **tops,
        "mean_reciprocal_rank": measured(1 / ranks, harmonic / candidates),
        "median_rank": {"value": float(np.median(ranks)), "chance": float(np.median((candidates + 1) / 2))},
    }


def _place_figures(errors_ms: Sequence[float]) -> dict[str, float | None]:
    """None where nothing was found."""
    errors = np.array(errors_ms, np.float64)
    shares = {f"within_{ms}_ms": float((errors <= ms).mean()) if len(errors) else None for ms in WITHIN_MS}
    return {"median_ms": float(np.median(errors)) if len(errors) else None, **shares}


def _in_time(found: Sequence[JudgedPlace]) -> dict[str, float | None]:
    """How many places lie whole beats beside the right one, how many random ones would, and how far off all lie."""
    heard = [(p.off_beat_ms, p.beat_ms) for p in found if p.off_beat_ms is not None and p.beat_ms is not None]
    if not heard:
        return {"share": None, "chance": None, "median_ms": None, "of": 0}
    off, beat = np.array(heard).T
    chance = np.minimum(1.0, 2 * IN_TIME_MS / beat)
    share, median_ms = float((off <= IN_TIME_MS).mean()), float(np.median(off))
    return {"share": share, "chance": float(chance.mean()), "median_ms": median_ms, "of": len(heard)}


def _sureness_figures(known: Sureness | None, answers: Sequence[Answer]) -> dict[str, Any] | None:
    """How far the shares that the model says are from the true ones; None: it says none."""
    own, strangers = _scores(answers)
    if known is None or not len(strangers):
        return None
    error, bins = calibration(known, own, strangers)
    return {"error": error, "bins": bins}


def _right(answers: Sequence[bool | None]) -> dict[str, float | None]:
    """How many are right, of those that can be."""
    judged = [answer for answer in answers if answer is not None]
    return {"right": sum(judged) / len(judged) if judged else None, "of": len(judged)}


def choose_tracks(bank: StemBank, split: str, most: int | None, seed: int) -> list[int]:
    """The tracks of a split, or of "all", by their place in the bank; at most so many of them, drawn by the seed."""
    tracks = [at for at, track in enumerate(bank.tracks) if split in ("all", split_of(track.name))]
    if most is None or most >= len(tracks):
        return tracks
    return sorted(int(track) for track in np.random.default_rng(seed).choice(tracks, size=most, replace=False))
