"""What the form field `metadata` of POST /stems says of its files."""

import json

from pydantic import TypeAdapter, ValidationError

from service.api.schemas import Metadata, faults_of

METADATA_BYTES, METADATA_BYTES_EACH = 2**16, 2**10  # of JSON: in all, and more for each file


class BadMetadata(Exception):
    """`metadata` is not the JSON that POST /stems takes; `wrong` says how."""

    public = "`metadata` cannot be read: {wrong}."

    def __init__(self, wrong: str) -> None:
        super().__init__(wrong)
        self.wrong = wrong


class MetadataTooLong(BadMetadata):
    """More text than so many files need."""

    public = "`metadata` may have {maximum_bytes} bytes for so many files."

    def __init__(self, maximum_bytes: int) -> None:
        super().__init__("it is too long")
        self.maximum_bytes = maximum_bytes


class MetadataMiscounted(BadMetadata):
    """One object for each file was meant, and there are more or fewer."""

    public = "`metadata` has {objects} objects for {files} files."

    def __init__(self, objects: int, files: int) -> None:
        super().__init__("there are not as many objects as files")
        self.objects = objects
        self.files = files


_ONE_OR_MANY: TypeAdapter[Metadata | list[Metadata]] = TypeAdapter(Metadata | list[Metadata])


def metadata_of(text: str | None, files: int) -> list[Metadata]:
    """What the form field `metadata` of POST /stems says of each of so many files. Raises BadMetadata."""
    if text is None or not text.strip():
        return [Metadata()] * files
    if len(text.encode(errors="replace")) > (most := METADATA_BYTES + files * METADATA_BYTES_EACH):
        raise MetadataTooLong(most)
    try:
        read = _ONE_OR_MANY.validate_python(json.loads(text))
    except (ValueError, RecursionError) as error:
        wrong = "it is not JSON"
        if isinstance(error, ValidationError):
            said = error.errors(include_url=False, include_context=False, include_input=False)
            wrong = "; ".join(f"{at.partition('.')[2]}: {what}" for at, what in faults_of(said))
        raise BadMetadata(wrong) from None
    if isinstance(read, Metadata):
        return [read] * files
    if len(read) != files:
        raise MetadataMiscounted(len(read), files)
    return read
