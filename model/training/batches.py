"""What one step of training embeds: anchors, their positives, and decoys, as recorded or in beat time.

As recorded, a batch's windows begin anywhere and last equally long. In beat time they have equally many beats, begin on
a beat of their own track, and are heard as if played at 120 BPM and in another key: no tempo is left to tell them by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from model.audio import SAMPLE_RATE, Waveform
from model.audio.grid import BEAT_TIME_BPM
from model.audio.harmony import tonic_of
from model.audio.stretch import played
from model.cqt import MOST_SEMITONES, BeatClips
from model.device import upload
from model.phalar import PhalarConfig
from model.training.augment import augment
from model.training.examples import (
    Example,
    TooFewTracks,
    draw_decoys,
    draw_examples,
    draw_submixes,
    mix_examples,
    mix_stretches,
)
from model.training.recipe import LossSettings, Recipe
from model.training.stems import StemBank

BEAT_SHIFTS = (1 / 8, 1 / 4, 1 / 2, 1.0, 3 / 2, 2.0, 5 / 2)
"""Beats that a decoy is early or late by: a sixteenth at the least, where the beat is a quarter."""

TEMPO_CHOICE = 2
"""A batch of like tempi is drawn from so many times its size, the nearest."""

STRETCHED = (1.02, 1.12)
"""How many times faster, or slower, a positive is that a stretcher plays."""

_DRAW, _KIND = 0, 6  # what random numbers are for, beside those of train.py
_DECOYS, _STRETCH, _TUNING, _APART = 5, 7, 8, 9


@dataclass(frozen=True, eq=False)
class Batch:
    """Clips of one process: `pairs` anchors, as many positives, then decoys, each of the pair in `decoys_of`.

    `pitched`: in beat time, which anchors and positives play notes.
    """

    clips: Tensor | BeatClips
    pairs: int
    decoys_of: Tensor  # int64 (decoys,)
    pitched: Tensor | None = None  # int64 (2 * pairs,), 1 or 0

    @property
    def sizes(self) -> list[int]:
        return [self.pairs, self.pairs, len(self.decoys_of)]


@dataclass(frozen=True)
class BeatWindow:
    """A submix of a track from some beat on, so many semitones higher."""

    track: int
    first: float  # beat of the track's grid
    beats: int
    stems: tuple[int, ...]
    transpose: int = 0


def draw_batch(
    bank: StemBank,
    tracks: Sequence[int],
    recipe: Recipe,
    step: int,
    seed: Callable[[int, int], int],
    rank: int = 0,
    world: int = 1,
) -> Batch:
    """The batch of a step, on the CPU and before augmentation: every choice follows from the seeds alone.

    Args:
        bank: of the stems.
        tracks: to draw from.
        recipe: of the run.
        step: its number, from 0.
        seed: purpose and number -> a seed.
        rank: this process, of `world`.
        world: how many share the batch.
    """
    rng = np.random.default_rng(seed(_DRAW, step))
    share = recipe.batch // world
    mine = slice(rank * share, (rank + 1) * share)
    most_cents = recipe.augment.tuning_cents
    cents = float(np.random.default_rng(seed(_TUNING, step)).uniform(-most_cents, most_cents))
    if np.random.default_rng(seed(_KIND, step)).random() < recipe.data.matched:
        decoy_rng = np.random.default_rng(seed(_DECOYS, step))
        windows, decoys_of = _draw_beat_windows(bank, tracks, recipe, step, mine, rng, decoy_rng)
        balance_db = recipe.augment.balance_db
        levels_db = [decoy_rng.uniform(-balance_db, balance_db, len(one.stems)) for one in windows]
        gains = [(10 ** (level_db / 20)).tolist() for level_db in levels_db]
        pitched = [any(bank.tracks[one.track].pitched[stem] for stem in one.stems) for one in windows[: 2 * share]]
        clips = beat_clips(bank, windows, gains if balance_db else None)
        if recipe.augment.stretched:
            all_pitched = [all(bank.tracks[one.track].pitched[stem] for stem in one.stems) for one in windows]
            stretch_rng = np.random.default_rng(seed(_STRETCH, step * world + rank))
            clips = stretched(clips, share, recipe.augment.stretched, all_pitched, stretch_rng)
        if cents:
            apart = np.random.default_rng(seed(_APART, step * world + rank)).normal(size=len(clips))
            clips = detuned(clips, cents + recipe.augment.apart_cents * apart)
        return Batch(clips, share, decoys_of, torch.tensor(pitched).long())
    data, loss = recipe.data, recipe.loss
    # Whole hops: lengths that repeat let the CQT's kernels and a GPU's plans be used again.
    seconds = round(float(rng.uniform(data.shortest_s, data.longest_s)), 1)
    length = round(seconds * SAMPLE_RATE)
    examples = draw_examples(bank, tracks, recipe.batch, length, rng, data.unpitched)[mine]
    late: list[Example] = []
    decoy_rng = np.random.default_rng(seed(_DECOYS, step * world + rank))
    if step >= loss.decoys_from:
        shifts = round(loss.nearest_decoy_s * SAMPLE_RATE), round(loss.farthest_decoy_s * SAMPLE_RATE)
        late = draw_decoys(bank, examples, round(loss.decoys * share), length, shifts, decoy_rng)
    anchors, positives = mix_examples(bank, examples, length)
    decoys = mix_examples(bank, late, length)[1]
    as_recorded = torch.cat([anchors, positives, decoys])
    if cents:
        as_recorded = torch.from_numpy(np.stack([resampled(clip, cents) for clip in as_recorded.numpy()]))
    return Batch(as_recorded, share, torch.arange(len(late)))


def stretched(
    clips: BeatClips, pairs: int, part: float, pitched: Sequence[bool], rng: np.random.Generator
) -> BeatClips:
    """The same music from audio that a stretcher played up to 12 % faster or slower and 2 semitones higher or lower.

    Args:
        clips: anchors, then as many positives, then decoys of the first pairs, on the CPU.
        pairs: how many.
        part: of the positives that are played so, each with its decoy.
        pitched: of each clip, whether all that it has plays notes; the others keep their key.
        rng: every choice is drawn from it.
    """
    chosen = rng.random(pairs) < part
    speed = np.exp(rng.uniform(np.log(STRETCHED[0]), np.log(STRETCHED[1]), pairs) * rng.choice([-1, 1], pairs))
    semitones = rng.integers(-2, 3, pairs)
    samples, places, transpose = clips.samples.clone(), clips.places.clone(), clips.transpose.clone()
    waveforms = [clip[:length] for clip, length in zip(clips.waveforms, clips.samples.tolist(), strict=True)]
    for row in range(pairs, len(waveforms)):
        pair = row % pairs
        if not chosen[pair]:
            continue
        higher = int(semitones[pair]) if pitched[row] else 0
        if abs(int(transpose[row]) - higher) > MOST_SEMITONES:
            higher = 0
        length = round(len(waveforms[row]) / speed[pair])
        waveforms[row] = torch.from_numpy(played(waveforms[row].numpy(), length, higher))
        samples[row] = length
        places[row] = (places[row] / speed[pair]).clamp_max(length // PhalarConfig().hop)
        transpose[row] -= higher
    return BeatClips(pad_sequence(waveforms, batch_first=True), samples, places, transpose)


def detuned(clips: BeatClips, cents: NDArray[np.float64]) -> BeatClips:
    """The same music so many cents higher, each clip by itself; its beats stay where they are in beat time."""
    waveforms = [
        torch.from_numpy(resampled(clip[:length].numpy(), float(higher)))
        for clip, length, higher in zip(clips.waveforms, clips.samples.tolist(), cents, strict=True)
    ]
    samples = torch.tensor([len(waveform) for waveform in waveforms])
    faster = torch.from_numpy(2 ** (cents / 1200)).float()[:, None]
    places = torch.minimum(clips.places / faster, (samples // PhalarConfig().hop)[:, None])
    return BeatClips(pad_sequence(waveforms, batch_first=True), samples, places, clips.transpose)


def resampled(waveform: Waveform, cents: float) -> Waveform:
    """A waveform so many cents higher, and that much faster, as a tape would be."""
    higher = soxr.resample(waveform, SAMPLE_RATE * 2 ** (cents / 1200), SAMPLE_RATE, quality="MQ")
    return np.asarray(higher, dtype=np.float32)


def augmented(batch: Batch, recipe: Recipe, device: torch.device, seed: int) -> Batch:
    """The batch on a device, with gain, noise and tone of its own made there; the host waits for nothing."""
    generator = torch.Generator().manual_seed(seed)
    clips = batch.clips
    if isinstance(clips, Tensor):
        heard: Tensor | BeatClips = augment(upload(clips, device), recipe.augment, generator)
    else:
        samples = clips.samples
        clips = clips.on(device)
        heard = replace(clips, waveforms=augment(clips.waveforms, recipe.augment, generator, samples))
    pitched = None if batch.pitched is None else upload(batch.pitched, device)
    return Batch(heard, batch.pairs, upload(batch.decoys_of, device), pitched)


def embed_in_passes(model: nn.Module, clips: Tensor | BeatClips, each: int, half: bool, keys: int = 0) -> Tensor:
    """Embed clips, so many at once.

    Args:
        model: of `build_model`.
        clips: float32 (n, samples), or n clips in beat time.
        each: at once; 0: all.
        half: multiply in bfloat16, where autocast finds that safe.
        keys: of clips in beat time, each key up to so many semitones away too.

    Returns:
        (n, ...), complex64 or float32 in either case: scores are computed in full precision; with keys (n, keys, ...).
    """
    device = clips.device if isinstance(clips, Tensor) else clips.waveforms.device
    with torch.autocast(device.type, dtype=torch.bfloat16) if half else nullcontext():
        embed = model if isinstance(clips, Tensor) else cast(Any, model).in_beat_time
        if keys and isinstance(clips, BeatClips):
            embed = partial(embed, keys=keys)
        embedded = torch.cat([embed(part) for part in clips.split(each or len(clips))])
    return embedded if embedded.is_complex() else embedded.float()


class Ahead:
    """What each step needs, made in threads while earlier steps are taken: a step's number says all that is in it."""

    def __init__(self, make: Callable[[int], Batch], steps: int) -> None:
        self._make = make
        self._steps = steps  # ahead
        self._pool: ThreadPoolExecutor | None = None
        self._made: dict[int, Future[Batch]] = {}

    def of(self, step: int) -> Batch:
        """The batch of this step; those after it are begun. Raises what making it raised."""
        if self._pool is None:  # no thread before there is work for it
            self._pool = ThreadPoolExecutor(self._steps, thread_name_prefix="batches")
        for number in range(step, step + self._steps + 1):
            if number not in self._made:
                self._made[number] = self._pool.submit(self._make, number)
        self._made = {number: batch for number, batch in self._made.items() if number >= step}
        return self._made.pop(step).result()

    def close(self) -> None:
        """Let go of what was made for steps that are not taken."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        self._made.clear()


def _draw_beat_windows(
    bank: StemBank,
    tracks: Sequence[int],
    recipe: Recipe,
    step: int,
    mine: slice,
    rng: np.random.Generator,
    decoy_rng: np.random.Generator,
) -> tuple[list[BeatWindow], Tensor]:
    """This process's anchors, positives and decoys, and the pair of each decoy."""
    data, loss = recipe.data, recipe.loss
    beats = int(rng.integers(data.fewest_beats, data.most_beats + 1))
    one_key = int(rng.integers(12)) if rng.random() < data.one_key and data.semitones else None
    pairs: list[tuple[BeatWindow, BeatWindow]] = []
    drawn = rng.permutation(np.asarray(tracks, dtype=np.int64))
    if data.one_tempo and rng.random() < data.one_tempo:
        nearest, near = _of_like_tempo(bank, drawn), TEMPO_CHOICE * recipe.batch
        drawn = np.concatenate([rng.permutation(nearest[:near]), nearest[near:]])  # not each of them has a pair
    for track in drawn:
        if len(pairs) == recipe.batch:
            break
        pair = draw_beat_pair(bank, int(track), beats, rng, data.semitones, one_key, data.unpitched)
        if pair is not None:
            pairs.append(pair)
    if len(pairs) < recipe.batch:
        window = f"a beat grid and a window of {beats} beats in which two stems sound"
        raise TooFewTracks(len(pairs), len(tracks), window, recipe.batch)
    # Drawn for the whole batch, so that they are the same for any number of processes.
    rows = [
        (anchor, positive, draw_beat_decoy(bank, anchor, positive, loss, data.semitones, decoy_rng))
        for anchor, positive in pairs
    ]
    anchors, positives, decoys = zip(*rows[mine], strict=True)
    count = round(loss.beat_decoys * len(anchors)) if step >= loss.decoys_from else 0
    return [*anchors, *positives, *decoys[:count]], torch.arange(count)


