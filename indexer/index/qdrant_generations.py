"""Generations on a Qdrant server: one collection each, and what answers from it.

A live collection only grows. Deleted stems are masked by a filter in each search until the next generation leaves them
out, so processes that share a collection can add to it in any order. Fresh keys wait in memory, where every search sees
them, until there are enough to write to the collection.
"""

import asyncio
import base64
import hashlib
import logging
import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, models

from indexer.catalog.catalog import Catalog
from indexer.catalog.database import chunks
from indexer.index.build import STEMS_AT_ONCE, Report, Wanted, draw_probes, fold_for
from indexer.index.fold import HermitianFold
from indexer.index.index import Index
from indexer.index.keys import fold_stems, key_dim, split_ids
from indexer.index.manifest import FileFacts, Manifest, ManifestUnreadable, manifest_bytes, manifest_of
from indexer.index.qdrant_search import (
    FILTER_ROWS,
    CollectionKeys,
    Connection,
    Float32,
    Int64,
    Mode,
    one_of,
)
from indexer.index.recall import RecallMeter
from indexer.index.snapshot import FOLD, SnapshotCorrupt, SnapshotError, SnapshotMissing, now

log = logging.getLogger("phalar.index")

LIVE = "live"
# Fresh windows from which the collection takes them in: few enough that a start reads them again in a moment.
ABSORBED_FROM = 1024
POINTS_AT_ONCE = 256

