"""Qdrant's engine in this process behind the calls that we make of its client: the engine is real, the server is none.

`qdrant-edge-py` is Qdrant's own storage and search as a library. Collections are its shards, each in a folder; what a
server keeps beside them (aliases, collections' metadata) lies in a JSON file. The bindings read a sought `True` as the
number 1, which no boolean equals (0.9.0), so booleans are kept as numbers here.
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import qdrant_edge as edge
from qdrant_client import models


class EdgeClient:
    """What `QdrantStore` asks of a client."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        path = folder / "server.json"
        self._server: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"aliases": {}, "of": {}}
        self._shards = {name: _opened(folder / name) for name in self._server["of"]}

    def close(self) -> None:
        for shard in self._shards.values():
            if shard is not None:
                shard.close()

    def create_collection(self, name: str, vectors_config: models.VectorParams, **_: Any) -> None:
        params = edge.EdgeVectorParams(size=vectors_config.size, distance=edge.Distance.Dot)
        (self.folder / name).mkdir()
        self._shards[name] = edge.EdgeShard.create(str(self.folder / name), edge.EdgeConfig(vectors=params))
        self._server["of"][name] = {"size": vectors_config.size, "metadata": {}}
        self._keep()

    def delete_collection(self, name: str) -> None:
        if name in self._shards:
            if (shard := self._shards.pop(name)) is not None:
                shard.close()
            shutil.rmtree(self.folder / name)
            del self._server["of"][name]
            self._keep()

    def collection_exists(self, name: str) -> bool:
        return name in self._shards

    def get_collections(self) -> Any:
        return SimpleNamespace(collections=[SimpleNamespace(name=name) for name in self._shards])

    def get_collection(self, name: str) -> Any:
        facts = self._server["of"][name]
        vectors = models.VectorParams(size=facts["size"], distance=models.Distance.DOT)
        params = SimpleNamespace(vectors=vectors)
        config = SimpleNamespace(metadata=facts["metadata"], params=params)
        status = models.CollectionStatus.RED if self._shards[name] is None else models.CollectionStatus.GREEN
        return SimpleNamespace(status=status, optimizer_status="as the engine says", config=config)

    def update_collection(self, name: str, metadata: dict[str, Any]) -> None:
        self._server["of"][name]["metadata"] |= metadata
        self._shards[name].flush()
        self._keep()

    def create_payload_index(self, name: str, field: str, field_schema: models.PayloadSchemaType) -> None:
        self._shards[name].update(edge.UpdateOperation.create_field_index(field, edge.PayloadSchemaType.Integer))

    def upsert(self, name: str, points: Any, wait: bool) -> None:
        if isinstance(points, models.Batch):
            rows = zip(points.ids, points.vectors, points.payloads or [], strict=True)
            given = [edge.Point(one, vector, _numbers(payload)) for one, vector, payload in rows]
        else:
            given = [edge.Point(point.id, point.vector, point.payload) for point in points]
        self._shards[name].update(edge.UpdateOperation.upsert_points(given))

    def delete(self, name: str, selector: models.FilterSelector, wait: bool) -> None:
        self._shards[name].update(edge.UpdateOperation.delete_points_by_filter(_filter(selector.filter)))

    def count(self, name: str, count_filter: models.Filter | None = None, exact: bool = True) -> Any:
        asked = edge.CountRequest(exact=exact, filter=_filter(count_filter))
        return SimpleNamespace(count=self._shards[name].count(asked))

    def retrieve(self, name: str, ids: list[int]) -> list[Any]:
        return self._shards[name].retrieve(ids, with_payload=True, with_vector=False)

    def query_batch_points(self, name: str, requests: list[models.QueryRequest]) -> list[Any]:
        asked = [
            edge.QueryRequest(
                limit=request.limit,
                query=edge.Query.Nearest(request.query),
                filter=_filter(request.filter),
                params=edge.SearchParams(exact=bool(request.params and request.params.exact)),
            )
            for request in requests
        ]
        found = self._shards[name].query_batch(edge.QueryBatchRequest(asked))
        return [SimpleNamespace(points=points) for points in found]

    def get_aliases(self) -> Any:
        known = [models.AliasDescription(alias_name=a, collection_name=c) for a, c in self._server["aliases"].items()]
        return SimpleNamespace(aliases=known)

    def update_collection_aliases(self, change_aliases_operations: list[Any]) -> None:
        for change in change_aliases_operations:
            if isinstance(change, models.DeleteAliasOperation):
                del self._server["aliases"][change.delete_alias.alias_name]
            else:
                self._server["aliases"][change.create_alias.alias_name] = change.create_alias.collection_name
        self._keep()

    def _keep(self) -> None:
        (self.folder / "server.json").write_text(json.dumps(self._server))


def _opened(folder: Path) -> Any:
    """A shard; None where the engine refuses it, which a server says by a red collection."""
    try:
        return edge.EdgeShard.load(str(folder))
    except Exception:
        return None


def _numbers(payload: dict[str, Any]) -> dict[str, Any]:
    return {name: int(value) if isinstance(value, bool) else value for name, value in payload.items()}


def _filter(given: Any) -> edge.Filter | None:
    if given is None:
        return None
    must, must_not = ([_condition(one) for one in part or []] for part in (given.must, given.must_not))
    return edge.Filter(must=must, must_not=must_not)


def _condition(given: Any) -> Any:
    if isinstance(given, models.HasIdCondition):
        return edge.HasIdCondition(set(given.has_id))
    if isinstance(given.match, models.MatchAny):
        return edge.FieldCondition(given.key, match=edge.MatchAny(given.match.any))
    return edge.FieldCondition(given.key, match=edge.MatchValue(int(given.match.value)))