def _of_like_tempo(bank: StemBank, tracks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tracks with a grid, by how near the tempo of the first of them, octaves folded."""
    tempi = {track: grid.tempo_bpm for track in tracks.tolist() if (grid := bank.tracks[track].grid) is not None}
    octaves = np.log2(list(tempi.values()))
    apart = np.abs(octaves - octaves[:1]) % 1
    return np.array([*tempi], dtype=np.int64)[np.argsort(np.minimum(apart, 1 - apart), kind="stable")]


def draw_beat_pair(
    bank: StemBank,
    track: int,
    beats: int,
    rng: np.random.Generator,
    semitones: int = 0,
    one_key: int | None = None,
    unpitched: float = 0.0,
) -> tuple[BeatWindow, BeatWindow] | None:
    """An anchor and its positive on a beat of their track, in another key; None where ten beats have no two stems.

    Args:
        bank: of the stems.
        track: by its place in the bank; one without a grid gives None.
        beats: of the window.
        rng: every choice is drawn from it.
        semitones: another key, up to so far up or down.
        one_key: the pitch class that the key's major (or relative major) tonic shall become, where the key is known.
        unpitched: see `draw_submixes`.
    """
    banked = bank.tracks[track]
    if banked.grid is None:
        return None
    starts = banked.grid.starts(beats, banked.samples / SAMPLE_RATE)
    for _ in range(10 if len(starts) else 0):
        first = int(rng.choice(starts))
        begin, end = (banked.grid.seconds_at(np.array([first, first + beats])) * SAMPLE_RATE).astype(int)
        submixes = draw_submixes(bank.audible(track, int(begin), int(end - begin)), rng, banked.pitched, unpitched)
        if submixes is None:
            continue
        transpose = int(rng.integers(-semitones, semitones + 1))
        tonic = tonic_of(banked.key) if banked.key is not None else None
        if one_key is not None and tonic is not None:
            transpose = (one_key - tonic + 5) % 12 - 5  # -5 to 6
        anchor, positive = (BeatWindow(track, first, beats, stems, transpose) for stems in submixes)
        return anchor, positive
    return None


def draw_beat_decoy(
    bank: StemBank,
    anchor: BeatWindow,
    positive: BeatWindow,
    loss: LossSettings,
    semitones: int,
    rng: np.random.Generator,
) -> BeatWindow:
    """A positive at another beat or, where both sides play notes, in another key: the same sound, where it does not
    fit."""
    banked = bank.tracks[positive.track]
    pitched = all(any(banked.pitched[stem] for stem in side.stems) for side in (anchor, positive))
    if pitched and semitones and rng.random() < loss.key_decoys:
        reach = range(-semitones, semitones + 1)
        keys = [key for key in reach if 0 < abs(key - positive.transpose) <= semitones]
        return replace(positive, transpose=int(rng.choice(keys)))
    assert banked.grid is not None
    shift = float(rng.choice(BEAT_SHIFTS))
    places = [positive.first + sign * shift for sign in rng.permutation([-1, 1])]
    ends = [banked.grid.seconds_at(np.array([place, place + positive.beats])) for place in places]
    fitting = [
        place
        for place, (begin, end) in zip(places, ends, strict=True)
        if begin >= 0 and end * SAMPLE_RATE <= banked.samples
    ]
    # A track hardly longer than its window: what lies beyond its ends is silence.
    first = fitting[0] if fitting else places[0]
    return replace(positive, first=first)


def beat_clips(
    bank: StemBank, windows: Sequence[BeatWindow], gains: Sequence[Sequence[float]] | None = None
) -> BeatClips:
    """Mix windows of one number of beats, on the CPU; `gains` as for `mix_stretches`."""
    config = PhalarConfig()
    frame_s = config.hop / SAMPLE_RATE
    beats = windows[0].beats
    frames = 1 + round(beats * 60 / BEAT_TIME_BPM / frame_s)
    steps = np.linspace(0.0, beats, frames)
    starts = np.empty(len(windows), dtype=np.int64)
    lengths = np.empty(len(windows), dtype=np.int64)
    places = np.empty((len(windows), frames), dtype=np.float32)
    for row, window in enumerate(windows):
        assert window.beats == beats
        grid = bank.tracks[window.track].grid
        assert grid is not None
        seconds: NDArray[np.float64] = grid.seconds_at(window.first + steps)
        starts[row] = round(float(seconds[0]) * SAMPLE_RATE)
        lengths[row] = round(float(seconds[-1] - seconds[0]) * SAMPLE_RATE)
        last = lengths[row] // config.hop  # the last frame that the clip's own length has
        places[row] = np.minimum((seconds - seconds[0]) / frame_s, last)
    stretches = [(window.track, int(start), window.stems) for window, start in zip(windows, starts, strict=True)]
    return BeatClips(
        mix_stretches(bank, stretches, int(lengths.max()), gains),
        torch.from_numpy(lengths),
        torch.from_numpy(places),
        torch.tensor([window.transpose for window in windows]),
    )
