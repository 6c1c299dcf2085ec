"""The keys of one collection on a Qdrant server, searched as a snapshot's are; and the connection to the server."""

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, Literal, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

from indexer.catalog.database import chunks
from indexer.index.index import IndexUnavailable

P = ParamSpec("P")


T = TypeVar("T")


Mode = Literal["exact", "graph", "int8"]


Float32 = npt.NDArray[np.float32]


Int64 = npt.NDArray[np.int64]


log = logging.getLogger("phalar.index")


# Stem rows in one filter. Each query of a batch carries its own copy of it, and a server takes 32 MiB by default.
FILTER_ROWS = 4096


QUERIES_AT_ONCE = 32


# A lost server is asked again after so many seconds, doubled each time.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0


# int8: candidates whose whole keys are compared, for each one wanted.
OVERSAMPLING = 2.0


_NOT_NOW = (401, 403, 408, 429)


class Connection:
    """A client that does not wait on a lost server again and again."""

    def __init__(self, client: QdrantClient) -> None:
        self.client = client
        self._pause_s = 0.0
        self._next_try = 0.0

    @property
    def reachable(self) -> bool:
        """Whether the last call came through."""
        return not self._pause_s

    def __call__(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method of the client.

        Raises:
            IndexUnavailable: the server cannot be reached or will not serve now; for a while it is not even asked.
        """
        left_s = self._next_try - time.monotonic()
        if left_s > 0:
            raise IndexUnavailable("unreachable", retry_after_s=left_s)
        try:
            answer = method(*args, **kwargs)
        except (ApiException, ResourceExhaustedResponse) as error:
            if isinstance(error, UnexpectedResponse) and not _passes(error):
                raise
            self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s or FIRST_PAUSE_S)
            self._next_try = time.monotonic() + self._pause_s
            cause = error.source if isinstance(error, ResponseHandlingException) else error
            log.warning("Qdrant cannot be reached, next try in %.0f s: %s", self._pause_s, cause)
            raise IndexUnavailable("unreachable", retry_after_s=self._pause_s) from error
        self._pause_s = 0.0
        return answer


def _passes(error: UnexpectedResponse) -> bool:
    """Whether the same request may succeed later."""
    return error.status_code is None or error.status_code >= 500 or error.status_code in _NOT_NOW


@dataclass(frozen=True, eq=False)
class CollectionKeys:
    """A collection's keys as a `Base`. How many can be found is counted when something is masked."""

    connection: Connection
    collection: str
    mode: Mode
    largest_errors: tuple[float, float]
    dim: int
    windows: int = 0
    stems: int = 0
    tombstones: frozenset[int] = frozenset()

    @property
    def approximate(self) -> bool:
        return self.mode != "exact"

    def without(self, changed: Int64) -> "CollectionKeys":
        new = frozenset(changed.tolist()) - self.tombstones
        if not new:
            return self
        where = [models.Filter(must=[one_of(some)]) for some in chunks(sorted(new), FILTER_ROWS)]
        windows, stems = self.windows - sum(map(self._count, where)), self.stems - sum(map(self._count_first, where))
        fewer = replace(self, windows=windows, stems=stems, tombstones=self.tombstones | new)
        # Less than none: another process has put some in since they were counted.
        return fewer if min(windows, stems) >= 0 else fewer.counted()

    def counted(self) -> "CollectionKeys":
        """The same keys; how many can be found is counted anew, which reads the whole collection."""
        where = none_of(self.tombstones)
        return replace(self, windows=self._count(where), stems=self._count_first(where))

    def search(self, queries: Float32, k: int, allowed: Int64 | None) -> tuple[Float32, Int64]:
        """See `Base.search`. Many allowed rows are asked for some at a time, and the best of all answers kept."""
        if allowed is None:
            return self._search(queries, k, none_of(self.tombstones))
        rows = np.setdiff1d(allowed, np.fromiter(self.tombstones, np.int64))
        scores = np.empty((len(queries), 0), np.float32)
        ids = np.empty((len(queries), 0), np.int64)
        for some in chunks(rows.tolist(), FILTER_ROWS):
            found = self._search(queries, k, models.Filter(must=[one_of(some)]))
            scores = np.concatenate([scores, found[0]], axis=1)
            ids = np.concatenate([ids, found[1]], axis=1)
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            scores, ids = np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)
        return scores, ids

    def _search(self, queries: Float32, k: int, filtered: models.Filter) -> tuple[Float32, Int64]:
        scores = np.full((len(queries), k), -np.inf, np.float32)
        ids = np.full((len(queries), k), -1, np.int64)
        answers = self._ask(queries, k, filtered, exact=not self.approximate)
        if self.approximate and any(len(points) < k for points in answers):
            # A graph may lose its way where few points pass the filter; -1 must mean that nothing is left.
            answers = self._ask(queries, k, filtered, exact=True)
        for row, points in enumerate(answers):
            scores[row, : len(points)] = [point.score for point in points]
            ids[row, : len(points)] = [point.id for point in points]
        return scores, ids

    def _ask(self, queries: Float32, k: int, filtered: models.Filter, *, exact: bool) -> list[list[Any]]:
        rescored = models.QuantizationSearchParams(ignore=exact, rescore=True, oversampling=OVERSAMPLING)
        params = models.SearchParams(exact=exact, hnsw_ef=max(128, 2 * k), quantization=rescored)
        found: list[list[Any]] = []
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            requests = [
                models.QueryRequest(query=query.tolist(), filter=filtered, params=params, limit=k)
                for query in queries[start : start + QUERIES_AT_ONCE]
            ]
            answers = self._call(self.connection.client.query_batch_points, self.collection, requests)
            found += [answer.points for answer in answers]
        return found

    def _count(self, where: models.Filter) -> int:
        return self._call(self.connection.client.count, self.collection, count_filter=where, exact=True).count

    def _count_first(self, where: models.Filter) -> int:
        first = models.FieldCondition(key="first", match=models.MatchValue(value=True))
        return self._count(models.Filter(must=[*(where.must or []), first], must_not=where.must_not))

    def _call(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return self.connection(method, *args, **kwargs)
        except UnexpectedResponse as error:
            if error.status_code == 404:
                raise IndexUnavailable("rebuilding") from error  # `check` notices, and has it built anew
            raise


def one_of(rows: list[int]) -> models.FieldCondition:
    return models.FieldCondition(key="row", match=models.MatchAny(any=rows))


def none_of(rows: Collection[int]) -> models.Filter:
    return models.Filter(must_not=[one_of(some) for some in chunks(sorted(rows), FILTER_ROWS)])
