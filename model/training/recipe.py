"""What a training run is: a TOML file of these settings. `extends` names a recipe that it changes."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from model.audio.errors import BadFile
from model.cqt import MOST_SEMITONES
from model.phalar import PhalarConfig

LEAST_BEATS = 4
"""Of a window in beat time: fewer would be shorter, at the fastest tempo, than the CQT can analyse."""

MOST_KEYS = 5
"""Up or down of a transposed pair: kernels of lower bins would be longer than the CQT's padding."""

WITHOUT_SEMITONES = ("mel", "cocola")
"""Models whose spectrogram shows no semitones."""

RECIPES = Path(__file__).parent / "recipes"

_PARTS = ("data.matched", "data.one_key", "data.one_tempo", "data.unpitched", "augment.noise", "augment.equalised",
          "augment.saturated", "augment.stretched", "augment.gated", "loss.positive", "loss.decoys", "loss.beat_decoys",
          "loss.key_decoys")  # fmt: skip
RANGES: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("steps", "batch", "validate_every"), (1, math.inf)),
    **dict.fromkeys(_PARTS, (0, 1)),
    "clips_per_pass": (0, math.inf),
    "data.composed": (0, math.inf),
    "data.composed_seconds": (1, 600),
    "data.fewest_beats": (LEAST_BEATS, math.inf),
    "data.semitones": (0, MOST_SEMITONES),
    "loss.keys": (0, MOST_KEYS),
}
"""What entries may be; both ends are allowed."""


class BadRecipe(BadFile):
    """A recipe that cannot be used; says which entry, and why."""


@dataclass(frozen=True)
class DataSettings:
    """What examples are made of."""

    composed: int = 0  # tracks of our own composer, beside those on disk
    composed_seconds: float = 20.0  # of each
    most_seconds: float | None = None  # of each track on disk; unset: all
    shortest_s: float = 2.0  # of an example; each batch draws one length for all its examples
    longest_s: float = 10.0
    matched: float = 0.0  # part of the batches that are in beat time: one tempo, each window on a beat
    fewest_beats: int = 4  # of an example in beat time; each batch draws one number for all its examples
    most_beats: int = 10
    semitones: int = 6  # each pair in beat time is moved up or down by at most so many
    one_key: float = 0.0  # part of those batches whose tracks are all brought to one key, where theirs is known
    one_tempo: float = 0.0  # part of those batches whose tracks were recorded at like tempi, octaves folded
    unpitched: float = 0.0  # part of the examples one side of which has only stems that play no notes
    split_seed: int = 0


@dataclass(frozen=True)
class AugmentSettings:
    """What happens to each side of an example by itself."""

    gain_db: float = 6.0  # up or down, at most
    noise: float = 0.5  # part of the sides that get noise, of a kind drawn anew each time
    quietest_snr_db: float = 40.0
    loudest_snr_db: float = 10.0
    equalised: float = 0.0  # part of the sides that an equaliser bends, half of which a filter cuts too
    equaliser_db: float = 6.0  # the deviation of its bands, which are an octave wide
    saturated: float = 0.0  # part of the sides that are driven into a soft limit
    stretched: float = 0.0  # in beat time: part of the positives from audio that a stretcher played at another tempo
    gated: float = 0.0  # part of the sides of which only a stretch sounds, a quarter of it to three quarters
    tuning_cents: float = 0.0  # how far all of a batch lies above or below concert pitch, at most
    apart_cents: float = 0.0  # in beat time: by how much each side deviates from that, usually
    balance_db: float = 0.0  # in beat time: each stem of a submix up or down, at most


@dataclass(frozen=True)
class LossSettings:
    """InfoNCE over a batch."""

    positive: float = 0.9  # the target of the true pair; the rest is spread over the others
    form: Literal["hermitian", "one way"] = "hermitian"  # one way: by W itself, made symmetric only for use
    start: Literal["cosine", "random"] = "cosine"  # of the form: H = 10 I, or random numbers, to be unlearned first
    direction: Literal["both", "one"] = "both"  # one: anchors pick positives only, not positives anchors too
    negatives: Literal["positives", "all"] = "positives"  # all: the other tracks' anchors too
    decoys: float = 0.0  # part of the examples whose positive is a negative too, at the wrong time
    decoys_from: int = 0  # the step with which they begin
    nearest_decoy_s: float = 0.04  # how far off the time of one is, earlier or later
    farthest_decoy_s: float = 0.6
    beat_decoys: float = (
        1.0  # in beat time: part of the examples whose positive is a negative too, where it does not fit
    )
    key_decoys: float = 0.5  # part of those that are in another key; the others are at another beat
    keys: int = 0  # in beat time: what plays notes is a negative in each key up to so many semitones away too


@dataclass(frozen=True)
class OptimiserSettings:
    """Muon for matrices and convolutions (or AdamW for all), AdamW for the rest."""

    matrices: Literal["muon", "adamw"] = "muon"
    muon_rate: float = 0.02
    muon_momentum: float = 0.95
    adam_rate: float = 4e-3
    adam_betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 1e-3
    warmup: int = 200  # steps from zero to the full rate
    decay: float = 0.3  # part of all steps, the last ones, over which the rates fall to zero
    most_gradient: float = 1.0  # the norm that gradients are cut to


