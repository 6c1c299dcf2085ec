"""What a sealed generation says of itself, and how that is written and read."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from indexer.index.fold import HermitianFold
from indexer.index.keys import TRAITS, key_dim
from indexer.index.recall import Recall

FORMAT = 5
# Format 2 knew no turned folds; before 4, keys had no traits; before 5, no multiple of eight coordinates.
_READ = (2, 3, 4, 5)
_WITH_TRAITS, _IN_EIGHTS = 4, 5

_HASH_BLOCK = 4 * 2**20


class ManifestUnreadable(ValueError):
    """Bytes that are no manifest of this build."""


def key_dim_of(dim: int, form: int) -> int:
    """Coordinates of a key in an index of that format, of which a fold gives so many."""
    if form >= _IN_EIGHTS:
        return key_dim(dim)
    return dim + (TRAITS if form >= _WITH_TRAITS else 0)


@dataclass(frozen=True)
class FileFacts:
    sha256: str
    size: int  # bytes


def facts_of(path: Path) -> FileFacts:
    """Read a whole file. Raises OSError."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
            size += len(block)
    return FileFacts(digest.hexdigest(), size)


@dataclass(frozen=True)
class Manifest:
    """What a sealed generation is, as its manifest says it."""

    generation: int
    fingerprint: str
    seq: int  # every change of the catalog up to this one is in the keys
    window_s: float
    stride_s: float
    embedding_dim: int
    rank: int
    bound: float
    dim: int
    highest_rank: int  # that the keys could have had
    index_type: str = "flat"  # an IndexType, or what a cluster calls it
    reason: str = "asked for"  # why this type and this rank
    asked_type: str | None = None  # what a person asked for; None: it was left to the catalog's size and the memory
    lists: int = 0  # of an approximate index; 0: every key is compared
    probed: int = 0  # lists that a search looks at
    windows: int = 0
    stems: int = 0
    recall: Recall | None = None
    created_at: str = ""  # ISO 8601, UTC
    files: Mapping[str, FileFacts] = field(default_factory=dict)
    format: int = FORMAT

    @classmethod
    def unsealed(cls, fold: HermitianFold, **facts: Any) -> "Manifest":
        """Of keys that this fold is to make; `facts`: its other fields, by name."""
        of_fold = {
            "embedding_dim": fold.embedding_dim,
            "rank": fold.rank,
            "bound": fold.bound,
            "dim": key_dim(fold.dim),
        }
        return cls(**{**of_fold, "highest_rank": fold.rank, **facts})


def manifest_bytes(fields: Mapping[str, Any]) -> bytes:
    """The one way to write these fields, with their own SHA-256 among them, so that the manifest vouches for itself."""
    own = {name: value for name, value in fields.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**own, "sha256": digest}, sort_keys=True, indent=2) + "\n").encode()


def manifest_of(raw: bytes) -> Manifest:
    """What `manifest_bytes` wrote. Raises ManifestUnreadable."""
    try:
        fields = json.loads(raw)
        rewritten = manifest_bytes(fields)
    except (ValueError, AttributeError, RecursionError) as error:
        raise ManifestUnreadable("is no manifest") from error
    if rewritten != raw:
        raise ManifestUnreadable("does not carry its own checksum")
    if fields.get("format") not in _READ:
        raise ManifestUnreadable(f"has format {fields.get('format')}, this build reads {_READ}")
    try:
        del fields["sha256"]
        fields["files"] = {name: FileFacts(**facts) for name, facts in fields["files"].items()}
        fields["recall"] = None if fields["recall"] is None else Recall(**fields["recall"])
        return Manifest(**fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise ManifestUnreadable("lacks a field, or has one too many") from error
