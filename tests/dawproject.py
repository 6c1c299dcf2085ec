"""What the published schema of the DAWproject format (version 1.0) says of the elements that we write, in our words.

Elements stand in the order given here; one without `?` must be there, one with `*` may stand often.
"""

import re
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element, fromstring

NUMBER = r"-?\d+(\.\d+)?"
WHOLE = r"-?\d+"
YES_OR_NO = "true|false|0|1"
TIME_UNIT = "beats|seconds"
UNIT = "linear|normalized|percent|decibel|hertz|semitones|seconds|beats|bpm"
ROLE = "regular|master|effect|submix|vca"
CONTENT = "(audio|automation|notes|video|markers|tracks)( (audio|automation|notes|video|markers|tracks))*"
NAMED = {"name": ".*", "color": ".*", "comment": ".*"}
KNOWN = NAMED | {"id": r"[A-Za-z_][\w.-]*"}
TIMELINE = KNOWN | {"timeUnit": TIME_UNIT, "track": "REFERENCE"}


@dataclass(frozen=True)
class Kind:
    """An element: its children in order, its attributes that must be there, and those that may."""

    children: tuple[str, ...] = ()
    must: dict[str, str] = field(default_factory=dict)
    may: dict[str, str] = field(default_factory=dict)
    text: bool = False


REAL = {"unit": UNIT}
REAL_MAY = KNOWN | {"parameterID": WHOLE, "min": ".*", "max": ".*", "value": ".*"}
PROJECT = {
    "Project": Kind(("Application", "Transport?", "Structure?", "Arrangement?", "Scenes?"), {"version": ".*"}),
    "Application": Kind((), {"name": ".*", "version": ".*"}),
    "Transport": Kind(("Tempo?", "TimeSignature?")),
    "Tempo": Kind((), REAL, REAL_MAY),
    "Volume": Kind((), REAL, REAL_MAY),
    "TimeSignature": Kind((), {"numerator": WHOLE, "denominator": WHOLE}, KNOWN | {"parameterID": WHOLE}),
    "Structure": Kind(("Track*",)),
    "Track": Kind(("Channel?", "Track*"), {}, KNOWN | {"contentType": CONTENT, "loaded": YES_OR_NO}),
    "Channel": Kind(
        ("Devices?", "Mute?", "Pan?", "Sends?", "Volume?"),
        {},
        KNOWN | {"audioChannels": WHOLE, "destination": "REFERENCE", "role": ROLE, "solo": YES_OR_NO},
    ),
    "Arrangement": Kind(("Lanes?", "Markers?", "TempoAutomation?", "TimeSignatureAutomation?"), {}, KNOWN),
    "Lanes": Kind(("Lanes*", "Clips*"), {}, TIMELINE),
    "Clips": Kind(("Clip*",), {}, TIMELINE),
    "Clip": Kind(
        ("Audio?",),
        {"time": NUMBER},
        NAMED
        | dict.fromkeys(("duration", "playStart", "playStop", "loopStart", "loopEnd"), NUMBER)
        | dict.fromkeys(("fadeInTime", "fadeOutTime"), NUMBER)
        | {"contentTimeUnit": TIME_UNIT, "fadeTimeUnit": TIME_UNIT, "enable": YES_OR_NO, "reference": "REFERENCE"},
    ),
    "Audio": Kind(
        ("File",), {"duration": NUMBER, "channels": WHOLE, "sampleRate": WHOLE}, TIMELINE | {"algorithm": ".*"}
    ),
    "File": Kind((), {"path": ".*"}, {"external": YES_OR_NO}),
}
METADATA = {
    "MetaData": Kind((
        *("Title?", "Artist?", "Album?", "OriginalArtist?", "Composer?", "Songwriter?", "Producer?", "Arranger?"),
        *("Year?", "Genre?", "Copyright?", "Website?", "Comment?"),
    )),
    "Title": Kind(text=True),
}  # fmt: skip


def faults(xml: bytes, kinds: dict[str, Kind], root: str) -> list[str]:
    """What is wrong with a document; none: it is valid."""
    document = fromstring(xml)
    found = [] if document.tag == root else [f"the root is {document.tag}"]
    identities = [element.get("id") for element in document.iter() if element.get("id") is not None]
    found += [f"id {identity} twice" for identity in {*identities} if identities.count(identity) > 1]
    for element in document.iter():
        if (kind := kinds.get(element.tag)) is None:
            found.append(f"no element is called {element.tag}")
        else:
            found += _faults_of(element, kind, {*identities})
    return found


def _faults_of(element: Element, kind: Kind, identities: set[str | None]) -> list[str]:
    wrong = [f"{element.tag} lacks {name}" for name in kind.must if name not in element.attrib]
    for name, value in element.attrib.items():
        pattern = (kind.must | kind.may).get(name)
        if pattern is None:
            wrong.append(f"{element.tag} has no {name}")
        elif pattern == "REFERENCE":
            if value not in identities:
                wrong.append(f"{element.tag}.{name} names {value}, which is nothing")
        elif not re.fullmatch(pattern, value):
            wrong.append(f"{element.tag}.{name} cannot be {value}")
    order = "".join(f"({name.rstrip('?*')} ){name[-1] if name[-1] in '?*' else ''}" for name in kind.children)
    children = "".join(f"{child.tag} " for child in element)
    if not re.fullmatch(order, children):
        wrong.append(f"{element.tag} holds {children}")
    if (element.text or "").strip() and not kind.text:
        wrong.append(f"{element.tag} holds text")
    return wrong
