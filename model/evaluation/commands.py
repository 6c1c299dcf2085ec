"""The `phalar evaluate` commands: they parse and print; what they measure stands in the modules beside this one."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from model.evaluation.results import around_section, retrieval_markdown, tables_markdown, write_section
from model.training.commands import default_cache
from model.training.console import counted, err, fail, out, refusals

if TYPE_CHECKING:
    from rich.table import Table

    from model.evaluation.systems import System
    from model.training.stems import StemBank

SHOWN = 5
"""So many of what was left out are printed; JSON has them all."""

evaluate_app = typer.Typer(help="Measure a model, or a baseline, by the paper's protocols.", no_args_is_help=True)


class SplitChoice(StrEnum):
    """Which of a folder's tracks: 80, 10 and 10 %, by their names."""

    train = "train"
    validation = "validation"
    test = "test"
    all = "all"


def _place_of_tables(ctx: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
    """Refuse a page without its section, or one that lacks it, before anything is measured."""
    given = ctx.params | {str(param.name): value}
    if given.keys() >= {"page", "section"}:  # the later of the two
        page, section = given["page"], given["section"]
        if (page is None) != (section is None):
            raise typer.BadParameter("--page and --section go together")
        if page is not None:
            with refusals():
                around_section(Path(page), section)
    return value


CORES = os.cpu_count() or 1
Stems = Annotated[
    list[Path], typer.Option(exists=True, file_okay=False, help="Tracks of stems; may be given several times.")
]
Split = Annotated[SplitChoice, typer.Option(help="Which of the tracks.")]
Cache = Annotated[Path | None, typer.Option(file_okay=False, help="Where decoded stems are kept.")]
Jobs = Annotated[int, typer.Option(min=1, help="Processes that decode.")]
Checkpoint = Annotated[
    str | None, typer.Option(help="A file, or what the baseline takes in its place. Default: the shipped model.")
]

SystemName = Annotated[str, typer.Option(help="phalar, or a baseline.")]
Device = Annotated[str, typer.Option(help="A torch device.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")]
Page = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, callback=_place_of_tables, help="A Markdown page to write tables into."),
]
Section = Annotated[
    str | None,
    typer.Option(callback=_place_of_tables, help="The marked section of the page that becomes the tables."),
]


@evaluate_app.command()
def retrieval(
    stems: Stems,
    candidates: Annotated[str, typer.Option(help="Counts of candidates, the positive being one.")] = "8,16,64",
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a window.")] = 5.0,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other windows and submixes.")] = 0,
    checkpoint: Checkpoint = None,
    split: Split = SplitChoice.all,
    pairs_per_track: Annotated[int, typer.Option(min=1)] = 4,
    most_pairs: Annotated[int | None, typer.Option(min=2, help="In all, where scores are dear.")] = None,
    time: Annotated[bool, typer.Option(help="Also: other windows of the same track, and small delays.")] = True,
    matched: Annotated[
        bool, typer.Option(help="Also in beat time: every clip at one tempo, each window on a beat of its song.")
    ] = False,
    system: SystemName = "phalar",
    device: Device = "cpu",
    cache: Cache = None,
    jobs: Jobs = CORES,
    page: Page = None,
    section: Section = None,
    as_json: AsJson = False,
) -> None:
    """How often an anchor's best candidate is its own positive, among positives of other tracks.

    Example: phalar evaluate retrieval --stems ~/stems --candidates 8,16,64 --matched
    """
    from model.checkpoints.heard import heard_of
    from model.evaluation.matched import evaluate_matched
    from model.evaluation.retrieval import RetrievalSettings, evaluate_retrieval

    counts = _whole_numbers(candidates, "--candidates")
    try:
        settings = RetrievalSettings(counts, seconds, seed, pairs_per_track, most_pairs)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if not time:
        settings = replace(settings, other_windows=0, delays_ms=())
    measured = open_system(system, checkpoint, device)  # first: it may refuse, and decoding takes long
    bank = open_bank(stems, cache or default_cache(), jobs)
    chosen = bank.of_split(split.value)
    answer: dict[str, Any] = {"system": system, "checkpoint": checkpoint, "split": split.value}
    with refusals():
        with counted("as recorded" if matched else "windows") as progress:
            answer |= evaluate_retrieval(measured, bank, chosen, settings, progress).as_dict()
        if matched:
            with counted("matched") as progress:
                answer |= evaluate_matched(measured, bank, chosen, settings, progress).as_dict()
    answer["left_out"] = [str(dropped) for dropped in bank.dropped]
    notes = getattr(measured, "notes", None)  # a system that was not trained here has none
    heard = None if notes is None else heard_of(notes, (bank.tracks[at].name for at in chosen))
    answer["heard"] = None if heard is None else heard.tracks
    said = [
        *answer["notes"],
        *answer.get("matched_notes", []),
        *([f"Of the model: {heard}."] if heard is not None else []),
    ]
    show_answer(answer, retrieval_tables(answer), as_json, page, section, said)


