"""Embeddings and H -> real queries and keys whose inner product is the score; the rank, and what it costs at most."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt

from model.errors import Told

Complex64 = npt.NDArray[np.complex64]
Complex128 = npt.NDArray[np.complex128]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

# (H + Hᴴ) / 2 in complex128 is Hermitian to the last bit; this forgives a form that was made in another order.
_HERMITIAN_TOLERANCE = 1e-10
# Embeddings folded at once: 4096 x 512 complex128 are 32 MiB.
_FOLD_ROWS = 4096


class FoldError(Told, ValueError):
    """A form or an embedding that cannot be folded; its children say why."""


class WrongShape(FoldError):
    """An array has another shape than the fold needs."""

    says = "{what} has shape {shape}, expected {expected}"
    what: str
    shape: tuple[int, ...]
    expected: str


class NotFinite(FoldError):
    """An array holds NaN or infinity."""

    says = "{what} holds {count} values that are not finite"
    what: str
    count: int


class NotHermitian(FoldError):
    """The score would depend on the order of a pair."""

    says = "the form is not Hermitian: it differs from its conjugate transpose by {deviation:.3g}"
    deviation: float


class RankOutOfRange(FoldError):
    """A rank below 1 or above the form's dimension."""

    public = "The rank {rank} is not between 1 and {largest}."
    rank: int
    largest: int


