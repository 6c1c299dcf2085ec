"""Waveform -> decibel-scaled CQT, each clip by itself.

nnAudio's CQT1992v2 convolves every bin with a kernel padded to 32,768 taps. `FastCQT` has the same kernels and gives
the same numbers (nearer to double precision than nnAudio's own) at a fraction of the time. nnAudio's layer stays the
plain path that tests compare with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.audio.windows import Waveform, Windows
from model.device import upload

if TYPE_CHECKING:
    from nnAudio.features.cqt import CQT1992v2

SMALLEST_MAGNITUDE = 1e-10
"""Magnitudes below count as this one: -200 dB, the authors' floor for digital silence."""

NEGLIGIBLE = 2e-7
"""A long kernel's spectrum is cut where it stays below this share of its peak: what float32 rounds away anyway."""

DIRECT_HOPS = 5
"""A kernel no longer than this many hops is applied to samples, a longer one to the spectrum."""

MOST_SEMITONES = 6
"""Up or down: a CQT with so many more rows on either side holds every transposition."""

FRAMES_AT_ONCE = 1150
"""Longer clips are cut into stretches of this many frames (11.5 s), which bounds memory; the result is the same."""


@dataclass(frozen=True)
class CQTSettings:
    """Which constant-Q transform."""

    sample_rate: int  # samples a second
    hop: int  # samples between frames
    lowest_hz: float  # bin 0
    bins: int
    bins_per_octave: int


@lru_cache(maxsize=4)
@torch.inference_mode(mode=False)  # kept tensors serve training too, whoever asks first
def plain_cqt(settings: CQTSettings) -> CQT1992v2:
    """nnAudio's layer with the authors' settings, float32 (batch, samples) -> float32 (batch, bins, frames).

    One shared instance for equal settings: call it, never change or move it.
    """
    from nnAudio.features.cqt import CQT1992v2  # brings scipy.signal: a second that no process of the service waits for

    return CQT1992v2(
        sr=settings.sample_rate,
        hop_length=settings.hop,
        fmin=settings.lowest_hz,
        n_bins=settings.bins,
        bins_per_octave=settings.bins_per_octave,
        norm=1,
        window="hann",
        center=True,
        pad_mode="reflect",
        output_format="Magnitude",
        verbose=False,
    )


def scale_decibels(magnitude: Tensor, dynamic_range_db: float, beside: int = 0) -> Tensor:
    """Magnitudes in dB, floored `dynamic_range_db` under each clip's own maximum, with that range scaled to one.

    A louder clip is a shifted one: a gain of g dB adds g / dynamic_range_db everywhere, the floor included.
    (The authors' code takes the maximum over the batch, so there a clip moves with its neighbours.)

    Args:
        magnitude: float32, (batch, bins, frames), not negative.
        dynamic_range_db: how far under the maximum the floor lies, dB.
        beside: bins at either end that do not count for the maximum.

    Returns:
        float32, (batch, bins, frames): (dB + range) / range, so 1 at 0 dB. Silence is one constant, far below zero.
    """
    decibels = 20 * torch.log10(magnitude.clamp_min(SMALLEST_MAGNITUDE))
    inside = decibels[:, beside : decibels.shape[1] - beside]
    floor = inside.amax(dim=(1, 2), keepdim=True) - dynamic_range_db
    return (torch.maximum(decibels, floor) + dynamic_range_db) / dynamic_range_db


