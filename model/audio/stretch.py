"""Audio at another tempo and in another key, by Signalsmith's stretch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from python_stretch import Signalsmith

from model.audio import SAMPLE_RATE, Waveform


def played(waveform: Waveform, samples: int, semitones: float) -> Waveform:
    """A waveform as if it were played in another time and key, by Signalsmith's stretch; its beginning stays in place.

    Args:
        waveform: float32 (n,), 16 kHz.
        samples: how long it shall be; n / samples is how many times faster it is played.
        semitones: up, or down where negative.

    Returns:
        float32 (samples,). Onsets lie within 2 ms of where the speed puts them.
    """
    stretch = Signalsmith.Stretch()
    stretch.preset(1, SAMPLE_RATE)
    stretch.setTransposeSemitones(semitones)
    stretch.timeFactor = len(waveform) / samples
    given = np.array(waveform, np.float32, order="C", ndmin=2)  # it misreads views, and refuses what is read-only
    answered: NDArray[np.float32] = np.asarray(stretch.process(given))[0, :samples]
    return np.pad(answered, (0, samples - len(answered)))
