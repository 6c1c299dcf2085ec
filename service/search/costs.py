"""What is taken off a stem's score: for playing it otherwise, for notes unlike the mix's, and for its length."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from indexer import ANY_STEM, CHROMA, HAS_CHROMA, LOG_WINDOWS, TRAITS
from service.search.stretching import SAME_TEMPO

OTHERWISE_COST = 2.0  # of a stem's score, for not being played as it was recorded
STRETCH_COST = 0.5  # and for each factor e of speed: 0.05 for ten per cent
TRANSPOSE_COST = 0.05  # and for each semitone
HARMONY_COST = 3.0  # for notes that have nothing to do with the mix's; none for those that sound as often there
NO_NOTES = 0.25  # the correlation that counts where a stem or the mix plays no notes, or none are known
LENGTH_COST = 0.4  # for each factor e of windows: of more places one fits better by luck alone
DECIMALS = 6  # of a correlation: its last bits depend on which stems are compared at once


def cost_of(speed: float, semitones: int) -> float:
    """What of a stem's score is taken off for playing it so."""
    stretch = abs(float(np.log(speed)))
    if stretch < SAME_TEMPO and semitones == 0:
        return 0.0
    return OTHERWISE_COST + STRETCH_COST * stretch + TRANSPOSE_COST * abs(semitones)


def length_costs(windows: Sequence[int]) -> NDArray[np.float64]:
    """What of stems' scores is taken off for being so long: float64 (n,).

    Args:
        windows: of each stem, in the time base that it is compared in; one at least.
    """
    return LENGTH_COST * np.log(np.asarray(windows, np.float64))


def trait_weights(mix: NDArray[np.float32] | None, keys: Sequence[int]) -> NDArray[np.float32]:
    """For the index, what a stem's traits add to its score, never more than nothing: what of it is taken off for
    harmony and length, and the least for being played in each key.

    Args:
        mix: as for `harmony_costs`.
        keys: of each query, semitones that stems are moved up.

    Returns:
        float32 (keys, TRAITS), see `traits_of`.
    """
    weights = np.zeros((len(keys), TRAITS), np.float32)
    weights[:, LOG_WINDOWS] = -LENGTH_COST
    weights[:, ANY_STEM] = [-HARMONY_COST * (1 - NO_NOTES) - cost_of(1.0, key) for key in keys]
    if mix is not None:
        weights[:, CHROMA] = [HARMONY_COST * np.roll(mix, -key) for key in keys]
        weights[:, HAS_CHROMA] = -HARMONY_COST * NO_NOTES
    return weights


def harmony_costs(
    mix: NDArray[np.float32] | None, stems: Sequence[NDArray[np.float32] | None], keys: Sequence[int]
) -> NDArray[np.float64]:
    """What of stems' scores is taken off for how badly their notes, all through them, go with the mix's.

    Args:
        mix: chroma of the mix, see `harmony.chroma_of`; None: it plays no notes.
        stems: chroma of n stems, likewise.
        keys: semitones that they are moved up, k of them.

    Returns:
        float64 (n, k), 0 to 2 HARMONY_COST.
    """
    correlation = np.full((len(stems), len(keys)), NO_NOTES)
    known = [at for at, stem in enumerate(stems) if stem is not None]
    if known and mix is not None:
        moved_down = np.stack([np.roll(mix, -key) for key in keys], axis=1)  # (12, k)
        told = np.stack([stem for stem in stems if stem is not None], dtype=np.float64) @ moved_down
        correlation[known] = told.round(DECIMALS)
    return HARMONY_COST * (1 - correlation.clip(-1, 1))
