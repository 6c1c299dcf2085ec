"""`phalar evaluate band`: three stems are missing from a mix; are they found better as a set than each by itself?

The catalog is that of `phalar evaluate catalog`; every stem has an instrument, and a query asks for three of them. A
set comes from the service's own `Band`. Stems of the same piece, but those that are missing, may not be answered.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer import Place
from model.audio import SAMPLE_RATE, Waveform
from model.checkpoints import heard_of, piece_of
from model.evaluation.retrieval import mean_with_interval
from model.training.stems import StemBank
from service.search.band import CANDIDATES, Band, Candidate
from service.search.evaluation import TRIES, Progress, draw_in_turn, median_ms, rank_among
from service.search.in_process import SearchedCatalog
from service.search.placing import laid
from service.work.fitting import fit

WAYS = {"in_set": 0.0, "mean": 0.5}
"""How much the score against the mix alone counts in a set."""
MISSING = 3
LOW_HZ = 200.0  # what has half of its power below is bass
_NAMED = re.compile(r"\d+-([a-z-]+)$")


@dataclass(frozen=True)
class BandSettings:
    """What is asked of the catalog."""

    queries: int = 60
    seconds: float = 8.0  # of a mix
    seed: int = 0  # of the queries and of the bootstrap


@dataclass(frozen=True)
class BandQuery:
    """A track, the stems that are missing and those that are mixed, by their place in it, and where it is cut."""

    track: int
    missing: tuple[int, ...]
    mixed: tuple[int, ...]
    start: int  # sample


@dataclass(frozen=True)
class BandAnswer:
    """What came of one query, `alone` and as a `set`: by instrument the rank of the missing stem; the score of the
    three that came first, each against the mix with the two others; and the share of their pairs of one piece."""

    ranks: dict[str, list[int]]
    candidates: list[int]
    scores: dict[str, float]
    of_one_piece: dict[str, float]
    took_ms: dict[str, float]


def instrument_of(name: str, waveform: Waveform, pitched: bool) -> str:
    """What a stem is: as its file is named by `phalar train render` ("03-strings"), else by ear: drums, bass or other.

    Args:
        name: of its file.
        waveform: float32 (samples,), 16 kHz.
        pitched: whether it plays notes.
    """
    if named := _NAMED.match(name):
        return named[1]
    if not pitched:
        return "drums"
    power = np.abs(np.fft.rfft(waveform.astype(np.float64))) ** 2
    low = power[: round(LOW_HZ * len(waveform) / SAMPLE_RATE)].sum()
    return "bass" if 2 * low > power.sum() else "other"


def draw_band_queries(
    bank: StemBank, rows: dict[int, tuple[int, ...]], instruments: dict[int, list[str]], settings: BandSettings
) -> list[BandQuery]:
    """Draw the queries, one of every track in turn: three stems of different instruments, and one at least beside them.

    Args:
        rows, instruments: by track, of each of its stems; what has one row is one stem.

    Raises:
        NothingToAsk: no track has a stretch in which as many stems sound.
    """
    rng, length = np.random.default_rng(settings.seed), round(settings.seconds * SAMPLE_RATE)

    def draw(track: int) -> BandQuery | None:
        room, own, played = bank.tracks[track].samples - length, rows[track], instruments[track]
        for _ in range(TRIES if room >= 0 else 0):
            start = int(rng.integers(room + 1))
            sounding = [int(stem) for stem in rng.permutation(np.flatnonzero(bank.audible(track, start, length)))]
            first = {played[stem]: stem for stem in reversed(sounding)}  # of each instrument
            missing = [stem for stem in sounding if first[played[stem]] == stem][:MISSING]
            mixed = [stem for stem in sounding if own[stem] not in {own[gone] for gone in missing}]
            if len({own[stem] for stem in missing}) == MISSING and mixed:
                return BandQuery(track, tuple(missing), tuple(sorted(mixed)), start)
        return None

    return draw_in_turn(rng.permutation([*rows]).tolist(), settings.queries, settings.seconds, draw)


async def evaluate_band(
    bank: StemBank,
    tracks: Sequence[int],
    settings: BandSettings,
    checkpoint: Path | None = None,
    device: str = "cpu",
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Put the tracks into a catalog, take three stems out of mixes, and ask for them alone and as a set.

    Args and errors as of `evaluate_catalog`.

    Returns:
        For JSON. Shares, means and differences have 95 % intervals, by a bootstrap over pieces.
    """
    async with SearchedCatalog.thrown_away(checkpoint, device=device) as installed:
        rows: dict[int, tuple[int, ...]] = {}
        instruments: dict[int, list[str]] = {}
        for done, track in enumerate(tracks, start=1):
            banked, waveforms = bank.tracks[track], bank.waveforms(track)
            instruments[track] = [
                instrument_of(*one) for one in zip(banked.stems, waveforms, banked.pitched, strict=True)
            ]
            rows[track] = await installed.add(bank, track, instruments[track])
            progress("tracks embedded", done, len(tracks))
        index = await installed.go_live()
        queries = draw_band_queries(bank, rows, instruments, settings)
        asker = _Asker(installed, bank, rows, instruments, settings.seconds)
        answers = []
        for done, query in enumerate(queries, start=1):
            answers.append(await asker.ask(query))
            progress("queries asked", done, len(queries))
        pieces = np.array([piece_of(bank.tracks[query.track].name) for query in queries], dtype=np.str_)
        return {
            "model": installed.model,
            "heard": heard_of(installed.notes, (bank.tracks[track].name for track in tracks)).tracks,
            "catalog": {"tracks": len(tracks), "stems": index.stems, "windows": index.windows},
            "tracks_asked": len({query.track for query in queries}),
            "instruments": sorted({instruments[q.track][stem] for q in queries for stem in q.missing}),
            **asdict(settings),
            **band_figures(answers, pieces, settings.seed),
        }


