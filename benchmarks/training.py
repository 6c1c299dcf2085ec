"""Time of a training step, and of the versions it replaced: `python -m benchmarks.training --stems DIR`.

Layers: the axial CNN by torch's own layers in place of the compiled kernel, and Muon in float32. Plain: those, and
every example's stems are decoded from disk, nnAudio's CQT, the whole batch through the network at once. All take the
same examples, weights and loss, in turn, in one process. The table is for docs/performance.md.
"""

import platform
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.cqt import SETTINGS
from benchmarks.page import page_parser, publish, today
from model.audio import SAMPLE_RATE, load_clip
from model.cqt import plain_cqt, scale_decibels
from model.device import upload
from model.evaluation.results import markdown_table
from model.phalar import Phalar
from model.training.augment import augment
from model.training.examples import Example, draw_examples, mix_examples
from model.training.loss import contrastive_loss
from model.training.optimiser import Muon, optimisers
from model.training.recipe import Recipe, load_recipe
from model.training.stems import StemBank, load_bank
from model.training.tracks import TrackFiles, named_tracks

PARTS = ("data", "forward", "backward", "optimiser")


def from_disk(bank: StemBank, files: dict[str, TrackFiles], examples: list[Example], length: int) -> Tensor:
    """Anchors, then positives, each stem decoded as it is needed: float32 (2 * examples, length)."""
    sides: list[list[np.ndarray]] = [[], []]
    for example in examples:
        track = bank.tracks[example.track]
        for side, stems in zip(sides, (example.anchor, example.positive), strict=True):
            mix = np.zeros(length, dtype=np.float32)
            for stem in stems:
                (path,) = files[track.name].stems[track.stems[stem]]
                part = load_clip(path).waveform[example.start : example.start + length]
                mix[: len(part)] += part
            side.append(mix)
    return torch.from_numpy(np.stack(sides[0] + sides[1]))


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--stems", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=Path("default"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="a table for each")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, help="of an example; default: the mean of the recipe's")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    recipe = load_recipe(arguments.recipe)
    seconds = arguments.seconds or (recipe.data.shortest_s + recipe.data.longest_s) / 2
    length = round(seconds * SAMPLE_RATE)
    tables = [f"Measured {today()}, {platform.machine()}, torch {torch.__version__}, "]
    tables[0] += f"{recipe.batch} pairs of {seconds:g} s a step, median of {arguments.repeats}."
    with tempfile.TemporaryDirectory() as cache:
        bank = load_bank([arguments.stems], Path(cache), jobs=max(arguments.threads))
        files = {track.name: track for track in named_tracks(arguments.stems)[0]}
        for threads in arguments.threads if device.type == "cpu" else arguments.threads[-1:]:
            torch.set_num_threads(threads)
            card = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{threads} threads"
            tables.append(f"**{card}**\n\n" + compare(recipe, bank, files, length, device, arguments.repeats))
    section = "training-step" if device.type == "cpu" else "training-step-on-a-card"
    publish("\n\n".join(tables), arguments.page, section)


def compare(
    recipe: Recipe, bank: StemBank, files: dict[str, TrackFiles], length: int, device: torch.device, repeats: int
) -> str:
    """The table: seconds of each part of a step, and how many times ours the other ways take."""
    torch.manual_seed(0)
    model = Phalar(recipe.encoder).to(device).train()
    plain_transform = plain_cqt(SETTINGS).to(device)
    muon, adam = optimisers(model, recipe.optimiser)
    in_float32, _ = optimisers(model, recipe.optimiser, rounds=lambda _: False)

    def in_passes(embed: Callable[[Tensor], Tensor], clips: Tensor) -> Tensor:
        half = recipe.precision == "bfloat16" and device.type == "cuda"
        each = (recipe.clips_per_pass if device.type == "cpu" else 0) or len(clips)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            return torch.cat([embed(part) for part in torch.split(clips, each)])

    def by_layers(cqt: Tensor) -> Tensor:
        return model.head(model.pooling(model.backbone.forward_by_layers(cqt)))

    def plain(clips: Tensor) -> Tensor:
        return by_layers(scale_decibels(plain_transform(clips), model.config.dynamic_range_db))

    def from_memory(examples: list[Example]) -> Tensor:
        return upload(torch.cat(mix_examples(bank, examples, length)), device)

    def step(
        number: int, load: Callable[[list[Example]], Tensor], embed: Callable[[Tensor], Tensor], muon: Muon
    ) -> list[float]:
        examples = draw_examples(bank, range(len(bank.tracks)), recipe.batch, length, np.random.default_rng(number))
        times = [now(device)]
        clips = augment(load(examples), recipe.augment, torch.Generator().manual_seed(number))
        times.append(now(device))
        x, y = embed(clips).chunk(2)
        loss, _ = contrastive_loss(x, y, model.similarity, recipe.loss)
        times.append(now(device))
        model.zero_grad()
        loss.backward()
        times.append(now(device))
        muon.step()
        adam.step()
        times.append(now(device))
        return [later - earlier for earlier, later in pairwise(times)]

    ways = {
        "ours": (from_memory, lambda clips: in_passes(model, clips), muon),
        "layers": (from_memory, lambda clips: in_passes(lambda part: by_layers(model.cqt(part)), clips), in_float32),
        "plain": (lambda examples: from_disk(bank, files, examples, length).to(device), plain, in_float32),
    }
    taken: dict[str, list[list[float]]] = {name: [] for name in ways}
    for number in range(repeats + 1):
        # Whoever comes first would wait for the disk, as no step does whose examples another thread has mixed.
        from_memory(draw_examples(bank, range(len(bank.tracks)), recipe.batch, length, np.random.default_rng(number)))
        for name, way in ways.items():
            parts = step(number, *way)
            if number:  # the first of each only warms up
                taken[name].append(parts)
    seconds = {
        name: [*np.median(np.array(rows), axis=0), np.median(np.array(rows).sum(axis=1))]
        for name, rows in taken.items()
    }
    rows = [
        [part, f"{ours:.3f}", *(text for other in others for text in (f"{other:.3f}", f"{other / ours:.1f}"))]
        for part, ours, *others in zip((*PARTS, "step"), *seconds.values(), strict=True)
    ]
    return markdown_table(["part", "ours, s", "layers, s", "ratio", "plain, s", "ratio"], rows)


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
