"""Tracks of our own, composed from a seed: the demo catalog, and music for tests and smoke training.

A track is planned first (key, tempo, metre, form, chords), then each stem is written over that plan and sounded by
`model.demo.synthesis`. So all stems share one key, one tempo and one time origin: bar 1 starts at 0 s. Each part draws
from random numbers of its own, so a change to one leaves the others as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model.audio.harmony import key_name
from model.audio.windows import SAMPLE_RATE
from model.demo.parts import write_bass, write_drums, write_keys, write_lead, write_pads
from model.demo.plan import SHORTEST_NOTE_S, plan_track
from model.demo.synthesis import KICK, VOICES, Note, Room, Waveform, play_drums, play_voice, tune_kit
from model.demo.track import ChordSpan, ComposedStem, Track, title_of, write_track

INSTRUMENTS = ("drums", "bass", "pads", "keys", "lead")
_LOUDEST = 0.9  # the sum of the stems' magnitudes stays under this, so that no submix clips
_FADE_IN_S = 0.002  # short, because the first downbeat is at 0 s
_FADE_OUT_S = 0.06
_SHORTEST_S, _LONGEST_S = 1.0, 600.0
_LOWEST_RATE = 16_000
_LEVELS = {"drums": 0.105, "bass": 0.105, "pads": 0.06, "keys": 0.06, "lead": 0.075}  # RMS of a stem before scaling
_BANDS_HZ = {
    "drums": (30.0, 15_000.0),
    "bass": (28.0, 5_000.0),
    "pads": (110.0, 9_000.0),
    "keys": (90.0, 11_000.0),
    "lead": (150.0, 11_000.0),
}
_WET = {"drums": 0.12, "bass": 0.03, "pads": 0.45, "keys": 0.35, "lead": 0.4}


def _pump(kicks: Sequence[float], samples: int, sample_rate: int, depth: float) -> Waveform:
    """A gain that dips by `depth` at each kick and swells back; float32 (samples,)."""
    gain = np.ones(samples, dtype=np.float32)
    n = int(0.35 * sample_rate)
    t = np.arange(n, dtype=np.float32) / np.float32(sample_rate)
    dip = np.float32(1.0) - np.float32(depth) * np.minimum(t / 0.01, 1.0) * np.exp(-t / 0.12) * (1.0 - t / 0.35)
    for kick in kicks:
        start = int(kick * sample_rate)
        stretch = gain[start : start + n]
        np.minimum(stretch, dip[: len(stretch)], out=stretch)
    return gain


def _echo(dry: Waveform, delay: int, feedback: float) -> Waveform:
    """Two fainter repeats, `delay` samples apart."""
    out = dry.copy()
    for repeat in (1, 2):
        shift = repeat * delay
        if shift < len(dry):
            out[shift:] += np.float32(feedback**repeat) * dry[:-shift]
    return out


def _balance(stems: dict[str, Waveform], sample_rate: int) -> dict[str, Waveform]:
    """Bring each stem to its level, fade the ends, and scale all by one gain so that no submix clips."""
    levelled: dict[str, Waveform] = {}
    for instrument, waveform in stems.items():
        rms = float(np.sqrt(np.mean(np.square(waveform), dtype=np.float64)))
        crest = 5.0 * rms
        # Rounds off only what stands out of the stem, as a tape would.
        tamed = np.asarray(np.tanh(waveform / np.float32(crest)), dtype=np.float32)
        tamed -= np.float32(np.mean(tamed, dtype=np.float64))
        fade_in, fade_out = int(_FADE_IN_S * sample_rate), int(_FADE_OUT_S * sample_rate)
        tamed[:fade_in] *= np.linspace(0.0, 1.0, fade_in, dtype=np.float32)
        tamed[-fade_out:] *= np.cos(np.linspace(0.0, np.pi / 2, fade_out, dtype=np.float32)) ** 2
        level = float(np.sqrt(np.mean(np.square(tamed), dtype=np.float64)))
        levelled[instrument] = tamed * np.float32(_LEVELS[instrument] / level)
    loudest = float(np.max(np.sum([np.abs(w) for w in levelled.values()], axis=0)))
    gain = np.float32(min(1.0, _LOUDEST * 0.999 / loudest))
    return {instrument: waveform * gain for instrument, waveform in levelled.items()}


def compose_track(seed: int, seconds: float = 20.0, sample_rate: int = 44_100) -> Track:
    """Compose and sound a track.

    Args:
        seed: 0 or more; the same seed gives the same samples (on one machine), and another seed another track.
        seconds: 1 to 600. A longer track begins with the notes of a shorter one.
        sample_rate: Hz, 16,000 or more.

    Returns:
        A Track with the five stems of INSTRUMENTS, each float32 (round(seconds * sample_rate),). The sum of their
        magnitudes stays under 0.9.

    Raises:
        ValueError: an argument outside its domain.
    """
    if seed < 0:
        raise ValueError(f"a seed is 0 or more, not {seed}")
    if not _SHORTEST_S <= seconds <= _LONGEST_S:
        raise ValueError(f"a track lasts {_SHORTEST_S:g} to {_LONGEST_S:g} s, not {seconds:g}")
    if sample_rate < _LOWEST_RATE:
        raise ValueError(f"a track needs a sample rate of {_LOWEST_RATE} Hz or more, not {sample_rate}")
    plan = plan_track(seed, seconds)
    samples = round(seconds * sample_rate)
    drums, kicks = write_drums(plan)
    written = {
        "drums": drums,
        "bass": write_bass(plan, kicks),
        "pads": write_pads(plan),
        "keys": write_keys(plan),
        "lead": write_lead(plan),
    }
    notes = {
        instrument: tuple(
            Note(n.onset_s, min(n.duration_s, seconds - n.onset_s), n.pitch, n.velocity)
            for n in sorted(part, key=lambda n: (n.onset_s, n.pitch))
            if n.onset_s < seconds - SHORTEST_NOTE_S
        )
        for instrument, part in written.items()
    }

    choice = plan.rng("voices")
    voices = {name: kinds[int(choice.integers(len(kinds)))] for name, kinds in VOICES.items()}
    room = Room(samples, sample_rate, float(choice.uniform(0.7, 1.3)), plan.rng("room"))
    pumping = float(choice.uniform(0.35, 0.6)) if plan.pattern.style == "house" else 0.15
    repeats = float(choice.uniform(0.12, 0.3))

    dry = {"drums": play_drums(tune_kit(plan.rng("kit")), notes["drums"], samples, sample_rate, plan.rng("hits"))}
    for instrument, voice in voices.items():
        dry[instrument] = play_voice(voice, notes[instrument], samples, sample_rate, plan.rng(f"{instrument} voice"))
    kick_times = [n.onset_s for n in notes["drums"] if n.pitch == KICK]
    dry["pads"] *= _pump(kick_times, samples, sample_rate, pumping)
    three_eighths = round(plan.metre.ticks_per_beat * 0.75 * plan.tick_s * sample_rate)
    dry["lead"] = _echo(dry["lead"], three_eighths, repeats)
    placed = {name: room.place(dry[name], _WET[name], *_BANDS_HZ[name]) for name in INSTRUMENTS}
    waveforms = _balance(placed, sample_rate)

    chords = tuple(
        ChordSpan(s.start * plan.tick_s, (s.end - s.start) * plan.tick_s, s.chord, s.scale)
        for s in plan.spans
        if s.start * plan.tick_s < seconds
    )
    return Track(
        seed=seed,
        title=title_of(seed),
        key=key_name(plan.tonic, plan.family.mode),
        mode=plan.family.mode,
        style=f"{plan.family.name} {plan.pattern.style}",
        tempo_bpm=float(plan.tempo_bpm),
        metre=plan.metre_name,
        sample_rate=sample_rate,
        chords=chords,
        stems=tuple(
            ComposedStem(name, waveforms[name], notes[name], voices[name].name if name in voices else "acoustic kit")
            for name in INSTRUMENTS
        ),
    )


def compose_files(seed: int, seconds: float, folder: Path) -> None:
    """A track at our sample rate as `<folder>/<instrument>.flac`, and then its track.json."""
    write_track(compose_track(seed, seconds, SAMPLE_RATE), folder)
