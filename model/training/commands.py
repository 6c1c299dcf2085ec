"""The `phalar train` commands: they parse and print; what they do stands in the modules beside this one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from model.training.console import bar, err, fail, refusals

RECIPE_COMMAND = "recipe"


class _RecipeByDefault(TyperGroup):
    """`phalar train smoke.toml` is `phalar train recipe smoke.toml`: what names no command is a recipe."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "--install-completion"):
            args = [RECIPE_COMMAND, *args]
        return super().parse_args(ctx, args)


train_app = typer.Typer(
    help="Train a model by a recipe: [bold]phalar train RECIPE.toml[/]. Or render scores to train on.",
    cls=_RecipeByDefault,
    no_args_is_help=True,
)


@train_app.command(name=RECIPE_COMMAND)
def train(
    recipe: Annotated[Path, typer.Argument(help="A TOML file, or one of ours by its name, such as smoke.")],
    stems: Annotated[
        list[Path] | None,
        typer.Option(exists=True, file_okay=False, help="Tracks of stems; may be given several times."),
    ] = None,
    out: Annotated[Path | None, typer.Option(file_okay=False, help="The run's folder. Default: runs/RECIPE.")] = None,
    begin: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A checkpoint to go on from, as a new run.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")] = None,
    stop_at: Annotated[int | None, typer.Option(min=1, help="Stop after this step, to go on later.")] = None,
    model: Annotated[str | None, typer.Option(help="Instead of the recipe's, such as an ablation's name.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the recipe's.")] = None,
    device: Annotated[str | None, typer.Option(help="A torch device. Default: a GPU where there is one.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch, on a CPU. Default: all cores.")] = None,
    cache: Annotated[Path | None, typer.Option(file_okay=False, help="Where decoded stems are kept.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that decode.")] = os.cpu_count() or 1,
) -> None:
    """Train, or go on where the run in the folder ended; write model.safetensors into it.

    On several GPUs, or with a process a core: torchrun --nproc-per-node N $(which phalar) train RECIPE ...

    Example: phalar train default --stems rendered/ --out runs/default
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: see docs/decisions
    import torch

    from model.training.data import training_bank
    from model.training.distributed import first_alone, process_group
    from model.training.processes import alone_in
    from model.training.recipe import load_recipe
    from model.training.train import MODEL, Trainer

    changed = {"steps": steps, "model": model, "seed": seed}
    with refusals():
        chosen = load_recipe(recipe, **{name: value for name, value in changed.items() if value is not None})
    if not stems and not chosen.data.composed:
        fail("this recipe composes no music of its own: name folders of tracks with --stems")
    if threads:
        torch.set_num_threads(threads)
    home = out or Path("runs") / recipe.stem
    with (
        refusals(),
        process_group(device) as (rank, here),
        alone_in(home, waits=False) if rank == 0 else nullcontext(),
        bar(silent=rank > 0) as progress,
    ):
        if rank == 0:
            _say_device(here, asked=device is not None, precision=chosen.precision)
        task = progress.add_task("stems", total=None)

        def prepared(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        with first_alone(rank):
            bank = training_bank(stems or [], chosen.data, cache or default_cache(), jobs, prepared)
        progress.remove_task(task)
        if rank == 0:
            for dropped in bank.dropped:
                progress.console.print(f"left out: {dropped}", markup=False, highlight=False, soft_wrap=True)
        try:
            trainer = Trainer(chosen, bank, home, here, begin)
        except ValueError as error:
            fail(str(error))
        task = progress.add_task("steps", total=chosen.steps, completed=trainer.step)
        with _tensorboard(home, trainer.step, silent=rank > 0) as write:

            def report(step: Any) -> None:
                facts = f"loss {step.loss:.3f}  in batch {step.accuracy:.0%}"
                of = {"as recorded": step.validation_accuracy, "matched": step.validation_matched}
                if said := ", ".join(f"{share:.1%} {how}" for how, share in of.items() if share is not None):
                    progress.console.print(f"step {step.step}: validation {said}")
                progress.update(task, completed=step.step, description=facts)
                write(step)

            trainer.run(report, stop_at)
    if rank == 0:
        print(home / MODEL if trainer.step == chosen.steps else f"{home}: stopped after step {trainer.step}")


def _say_device(here: Any, asked: bool, precision: str) -> None:
    """What the run is done on, and what of the recipe does not hold there."""
    from model.device import facts_of, why_no_card

    said = f"on {facts_of(here)}"
    if here.type == "cpu" and not asked:
        said += f"; no card: {why_no_card()}"
    if here.type == "cpu" and precision == "bfloat16":
        said += "; the recipe's bfloat16 is for cards: here it is float32"
    err.print(said, markup=False, highlight=False, soft_wrap=True)


@train_app.command()
def render(
    scores: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A folder of MIDI files.")],
    out: Annotated[Path, typer.Argument(file_okay=False, help="Where the tracks of stems go.")],
    soundfont: Annotated[
        list[Path] | None,
        typer.Option(exists=True, dir_okay=False, help="May be given several times. Default: Debian's."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=2.0, help="Of each score.")] = 30.0,
    variants: Annotated[int, typer.Option(min=1, help="Renderings of each score.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other instruments, tempi and keys.")] = 0,
    patterns: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Part of the tracks made of loops, as a sequencer plays them.")
    ] = 0.0,
    kit: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="A folder of recorded hits, named for their drums: half of the drums. May be given several times.",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = os.cpu_count() or 1,
) -> None:
    """Play scores (MIDI) into aligned stems, with FluidSynth and with our own synthesiser.

    Scores that are rendered already are skipped, so a rendering that was cut off is simply started again.

    Example: phalar train render scores/ rendered/ --variants 2
    """
    from model.training.kits import Kits
    from model.training.render import SOUNDFONTS, RenderSettings, render_scores
    from model.training.scores import score_files

    if kit and not Kits.below(kit).hits:
        raise typer.BadParameter(f"no recording below {', '.join(map(str, kit))} is named for a drum")
    fonts = tuple(soundfont) if soundfont else SOUNDFONTS
    settings = RenderSettings(
        soundfonts=fonts, seconds=seconds, variants=variants, seed=seed, patterns=patterns, kits=tuple(kit or ())
    )
    tracks = stems = failed = 0
    with refusals(), bar() as progress:
        task = progress.add_task("scores", total=len(score_files(scores)) * variants)
        for rendered in render_scores(scores, out, settings, jobs):
            progress.advance(task)
            if rendered.problem is not None:
                failed += 1
                progress.console.print(f"{rendered.track}: {rendered.problem}", markup=False, soft_wrap=True)
                continue
            tracks += 1
            stems += rendered.stems
    err.print(f"{tracks} tracks of {stems} stems; {failed} scores could not be used")


@contextmanager
def _tensorboard(folder: Path, step: int, silent: bool) -> Iterator[Any]:
    """A function that writes a step's scalars; without TensorBoard installed it writes none, and says so once."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        if not silent:
            err.print("no TensorBoard scalars: pip install 'phalar-retrieval[train]'")
        silent = True
    if silent:
        yield lambda measured: None
        return
    # What a killed run wrote beyond its last checkpoint comes again.
    with SummaryWriter(str(folder / "tensorboard"), purge_step=step) as writer:

        def write(measured: Any) -> None:
            for name in ("loss", "accuracy", "rate", "validation_accuracy", "validation_matched"):
                if (value := getattr(measured, name)) is not None:
                    writer.add_scalar(name, value, measured.step)
            for part, seconds in measured.timing_s.items():
                writer.add_scalar(f"seconds/{part}", seconds, measured.step)

        yield write


def default_cache() -> Path:
    """`phalar` in this user's cache folder (XDG_CACHE_HOME, or ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "phalar"
