"""Into which keys a stem may be moved."""

import numpy as np
import pytest

from indexer import StemMusic
from service.search.retrieval import Asked

KEYS = (-2, -1, 0, 1, 2)


def may_move(tonic: int | None, music: StemMusic) -> list[int]:
    asked = Asked(None, None, np.array(KEYS), None, tonic)  # type: ignore[arg-type]  # only its keys are looked at
    return [key for key in KEYS if asked.may_move(music, key)]


def stem(key: str | None, source: str = "said", *, pitched: bool = True) -> StemMusic:
    return StemMusic("loop", pitched, None, key, {} if key is None else {"key": source}, {}, None, None)


@pytest.mark.parametrize(
    ("tonic", "music", "expected"),
    [
        (0, stem("C major"), [0]),
        (0, stem("A minor", "tags"), [0]),  # the relative
        (0, stem("B minor", "name"), [-2]),
        (11, stem("C major", "chunk"), [-1]),
        (1, stem("B major"), [2]),
        (6, stem("C major"), [0]),  # six semitones off: as it was recorded
        (0, stem("B minor", "heard"), list(KEYS)),
        (0, stem(None), list(KEYS)),
        (None, stem("B minor"), list(KEYS)),
        (2, stem(None, pitched=False), [0]),
    ],
)
def test_a_stem_moves_into_a_key_that_was_said_and_into_any_where_none_was(
    tonic: int | None, music: StemMusic, expected: list[int]
) -> None:
    assert may_move(tonic, music) == expected
