"""Why a clip, or another file, cannot be used."""

from dataclasses import fields
from pathlib import Path
from typing import ClassVar

from model.audio.windows import MIN_SECONDS
from model.errors import Told

Fact = str | int | float


class BadFile(Told):
    """A file that is not what it should be; carries its path and the reason."""

    says = "{path}: {reason}"
    path: Path
    reason: str


class AudioError(Told):
    """A clip that cannot be used. `code` names the kind for machines."""

    code: ClassVar[str] = "unusable-audio"

    @property
    def facts(self) -> dict[str, Fact]:
        """The numbers behind it; the class called with them makes an equal error."""
        return {fact.name: getattr(self, fact.name) for fact in fields(self)}


class EmptyFile(AudioError):
    code = "empty-file"
    says = "The file is empty."


class UnknownFormat(AudioError):
    """The first bytes are of no audio format that we read, whatever the file's name says; `found` says what they are
    of, where that is known."""

    code = "unknown-format"

    says = (
        "This is {found}not audio in a format we read: WAV, FLAC, MP3, Ogg, Opus, AIFF, "
        "M4A, AAC, CAF, WebM, Matroska, WavPack, WMA, AC-3 and others that docs/formats.md lists."
    )
    found: str = ""

    def __str__(self) -> str:
        return self.says.format(found=f"{self.found}, " if self.found else "")

    @property
    def facts(self) -> dict[str, Fact]:
        return {"found": self.found} if self.found else {}


class NoAudioStream(AudioError):
    code = "no-audio-stream"
    says = "The file holds no audio stream."


class DecodeFailed(AudioError):
    """The file is of a known format but damaged, or coded in a way that our decoders do not know."""

    code = "decode-failed"
    says = "The file could not be decoded: {reason}"
    reason: str


class ClipTooShort(AudioError):
    """`seconds` of audio, and the model needs more than `minimum`."""

    code = "clip-too-short"
    says = "The clip lasts {seconds:.3f} s; it must be longer than {minimum:.3f} s."
    seconds: float
    minimum: float = MIN_SECONDS


class ClipTooLong(AudioError):
    """More than `maximum` seconds of audio.

    Decoding stops at the limit, so `seconds` is what the file declares or what came until then, whichever is more.
    """

    code = "clip-too-long"
    says = "The clip lasts longer than the {maximum:g} s accepted."
    seconds: float
    maximum: float


class TooManyChannels(AudioError):
    """The header announces `channels`, and `maximum` are accepted; nothing was decoded."""

    code = "too-many-channels"
    says = "The clip has {channels} channels; at most {maximum} are accepted."
    channels: int
    maximum: int


class TooManySamples(AudioError):
    """More than `maximum` samples over all channels: as the longest clip of the most channels has at 48 kHz.

    A few hundred kilobytes can declare a minute of a processor's work. Decoding stops at the limit.
    """

    code = "too-many-samples"
    says = "The clip has more than {maximum} samples over all channels: use fewer channels or a lower sample rate."
    maximum: int


class NonFiniteSamples(AudioError):
    """A sample is NaN, infinite or beyond 2**31; `seconds` says where the block that holds it begins."""

    code = "non-finite-samples"
    says = "The clip has samples that are not finite numbers (or absurdly large), after {seconds:.1f} s."
    seconds: float


class SilentClip(AudioError):
    """No sample of the mono mix is louder than `floor_db` dBFS."""

    code = "silent-clip"
    says = "The clip is silent: mixed to mono, no sample is louder than {floor_db:.0f} dBFS."
    peak_db: float
    floor_db: float
