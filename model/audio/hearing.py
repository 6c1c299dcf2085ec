"""What is heard in a clip, from its CQT: a steady tempo with its beats, its key, and whether it plays notes.

Tempi are heard in sequenced music, which keeps its tempo: what drifts is said to have none.
"""

from __future__ import annotations

from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from model.audio.beat_phase import QUARTERS, beat_curves, beat_quarter, rises
from model.audio.grid import LOWEST_BPM, Grid, same_tempo
from model.audio.harmony import HEARD_PROFILES, key_fits, key_name
from model.audio.windows import SAMPLE_RATE, Waveform
from model.cqt import ScaledCQT, scale_decibels
from model.phalar import PhalarConfig

MULTIPLES = (0.25, 0.5, *range(1, 17))
"""Of a beat, at which onsets must meet again: they tell tempi apart that one beat could not."""

POWER_OF_TWO = 3.0
"""Quarters, halves, two, four, eight and sixteen beats count so many times: bars and phrases are made of them, and
they tell a beat from its two thirds."""

LEAST_BEATS = 8
"""A clip that is shorter than so many beats of the slowest tempo tells no tempo."""

TEMPO_STEP = 2.5e-4
"""Candidates lie so far apart, as a share: over 16 beats that is two milliseconds."""

LEAST_STEADY = 0.05
"""The mean correlation at a tempo's multiples that counts as steady: 24 s of noise reach 0.03, 8 s of it 0.05."""

ANOTHER_TEMPO = 0.04
"""Candidates that differ by less, as a share and octaves folded, are one."""

RANGE_DB = 60.0
"""What lies further under a clip's loudest counts as silence: quieter rises tell no beat."""

RISE_FRAMES = 2
"""An onset is a rise over so many frames: one alone misses half of a slow attack."""

LOWEST_RISING_BIN = 36
"""From 131 Hz on: the kernels below last over an eighth of a second, and put onsets too early."""

PHASE_STEP_S = 1e-3

SAID_WITHIN = 0.005
"""How far a said tempo may be off, as a share: names and tags hold whole numbers."""

NEIGHBOURS = 3
"""A bin is compared with so many on either side of it: with the median of seven."""

EXCHANGES = ((0, 5), (0, 3), (1, 6), (2, 4), (0, 1), (3, 5), (2, 6), (2, 3), (3, 6), (4, 5), (1, 4), (1, 3), (3, 4))
"""A network that brings the median of seven into the middle: torch's own median takes ten times as long."""

HELD_FRAMES = 5
"""A note stands out for so long in one bin; a drum's sweep does not."""

LEAST_CONTRAST_DB = 10.0
"""How far the bin that does so most stands above its neighbours, usually, where notes are played: so 96 % of 446
rendered stems were told right, and all drums of 100 composed tracks."""

PITCHED_SECONDS = 20.0
"""Whether a clip plays notes is heard in its loudest so many."""


@lru_cache(maxsize=1)
def _cqt() -> ScaledCQT:
    config = PhalarConfig()
    return ScaledCQT(config.cqt, config.dynamic_range_db)


FRAME_S = PhalarConfig().hop / SAMPLE_RATE


