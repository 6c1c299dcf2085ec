"""The comments of an Ogg Vorbis or Opus file.

Read by ours: the library that reads the other tags (said.py) takes time by the square of their number here, and
100 kB hold ten thousand.
"""

from __future__ import annotations

from typing import BinaryIO

_MOST_BYTES = 1024 * 1024  # of the comments; a cover may follow the words, and is then cut
_MOST_PAGES = 1000


def ogg_comments(file: BinaryIO, wanted: tuple[str, ...]) -> dict[str, list[str]]:
    """Values of the comments named in `wanted` (lower case), at most eight of each; {} where there are none.

    Args:
        file: at the start of an Ogg file.

    Raises:
        OSError: it cannot be read.
    """
    packet = _second_packet(file)
    start = {b"\x03vorbis": 7, b"OpusTags": 8}.get(packet[:7] if packet[:1] == b"\x03" else packet[:8], 0)
    found: dict[str, list[str]] = {}
    if not start:
        return found
    at = start + 4 + int.from_bytes(packet[start : start + 4], "little") + 4  # the vendor's name, and how many
    while at + 4 <= len(packet):
        size = int.from_bytes(packet[at : at + 4], "little")
        at += 4
        name, equals, value = packet[at : at + min(size, 200)].decode("utf-8", "replace").partition("=")
        if equals and name.lower() in wanted and len(values := found.setdefault(name.lower(), [])) < 8:
            values.append(value)
        at += size
    return found


def _second_packet(file: BinaryIO) -> bytes:
    """Of the stream that begins first; as far as it is read."""
    packets, serial = [bytearray()], None
    for _ in range(_MOST_PAGES):
        header = file.read(27)
        if len(header) < 27 or header[:4] != b"OggS":
            break
        lacing = file.read(header[26])
        body = file.read(sum(lacing))
        serial = header[14:18] if serial is None else serial
        if header[14:18] != serial:
            continue
        at = 0
        for size in lacing:
            packets[-1] += body[at : at + size]
            at += size
            if size < 255:
                packets.append(bytearray())
        if len(packets) > 2 or len(packets[-1]) > _MOST_BYTES:
            break
    return bytes(packets[1]) if len(packets) > 1 else b""
