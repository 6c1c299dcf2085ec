"""How filters compare text: whoever types a name need not know its case, nor how its accents are encoded."""

import unicodedata
from typing import overload

FILTERED = ("instrument", "track", "collection", "key")  # the columns of stems beside which a caseless one stands


@overload
def caseless(text: str) -> str: ...
@overload
def caseless(text: None) -> None: ...
def caseless(text: str | None) -> str | None:
    """The text's canonical caseless form, in NFC (Unicode 15, definition D145)."""
    if text is None:
        return None
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())
