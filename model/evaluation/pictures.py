"""What the evaluations measured, drawn: several models, or sets, beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

STYLES = ("o-", "s--", "^:", "v-.")


def draw_matched(answers: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw accuracy against candidates, and the score against delay and transposition.

    Args:
        answers: the JSON of the command, by the name that its curves get.
        path: of the picture; its ending says which kind, such as .svg.

    Raises:
        KeyError: an answer without what `--matched` measures.
        ModuleNotFoundError: matplotlib is not installed.
    """
    figure = _figure(11, 3.6)
    among, late, keys = figure.subplots(1, 3)
    for at, (name, answer) in enumerate(answers.items()):
        style = STYLES[at % len(STYLES)]
        for how, colour in (("candidates", "tab:blue"), ("matched", "tab:orange")):
            counts = [int(count) for count in answer[how]]
            shares = [share["accuracy"] for share in answer[how].values()]
            said = {"candidates": "as recorded", "matched": "matched"}[how]
            among.plot(counts, shares, style, color=colour, label=f"{name}, {said}")
        delays = answer["delays"]
        late.plot([int(ms) for ms in delays], [row["score"] for row in delays.values()], style, label=name)
        moved = {int(semitones): row["share_lower"] for semitones, row in answer["keys_of_pitched_pairs"].items()}
        order = sorted(moved)
        keys.plot(order, [moved[semitones] for semitones in order], style, label=name)
    among.set(
        xlabel="candidates", ylabel="accuracy", xscale="log", ylim=(0, 1), title="Its own positive scores highest"
    )
    among.set_xticks(counts, [str(count) for count in counts])
    among.minorticks_off()
    late.set(xlabel="ms late", ylabel="mean score", title="The positive delayed")
    keys.set(xlabel="semitones", ylabel="share of pairs", ylim=(0.5, 1), title="Lower in another key")
    _save(figure, path)


def draw_sureness(answers: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw the share of stems that belong to their mix against the share that was said.

    Args:
        answers: the JSON of `phalar evaluate catalog`, by the name that its curve gets; of each, its row "beats".
        path: as for `draw_matched`.

    Raises:
        KeyError, ModuleNotFoundError: as `draw_matched`.
    """
    figure = _figure(4.2, 3.8)
    axes = figure.subplots()
    axes.plot((0, 1), (0, 1), color="gray", linewidth=1)
    for at, (name, answer) in enumerate(answers.items()):
        measured = answer["rows"]["beats"]["sureness"]
        points = [(each["said"], each["true"], each["weight"]) for each in measured["bins"]]
        said, true, weight = zip(*points, strict=True)
        style, label = STYLES[at % len(STYLES)][1:], f"{name}: error {measured['error']:.3f}"
        axes.plot(said, true, style, color=f"C{at}", label=label)
        axes.scatter(said, true, [400 * share for share in weight], color=f"C{at}", alpha=0.5)
    axes.set(xlabel="said", ylabel="true", xlim=(0, 1), ylim=(0, 1), title="Share of stems that belong to the mix")
    _save(figure, path)


def _figure(width: float, height: float) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "phalar"  # the same figures give the same file
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
