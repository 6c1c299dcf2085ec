"""Clips that tests make."""

import numpy as np

from model.audio import SAMPLE_RATE, Waveform


def clicks(tempo_bpm: float, seconds: float, first_s: float = 0.0) -> Waveform:
    """A burst of noise on every beat."""
    rng = np.random.default_rng(0)
    out = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    burst = rng.normal(0, 0.3, 800).astype(np.float32) * np.linspace(1, 0, 800, dtype=np.float32)
    for at in np.arange(first_s, seconds - 0.05, 60 / tempo_bpm):
        begin = round(at * SAMPLE_RATE)
        out[begin : begin + 800] += burst
    return out
