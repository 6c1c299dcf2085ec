"""What each round of training, and each mean of rounds, is worth: what they are chosen by, so never the test split.

    python -m benchmarks.rounds --stems rendered --split validation --stems real_stems --split all
        --page docs/model-card.md "second round=runs/second/model.safetensors" "mean=mean.safetensors" ...

Steps and hours are those of the `log.jsonl` beside a checkpoint, where there is one. What was measured is kept in
`--answers`, by the checkpoint's bytes and the question, and not measured again.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from benchmarks.compare import phalar
from benchmarks.page import add_folders, folders_of, page_parser, publish
from model.evaluation.results import markdown_table
from model.training.train import LOG

SECTION = "rounds"


def measured(answers: Path, checkpoint: Path, *arguments: str) -> dict[str, Any]:
    """What a command of `phalar evaluate` answers, or has answered."""
    asked = hashlib.sha256(checkpoint.read_bytes() + json.dumps(arguments).encode()).hexdigest()
    answer = answers / f"{asked[:16]}.json"
    if not answer.is_file():
        answer.write_text(phalar("evaluate", *arguments, "--checkpoint", str(checkpoint), "--json"), encoding="utf-8")
    result: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return result


def trained(checkpoint: Path) -> dict[str, str]:
    """Steps, and hours by their clock; empty for a model that no run wrote."""
    log = checkpoint.parent / LOG
    if not log.is_file():
        return {"steps": "", "hours": ""}
    by_step = {step["step"]: step for step in map(json.loads, log.read_text(encoding="utf-8").splitlines())}
    seconds = sum(sum(step["timing_s"].values()) for step in by_step.values())
    return {"steps": f"{max(by_step):,}", "hours": f"{seconds / 3600:.1f}"}


def retrieval_cells(answer: dict[str, Any]) -> dict[str, str]:
    cells = {f"K = {count}": f"{share['accuracy']:.1%}" for count, share in answer["candidates"].items()}
    cells |= {f"matched, K = {count}": f"{share['accuracy']:.1%}" for count, share in answer["matched"].items()}
    for semitones in ("1", "-1"):
        cells[f"lower at {int(semitones):+d} semitone"] = f"{answer['keys'][semitones]['share_lower']:.0%}"
    cells["lower at 40 ms"] = f"{answer['delays']['40']['share_lower']:.0%}"
    return cells


def catalog_cells(answer: dict[str, Any]) -> dict[str, str]:
    cells: dict[str, str] = {}
    for label, asked in (("search", "search"), ("aligned", "grid_on_grid")):
        row = answer["rows"][asked]
        among, on_a_beat = row["among"]["other_tracks"], row["place"]["in_time"]["share"]
        cells[f"{label}: first"] = f"{among['top1']['value']:.0%}"
        cells[f"{label}: in ten"] = f"{among['top10']['value']:.0%}"
        if label == "search":
            cells[f"{label}: on a beat"] = "" if on_a_beat is None else f"{on_a_beat:.0%}"
    return cells


def main() -> None:
    parser = page_parser(__doc__)
    add_folders(parser)
    parser.add_argument("--candidates", default="8,64")
    parser.add_argument("--pairs", type=int, default=400, help="of each folder, at most")
    parser.add_argument("--queries", type=int, default=60, help="of a catalog of at most 60 tracks of each folder")
    parser.add_argument("--cache", type=Path, help="where decoded stems are kept")
    parser.add_argument("--answers", type=Path, default=Path("runs/rounds"), help="what was measured already")
    parser.add_argument("models", nargs="+", metavar="name=checkpoint")
    arguments = parser.parse_args()
    arguments.answers.mkdir(parents=True, exist_ok=True)
    tables = []
    for folder, split in folders_of(arguments):
        rows: list[dict[str, str]] = []
        tracks = ["--stems", str(folder), "--split", split]
        tracks += ["--cache", str(arguments.cache)] if arguments.cache else []
        pairs = ["--candidates", arguments.candidates, "--pairs-per-track", "8", "--matched"]
        pairs += ["--most-pairs", str(arguments.pairs)]
        catalog = ["--tracks", "60", "--queries", str(arguments.queries)]
        for name, path in (model.split("=", 1) for model in arguments.models):
            checkpoint = Path(path)
            rows.append(
                {"model": name}
                | trained(checkpoint)
                | retrieval_cells(measured(arguments.answers, checkpoint, "retrieval", *tracks, *pairs))
                | catalog_cells(measured(arguments.answers, checkpoint, "catalog", *tracks, *catalog))
            )
        table = markdown_table(list(rows[0]), [list(row.values()) for row in rows])
        tables.append(f"**{folder.name}, {split}**\n\n{table}")
    publish("\n".join(tables), arguments.page, SECTION)


if __name__ == "__main__":
    main()
