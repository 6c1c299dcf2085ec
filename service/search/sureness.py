"""How sure a hit is: the share of stems that a search scores so which belong to the mix.

Learnt from searches whose answer is known, and kept among the notes of the model's checkpoint. Of the stems it is
learnt from, half belong to the mix, whatever the catalog's size: below a half, a stem fits no better than one drawn by
chance.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

NOTE = "sureness"
"""The note of a checkpoint that holds it."""

BINS = 10  # of equal width, in which said and true shares are compared
UNRANKED = -10.0  # the score of a stem that the search did not name; below all that it names


@dataclass(frozen=True)
class Sureness:
    """Scores, rising, and the share of stems scored so that belong to the mix; between them by straight lines."""

    scores: tuple[float, ...]
    shares: tuple[float, ...]

    def of(self, score: float) -> float:
        """The share at a score, 0 to 1."""
        return float(np.interp(score, self.scores, self.shares))

    def as_note(self) -> str:
        """As it is kept among a checkpoint's notes."""
        pairs = zip(self.scores, self.shares, strict=True)
        return json.dumps([[round(score, 4), round(share, 4)] for score, share in pairs])

    @classmethod
    def of_notes(cls, notes: Mapping[str, str]) -> Sureness | None:
        """What a checkpoint's notes hold; None: nothing, or nothing that can be read."""
        try:
            scores, shares = zip(*json.loads(notes[NOTE]), strict=True)
            known = cls(tuple(map(float, scores)), tuple(map(float, shares)))
        except (KeyError, ValueError, TypeError):
            return None
        rising = all(np.all(np.diff(numbers) >= 0) for numbers in (known.scores, known.shares))
        return known if rising and known.shares[0] >= 0 and known.shares[-1] <= 1 else None


def learn(own: Float64, strangers: Float64) -> Sureness:
    """The rising curve that fits best, by least squares (isotonic regression); both sides weigh the same.

    Args:
        own, strangers: float64 (n,) and (m,), scores of stems that belong to their mix, and that do not.
    """
    from scipy.optimize import isotonic_regression

    scores = np.concatenate([own, strangers])
    order = np.argsort(scores, kind="stable")
    belongs = np.concatenate([np.ones(len(own)), np.zeros(len(strangers))])[order]
    weights = np.concatenate([np.full(len(own), 1 / len(own)), np.full(len(strangers), 1 / len(strangers))])[order]
    fitted = isotonic_regression(belongs, weights=weights)
    begins = fitted.blocks[:-1]
    middles = np.array([scores[order][a:b].mean() for a, b in zip(begins, fitted.blocks[1:], strict=True)])
    return Sureness(tuple(middles), tuple(fitted.x[begins]))


def calibration(known: Sureness, own: Float64, strangers: Float64) -> tuple[float, list[dict[str, Any]]]:
    """How far shares that are said are from those that are true.

    Args:
        known: what says them.
        own, strangers: as for `learn`, of other searches.

    Returns:
        The expected calibration error: the mean distance over ten bins of the said share, weighted by what falls in
        each; and the bins that hold something: `said` and `true`, shares, and `weight`.
    """
    said = np.array([known.of(score) for score in np.concatenate([own, strangers])])
    belongs = np.concatenate([np.ones(len(own)), np.zeros(len(strangers))])
    weights = np.concatenate([np.full(len(own), 0.5 / len(own)), np.full(len(strangers), 0.5 / len(strangers))])
    places = np.minimum((said * BINS).astype(int), BINS - 1)
    bins = []
    for place in np.unique(places):
        chosen = places == place
        some = weights[chosen]
        means = (np.average(values[chosen], weights=some) for values in (said, belongs))
        bins.append(dict(zip(("said", "true", "weight"), (*map(float, means), float(some.sum())), strict=True)))
    return sum(each["weight"] * abs(each["said"] - each["true"]) for each in bins), bins
