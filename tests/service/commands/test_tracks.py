"""Stem files and a separator's folders: each a track of its stems."""

from pathlib import Path

import httpx

from service.commands.folders import Found
from service.commands.tracks import stems_of
from tests.command import phalar
from tests.installation import Installation, encode, noise_bursts
from tests.stem_files import NAMES, SAID, write_stem_file


def test_a_stem_file_becomes_a_track_of_its_four_stems_and_is_known_again(
    installation: Installation, client: httpx.Client, tmp_path: Path
) -> None:
    write_stem_file(tmp_path / "Night Bus.stem.mp4", SAID)
    asked = ("ingest", tmp_path, "--url", installation.url, "--collection", "native")
    first = phalar(*asked)
    assert first.exit_code == 0, first.stderr
    stems = client.get("/stems", params={"collection": "native"}).json()["stems"]
    try:
        assert {stem["instrument"] for stem in stems} == set(NAMES)
        assert {stem["title"] for stem in stems} == {f"Night Bus - {name}" for name in NAMES}
        assert {stem["track"] for stem in stems} == {"Night Bus"}
        assert all(stem["tags"] == ["#009E73"] and stem["state"] == "ready" for stem in stems)
        assert "0 ready, 4 known already, 0 failed" in phalar(*asked).stderr
    finally:
        for stem in stems:
            client.delete(f"/stems/{stem['id']}")


def test_a_separators_folder_is_a_track_of_its_instruments(tmp_path: Path) -> None:
    folder = tmp_path / "htdemucs" / "Night Bus"
    folder.mkdir(parents=True)
    for name in ("drums", "bass", "other", "vocals", "take 2"):
        (folder / f"{name}.wav").touch()
    (tmp_path / "bass.wav").touch()
    for name in ("drums", "bass", "other", "vocals"):
        (stem,) = stems_of({}, Found(folder / f"{name}.wav"))
        assert stem.metadata == {"instrument": name, "track": "Night Bus"}
    (stem,) = stems_of({"track": "mine"}, Found(folder / "bass.wav", "Night Bus"))
    assert stem.metadata == {"instrument": "bass", "track": "mine"}
    (stem,) = stems_of({}, Found(folder / "take 2.wav", "Night Bus"))
    assert stem.metadata == {"track": "Night Bus"}
    (stem,) = stems_of({}, Found(tmp_path / "bass.wav", "loops"))
    assert stem.metadata == {"track": "loops"}, "alone, it is a file that is called so"


def test_what_only_looks_like_a_stem_file_is_sent_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.stem.mp4").write_bytes(encode(noise_bursts(1)))
    (stem,) = stems_of({"collection": "x"}, Found(tmp_path / "a.stem.mp4", "folder"))
    assert (stem.path.name, stem.part, stem.metadata) == ("a.stem.mp4", None, {"track": "folder", "collection": "x"})
