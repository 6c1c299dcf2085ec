from xml.etree.ElementTree import fromstring, tostring

import pytest
import rpp

from service.work import session
from service.work.session import Session, SessionTrack
from tests.dawproject import METADATA, PROJECT, faults

NAMES = ("bass", 'say "hi"', "it's", "both \" and '", "a ` b", "<&>", "\u266f \u65e5\u672c")


def a_session(tempo_bpm: float | None = 124.0) -> Session:
    tracks = [SessionTrack(name, f"audio/{at:02d} x.wav", 1 + at % 3) for at, name in enumerate(NAMES)]
    return Session("a & b", 44_100, 352_801, tempo_bpm, "A minor", "0.1.0", tracks)


@pytest.mark.parametrize("tempo_bpm", [124.0, 93.333333333, None])
def test_dawproject_holds_to_the_published_schema(tempo_bpm: float | None) -> None:
    assert faults(session.dawproject_xml(a_session(tempo_bpm)), PROJECT, "Project") == []
    assert faults(session.metadata_xml(a_session(tempo_bpm)), METADATA, "MetaData") == []


def test_the_schemas_facts_tell_a_wrong_document() -> None:
    right = session.dawproject_xml(a_session())
    for wrong in (
        (b'unit="bpm"', b'unit="pace"'),
        (b'role="master"', b'role="boss"'),
        (b'destination="master-channel"', b'destination="nowhere"'),
        (b' sampleRate="44100"', b""),
        (b'id="track1"', b'id="track0"'),
    ):
        assert faults(right.replace(*wrong), PROJECT, "Project"), wrong
    document = fromstring(right)
    document.append(document[0])  # Application, first, comes last too
    assert faults(tostring(document), PROJECT, "Project")


def test_dawproject_gives_each_file_its_track_from_second_0() -> None:
    document = fromstring(session.dawproject_xml(a_session()))
    names = {track.get("id"): track.get("name") for track in document.iter("Track")}
    lanes = document.findall("Arrangement/Lanes/Lanes")
    assert [names[lane.get("track")] for lane in lanes] == list(NAMES)
    clips = [lane.find("Clips/Clip") for lane in lanes]
    assert all(clip is not None and clip.get("time") == "0" for clip in clips)
    assert [file.get("path") for file in document.iter("File")] == [track.file for track in a_session().tracks]
    assert {audio.get("duration") for audio in document.iter("Audio")} == {f"{352_801 / 44_100:.9f}"}


@pytest.mark.parametrize("tempo_bpm", [124.0, None])
def test_reaper_project_reads_back(tempo_bpm: float | None) -> None:
    read = rpp.loads(session.reaper_project(a_session(tempo_bpm)))
    assert [child[1:] for child in read.children if child[0] == "TEMPO"] == ([["124", "4", "4"]] if tempo_bpm else [])
    tracks = read.findall("TRACK")
    assert [track.find("NAME")[1] for track in tracks][:3] == list(NAMES[:3])
    assert [track.find("ITEM").find("SOURCE").find("FILE")[1] for track in tracks] == [
        track.file for track in a_session().tracks
    ]
    assert len({track.attrib[0] for track in tracks}) == len(NAMES)


def test_text_says_what_is_known_and_what_is_not() -> None:
    text = session.session_text(a_session(None))
    assert "tempo: not known" in text
    assert "key: A minor" in text
    assert "audio/06 x.wav" in text
