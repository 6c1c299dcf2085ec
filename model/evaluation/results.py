"""Results as they stand in docs: Markdown tables of what the evaluation commands measured, each in a marked section."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.errors import Told

if TYPE_CHECKING:
    from rich.table import Table


class NoSection(Told):
    """The page has no such section: an opening and a closing mark, in this order, each once."""

    says = "{page} needs the lines <!-- results: {name} --> and <!-- end of {name} -->, in this order, each once"
    page: Path
    name: str


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, all others to the right."""
    rules = ["---", *["---:"] * (len(header) - 1)]
    lines = [header, rules, *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def tables_markdown(tables: Sequence[Table]) -> str:
    """The commands' tables in Markdown, each under its title."""
    parts = []
    for table in tables:
        header = [str(column.header) for column in table.columns]
        rows = list(zip(*(map(str, column.cells) for column in table.columns), strict=True))
        parts.append(f"**{table.title}**\n\n{markdown_table(header, rows)}")
    return "\n".join(parts)


def retrieval_markdown(answers: dict[str, dict[str, Any]]) -> str:
    """Systems below each other, measured on the same pairs.

    Args:
        answers: the JSON of `phalar evaluate retrieval`, by the name that the row gets.

    Returns:
        A table with a column for each count of candidates, as recorded and, where measured, matched; for candidates of
        like tempo, another key, other windows of the same track, and a delay of 250 ms; all with 95 % intervals. Its
        second row says what chance gives. Below, who heard some of the tracks in training, where that is known.

    Raises:
        ValueError: no answer, or answers that were not measured on the same tracks, pairs and counts of candidates.
    """
    alike = ("tracks", "pairs", "seconds", "seed", "split", "matched_tracks")
    measured = {
        tuple([tuple(answer["candidates"]), tuple(answer.get("matched", ())), *map(answer.get, alike)])
        for answer in answers.values()
    }
    if len(measured) != 1:
        raise ValueError(f"a table needs answers of one measurement, not of {len(measured)}")
    first = next(iter(answers.values()))
    possible: dict[str, tuple[str, ...]] = {f"K = {count}": ("candidates", count) for count in first["candidates"]}
    possible |= {f"matched, K = {count}": ("matched", count) for count in first.get("matched", ())}
    possible |= {
        f"of like tempo, K = {count}": ("of_like_tempo", count) for count in [*first.get("of_like_tempo", ())][:1]
    }
    possible |= {"lower a semitone up": ("keys_of_pitched_pairs", "1"), "own other windows": ("time",)}
    possible |= {"lower at 250 ms": ("delays", "250")}
    columns = {
        title: ("share_lower" if title.startswith("lower") else "accuracy", path)
        for title, path in possible.items()
        if all(_at(answer, path) for answer in answers.values())
    }
    rows = [["chance", *(f"{_at(first, path).get('chance', 0.5):.1%}" for _, path in columns.values())]]
    for name, answer in answers.items():
        rows.append([name, *(_share(_at(answer, path), value) for value, path in columns.values())])
    heard = {name: answer["heard"] for name, answer in answers.items() if answer.get("heard") is not None}
    of = f"of the {first['tracks']} tracks in training."
    said = [f"{name} heard {count} {of}" for name, count in heard.items() if count]
    if not said and len(heard) == len(answers):
        said = [f"None of them heard any {of}"]
    return "\n".join([markdown_table(["system", *columns], rows), *said])


def write_section(page: Path, name: str, text: str) -> None:
    """Put text between the marks of a section, in the place of what stood there.

    Raises:
        NoSection: the page lacks the marks.
    """
    before, after = around_section(page, name)
    page.write_text(f"{before}\n{text.strip()}\n{after}", encoding="utf-8")


def around_section(page: Path, name: str) -> tuple[str, str]:
    """What stands on a page before and after the text of a section, its marks included; raises NoSection."""
    opens, closes = f"<!-- results: {name} -->", f"<!-- end of {name} -->"
    before, opening, rest = page.read_text(encoding="utf-8").partition(opens)
    _, closing, after = rest.partition(closes)
    if not opening or not closing or opens in after or closes in before + after:
        raise NoSection(page, name)
    return before + opening, closing + after


def _at(answer: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """What stands there in an answer; empty where it was not measured."""
    for key in path:
        answer = answer.get(key) or {}
    return answer


def _share(share: dict[str, Any], value: str) -> str:
    return f"{share[value]:.1%} ({share['low']:.1%} to {share['high']:.1%})"
