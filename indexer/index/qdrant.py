"""Generations on a Qdrant server: one collection each, and what answers from it.

A collection only grows while it is live. What is deleted is masked in each search by its stem row, as SQL says it,
until the next generation leaves it out; so processes that share a collection may add to it in any order and never undo
each other's work. Fresh keys wait in memory, where every search sees them, until there are enough to be taken in.
"""

import asyncio
import base64
import hashlib
import logging
import re
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

from indexer.catalog.catalog import Catalog
from indexer.index.build import PROBES, STEMS_AT_ONCE, Report, Wanted, draw_windows
from indexer.index.fold import HermitianFold
from indexer.index.index import Index, IndexUnavailable
from indexer.index.recall import RecallMeter
from indexer.index.snapshot import (
    FOLD,
    FileFacts,
    Manifest,
    ManifestUnreadable,
    Snapshot,
    SnapshotError,
    fold_stems,
    manifest_bytes,
    manifest_of,
    split_ids,
)

P = ParamSpec("P")
T = TypeVar("T")
Mode = Literal["exact", "graph", "int8"]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

log = logging.getLogger("phalar.index")

LIVE = "live"
# Fresh windows from which the collection takes them in: few enough that a start reads them again in a moment.
ABSORBED_FROM = 1024
# Stem rows in one filter. Each query of a batch carries its own copy of it, and a server takes 32 MiB by default.
FILTER_ROWS = 4096
QUERIES_AT_ONCE = 32
POINTS_AT_ONCE = 256
# A lost server is asked again after so many seconds, doubled each time.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
# int8: candidates whose whole keys are compared, for each one wanted.
OVERSAMPLING = 2.0

_FOLD_PART = 2**20  # bytes of the fold in one point
_NOT_NOW = (401, 403, 408, 429)


class CollectionMissing(SnapshotError):
    """The generation has no sealed collection: it was never finished, or someone removed it."""

    def __init__(self, *, collection: str) -> None:
        super().__init__(f"no finished collection {collection} (before Qdrant 1.16 none can be finished: no metadata)")
        self.collection = collection


