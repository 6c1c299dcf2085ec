"""`phalar checkpoint`: convert, average and look at checkpoints."""

import json
from pathlib import Path
from typing import Annotated

import typer

from service.commands.console import FAILED, fail, in_a_folder

checkpoint_app = typer.Typer(help="Convert and look at checkpoints.", no_args_is_help=True)


@checkpoint_app.command()
def convert(
    source: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The authors' Lightning .ckpt, or ours.")],
    target: Annotated[Path, typer.Argument(dir_okay=False, help="The .safetensors to write.", callback=in_a_folder)],
) -> None:
    """Convert the authors' checkpoint into ours. Nothing in the file is ever executed."""
    from model.checkpoints import CheckpointError, load_phalar, save_phalar

    try:
        model = load_phalar(source)
        save_phalar(model, target, trained=model.trained)
    except (CheckpointError, OSError) as error:
        fail(str(error), FAILED)
    print(f"{target}: {model.fingerprint}")


@checkpoint_app.command()
def average(
    files: Annotated[
        list[Path], typer.Argument(exists=True, dir_okay=False, help="Two or more, of one configuration.")
    ],
    out: Annotated[Path, typer.Option(dir_okay=False, help="The file to write.", callback=in_a_folder)],
) -> None:
    """Write the mean of checkpoints' weights: of a training run, say, and of the model that it began with.

    Example: phalar checkpoint average model/default.safetensors runs/further/model.safetensors --out mean.safetensors
    """
    from model.checkpoints import CheckpointError, NotAlike, average_models, save_phalar

    try:
        model = average_models(files)
    except (CheckpointError, NotAlike) as error:
        fail(str(error), FAILED)
    save_phalar(model, out, trained=model.trained)
    print(f"{out}: {model.fingerprint}")


@checkpoint_app.command()
def show(file: Annotated[Path, typer.Argument(exists=True, dir_okay=False)]) -> None:
    """Tell what a checkpoint holds."""
    from dataclasses import asdict

    from model.checkpoints import CheckpointError, count_heard, load_phalar

    try:
        model = load_phalar(file)
    except CheckpointError as error:
        fail(str(error), FAILED)
    notes: dict[str, object] = dict(model.notes)
    if heard := model.notes.get("heard"):
        notes["heard"] = f"{count_heard(heard)} pieces"
    parameters = sum(weight.numel() for weight in model.parameters())
    facts = {
        "fingerprint": model.fingerprint,
        "trained": model.trained,
        "parameters": parameters,
        "config": asdict(model.config),
        "notes": notes,
    }
    print(json.dumps(facts, indent=2))
