"""Instruments made of NumPy: notes -> sound, for the composer.

Pitched voices read band-limited wavetables; each note fades from a bright table to a dark one, which is what a
closing filter would do, at the price of two look-ups. Drums are swept sines and shaped noise. Filters and reverb are
one multiplication in the frequency domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Waveform = NDArray[np.float32]

_TABLE_BITS = 14  # nearest look-up in 16,384 points stays 79 dB under the fundamental
_TABLE_SIZE = 1 << _TABLE_BITS
_VARIANTS = 3  # of each drum, so that a roll is no machine gun


@dataclass(frozen=True)
class Note:
    """One event of a stem: seconds from the track's start, MIDI pitch (drums: General MIDI's), velocity 0..1."""

    onset_s: float
    duration_s: float
    pitch: int
    velocity: float


@dataclass(frozen=True)
class Voice:
    """A pitched sound. Cut-offs are in multiples of the note's own frequency, times in seconds, detune in cents."""

    name: str
    shape: str
    bright: float
    dark: float
    closing_s: float
    attack_s: float
    decay_s: float
    sustain: float
    release_s: float
    detune: tuple[float, ...] = (0.0,)
    vibrato: float = 0.0
    breath: float = 0.0


BASS_VOICES = (
    Voice("round bass", "triangle", 7.0, 2.5, 0.25, 0.006, 0.5, 0.7, 0.05),
    Voice("synth bass", "saw", 11.0, 3.0, 0.18, 0.004, 0.3, 0.65, 0.04, (-2.0, 2.0)),
    Voice("finger bass", "pluck", 9.0, 2.2, 0.12, 0.004, 0.9, 0.35, 0.06),
    Voice("square bass", "square", 6.0, 2.5, 0.3, 0.005, 0.35, 0.7, 0.05),
)
PAD_VOICES = (
    Voice("warm pad", "saw", 4.0, 3.0, 2.0, 0.22, 1.0, 0.85, 0.5, (-7.0, 6.0)),
    Voice("string pad", "saw", 8.0, 6.0, 2.0, 0.14, 0.8, 0.85, 0.4, (-9.0, 8.0), 6.0),
    Voice("glass pad", "organ", 6.0, 4.0, 1.5, 0.18, 1.5, 0.8, 0.6, (-5.0, 5.0), 4.0),
    Voice("choir pad", "triangle", 9.0, 5.0, 1.5, 0.2, 1.0, 0.9, 0.5, (-8.0, 7.0), 8.0, 0.03),
)
KEYS_VOICES = (
    Voice("electric piano", "epiano", 18.0, 1.6, 0.22, 0.003, 0.9, 0.15, 0.12),
    Voice("marimba", "marimba", 12.0, 1.2, 0.06, 0.002, 0.28, 0.0, 0.1),
    Voice("plucked keys", "pluck", 12.0, 2.0, 0.14, 0.002, 0.5, 0.05, 0.12),
    Voice("organ", "organ", 8.0, 6.0, 0.1, 0.008, 0.5, 0.75, 0.06, (0.0,), 5.0),
    Voice("soft piano", "piano", 14.0, 3.0, 0.35, 0.003, 0.8, 0.12, 0.15, (-1.5, 1.5)),
)
LEAD_VOICES = (
    Voice("flute", "triangle", 5.0, 3.0, 0.2, 0.045, 0.4, 0.85, 0.09, (0.0,), 16.0, 0.05),
    Voice("saw lead", "saw", 9.0, 4.0, 0.3, 0.012, 0.4, 0.7, 0.12, (-6.0, 6.0), 13.0),
    Voice("hollow lead", "square", 7.0, 3.5, 0.25, 0.015, 0.4, 0.75, 0.1, (-3.0, 3.0), 12.0),
    Voice("bell lead", "epiano", 20.0, 2.0, 0.35, 0.003, 1.0, 0.25, 0.3, (0.0,), 5.0),
    Voice("plucked lead", "pluck", 14.0, 3.0, 0.3, 0.003, 0.8, 0.3, 0.15, (-2.0, 2.0), 6.0),
)
VOICES = {"bass": BASS_VOICES, "pads": PAD_VOICES, "keys": KEYS_VOICES, "lead": LEAD_VOICES}


