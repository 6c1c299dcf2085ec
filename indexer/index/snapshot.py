"""One sealed generation of keys on disk: a FAISS file, its fold, its errors, and the manifest that vouches for them."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, get_args

import faiss
import numpy as np
import numpy.typing as npt

from indexer.catalog.records import StemEmbeddings
from indexer.index.choice import IndexType
from indexer.index.fold import HermitianFold
from indexer.index.keys import DuplicateWindow, fold_stems, rounded_up
from indexer.index.manifest import FileFacts, Manifest, ManifestUnreadable, manifest_bytes, manifest_of
from indexer.index.recall import Recall, RecallMeter

T = TypeVar("T")
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

MANIFEST = "manifest.json"
KEYS, FOLD, ERRORS = "keys.faiss", "fold.npz", "key_errors.npz"

_FILES = (KEYS, FOLD, ERRORS)
_TEMPORARY = ".partial"
_HASH_BLOCK = 4 * 2**20
# From this size on a keys file is mapped, not copied: its pages are shared by all processes that map it, and the
# system may take them back. Smaller ones gain nothing by it.
MAPPED_FROM_BYTES = 256 * 2**20
# Lists of an approximate index, and how many windows of the sample FAISS asks for to find the middle of each.
_MOST_LISTS = 1024
_WINDOWS_PER_LIST = 39
# What the number of lists that a search looks at must reach: the exact ten best among those that are scored again, and
# the deep answers that many windows of one stem need.
PROBED_RECALL = 0.99
PROBED_DEEP_RECALL = 0.95


class SnapshotError(Exception):
    """A snapshot that cannot be read or written; its children say why."""


class SnapshotMissing(SnapshotError):
    """The folder has no manifest: nothing was written there, or the writing never finished."""

    def __init__(self, *, path: Path) -> None:
        super().__init__(f"no finished snapshot in {path}")
        self.path = path


class SnapshotCorrupt(SnapshotError):
    """A file of the snapshot is not what its manifest says."""

    def __init__(self, *, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


class SnapshotExists(SnapshotError):
    """A finished snapshot lies in the folder already; snapshots are never changed."""

    def __init__(self, *, path: Path) -> None:
        super().__init__(f"a finished snapshot already lies in {path}")
        self.path = path


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A sealed set of keys and what is needed to search them; nothing in it ever changes."""

    folder: Path | None  # None: only in memory
    manifest: Manifest
    fold: HermitianFold
    keys: Any  # faiss.IndexIDMap2 over flat codes
    ids: Int64  # (windows,), window id of each position
    tails: Float32  # (windows,), norm that the rank dropped from each key
    residuals: Float32  # (windows,), norm that the index type's rounding took from each key

    @classmethod
    def empty(
        cls,
        fold: HermitianFold,
        *,
        fingerprint: str,
        generation: int = 0,
        seq: int = 0,
        window_s: float,
        stride_s: float,
    ) -> "Snapshot":
        """A snapshot of nothing, in memory: the base of an empty catalog."""
        manifest = Manifest(
            generation=generation,
            fingerprint=fingerprint,
            embedding_dim=fold.embedding_dim,
            rank=fold.rank,
            bound=fold.bound,
            dim=fold.dim,
            index_type="flat",
            reason="the catalog is empty",
            asked_type=None,
            highest_rank=fold.rank,
            lists=0,
            probed=0,
            windows=0,
            stems=0,
            seq=seq,
            window_s=window_s,
            stride_s=stride_s,
            recall=None,
            created_at=_now(),
            files={},
        )
        nothing = np.empty(0, np.float32)
        keys = faiss.IndexIDMap2(faiss.IndexFlatIP(fold.dim))
        return cls(None, manifest, fold, keys, np.empty(0, np.int64), nothing, nothing)

    @classmethod
    def write(cls, folder: Path, stems: Iterable[Mapping[int, StemEmbeddings]], **facts: Any) -> "Snapshot":
        """Fold and seal the stems, given some at a time; `facts` are SnapshotWriter's keyword arguments.

        The sample, where a type needs one, is all of them: give what memory can hold.
        """
        held = list(stems)
        parts = [stem.embedding for some in held for stem in some.values() if len(stem.windows)]
        writer = SnapshotWriter(folder, sample=np.concatenate(parts) if parts else None, **facts)
        for some in held:
            writer.add(some)
        return writer.seal()

    @classmethod
    def load(cls, folder: Path) -> "Snapshot":
        """Read a snapshot after checking every byte of it.

        Raises:
            SnapshotMissing: there is no manifest, so the writing never finished.
            SnapshotCorrupt: a file is missing, or differs from what the manifest says.
        """
        manifest = _read_manifest(folder / MANIFEST)
        for name in _FILES:
            _verify(folder / name, manifest.files.get(name))
        keys = _read(folder / KEYS, _load_keys)
        fold = _read(folder / FOLD, HermitianFold.load)
        tails, residuals = _read(folder / ERRORS, _load_errors)
        ids = faiss.vector_to_array(keys.id_map)
        _agree(folder / FOLD, "rank", fold.rank, manifest.rank)
        _agree(folder / FOLD, "dim", fold.dim, manifest.dim)
        _agree(folder / KEYS, "dim", keys.d, manifest.dim)
        _agree(folder / KEYS, "windows", keys.ntotal, manifest.windows)
        _agree(folder / KEYS, "lists", _lists(keys), manifest.lists)
        _agree(folder / KEYS, "different ids", len(np.unique(ids)), manifest.windows)
        _agree(folder / ERRORS, "windows", len(tails), manifest.windows)
        return cls(folder, manifest, fold, keys, ids, tails, residuals)


