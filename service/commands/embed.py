"""`phalar embed`: files -> embeddings in an .npz, in this process, for people who work with them directly."""

import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from service.commands.console import FAILED, bar, fail, read_settings
from service.commands.threads import waiting_threads_sleep
from service.text import escaped

BATCH = 16


def embed(
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="Audio files.")],
    out_file: Annotated[Path, typer.Option("--out", help="The .npz to write.")],
    checkpoint: Annotated[Path | None, typer.Option(exists=True, help="Default: the service's.")] = None,
    window: Annotated[float, typer.Option(help="Seconds.")] = 5.0,
    stride: Annotated[float, typer.Option(help="Seconds.")] = 2.5,
    device: Annotated[str, typer.Option(help="A torch device.")] = "cpu",
) -> None:
    """Embed files here, without a service.

    Writes the arrays `embedding` (n, 512) complex64, `start_s` (n,), `file` (n,), and `fingerprint`.
    Silent windows are left out.
    """
    waiting_threads_sleep()
    from model.checkpoints import CheckpointError

    try:
        with bar() as progress:
            task = progress.add_task("files", total=len(files))

            def done(path: Path, problem: str | None) -> None:
                progress.advance(task)
                if problem:
                    progress.console.print(escaped(f"{path}: {problem}"), markup=False, soft_wrap=True)

            failed = embed_files(files, out_file, checkpoint, window, stride, device, done)
    except CheckpointError as error:
        fail(str(error), FAILED)
    if failed:
        raise typer.Exit(FAILED)


def embed_files(
    files: Sequence[Path],
    target: Path,
    checkpoint: Path | None,
    window_s: float,
    stride_s: float,
    device: str,
    done: Callable[[Path, str | None], None],
) -> int:
    """Write `embedding` complex64 (n, D), `start_s` float64 (n,), `file` str (n,) and `fingerprint`.

    Args:
        window_s, stride_s: seconds; the last window ends with the clip, and silent ones are left out.
        done: called after each file, with the reason if it failed.

    Returns:
        how many files failed; their windows are missing, and the others are written all the same.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
    """
    from model.audio import SAMPLE_RATE, AudioError, cut_windows, is_silent, load_clip, window_starts
    from model.checkpoints import load_phalar
    from service.work.models import configured_model

    model = load_phalar(checkpoint, device) if checkpoint else configured_model(read_settings(), device)
    window, stride = round(window_s * SAMPLE_RATE), round(stride_s * SAMPLE_RATE)
    embeddings = [np.empty((0, model.config.dimension), np.complex64)]
    starts_s: list[float] = []
    names: list[str] = []
    failed = 0
    for path in files:
        try:
            waveform = load_clip(path).waveform
            starts = window_starts(len(waveform), window, stride)
            for first in range(0, len(starts), BATCH):
                some = starts[first : first + BATCH]
                windows = cut_windows(waveform, some, window)
                audible = np.array([not is_silent(one) for one in windows])
                if audible.any():
                    embeddings.append(model.embed(windows[audible]).cpu().numpy())
                    starts_s += (some[audible] / SAMPLE_RATE).tolist()
                    names += [str(path)] * int(audible.sum())
        except (AudioError, OSError) as error:
            failed += 1
            done(path, str(error))
        else:
            done(path, None)
    arrays: dict[str, NDArray[Any]] = {
        "embedding": np.concatenate(embeddings),
        "start_s": np.array(starts_s, np.float64),
        "file": np.array(names, np.str_),
        "fingerprint": np.array(model.fingerprint),
    }
    partial = target.with_name(target.name + ".partial")
    with zipfile.ZipFile(partial, "w") as archive:  # what np.savez writes; it cannot be told an array named `file`
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    os.replace(partial, target)
    return failed