class Hearing:
    """Hears in one clip, whose CQT is computed once, whatever is asked.

    Args:
        waveform: float32 (samples,) at 16 kHz. Of one no longer than the CQT's padding nothing is heard.
    """

    def __init__(self, waveform: Waveform) -> None:
        with torch.inference_mode():
            if len(waveform) > _cqt().padding:
                self.magnitude = _cqt().magnitude(torch.from_numpy(np.ascontiguousarray(waveform))[None])[0]
            else:
                self.magnitude = torch.zeros(PhalarConfig().bins, 0)  # (bins, frames)

    @cached_property
    def decibels(self) -> Tensor:
        """Of the CQT, cut off RANGE_DB under its loudest, and as many to one: float32 (bins, frames)."""
        with torch.inference_mode():
            return scale_decibels(self.magnitude[None], RANGE_DB)[0]

    def onset_strength(self) -> NDArray[np.float64]:
        """How much louder the bins became, frame by frame, about zero: (frames,), a frame being the CQT's hop."""
        frames = self.magnitude.shape[1]
        if frames <= RISE_FRAMES:
            return np.zeros(frames)
        with torch.inference_mode():
            rise = rises(self.decibels[LOWEST_RISING_BIN:], RISE_FRAMES)
        rise = np.concatenate([np.zeros(RISE_FRAMES), rise])
        return np.asarray(rise - rise.mean())

    def grids(self, tempo_bpm: float | None = None, most: int = 1) -> list[Grid]:
        """The beats of a clip of steady tempo, by the likeliest tempi, best first.

        Args:
            tempo_bpm: that somebody said; then only its beats are heard for, within SAID_WITHIN of it. None: any.
            most: so many tempi, which differ by ANOTHER_TEMPO, octaves folded.

        Returns:
            Grids over the whole clip, source "heard"; the first one's steadiness is how far its tempo is ahead of the
            next, 0 to 1, the others have none. Empty for a clip that is too short, or has no steady tempo.
            Half and double tempo are one, two thirds are not: there the first may err.
        """
        slowest = 60.0 / LOWEST_BPM / FRAME_S  # frames
        onsets = self.onset_strength()
        if not onsets.any() or (tempo_bpm is None and len(onsets) < LEAST_BEATS * slowest):
            return []
        periods = slowest / 2 * np.exp(np.arange(0.0, np.log(2.0), TEMPO_STEP))
        if tempo_bpm is not None:
            said = 60.0 / tempo_bpm / FRAME_S
            said *= 2.0 ** -np.floor(np.log2(said / (slowest / 2)))
            periods = said * np.exp(np.arange(-SAID_WITHIN, SAID_WITHIN, TEMPO_STEP))
        correlation = _correlation(onsets)
        agreement = _agreement(correlation, periods)
        found = _peaks(agreement, periods, most + 1)
        if tempo_bpm is None and agreement[found[0]] < LEAST_STEADY:
            return []
        grids, curves = [], beat_curves(onsets, self.decibels)
        for place, following in zip(found[:most], [*found[1:], None], strict=False):
            period = _refined(correlation, float(periods[place]))
            if agreement[place] > 0 and len(onsets) >= 2 * period:
                lead = 1.0 - max(0.0, agreement[following] / agreement[place]) if following is not None else 1.0
                phase = _phase(onsets, period)
                phase = (phase + beat_quarter(curves, phase, period) * period / QUARTERS) % period
                beats = (phase + np.arange(len(onsets) / period) * period) * FRAME_S
                grids.append(Grid(beats, "heard", float(lead) if place == found[0] else 0.0))
        return grids

    def grid(self, tempo_bpm: float | None = None) -> Grid | None:
        """The first of `grids`; None where there is none."""
        return next(iter(self.grids(tempo_bpm)), None)

    @cached_property
    def pitch_classes(self) -> NDArray[np.float64]:
        """For how many frames each pitch class sounds, from C upwards: (12,); 0 where nothing does."""
        magnitude = self.magnitude
        # Notes are peaks among the bins; each moment counts alike, however loud. Bins begin with C.
        inner = magnitude[1:-1]
        peaks = torch.where((inner > magnitude[:-2]) & (inner > magnitude[2:]), inner, 0.0)
        peaks = functional.pad(peaks, (0, 0, 1, 1))
        level = peaks.sum(dim=0)
        if not bool(level.any()):
            return np.zeros(12)
        notes = peaks / (level + 1e-3 * level.max()).clamp_min(1e-20)
        return np.asarray(notes[: len(notes) // 12 * 12].sum(dim=1).double().reshape(-1, 12).sum(dim=0).numpy())

    def key(self) -> tuple[str, float] | None:
        """The key of a clip that plays notes, and how far it is ahead of the next that is not its relative: 0 to 1.

        Such as ("F# minor", 0.2); None where every pitch class sounds alike, or nothing is long enough.
        """
        fits = key_fits(self.pitch_classes, HEARD_PROFILES)
        if not fits:
            return None
        tonic, mode = max(fits, key=lambda key: fits[key])
        relative = ((tonic + (9 if mode == "major" else 3)) % 12, "minor" if mode == "major" else "major")
        others = max(fit for key, fit in fits.items() if key not in ((tonic, mode), relative))
        return key_name(tonic, mode), float(np.clip(fits[tonic, mode] - others, 0.0, 1.0))

    def is_pitched(self) -> bool:
        """Whether a clip plays notes, so that another key would change it, rather than drums."""
        magnitude = self._loudest()[PhalarConfig().bins_per_octave * 2 :]  # from 65 Hz on
        if magnitude.shape[1] < HELD_FRAMES:
            return False
        decibels = 20 * torch.log10(magnitude.clamp_min(1e-10))
        decibels = torch.maximum(decibels, decibels.max() - RANGE_DB)
        held = -functional.max_pool1d(_median_around(decibels) - decibels, HELD_FRAMES, stride=1)  # least in so many
        contrast = held.amax(dim=0)
        power = magnitude.square().sum(dim=0)[HELD_FRAMES // 2 : len(contrast) + HELD_FRAMES // 2]
        return float((contrast * power).sum() / power.sum().clamp_min(1e-20)) > LEAST_CONTRAST_DB

    def _loudest(self) -> Tensor:
        """The magnitudes of the loudest PITCHED_SECONDS."""
        most = round(PITCHED_SECONDS / FRAME_S)
        if self.magnitude.shape[1] <= most:
            return self.magnitude
        power = functional.pad(self.magnitude.square().sum(dim=0).double().cumsum(dim=0), (1, 0))
        start = int((power[most:] - power[:-most]).argmax())
        return self.magnitude[:, start : start + most]


def _median_around(decibels: Tensor) -> Tensor:
    """Of each bin and its neighbours, the first and the last bin going on beyond the ends: (bins, frames)."""
    padded = functional.pad(decibels.T[:, None], (NEIGHBOURS, NEIGHBOURS), mode="replicate")[:, 0].T.contiguous()
    near = [padded[at : at + len(decibels)] for at in range(2 * NEIGHBOURS + 1)]
    for one, other in EXCHANGES:
        near[one], near[other] = torch.minimum(near[one], near[other]), torch.maximum(near[one], near[other])
    return near[NEIGHBOURS]


def _correlation(onsets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the onsets with themselves, so many frames later: (frames,), 1 at 0."""
    n = len(onsets)
    spectrum = np.fft.rfft(onsets, n=2 * n)
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)[:n] / np.arange(n, 0, -1)  # by the overlap
    return np.asarray(correlation / correlation[0])


def _agreement(correlation: NDArray[np.float64], periods: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weighted mean correlation at the multiples of each period, (periods,)."""
    lags = periods[:, None] * MULTIPLES
    weights = np.where(np.log2(MULTIPLES) % 1 == 0, POWER_OF_TWO, 1.0) * (lags < _far(correlation))
    at = np.interp(lags, np.arange(len(correlation)), correlation)
    return np.asarray((at * weights).sum(axis=1) / weights.sum(axis=1))


def _far(correlation: NDArray[np.float64]) -> float:
    """Frames; further out few onsets overlap."""
    return 0.75 * len(correlation)


def _peaks(agreement: NDArray[np.float64], periods: NDArray[np.float64], most: int) -> list[int]:
    """The places of the best periods, best first, each of another tempo than those before."""
    left, found = agreement.copy(), []
    for _ in range(most):
        place = int(np.argmax(left))
        if left[place] == -np.inf:
            break
        found.append(place)
        left[same_tempo(periods, periods[place], ANOTHER_TEMPO)] = -np.inf
    return found


def _refined(correlation: NDArray[np.float64], period: float) -> float:
    """A period, frames, by all of its multiples: the far ones tell it to a hundred thousandth."""
    multiples = np.arange(1, max(2, int(_far(correlation) / period)))
    off = np.arange(-2 * TEMPO_STEP, 2 * TEMPO_STEP, 0.25 / (multiples[-1] * period))  # a quarter of a frame there
    periods = period * np.exp(off)
    at = np.interp(periods[:, None] * multiples, np.arange(len(correlation)), correlation)
    return float(periods[int(np.argmax(at.sum(axis=1)))])


def _phase(onsets: NDArray[np.float64], period: float) -> float:
    """The first beat, frames: where a comb of this period gathers most; between its beats, half counts."""
    phases = np.arange(0.0, period, PHASE_STEP_S / FRAME_S)
    teeth = phases[:, None] + np.arange(len(onsets) / period) * period
    gathered = np.interp(teeth, np.arange(len(onsets)), onsets, right=0.0).sum(axis=1)
    return float(phases[int(np.argmax(gathered + np.roll(gathered, len(phases) // 2) / 2))])
