"""What the form field `metadata` of POST /stems says of its files."""

import json

from pydantic import TypeAdapter, ValidationError

from model.errors import Told
from service.api.schemas import Metadata, faults_of

METADATA_BYTES, METADATA_BYTES_EACH = 2**16, 2**10  # of JSON: in all, and more for each file


class BadMetadata(Told):
    """`metadata` is not the JSON that POST /stems takes."""


class MetadataUnreadable(BadMetadata):
    """It is no JSON, or of another form; `wrong` says how."""

    public = "`metadata` cannot be read: {wrong}."
    wrong: str


class MetadataTooLong(BadMetadata):
    public = "`metadata` may have {maximum_bytes} bytes for so many files."
    maximum_bytes: int


class MetadataMiscounted(BadMetadata):
    public = "`metadata` has {objects} objects for {files} files."
    objects: int
    files: int


_ONE_OR_MANY: TypeAdapter[Metadata | list[Metadata]] = TypeAdapter(Metadata | list[Metadata])


def most_bytes(files: int) -> int:
    """How long `metadata` may be for so many files."""
    return METADATA_BYTES + files * METADATA_BYTES_EACH


def metadata_of(text: str | None, files: int) -> list[Metadata]:
    """What the form field `metadata` of POST /stems says of each of so many files. Raises BadMetadata."""
    if text is None or not text.strip():
        return [Metadata()] * files
    if len(text.encode(errors="replace")) > (most := most_bytes(files)):
        raise MetadataTooLong(most)
    try:
        read = _ONE_OR_MANY.validate_python(json.loads(text))
    except (ValueError, RecursionError) as error:
        wrong = "it is not JSON"
        if isinstance(error, ValidationError):
            said = error.errors(include_url=False, include_context=False, include_input=False)
            wrong = "; ".join(f"{at.partition('.')[2]}: {what}" for at, what in faults_of(said))
        raise MetadataUnreadable(wrong) from None
    if isinstance(read, Metadata):
        return [read] * files
    if len(read) != files:
        raise MetadataMiscounted(len(read), files)
    return read
