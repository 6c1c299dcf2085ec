"""Which kind of index a catalog gets."""

import pytest

from indexer.index.choice import CODE_BYTES, LOWEST_RANK, Limits, choose, index_bytes, machine_memory

WINDOWS, RANK = 400_000, 512


def memory_for(kind: str, rank: int = RANK) -> Limits:
    return Limits(index_bytes(WINDOWS, kind, rank))  # type: ignore[arg-type]


def test_the_machine_states_its_memory() -> None:
    assert 2**28 < machine_memory() < 2**50
    assert 0 < Limits.of_this_machine().memory_bytes < machine_memory()


@pytest.mark.parametrize("kind", ["flat", "fp16", "sq8"])
def test_the_most_exact_type_that_fits_is_chosen(kind: str) -> None:
    limits = memory_for(kind)
    chosen = choose(WINDOWS, RANK, limits)
    assert (chosen.index_type, chosen.rank) == (kind, RANK)
    assert str(limits.memory_bytes) in chosen.reason


def test_the_rank_falls_only_when_eight_bits_do_not_fit() -> None:
    chosen = choose(WINDOWS, RANK, memory_for("sq8", 100))
    assert (chosen.index_type, chosen.rank) == ("sq8", 100)
    assert "rank 100 of 512 since memory is short" in chosen.reason


def test_a_budget_that_nothing_fits_is_said_to_be_exceeded() -> None:
    chosen = choose(WINDOWS, RANK, Limits(1000))
    assert (chosen.index_type, chosen.rank) == ("sq8", LOWEST_RANK)
    assert "still more than" in chosen.reason


def test_a_large_catalog_is_tried_with_an_approximate_type() -> None:
    limits = Limits(2**40, exact_windows=WINDOWS - 1)
    assert choose(WINDOWS, RANK, limits).index_type == "ivf"
    assert choose(WINDOWS - 1, RANK, limits).index_type == "flat"
    assert choose(WINDOWS, RANK, limits, approximate=False).index_type == "flat"


@pytest.mark.parametrize("kind", CODE_BYTES)
def test_what_a_person_asks_for_is_what_they_get(kind: str) -> None:
    chosen = choose(WINDOWS, RANK, Limits(2**40), index_type=kind)  # type: ignore[arg-type]
    assert (chosen.index_type, chosen.rank) == (kind, RANK)
    assert f"{kind} was asked for" in chosen.reason
    assert choose(WINDOWS, RANK, memory_for(kind, 64), index_type=kind).rank == 64  # type: ignore[arg-type]


def test_an_empty_catalog_learns_nothing_from_nothing() -> None:
    assert choose(0, RANK, Limits(1), index_type="sq8").index_type == "flat"