def _partials(shape: str, n: int) -> NDArray[np.float64]:
    """Amplitudes of the first n harmonics."""
    k = np.arange(1, n + 1, dtype=np.float64)
    odd = k % 2 == 1
    if shape == "saw":
        return np.asarray(1.0 / k)
    if shape == "square":
        return np.asarray(np.where(odd, 1.0 / k, 0.04 / k))
    if shape == "triangle":
        return np.asarray(np.where(odd, 1.0 / k**1.7, 0.25 / k**2))
    if shape == "pluck":  # a string plucked at a seventh of its length
        return np.asarray(np.abs(np.sin(np.pi * k / 7.0)) / k**1.3 * 2.0)
    if shape == "piano":  # struck near an eighth
        return np.asarray((0.2 + np.abs(np.sin(np.pi * k / 8.0))) / k**1.2)
    named = {
        "organ": {1: 1.0, 2: 0.7, 3: 0.45, 4: 0.4, 6: 0.2, 8: 0.15},
        "epiano": {1: 1.0, 2: 0.25, 3: 0.12, 4: 0.05, 13: 0.1, 14: 0.16, 15: 0.08},
        "marimba": {1: 1.0, 4: 0.35, 10: 0.14},
    }[shape]
    amplitudes = np.zeros(n)
    for harmonic, amplitude in named.items():
        if harmonic <= n:
            amplitudes[harmonic - 1] = amplitude
    return amplitudes


