"""The encoder by itself, and music for it: what the service is measured beside."""

import io
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from model.audio import SAMPLE_RATE, cut_windows, load_clip, window_starts
from service.local.demo import MISSING, compose_demo
from service.settings import Settings
from service.work.models import configured_model

Waveform = NDArray[np.float32]
TRACKS, SECONDS = 12, 20.0


class BareEncoder:
    """The service's model, on its device and with its batches, in this process."""

    def __init__(self, settings: Settings, waveform: Waveform) -> None:
        """`waveform`: one that has a window at least; its windows are embedded again and again."""
        self.batch = settings.most_windows
        self._model = configured_model(settings, settings.device)
        window, stride = (round(seconds * SAMPLE_RATE) for seconds in (settings.window_s, settings.stride_s))
        self._windows = cut_windows(waveform, window_starts(len(waveform), window, stride), window)
        self.seconds(self.batch)  # the first call is slower

    def seconds(self, windows: int, repeats: int = 3) -> float:
        """The median time to embed so many windows, batch by batch."""
        many = np.resize(self._windows, (windows, self._windows.shape[1]))
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            for start in range(0, windows, self.batch):
                self._model.embed(many[start : start + self.batch]).cpu()
            times.append(time.perf_counter() - began)
        return float(np.median(times))

    def rate(self) -> float:
        """Windows a second, in full batches."""
        return 4 * self.batch / self.seconds(4 * self.batch)


def compose(folder: Path, seconds: float = SECONDS, tracks: int = TRACKS, seed: int = 0) -> list[list[Path]]:
    """The stems of the demo's tracks, as files."""
    return [[stem.path for stem in track] for track in compose_demo(folder, tracks, seconds, seed)]


def variations(tracks: Sequence[Sequence[Path]], count: int, folder: Path) -> list[Path]:
    """So many stems that the service cannot know: the tracks', each time a little quieter."""
    folder.mkdir(parents=True, exist_ok=True)
    stems = [path for track in tracks for path in track]
    made = []
    for number in range(count):
        waveform, rate = soundfile.read(stems[number % len(stems)], dtype="float32")
        gain = 0.9 - 0.5 * number / max(1, count)
        made.append(folder / f"{number:05d}.flac")
        soundfile.write(made[-1], gain * waveform, rate, subtype="PCM_16")
    return made


def mixes(tracks: Sequence[Sequence[Path]], count: int, seconds: float, seed: int = 0) -> list[bytes]:
    """FLAC files of the tracks without their bass, each cut at any sample."""
    rng = np.random.default_rng(seed)
    sums = [np.sum([load_clip(path).waveform for path in track if path.stem != MISSING], axis=0) for track in tracks]
    length, made = round(seconds * SAMPLE_RATE), []
    for number in range(count):
        mix = sums[number % len(sums)]
        start = int(rng.integers(len(mix) - length))
        cut = mix[start : start + length]
        file = io.BytesIO()
        soundfile.write(file, 0.8 * cut / max(1e-6, float(np.abs(cut).max())), SAMPLE_RATE, format="FLAC")
        made.append(file.getvalue())
    return made