@dataclass
class _Asker:
    """Asks a catalog of a bank's tracks: by track, the row and the instrument of each of its stems."""

    installed: SearchedCatalog
    bank: StemBank
    rows: dict[int, tuple[int, ...]]
    instruments: dict[int, list[str]]
    seconds: float

    def __post_init__(self) -> None:
        self.at = {row: (track, stem) for track, of in self.rows.items() for stem, row in enumerate(of)}
        self.piece = {row: piece_of(self.bank.tracks[track].name) for row, (track, _) in self.at.items()}

    async def ask(self, query: BandQuery) -> BandAnswer:
        own = self.rows[query.track]
        piece = piece_of(self.bank.tracks[query.track].name)
        missing = {self.instruments[query.track][stem]: own[stem] for stem in query.missing}
        left_out = {row for row, of in self.piece.items() if of == piece} - set(missing.values())
        stems = self.bank.waveforms(query.track, query.start, round(self.seconds * SAMPLE_RATE))
        mix = stems[list(query.mixed)].sum(axis=0)

        async def play(row: int, place: Place) -> Waveform:
            track, stem = self.at[row]
            recorded = self.bank.waveforms(track)[stem]
            sound = np.zeros(len(mix), np.float32)
            at, fitting = laid(place, len(mix), len(recorded) / SAMPLE_RATE, loop=False)
            part = await asyncio.to_thread(lambda: fit(recorded[None], SAMPLE_RATE, fitting)[0])
            sound[at:] = part
            return sound

        began = time.perf_counter()
        found, band = await self.installed.band(mix, [*missing], left_out, play)
        searched = time.perf_counter()
        listed = {name: [Candidate.of(one) for one in some] for name, some in found.items()}
        ways = {"alone": listed}
        for way, alone in WAYS.items():
            band.alone = alone
            among = await band.complete(found)
            ways[way] = {name: [*among[name], *some[CANDIDATES:]] for name, some in listed.items()}
        done = time.perf_counter()
        held = {name: self._held(name, left_out) for name in missing}
        firsts = {way: {name: some[0] for name, some in of.items()} for way, of in ways.items()}
        return BandAnswer(
            ranks={
                way: [rank_among([c.row for c in of[name]], row, set(), held[name]) for name, row in missing.items()]
                for way, of in ways.items()
            },
            candidates=[*held.values()],
            scores={way: await _score(band, picks) for way, picks in firsts.items()},
            of_one_piece={way: self._of_one_piece(picks) for way, picks in firsts.items()},
            took_ms={"searches": 1000 * (searched - began), "sets": 1000 * (done - searched)},
        )

    def _held(self, instrument: str, left_out: set[int]) -> int:
        """Stems of an instrument that may be answered."""
        return sum(
            self.instruments[track][stem] == instrument for row, (track, stem) in self.at.items() if row not in left_out
        )

    def _of_one_piece(self, picks: Mapping[str, Candidate]) -> float:
        """The share of pairs that are of one piece."""
        pieces = [self.piece[pick.row] for pick in picks.values()]
        return float(np.mean([one == other for one, other in combinations(pieces, 2)]))


async def _score(band: Band, picks: Mapping[str, Candidate]) -> float:
    """The mean of each one's score against the mix with the others in it."""
    scores = []
    for name, pick in picks.items():
        others = {other: one for other, one in picks.items() if other != name}
        scores.append((await band.scored([pick], others))[0].in_set)
    return float(np.mean(scores))


def band_figures(answers: Sequence[BandAnswer], pieces: NDArray[np.str_], seed: int) -> dict[str, Any]:
    """The measures of both ways, and by how much the set is better: the mean over queries of its difference.

    Args:
        answers: n of them.
        pieces: (n,), of each; a bootstrap draws whole pieces.
        seed: of the bootstrap.
    """

    def measured(values: Sequence[float]) -> dict[str, float]:
        value, low, high = mean_with_interval(np.array(values, np.float64), pieces, seed)
        return {"value": value, "low": low, "high": high}

    of: dict[str, dict[str, list[float]]] = {}
    for way in answers[0].ranks:
        ranks = [np.array(answer.ranks[way]) for answer in answers]
        of[way] = {
            "top1": [float((r == 1).mean()) for r in ranks],
            "top3": [float((r <= 3).mean()) for r in ranks],
            "mean_reciprocal_rank": [float((1 / r).mean()) for r in ranks],
            "all_right": [float((r == 1).all()) for r in ranks],
            "of_one_piece": [answer.of_one_piece[way] for answer in answers],
            "score": [answer.scores[way] for answer in answers],
        }
    counts = np.array([answer.candidates for answer in answers], np.float64)
    harmonic = np.vectorize(lambda count: np.sum(1 / np.arange(1, count + 1)))(counts)
    chance = {
        "top1": float((1 / counts).mean()),
        "top3": float(np.minimum(1, 3 / counts).mean()),
        "mean_reciprocal_rank": float((harmonic / counts).mean()),
        "all_right": float((1 / counts).prod(axis=1).mean()),
    }
    return {
        "candidates": float(counts.mean()),
        "ways": {way: {name: measured(values) for name, values in found.items()} for way, found in of.items()},
        "more_than_alone": {
            way: {
                name: measured([s - a for s, a in zip(of[way][name], of["alone"][name], strict=True)])
                for name in of[way]
            }
            for way in WAYS
        },
        "chance": chance,
        "median_ms": median_ms([answer.took_ms for answer in answers]),
    }
