"""What is said of a clip's music: by its uploader, its file and its name, in this order."""

import pytest

from indexer import StemMetadata
from model.audio.said import Said, said_by
from service.api.ingest import music_of

NOTHING = Said()
TAGGED = said_by("tags", Said(tempo_bpm=128.0, key="A minor"))


def test_a_file_is_believed_before_its_name_and_a_contradiction_is_told() -> None:
    music = music_of(StemMetadata(), TAGGED, "bass_loop_90bpm_Cm.wav", 9.9)
    assert (music.tempo_bpm, music.key, music.kind, music.beats) == (128.0, "A minor", "loop", None)
    assert music.sources == {"tempo_bpm": "tags", "key": "tags", "kind": "name"}
    assert music.warnings == (
        "its tags say 128 BPM, its name says 90 BPM",
        "its tags say A minor, its name says C minor",
    )


def test_metadata_come_before_all_and_a_contradiction_is_told() -> None:
    metadata = StemMetadata(tempo_bpm=100.0, key="Dm", kind="piece")
    music = music_of(metadata, TAGGED, "bass_loop.wav", 9.9)
    assert (music.tempo_bpm, music.key, music.kind) == (100.0, "Dm", "piece")
    assert set(music.sources.values()) == {"said"}
    assert music.warnings == (
        "it was uploaded as 100 BPM, its tags say 128 BPM",
        "it was uploaded as D minor, its tags say A minor",
        "it was uploaded as piece, its name says loop",
    )


@pytest.mark.parametrize("key", ["whatever", "o", "C# locrian", "8A", "a minor", "Am", "A"])
def test_a_key_stays_as_it_was_written_and_contradicts_nothing_if_it_is_none_or_the_same(key: str) -> None:
    music = music_of(StemMetadata(key=key), TAGGED, "x.wav", 9.9)
    assert (music.key, music.sources["key"], music.warnings) == (key, "said", ())


def test_a_loop_of_whole_beats_gets_its_exact_tempo() -> None:
    music = music_of(StemMetadata(), NOTHING, "drums_93bpm.wav", 16 * 60 / 92.9999)
    assert (music.tempo_bpm, music.beats) == (pytest.approx(92.9999, abs=1e-9), 16)
    assert music.sources == {"tempo_bpm": "name"}


def test_beats_without_a_tempo_are_not_kept() -> None:
    music = music_of(StemMetadata(), said_by("chunk", Said(beats=16.0)), "x.wav", 0.5)  # 1920 BPM
    assert (music.tempo_bpm, music.beats, music.sources) == (None, None, {})


def test_a_clip_of_which_nothing_is_said_has_no_facts() -> None:
    music = music_of(StemMetadata(), NOTHING, "bass.wav", 9.9)
    assert (music.tempo_bpm, music.key, music.kind, music.beats, music.sources, music.warnings) == (
        *(None,) * 4,
        {},
        (),
    )