class FastCQT(nn.Module):
    """The magnitudes of nnAudio's CQT1992v2, without its 32,768 taps a bin.

    Short kernels (high bins) are one matrix product with frames of their true width. Long kernels (low bins) have
    narrow spectra: one Fourier transform of the clip, a product with each kernel's few significant coefficients,
    and, because only every `hop`-th sample is wanted, the product's spectrum folded to the frame rate before the
    inverse transform, which so has one point a frame. Differentiable; on any device.
    """

    direct_kernels: Tensor
    lead: Tensor

    def __init__(self, settings: CQTSettings) -> None:
        super().__init__()
        self.settings = settings
        self.hop = settings.hop
        kernels = _kernels(settings)
        self.padding = kernels.padding
        """Samples that nnAudio reflects on either side; a clip must be longer than this."""
        # As far as the longest kernel reaches on either side of a frame's centre.
        self.reach = kernels.long.shape[1] // 2
        # Real parts, then imaginary parts: two real products for one complex.
        stacked = torch.cat([kernels.direct.real, kernels.direct.imag]).T.float().contiguous()  # (taps, 2 * bins)
        self.register_buffer("direct_kernels", stacked, persistent=False)
        # How far before an onset each bin begins to rise, frames: half its kernel.
        self.register_buffer("lead", kernels.lengths / 2 / settings.hop, persistent=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        """float32 (batch, samples), longer than `padding` -> float32 (batch, bins, 1 + samples // hop)."""
        # Mixed precision would round what the dB scale magnifies.
        with torch.autocast(waveforms.device.type, enabled=False):
            clips = waveforms.float()
            frames = 1 + clips.shape[1] // self.hop
            padded = functional.pad(clips.unsqueeze(1), (self.reach, self.reach), mode="reflect").squeeze(1)
            if frames <= FRAMES_AT_ONCE:
                return self._magnitudes(padded, frames)
            stretches = -(-frames // FRAMES_AT_ONCE)
            stride = FRAMES_AT_ONCE * self.hop
            length = stride - self.hop + 2 * self.reach
            missing = (stretches - 1) * stride + length - padded.shape[1]
            padded = functional.pad(padded, (0, max(0, missing)))
            cut = padded.unfold(1, length, stride)[:, :stretches].flatten(0, 1)  # (batch * stretches, length)
            magnitudes = self._magnitudes(cut, FRAMES_AT_ONCE)  # (batch * stretches, bins, FRAMES_AT_ONCE)
            whole = magnitudes.reshape(-1, stretches, *magnitudes.shape[1:]).transpose(1, 2).flatten(2)
            return whole[..., :frames]  # (batch, bins, frames)

    def of_lengths(self, waveforms: Tensor, samples: Tensor) -> Tensor:
        """`forward` of clips of different lengths, each reflected at its own ends.

        Args:
            waveforms: float32, (batch, longest): what lies beyond a clip's length is not read.
            samples: int64, (batch,), lengths in samples, each greater than `padding`.

        Returns:
            float32, (batch, bins, 1 + longest // hop); a clip's frames end with its length, beyond lies nothing of use.
        """
        with torch.autocast(waveforms.device.type, enabled=False):
            padded = reflected(waveforms.float(), samples, self.reach)
            return self._magnitudes(padded, 1 + waveforms.shape[1] // self.hop)

    def _magnitudes(self, padded: Tensor, frames: int) -> Tensor:
        """(batch, samples with `reach` more on either side) -> (batch, bins, frames)."""
        return torch.cat([self._from_spectrum(padded, frames), self._from_samples(padded, frames)], dim=1)

    def _from_samples(self, padded: Tensor, frames: int) -> Tensor:
        taps = self.direct_kernels.shape[0]
        start = self.reach - taps // 2
        stretch = padded[:, start : start + (frames - 1) * self.hop + taps]
        framed = stretch.unfold(1, taps, self.hop)  # (batch, frames, taps)
        real, imaginary = (framed.reshape(-1, taps) @ self.direct_kernels).chunk(2, dim=1)
        magnitudes = torch.complex(real, imaginary).abs()  # its gradient at zero is zero, a root's would be NaN
        return magnitudes.reshape(-1, frames, magnitudes.shape[1]).transpose(1, 2)  # (batch, bins, frames)

    def _from_spectrum(self, padded: Tensor, frames: int) -> Tensor:
        rate = _fast_length(-(-padded.shape[1] // self.hop))  # points at the frame rate
        kernels = _long_spectra(self.settings, rate, padded.device)
        spectrum = torch.fft.rfft(padded, n=rate * self.hop)  # (batch, rate * hop // 2 + 1)
        first, last = min(0, *(start for start, _, _ in kernels)), max(stop for _, stop, _ in kernels)
        below = spectrum[:, 1 : 1 - first * rate].flip(1).conj()  # of a real signal: X(-f) is the conjugate of X(f)
        # One alias of the frame rate after the other: folding is the sum over them.
        signed = torch.cat([below, spectrum[:, : last * rate]], dim=1)
        aliases = signed.reshape(-1, last - first, rate).permute(2, 0, 1).contiguous()  # (rate, batch, aliases)
        folded = [torch.bmm(aliases[:, :, start - first : stop - first], kernel) for start, stop, kernel in kernels]
        products = torch.cat(folded, dim=2)  # (rate, batch, long bins)
        magnitudes: Tensor = torch.fft.ifft(products, dim=0)[:frames].abs()
        return magnitudes.permute(1, 2, 0)  # (batch, long bins, frames)


def reflected(waveforms: Tensor, samples: Tensor, reach: int = 0) -> Tensor:
    """Clips of different lengths, each going on as its own reflection beyond either end.

    Args:
        waveforms: float32, (batch, longest).
        samples: int64, (batch,), lengths.
        reach: how far before the first sample and beyond the longest clip's last.

    Returns:
        float32, (batch, longest + 2 * reach).
    """
    place = torch.arange(-reach, waveforms.shape[1] + reach, device=waveforms.device)
    last = samples[:, None] - 1
    return torch.gather(waveforms, 1, (last - (last - place.abs()).abs()).clamp_min(0))


def read_frames(magnitudes: Tensor, places: Tensor) -> Tensor:
    """Magnitudes between frames, on the straight line from one to the next.

    Args:
        magnitudes: float32, (batch, bins, frames).
        places: float32, (batch, wanted) or, one for each bin, (batch, bins, wanted), each from 0 to frames - 1.

    Returns:
        float32, (batch, bins, wanted).
    """
    each = places if places.ndim == 3 else places[:, None]
    before = each.floor().clamp_max(magnitudes.shape[2] - 2).long()
    index = before.expand(-1, magnitudes.shape[1], -1)  # (batch, bins, wanted)
    return torch.lerp(magnitudes.gather(2, index), magnitudes.gather(2, index + 1), each - before)


@dataclass(frozen=True)
class _Kernels:
    """complex128 kernels of (bins, taps), as many taps on both sides of a centre, librosa's normalisation included."""

    long: Tensor
    direct: Tensor
    lengths: Tensor  # float32 (bins,): samples
    padding: int  # samples


@lru_cache(maxsize=4)
@torch.inference_mode(mode=False)
def _kernels(settings: CQTSettings) -> _Kernels:
    """nnAudio's, to the digit: tones under a Hann window, of unit sum of magnitudes, in complex64."""
    frequencies = settings.lowest_hz * 2.0 ** (np.arange(settings.bins) / settings.bins_per_octave)
    if frequencies[-1] > settings.sample_rate / 2:
        raise ValueError(f"the highest bin, {frequencies[-1]:g} Hz, lies above half the sample rate")
    lengths = np.ceil(settings.sample_rate / (2 ** (1 / settings.bins_per_octave) - 1) / frequencies).astype(int)
    reach = -(-lengths[0] // 2)  # from bin to bin, kernels get shorter
    taps = np.zeros((settings.bins, 2 * reach), np.complex64)
    for row, length, frequency in zip(taps, lengths, frequencies, strict=True):
        times = np.arange(length) - (length + 1) // 2
        tone = np.exp(times * 1j * 2 * np.pi * frequency / settings.sample_rate)
        tone *= 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
        row[reach + times] = tone / np.abs(tone).sum()
    scaled = torch.from_numpy(taps).to(torch.complex128) * torch.from_numpy(lengths).double().sqrt()[:, None]
    # The first kernel is always long: a transform of direct kernels alone is none that we have.
    n_long = max(1, int((lengths > DIRECT_HOPS * settings.hop).sum()))
    padding = 2 ** int(np.ceil(np.log2(lengths[0]))) // 2  # half of what nnAudio pads kernels to
    return _Kernels(_cut(scaled[:n_long]), _cut(scaled[n_long:]), torch.from_numpy(lengths).float(), padding)


def _cut(kernels: Tensor) -> Tensor:
    """Leave out the zeros that no kernel needs, as many on either side of the centre."""
    used, centre = kernels.abs().sum(dim=0).nonzero(), kernels.shape[1] // 2
    reach = max(centre - int(used.min()), int(used.max()) + 1 - centre) if len(used) else 0
    return kernels[:, centre - reach : centre + reach].contiguous()


def _fast_length(least: int) -> int:
    """The smallest 8, 10 or 12 times a power of two from `least` on: quick to transform, and only a few of them."""
    octave = 1
    while 12 * octave < least:
        octave *= 2
    return next(length for length in (8 * octave, 10 * octave, 12 * octave) if length >= least)


@lru_cache(maxsize=32)
def _long_spectra(settings: CQTSettings, rate: int, device: torch.device) -> tuple[tuple[int, int, Tensor], ...]:
    """The significant part of the long kernels' spectra, alias by alias of the frame rate, for each twelve bins.

    Args:
        settings: of the transform.
        rate: points at the frame rate; the transform of a clip has rate * hop points.
        device: where the result is wanted.

    Returns:
        For each twelve bins, the first alias, the one after the last (alias 0 starts at 0 Hz, alias -1 ends
        there), and complex64, (rate, aliases, bins), scaled so that an inverse transform of `rate` points is the CQT.
    """
    # A tensor that is born in inference mode could never serve in training.
    with torch.inference_mode(False), torch.no_grad():
        points = rate * settings.hop
        folded = []
        for kernels in torch.split(_kernels(settings).long, 12):
            spectra = torch.fft.fft(kernels, n=points).conj() / settings.hop  # conjugate: correlation
            strength = spectra.abs()
            significant = (strength > NEGLIGIBLE * strength.amax(dim=1, keepdim=True)).any(dim=0).nonzero()
            signed = torch.where(significant < points // 2, significant, significant - points)
            start = max(int(signed.min()) // rate, -(settings.hop // 2))
            stop = min(int(signed.max()) // rate + 1, settings.hop // 2)
            places = torch.arange(start * rate, stop * rate) % points
            aliases = spectra[:, places].reshape(-1, stop - start, rate).permute(2, 1, 0)  # (rate, aliases, bins)
            folded.append((start, stop, aliases.to(device, torch.complex64).contiguous()))
        return tuple(folded)


@lru_cache(maxsize=4)
@torch.inference_mode(mode=False)
def _wide(settings: CQTSettings, device: torch.device, reach: int) -> FastCQT:
    """The transform with `reach` more rows on either side; shared, so never to be moved."""
    lowest_hz = settings.lowest_hz * 2 ** (-reach / settings.bins_per_octave)
    return FastCQT(replace(settings, lowest_hz=lowest_hz, bins=settings.bins + 2 * reach)).to(device)


@dataclass(frozen=True, eq=False)
class BeatClips:
    """Clips of several lengths, and which second of each becomes which frame of beat time."""

    waveforms: Tensor  # float32 (n, longest); nothing beyond a clip's own length is heard
    samples: Tensor  # int64 (n,), lengths
    places: Tensor  # float32 (n, frames of beat time): frames of the clip's own, not whole
    transpose: Tensor  # int64 (n,), semitones up, at most MOST_SEMITONES either way

    def __len__(self) -> int:
        return len(self.waveforms)

    def __iter__(self) -> Iterator[Tensor]:
        """Its parts, in their order."""
        return iter((self.waveforms, self.samples, self.places, self.transpose))

    def __getitem__(self, which: slice) -> BeatClips:
        return BeatClips(*(part[which] for part in self))

    @classmethod
    def cut(cls, waveform: Waveform, windows: Windows, hop: int) -> BeatClips:
        """Windows of one waveform in beat time, each at a tempo that is steady within it."""
        assert windows.frames is not None, "they are in clock time"
        clips = np.zeros((len(windows), int(windows.lengths.max(initial=0))), np.float32)
        for row, (start, length) in enumerate(zip(windows.starts, windows.lengths, strict=True)):
            clips[row, :length] = waveform[start : start + length]
        lengths = torch.from_numpy(windows.lengths)
        places = torch.linspace(0, 1, windows.frames, dtype=torch.float64) * (lengths / hop)[:, None]
        last = (lengths // hop)[:, None]  # the last frame that a clip's own length has
        places = torch.minimum(places, last).float()
        return cls(torch.from_numpy(clips), lengths, places, torch.zeros_like(lengths))

    @classmethod
    def joined(cls, clips: Sequence[BeatClips]) -> BeatClips:
        """All of them, of as many frames of beat time each."""
        longest = max(some.waveforms.shape[1] for some in clips)
        waveforms = [functional.pad(some.waveforms, (0, longest - some.waveforms.shape[1])) for some in clips]
        _, *others = zip(*clips, strict=True)
        return cls(torch.cat(waveforms), *(torch.cat(parts) for parts in others))

    def on(self, device: torch.device) -> BeatClips:
        """The same on another device, which the host does not wait for."""
        return BeatClips(*(upload(part, device) for part in self))

    def split(self, each: int) -> list[BeatClips]:
        """So many at once."""
        return [BeatClips(*some) for some in zip(*(torch.split(part, each) for part in self), strict=True)]


def refuse_other_keys_of(clips: BeatClips) -> None:
    """For spectrograms that show no semitones.

    On a card, which would have to be waited for, nothing is looked at: there recipes are refused first.

    Raises:
        ValueError: a clip is to be moved to another key.
    """
    if clips.transpose.device.type == "cpu" and bool(clips.transpose.any()):
        raise ValueError("this spectrogram shows no semitones: its clips cannot be moved to another key")


class ScaledCQT(nn.Module):
    """The constant-Q transform as nnAudio's CQT1992v2 computes it, in scaled decibels.

    Its kernels are no part of a checkpoint: they follow from the settings.
    """

    lengths: Tensor

    def __init__(self, settings: CQTSettings, dynamic_range_db: float, kernel_fronts: bool = False) -> None:
        super().__init__()
        self.dynamic_range_db = dynamic_range_db
        self.kernel_fronts = kernel_fronts
        self.settings = settings
        self.transform = FastCQT(settings)
        # Each bin's kernel length in samples: what tells one CQT's checkpoint from another's.
        self.register_buffer("lengths", _kernels(settings).lengths.clone(), persistent=False)
        self.padding = self.transform.padding
        """Samples reflected on either side; a clip must be longer than this."""

    def magnitude(self, waveforms: Tensor) -> Tensor:
        """float32 (batch, samples), longer than `padding` -> float32 (batch, bins, 1 + samples // hop)."""
        magnitude: Tensor = self.transform(waveforms)
        return magnitude

    def in_beat_time(
        self, clips: BeatClips, at_once: int | None = None, beside: int = 0, reach: int = MOST_SEMITONES
    ) -> Tensor:
        """Clips as if each were played at 120 BPM and in another key: their own CQT's magnitudes, read elsewhere.

        A bin rises as soon as the front of its kernel meets an onset, at any tempo as long before it. With
        `kernel_fronts` it is the fronts that are brought to another tempo and key, so that onsets fall where those of
        audio played so would, not the centres: docs/decisions/tempo-leaks-into-beat-time.md.

        Args:
            clips: n of them; each transposition within `reach`, less what is wanted beside.
            at_once: how many are transformed together; None: all.
            beside: more bins at either end.
            reach: semitones, at most 11: kernels of lower bins would be longer than the padding.

        Returns:
            float32, (n, bins + 2 * beside, frames), in scaled decibels. Speed 1 and transposition 0 give `forward`'s
            numbers.
        """
        transform = _wide(self.settings, clips.waveforms.device, reach)
        parts = clips.split(at_once or len(clips))
        wide = torch.cat([transform.of_lengths(part.waveforms, part.samples) for part in parts])
        # A semitone up, a bin shows what sounded one bin below.
        bins = torch.arange(-beside, self.settings.bins + beside, device=wide.device)
        rows = reach - clips.transpose[:, None] + bins
        chosen = wide.gather(1, rows[:, :, None].expand(-1, -1, wide.shape[2]))  # (n, bins, frames of the longest)
        places = clips.places
        if self.kernel_fronts:
            speed = (places[:, -1:] - places[:, :1]) / (places.shape[1] - 1)  # (n, 1)
            later = speed * transform.lead[reach + bins] - transform.lead[rows]  # (n, bins), frames
            last = (clips.samples // self.settings.hop)[:, None, None]
            places = torch.minimum((places[:, None] + later[:, :, None]).clamp_min(0), last)
        return scale_decibels(read_frames(chosen, places), self.dynamic_range_db, beside)

    def forward(self, waveforms: Tensor) -> Tensor:
        """float32 (batch, samples), longer than `padding` -> float32 (batch, bins, frames), in scaled decibels."""
        return scale_decibels(self.magnitude(waveforms), self.dynamic_range_db)
