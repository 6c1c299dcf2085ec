"""Why the weights in a checkpoint are refused; of the file itself, `torch_archive` tells."""

from collections.abc import Iterable
from pathlib import Path

from model.checkpoints.torch_archive import CheckpointError


class LegacyPickle(CheckpointError):
    """A bare pickle, from before torch 1.6 or from no torch at all: refused unread."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "a bare pickle, which may run code: save it again with a torch of this decade")


class UnsupportedModel(CheckpointError):
    """A checkpoint of another architecture than PhalarConfig can express."""

    def __init__(self, path: Path, field: str, value: object, expected: object) -> None:
        super().__init__(path, f"its {field} is {value!r}; supported: {expected!r}")
        self.field = field
        self.value = value
        self.expected = expected


class MissingKeys(CheckpointError):
    """Weights that the model needs and the file does not have."""

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        self.names = tuple(sorted(names))
        super().__init__(path, f"lacks {_some(self.names)}")


class ForeignKeys(CheckpointError):
    """Weights that the file has and the model does not know."""

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        self.names = tuple(sorted(names))
        super().__init__(path, f"holds {_some(self.names)}, unknown to this model")


class WrongShape(CheckpointError):
    """A weight of another shape than the model's."""

    def __init__(self, path: Path, name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
        super().__init__(path, f"{name} is of shape {shape}, not {expected}")
        self.name = name
        self.shape = shape
        self.expected = expected


class NonFiniteWeights(CheckpointError):
    """A weight with a NaN or an infinity in it."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(path, f"{name} holds a NaN or an infinity")
        self.name = name


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