def _table(shape: str, cutoff: float, n: int) -> Waveform:
    """One cycle of n harmonics behind a low-pass at `cutoff` harmonics; RMS 1 before the filter closes."""
    amplitudes = _partials(shape, n)
    amplitudes /= np.sqrt(0.5 * np.sum(amplitudes**2))
    amplitudes /= np.sqrt(1.0 + (np.arange(1, n + 1) / cutoff) ** 4)
    spectrum = np.zeros(_TABLE_SIZE // 2 + 1, dtype=np.complex128)
    spectrum[1 : n + 1] = -0.5j * amplitudes * _TABLE_SIZE
    return np.fft.irfft(spectrum).astype(np.float32)


def _envelope(voice: Voice, held: int, total: int, sample_rate: int) -> Waveform:
    """Attack, decay towards the sustain level, and from `held` samples on the release; float32 (total,)."""
    t = np.arange(total, dtype=np.float32) / np.float32(sample_rate)
    envelope = voice.sustain + (1.0 - voice.sustain) * np.exp(-t / np.float32(voice.decay_s))
    attack = max(1, int(voice.attack_s * sample_rate))
    ramp = np.arange(min(attack, total), dtype=np.float32) / np.float32(attack)
    envelope[: len(ramp)] *= ramp * ramp * (3.0 - 2.0 * ramp)
    tail = total - held
    if tail > 0:
        fall = np.arange(tail, 0, -1, dtype=np.float32) / np.float32(tail)
        envelope[held:] *= fall * fall
    return np.asarray(envelope, dtype=np.float32)


def play_voice(
    voice: Voice, notes: Sequence[Note], samples: int, sample_rate: int, rng: np.random.Generator
) -> Waveform:
    """Sound `notes` with one voice; float32 (samples,), not yet levelled."""
    out = np.zeros(samples, dtype=np.float32)
    tables: dict[int, tuple[Waveform, Waveform]] = {}
    longest = max((n.duration_s for n in notes), default=0.0) + voice.release_s
    ramp = np.arange(round(longest * sample_rate) + 2, dtype=np.uint32)
    seconds = ramp.astype(np.float32) / np.float32(sample_rate)
    for note in notes:
        start = round(note.onset_s * sample_rate)
        held = max(1, round(note.duration_s * sample_rate))
        total = min(held + round(voice.release_s * sample_rate), samples - start, len(ramp))
        if total <= 0:
            continue
        frequency = 440.0 * 2.0 ** ((note.pitch - 69) / 12.0)
        if note.pitch not in tables:
            n = max(1, min(int(0.45 * sample_rate / frequency), _TABLE_SIZE // 2 - 1))
            tables[note.pitch] = (_table(voice.shape, voice.dark, n), _table(voice.shape, voice.bright, n))
        dark, bright = tables[note.pitch]
        t = seconds[:total]
        openness = np.float32(0.35 + 0.65 * note.velocity) * np.exp(-t / np.float32(voice.closing_s))
        bend: NDArray[np.float32] | None = None
        if voice.vibrato > 0.0:
            rate = float(rng.uniform(4.6, 5.6))
            depth = frequency * (2.0 ** (voice.vibrato / 1200.0) - 1.0) / (2.0 * np.pi * rate)
            onset = np.minimum(t / np.float32(0.5), np.float32(1.0)) ** 2  # a player lets the note settle first
            bend = np.asarray(np.float32(depth) * onset * np.cos(np.float32(2.0 * np.pi * rate) * t))
        sound = np.zeros(total, dtype=np.float32)
        # Oscillators start together, or a bass note could lose its fundamental; a slow swell hides that, and is wider.
        scattered = voice.attack_s > 0.1
        for cents in voice.detune:
            # 32-bit phase accumulator: one cycle is 2**32 and wraps by itself.
            step = np.uint32(round(frequency * 2.0 ** (cents / 1200.0) / sample_rate * 2**32))
            phase = ramp[:total] * step + np.uint32(rng.integers(2**32) if scattered else 0)
            if bend is not None:
                phase += (bend * np.float32(2.0**32)).astype(np.int64).astype(np.uint32)
            index = phase >> np.uint32(32 - _TABLE_BITS)
            low = dark[index]
            sound += low + openness * (bright[index] - low)
        if voice.breath > 0.0:
            sound += np.float32(voice.breath) * rng.standard_normal(total, dtype=np.float32)
        sound *= _envelope(voice, min(held, total), total, sample_rate)
        # Higher notes carry more in a mix; tilt them down a little.
        gain = note.velocity**1.3 * 2.0 ** (-(note.pitch - 60) / 60.0) / len(voice.detune) ** 0.5
        out[start : start + total] += np.float32(gain) * sound
    return out


def _noise(n: int, low_hz: float, high_hz: float, sample_rate: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Noise between two frequencies, RMS 1."""
    spectrum = np.fft.rfft(rng.standard_normal(n))
    spectrum *= band(np.fft.rfftfreq(n, 1.0 / sample_rate), low_hz, high_hz)
    shaped = np.fft.irfft(spectrum, n)
    return np.asarray(shaped / np.sqrt(np.mean(shaped**2)))


@dataclass(frozen=True)
class DrumKit:
    """How a kit is tuned. Frequencies in Hz, decays in seconds."""

    kick_hz: float
    kick_decay_s: float
    snare_hz: float
    snare_decay_s: float
    snare_noise: float
    hat_low_hz: float
    hat_decay_s: float


KICK, RIM, SNARE, CLAP, HAT, TOM_LOW, OPEN_HAT, TOM_MID, CRASH, TOM_HIGH, RIDE, SHAKER = (
    36, 37, 38, 39, 42, 45, 46, 47, 49, 50, 51, 70,
)  # fmt: skip


def tune_kit(rng: np.random.Generator) -> DrumKit:
    """A kit of this track's own."""
    return DrumKit(
        kick_hz=float(rng.uniform(48.0, 62.0)),
        kick_decay_s=float(rng.uniform(0.09, 0.17)),
        snare_hz=float(rng.uniform(165.0, 235.0)),
        snare_decay_s=float(rng.uniform(0.07, 0.15)),
        snare_noise=float(rng.uniform(0.5, 0.9)),
        hat_low_hz=float(rng.uniform(6000.0, 8500.0)),
        hat_decay_s=float(rng.uniform(0.025, 0.05)),
    )


def _strike(kit: DrumKit, pitch: int, sample_rate: int, rng: np.random.Generator) -> Waveform:
    """One hit of one drum at full velocity."""
    length = {KICK: 0.5, CRASH: 1.8, RIDE: 0.9, OPEN_HAT: 0.4, TOM_LOW: 0.5, TOM_MID: 0.45, TOM_HIGH: 0.4}
    n = int(length.get(pitch, 0.3) * sample_rate)
    t = np.arange(n) / sample_rate
    top = 0.45 * sample_rate

    def sweep(start_hz: float, end_hz: float, fall_s: float) -> NDArray[np.float64]:
        cycles = end_hz * t + (start_hz - end_hz) * fall_s * (1.0 - np.exp(-t / fall_s))
        return np.asarray(np.sin(2.0 * np.pi * cycles))

    def decay(seconds: float) -> NDArray[np.float64]:
        return np.asarray(np.exp(-t / seconds))

    if pitch == KICK:
        click = 0.12 * _noise(n, 1500.0, 6000.0, sample_rate, rng) * decay(0.004)
        hit = np.tanh(1.6 * sweep(kit.kick_hz * 4.0, kit.kick_hz, 0.028) * decay(kit.kick_decay_s)) + click
    elif pitch == SNARE:
        body = 0.7 * sweep(kit.snare_hz * 1.3, kit.snare_hz, 0.015) * decay(0.06)
        body += 0.3 * sweep(kit.snare_hz * 1.9, kit.snare_hz * 1.62, 0.015) * decay(0.04)
        wires = 0.4 * kit.snare_noise * _noise(n, 900.0, min(9000.0, top), sample_rate, rng) * decay(kit.snare_decay_s)
        hit = body + wires
    elif pitch == CLAP:
        bursts = sum(np.where(t >= d, np.exp(-np.maximum(t - d, 0.0) / 0.006), 0.0) for d in (0.0, 0.011, 0.022))
        hit = 0.45 * _noise(n, 900.0, 4500.0, sample_rate, rng) * (bursts + 0.6 * decay(0.07))
    elif pitch == RIM:
        hit = 0.5 * sweep(1750.0, 1650.0, 0.01) * decay(0.012) + 0.2 * sweep(520.0, 480.0, 0.01) * decay(0.02)
    elif pitch in (TOM_LOW, TOM_MID, TOM_HIGH):
        hz = {TOM_LOW: 88.0, TOM_MID: 118.0, TOM_HIGH: 158.0}[pitch]
        hit = 0.8 * sweep(hz * 1.7, hz, 0.05) * decay(0.13) + 0.05 * _noise(n, 500.0, 4000.0, sample_rate, rng) * decay(
            0.02
        )
    elif pitch in (HAT, OPEN_HAT):
        metal = sum(np.sign(np.sin(2.0 * np.pi * hz * t)) for hz in (3170.0, 4213.0, 5437.0, 6331.0))
        grain = _noise(n, kit.hat_low_hz, top, sample_rate, rng)
        spectrum = np.fft.rfft(0.35 * metal + grain)
        spectrum *= band(np.fft.rfftfreq(n, 1.0 / sample_rate), kit.hat_low_hz, top)
        hit = 0.28 * np.fft.irfft(spectrum, n) * decay(kit.hat_decay_s if pitch == HAT else 0.13)
    elif pitch == SHAKER:
        swell = np.minimum(t / 0.018, 1.0)
        hit = 0.16 * _noise(n, 4500.0, min(11_000.0, top), sample_rate, rng) * swell * decay(0.03)
    elif pitch == RIDE:
        ring = sum(np.sin(2.0 * np.pi * hz * t) for hz in (2310.0, 3467.0, 4211.0, 5843.0, 7219.0))
        hit = (0.05 * ring + 0.05 * _noise(n, 5000.0, top, sample_rate, rng)) * decay(0.28)
    else:
        hit = 0.3 * _noise(n, 3500.0, min(14_000.0, top), sample_rate, rng) * decay(0.45)
    fade = np.minimum(np.arange(n, 0, -1) / (0.02 * sample_rate), 1.0)
    return np.asarray(hit * fade, dtype=np.float32)


def play_drums(
    kit: DrumKit, notes: Sequence[Note], samples: int, sample_rate: int, rng: np.random.Generator
) -> Waveform:
    """Sound drum notes; float32 (samples,), not yet levelled."""
    out = np.zeros(samples, dtype=np.float32)
    # Every drum is struck, played or not: what one pattern uses must not change another drum's sound.
    kinds = (KICK, RIM, SNARE, CLAP, HAT, TOM_LOW, OPEN_HAT, TOM_MID, CRASH, TOM_HIGH, RIDE, SHAKER)
    hits = {kind: [_strike(kit, kind, sample_rate, rng) for _ in range(_VARIANTS)] for kind in kinds}
    for count, note in enumerate(notes):
        start = round(note.onset_s * sample_rate)
        hit = hits[note.pitch][count % _VARIANTS]
        n = min(len(hit), samples - start)
        if n > 0:
            out[start : start + n] += np.float32(note.velocity**1.4) * hit[:n]
    return out


def band(frequencies_hz: NDArray[np.floating[Any]], low_hz: float, high_hz: float) -> NDArray[np.complex128]:
    """The response of a second-order high-pass and low-pass (Butterworth, causal); zero at 0 Hz."""
    low = 1j * frequencies_hz / low_hz
    high = 1j * frequencies_hz / high_hz
    return np.asarray(low**2 / (low**2 + 2.0**0.5 * low + 1.0) / (high**2 + 2.0**0.5 * high + 1.0))


def _fft_length(samples: int) -> int:
    power = 1 << (samples - 1).bit_length()
    return min(n for n in (power, 3 * power // 4, 5 * power // 8, 9 * power // 16) if n >= samples)


class Room:
    """One small reverb, which stems may share. Holds the room's spectrum for clips of `samples`."""

    def __init__(self, samples: int, sample_rate: int, decay_s: float, rng: np.random.Generator) -> None:
        n = int(decay_s * sample_rate)
        t = np.arange(n) / sample_rate
        tail = rng.standard_normal(n) * np.exp(-6.9 * t / decay_s)  # 60 dB down after `decay_s`
        tail[: int(0.008 * sample_rate)] = 0.0
        tail /= np.sqrt(np.sum(tail**2))
        self._samples = samples
        self._n = _fft_length(samples + n)
        self._frequencies = np.fft.rfftfreq(self._n, 1.0 / sample_rate)
        echo: NDArray[np.complex128] = np.fft.rfft(tail, self._n)
        echo *= band(self._frequencies, 200.0, min(5000.0, 0.4 * sample_rate))
        self._echo = echo.astype(np.complex64)

    def place(self, dry: Waveform, wet: float, low_hz: float, high_hz: float) -> Waveform:
        """Filter a stem to [low_hz, high_hz] and add `wet` (a ratio of RMS) of the room; the same length."""
        response = band(self._frequencies, low_hz, high_hz).astype(np.complex64)
        response *= 1.0 + np.complex64(wet) * self._echo
        return np.asarray(np.fft.irfft(np.fft.rfft(dry, self._n) * response, self._n)[: self._samples], np.float32)