class HermitianFold:
    """The score Re(xᴴ H y) as an inner product of real vectors, so that any dot-product index can search it.

    With H = U Λ Uᴴ, query(x) = √|Λ| Uᴴ x and key(y) = sign(Λ) √|Λ| Uᴴ y, real parts then imaginary parts:
    query · key = Re(xᴴ H y). Of the eigenvalues only the `rank` largest in magnitude are kept. What the rest
    can change is known: for unit-norm embeddings at most `bound`, and for a given pair at most
    `query_tail(x) * key_tail(y)` (Cauchy-Schwarz over the dropped coordinates).

    The eigenvectors are part of the fold's identity: their phases, and any basis of a repeated eigenvalue,
    are LAPACK's free choice, so queries and keys agree only when they come from the same ones. Save and load
    the fold; do not compute it again from H on another machine.
    """

    hermitian: Complex128  # (D, D), read-only
    eigenvalues: Float64  # (D,), largest magnitude first, read-only
    rank: int  # how many directions are kept: eigenvectors, unless the fold was turned to something
    bound: float  # what unit-norm embeddings score off by at most, beside `rounding`; 0.0 at full rank

    def __init__(self, hermitian: npt.ArrayLike, rank: int | None = None) -> None:
        """Decompose in float64.

        Args:
            hermitian: complex128, (D, D), equal to its conjugate transpose.
            rank: how many eigenvalues to keep, 1 to D; None keeps all.

        Raises:
            WrongShape, NotFinite, NotHermitian, RankOutOfRange.
        """
        form = np.asarray(hermitian, dtype=np.complex128)
        if form.ndim != 2 or form.shape[0] != form.shape[1] or form.shape[0] == 0:
            raise WrongShape("the Hermitian form", shape=form.shape, expected="(D, D)")
        _require_finite("the Hermitian form", form)
        deviation = float(np.abs(form - form.conj().T).max())
        if deviation > _HERMITIAN_TOLERANCE * max(1.0, float(np.abs(form).max())):
            raise NotHermitian(deviation=deviation)
        form = (form + form.conj().T) / 2
        values, vectors = np.linalg.eigh(form)
        self._keep(form, values, vectors, rank)

    def _keep(
        self, form: Complex128, values: Float64, vectors: Complex128, rank: int | None, turn: Complex128 | None = None
    ) -> None:
        dimension = len(values)
        rank = dimension if rank is None else rank
        if not 1 <= rank <= dimension:
            raise RankOutOfRange(rank=rank, largest=dimension)
        order = np.argsort(-np.abs(values), kind="stable")
        values, vectors = values[order], vectors[:, order]
        self.hermitian, self.eigenvalues, self._vectors, self.rank, self._turn = form, values, vectors, rank, turn
        for array in (form, values, vectors):
            array.flags.writeable = False
        # Embeddings are rows here, so Uᴴ x is x @ conj(U).
        queries = vectors.conj() * np.sqrt(np.abs(values))
        keys = queries * np.where(values < 0, -1.0, 1.0)
        if turn is not None:
            queries, keys = queries @ turn, keys @ turn
        self._queries, self._keys = queries, keys
        self.bound = 0.0
        if rank < dimension:
            left, right = queries[:, rank:], keys[:, rank:]
            self.bound = float(abs(values[rank])) if turn is None else float(np.linalg.norm(left.conj() @ right.T, 2))

    def at_rank(self, rank: int) -> "HermitianFold":
        """The same decomposition with another number of directions kept. Raises RankOutOfRange."""
        fold = HermitianFold.__new__(HermitianFold)
        fold._keep(self.hermitian, self.eigenvalues, self._vectors, rank, self._turn)
        return fold

    def turned_to(self, embeddings: npt.ArrayLike) -> "HermitianFold":
        """The same score with its directions in the order in which the keys of these embeddings are large.

        Both sides are turned by one unitary matrix, so no inner product changes, and a rank keeps what music has rather
        than what the form weighs most: with the shipped model 64 of 512 directions hold all but a thousandth.

        Args:
            embeddings: complex64 (n, D), of the catalog.
        """
        keys = self._checked(embeddings).astype(np.complex128) @ (
            self._vectors.conj() * np.sqrt(np.abs(self.eigenvalues)) * np.where(self.eigenvalues < 0, -1.0, 1.0)
        )
        _, directions = np.linalg.eigh(keys.conj().T @ keys)
        fold = HermitianFold.__new__(HermitianFold)
        turn = np.ascontiguousarray(directions[:, ::-1])
        fold._keep(self.hermitian, self.eigenvalues, self._vectors, self.rank, turn)
        return fold

    def rank_within(self, error: float, embeddings: npt.ArrayLike) -> int:
        """The lowest rank at which the mean query tail times the largest key tail of these embeddings is no more than
        `error`: how far a score may then be off."""
        rows = self._checked(embeddings).astype(np.complex128)
        queries, keys = (np.square(np.abs(rows @ basis)) for basis in (self._queries, self._keys))
        tails = [np.sqrt(np.cumsum(part[:, ::-1], axis=1)[:, ::-1]) for part in (queries, keys)]  # from a rank on
        errors = tails[0].mean(axis=0) * tails[1].max(axis=0)
        return int(np.count_nonzero(errors > error)) or 1

    @property
    def embedding_dim(self) -> int:
        """D, the dimension of an embedding."""
        return len(self.eigenvalues)

    @property
    def dim(self) -> int:
        """Length of a query or key: two reals for each kept eigenvalue."""
        return 2 * self.rank

    @property
    def rounding(self) -> float:
        """What float32 can add to the error of query · key for unit-norm embeddings, whatever the order of the sum.

        Each product carries the rounding of two coordinates and itself, and passes through at most dim - 1
        additions: (dim + 2) half-ulps of the largest |eigenvalue|, which bounds the sum of all |products|;
        one more for a score kept as float32. A worst case: seen errors grow with √dim, a hundredth of this.
        """
        return (self.dim + 3) * 2.0**-24 * float(abs(self.eigenvalues[0])) * 1.001

    def queries(self, x: npt.ArrayLike) -> Float32:
        """complex64 (n, D) -> float32 (n, dim), the searching side."""
        rows = self._checked(x)
        return _fold_rows(rows, self._queries[:, : self.rank])

    def keys(self, y: npt.ArrayLike) -> Float32:
        """complex64 (n, D) -> float32 (n, dim), the stored side. H is indefinite, so keys differ in norm."""
        rows = self._checked(y)
        return _fold_rows(rows, self._keys[:, : self.rank])

    def query_tail(self, x: npt.ArrayLike) -> Float64:
        """complex64 (n, D) -> float64 (n,), the norm of what the rank drops from each query; 0 at full rank."""
        return _norms(self._checked(x), self._queries[:, self.rank :])

    def key_tail(self, y: npt.ArrayLike) -> Float64:
        """complex64 (n, D) -> float64 (n,), the same norm on the stored side."""
        return _norms(self._checked(y), self._keys[:, self.rank :])

    def form_rows(self, x: npt.ArrayLike) -> Float64:
        """xᴴ H as reals: complex64 (n, D) -> float64 (n, 2D); times `real_rows(y)` transposed it is the score."""
        left = self._checked(x).astype(np.complex128).conj() @ self.hermitian
        return np.concatenate([left.real, -left.imag], axis=1)

    def real_rows(self, y: npt.ArrayLike) -> Float64:
        """complex64 (n, D) -> float64 (n, 2D): real parts, then imaginary parts."""
        rows = self._checked(y)
        return np.concatenate([rows.real, rows.imag], axis=1, dtype=np.float64)

    def scores(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Float32:
        """Re(xᴴ H y) by the full form, whatever the rank: complex64 (n, D), (m, D) -> float32 (n, m)."""
        return np.asarray(self.form_rows(x) @ self.real_rows(y).T, dtype=np.float32)

    def to_bytes(self) -> bytes:
        """Everything needed to fold again, without torch and bit for bit, as an uncompressed .npz."""
        parts: dict[str, Any] = {
            "hermitian": self.hermitian,
            "eigenvalues": self.eigenvalues,
            "eigenvectors": self._vectors,
            "rank": np.int64(self.rank),
        }
        return npz(**parts) if self._turn is None else npz(**parts, turn=self._turn)

    @classmethod
    def of_bytes(cls, raw: bytes) -> "HermitianFold":
        """Read what `to_bytes` wrote.

        Raises:
            FoldError: the arrays are no fold. ValueError, KeyError, OSError: these are no such bytes.
        """
        with np.load(io.BytesIO(raw), allow_pickle=False) as data:
            form = np.asarray(data["hermitian"], dtype=np.complex128)
            values = np.asarray(data["eigenvalues"], dtype=np.float64)
            vectors = np.asarray(data["eigenvectors"], dtype=np.complex128)
            rank = int(data["rank"])
            turn = np.asarray(data["turn"], dtype=np.complex128) if "turn" in data else None
        dimension = len(values)
        for what, array, shape in (
            ("the Hermitian form", form, (dimension, dimension)),
            ("the eigenvalues", values, (dimension,)),
            ("the eigenvectors", vectors, (dimension, dimension)),
            ("the turn", np.eye(dimension) if turn is None else turn, (dimension, dimension)),
        ):
            if array.shape != shape:
                raise WrongShape(what, shape=array.shape, expected=str(shape))
            _require_finite(what, array)
        fold = cls.__new__(cls)
        fold._keep(form, values, vectors, rank, turn)
        return fold

    def _checked(self, embeddings: npt.ArrayLike) -> npt.NDArray[Any]:
        rows = np.asarray(embeddings)
        if rows.ndim != 2 or rows.shape[1] != self.embedding_dim:
            raise WrongShape("the embeddings", shape=rows.shape, expected=f"(n, {self.embedding_dim})")
        _require_finite("the embeddings", rows)
        return rows


def npz(**arrays: Any) -> bytes:
    """Arrays as `np.load` reads them."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _fold_rows(rows: npt.NDArray[Any], basis: Complex128) -> Float32:
    rank = basis.shape[1]
    folded = np.empty((len(rows), 2 * rank), dtype=np.float32)
    for start in range(0, len(rows), _FOLD_ROWS):
        part = rows[start : start + _FOLD_ROWS].astype(np.complex128) @ basis  # (rows, rank)
        folded[start : start + _FOLD_ROWS, :rank] = part.real
        folded[start : start + _FOLD_ROWS, rank:] = part.imag
    return folded


def _norms(rows: npt.NDArray[Any], basis: Complex128) -> Float64:
    norms = np.zeros(len(rows))
    if basis.shape[1]:
        for start in range(0, len(rows), _FOLD_ROWS):
            part = rows[start : start + _FOLD_ROWS].astype(np.complex128) @ basis
            norms[start : start + _FOLD_ROWS] = np.linalg.norm(part, axis=1)
    return norms


def _require_finite(what: str, array: npt.NDArray[Any]) -> None:
    finite = np.isfinite(array)
    if not finite.all():
        raise NotFinite(what, count=int(array.size - np.count_nonzero(finite)))
