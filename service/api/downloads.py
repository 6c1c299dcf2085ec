"""What a download is called."""

import re
import unicodedata
from urllib.parse import quote

from indexer import Stem
from model.audio.said import transposed_key
from service.work.encoding import Order

LONGEST = 100  # characters of a title, and no more than twice as many bytes: systems take 255, and the name has more
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f\ud800-\udfff/\\:*?"<>|\u2028-\u202e\u2066-\u2069]+')


def safe_name(text: str) -> str:
    """Text as a part of a file's name that every system takes, and no path."""
    name = _UNSAFE.sub("-", unicodedata.normalize("NFC", text)).strip(" .-")[:LONGEST]
    return name.encode()[: 2 * LONGEST].decode(errors="ignore").rstrip(" .-") or "stem"


def fitted_name(stem: Stem, order: Order) -> str:
    """Such as "bass_Am_124bpm.wav": in which key and how fast a stem sounds as ordered, where that is known."""
    fitting = order.fitting
    parts = [safe_name(stem.title)]
    if key := transposed_key(stem.key or "", fitting.transpose):
        parts.append(key.removesuffix(" major").replace(" minor", "m"))
    if stem.tempo_bpm is not None:
        parts.append(f"{round(stem.tempo_bpm * fitting.speed, 1):g}bpm")
    return f"{'_'.join(parts)}.{order.format}"


def disposition(name: str, how: str = "attachment") -> str:
    """A Content-Disposition header for what is saved by this name (RFC 6266): in ASCII, and as it is (RFC 8187).
    `how`: "inline" where it is to be played."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = re.sub(r'["\\]', "_", plain)
    if plain == name:
        return f'{how}; filename="{name}"'
    if not plain.split(".")[0].strip("_ "):
        plain = f"stem{plain}"
    return f"{how}; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
