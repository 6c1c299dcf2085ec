"""Embeddings -> one sealed snapshot. What is done lies on disk, so a build that was killed goes on from there."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile

import faiss
import numpy as np
import numpy.typing as npt

from indexer.catalog.records import StemEmbeddings
from indexer.index.choice import LEARNING
from indexer.index.fold import HermitianFold, npz
from indexer.index.keys import DuplicateWindow, fold_stems, key_dim, keys_of, rounded_up, split_ids
from indexer.index.manifest import FileFacts, Manifest, facts_of, manifest_bytes, manifest_of
from indexer.index.recall import Recall, RecallMeter
from indexer.index.snapshot import ERRORS, FOLD, KEYS, MANIFEST, Snapshot, SnapshotExists, lists_of, now

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

# After so many windows what was added is forced to the disk, and a killed build goes on from there.
CHECKPOINT_WINDOWS = 50_000
# Lists of an approximate index, and how many windows of the sample FAISS asks for to find the middle of each.
_MOST_LISTS = 1024
_WINDOWS_PER_LIST = 39
# What the number of lists that a search looks at must reach: the exact ten best among those that are scored again, and
# the deep answers that many windows of one stem need.
PROBED_RECALL = 0.99
PROBED_DEEP_RECALL = 0.95

_TEMPORARY = ".partial"
_PROGRESS, _TRAINED = "progress.npz", "trained.faiss"
_CODES, _IDS, _ERRORS = "codes.raw", "ids.raw", "errors.raw"
_WORKING = (_PROGRESS, _TRAINED, _CODES, _IDS, _ERRORS)


class SnapshotWriter:
    """Collects stems and seals them as one snapshot: `add` some at a time, then `seal` once.

    Until `seal` returns, the folder has no manifest, and `Snapshot.load` says SnapshotMissing; what a writer that was
    killed had done, `resumed` takes up.
    """

    _files: dict[str, BinaryIO]
    _since: int  # windows since the last force to the disk

    def __init__(
        self,
        folder: Path,
        fold: HermitianFold,
        manifest: Manifest,
        *,
        sample: Mapping[int, StemEmbeddings] | None = None,
        probes: npt.NDArray[np.complex64] | None = None,
    ) -> None:
        """
        Args:
            folder: made if need be; what an unfinished writer left there is overwritten.
            manifest: unsealed. Of its index types `flat` keeps float32; `fp16` halves it; `sq8` quarters it, with a
                range learnt per coordinate; `ivf` holds the same 8 bits in lists of similar keys, of which a search
                looks at a part.
            sample: stems drawn from the whole catalog: what sq8 and ivf learn from.
            probes: complex64 (n, D) embeddings to measure the recall with; None measures none.

        Raises:
            SnapshotExists.
        """
        if (folder / MANIFEST).exists():
            raise SnapshotExists(path=folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._fold, self._manifest = folder, fold, manifest
        index_type = manifest.index_type
        learnt = sample.values() if sample and index_type in LEARNING else ()
        keys = np.concatenate([np.empty((0, key_dim(fold.dim)), np.float32), *(keys_of(fold, one) for one in learnt)])
        keys = keys if len(keys) else np.zeros((1, keys.shape[1]), np.float32)
        self._take(_trained_keys(index_type, keys), windows=0, seen=set())
        self._meter = None if probes is None else RecallMeter(fold, probes)
        for name in _WORKING:
            (folder / name).unlink(missing_ok=True)
        _replace(folder / _TRAINED, lambda path: faiss.write_index(self._trained, str(path)))
        _replace_bytes(folder / FOLD, fold.to_bytes())
        self._keep_progress()

    @classmethod
    def resumed(cls, folder: Path, fits: Callable[[Manifest], bool]) -> "SnapshotWriter | None":
        """The writer that was killed in this folder, as it last forced its work to the disk: it goes on after
        `last_row`, with the clock, the fold, the sample and the probes that it began with.

        Args:
            fits: whether its manifest is of what is wanted; where not, or where there is none: None.
        """
        try:
            with np.load(folder / _PROGRESS, allow_pickle=False) as found:
                state = dict(found)
            left = manifest_of(state["manifest"].tobytes())
            trained = faiss.read_index(str(folder / _TRAINED))
            fold = HermitianFold.of_bytes((folder / FOLD).read_bytes())
        except (OSError, ValueError, KeyError, RuntimeError, EOFError, BadZipFile):  # there is none of this build
            return None
        of_this_build = trained.d == left.dim == key_dim(fold.dim)
        if not of_this_build or not fits(left):
            return None
        sizes = {_CODES: int(trained.sa_code_size()) * left.windows, _IDS: 8 * left.windows, _ERRORS: 8 * left.windows}
        for name, size in sizes.items():
            path = folder / name
            if not path.is_file() or path.stat().st_size < size:
                return None
            os.truncate(path, size)
        writer = cls.__new__(cls)
        writer._folder, writer._fold, writer._manifest = folder, fold, replace(left, windows=0)
        seen = split_ids(np.fromfile(folder / _IDS, np.int64))[0]
        writer._take(trained, windows=left.windows, seen=set(seen.tolist()))
        writer._meter = RecallMeter.restored(fold, state) if "probes" in state else None
        return writer

    @property
    def last_row(self) -> int:
        """The highest stem row that is in; 0 before the first."""
        return max(self._seen, default=0)

    @property
    def stems(self) -> int:
        """How many are in, those without windows left out."""
        return len(self._seen)

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
        codes = self._trained.sa_encode(checked.keys)
        errors = np.stack([checked.tails, self._residuals(checked.keys, codes)], axis=1)
        self._files = self._files or {name: (self._folder / name).open("ab") for name in (_CODES, _IDS, _ERRORS)}
        for name, values in ((_CODES, codes), (_IDS, checked.ids), (_ERRORS, errors)):
            self._files[name].write(values.tobytes())
        self._windows += len(checked.ids)
        self._since += len(checked.ids)
        if self._since >= CHECKPOINT_WINDOWS:
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
            self._keep_progress()
            self._since = 0

    def seal(self) -> Snapshot:
        """Write the files, the manifest last, and return the snapshot as read back from them. Call it once."""
        for raw in self._files.values():
            raw.close()
        for name in (_CODES, _IDS, _ERRORS):
            (self._folder / name).touch()  # of no windows
        ids = np.fromfile(self._folder / _IDS, np.int64)
        tails, residuals = np.fromfile(self._folder / _ERRORS, np.float32).reshape(-1, 2).T
        keys, recall, probed = self._sealed_keys(ids)

        files = {
            KEYS: keys,
            FOLD: _replace_bytes(self._folder / FOLD, self._fold.to_bytes()),
            ERRORS: _replace_bytes(self._folder / ERRORS, npz(tails=tails, residuals=residuals)),
        }
        manifest = replace(
            self._manifest,
            windows=len(ids),
            stems=self.stems,
            probed=probed,
            recall=recall,
            created_at=now(),
            files=files,
        )
        _replace_bytes(self._folder / MANIFEST, manifest_bytes(asdict(manifest)))
        _sync_folder(self._folder.parent)
        for name in _WORKING:
            (self._folder / name).unlink(missing_ok=True)
        return Snapshot.load(self._folder, check_mapped=False)

    # ---------------------------------------------------------------- what lies on disk meanwhile

    def _keep_progress(self) -> None:
        manifest = manifest_bytes(asdict(replace(self._manifest, windows=self._windows)))
        state: dict[str, Any] = {"manifest": np.frombuffer(manifest, np.uint8)}
        if self._meter is not None:
            state |= self._meter.state()
        _replace_bytes(self._folder / _PROGRESS, npz(**state))

    # ---------------------------------------------------------------- keys

    def _take(self, trained: Any, *, windows: int, seen: set[int]) -> None:
        self._trained, self._windows, self._seen = trained, windows, seen
        self._since = 0
        self._code_bytes = int(trained.sa_code_size())
        self._manifest = replace(self._manifest, lists=lists_of(trained))
        self._files = {}

    def _residuals(self, keys: Float32, codes: npt.NDArray[np.uint8]) -> Float32:
        """How far each stored key lies from the key that was given."""
        if isinstance(self._trained, faiss.IndexFlat):
            return np.zeros(len(keys), np.float32)
        return rounded_up(np.linalg.norm(keys.astype(np.float64) - self._trained.sa_decode(codes), axis=1))

    def _sealed_keys(self, ids: Int64) -> tuple[FileFacts, Recall | None, int]:
        """Write the FAISS file, which nothing holds in memory afterwards; what it finds, and by how many lists."""
        keys = faiss.IndexIDMap(self._trained)
        with (self._folder / _CODES).open("rb") as file:
            for start in range(0, len(ids), CHECKPOINT_WINDOWS):
                some = ids[start : start + CHECKPOINT_WINDOWS]
                codes = np.fromfile(file, np.uint8, len(some) * self._code_bytes).reshape(len(some), -1)
                keys.add_sa_codes(codes, some)
        recall, probed = self._measured(keys)
        facts = _replace(self._folder / KEYS, lambda path: faiss.write_index(keys, str(path)))
        del self._trained
        return facts, recall, probed

    def _measured(self, keys: Any) -> tuple[Recall | None, int]:
        """The recall, and of an approximate index the fewest lists that reach what they must; all if none do."""
        lists = self._manifest.lists
        if self._meter is None:
            return None, lists
        if not lists:
            return self._meter.measure(keys.search), 0
        ivf = faiss.extract_index_ivf(keys)
        recall, probed = None, lists
        for probed in sorted({*(2**power for power in range(lists.bit_length())), lists}):
            ivf.nprobe = probed
            recall = self._meter.measure(keys.search)
            if recall is None or (recall.rescored >= PROBED_RECALL and recall.deep >= PROBED_DEEP_RECALL):
                break
        return recall, probed if recall else lists


def _trained_keys(index_type: str, sample: Float32) -> Any:
    """An empty index of a type, taught by a sample of keys, float32 (m, key_dim)."""
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


# ---------------------------------------------------------------- bytes on disk


def _replace(path: Path, write: Callable[[Path], object]) -> FileFacts:
    """Write under a temporary name, force it to the disk, then give it its name: never half a file under `path`."""
    temporary = path.with_name(path.name + _TEMPORARY)
    write(temporary)
    facts = facts_of(temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_folder(path.parent)
    return facts


def _replace_bytes(path: Path, data: bytes) -> FileFacts:
    return _replace(path, lambda temporary: temporary.write_bytes(data))


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