_FOLD_PART = 2**20  # bytes of the fold in one point


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
        return self._connection.reachable

    async def load(self, catalog: Catalog, generation: int, fingerprint: str) -> Index:
        index = await asyncio.to_thread(self._load, generation, fingerprint)
        gone = await catalog.gone_since(index.manifest.seq)
        base = await asyncio.to_thread(index.base.without, np.fromiter(gone, np.int64))
        return index.on(base, fresh=True)

    async def build(self, catalog: Catalog, wanted: Wanted, report: Report | None = None) -> Index:
        """See `IndexStore.build`. Of several processes one builds, and those who waited take what it has made;
        what lay there is removed first."""
        name = self._name(wanted.generation, wanted.fingerprint)
        before = await asyncio.to_thread(self._sealed, name)
        async with catalog.alone(f"index {name}"):
            if await asyncio.to_thread(self._sealed, name) not in (None, before):
                return await self.load(catalog, wanted.generation, wanted.fingerprint)
            return await self._built(catalog, name, wanted, report)

    async def _built(self, catalog: Catalog, name: str, wanted: Wanted, report: Report | None) -> Index:
        told = wanted.facts | {"asked_type": None, "seq": await catalog.whole_to(wanted.fingerprint)}
        wanted = replace(wanted, fold=(await fold_for(catalog, wanted))[0])
        meter = RecallMeter(wanted.fold, await draw_probes(catalog, wanted))
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
        manifest = Manifest.unsealed(wanted.fold, **told, windows=windows, stems=stems, files={FOLD: fold})
        return await asyncio.to_thread(self._seal, name, manifest, largest_tail, meter)

    async def point(self, index: Index) -> None:
        await asyncio.to_thread(self._point, self._name(index.generation, index.fingerprint))

    async def check(self, index: Index) -> None:
        name = self._name(index.generation, index.fingerprint)
        manifest, _ = await asyncio.to_thread(self._facts, name)
        if manifest != index.manifest:
            raise SnapshotCorrupt(name, "was built anew by another process, maybe with another fold")

    async def absorb(self, index: Index) -> Index:
        if index.fresh_windows < ABSORBED_FROM:
            return index
        return await asyncio.to_thread(self._absorb, index)

    async def keep(self, generations: Collection[int]) -> None:
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
                size=key_dim(fold.dim), distance=models.Distance.DOT, on_disk=self._mode == "int8"
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

    def _seal(self, name: str, manifest: Manifest, largest_tail: float, meter: RecallMeter) -> Index:
        base = self._keys(name, largest_tail, manifest.dim)
        manifest = replace(
            manifest,
            index_type=f"qdrant-{self._mode}",
            reason=f"kept by Qdrant; {self._mode} was asked for",
            recall=meter.measure(lambda queries, k: base.search(queries, k, None)),
            created_at=now(),
        )
        facts: dict[str, Any] = {"windows": manifest.windows, "largest_tail": largest_tail, "seq": manifest.seq}
        facts["manifest"] = manifest_bytes(asdict(manifest)).decode()
        self._connection(self._client.update_collection, name, metadata=facts)
        return self._load(manifest.generation, manifest.fingerprint)

    def _facts(self, name: str) -> tuple[Manifest, dict[str, Any]]:
        """The manifest of a collection, and its metadata as of now. Raises SnapshotMissing, SnapshotCorrupt."""
        if not self._connection(self._client.collection_exists, name):
            raise SnapshotMissing(f"{name} (before Qdrant 1.16 no collection can be finished: no metadata)")
        found = self._connection(self._client.get_collection, name)
        if found.status == models.CollectionStatus.RED:
            raise SnapshotCorrupt(name, f"is damaged: {found.optimizer_status}")
        config = found.config
        facts = config.metadata
        if not facts or "manifest" not in facts:
            raise SnapshotMissing(f"{name} (before Qdrant 1.16 no collection can be finished: no metadata)")
        try:
            manifest = manifest_of(str(facts["manifest"]).encode())
        except ManifestUnreadable as error:
            raise SnapshotCorrupt(name, f"has a manifest that {error}") from error
        vectors = config.params.vectors
        if not isinstance(vectors, models.VectorParams) or (vectors.size, vectors.distance) != (
            manifest.dim,
            models.Distance.DOT,
        ):
            raise SnapshotCorrupt(name, "holds other vectors than its manifest says")
        return manifest, facts

    def _sealed(self, name: str) -> Manifest | None:
        with suppress(SnapshotError):
            return self._facts(name)[0]
        return None

    def _load(self, generation: int, fingerprint: str) -> Index:
        name = self._name(generation, fingerprint)
        manifest, facts = self._facts(name)
        if (manifest.generation, manifest.fingerprint) != (generation, fingerprint):
            raise SnapshotCorrupt(name, "belongs to another model or generation")
        if manifest.index_type != f"qdrant-{self._mode}":
            raise SnapshotCorrupt(name, f"is {manifest.index_type}, {self._mode} is asked for")
        fold = self._read_fold(name, manifest)
        base = self._keys(name, float(facts["largest_tail"]), manifest.dim)
        if base.windows < facts["windows"]:
            raise SnapshotCorrupt(name, f"has {base.windows} windows, {facts['windows']} were put in")
        return Index(manifest, fold, base, (), int(facts["seq"]))

    def _keys(self, name: str, largest_tail: float, dim: int) -> CollectionKeys:
        return CollectionKeys(self._connection, name, self._mode, (largest_tail, 0.0), dim).counted()

    def _read_fold(self, name: str, manifest: Manifest) -> HermitianFold:
        stated = manifest.files[FOLD]
        parts = -(-stated.size // _FOLD_PART)
        data = b""
        if self._connection(self._client.collection_exists, _fold_of(name)):
            points = self._connection(self._client.retrieve, _fold_of(name), list(range(parts)))
            by_number = {int(point.id): str((point.payload or {}).get("data", "")) for point in points}
            data = b"".join(base64.b64decode(by_number.get(number, "")) for number in range(parts))
        if hashlib.sha256(data).hexdigest() != stated.sha256:
            raise SnapshotCorrupt(name, "has lost its fold")
        return HermitianFold.of_bytes(data)

    def _absorb(self, index: Index) -> Index:
        """Put the fresh keys into the collection, then say up to which change it is whole.

        A process that dies in between, or another that absorbs at the same time, leaves a collection with more stems
        than its number says. Those are read from SQL again, and masked in the collection while memory holds them.
        """
        name = self._name(index.generation, index.fingerprint)
        _, facts = self._facts(name)
        ids, keys, tails = index.fresh_keys()
        rows = np.unique(split_ids(ids)[0])
        for some in chunks(rows.tolist(), FILTER_ROWS):
            of_these = ids[np.isin(split_ids(ids)[0], some)].tolist()
            stale = models.Filter(must=[one_of(some)], must_not=[models.HasIdCondition(has_id=of_these)])
            self._connection(self._client.delete, name, models.FilterSelector(filter=stale), wait=True)
        self._upsert(name, ids, keys)
        tail = max(float(facts["largest_tail"]), float(tails.max(initial=0.0)))
        held = self._connection(self._client.count, name, exact=True).count  # fewer, where stems have fewer than before
        told = {"seq": index.seq, "largest_tail": tail, "windows": held}
        self._connection(self._client.update_collection, name, metadata=told)
        base = index.base
        assert isinstance(base, CollectionKeys)
        grown = replace(base, largest_errors=(tail, 0.0), tombstones=base.tombstones - frozenset(rows.tolist()))
        return index.on(grown.counted(), fresh=False)

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


def _fold_of(name: str) -> str:
    return f"{name}-fold"