@dataclass(frozen=True)
class Recipe:
    """A whole run."""

    model: str = "phalar"  # or a variant, see `model.training.variants`
    encoder: PhalarConfig = field(default_factory=PhalarConfig)  # of Phalar and its variants
    steps: int = 80_000
    batch: int = 64  # pairs a step, over all processes
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "bfloat16"  # bfloat16: autocast, on GPUs only
    clips_per_pass: int = 0  # clips that go through the network at once; 0: as many as the batch has
    checkpoint_minutes: float = 3.0
    validate_every: int = 500  # steps
    validation_pairs: int = 64
    data: DataSettings = field(default_factory=DataSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as JSON and TOML have them."""
        return dataclasses.asdict(self)


def load_recipe(path: Path, **overrides: Any) -> Recipe:
    """Read a recipe and those that it extends.

    Args:
        path: a TOML file; `extends` names one beside it. Where there is none and no folder is named, one of ours is
            meant: `smoke`.
        overrides: top-level entries that replace the file's.

    Raises:
        BadRecipe: an entry that no recipe has, or of another type.
        OSError: no such file.
    """
    path = _found(path, Path())
    entries = _entries(path, ()) | overrides
    recipe: Recipe = _fill(Recipe, entries, path, "")
    _refuse_what_excludes_itself(recipe, path)
    return recipe


def recipe_of(entries: Mapping[str, Any], path: Path) -> Recipe:
    """The recipe that `as_dict` gave, as it stands in a run's checkpoint; what is newer than it has its default.

    Raises:
        BadRecipe: an entry that no recipe has any more.
    """
    recipe: Recipe = _fill(Recipe, dict(entries), path, "")
    return recipe


def _refuse_what_excludes_itself(recipe: Recipe, path: Path) -> None:
    for name, (least, most) in RANGES.items():
        if not least <= (value := attrgetter(name)(recipe)) <= most:
            raise BadRecipe(path, f"{name} is from {least:g} to {most:g}, not {value:g}")
    data, loss = recipe.data, recipe.loss
    for below, above in (("fewest_beats", "most_beats"), ("shortest_s", "longest_s")):
        if (least := getattr(data, below)) > (most := getattr(data, above)):
            raise BadRecipe(path, f"data.{below} is {least:g}, which is more than data.{above}, {most:g}")
    if loss.keys and loss.negatives != "all":
        raise BadRecipe(path, "loss.keys needs loss.negatives = 'all'")
    entries = {"data.semitones": data.semitones, "loss.keys": loss.keys, "augment.stretched": recipe.augment.stretched}
    if data.matched and any(entries.values()) and recipe.model in WITHOUT_SEMITONES:
        entry = next(name for name, value in entries.items() if value)
        raise BadRecipe(path, f"{entry} must be 0: {recipe.model!r} hears mel bands, which show no key")
    if recipe.encoder != PhalarConfig() and recipe.model == "cocola":
        raise BadRecipe(path, "encoder is Phalar's: COCOLA has its own")


def _found(path: Path, beside: Path) -> Path:
    ours = RECIPES / f"{path.stem}.toml"
    return ours if path.parent == Path() and not (beside / path).is_file() and ours.is_file() else beside / path


def _entries(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise BadRecipe(path, "it extends itself")
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRecipe(path, str(error)) from error
    below = entries.pop("extends", None)
    if below is None:
        return entries
    if not isinstance(below, str):
        raise BadRecipe(path, f"extends is {below!r}, and names a recipe")
    return _merge(_entries(_found(Path(below), path.parent), (*seen, path.resolve())), entries)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merge(merged[name], value) if both else value
    return merged


def _fill(kind: Any, entries: dict[str, Any], path: Path, where: str) -> Any:
    known = get_type_hints(kind)
    values: dict[str, Any] = {}
    for name, value in entries.items():
        if name not in known:
            raise BadRecipe(path, f"no recipe has {where}{name!r}; there are {', '.join(known)}")
        default = getattr(kind(), name)
        if dataclasses.is_dataclass(default):
            if not isinstance(value, dict):
                raise BadRecipe(path, f"{where}{name} is a table")
            values[name] = _fill(type(default), value, path, f"{name}.")
            continue
        if isinstance(default, tuple) and isinstance(value, list):
            value = tuple(value)
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if default is not None and type(value) is not type(default):
            raise BadRecipe(path, f"{where}{name} is {value!r}; its default is {default!r}")
        if get_origin(known[name]) is Literal and value not in get_args(known[name]):
            raise BadRecipe(path, f"{where}{name} is {value!r}; there are {', '.join(get_args(known[name]))}")
        values[name] = value
    try:
        return kind(**values)
    except ValueError as error:
        raise BadRecipe(path, f"{where}{error}") from error
