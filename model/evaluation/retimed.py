"""Tracks as if they had been recorded at another tempo and in another key, as most of a catalog's music was."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.audio import Waveform
from model.audio.grid import Grid, folded
from model.audio.harmony import key_name, tonic_of
from model.audio.hearing import Hearing
from model.audio.stretch import played
from model.evaluation.retrieval import draw_rng
from model.training.stems import BankedTrack, StemBank

SPEEDS = (1.04, 1.12)
"""How many times faster a track is played, or how many times slower."""

SEMITONES = (-2, -1, 1, 2)

_FORMAT = 1  # of what the cache holds


class RetimedBank:
    """A bank whose tracks are each played faster or slower, and higher or lower, all stems of one alike.

    Drums, and whatever else plays no notes, keep their pitch. A track's change is drawn by the seed and its name, so it
    depends on no other track. The places of tracks are those of the bank, and what can be asked of one is the same.
    Audio is stretched when it is first asked for.
    """

    def __init__(self, bank: StemBank, cache: Path, seed: int = 0) -> None:
        """`cache`: a folder where stretched stems are kept, by what they were made of."""
        self.recorded = bank
        self._cache = cache
        drawn = [_draw(seed, track.name) for track in bank.tracks]
        self.speed = tuple(speed for speed, _ in drawn)
        """By track: how many times faster it is played than it was recorded."""
        self.transpose = tuple(semitones for _, semitones in drawn)
        """By track: semitones by which its pitched stems sound higher."""
        self.tracks = tuple(_retimed(track, *change) for track, change in zip(bank.tracks, drawn, strict=True))
        self._opened: dict[int, NDArray[np.int16]] = {}

    def waveforms(self, track: int, start: int = 0, length: int | None = None) -> Waveform:
        """A stretch of a track's stems: float32 (stems, samples)."""
        stop = None if length is None else start + length
        return self._rows(track)[:, start:stop].astype(np.float32) / np.float32(32_768)

    def audible(self, track: int, start: int, length: int) -> NDArray[np.bool_]:
        """Which stems of a track sound in a window, (stems,); to the nearest tenth of a second."""
        speed = self.speed[track]
        return self.recorded.audible(track, round(start * speed), round(length * speed))

    def _rows(self, track: int) -> NDArray[np.int16]:
        """A track's stems as a bank keeps them, 16-bit (stems, samples), mapped."""
        if track in self._opened:
            return self._opened[track]
        recorded, semitones = self.recorded.waveforms(track), self._semitones(track)
        samples = self.tracks[track].samples
        made_of = f"{_FORMAT} {samples} {semitones} ".encode() + recorded.tobytes()
        path = self._cache / f"{hashlib.sha256(made_of).hexdigest()[:24]}.npy"
        if not path.is_file():
            rows = np.zeros((len(recorded), samples), np.float32)
            for row, waveform, higher in zip(rows, recorded, semitones, strict=True):
                row[:] = played(waveform, samples, higher)
            assert rows.any(axis=1).all(), f"a stem of {self.tracks[track].name} became silent"
            # One factor for the whole track, where one of its stems leaves the 16-bit range: their balance stays.
            rows *= np.float32(32_767 * min(1.0, 0.999 / max(float(np.abs(rows).max(initial=0.0)), 1e-9)))
            self._cache.mkdir(parents=True, exist_ok=True)
            scratch = path.with_name(f"{path.stem}.{os.getpid()}.partial.npy")
            np.save(scratch, np.round(rows).astype(np.int16))
            os.replace(scratch, path)
        self._opened[track] = np.load(path, mmap_mode="r")
        return self._opened[track]

    def _semitones(self, track: int) -> list[int]:
        """By stem: how far it is transposed."""
        return [self.transpose[track] if pitched else 0 for pitched in self.tracks[track].pitched]


def key_of(bank: StemBank | RetimedBank, track: int) -> str | None:
    """The key of a track: said, else heard in all of its stems that play notes; None: they tell none.

    Of a track at another tempo it is that of the recording, moved as the stems are.
    """
    if isinstance(bank, RetimedBank):
        recorded = key_of(bank.recorded, track)
        return recorded and _higher(recorded, bank.transpose[track])
    banked = bank.tracks[track]
    if banked.key is not None or not any(banked.pitched):
        return banked.key
    heard = Hearing(bank.waveforms(track)[np.array(banked.pitched)].sum(axis=0)).key()
    return heard and heard[0]


def _draw(seed: int, name: str) -> tuple[float, int]:
    """How many times faster, and semitones."""
    rng = draw_rng(seed, name)
    speed = float(np.exp(rng.uniform(*np.log(SPEEDS))))
    return (speed if rng.random() < 0.5 else 1 / speed), int(rng.choice(SEMITONES))


def _retimed(track: BankedTrack, speed: float, semitones: int) -> BankedTrack:
    grid = track.grid and Grid(folded(track.grid.beats_s / speed), track.grid.source, track.grid.steadiness)
    key = track.key and _higher(track.key, semitones)
    return replace(track, samples=round(track.samples / speed), grid=grid, key=key)


def _higher(key: str, semitones: int) -> str | None:
    """The name of a key so many semitones up; None where it names none."""
    tonic, mode = tonic_of(key), key.rpartition(" ")[2]
    return None if tonic is None else key_name((tonic - (3 if mode == "minor" else 0) + semitones) % 12, mode)
