"""Train Phalar, each ablation and COCOLA for the same steps on the same data, measure all, and write the table.

    python -m benchmarks.compare --stems DIR --real DIR --page docs/results.md

What all of them share beside the default recipe (batch, steps, lengths) stands in ablations.toml beside this file.
Every run lies in a folder of its own and goes on where it ended, so this may be stopped and started again at any time.
"""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

from benchmarks.page import page_parser, publish
from model.evaluation.results import retrieval_markdown
from model.training.recipe import RECIPES as RECIPE_FOLDER

SHARED = Path(__file__).with_name("ablations.toml")
RECIPES = ("default", "one-way", "average-pooling", "magnitudes", "mel", "cosine", "psd", "cocola")
WHOLE_BATCHES = ("cocola",)
"""Recipes whose batch normalisation must see the whole batch: never shared by processes."""


def phalar(*arguments: str, processes: int = 1) -> str:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    program = [sys.executable] if processes == 1 else launcher
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} if processes > 1 else {}
    command, environment = [*program, "-m", "service.commands", *arguments], os.environ | one_thread
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--stems", type=Path, required=True, help="rendered tracks: the train and the test split")
    parser.add_argument("--real", type=Path, help="real tracks, only measured on")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cache", type=Path, help="where decoded stems are kept")
    parser.add_argument("--processes", type=int, default=1, help="that train together; on a CPU, one for each core")
    parser.add_argument("--pairs-per-track", type=int, default=2)
    parser.add_argument("recipes", nargs="*", default=list(RECIPES))
    arguments = parser.parse_args()
    common = ["--device", arguments.device, *(["--cache", str(arguments.cache)] if arguments.cache else [])]
    shared = SHARED.read_text(encoding="utf-8")
    steps = tomllib.loads(shared)["steps"]
    measured: dict[str, dict[str, dict[str, object]]] = {"compared-rendered": {}, "compared-real": {}}
    for recipe in arguments.recipes:
        home = arguments.runs / f"{recipe}-{steps}"
        if not (home / "model.safetensors").is_file():
            home.mkdir(parents=True, exist_ok=True)
            changed = home / "recipe.toml"
            changed.write_text(f'extends = "{RECIPE_FOLDER / recipe}.toml"\n{shared}', encoding="utf-8")
            options = ["--stems", str(arguments.stems), "--out", str(home), *common]
            phalar("train", str(changed), *options, processes=1 if recipe in WHOLE_BATCHES else arguments.processes)
        sets = [("compared-rendered", arguments.stems, "test"), ("compared-real", arguments.real, "all")]
        for section, stems, split in sets:
            if stems is None:
                continue
            answer = home / f"{section}.json"
            if not answer.is_file():
                options = ["--stems", str(stems), "--split", split, "--pairs-per-track", str(arguments.pairs_per_track)]
                options += ["--checkpoint", str(home / "model.safetensors"), "--matched", *common]
                answer.write_text(phalar("evaluate", "retrieval", *options, "--json"), encoding="utf-8")
            measured[section][recipe] = json.loads(answer.read_text(encoding="utf-8"))
        for section, answers in measured.items():
            if answers:
                table = f"After {steps} steps each.\n\n{retrieval_markdown(answers)}"
                publish(table, arguments.page, section)


if __name__ == "__main__":
    main()
