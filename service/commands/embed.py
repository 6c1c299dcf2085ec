"""`phalar embed`: files -> embeddings in an .npz, in this process, for people who work with them directly."""

import zipfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from service.commands.console import FAILED, bar, fail, in_a_folder, read_settings, replacing, say
from service.commands.threads import waiting_threads_sleep

BATCH = 16


def embed(
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="Audio files.")],
    out_file: Annotated[Path, typer.Option("--out", dir_okay=False, help="The .npz to write.", callback=in_a_folder)],
    checkpoint: Annotated[Path | None, typer.Option(exists=True, help="Default: the service's.")] = None,
    window: Annotated[float, typer.Option(min=1.025, help="Seconds.")] = 5.0,
    stride: Annotated[float, typer.Option(min=0.01, help="Seconds.")] = 2.5,
    device: Annotated[str, typer.Option(help="A torch device.")] = "cpu",
) -> None:
    """Embed files here, without a service.

    Writes the arrays `embedding` (n, 512) complex64, `start_s` (n,), `file` (n,), and `fingerprint`.
    Silent windows are left out.
    """
    waiting_threads_sleep()
    from model.audio import SAMPLE_RATE, AudioError, cut_windows, is_silent, load_clip, window_starts
    from model.checkpoints import CheckpointError, load_phalar
    from service.work.models import configured_model

    try:
        model = load_phalar(checkpoint, device) if checkpoint else configured_model(read_settings(), device)
    except CheckpointError as error:
        fail(str(error), FAILED)
    length, step = round(window * SAMPLE_RATE), round(stride * SAMPLE_RATE)
    embeddings = [np.empty((0, model.config.dimension), np.complex64)]
    starts_s: list[float] = []
    names: list[str] = []
    failed = False
    with bar() as progress:
        for path in progress.track(files, description="files"):
            try:
                waveform = load_clip(path).waveform
                starts = window_starts(len(waveform), length, step)
                for first in range(0, len(starts), BATCH):
                    some = starts[first : first + BATCH]
                    windows = cut_windows(waveform, some, length)
                    audible = np.array([not is_silent(one) for one in windows])
                    if audible.any():
                        embeddings.append(model.embed(windows[audible]).cpu().numpy())
                        starts_s += (some[audible] / SAMPLE_RATE).tolist()
                        names += [str(path)] * int(audible.sum())
            except (AudioError, OSError) as error:
                failed = True
                say(f"{path}: {error}")
    arrays: dict[str, NDArray[Any]] = {
        "embedding": np.concatenate(embeddings),
        "start_s": np.array(starts_s, np.float64),
        "file": np.array(names, np.str_),
        "fingerprint": np.array(model.fingerprint),
    }
    # What np.savez writes, which cannot be told an array named `file`.
    with replacing(out_file) as making, zipfile.ZipFile(making, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    if failed:
        raise typer.Exit(FAILED)
