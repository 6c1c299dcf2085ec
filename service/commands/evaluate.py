"""`phalar evaluate catalog` and `band`: they parse and print; `service.search` measures."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from model.evaluation.commands import (
    CORES,
    AsJson,
    Cache,
    Device,
    Jobs,
    Page,
    Section,
    Split,
    SplitChoice,
    Stems,
    new_table,
    open_bank,
    show_answer,
)  # fmt: skip
from model.training.commands import default_cache
from service.commands.console import FAILED, bar, err, fail, in_a_folder, read_settings
from service.commands.threads import waiting_threads_sleep

if TYPE_CHECKING:
    from rich.progress import TaskID
    from rich.table import Table

    from service.search.evaluation import Progress


ROW_NAMES = {
    "beats": "beats",
    "told": "beats, told",
    "search": "search",
    "grid": "grid",
    "grid_on_grid": "grid, cut on it",
}
AMONG_NAMES = {
    "other_tracks": "Rank of the missing stem among the stems of all other tracks",
    "not_in_mix": "The same among all stems that are not in the mix",
    "all": "The same among all stems",
}

Checkpoint = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="Default: the model that the service loads.")
]
Tracks = Annotated[int | None, typer.Option(min=1, help="At most so many of them, drawn by the seed.")]
Seed = Annotated[int, typer.Option(min=0, help="Another seed, other mixes.")]


def catalog(
    stems: Stems,
    checkpoint: Checkpoint = None,
    split: Split = SplitChoice.all,
    tracks: Tracks = None,
    queries: Annotated[int, typer.Option(min=1, help="Mixes that lack a stem.")] = 50,
    seconds: Annotated[
        float, typer.Option(min=1.1, help="Length of a mix; below a window and a stride, not every place is reached.")
    ] = 8.0,
    seed: Seed = 0,
    align: Annotated[
        Literal["beats", "told", "search", "grid", "all"],
        typer.Option(
            help="beats: in beat time; told: so, with tempo and key said; search: as recorded, from anywhere; "
            "grid: where windows start; or all."
        ),
    ] = "all",
    submix: Annotated[bool, typer.Option(help="Mix a random part of the other stems, not all.")] = False,
    retimed: Annotated[
        bool,
        typer.Option(
            help="The catalog holds every track 4 to 12 % faster or slower, 1 or 2 semitones higher or lower."
        ),
    ] = False,
    learn_sureness: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            callback=in_a_folder,
            help="A file to write the model to, with what these searches tell of sureness.",
        ),
    ] = None,
    device: Device = "cpu",
    cache: Cache = None,
    jobs: Jobs = CORES,
    page: Page = None,
    section: Section = None,
    as_json: AsJson = False,
) -> None:
    """The product's own measure: a mix without one stem, and the rank and the place of that stem in a catalog.

    Embedding dominates: each --align costs a query about as much as a minute of stems takes, grid much less.
    A model that tells how sure a hit is, is judged by it; --learn-sureness teaches it from the first row's searches.
    With --retimed, mixes are as recorded; stretched stems are kept in the cache.

    Example: phalar evaluate catalog --stems ~/stems --queries 20 --retimed
    """
    logging.getLogger("phalar.model").setLevel(logging.ERROR)  # what it warns of is said below, once
    waiting_threads_sleep()
    from model.checkpoints import CheckpointError, Heard, save_phalar
    from model.evaluation.retimed import RetimedBank
    from service.search.evaluation import ROWS, CatalogSettings, NothingToAsk, choose_tracks, evaluate_catalog
    from service.search.sureness import NOTE
    from service.work.models import configured_model

    service = read_settings(checkpoint=checkpoint)  # first: they may be wrong, and decoding takes long
    cache = cache or default_cache()
    bank = open_bank(stems, cache, jobs)
    chosen = choose_tracks(bank, split.value, tracks, seed)
    rows = tuple(row for row in ROWS if align == "all" or row.startswith(align))
    settings = CatalogSettings(queries=queries, seconds=seconds, seed=seed, rows=rows, submix=submix)
    held = RetimedBank(bank, cache / "retimed") if retimed else None
    with _progress() as progress:
        try:
            measuring = evaluate_catalog(bank, chosen, settings, checkpoint, device, progress, held)
            measured, learnt = asyncio.run(measuring)
        except (NothingToAsk, CheckpointError) as error:
            fail(str(error), FAILED)
    if learn_sureness is not None and learnt is not None:
        model = configured_model(service)
        save_phalar(model, learn_sureness, trained=model.trained, notes={**model.notes, NOTE: learnt.as_note()})
    answer = {"checkpoint": str(checkpoint) if checkpoint else None, "split": split.value} | measured
    answer["left_out"] = [str(dropped) for dropped in bank.dropped]
    if answer["model"]["note"]:
        err.print(answer["model"]["note"], style="yellow", markup=False, soft_wrap=True)
    heard = Heard(answer["heard"], len(chosen))
    show_answer(answer, catalog_tables(answer), as_json, page, section, [f"Of the model: {heard}."])


WAY_NAMES = {"alone": "three searches", "in_set": "set, by the mix with the others", "mean": "set, by both"}


def band(
    stems: Stems,
    checkpoint: Checkpoint = None,
    split: Split = SplitChoice.all,
    tracks: Tracks = None,
    queries: Annotated[int, typer.Option(min=1, help="Mixes that lack three stems.")] = 60,
    seconds: Annotated[float, typer.Option(min=1.1, help="Length of a mix.")] = 8.0,
    seed: Seed = 0,
    device: Device = "cpu",
    cache: Cache = None,
    jobs: Jobs = CORES,
    page: Page = None,
    section: Section = None,
    as_json: AsJson = False,
) -> None:
    """A mix without three stems: are they found better as a set than by a search for each?

    Example: phalar evaluate band --stems ~/stems --queries 20
    """
    logging.getLogger("phalar.model").setLevel(logging.ERROR)
    waiting_threads_sleep()
    from model.checkpoints import CheckpointError, Heard
    from service.search.band_evaluation import BandSettings, evaluate_band
    from service.search.evaluation import NothingToAsk, choose_tracks

    read_settings()
    bank = open_bank(stems, cache or default_cache(), jobs)
    chosen = choose_tracks(bank, split.value, tracks, seed)
    with _progress() as progress:
        try:
            asked = BandSettings(queries, seconds, seed)
            answer = asyncio.run(evaluate_band(bank, chosen, asked, checkpoint, device, progress))
        except (NothingToAsk, CheckpointError) as error:
            fail(str(error), FAILED)
    answer = {"checkpoint": str(checkpoint) if checkpoint else None, "split": split.value} | answer
    heard = Heard(answer["heard"], len(chosen))
    show_answer(answer, band_tables(answer), as_json, page, section, [f"Of the model: {heard}."])


def band_tables(answer: dict[str, Any]) -> list[Table]:
    """The tables of this command's JSON: both ways, and how much better a set is."""
    about = (
        f"{answer['queries']} mixes of {answer['seconds']:g} s of {answer['tracks_asked']} tracks; each stem among "
        f"{answer['candidates']:.0f} of its instrument"
    )
    measures = ("top1", "top3", "mean_reciprocal_rank", "all_right", "of_one_piece", "score")
    columns = ("", "top 1", "top 3", "MRR", "all three right", "pairs of one piece", "score")
    tables = [new_table(f"Three missing stems ({about})", *columns), new_table("More than three searches", *columns)]
    for table, rows in zip(tables, (answer["ways"], answer["more_than_alone"]), strict=True):
        for way, found in rows.items():
            cells = [_interval(found[name], share=name not in ("mean_reciprocal_rank", "score")) for name in measures]
            table.add_row(WAY_NAMES[way], *cells)
    chance = answer["chance"]
    cells = [f"{chance['mean_reciprocal_rank']:.3f}" if "rank" in name else f"{chance[name]:.1%}" for name in chance]
    tables[0].add_row("chance", *cells, "", "")
    return tables


