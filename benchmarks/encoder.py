"""Time of an embedding, and of the plain path it replaced: `python -m benchmarks.encoder --threads 2`.

Plain: nnAudio's CQT and the layers one by one, the whole batch at once. On a CPU also what a query by the clock costs,
and each path of the axial CNN; with `--device cuda`, ways that a card offers.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.cqt import SETTINGS, headline, interleaved_ms, median_ratio
from benchmarks.page import page_parser, publish
from model.audio import SAMPLE_RATE, cut_windows
from model.axial_kernel import AxialKernel, built_kernels
from model.checkpoints import load_phalar
from model.cqt import BeatClips, plain_cqt, scale_decibels
from model.evaluation.results import markdown_table
from model.phalar import Phalar
from model.similarity import to_unit_norm
from service.search.mix import plan_windows
from service.work.models import DEFAULT_CHECKPOINT

WINDOW = 5 * SAMPLE_RATE


def noise(batch: int, samples: int, device: torch.device) -> Tensor:
    return 0.1 * torch.randn(batch, samples, generator=torch.Generator().manual_seed(0)).to(device)


def plain_path(phalar: Phalar, device: torch.device) -> Callable[[Tensor], Tensor]:
    transform = plain_cqt(SETTINGS).to(device)

    def embed(clips: Tensor) -> Tensor:
        cqt = scale_decibels(transform(clips), phalar.config.dynamic_range_db)
        return to_unit_norm(phalar.head(phalar.pooling(phalar.backbone(cqt))))

    return embed


def whole_encoder(phalar: Phalar, repeats: int) -> str:
    """`embed` beside the plain path, by batch."""
    plain, rows = plain_path(phalar, phalar.device), []
    for batch in (1, 8, 16):
        clips = noise(batch, WINDOW, phalar.device)
        old, new = partial(plain, clips), partial(phalar.embed, clips)
        taken = interleaved_ms(old, new, repeats=repeats)
        before, after = np.median(taken, axis=0) / batch
        difference = float((old() - new()).abs().max())
        rows.append([str(batch), f"{before:.1f}", f"{after:.1f}", f"{median_ratio(taken):.1f}", f"{difference:.1e}"])
    return markdown_table(["batch", "plain, ms a clip", "embed, ms a clip", "ratio", "largest difference"], rows)


def beside_nnaudio(phalar: Phalar, repeats: int) -> str:
    """Eight clips, embedded with each build of the compiled axial CNN, beside nnAudio's CQT of them alone."""
    clips = noise(8, WINDOW, phalar.device)

    def embed(kernel: AxialKernel) -> Tensor:
        features = phalar.backbone.infer_by_kernel(kernel, phalar.cqt(clips))
        return to_unit_norm(phalar.head(phalar.pooling(features)))

    kernels = built_kernels()
    taken = interleaved_ms(partial(plain_cqt(SETTINGS), clips), *(partial(embed, k) for k in kernels), repeats=repeats)
    rows = []
    for place, kernel in enumerate(kernels, 1):
        alone, whole = np.median(taken[:, [0, place]], axis=0)
        ratio = np.median(taken[:, place] / taken[:, 0])
        rows.append([kernel.name, f"{alone:.0f}", f"{whole:.0f}", f"{ratio:.2f}"])
    return markdown_table(["embedded with", "nnAudio's CQT alone, ms", "embed, ms", "embed / CQT"], rows)


def played_otherwise(phalar: Phalar, repeats: int) -> str:
    """`embed` of eight clips at another tempo and in another key, beside the same as recorded."""
    clips, rows = noise(8, WINDOW, phalar.device), []
    for speed, transpose in ((1.0, 2), (1.05, -2)):
        moved = partial(phalar.embed, clips, speed, transpose)
        taken = interleaved_ms(partial(phalar.embed, clips), moved, repeats=repeats)
        ratio = np.median(taken[:, 1] / taken[:, 0])
        rows.append([f"{speed:g}", f"{transpose:+d}", f"{np.median(taken[:, 1]) / 8:.1f}", f"{ratio:.2f}"])
    return markdown_table(["speed", "semitones", "embed, ms a clip", "times as recorded"], rows)


def axial_paths(phalar: Phalar, repeats: int) -> str:
    """The axial CNN alone, one clip and eight: layers, matrix products, each build of the kernel."""
    backbone, rows = phalar.backbone, []
    for batch in (1, 8):
        cqt = phalar.cqt(noise(batch, WINDOW, phalar.device))
        paths: dict[str, Callable[[], Tensor]] = {
            "layers one by one": partial(backbone, cqt),
            "matrix products": partial(backbone.infer_by_products, cqt),
        }
        for kernel in built_kernels():
            paths[kernel.name] = partial(backbone.infer_by_kernel, kernel, cqt)
        taken = interleaved_ms(*paths.values(), repeats=repeats)
        for place, name in enumerate(paths):
            ratio = median_ratio(taken[:, [0, place]])
            rows.append([name, str(batch), f"{np.median(taken[:, place]) / batch:.1f}", f"{ratio:.1f}"])
    return markdown_table(["axial CNN by", "batch", "ms a clip", "ratio to layers"], rows)