class SnapshotWriter:
    """Collects stems and seals them as one snapshot: `add` some at a time, then `seal` once.

    Until `seal` returns, the folder has no manifest, and `Snapshot.load` says SnapshotMissing.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fold: HermitianFold,
        fingerprint: str,
        generation: int,
        seq: int,
        window_s: float,
        stride_s: float,
        index_type: IndexType = "flat",
        reason: str = "asked for",
        asked_type: IndexType | None = None,
        highest_rank: int | None = None,
        sample: npt.NDArray[np.complex64] | None = None,
        probes: npt.NDArray[np.complex64] | None = None,
    ) -> None:
        """
        Args:
            folder: made if need be; what an unfinished writer left there is overwritten.
            seq: the catalog's change number that the stems cover.
            index_type: `flat` keeps float32; `fp16` halves it; `sq8` quarters it, with a range learnt per coordinate;
                `ivf` holds the same 8 bits in lists of similar keys, of which a search looks at a part.
            reason, asked_type, highest_rank: for the manifest; the fold's own rank unless told.
            sample: complex64 (m, D), windows drawn from the whole catalog: what sq8 and ivf learn from.
            probes: complex64 (n, D) embeddings to measure the recall with; None measures none.

        Raises:
            SnapshotExists.
        """
        if index_type not in get_args(IndexType):
            raise ValueError(f"index type {index_type!r} is none of {get_args(IndexType)}")
        if (folder / MANIFEST).exists():
            raise SnapshotExists(path=folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._fold = folder, fold
        keys = fold.keys(sample) if sample is not None and len(sample) else np.zeros((1, fold.dim), np.float32)
        self._keys = faiss.IndexIDMap2(_trained_keys(index_type, keys))
        self._meter = None if probes is None else RecallMeter(fold, probes)
        self._tails: list[Float32] = []
        self._residuals: list[Float32] = []
        self._seen: set[int] = set()
        self._manifest = replace(
            Snapshot.empty(
                fold, fingerprint=fingerprint, generation=generation, seq=seq, window_s=window_s, stride_s=stride_s
            ).manifest,
            index_type=index_type,
            reason=reason,
            asked_type=asked_type,
            highest_rank=highest_rank or fold.rank,
            lists=_lists(self._keys),
        )

    def add(self, stems: Mapping[int, StemEmbeddings]) -> None:
        """Fold and add some stems, by their row; a stem without windows adds nothing.

        Raises:
            KeyRefused: before anything of `stems` is added. DuplicateWindow also when a row was added before.
        """
        checked = fold_stems(self._fold, stems)
        rows = {row for row, stem in stems.items() if len(stem.windows)}
        for row in rows & self._seen:
            raise DuplicateWindow(row=row, window=int(stems[row].windows[0]))
        self._seen |= rows
        if not len(checked.ids):
            return
        if self._meter is not None:
            self._meter.see(checked.ids, checked.embedding)
        self._keys.add_with_ids(checked.keys, checked.ids)
        self._tails.append(checked.tails)
        self._residuals.append(_residuals(faiss.downcast_index(self._keys.index), checked.keys))

    def seal(self) -> Snapshot:
        """Write the files, the manifest last, and return the snapshot as read back from them.

        Call it once: what was collected is dropped before it is read back, so that it is not held twice.
        """
        recall, probed = self._measured()
        tails = np.concatenate([np.empty(0, np.float32), *self._tails])
        residuals = np.concatenate([np.empty(0, np.float32), *self._residuals])

        def write_errors(path: Path) -> None:
            with path.open("wb") as file:
                np.savez(file, tails=tails, residuals=residuals)

        files = {
            KEYS: _replace(self._folder / KEYS, lambda path: faiss.write_index(self._keys, str(path))),
            FOLD: _replace(self._folder / FOLD, self._fold.save),
            ERRORS: _replace(self._folder / ERRORS, write_errors),
        }
        manifest = replace(
            self._manifest,
            windows=self._keys.ntotal,
            stems=len(self._seen),
            probed=probed,
            recall=recall,
            created_at=_now(),
            files=files,
        )
        _replace(self._folder / MANIFEST, lambda path: path.write_bytes(manifest_bytes(asdict(manifest))))
        _sync_folder(self._folder.parent)
        del self._keys
        return Snapshot.load(self._folder)

    def _measured(self) -> tuple[Recall | None, int]:
        """The recall, and of an approximate index the fewest lists that reach what they must; all if none do."""
        lists = self._manifest.lists
        if self._meter is None:
            return None, lists
        if not lists:
            return self._meter.measure(self._keys.search), 0
        ivf = faiss.extract_index_ivf(self._keys)
        recall, probed = None, lists
        for probed in sorted({*(2**power for power in range(lists.bit_length())), lists}):
            ivf.nprobe = probed
            recall = self._meter.measure(self._keys.search)
            if recall is None or (recall.rescored >= PROBED_RECALL and recall.deep >= PROBED_DEEP_RECALL):
                break
        return recall, probed if recall else lists


def _trained_keys(index_type: IndexType, sample: Float32) -> Any:
    """An empty index of a type, taught by a sample of keys, float32 (m, dim)."""
    dim = sample.shape[1]
    if index_type == "flat":
        return faiss.IndexFlatIP(dim)
    if index_type == "ivf":
        quantizer: Any = faiss.IndexFlatIP(dim)
        lists = max(1, min(_MOST_LISTS, len(sample) // _WINDOWS_PER_LIST))
        keys: Any = faiss.IndexIVFScalarQuantizer(
            quantizer, dim, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, False
        )
        quantizer.this.disown()  # the index that is read back owns its own; this one must free it too
        keys.own_fields = True
    else:
        kind = faiss.ScalarQuantizer.QT_fp16 if index_type == "fp16" else faiss.ScalarQuantizer.QT_8bit
        keys = faiss.IndexScalarQuantizer(dim, kind, faiss.METRIC_INNER_PRODUCT)
    keys.train(sample)
    return keys


def _lists(keys: Any) -> int:
    """How many lists an approximate index has; 0 for one that compares every key."""
    inner = faiss.downcast_index(keys.index)
    return int(inner.nlist) if isinstance(inner, faiss.IndexIVF) else 0


def _residuals(keys_index: Any, keys: Float32) -> Float32:
    """How far each stored key lies from the key that was given."""
    if isinstance(keys_index, faiss.IndexFlat):
        return np.zeros(len(keys), np.float32)
    stored = keys_index.sa_decode(keys_index.sa_encode(keys))
    return rounded_up(np.linalg.norm(keys.astype(np.float64) - stored, axis=1))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# ---------------------------------------------------------------- bytes on disk


def _replace(path: Path, write: Callable[[Path], object]) -> FileFacts:
    """Write under a temporary name, force it to the disk, then give it its name: never half a file under `path`."""
    temporary = path.with_name(path.name + _TEMPORARY)
    write(temporary)
    facts = FileFacts(sha256=_sha256(temporary), size=temporary.stat().st_size)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_folder(path.parent)
    return facts


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _read_manifest(path: Path) -> Manifest:
    try:
        return manifest_of(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SnapshotMissing(path=path.parent) from error
    except ManifestUnreadable as error:
        raise SnapshotCorrupt(path=path, reason=str(error)) from error


def _verify(path: Path, facts: FileFacts | None) -> None:
    if facts is None:
        raise SnapshotCorrupt(path=path, reason="is not in the manifest")
    try:
        size = path.stat().st_size
        if size != facts.size:
            raise SnapshotCorrupt(path=path, reason=f"has {size} bytes, the manifest says {facts.size}")
        if _sha256(path) != facts.sha256:
            raise SnapshotCorrupt(path=path, reason="has another SHA-256 than the manifest says")
    except OSError as error:
        raise SnapshotCorrupt(path=path, reason=f"cannot be read: {error.strerror}") from error


def _read(path: Path, read: Callable[[Path], T]) -> T:
    """A file may carry the right checksum and still be none: written by another build, say."""
    try:
        return read(path)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise SnapshotCorrupt(path=path, reason=f"cannot be read: {error}") from error


def _load_keys(path: Path) -> Any:
    mapped = path.stat().st_size >= MAPPED_FROM_BYTES
    keys = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
    if not isinstance(keys, faiss.IndexIDMap2):
        raise ValueError(f"holds a {type(keys).__name__}, not an IndexIDMap2")
    return keys


def _load_errors(path: Path) -> tuple[Float32, Float32]:
    with np.load(path, allow_pickle=False) as data:
        return data["tails"], data["residuals"]


def _agree(path: Path, what: str, found: int, stated: int) -> None:
    if found != stated:
        raise SnapshotCorrupt(path=path, reason=f"has {found} {what}, the manifest says {stated}")