def _interval(figure: dict[str, float], *, share: bool) -> str:
    value, low, high = (figure[name] for name in ("value", "low", "high"))
    if share:
        return f"{value:.0%} ({100 * low:.0f} to {100 * high:.0f})"
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def catalog_tables(answer: dict[str, Any]) -> list[Table]:
    """The tables of this command's JSON: ranks among three sets of stems, then places and times."""
    held = answer["catalog"]
    tables = []
    for among, title in AMONG_NAMES.items():
        first = next(iter(answer["rows"].values()))["among"][among]
        about = (
            f"{first['queries']} mixes of {answer['seconds']:g} s of {answer['tracks_asked']} tracks; "
            f"{first['candidates']:.0f} of {held['stems']} stems"
        )
        tables.append(new_table(f"{title} ({about})", "align", "top 1", "top 5", "top 10", "median", "MRR"))
        for row, measured in answer["rows"].items():
            ranks = measured["among"][among]
            shares = [_share(ranks[top]) for top in ("top1", "top5", "top10")]
            median, reciprocal = ranks["median_rank"], ranks["mean_reciprocal_rank"]
            tables[-1].add_row(ROW_NAMES[row], *shares, f"{median['value']:g}", f"{reciprocal['value']:.3f}")
        chances = [f"{first[top]['chance']:.1%}" for top in ("top1", "top5", "top10")]
        tables[-1].add_row(
            "chance", *chances, f"{first['median_rank']['chance']:g}", f"{first['mean_reciprocal_rank']['chance']:.3f}"
        )
    judged = ("speed", "key") if answer["retimed"] else ()
    title = "Place, where the stem is in the top 10 of the first table; in brackets, an exact repeat being right too"
    errors = ("median ms", "in 20 ms", "in 100 ms")
    tables.append(new_table(title, "align", "found", *errors, "on a beat", "chance", "ms off", *judged, "s a query"))
    for row, measured in answer["rows"].items():
        place, took_s = measured["place"], measured["median_ms"]["total"] / 1000
        cells = [_both(place, "median_ms", "{:.0f}")]
        cells += [_both(place, f"within_{ms}_ms", "{:.0%}") for ms in (20, 100)]
        shares = [place["in_time"][name] for name in ("share", "chance")]
        off_ms = place["in_time"]["median_ms"]
        if answer["retimed"]:
            shares += [measured[name]["right"] for name in ("speed", "transpose")]
        told = ["" if share is None else f"{share:.0%}" for share in shares]
        cells += [*told[:2], "" if off_ms is None else f"{off_ms:.0f}", *told[2:]]
        tables[-1].add_row(ROW_NAMES[row], str(place["found"]), *cells, f"{took_s:.2f}")
    for row, measured in answer["rows"].items():
        if said := measured["sureness"]:
            title = f"How sure, {ROW_NAMES[row]}: expected calibration error {said['error']:.3f}"
            tables.append(new_table(title, "said", "true", "share of stems"))
            for each in said["bins"]:
                tables[-1].add_row(*(f"{each[name]:.0%}" for name in ("said", "true", "weight")))
    return tables


def _share(figure: dict[str, float]) -> str:
    return f"{figure['value']:.0%} ({100 * figure['low']:.0f}-{100 * figure['high']:.0f})"


def _both(place: dict[str, Any], name: str, form: str) -> str:
    exact, alike = place["exact"][name], place["or_alike"][name]
    return "" if exact is None else f"{form.format(exact)} ({form.format(alike)})"


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on stderr for each thing that is done."""
    tasks: dict[str, TaskID] = {}
    with bar(transient=True) as bars:

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield report
