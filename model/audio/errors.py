"""Why a clip, or another file, cannot be used."""

from pathlib import Path
from typing import ClassVar

from model.audio.windows import MIN_SECONDS

Fact = str | int | float


class BadFile(Exception):
    """A file that is not what it should be; carries its path and the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class AudioError(Exception):
    """A clip that cannot be used.

    `code` names the kind for machines and `str(error)` is a sentence for people. `facts` holds the numbers behind it,
    each also an attribute; the class called with them makes an equal error, in another process too.
    """

    code: ClassVar[str] = "unusable-audio"

    def __init__(self, sentence: str, **facts: Fact) -> None:
        super().__init__(sentence)
        self.facts = facts

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), str(self), self.facts)


class EmptyFile(AudioError):
    """The file has no bytes."""

    code = "empty-file"

    def __init__(self) -> None:
        super().__init__("The file is empty.")


class UnknownFormat(AudioError):
    """The first bytes are of no audio format that we read, whatever the file's name says; `found` says what they are
    of, where that is known."""

    code = "unknown-format"

    def __init__(self, found: str = "") -> None:
        super().__init__(
            f"This is {found + ', ' if found else ''}not audio in a format we read: WAV, FLAC, MP3, Ogg, Opus, AIFF, "
            "M4A, AAC, CAF, WebM, Matroska, WavPack, WMA, AC-3 and others that docs/formats.md lists.",
            **({"found": found} if found else {}),
        )
        self.found = found


class NoAudioStream(AudioError):
    """A container, such as a film without sound, that holds no audio."""

    code = "no-audio-stream"

    def __init__(self) -> None:
        super().__init__("The file holds no audio stream.")


class DecodeFailed(AudioError):
    """The file is of a known format but damaged, or coded in a way that our decoders do not know."""

    code = "decode-failed"

    def __init__(self, reason: str) -> None:
        super().__init__(f"The file could not be decoded: {reason}", reason=reason)
        self.reason = reason


class ClipTooShort(AudioError):
    """`seconds` of audio, and the model needs more than `minimum`."""

    code = "clip-too-short"

    def __init__(self, seconds: float, minimum: float = MIN_SECONDS) -> None:
        super().__init__(
            f"The clip lasts {seconds:.3f} s; it must be longer than {minimum:.3f} s.", seconds=seconds, minimum=minimum
        )
        self.seconds = seconds
        self.minimum = minimum


class ClipTooLong(AudioError):
    """More than `maximum` seconds of audio.

    Decoding stops at the limit, so `seconds` is what the file declares or what came until then, whichever is more.
    """

    code = "clip-too-long"

    def __init__(self, seconds: float, maximum: float) -> None:
        super().__init__(f"The clip lasts longer than the {maximum:g} s accepted.", seconds=seconds, maximum=maximum)
        self.seconds = seconds
        self.maximum = maximum


class TooManyChannels(AudioError):
    """The header announces `channels`, and `maximum` are accepted; nothing was decoded."""

    code = "too-many-channels"

    def __init__(self, channels: int, maximum: int) -> None:
        super().__init__(
            f"The clip has {channels} channels; at most {maximum} are accepted.", channels=channels, maximum=maximum
        )
        self.channels = channels
        self.maximum = maximum


class TooManySamples(AudioError):
    """More than `maximum` samples over all channels: as the longest clip of the most channels has at 48 kHz.

    A few hundred kilobytes can declare a minute of a processor's work. Decoding stops at the limit.
    """

    code = "too-many-samples"

    def __init__(self, maximum: int) -> None:
        super().__init__(
            f"The clip has more than {maximum} samples over all channels: use fewer channels or a lower sample rate.",
            maximum=maximum,
        )
        self.maximum = maximum


class NonFiniteSamples(AudioError):
    """A sample is NaN, infinite or beyond 2**31; `seconds` says where the block that holds it begins."""

    code = "non-finite-samples"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"The clip has samples that are not finite numbers (or absurdly large), after {seconds:.1f} s.",
            seconds=seconds,
        )
        self.seconds = seconds


class SilentClip(AudioError):
    """No sample of the mono mix is louder than `floor_db` dBFS."""

    code = "silent-clip"

    def __init__(self, peak_db: float, floor_db: float) -> None:
        super().__init__(
            f"The clip is silent: mixed to mono, no sample is louder than {floor_db:.0f} dBFS.",
            peak_db=peak_db,
            floor_db=floor_db,
        )
        self.peak_db = peak_db
        self.floor_db = floor_db


def _rebuild(kind: type[AudioError], sentence: str, facts: dict[str, Fact]) -> AudioError:
    return AudioError(sentence, **facts) if kind is AudioError else kind(**facts)  # type: ignore[arg-type]
