"""Files that were found -> stems to be sent, with the track and the instrument that their place and name tell."""

from contextlib import suppress
from typing import Any

from service.commands.client import NewStem
from service.commands.folders import Found
from service.text import LONGEST, shown

SEPARATED = {"drums", "bass", "other", "vocals", "guitar", "piano"}
"""How Demucs names what it has separated; of a track at least two lie together."""
STEM_FILE = (".stem.mp4", ".stem.m4a")


def stems_of(said: dict[str, Any], found: Found) -> list[NewStem]:
    """The stems of a file that was found, each with what is said of all; a person is believed before a name."""
    folder = shown(found.folder or "")[:LONGEST]
    if parts := _parts(found):
        return [NewStem(found.path, named | said, stream) for stream, named in parts.items()]
    track = {"track": folder} if folder else {}
    return [NewStem(found.path, track | _separated(found) | said)]


def _parts(found: Found) -> dict[int, dict[str, Any]]:
    """The streams of a Native Stem file that are stems, and what it says of each; its name is the track's."""
    if not found.path.name.lower().endswith(STEM_FILE):
        return {}
    from model.audio import stems_in_file

    track = shown(found.path.name[: -len(STEM_FILE[0])])[:LONGEST] or "unnamed"
    parts = {}
    with suppress(OSError):  # whoever reads it next will say so
        for part in stems_in_file(found.path):
            name = shown(part.name or "")[:LONGEST] or f"stem {part.stream}"
            named: dict[str, Any] = {"title": f"{track} - {name}"[:LONGEST], "track": track, "instrument": name}
            colour = shown(part.colour or "")[:LONGEST]
            parts[part.stream] = named | ({"tags": [colour]} if colour else {})
    return parts


def _separated(found: Found) -> dict[str, Any]:
    """Of a file that a separator has written into the folder of its track."""
    name, folder = found.path.stem.lower(), found.path.parent
    together = (folder / f"{other}{found.path.suffix}" for other in SEPARATED - {name})
    if name not in SEPARATED or not any(path.exists() for path in together):
        return {}
    track = shown(folder.absolute().name)[:LONGEST]
    return {"instrument": name} | ({"track": track} if track else {})
