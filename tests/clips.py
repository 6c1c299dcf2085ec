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


def riff(seed: int, tempo_bpm: float, beats: int = 32) -> Waveform:
    """Clicks on the beats and a bar of notes over and over, the same of one seed at any tempo."""
    rng = np.random.default_rng(seed)
    out = clicks(tempo_bpm, beats * 60 / tempo_bpm)
    time_s = np.arange(round(0.4 * SAMPLE_RATE)) / SAMPLE_RATE
    for sixteenth in rng.choice(16, 8, replace=False):
        note = 0.2 * np.exp(-10 * time_s) * np.sin(2 * np.pi * 110 * 2 ** (rng.integers(0, 36) / 12) * time_s)
        for beat in np.arange(sixteenth / 4, beats, 4):
            at = round(beat * 60 / tempo_bpm * SAMPLE_RATE)
            part = out[at : at + len(note)]
            part += note[: len(part)].astype(np.float32)
    return out
