"""Keys that mix, and how much of each pitch class sounds."""

import numpy as np
import pytest

from model.audio.harmony import chroma_of, compatible_keys, key_name, tonic_of


@pytest.mark.parametrize(
    ("key", "others"),
    [
        ("A minor", ["A minor", "C major", "E minor", "D minor"]),
        ("C major", ["C major", "A minor", "G major", "F major"]),
        ("F# minor", ["F# minor", "A major", "C# minor", "B minor"]),
        ("Db major", ["Db major", "Bb minor", "Ab major", "Gb major"]),
    ],
)
def test_a_key_mixes_with_its_relative_and_a_fifth_either_way(key: str, others: list[str]) -> None:
    found = compatible_keys(key)
    assert set(others) <= set(found)
    assert {(tonic_of(name), name.split()[1]) for name in found if " " in name} == {
        (tonic_of(name), name.split()[1]) for name in others
    }


def test_keys_come_in_every_spelling() -> None:
    found = compatible_keys("F# minor")
    assert {"F# minor", "F#m", "Gb minor", "Gbm", "A major", "A"} <= set(found)
    assert len(set(found)) == len(found)


def test_mixing_goes_both_ways() -> None:
    keys = [key_name(tonic, mode) for tonic in range(12) for mode in ("major", "minor")]
    for one in keys:
        assert one in compatible_keys(one)
        for other in keys:
            assert (other in compatible_keys(one)) == (one in compatible_keys(other))


@pytest.mark.parametrize("name", ["", "whatever", "H minor", "A dorian", "major"])
def test_what_is_no_key_mixes_with_none(name: str) -> None:
    assert compatible_keys(name) == ()


def test_pitch_classes_are_compared_by_their_share_whatever_the_level() -> None:
    weights = np.array([9.0, 0, 4, 0, 6, 3, 0, 8, 0, 4, 0, 2])
    chroma, louder, higher = chroma_of(weights), chroma_of(30 * weights), chroma_of(np.roll(weights, 1))
    assert chroma is not None
    assert (float(chroma.sum()), float(chroma @ chroma)) == pytest.approx((0, 1), abs=1e-6)
    np.testing.assert_allclose(np.stack([louder, higher]), [chroma, np.roll(chroma, 1)], atol=1e-6)


def test_where_all_pitch_classes_sound_alike_there_is_nothing_to_compare() -> None:
    assert chroma_of(np.zeros(12)) is None
    assert chroma_of(np.full(12, 7.5)) is None
