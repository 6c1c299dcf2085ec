"""Laws of the fold, over any Hermitian form: indefinite, degenerate, singular."""

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.index.fold import HermitianFold
from tests.embeddings import random_rows as unit_rows

# Promised for unit-norm embeddings at full rank; float32 coordinates cost about 1e-7 of the largest |eigenvalue|.
SCORE_TOLERANCE = 1e-5
Case = tuple[npt.NDArray[np.complex128], np.random.Generator]


@st.composite
def forms(draw: st.DrawFn) -> Case:
    """A Hermitian form with any spectrum: repeated, zero and negative eigenvalues come up often."""
    values = draw(
        st.lists(
            st.one_of(st.sampled_from([0.0, 1.0, -1.0, 2.5, -2.5]), st.floats(-12, 12, allow_nan=False)),
            min_size=1,
            max_size=24,
        )
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    d = len(values)
    basis, _ = np.linalg.qr(rng.standard_normal((d, d)) + 1j * rng.standard_normal((d, d)))
    form = (basis * np.array(values)) @ basis.conj().T
    return (form + form.conj().T) / 2, rng


def complex_scores(
    x: npt.NDArray[np.complex64], form: npt.NDArray[np.complex128], y: npt.NDArray[np.complex64]
) -> npt.NDArray[np.float64]:
    return np.asarray((x.astype(np.complex128).conj() @ form @ y.astype(np.complex128).T).real)


@given(forms())
@settings(max_examples=150, deadline=None)
def test_query_dot_key_equals_the_complex_score_at_full_rank(case: Case) -> None:
    form, rng = case
    fold = HermitianFold(form)
    x, y = unit_rows(rng, 5, len(form)), unit_rows(rng, 7, len(form))
    folded = fold.queries(x) @ fold.keys(y).T
    expected = complex_scores(x, form, y)
    assert fold.bound == 0.0
    assert np.abs(folded - expected).max() <= SCORE_TOLERANCE
    assert np.abs(fold.scores(x, y) - expected).max() <= SCORE_TOLERANCE


@given(forms())
@settings(max_examples=80, deadline=None)
def test_truncated_score_stays_under_the_bound_and_under_the_tails_at_every_rank(case: Case) -> None:
    form, rng = case
    x, y = unit_rows(rng, 4, len(form)), unit_rows(rng, 6, len(form))
    # The dropped directions themselves are where the bound is met with equality.
    vectors = np.linalg.eigh(form)[1].T.astype(np.complex64)
    x, y = np.concatenate([x, vectors]), np.concatenate([y, vectors])
    # complex64 leaves a norm off by some 1e-7, and the bound is for norm 1.
    slack_of_norm = 1 + 1e-6
    expected = complex_scores(x, form, y)
    for rank in range(1, len(form) + 1):
        fold = HermitianFold(form, rank=rank)
        error = np.abs(fold.queries(x) @ fold.keys(y).T - expected)
        assert error.max() <= fold.bound * slack_of_norm + fold.rounding * slack_of_norm + 1e-12
        tails = np.outer(fold.query_tail(x), fold.key_tail(y))
        assert (error <= tails + fold.rounding * slack_of_norm + 1e-12).all()
        assert tails.max() <= fold.bound * slack_of_norm + 1e-12
        assert np.abs(fold.scores(x, y) - expected).max() <= SCORE_TOLERANCE
