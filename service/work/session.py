"""A mix and the stems placed in it, as other programs open them: a DAWproject, a Reaper project, a text.

The facts that these hold to, as published with the DAWproject format (version 1.0) and read from Reaper's own files:
a `.dawproject` is a ZIP with project.xml and metadata.xml; every audio file begins at second 0 here, so each is one
clip on one track. Levels are in the audio, so every fader stands at 0 dB.
"""

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

_REAPER_SPACE = uuid.UUID("6a2c1b7e-1f0e-4d5b-9a53-7d1c0f2a8e64")


@dataclass(frozen=True)
class SessionTrack:
    """One file of a session: `file` is its path in the archive, `notes` what is said of it, name and value."""

    name: str
    file: str
    channels: int
    notes: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Session:
    """All tracks last `frames` at `rate` Hz; the first is the mix. `tempo_bpm` and `key` are None where not known."""

    title: str
    rate: int
    frames: int
    tempo_bpm: float | None
    key: str | None
    version: str
    tracks: Sequence[SessionTrack]

    @property
    def seconds(self) -> float:
        return self.frames / self.rate


def dawproject_xml(session: Session) -> bytes:
    """project.xml: a track, its channel, and a clip of its whole file for each file; a master that they play into."""
    project = Element("Project", version="1.0")
    SubElement(project, "Application", name="Phalar Retrieval", version=session.version)
    if session.tempo_bpm is not None:
        transport = SubElement(project, "Transport")
        SubElement(transport, "Tempo", id="tempo", unit="bpm", value=_number(session.tempo_bpm))
        SubElement(transport, "TimeSignature", id="metre", numerator="4", denominator="4")
    structure = SubElement(project, "Structure")
    arrangement = SubElement(project, "Arrangement", id="arrangement")
    lanes = SubElement(arrangement, "Lanes", id="lanes", timeUnit="seconds")
    for number, track in enumerate(session.tracks):
        _add_track(structure, f"track{number}", track.name, "regular", track.channels)
        lane = SubElement(lanes, "Lanes", id=f"lane{number}", track=f"track{number}")
        clips = SubElement(lane, "Clips", id=f"clips{number}")
        seconds = _number(session.seconds)
        clip = SubElement(
            clips, "Clip", name=track.name, time="0", duration=seconds, contentTimeUnit="seconds", playStart="0"
        )
        facts = {"channels": str(track.channels), "sampleRate": str(session.rate), "duration": seconds}
        audio = SubElement(clip, "Audio", facts, id=f"audio{number}")
        SubElement(audio, "File", path=track.file)
    _add_track(structure, "master", "Master", "master", 2)
    return bytes(tostring(project, encoding="UTF-8", xml_declaration=True))


def _add_track(structure: Element, identity: str, name: str, role: str, channels: int) -> None:
    track = SubElement(structure, "Track", id=identity, name=name, contentType="audio", loaded="true")
    channel = SubElement(track, "Channel", id=f"{identity}-channel", role=role, audioChannels=str(channels))
    if role == "regular":
        channel.set("destination", "master-channel")
    SubElement(channel, "Volume", id=f"{identity}-volume", unit="linear", value="1", min="0", max="2")


def metadata_xml(session: Session) -> bytes:
    """metadata.xml: the title alone; who made what is in the text."""
    metadata = Element("MetaData")
    SubElement(metadata, "Title").text = session.title
    return bytes(tostring(metadata, encoding="UTF-8", xml_declaration=True))


def reaper_project(session: Session) -> str:
    """A Reaper project whose files lie beside it."""
    lines = ['<REAPER_PROJECT 0.1 "7.0" 0', f"  SAMPLERATE {session.rate} 1 0"]
    if session.tempo_bpm is not None:
        lines.append(f"  TEMPO {_number(session.tempo_bpm)} 4 4")
    for number, track in enumerate(session.tracks):
        identity = str(uuid.uuid5(_REAPER_SPACE, f"{number} {track.file}")).upper()
        lines += [
            f"  <TRACK {{{identity}}}",
            f"    NAME {_quoted(track.name)}",
            "    VOLPAN 1 0 -1 -1 1",
            f"    NCHAN {2 * math.ceil(track.channels / 2)}",
            "    <ITEM",
            "      POSITION 0",
            f"      LENGTH {_number(session.seconds)}",
            "      LOOP 0",
            "      FADEIN 0 0 0",
            "      FADEOUT 0 0 0",
            f"      NAME {_quoted(track.name)}",
            "      VOLPAN 1 0 1 -1",
            "      SOFFS 0",
            "      <SOURCE WAVE",
            f"        FILE {_quoted(track.file)}",
            "      >",
            "    >",
            "  >",
        ]
    return "\n".join([*lines, ">", ""])


def session_text(session: Session) -> str:
    """What a person wants to know of each file."""
    tempo = "not known" if session.tempo_bpm is None else f"{session.tempo_bpm:.4g} BPM"
    lines = [session.title, "", f"tempo: {tempo}", f"key: {session.key or 'not known'}", f"rate: {session.rate} Hz"]
    for track in session.tracks:
        lines += ["", track.name, f"  file: {track.file}", *(f"  {name}: {value}" for name, value in track.notes)]
    return "\n".join([*lines, ""])


def _quoted(text: str) -> str:
    """As Reaper quotes: by whichever mark the text does not hold."""
    mark = next((mark for mark in "\"'`" if mark not in text), None)
    return f"{mark}{text}{mark}" if mark else f"`{text.replace('`', chr(39))}`"


def _number(value: float) -> str:
    return f"{value:.9f}".rstrip("0").rstrip(".")
