"""How stereo whose channels cancel is best mixed to one, by what the model scores.

    python -m benchmarks.downmix --stems DIR --page docs/decisions/channels-that-cancel.md

Of each track the first stem that plays is made stereo in ways that cancel, mixed to one by each rule, and scored
against the rest of its track over the same five seconds: how far its score is from that of the stem itself, and how
often it ranks first among the stems of all tracks, treated alike. dB: what mixing loses against the channels' mean
energy, the median of the tracks.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import hilbert

from benchmarks.page import page_parser, publish
from model.audio import SAMPLE_RATE, Waveform, is_silent, load_clip
from model.checkpoints import load_phalar
from model.evaluation.results import markdown_table

WINDOW = 5 * SAMPLE_RATE
DEFAULT = Path(__file__).parents[1] / "model" / "default.safetensors"
Stereo = NDArray[np.float32]  # (samples, 2)


def _turned(wave: Waveform) -> Waveform:
    """A quarter of a cycle later at every frequency."""
    turned: Waveform = np.imag(hilbert(wave)).astype(np.float32)
    return turned


def _late(wave: Waveform, samples: int) -> Waveform:
    return np.concatenate([np.zeros(samples, np.float32), wave[:-samples]])


WAYS: dict[str, Callable[[Waveform], list[Waveform]]] = {
    "one channel inverted": lambda x: [x, -x],
    "inverted and softer": lambda x: [x, -0.6 * x],
    "inverted, 0.2 ms late": lambda x: [x, -_late(x, 3)],
    "wide: a quarter turned in the middle": lambda x: [x + 0.4 * _turned(x), -x + 0.4 * _turned(x)],
}


def _stronger(stereo: Stereo) -> Waveform:
    return stereo[:, int(np.argmax((stereo**2).sum(axis=0)))]


def _principal(stereo: Stereo) -> Waveform:
    """Along the direction in which the two vary most."""
    _, vectors = np.linalg.eigh(stereo.T @ stereo)
    return stereo @ vectors[:, -1]


RULES: dict[str, Callable[[Stereo], Waveform]] = {
    "their mean": lambda stereo: stereo.mean(axis=1),
    "the stronger channel": _stronger,
    "their difference": lambda stereo: (stereo[:, 0] - stereo[:, 1]) / 2,
    "the principal direction": _principal,
}


def pairs_of(folder: Path) -> list[tuple[Waveform, Waveform]]:
    """Of each track: a stem, and the sum of the others over the same window."""
    pairs = []
    for track in sorted(path for path in folder.iterdir() if path.is_dir()):
        stems = [
            load_clip(path).waveform for path in sorted(track.iterdir()) if path.suffix in {".ogg", ".wav", ".flac"}
        ]
        length = min(map(len, stems), default=0)
        for start in range(0, length - WINDOW, WINDOW):
            playing = [wave[start : start + WINDOW] for wave in stems]
            playing = [wave for wave in playing if not is_silent(wave) and np.sqrt(np.mean(wave**2)) > 0.01]
            if len(playing) > 2:
                pairs.append((playing[0], np.sum(playing[1:], axis=0, dtype=np.float32)))
                break
    return pairs


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--stems", type=Path, required=True, help="<track>/<stem>.ogg")
    parser.add_argument("--checkpoint", type=Path, default=DEFAULT)
    arguments = parser.parse_args()
    phalar = load_phalar(arguments.checkpoint)
    pairs = pairs_of(arguments.stems)
    with torch.inference_mode():
        anchors = phalar.embed(np.stack([rest for _, rest in pairs]))
        alone = phalar.score(anchors, phalar.embed(np.stack([stem for stem, _ in pairs])))
        own = alone.diagonal()
        rows = [["the stem itself", "", "", "", f"{first(alone):.0%}"]]
        for way, split in WAYS.items():
            stereo = [np.stack(split(stem), axis=1).astype(np.float32) for stem, _ in pairs]
            for rule, mixed in RULES.items():
                waves = np.stack([mixed(channels) for channels in stereo]).astype(np.float32)
                if np.abs(waves).max() < 1e-6:
                    rows.append([f"{way}: {rule}", "silent", "", "", ""])
                    continue
                scores = phalar.score(anchors, phalar.embed(waves))
                kept = np.median([(one**2).mean() / (two**2).mean() for one, two in zip(waves, stereo, strict=True)])
                off = (scores.diagonal() - own).abs() / own.abs().mean()
                within = ((scores.diagonal() - own).abs() <= 0.05 * own.abs()).float().mean()
                cells = [f"{10 * np.log10(kept):+.0f}", f"{off.mean():.3f}", f"{within:.0%}", f"{first(scores):.0%}"]
                rows.append([f"{way}: {rule}", *cells])
    header = ["made stereo, and mixed by", "dB", "score off by, of the mean score", "within 5 %", "first of all"]
    publish(f"{len(pairs)} tracks.\n\n{markdown_table(header, rows)}", arguments.page, "downmix")


def first(scores: torch.Tensor) -> float:
    return float((scores.argmax(dim=1) == torch.arange(len(scores), device=scores.device)).float().mean())


if __name__ == "__main__":
    main()
