"""Text that comes in, checked once and here: what people say about stems, and names as systems and programs give them.

Both come out in NFC, as one string of the many that look the same, with no white space around them. What a terminal, a
log or JSON cannot hold is refused in what a person says, and shown escaped in a name, which is as it is.
"""

import re
import unicodedata

LONGEST = 255  # characters; no file system has longer names
# Control characters, lone surrogates, separators of lines and paragraphs, what turns the direction of the text after
# it, and the two that XML cannot hold.
_UNSHOWABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


class BadText(ValueError):
    """Text that cannot be kept and shown as it was said."""


def said(text: str) -> str:
    """What a person says: 1 to LONGEST characters. Raises BadText."""
    if len(text) <= 4 * LONGEST:  # NFC makes nothing shorter than that
        text = unicodedata.normalize("NFC", text).strip()
    if not 1 <= len(text) <= LONGEST:
        raise BadText(f"text has 1 to {LONGEST} characters")
    if found := _UNSHOWABLE.search(text):
        raise BadText(f"text may not hold the character {_escaped(found)}")
    return text


def shown(text: str) -> str:
    r"""A name as it can be shown and sent, with `\x1b` for what cannot; a byte that is no text is `\xff`."""
    return escaped(unicodedata.normalize("NFC", text).strip())


def escaped(text: str) -> str:
    """Text with nothing in it that a terminal would obey."""
    return _UNSHOWABLE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte of a name that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