class CollectionDamaged(SnapshotError):
    """The collection is not what its manifest says."""

    def __init__(self, *, collection: str, reason: str) -> None:
        super().__init__(f"the collection {collection} {reason}")
        self.collection, self.reason = collection, reason


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
    windows: int
    stems: int
    largest_errors: tuple[float, float]
    tombstones: frozenset[int] = frozenset()

    @property
    def approximate(self) -> bool:
        return self.mode != "exact"

    def without(self, changed: Int64) -> "CollectionKeys":
        new = frozenset(changed.tolist()) - self.tombstones
        if not new:
            return self
        return replace(
            self,
            windows=self.windows - self._count(new),
            stems=self.stems - self._count(new, models.FieldCondition(key="first", match=_is(True))),
            tombstones=self.tombstones | new,
        )

    def search(self, queries: Float32, k: int, allowed: Int64 | None) -> tuple[Float32, Int64]:
        """See `Base.search`. Many allowed rows are asked for some at a time, and the best of all answers kept."""
        if allowed is None:
            return self._search(queries, min(k, self.windows), _none_of(self.tombstones))
        rows = np.setdiff1d(allowed, np.fromiter(self.tombstones, np.int64))
        scores = np.empty((len(queries), 0), np.float32)
        ids = np.empty((len(queries), 0), np.int64)
        for some in _parts(rows.tolist(), FILTER_ROWS):
            found = self._search(queries, min(k, self.windows), models.Filter(must=[_one_of(some)]))
            scores = np.concatenate([scores, found[0]], axis=1)
            ids = np.concatenate([ids, found[1]], axis=1)
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            scores, ids = np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)
        return scores, ids

    def _search(self, queries: Float32, k: int, filtered: models.Filter) -> tuple[Float32, Int64]:
        scores = np.full((len(queries), k), -np.inf, np.float32)
        ids = np.full((len(queries), k), -1, np.int64)
        if k == 0:
            return scores, ids
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

    def _count(self, rows: Collection[int], also: Any = None) -> int:
        total = 0
        for some in _parts(sorted(rows), FILTER_ROWS):
            where = models.Filter(must=[_one_of(some), *([also] if also else [])])
            total += self._call(self.connection.client.count, self.collection, count_filter=where, exact=True).count
        return total

    def _call(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return self.connection(method, *args, **kwargs)
        except UnexpectedResponse as error:
            if error.status_code == 404:
                raise IndexUnavailable("rebuilding") from error  # `check` notices, and has it built anew
            raise


class QdrantStore:
    """Keeps generations as collections of a Qdrant server; see `IndexStore`.

    A collection is `<prefix>-<generation>-<fingerprint>`; its metadata hold the manifest, written last, and a
    second collection holds the fold. The alias `<prefix>-live` follows the one in SQL.
    """

    def __init__(self, client: QdrantClient, *, prefix: str = "phalar", mode: Mode = "exact") -> None:
        """
        Args:
            client: thread-safe, as the client of a server is.
            prefix: of every collection and alias; what else lies on the server is left alone.
            mode: `exact` compares every key; `graph` walks Qdrant's HNSW graph; `int8` does so over 8-bit keys in
                memory, with the whole keys on disk, and scores the best again.
        """
        self._connection = Connection(client)
        self._client = client
        self._prefix = prefix
        self._mode: Mode = mode

    @property
    def reachable(self) -> bool:
        """See `IndexStore.reachable`."""
        return self._connection.reachable

    async def load(self, catalog: Catalog, generation: int, fingerprint: str) -> Index:
        """See `IndexStore.load`."""
        index = await asyncio.to_thread(self._load, generation, fingerprint)
        gone = await catalog.gone_since(index.manifest.seq)
        base = await asyncio.to_thread(index.base.without, np.fromiter(gone, np.int64))
        return index.on(base, fresh=True)

    async def build(self, catalog: Catalog, wanted: Wanted, report: Report | None = None) -> Index:
        """See `IndexStore.build`. What an unfinished build left is removed first."""
        seq = await catalog.clock_value()
        name = self._name(wanted.generation, wanted.fingerprint)
        meter = RecallMeter(wanted.fold, await draw_windows(catalog, wanted, PROBES))
        fold = await asyncio.to_thread(self._create, name, wanted.fold)
        done = windows = stems = 0
        largest_tail = 0.0
        async for some in catalog.all_embeddings(wanted.fingerprint, STEMS_AT_ONCE):
            checked = await asyncio.to_thread(fold_stems, wanted.fold, some)
            await asyncio.to_thread(self._upsert, name, checked.ids, checked.keys)
            meter.see(checked.ids, checked.embedding)
            done, windows = done + len(some), windows + len(checked.ids)
            stems += sum(len(stem.windows) > 0 for stem in some.values())
            largest_tail = max(largest_tail, float(checked.tails.max(initial=0.0)))
            if report:
                await report(done)
        facts = {"windows": windows, "stems": stems, "largest_tail": largest_tail, "seq": seq}
        return await asyncio.to_thread(self._seal, name, wanted, facts, fold, meter)

    async def point(self, index: Index) -> None:
        """See `IndexStore.point`."""
        await asyncio.to_thread(self._point, self._name(index.generation, index.fingerprint))

    async def check(self, index: Index) -> None:
        """See `IndexStore.check`."""
        name = self._name(index.generation, index.fingerprint)
        await asyncio.to_thread(self._facts, name)

    async def absorb(self, index: Index) -> Index:
        """See `IndexStore.absorb`."""
        if index.fresh_windows < ABSORBED_FROM:
            return index
        return await asyncio.to_thread(self._absorb, index)

    async def keep(self, generations: Collection[int]) -> None:
        """See `IndexStore.keep`."""
        await asyncio.to_thread(self._keep, generations)

    # ---------------------------------------------------------------- the same, in a thread

    def _name(self, generation: int, fingerprint: str) -> str:
        return f"{self._prefix}-{generation:06d}-{fingerprint[:16]}"

    def _create(self, name: str, fold: HermitianFold) -> FileFacts:
        for old in (name, _fold_of(name)):
            self._connection(self._client.delete_collection, old)
        self._connection(
            self._client.create_collection,
            name,
            vectors_config=models.VectorParams(
                size=fold.dim, distance=models.Distance.DOT, on_disk=self._mode == "int8"
            ),
            hnsw_config=models.HnswConfigDiff(m=0) if self._mode == "exact" else None,
            quantization_config=models.ScalarQuantization(
                scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)
            )
            if self._mode == "int8"
            else None,
        )
        for field, kind in (("row", models.PayloadSchemaType.INTEGER), ("first", models.PayloadSchemaType.BOOL)):
            self._connection(self._client.create_payload_index, name, field, field_schema=kind)
        self._connection(
            self._client.create_collection,
            _fold_of(name),
            vectors_config=models.VectorParams(size=1, distance=models.Distance.DOT),
        )
        data = fold.to_bytes()
        for number, start in enumerate(range(0, len(data), _FOLD_PART)):
            part = base64.b64encode(data[start : start + _FOLD_PART]).decode()
            points = [models.PointStruct(id=number, vector=[1.0], payload={"data": part})]
            self._connection(self._client.upsert, _fold_of(name), points, wait=True)
        return FileFacts(hashlib.sha256(data).hexdigest(), len(data))

    def _upsert(self, name: str, ids: Int64, keys: Float32) -> None:
        rows, windows = split_ids(ids)
        first = np.zeros(len(ids), np.bool_)
        first[np.unique(rows, return_index=True)[1]] = True
        for start in range(0, len(ids), POINTS_AT_ONCE):
            some = slice(start, start + POINTS_AT_ONCE)
            payloads: list[dict[str, Any]] = [
                {"row": row, "window": window, "first": begins}
                for row, window, begins in zip(
                    rows[some].tolist(), windows[some].tolist(), first[some].tolist(), strict=True
                )
            ]
            batch = models.Batch(ids=ids[some].tolist(), vectors=keys[some].tolist(), payloads=payloads)
            self._connection(self._client.upsert, name, batch, wait=True)

    def _seal(self, name: str, wanted: Wanted, facts: dict[str, Any], fold: FileFacts, meter: RecallMeter) -> Index:
        base = self._keys(name, facts)
        manifest = replace(
            Snapshot.empty(
                wanted.fold,
                fingerprint=wanted.fingerprint,
                generation=wanted.generation,
                seq=facts["seq"],
                window_s=wanted.window_s,
                stride_s=wanted.stride_s,
            ).manifest,
            index_type=f"qdrant-{self._mode}",
            reason=f"kept by Qdrant; {self._mode} was asked for",
            windows=facts["windows"],
            stems=facts["stems"],
            recall=meter.measure(lambda queries, k: base.search(queries, k, None)),
            files={FOLD: fold},
        )
        sealed = facts | {"manifest": manifest_bytes(asdict(manifest)).decode()}
        self._connection(self._client.update_collection, name, metadata=sealed)
        return self._load(wanted.generation, wanted.fingerprint)

    def _facts(self, name: str) -> tuple[Manifest, dict[str, Any]]:
        """The manifest of a collection, and its metadata as of now. Raises CollectionMissing, CollectionDamaged."""
        if not self._connection(self._client.collection_exists, name):
            raise CollectionMissing(collection=name)
        found = self._connection(self._client.get_collection, name)
        if found.status == models.CollectionStatus.RED:
            raise CollectionDamaged(collection=name, reason=f"is damaged: {found.optimizer_status}")
        config = found.config
        facts = config.metadata
        if not facts or "manifest" not in facts:
            raise CollectionMissing(collection=name)
        try:
            manifest = manifest_of(str(facts["manifest"]).encode())
        except ManifestUnreadable as error:
            raise CollectionDamaged(collection=name, reason=f"has a manifest that {error}") from error
        vectors = config.params.vectors
        if not isinstance(vectors, models.VectorParams) or (vectors.size, vectors.distance) != (
            manifest.dim,
            models.Distance.DOT,
        ):
            raise CollectionDamaged(collection=name, reason="holds other vectors than its manifest says")
        return manifest, facts

    def _load(self, generation: int, fingerprint: str) -> Index:
        name = self._name(generation, fingerprint)
        manifest, facts = self._facts(name)
        if (manifest.generation, manifest.fingerprint) != (generation, fingerprint):
            raise CollectionDamaged(collection=name, reason="belongs to another model or generation")
        if manifest.index_type != f"qdrant-{self._mode}":
            raise CollectionDamaged(collection=name, reason=f"is {manifest.index_type}, {self._mode} is asked for")
        fold = self._read_fold(name, manifest)
        held = self._connection(self._client.count, name, exact=True).count
        if held < facts["windows"]:
            raise CollectionDamaged(collection=name, reason=f"has {held} windows, {facts['windows']} were put in")
        stems = self._connection(
            self._client.count,
            name,
            count_filter=models.Filter(must=[models.FieldCondition(key="first", match=_is(True))]),
            exact=True,
        ).count
        base = self._keys(name, {**facts, "windows": held, "stems": stems})
        return Index(manifest, fold, base, (), int(facts["seq"]))

    def _keys(self, name: str, facts: dict[str, Any]) -> CollectionKeys:
        return CollectionKeys(
            self._connection, name, self._mode, facts["windows"], facts["stems"], (float(facts["largest_tail"]), 0.0)
        )

    def _read_fold(self, name: str, manifest: Manifest) -> HermitianFold:
        stated = manifest.files[FOLD]
        parts = -(-stated.size // _FOLD_PART)
        data = b""
        if self._connection(self._client.collection_exists, _fold_of(name)):
            points = self._connection(self._client.retrieve, _fold_of(name), list(range(parts)))
            by_number = {int(point.id): str((point.payload or {}).get("data", "")) for point in points}
            data = b"".join(base64.b64decode(by_number.get(number, "")) for number in range(parts))
        if hashlib.sha256(data).hexdigest() != stated.sha256:
            raise CollectionDamaged(collection=name, reason="has lost its fold")
        return HermitianFold.of_bytes(data)

    def _absorb(self, index: Index) -> Index:
        """Put the fresh keys into the collection, then say up to which change it is whole.

        Whoever is stopped in between, or does the same with other changes at the same time, leaves a collection that
        holds more than its number says; those stems are then read again, and masked while they are in memory.
        """
        name = self._name(index.generation, index.fingerprint)
        _, facts = self._facts(name)
        ids, keys, tails = index.fresh_keys()
        rows = np.unique(split_ids(ids)[0])
        for some in _parts(rows.tolist(), FILTER_ROWS):
            of_these = ids[np.isin(split_ids(ids)[0], some)].tolist()
            stale = models.Filter(must=[_one_of(some)], must_not=[models.HasIdCondition(has_id=of_these)])
            self._connection(self._client.delete, name, models.FilterSelector(filter=stale), wait=True)
        self._upsert(name, ids, keys)
        tail = max(float(facts["largest_tail"]), float(tails.max(initial=0.0)))
        self._connection(self._client.update_collection, name, metadata={"seq": index.seq, "largest_tail": tail})
        base = index.base
        assert isinstance(base, CollectionKeys)
        grown = replace(
            base,
            windows=base.windows + index.fresh_windows,
            stems=base.stems + len(rows),
            largest_errors=(tail, 0.0),
            tombstones=base.tombstones - frozenset(rows.tolist()),
        )
        return index.on(grown, fresh=False)

    def _point(self, name: str) -> None:
        alias = f"{self._prefix}-{LIVE}"
        known = {
            found.alias_name: found.collection_name for found in self._connection(self._client.get_aliases).aliases
        }
        if known.get(alias) == name:
            return
        create = models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=name, alias_name=alias))
        delete = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))
        self._connection(
            self._client.update_collection_aliases,
            change_aliases_operations=[delete, create] if alias in known else [create],
        )

    def _keep(self, generations: Collection[int]) -> None:
        ours = re.compile(rf"{re.escape(self._prefix)}-(\d{{6,}})-[0-9a-f]{{1,16}}(-fold)?")
        for collection in self._connection(self._client.get_collections).collections:
            found = ours.fullmatch(collection.name)
            if found and int(found[1]) not in generations:
                self._connection(self._client.delete_collection, collection.name)


def connect(url: str, api_key: str | None, timeout_s: float) -> QdrantClient:
    """A client of a server; nothing is sent yet. Without a port in the URL it is 6333."""
    return QdrantClient(url=url, api_key=api_key, timeout=max(1, round(timeout_s)), check_compatibility=False)


def _is(value: bool) -> models.MatchValue:
    return models.MatchValue(value=value)


def _one_of(rows: list[int]) -> models.FieldCondition:
    return models.FieldCondition(key="row", match=models.MatchAny(any=rows))


def _none_of(rows: Collection[int]) -> models.Filter:
    return models.Filter(must_not=[_one_of(some) for some in _parts(sorted(rows), FILTER_ROWS)])


def _parts(values: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _fold_of(name: str) -> str:
    return f"{name}-fold"
