"""An index is congruent with a plain dictionary of embeddings, whatever happened to it."""

import shutil
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from indexer.catalog.records import StemEmbeddings
from indexer.index.index import Index
from tests.embeddings import assert_hits, random_fold, random_rows, random_stem, write_snapshot

DIMENSION = 5
ROWS = st.one_of(st.integers(0, 7), st.just(2**40))
SEEDS = st.integers(0, 10**6)


unit_rows = partial(random_rows, dimension=DIMENSION)


make_stem = partial(random_stem, dimension=DIMENSION, gaps=True)


class IndexAgainstDictionary(RuleBasedStateMachine):
    @initialize(rank=st.sampled_from([None, 3]), seed=SEEDS)
    def begin(self, rank: int | None, seed: int) -> None:
        self.stems: dict[int, StemEmbeddings] = {}
        self.folder = Path(tempfile.mkdtemp())
        self.index = Index.of(write_snapshot(self.folder / "0", [], random_fold(DIMENSION, seed, rank), generation=0))
        self.seed = seed

    @rule(
        upserted=st.dictionaries(ROWS, st.tuples(SEEDS, st.integers(0, 6)), max_size=4),
        deleted=st.frozensets(ROWS, max_size=3),
    )
    def change(self, upserted: dict[int, tuple[int, int]], deleted: frozenset[int]) -> None:
        stems = {row: make_stem(seed, n) for row, (seed, n) in upserted.items()}
        deleted -= stems.keys()
        before = self.index
        expected = self.answer(before)
        self.index = before.with_changes(stems, deleted, before.seq + 1)
        assert all(np.array_equal(a, b) for a, b in zip(self.answer(before), expected, strict=True))
        for row in deleted:
            self.stems.pop(row, None)
        self.stems |= stems

    @rule(kind=st.sampled_from(["flat", "flat", "fp16", "sq8"]))
    def seal(self, kind: str) -> None:
        if kind != "flat":
            # Approximate keys change scores; here only the counts, and that nothing is lost, can be compared.
            folder = self.folder / f"{kind}-{self.index.generation}-{self.index.seq}-{self.seed}"
            self.seed += 1
            sealed = self.write(folder, kind)
            assert (sealed.windows, sealed.stems) == (self.index.windows, self.index.stems)
            assert sorted(self.answer(sealed)[1][0]) == sorted(self.answer(self.index)[1][0])
            return
        self.index = self.write(self.folder / str(self.index.generation + 1), "flat")

    def write(self, folder: Path, kind: str) -> Index:
        facts = {"generation": self.index.generation + 1, "seq": self.index.seq, "index_type": kind}
        return Index.of(write_snapshot(folder, [self.stems], self.index.fold, **facts))

    def answer(self, index: Index) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        return index.search(index.fold.queries(unit_rows(1, 3)), 80)

    @rule(allowed=st.one_of(st.none(), st.lists(ROWS, max_size=5)), k=st.integers(1, 40))
    def search(self, allowed: list[int] | None, k: int) -> None:
        rows = None if allowed is None else np.array(allowed, np.int64)
        assert_hits(self.index, self.stems, k, rows)

    @invariant()
    def counts_agree(self) -> None:
        assert self.index.windows == sum(len(stem.windows) for stem in self.stems.values())
        assert self.index.stems == sum(len(stem.windows) > 0 for stem in self.stems.values())

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


IndexAgainstDictionary.TestCase.settings = settings(max_examples=30, stateful_step_count=15, deadline=None)
TestIndexIsCongruentWithADictionary = IndexAgainstDictionary.TestCase