@evaluate_app.command()
def listening(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="ratings/*.json, scores_SYSTEM.json.")],
    page: Page = None,
    section: Section = None,
    as_json: AsJson = False,
) -> None:
    """How the scores of systems correlate with people's ratings of the same excerpts.

    Example: phalar evaluate listening listening/
    """
    from model.evaluation.listening import listening as correlate_all
    from model.evaluation.listening import listening_table

    with refusals():
        result = correlate_all(folder)
    show_answer(result.as_dict(), [listening_table(result)], as_json, page, section)


@evaluate_app.command()
def beats(
    audio: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Audio files, each with NAME.beats.")],
    checkpoint: Checkpoint = None,
    step: Annotated[float, typer.Option(min=0.005, help="Seconds from one scored window to the next.")] = 0.02,
    seed: Annotated[int, typer.Option(min=0, help="Of the interval.")] = 0,
    system: SystemName = "phalar",
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Zero-shot beat tracking: clicks of 30 to 240 BPM scored along each clip.

    Example: phalar evaluate beats --audio gtzan/ --device cuda
    """
    from model.evaluation.beats import BeatSettings, beats_table
    from model.evaluation.beats import beats as track_all

    measured = open_system(system, checkpoint, device)
    with refusals(), counted("clips") as progress:
        result = track_all(measured, audio, BeatSettings(step_s=step), seed=seed, progress=progress)
    show_answer(result.as_dict(), [beats_table(result)], as_json)


@evaluate_app.command()
def chords(
    audio: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Audio files, each with NAME.chords.")],
    checkpoint: Checkpoint = None,
    window: Annotated[float, typer.Option(min=0.1, help="Seconds.")] = 2.0,
    stride: Annotated[float, typer.Option(min=0.05, help="Seconds.")] = 0.5,
    system: SystemName = "phalar",
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """A linear probe for chords on frozen embeddings, in five folds of whole clips.

    Example: phalar evaluate chords --audio guitarset/
    """
    from model.evaluation.chords import ChordSettings, chords_table
    from model.evaluation.chords import chords as probe_all

    measured = open_system(system, checkpoint, device)
    try:
        with refusals(), counted("clips") as progress:
            result = probe_all(measured, audio, ChordSettings(window, stride), progress=progress)
    except ValueError as error:  # of a fold whose clips have one chord
        fail(str(error))
    show_answer(result.as_dict(), [chords_table(result)], as_json)


@evaluate_app.command()
def table(
    answers: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="What `retrieval --json` gave.")],
    page: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The Markdown page.")],
    section: Annotated[str, typer.Option(help="The marked section of the page that becomes the table.")],
) -> None:
    """Write the answers of several systems into a page, one row each, named for its file.

    Example: phalar evaluate table phalar.json cocola.json --page docs/results.md --section real-songs
    """
    try:
        with refusals():
            write_section(page, section, retrieval_markdown(_by_name(answers)))
    except ValueError as error:
        fail(str(error))
    except KeyError as error:
        fail(f"an answer lacks {error}: was it written by `retrieval --json`?")


@evaluate_app.command()
def analysis(
    stems: Stems,
    split: Split = SplitChoice.all,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other submixes.")] = 0,
    cache: Cache = None,
    jobs: Jobs = CORES,
    page: Page = None,
    section: Section = None,
    as_json: AsJson = False,
) -> None:
    """How often tempo, beats and key that are heard are right, or two submixes of a track agree.

    Example: phalar evaluate analysis --stems ~/stems
    """
    from model.evaluation.analysis import evaluate_analysis

    bank = open_bank(stems, cache or default_cache(), jobs)
    with counted("tracks") as progress:
        answer = evaluate_analysis(bank, bank.of_split(split.value), seed, progress)
    table = new_table(f"Heard right, of {answer['tracks']} tracks", "what", "right", "of")
    for name, told in answer.items():
        if isinstance(told, dict):
            table.add_row(name.replace("_", " "), f"{told['share']:.1%}", str(told["of"]))
    show_answer(answer, [table], as_json, page, section)


@evaluate_app.command()
def picture(
    answers: Annotated[
        list[Path],
        typer.Argument(
            exists=True, dir_okay=False, help="What `retrieval --matched --json` gave, or `catalog --json`."
        ),
    ],
    to: Annotated[Path, typer.Option("--out", dir_okay=False, help="The picture, such as matched.svg.")],
) -> None:
    """Draw what was measured of several models or sets, named for their files.

    Of `retrieval --matched` candidates, delays and keys; of `catalog` how sure a hit is said to be, and is.

    Example: phalar evaluate picture before.json now.json --out docs/matched.svg
    """
    from model.evaluation.pictures import draw_matched, draw_sureness

    try:
        given = _by_name(answers)
        draw = draw_sureness if all("rows" in answer for answer in given.values()) else draw_matched
        draw(given, to)
    except (KeyError, TypeError) as error:
        fail(f"an answer has no {error}: measure it with --matched, or with a model that tells how sure it is")
    except ValueError as error:  # an ending that no kind of picture has
        fail(str(error))
    except ModuleNotFoundError:
        fail("pictures need matplotlib: pip install 'phalar-retrieval[evaluation]'")


def retrieval_tables(answer: dict[str, Any]) -> list[Table]:
    """The tables of `retrieval`'s JSON: candidates, and where they were measured, time and delays."""
    measured = f"{answer['system']}: {answer['pairs']} pairs of {answer['tracks']} tracks, {answer['seconds']:g} s"
    tables = [_shares_table(f"Positives of other tracks ({measured})", answer["candidates"])]
    if (time := answer["time"]) is not None:
        tables.append(_shares_table("Other windows of the same track", {str(time["candidates"]): time}))
    if answer["delays"]:
        late = {f"{delay_ms} ms": row for delay_ms, row in answer["delays"].items()}
        tables.append(_lower_table("The positive delayed", "delay", "lower than in place", late))
    if "matched" in answer:
        alike = {f"{count} of like tempo": share for count, share in answer["of_like_tempo"].items()}
        tables.append(_shares_table("Matched: all at 120 BPM, on the beat", answer["matched"] | alike))
        changes = {f"{int(semitones):+d} semitones": row for semitones, row in answer["keys_of_pitched_pairs"].items()}
        changes |= {f"late by one {name}": row for name, row in answer["late"].items()}
        if changes:
            title = "Matched: the positive in another key, or late"
            tables.append(_lower_table(title, "the positive", "lower than as it is", changes))
    return tables


def _shares_table(title: str, shares: dict[str, dict[str, Any]]) -> Table:
    table = new_table(title, "candidates", "accuracy", "95 %", "chance", "pairs")
    for count, share in shares.items():
        table.add_row(count, *_cells(share, "accuracy"))
    return table


def _lower_table(title: str, what: str, lower: str, changes: dict[str, dict[str, Any]]) -> Table:
    table = new_table(title, what, "mean score", lower, "95 %", "chance", "pairs")
    for change, row in changes.items():
        cells = _cells({"chance": 0.5} | row, "share_lower") if "share_lower" in row else [""] * 4
        table.add_row(change, f"{row['score']:.3f}", *cells)
    return table


def open_bank(stems: list[Path], cache: Path, jobs: int) -> StemBank:
    """The stems below some folders, decoded once, with progress; what was left out is said on stderr."""
    from model.training.stems import load_bank

    with refusals(), counted("tracks") as progress:
        bank = load_bank(stems, cache, jobs=jobs, progress=progress)
    for dropped in bank.dropped[:SHOWN]:
        err.print(f"left out: {dropped}", markup=False, highlight=False, soft_wrap=True)
    if len(bank.dropped) > SHOWN:
        err.print(f"left out: {len(bank.dropped) - SHOWN} more (--json lists all)")
    return bank


def open_system(name: str, checkpoint: str | None, device: str) -> System:
    """What `load_system` gives; where it refuses, its sentence and exit code 1."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: see docs/decisions
    from model.device import open_device
    from model.evaluation.systems import UnknownSystem, load_system

    try:
        with refusals():
            system = load_system(name, checkpoint, str(open_device(device)))
    except UnknownSystem as error:
        raise typer.BadParameter(str(error)) from error
    except (OSError, ValueError) as error:
        fail(str(error))
    if not getattr(system, "trained", True):
        err.print("these weights were never trained: the figures say nothing about the method", style="yellow")
    return system


def _by_name(answers: list[Path]) -> dict[str, dict[str, Any]]:
    named = {}
    for path in answers:
        try:
            named[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            fail(f"{path}: not what --json gives: {error}")
    if len(named) < len(answers):
        fail("two of the files have one name, and what they say is named for them: rename one")
    return named


def _whole_numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"whole numbers with commas between, not {text!r}", param_hint=option) from error


def _cells(share: dict[str, Any], name: str) -> list[str]:
    interval = f"{share['low']:.1%} to {share['high']:.1%}"
    return [f"{share[name]:.1%}", interval, f"{share['chance']:.1%}", str(share["pairs"])]


def new_table(title: str, *columns: str) -> Table:
    """An empty table of figures; what names its rows ("align", "said" or nothing) stands to the left."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, header_style="bold")
    for name in columns:
        table.add_column(name, justify="left" if name in ("align", "said", "") else "right")
    return table


def show_answer(
    answer: dict[str, Any],
    tables: list[Table],
    as_json: bool,
    page: Path | None = None,
    section: str | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Print an answer, as JSON or as tables and notes; write these into a page too, where one is named."""
    if as_json:
        print(json.dumps(answer, indent=2))
    else:
        for each in tables:
            out.print(each)
        for note in notes:
            out.print(note, markup=False, highlight=False, soft_wrap=True)
    if page is not None and section is not None:
        write_section(page, section, "\n".join([tables_markdown(tables), *notes]))
