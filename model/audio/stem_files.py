"""Native Stem files (`.stem.mp4`): a mix and its four stems as streams of one MP4.

The first stream is the mix. Names and colours stand in JSON in the box `moov/udta/stem`.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

LARGEST_BOX = 2**16  # of JSON; four names and colours are a few hundred bytes


@dataclass(frozen=True)
class StemPart:
    """A stem of a file: which audio stream it is, from 1, and its name and colour ("#009E73"), where they are said."""

    stream: int
    name: str | None = None
    colour: str | None = None


def stems_in_file(path: Path) -> list[StemPart]:
    """The stems of a Native Stem file; none where it has no more than one audio stream, or cannot be read.

    Raises OSError.
    """
    import av  # FFmpeg's dozens of libraries

    with path.open("rb") as file:
        try:
            with av.open(file, format="mp4") as container:
                streams = len(container.streams.audio)
        except av.FFmpegError:
            return []
        said = _said(file)
    parts = []
    for stream in range(1, streams):
        one = said[stream - 1] if stream <= len(said) and isinstance(said[stream - 1], dict) else {}
        name, colour = one.get("name"), one.get("color")
        parts.append(StemPart(stream, _text(name), _text(colour)))
    return parts


def stem_of_file(path: Path, stream: int) -> bytes:
    """One stem as an M4A file of its own: its packets as they are, decoded no more often than they were.

    The same file gives the same bytes. Raises OSError: it cannot be read.
    """
    import av

    made = io.BytesIO()
    try:
        with (
            av.open(str(path), format="mp4") as container,
            av.open(made, "w", format="ipod", options={"fflags": "+bitexact"}) as out,
        ):
            taken = container.streams.audio[stream]
            kept = out.add_stream_from_template(taken)
            for packet in container.demux(taken):
                if packet.dts is not None:  # the last one only says that it is over
                    packet.stream = kept
                    out.mux(packet)
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise OSError(f"stream {stream} cannot be taken out: {error}") from error
    return made.getvalue()


def _said(file: BinaryIO) -> list[Any]:
    """What the box says of the stems, in order."""
    spans = [(0, file.seek(0, io.SEEK_END))]
    for wanted in (b"moov", b"udta", b"stem"):
        spans = [inner for span in spans for kind, inner in _boxes(file, *span) if kind == wanted]
    if not spans:
        return []
    at, end = spans[0]
    file.seek(at)
    try:
        said = json.loads(file.read(min(end - at, LARGEST_BOX)))
        stems = said["stems"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return []
    return stems if isinstance(stems, list) else []


def _boxes(file: BinaryIO, at: int, end: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """The boxes between two places (ISO/IEC 14496-12, 4.2): each one's kind, and where its content begins and ends."""
    while at + 8 <= end:
        file.seek(at)
        head = file.read(16)
        size, begins = int.from_bytes(head[:4]), at + 8
        if size == 1:
            size, begins = int.from_bytes(head[8:16]), at + 16
        elif size == 0:
            size = end - at
        if size < begins - at or at + size > end:
            return
        yield head[4:8], (begins, at + size)
        at += size


def _text(said: object) -> str | None:
    return said.strip() or None if isinstance(said, str) else None
