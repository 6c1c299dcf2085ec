"""Which codecs FFmpeg may decode for us, and how much each puts before the music."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import av

_PCM = [f"pcm_{kind}{bits}{order}" for kind in "su" for bits in (16, 24, 32) for order in ("le", "be")]
_PCM += ["pcm_s8", "pcm_u8", "pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be", "pcm_alaw", "pcm_mulaw"]
CODECS = {
    "aac", "aac_latm", "alac", "mp3float", "mp3", "mp2float", "mp2", "flac", "opus", "libopus", "vorbis", "ac3", "eac3",
    "wavpack", "wmav1", "wmav2", "wmapro", "wmalossless", "dca", "ape", "mpc7", "mpc8", "dsd_lsbf", "dsd_msbf",
    "dsd_lsbf_planar", "dsd_msbf_planar", "tta", "tak", "amrnb", "amrwb", "speex", "adpcm_ima_qt", "adpcm_ima_wav",
    "adpcm_ms", *_PCM,
}  # fmt: skip

WINDOWS_MEDIA = ("wmav1", "wmav2")
SKIP_MANUAL = 1 << 29  # AV_CODEC_FLAG2_SKIP_MANUAL

# Samples that an encoder and its decoder put before the music, where the container does not say how many: see
# docs/formats.md. For MP3 those of LAME and FFmpeg's decoder; those of the others are in the codec.
_LATE = {"ac3": 256, "eac3": 256, "amrnb": 40, "dca": 512, "mpc7": 481, "mpc8": 481}
_LATE_MP3, _LATE_MP2 = 576 + 529, 481
_LATE_SPEEX = {8000: 80, 16000: 223, 32000: 509}


def frames_before_the_music(
    context: "av.AudioCodecContext", first: "av.Packet[Any]", frame: int, metadata: Mapping[str, str]
) -> int:
    """How many decoded frames come before the music and were not left out by FFmpeg; `frame`: samples of the first."""
    codec = context.name
    if first.has_sidedata("skip_samples"):
        return 0
    if codec == "speex":
        return _LATE_SPEEX.get(context.sample_rate, 0)
    if codec in WINDOWS_MEDIA:
        return frame if metadata.get("encoder", "").startswith("Lavf") else 2 * frame
    if codec in ("aac", "aac_latm"):
        return frame
    if codec in ("mp3float", "mp3", "mp2float", "mp2"):
        layer_2 = bytes(first)[1:2] and bytes(first)[1] >> 1 & 3 == 2
        return _LATE_MP2 if layer_2 else _LATE_MP3
    return _LATE.get(codec, 0)
