"""Text that comes in: what is taken, what is refused, and how a name is shown that cannot be."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.catalog.caseless import caseless
from service.text import LONGEST, BadText, said, shown

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"  # one picture, held together by joiners


@pytest.mark.parametrize(("text", "kept"), [
    ("Cafe\u0301", "Caf\u00e9"),
    (f"bass\u3000{FAMILY}\u00a0one", f"bass\u3000{FAMILY}\u00a0one"),
    ("\t bass \u3000\n", "bass"),
    ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
    ("e\u0301" * LONGEST, "\u00e9" * LONGEST),
])  # fmt: skip
def test_what_is_said_is_kept_in_nfc_with_its_joiners_and_wide_spaces(text: str, kept: str) -> None:
    assert said(text) == shown(text) == kept


@pytest.mark.parametrize("text", [
    "", " \u3000", "x" * (LONGEST + 1), "a\0b", "a\x1b]52;c;\x07", "a\x9b31m", "a\ud800", "a\u2028b", "a\u202eb",
    "a\nb", "a\ufffe", "a\uffff",
])  # fmt: skip
def test_what_cannot_be_shown_is_refused(text: str) -> None:
    with pytest.raises(BadText) as refused:
        said(text)
    assert str(refused.value).isprintable()


def test_a_name_that_cannot_be_shown_is_shown_escaped() -> None:
    assert shown(b"bass\xff\x1b[2J.wav".decode(errors="surrogateescape")) == "bass\\xff\\x1b[2J.wav"
    assert shown("\ud800\u202e") == "\\ud800\\u202e"


@given(st.text(st.characters(), max_size=40))
def test_what_is_shown_can_be_said_and_stays_as_it_is(text: str) -> None:
    name = shown(text)
    assert shown(name) == name
    name.encode()
    if name and len(name) <= LONGEST:
        assert said(name) == name


@given(st.text(max_size=20))
def test_text_is_the_same_to_a_filter_however_it_is_encoded_and_in_whatever_case(text: str) -> None:
    forms = {unicodedata.normalize("NFD", text), unicodedata.normalize("NFC", text), text.casefold()}
    assert {caseless(form) for form in forms} == {caseless(text)}
