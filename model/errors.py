"""Errors that carry facts: each says once what it is made of, and which sentence that makes."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, dataclass_transform


@dataclass_transform(eq_default=False)
class Told(Exception):
    """An error whose sentence is filled in with its facts.

    A child is a dataclass without a decorator: its fields are the facts. `public` is a sentence that a stranger may
    read, with the names of the facts in braces; `says`, where there is another, is for the log and for people here.
    """

    public: ClassVar[str | None] = None
    says: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        dataclass(eq=False)(cls)

    def __str__(self) -> str:
        return (self.says or self.public or "").format(**vars(self))

    def __reduce__(self) -> tuple[Any, ...]:
        """The class, called with its facts, makes it again, in another process too."""
        facts = (getattr(self, fact.name) for fact in fields(self))  # type: ignore[arg-type]
        return type(self), tuple(facts)
