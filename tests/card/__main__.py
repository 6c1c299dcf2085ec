"""What a card without numbers is asked: `python -m tests.card step paper --batch 64 + serve`, a line of JSON each."""

from tests.card import Card, torch  # first: it tells torch of the card

import argparse  # isort: skip
import dataclasses
import json
import sys
import tempfile
from itertools import groupby, product
from pathlib import Path

import numpy as np

from model.checkpoints import load_phalar
from model.phalar import PhalarConfig
from model.training.recipe import Recipe, load_recipe
from model.training.stems import ACTIVITY_HOP, StemBank
from model.training.train import Trainer

CARD = torch.device("cuda", 0)
RATE = 16_000
SMALL = PhalarConfig(channels=2, growth=1.0, depth=1, pooled_channels=16, dimension=32)


def bank_of_silence(folder: Path, tracks: int, stems: int, seconds: float) -> StemBank:
    """A bank that takes no room and no time to make: every stem is said to sound."""
    folder.mkdir(parents=True)
    samples = round(seconds * RATE)
    with (folder / "samples.i16").open("wb") as file:
        file.truncate(tracks * stems * samples * 2)
    np.save(folder / "activity.npy", np.full(tracks * stems * -(-samples // ACTIVITY_HOP), 0.01, np.float32))
    said = {"stems": [f"stem {number}" for number in range(stems)], "samples": samples, "pitched": [True] * stems}
    said |= {"beats_s": np.arange(0, seconds, 0.5).tolist(), "grid": "said", "key": "A minor"}
    entries = [said | {"name": f"silence/{at:04d}", "offset": at * stems * samples} for at in range(tracks)]
    (folder / "tracks.json").write_text(json.dumps({"tracks": entries, "dropped": []}))
    return StemBank([folder])


def step(recipe: Recipe, seconds: float, steps: int, resumed: bool) -> dict[str, object]:
    """The last of so many steps of a recipe, and a validation; after one step on the CPU, or from the start."""
    recipe = dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, composed=0, shortest_s=seconds, longest_s=seconds),
        loss=dataclasses.replace(recipe.loss, decoys_from=0),
    )
    with tempfile.TemporaryDirectory() as scratch:
        bank = bank_of_silence(Path(scratch) / "bank", recipe.batch * 3 // 2 + 10, 6, max(seconds, 5.0) + 2)
        run = Path(scratch) / "run"
        if resumed:
            Trainer(recipe, bank, run, torch.device("cpu")).run(stop_at=1)
        with Card() as card:
            trainer = Trainer(recipe, bank, run, CARD)
            for _ in range(steps):
                card.reset()
                taken = trainer._train_step()
            measured = counts(card)
            trainer._fetch([taken])
            fetched = counts(card)["waits"]
            trainer.validate()
            trainer._ahead.close()
        devices = {str(tensor.device) for tensor in (*trainer.model.parameters(), *trainer.model.buffers())}
    return measured | {"devices": sorted(devices), "fetched": fetched}


def serve() -> dict[str, object]:
    """One micro-batch embedded, scored, and the fingerprint."""
    with Card() as card:
        model = load_phalar("model/default.safetensors").to(CARD)
        clips = np.zeros((64, 5 * RATE), np.float32)
        model.embed(clips)
        card.reset()
        embedding = model.embed(clips)
        measured = counts(card)
        scores = model.score(embedding, embedding)
        fingerprint = model.fingerprint
    types = {str(tensor.dtype) for tensor in (embedding, scores)}
    return measured | {"devices": [str(scores.device)], "types": sorted(types), "fingerprint": len(fingerprint)}


def counts(card: Card) -> dict[str, object]:
    """What stands on the card's meters."""
    return {
        "launches": sum(card.launches.values()),
        "gigabytes": card.bytes_moved / 1e9,
        "waits": list(card.waits),
        "uploads": dict(card.uploads),
        "by_operation": dict(card.launches.most_common()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["step", "serve"])
    parser.add_argument("recipes", nargs="*")
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=2.4)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--resumed", action="store_true", help="after the same steps of a new run")
    parser.add_argument("--small", action="store_true")
    for given in (list(part) for between, part in groupby(sys.argv[1:], lambda word: word == "+") if not between):
        answer(parser.parse_args(given))


def answer(asked: argparse.Namespace) -> None:
    if asked.what == "serve":
        print(json.dumps({"recipe": "served"} | serve()))
    for name, resumed in product(asked.recipes, (False, True) if asked.resumed else (False,)):
        try:
            recipe = load_recipe(Path(name), batch=asked.batch)
            if asked.small:
                recipe = dataclasses.replace(recipe, encoder=SMALL)
            told = step(recipe, asked.seconds, asked.steps, resumed)
        except Exception as error:  # each recipe is to be heard of
            told = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({"recipe": f"{name}{' again' if resumed else ''}"} | told), flush=True)


if __name__ == "__main__":
    main()
