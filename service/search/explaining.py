"""Why a stem fits a mix: what is left of its score where a part of it is taken away, or where it lies elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from indexer import HermitianFold
from model.audio import SAMPLE_RATE, SilentClip, Windows
from model.audio.grid import BEAT_TIME_BPM, FEWEST_BEATS, FRAMES_A_BEAT, WINDOW_BEATS, Grid
from model.cqt import MOST_SEMITONES
from model.phalar import PhalarConfig
from service.search.retrieval import Embedder

Waveform = NDArray[np.float32]

KEYS = tuple(range(-MOST_SEMITONES, MOST_SEMITONES + 1))
SHIFTS = (-2.0, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0)  # beats; negative: earlier
FADE_S = 0.01  # around what is silenced, so that no click is heard


class NothingTogether(SilentClip):
    says = "Mix and stem sound nowhere at the same time."


@dataclass(frozen=True)
class Explanation:
    """Scores of one window of a mix with a stem, changed in one thing each. Seconds are those of the mix.

    `keys`: by semitones up from how it is played. `shifts`: by beats late. `octaves`: by the lowest frequency of each,
    Hz, what the score loses without it. `parts`: by the second that each begins at, beat by beat, the same.
    """

    score: float
    from_s: float
    to_s: float
    keys: dict[int, float]
    shifts: dict[float, float]
    octaves: dict[float, float]
    parts: dict[float, float]

    @property
    def pitch(self) -> float:
        """How much higher it scores in its key than in the mean of the others."""
        return self.score - float(np.mean([score for key, score in self.keys.items() if key]))

    @property
    def rhythm(self) -> float:
        """How much higher it scores on its beat than in the mean of the others."""
        return self.score - float(np.mean([score for shift, score in self.shifts.items() if shift]))


async def explain(
    fold: HermitianFold,
    fingerprint: str,
    embedder: Embedder,
    mix: Waveform,
    stem: Waveform,
    grid: Grid | None,
    deadline_s: float,
) -> Explanation:
    """Take one window of a mix, where both are loud, and score the stem against it as it is and changed.

    Args:
        fold, fingerprint: of the index that answered.
        embedder: embeds some 30 windows by that model.
        mix, stem: float32 (samples,), 16 kHz, of one length: the stem as it sounds with the mix.
        grid: of the mix; None: windows of 5 s, and beats of half a second, as at 120 BPM.
        deadline_s: seconds that it may take.

    Raises:
        NothingTogether: nowhere do both sound.
        QueueError: not now.
    """
    beat_s = 60 / (grid.tempo_bpm if grid is not None else BEAT_TIME_BPM)
    beats = min(WINDOW_BEATS, max(FEWEST_BEATS, int(len(mix) / SAMPLE_RATE / beat_s)))
    start, beat = _window(mix, stem, grid, beats, beat_s), round(beat_s * SAMPLE_RATE)
    length = min(beats * beat, len(mix) - start)
    reach = round(max(SHIFTS) * beat)
    around = np.pad(stem, reach)[start : start + length + 2 * reach]  # so that the window begins at `reach`
    window = around[reach : reach + length]
    config = PhalarConfig()
    octaves = [config.lowest_hz * 2.0**octave for octave in range(config.bins // config.bins_per_octave)]
    cuts = np.linspace(0, length, beats + 1).round().astype(int)
    changed = [_without_band(window, low, 2 * low) for low in octaves]
    changed += [_without(window, begin, end) for begin, end in pairwise(cuts)]

    whole = np.concatenate([mix[start : start + length], around, *changed])
    shifted = [length + reach - round(shift * beat) for shift in SHIFTS]
    after = length + len(around)
    starts = np.array([0, *shifted, *(after + at * length for at in range(len(changed)))], np.int64)
    laid = Windows(starts, np.full(len(starts), length, np.int64), 1 + beats * FRAMES_A_BEAT)
    own = Windows(np.zeros(1, np.int64), laid.lengths[:1], laid.frames, semitones=MOST_SEMITONES)
    embedding = await embedder.embed(fingerprint, whole, laid, deadline_s)
    in_keys = await embedder.embed(fingerprint, window, own, deadline_s)
    scores = fold.scores(embedding[:1], embedding[1:])[0].tolist()
    shifts = dict(zip(SHIFTS, scores, strict=False))
    score = shifts[0.0]
    moved = fold.scores(embedding[:1], in_keys.reshape(len(KEYS), -1))[0].tolist()
    keys = dict(zip(KEYS, moved, strict=True)) | {0: score}
    lost = [score - less for less in scores[len(SHIFTS) :]]
    begins = [(start + int(cut)) / SAMPLE_RATE for cut in cuts]
    parts = dict(zip(begins[:-1], lost[len(octaves) :], strict=True))
    return Explanation(score, begins[0], begins[-1], keys, shifts, dict(zip(octaves, lost, strict=False)), parts)


def _window(mix: Waveform, stem: Waveform, grid: Grid | None, beats: int, beat_s: float) -> int:
    """The sample that the window begins at: on a beat, and where the weaker of both is loudest."""
    if grid is None:
        first = np.arange(0.0, len(mix) / SAMPLE_RATE, beat_s)
    else:
        first = grid.seconds_at(np.arange(len(mix) / SAMPLE_RATE // beat_s + 1) - grid.beats_s[0] // beat_s)
    starts = np.round(first * SAMPLE_RATE).astype(int)
    fitting = starts[(starts >= 0) & (starts + round(beats * beat_s * SAMPLE_RATE) <= len(mix) + SAMPLE_RATE // 50)]
    if not len(fitting):
        fitting = np.zeros(1, int)
    length = round(beats * beat_s * SAMPLE_RATE)
    energy = [min(float(np.square(x[at : at + length]).sum()) for x in (mix, stem)) for at in fitting]
    if max(energy) <= 0:
        peak = min(float(np.abs(x).max()) for x in (mix, stem))
        raise NothingTogether(peak_db=float(20 * np.log10(max(1e-10, peak))), floor_db=-80.0)
    return int(fitting[int(np.argmax(energy))])


def _without_band(waveform: Waveform, low_hz: float, high_hz: float) -> Waveform:
    """A waveform without one band of frequencies."""
    spectrum = np.fft.rfft(waveform)
    hz = np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE)
    spectrum[(hz >= low_hz * 2 ** (-1 / 24)) & (hz < high_hz * 2 ** (-1 / 24))] = 0  # bins lie a semitone apart
    return np.fft.irfft(spectrum, len(waveform)).astype(np.float32)


def _without(waveform: Waveform, begin: int, end: int) -> Waveform:
    """A waveform that is silent from one sample to another."""
    gain = np.ones(len(waveform) + 2, np.float32)
    gain[begin + 1 : end + 1] = 0
    fade = round(FADE_S * SAMPLE_RATE)
    smooth = np.convolve(np.pad(gain, fade, mode="edge"), np.ones(2 * fade + 1, np.float32) / (2 * fade + 1), "valid")
    return waveform * np.minimum(gain, smooth.astype(np.float32))[1:-1]
