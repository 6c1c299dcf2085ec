import numpy as np
import pytest

from indexer.index.fold import HermitianFold, NotFinite, NotHermitian, RankOutOfRange, WrongShape
from tests.embeddings import random_fold, random_form, random_rows


def test_fold_gives_two_float32_for_each_kept_eigenvalue() -> None:
    fold = HermitianFold(random_form(12), rank=5)
    assert (fold.rank, fold.dim, fold.embedding_dim) == (5, 10, 12)
    for folded in (fold.queries(random_rows(1, 3, 12)), fold.keys(random_rows(1, 3, 12))):
        assert folded.dtype == np.float32
        assert folded.shape == (3, 10)


def test_fold_keeps_the_largest_magnitudes_of_either_sign() -> None:
    fold = HermitianFold(np.diag([0.5, -7.0, 3.0, -1.0]).astype(complex), rank=2)
    assert fold.eigenvalues.tolist() == [-7.0, 3.0, -1.0, 0.5]
    assert fold.bound == 1.0


def test_an_identity_form_scores_an_embedding_highest_against_itself() -> None:
    x = random_rows(1, 6, 8)
    fold = HermitianFold(np.eye(8, dtype=complex))
    assert (fold.queries(x) @ fold.keys(x).T).argmax(axis=1).tolist() == list(range(6))


def test_fold_of_no_embeddings_is_empty() -> None:
    fold = HermitianFold(random_form(6))
    assert fold.queries(np.zeros((0, 6), np.complex64)).shape == (0, 12)
    assert fold.scores(random_rows(1, 2, 6), np.zeros((0, 6), np.complex64)).shape == (2, 0)


def test_fold_refuses_a_form_that_is_not_hermitian_and_says_by_how_much() -> None:
    form = random_form(4)
    form[0, 1] += 0.25
    with pytest.raises(NotHermitian) as caught:
        HermitianFold(form)
    assert caught.value.deviation == pytest.approx(0.25)


def test_fold_refuses_values_that_are_not_finite() -> None:
    form = random_form(4)
    form[2, 2] = np.nan
    with pytest.raises(NotFinite):
        HermitianFold(form)
    fold = HermitianFold(random_form(4))
    bad = random_rows(1, 3, 4)
    bad[1, 2] = complex(0, np.inf)
    for side in (fold.queries, fold.keys, fold.query_tail, fold.key_tail):
        with pytest.raises(NotFinite) as caught:
            side(bad)
        assert caught.value.count == 1


@pytest.mark.parametrize("shape", [(3, 4), (4,), (0, 0), (2, 2, 2)])
def test_fold_refuses_a_form_that_is_not_square(shape: tuple[int, ...]) -> None:
    with pytest.raises(WrongShape) as caught:
        HermitianFold(np.zeros(shape, complex))
    assert caught.value.shape == shape


def test_fold_refuses_embeddings_of_another_width() -> None:
    fold = HermitianFold(random_form(4))
    for bad in (random_rows(1, 2, 5), random_rows(1, 1, 4)[0]):
        with pytest.raises(WrongShape):
            fold.queries(bad)


@pytest.mark.parametrize("rank", [0, -1, 5])
def test_fold_refuses_a_rank_the_form_does_not_have(rank: int) -> None:
    with pytest.raises(RankOutOfRange) as caught:
        HermitianFold(random_form(4), rank=rank)
    assert (caught.value.rank, caught.value.largest) == (rank, 4)


def test_a_saved_fold_folds_bit_for_bit_the_same() -> None:
    # Degenerate on purpose: a basis computed anew could be another one, and old keys would no longer fit.
    fold = HermitianFold(np.diag([2.0, 2.0, 2.0, -1.0, 0.0, 0.0]).astype(complex), rank=2)
    loaded = HermitianFold.of_bytes(fold.to_bytes())
    x = random_rows(1, 4, 6)
    assert (loaded.rank, loaded.bound) == (fold.rank, fold.bound)
    for side in ("queries", "keys", "query_tail", "scores"):
        arguments = (x, x) if side == "scores" else (x,)
        assert np.array_equal(getattr(loaded, side)(*arguments), getattr(fold, side)(*arguments))


def test_the_form_of_a_fold_cannot_be_changed_behind_its_back() -> None:
    fold = HermitianFold(random_form(4))
    with pytest.raises(ValueError, match="read-only"):
        fold.hermitian[0, 0] = 1


def test_a_turned_fold_scores_alike_and_knows_what_its_rank_drops() -> None:
    plain = random_fold(8)
    few = random_rows(1, 3, 8)
    likely = random_rows(2, 200, 3) @ few + 0.05 * random_rows(3, 200, 8)
    likely /= np.linalg.norm(likely, axis=1, keepdims=True)
    turned = plain.turned_to(likely)
    x, y = random_rows(4, 20, 8), random_rows(5, 30, 8)
    np.testing.assert_allclose(turned.queries(x) @ turned.keys(y).T, plain.scores(x, y), atol=1e-5)
    for rank in (1, 3, 7):
        fold = turned.at_rank(rank)
        errors = np.abs(fold.queries(x) @ fold.keys(y).T - plain.scores(x, y))
        assert (errors <= np.outer(fold.query_tail(x), fold.key_tail(y)) + fold.rounding).all()
        assert errors.max() <= fold.bound + fold.rounding
    assert turned.at_rank(3).key_tail(likely).max() < 0.5 * plain.at_rank(3).key_tail(likely).max()
    assert turned.rank_within(1e-9, likely) == 8 > turned.rank_within(0.2, likely) >= 1
    loaded = HermitianFold.of_bytes(turned.at_rank(3).to_bytes())
    assert np.array_equal(loaded.keys(y), turned.at_rank(3).keys(y))
    assert loaded.bound == turned.at_rank(3).bound > 0
