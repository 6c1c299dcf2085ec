"""How right the place, the speed and the key are in which a missing stem was found."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexer import Place
from model.audio import SAMPLE_RATE
from model.audio.grid import same_tempo
from model.evaluation.retimed import RetimedBank
from model.training.stems import StemBank

Waveform = NDArray[np.float32]

SAME_SPEED = 0.005  # as a share; half and double are one

ALIKE = 0.999
"""Normalised correlation from which two stretches of a stem are the same audio."""

ALIKE_REACH_S = 0.1
"""How far around a hit's place the same audio is looked for."""


@dataclass(frozen=True)
class Query:
    """A track, the stem that is missing, those that are mixed, and where the mix is cut."""

    track: int
    missing: int  # stems, by their row in the bank
    mixed: tuple[int, ...]
    start: int  # sample, anywhere
    on_grid: int  # sample, where a window of the catalog starts, as near as can be


@dataclass(frozen=True)
class JudgedPlace:
    """How right the place is at which the missing stem was found."""

    error_ms: float
    alike_ms: float  # the same, a place where the stem sounds the same being as right
    off_beat_ms: float | None  # from lying whole beats beside the right place; None: its track has no steady tempo
    beat_ms: float | None
    speed_right: bool
    transpose_right: bool | None  # None: it plays no notes


def judge_place(
    bank: StemBank, held: StemBank | RetimedBank, query: Query, start: int, length: int, place: Place
) -> JudgedPlace:
    """How right a place is that a search found for the missing stem of a query.

    Args:
        bank: that the mix was cut from.
        held: that the catalog holds, with the same tracks.
        query: the track, and the stem.
        start, length: of the mix, samples of the bank's track.
        place: in the stem as the catalog holds it, whose seconds all figures are told in.
    """
    speed, transpose = 1.0, 0
    if isinstance(held, RetimedBank):
        speed, transpose = held.speed[query.track], held.transpose[query.track]
    stem, right = held.waveforms(query.track)[query.missing], start / speed
    error_ms, alike_ms = place_errors_ms(stem, round(right), round(length / speed), place.start_s)
    off_beat_ms = beat_ms = None
    if (grid := bank.tracks[query.track].grid) is not None:
        apart = np.diff(grid.beats_at(np.array([start / SAMPLE_RATE, place.start_s * speed])))[0]
        beat_ms = 60_000 / grid.tempo_bpm / speed
        off_beat_ms = float(abs(apart - round(apart))) * beat_ms
    pitched = bank.tracks[query.track].pitched[query.missing]
    return JudgedPlace(
        error_ms=error_ms,
        alike_ms=alike_ms,
        off_beat_ms=off_beat_ms,
        beat_ms=beat_ms,
        speed_right=bool(same_tempo(place.speed, 1 / speed, SAME_SPEED)),
        transpose_right=place.transpose == -transpose if pitched else None,
    )


def place_errors_ms(stem: Waveform, start: int, length: int, found_s: float) -> tuple[float, float]:
    """How far a place is from the right one, and from the nearest place that sounds the same.

    Music repeats: where the stem brings the very audio that is missing (correlation 0.999 over the whole mix), a user
    has nothing to complain of.

    Args:
        stem: float32 (samples,), 16 kHz.
        start: first sample of the cut.
        length: samples of the cut.
        found_s: second of the stem that a hit lays under the mix's beginning; may be negative.

    Returns:
        Milliseconds, both; the second is the first where nothing alike sounds within 100 ms.
    """
    error_ms = abs(found_s - start / SAMPLE_RATE) * 1000
    reach, first = round(ALIKE_REACH_S * SAMPLE_RATE), round(found_s * SAMPLE_RATE)
    wanted = stem[start : start + length].astype(np.float64)
    begin, end = first - reach, first + length + reach
    inside = stem[max(0, begin) : max(0, end)]
    around = np.zeros(length + 2 * reach)  # silence beyond the stem's ends
    around[max(0, -begin) :][: len(inside)] = inside
    size = len(around) + length
    products = np.fft.irfft(np.fft.rfft(around, size) * np.conj(np.fft.rfft(wanted, size)), size)[: 2 * reach + 1]
    energy = np.concatenate([[0.0], np.cumsum(around**2)])
    norms = np.sqrt(np.maximum(0.0, energy[length:] - energy[:-length])) * np.linalg.norm(wanted)
    lags = np.flatnonzero(products >= ALIKE * np.maximum(norms, 1e-9)) - reach
    alike_ms = float(np.abs(lags).min()) / SAMPLE_RATE * 1000 if len(lags) else error_ms
    return error_ms, min(error_ms, alike_ms)
