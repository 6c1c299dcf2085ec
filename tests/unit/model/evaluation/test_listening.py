"""Agreement with listeners, on a listening test whose correlations are known."""

import json
from pathlib import Path

import numpy as np
import pytest

from model.evaluation.listening import BadListeningTest, listening, listening_table

SONGS = [f"song {i}" for i in range(12)]
VERSIONS = ("og", "a", "b")


def quality(song: str, version: str) -> int:
    """What every listener hears: 0 to 8, different for most excerpts."""
    return (5 * SONGS.index(song) + 3 * VERSIONS.index(version)) % 9


def write_test(folder: Path, participants: dict[str, tuple[float, float]], scores: dict[str, object]) -> Path:
    """Each participant (its scale's offset and gain) rates all songs' drums; `scores` maps a system to its function."""
    (folder / "ratings").mkdir(parents=True)
    for name, (offset, gain) in participants.items():
        trials = [
            {"folder": s, "type": "drums", "scores": {v: offset + gain * quality(s, v) for v in VERSIONS}}
            for s in SONGS
        ]
        (folder / "ratings" / f"{name}.json").write_text(json.dumps(trials))
    for system, score in scores.items():
        rows = [{"song": s, **{"gt" if v == "og" else v: score(s, v) for v in VERSIONS}} for s in SONGS]
        (folder / f"scores_{system}.json").write_text(json.dumps({"drums": rows}))
    return folder


def test_listening_gives_one_for_a_system_that_hears_what_people_hear(tmp_path: Path) -> None:
    folder = write_test(
        tmp_path,
        {"one": (1, 1), "two": (2, 0.5)},
        {
            "same": lambda s, v: 10.0 + 2.0 * quality(s, v),
            "opposite": lambda s, v: -quality(s, v),
            "bent": lambda s, v: float(np.exp(quality(s, v))),
            "deaf": lambda s, v: 1.0,
        },
    )
    result = listening(folder)
    assert (result.participants, result.ratings, result.excerpts) == (2, 72, 36)
    systems = result.systems
    for correlation in (systems["same"].raw, systems["same"].standardised):
        assert correlation.pearson == pytest.approx(1.0)
        assert correlation.spearman == pytest.approx(1.0)
    assert systems["opposite"].standardised.pearson == pytest.approx(-1.0)
    assert systems["bent"].raw.spearman == pytest.approx(1.0)  # ranks do not bend
    assert systems["bent"].raw.pearson < 0.8
    assert systems["deaf"].raw.pearson == systems["deaf"].standardised.spearman == 0.0


def test_standardising_undoes_how_a_participant_uses_the_scale(tmp_path: Path) -> None:
    """Two heard different songs, and one of them rates everything low: only standardised ratings can be compared."""
    folder = write_test(tmp_path, {"high": (50, 1), "low": (0, 0.1)}, {"same": quality})
    for name, part in (("high", SONGS[:6]), ("low", SONGS[6:])):
        path = folder / "ratings" / f"{name}.json"
        path.write_text(json.dumps([t for t in json.loads(path.read_text()) if t["folder"] in part]))
    agreement = listening(folder).systems["same"]
    assert agreement.standardised.pearson > 0.99
    assert agreement.raw.pearson < 0.3


def test_a_participant_who_rates_all_alike_moves_no_standardised_order(tmp_path: Path) -> None:
    folder = write_test(tmp_path, {"one": (1, 1), "bored": (3, 0)}, {"same": quality})
    assert listening(folder).systems["same"].standardised.spearman == pytest.approx(1.0)


def test_rated_excerpts_without_a_score_are_counted(tmp_path: Path) -> None:
    folder = write_test(tmp_path, {"one": (1, 1)}, {"same": quality})
    path = folder / "scores_same.json"
    path.write_text(json.dumps({"drums": json.loads(path.read_text())["drums"][:10]}))
    agreement = listening(folder).systems["same"]
    assert (agreement.excerpts, agreement.unscored) == (30, 6)


def test_result_is_json_and_its_table_has_a_row_a_system(tmp_path: Path) -> None:
    folder = write_test(tmp_path, {"one": (1, 1)}, {"same": quality, "opposite": lambda s, v: -quality(s, v)})
    result = listening(folder)
    read = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert read["systems"]["opposite"]["raw"]["spearman"] == pytest.approx(-1.0)
    table = listening_table(result)
    assert list(table.columns[0].cells) == ["same", "opposite"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ratings/one.json", '{"a": 1}', "not a participant's ratings"),
        ("ratings/one.json", "[]", "no ratings there"),
        ("scores_same.json", "[1", "not a system's scores"),
        ("scores_same.json", '{"drums": [{"song": "song 0", "gt": NaN}]}', "not finite"),
        ("scores_same.json", '{"drums": [{"song": "x", "a": 1}, {"song": "x", "a": 2}]}', "scored twice"),
        ("scores_same.json", '{"bass": []}', "0 of the rated excerpts are scored"),
    ],
)
def test_a_folder_of_another_layout_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    folder = write_test(tmp_path, {"one": (1, 1)}, {"same": quality})
    (folder / name).write_text(content)
    with pytest.raises(BadListeningTest, match=message):
        listening(folder)


def test_a_folder_without_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadListeningTest, match="no scores_<system>"):
        listening(write_test(tmp_path, {"one": (1, 1)}, {}))