def query_by_the_clock(phalar: Phalar, repeats: int) -> str:
    """All windows that a search for a mix of 8 s lays in clock time: by the passes that they share, and one by one."""
    mix = noise(1, 8 * SAMPLE_RATE, phalar.device)[0].cpu().numpy()
    plan = plan_windows(mix, window=WINDOW, stride=WINDOW // 2, search=True)
    clips = torch.from_numpy(cut_windows(mix, plan.laid.starts, int(plan.laid.lengths[0])))
    windows = cut_windows(mix, np.round(plan.offset * SAMPLE_RATE).astype(np.int64), WINDOW)
    calls = (lambda: phalar.embed_each_step(clips, WINDOW), lambda: phalar.embed(windows))
    taken = interleaved_ms(*calls, repeats=repeats)
    shared, alone = np.median(taken, axis=0) / 1000
    return (
        f"A mix of 8 s by the clock, {len(windows)} windows: {shared:.2f} s by {len(clips)} passes, {alone:.2f} s "
        f"one by one, ratio {median_ratio(taken[:, ::-1]):.1f}.\n"
    )


def query_in_keys(phalar: Phalar, repeats: int) -> str:
    """The windows of a search on beats, ten in five keys: by one pass for all keys of a window, and one by one."""
    clips = noise(10, WINDOW, phalar.device)
    frames = torch.arange(1 + WINDOW // phalar.config.hop).float().expand(10, -1)
    none = torch.zeros(10, dtype=torch.long)
    windows = BeatClips(clips, torch.full((10,), WINDOW), frames, none)
    every = [replace(windows, transpose=none + key) for key in range(-2, 3)]
    taken = interleaved_ms(
        lambda: phalar.embed_in_keys(windows, 2),
        lambda: [phalar.embed_in_beat_time(moved) for moved in every],
        repeats=repeats,
    )
    shared, alone = np.median(taken, axis=0) / 1000
    return (
        f"Ten windows on beats in five keys: {shared:.2f} s by a pass each, {alone:.2f} s one by one, ratio "
        f"{median_ratio(taken[:, ::-1]):.1f}.\n"
    )


def ways_on_a_card(phalar: Phalar, repeats: int) -> str:
    """float32, bfloat16, and both replayed from a CUDA graph of this batch and window length."""
    rows = []

    def synchronised(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            result = call()
            torch.cuda.synchronize(phalar.device)
            return result

        return run

    for batch in (1, 8, 64):
        clips = noise(batch, WINDOW, phalar.device)

        def single(clips: Tensor = clips) -> Tensor:
            return to_unit_norm(phalar(clips))

        def half(clips: Tensor = clips) -> Tensor:
            cqt = phalar.cqt(clips)  # in float32 under any precision: the dB scale magnifies what rounding loses
            with torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False):  # a graph must not keep old casts
                features = phalar.backbone(cqt)
            return to_unit_norm(phalar.head(phalar.pooling(features.float())))

        ways = {"float32": single, "bfloat16": half, "float32, graph": graph(single), "bfloat16, graph": graph(half)}
        taken = interleaved_ms(*(synchronised(way) for way in ways.values()), repeats=repeats)
        expected = single()
        for place, (name, way) in enumerate(ways.items()):
            row = [name, str(batch), f"{np.median(taken[:, place]) / batch:.2f}"]
            row += [f"{median_ratio(taken[:, [0, place]]):.1f}", f"{float((way() - expected).abs().max()):.1e}"]
            rows.append(row)
    return markdown_table(["way", "batch", "ms a clip", "ratio to float32", "largest difference"], rows)


def graph(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The same work on the same input, replayed from one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # plans and workspaces must exist before the capture
            call()
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        result = call()

    def replay() -> Tensor:
        captured.replay()
        return result

    return replay


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    phalar = load_phalar(DEFAULT_CHECKPOINT, str(device))
    text = headline(f"clips of 5 s, medians of {arguments.repeats} turns")
    with torch.no_grad():
        if device.type == "cuda":
            text += f"{torch.cuda.get_device_name(device)}\n\n" + ways_on_a_card(phalar, arguments.repeats)
        else:
            parts = (whole_encoder, beside_nnaudio, played_otherwise, axial_paths, query_by_the_clock, query_in_keys)
            text += "\n".join(measure(phalar, arguments.repeats) for measure in parts)
    publish(text, arguments.page, "encoder" if device.type == "cpu" else "encoder-on-a-card")


if __name__ == "__main__":
    main()
