"""Text search: the words of a stem, and how they are asked of either database.

Words are folded here, so SQLite (FTS5) and PostgreSQL (a GIN index of tsvectors) need only split them at spaces, and
find the same. SQLite's index follows the column `stems.words` by triggers of migration 0005, PostgreSQL's by itself.
"""

import re
import unicodedata
from collections.abc import Iterable

from sqlalchemy import ColumnElement, and_, cast, column, false, func, literal_column, table
from sqlalchemy.dialects.postgresql import TSQUERY

from indexer.catalog.tables import stems

SEARCHED = ("title", "file_name", "instrument", "track", "collection")
"""The columns of stems whose words are found; those of tags are, too."""
LONGEST_WORD = 100  # characters; what is longer is found by its beginning. PostgreSQL's words have 2,046 bytes at most
MOST_ASKED = 32  # words of one question; the rest is not looked at
_WORD = re.compile(r"[^\W_]+")

stem_words = table("stem_words", column("rowid"), column("stem_words"))  # SQLite's index; its name is a column, too


def words_of(texts: Iterable[str | None]) -> list[str]:
    """Every word of some texts once, in order, without case and accents."""
    together = "\n".join(filter(None, texts))
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", together).casefold())
    letters = "".join(letter for letter in plain if not unicodedata.category(letter).startswith("M"))
    return [*dict.fromkeys(word[:LONGEST_WORD] for word in _WORD.findall(letters))]


def holds_words(text: str, *, postgresql: bool) -> ColumnElement[bool]:
    """Whether a stem has all words of a text, of whose last the beginning is enough; a text without words is in none.

    In SQLite `stem_words` is then among the tables asked, and its `rowid` the fast order.
    """
    words = words_of([text])[:MOST_ASKED]
    if postgresql:
        if not words:
            return false()
        query = cast(" & ".join(f"'{word}'" for word in words) + ":*", TSQUERY)
        vector = func.array_to_tsvector(func.string_to_array(stems.c.words, literal_column("' '")))
        return vector.bool_op("@@")(query)
    asked = " AND ".join(f'"{word}"' for word in words or [""]) + " *"
    return and_(stem_words.c.rowid == stems.c.row, stem_words.c.stem_words.bool_op("MATCH")(asked))
