"""One sealed generation of keys on disk: a FAISS file, its fold, its errors, and the manifest that vouches for them."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import faiss
import numpy as np
import numpy.typing as npt

from indexer.index.fold import HermitianFold
from indexer.index.manifest import FileFacts, Manifest, ManifestUnreadable, facts_of, key_dim_of, manifest_of
from model.errors import Told

T = TypeVar("T")
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

MANIFEST = "manifest.json"
KEYS, FOLD, ERRORS = "keys.faiss", "fold.npz", "key_errors.npz"

_FILES = (KEYS, FOLD, ERRORS)
# From this size on a keys file is mapped, not copied: its pages are shared by all processes that map it, and the
# system may take them back. Smaller ones gain nothing by it.
MAPPED_FROM_BYTES = 256 * 2**20


class SnapshotError(Told):
    """A snapshot that cannot be read or written; its children say why."""


class SnapshotMissing(SnapshotError):
    """`where`, a folder or a collection, has no manifest: nothing was written there, or the writing never finished."""

    says = "no finished snapshot in {where}"
    where: Path | str


class SnapshotCorrupt(SnapshotError):
    """What lies at `where`, a file or a collection, is not what its manifest says."""

    says = "{where}: {reason}"
    where: Path | str
    reason: str


class SnapshotExists(SnapshotError):
    """Snapshots are never changed."""

    says = "a finished snapshot already lies in {path}"
    path: Path


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A sealed set of keys and what is needed to search them; nothing in it ever changes."""

    folder: Path
    manifest: Manifest
    fold: HermitianFold
    keys: Any  # faiss.IndexIDMap over flat codes
    ids: Int64  # (windows,), window id of each position
    tails: Float32  # (windows,), norm that the rank dropped from each key
    residuals: Float32  # (windows,), norm that the index type's rounding took from each key

    @classmethod
    def load(cls, folder: Path, *, check_mapped: bool = True) -> "Snapshot":
        """Read a snapshot after checking every byte of it.

        Args:
            check_mapped: False leaves the bytes of a mapped file to `check_mapped`, so that a large one opens at once.

        Raises:
            SnapshotMissing: there is no manifest, so the writing never finished.
            SnapshotCorrupt: a file is missing, or differs from what the manifest says.
        """
        manifest = _read_manifest(folder / MANIFEST)
        for name in _FILES:
            path, facts = folder / name, manifest.files.get(name)
            _verify(path, facts, content=check_mapped or not _is_mapped(path))
        keys = _read(folder / KEYS, _load_keys)
        fold = _read(folder / FOLD, lambda path: HermitianFold.of_bytes(path.read_bytes()))
        tails, residuals = _read(folder / ERRORS, _load_errors)
        ids = faiss.vector_to_array(keys.id_map)
        _agree(folder / FOLD, "rank", fold.rank, manifest.rank)
        _agree(folder / FOLD, "dim", key_dim_of(fold.dim, manifest.format), manifest.dim)
        _agree(folder / KEYS, "dim", keys.d, manifest.dim)
        _agree(folder / KEYS, "windows", keys.ntotal, manifest.windows)
        _agree(folder / KEYS, "lists", lists_of(keys), manifest.lists)
        _agree(folder / KEYS, "different ids", len(np.unique(ids)), manifest.windows)
        _agree(folder / ERRORS, "windows", len(tails), manifest.windows)
        return cls(folder, manifest, fold, keys, ids, tails, residuals)

    @property
    def mapped(self) -> bool:
        """Whether its keys stay on disk, and may have been left unchecked."""
        return _is_mapped(self.folder / KEYS)

    def check_mapped(self) -> None:
        """Read every byte of a mapped file: seconds to minutes. Raises SnapshotCorrupt."""
        _verify(self.folder / KEYS, self.manifest.files.get(KEYS))


def lists_of(keys: Any) -> int:
    """How many lists an approximate index has, with ids or without; 0 for one that compares every key."""
    inner = faiss.downcast_index(keys.index if isinstance(keys, faiss.IndexIDMap) else keys)
    return int(inner.nlist) if isinstance(inner, faiss.IndexIVF) else 0


def now() -> str:
    """For a manifest: ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read_manifest(path: Path) -> Manifest:
    try:
        return manifest_of(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SnapshotMissing(path.parent) from error
    except ManifestUnreadable as error:
        raise SnapshotCorrupt(path, str(error)) from error


def _is_mapped(path: Path) -> bool:
    return path.name == KEYS and path.is_file() and path.stat().st_size >= MAPPED_FROM_BYTES


def _verify(path: Path, facts: FileFacts | None, *, content: bool = True) -> None:
    if facts is None:
        raise SnapshotCorrupt(path, "is not in the manifest")
    try:
        size = path.stat().st_size
        if size != facts.size:
            raise SnapshotCorrupt(path, f"has {size} bytes, the manifest says {facts.size}")
        if content and facts_of(path).sha256 != facts.sha256:
            raise SnapshotCorrupt(path, "has another SHA-256 than the manifest says")
    except OSError as error:
        raise SnapshotCorrupt(path, f"cannot be read: {error.strerror}") from error


def _read(path: Path, read: Callable[[Path], T]) -> T:
    """A file may carry the right checksum and still be none: written by another build, say."""
    try:
        return read(path)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise SnapshotCorrupt(path, f"cannot be read: {error}") from error


def _load_keys(path: Path) -> Any:
    keys = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if _is_mapped(path) else 0)
    if not isinstance(keys, faiss.IndexIDMap):
        raise ValueError(f"holds a {type(keys).__name__}, not an IndexIDMap")
    return keys


def _load_errors(path: Path) -> tuple[Float32, Float32]:
    with np.load(path, allow_pickle=False) as data:
        return data["tails"], data["residuals"]


def _agree(path: Path, what: str, found: int, stated: int) -> None:
    if found != stated:
        raise SnapshotCorrupt(path, f"has {found} {what}, the manifest says {stated}")
