"""A set of stems, one for each instrument, that fit a mix and each other: measured by `phalar evaluate band`, and not
served, because it finds less than a search for each. See docs/decisions/sets-of-stems.md.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from indexer import Catalog, Index, Place
from model.audio import SAMPLE_RATE, Windows
from service.search.mix import only
from service.search.retrieval import Embedder, Scored, timed

CANDIDATES = 8  # stems of each instrument that are looked at: the best of its own search
WIDTH = 3  # sets that are followed at a time

Waveform = NDArray[np.float32]
Play = Callable[[int, Place], Awaitable[Waveform]]
"""How a stem, told by its row, sounds at a place: float32, as long as the mix."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A stem where its search has placed it, and what its score is made of: windows of the mix against windows of the
    stem. `in_set`: its score against the mix with others in it."""

    found: Scored
    place: Place
    in_set: float
    mix_windows: Windows
    stem_windows: NDArray[np.int64]

    @classmethod
    def of(cls, found: Scored) -> "Candidate":
        plan, pairs = found.asked.plan, found.found.place(found.row).pairs
        if plan.grid is None:
            starts = np.round([pair.mix_s * SAMPLE_RATE for pair in pairs]).astype(np.int64)
            laid = Windows.in_clock_time(starts, plan.window)
        else:
            offset = plan.offset[plan.key == found.key]
            laid = plan.laid[np.array([np.argmin(np.abs(offset - pair.mix_s)) for pair in pairs])]
        return cls(found, found.place, found.place.score, laid, np.array([pair.window for pair in pairs]))

    @property
    def row(self) -> int:
        return self.found.row


@dataclass(frozen=True, eq=False)
class _Set:
    picked: dict[str, Candidate]
    score: float  # the sum of each one's, as it was when it came in


@dataclass
class Band:
    """Completes one mix. The places of stems stay those of their searches; what changes as the mix grows is how well
    each one fits it."""

    catalog: Catalog
    embedder: Embedder
    index: Index
    mix: Waveform
    play: Play
    deadline_s: float
    alone: float = 0.5  # how much the score against the mix alone counts, beside that with the others in it
    _played: dict[tuple[int, float, float, int], Waveform] = field(default_factory=dict)

    async def complete(self, found: Mapping[str, Sequence[Scored]]) -> dict[str, list[Candidate]]:
        """The stems of each instrument, those of one set first.

        The best three sets are followed, from the instrument whose best stem fits best to the one whose fits least:
        what comes in is scored against the mix with what is in. Then each has its turn to be changed for a stem that
        fits the mix with all others better.

        Args:
            found: by instrument, what a search for it came to, best first.

        Returns:
            By instrument, each scored against the mix with all others of the set; an instrument without stems has none.

        Raises:
            QueueError: not now.
        """
        among = {name: [Candidate.of(one) for one in some[:CANDIDATES]] for name, some in found.items()}
        names = sorted((name for name in among if among[name]), key=lambda name: -among[name][0].place.score)
        sets = [_Set({}, 0.0)]
        for name in names:
            longer: list[_Set] = []
            for one in sets:
                scored = await self.scored(among[name], one.picked) if one.picked else among[name]
                longer += [_Set(one.picked | {name: pick}, one.score + pick.place.score) for pick in scored] or [one]
            sets = sorted(longer, key=lambda one: -one.score)[:WIDTH]
        picked = sets[0].picked
        for name in names if len(names) > 1 else ():
            others = {other: pick for other, pick in picked.items() if other != name}
            among[name] = await self.scored(among[name], others)
            picked = others | dict(zip([name], among[name], strict=False))
        return among

    async def scored(self, candidates: Sequence[Candidate], others: Mapping[str, Candidate]) -> list[Candidate]:
        """Candidates by their score against the mix with others in it, best first. One that was deleted is left out."""
        waveform = self.mix.copy()
        for other in others.values():
            waveform += await self._sound(other)
        again: list[Candidate] = []
        for asked in {id(one.found.asked): one.found.asked for one in candidates}.values():
            some = [one for one in candidates if one.found.asked is asked]
            laid, which = _once([one.mix_windows for one in some])
            embedding = await self.embedder.embed(self.index.fingerprint, *only(waveform, laid), self.deadline_s)
            stems = await self.catalog.embeddings_of([one.row for one in some], self.index.fingerprint)
            for one, rows in zip(some, which, strict=True):
                if one.row not in stems:
                    continue
                stem = timed(stems[one.row], in_beats=asked.plan.grid is not None).embedding[one.stem_windows]
                fold = self.index.fold
                mix = embedding.reshape(len(laid), -1, stem.shape[1])[rows, laid.semitones - one.found.key]
                scores = (fold.form_rows(mix) * fold.real_rows(stem)).sum(axis=1)
                in_set = float(scores.mean()) - one.place.cost - one.place.harmony_cost - one.place.length_cost
                score = self.alone * one.found.score + (1 - self.alone) * in_set
                again.append(replace(one, place=replace(one.place, score=score), in_set=in_set))
        return sorted(again, key=lambda one: (-one.place.score, one.row))

    async def _sound(self, one: Candidate) -> Waveform:
        place = one.place
        key = (one.row, place.start_s, place.speed, place.transpose)
        if key not in self._played:
            self._played[key] = await self.play(one.row, place)
        return self._played[key]


def _once(windows: Sequence[Windows]) -> tuple[Windows, list[NDArray[np.int64]]]:
    """Every window once, and which of them each of the given ones has."""
    told = np.concatenate([np.stack([some.starts, some.lengths], axis=1) for some in windows])
    once, which = np.unique(told, axis=0, return_inverse=True)
    ends = np.cumsum([len(some) for some in windows])
    starts, lengths = once.T
    return replace(windows[0], starts=starts, lengths=lengths), np.split(which.ravel(), ends[:-1])
