"""Scores (MIDI) -> time-aligned stems on disk, to train on: `<out>/<track>/<nn>-<instrument>.flac`.

FluidSynth plays them from several soundfonts, our own synthesiser from its voices, a sampler from one note of either,
drums also from recorded hits. Instrument within its family, tempo, key, excerpt, levels, tone and room vary by seed.
Every draw follows from the seed and the score's name alone, so a rendering that was cut off goes on where it ended, and
other processes make the same music. Not the same bits: FluidSynth's voices keep a little of what they played before.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from model.audio import SAMPLE_RATE, is_silent
from model.audio.harmony import key_name
from model.audio.truth import Truth
from model.demo.synthesis import (
    BASS_VOICES,
    KEYS_VOICES,
    LEAD_VOICES,
    PAD_VOICES,
    RIM,
    Note,
    Room,
    Waveform,
    play_drums,
    play_voice,
    tune_kit,
)
from model.errors import Told
from model.training.kits import Kits
from model.training.patterns import as_patterns
from model.training.processes import map_in_processes
from model.training.scores import DRUM_CHANNEL, DRUMS, FIRST_UNPITCHED, Part, Score, read_score, score_files

SOUNDFONTS = (
    Path("/usr/share/sounds/sf2/FluidR3_GM.sf2"),
    Path("/usr/share/sounds/sf3/MuseScore_General_Lite.sf3"),
    Path("/usr/share/sounds/sf2/TimGM6mb.sf2"),
)
"""Where Debian's packages fluid-soundfont-gm, musescore-general-soundfont-small and timgm6mb-soundfont put theirs."""

PLAYED_HZ = 32_000  # soundfonts play samples without a filter: the octave above ours keeps their aliases out
_CHANNEL, _DRUM_BANK = 0, 128
_SAMPLED_S = 4.0  # of the note that a sampler plays
_CUT_S = 0.01  # a sampler's note fades so fast when it is released


class NoSoundfont(Told):
    """None of the soundfonts exists."""

    says = "no soundfont at {paths}: install one, or name it with --soundfont"
    paths: str


@dataclass(frozen=True)
class RenderSettings:
    """How scores become stems."""

    soundfonts: tuple[Path, ...] = SOUNDFONTS
    seconds: float = 30.0  # of each score, a stretch of it
    seed: int = 0
    variants: int = 1  # renderings of each score, each another seed
    most_stems: int = 8  # a kit counts as one
    synthesised: float = 0.35  # part of all parts that our own synthesiser plays
    sampled: float = 0.25  # part of the melodic parts that a sampler plays, from one note of whatever would play them
    kits_in_pieces: float = 0.5  # part of the tracks whose drums are a stem for each piece of the kit
    sequenced: float = 0.3  # part of the tracks that no player's timing loosens
    patterns: float = 0.0  # part of the tracks made of loops, as a sequencer plays them from samples
    kits: tuple[Path, ...] = ()  # folders of recorded hits, see `kits`
    from_kits: float = 0.55  # part of the drum stems that are played from them, where there are any


@dataclass(frozen=True)
class Rendered:
    """One score's outcome: the track's folder, or the reason why there is none."""

    track: str
    stems: int
    problem: str | None = None


def render_track(score: Score, settings: RenderSettings, rng: np.random.Generator) -> tuple[dict[str, Waveform], Truth]:
    """Play an excerpt of a score.

    Args:
        score: as from `read_score`.
        settings: how.
        rng: every choice is drawn from it.

    Returns:
        Stem name -> float32 (samples,) at 16 kHz, all equally long and aligned; the sum of all stays within -1 and 1.
        Parts that are silent in the excerpt are left out, so it may be empty. And what is known of the excerpt.
    """
    patterned = settings.patterns > 0 and rng.random() < settings.patterns
    if patterned:
        score = as_patterns(score, settings.seconds, rng)
        settings = dataclasses.replace(settings, sampled=0.6, kits_in_pieces=0.9, sequenced=1.0)
    parts = score.parts
    tempo = float(rng.uniform(0.8, 1.25))  # more is faster
    transposition = int(rng.integers(-5, 7))
    looseness_s = float(rng.uniform(0.0, 0.006))  # how far a player is off the beat, usually
    if rng.random() < settings.sequenced:
        looseness_s = 0.0
    kit_in_pieces = rng.random() < settings.kits_in_pieces
    all_synthesised = rng.random() < 0.2
    end = max((part.notes[-1].onset_s for part in parts), default=0.0) / tempo
    start = float(rng.uniform(0.0, max(0.0, end - settings.seconds)))
    samples = round(settings.seconds * SAMPLE_RATE)
    shared = Room(samples, SAMPLE_RATE, float(rng.uniform(0.3, 1.6)), rng)
    waveforms: dict[str, Waveform] = {}
    pitched: dict[str, bool] = {}
    busiest = sorted(parts, key=lambda part: len(part.notes), reverse=True)[: settings.most_stems]
    stems = [one for part in busiest for one in (part.pieces() if part.is_drums and kit_in_pieces else [part])]
    for number, part in enumerate(stems):
        own = np.random.default_rng(rng.integers(2**63))
        shift = 0 if part.is_drums else transposition
        notes = []
        for note in part.notes:
            onset, duration = note.onset_s / tempo - start, note.duration_s / tempo
            if onset + duration <= 0 or onset >= settings.seconds:
                continue
            begin = max(0.0, onset + float(own.normal(0.0, looseness_s)))
            pitch = note.pitch + shift
            if 0 <= pitch <= 127:
                notes.append(Note(begin, max(0.03, onset + duration - begin), pitch, note.velocity))
        if not notes:
            continue
        notes.sort(key=lambda note: note.onset_s)
        synthesised = all_synthesised or own.random() < settings.synthesised

        def play(
            notes: Sequence[Note], samples: int, part: Part = part, own: Any = own, synthesised: bool = synthesised
        ) -> Waveform:
            if part.is_drums and settings.kits and own.random() < settings.from_kits:
                kits, drums = _kits(settings.kits), _our_drums(notes)
                if kits.have(drums):
                    return kits.play(drums, samples, own)
            if synthesised:
                return _synthesise(part, notes, samples, own)
            return _play(part, notes, samples, settings.soundfonts, own)

        sampled = not part.is_drums and own.random() < settings.sampled
        dry = _sample(notes, samples, play) if sampled else play(notes, samples)
        # A room that all stems shared would tell which of them belong together.
        room = shared if own.random() < 0.3 else Room(samples, SAMPLE_RATE, float(own.uniform(0.1, 1.6)), own)
        wettest = 0.1 if part.is_drums or patterned else 0.4
        shaped = _shape(dry, room, wettest, 60.0 if part.is_drums else 120.0, own)
        if shaped is not None:
            waveforms[f"{number:02d}-{part.instrument}"] = shaped
            pitched[f"{number:02d}-{part.instrument}"] = not part.is_drums and part.program < FIRST_UNPITCHED
    loudest = max((float(np.abs(sum(waveforms.values())).max()) if waveforms else 0.0), 1e-9)
    scale = np.float32(min(1.0, 0.9 / loudest))
    beats = [beat / tempo - start for beat in score.beats_s]
    key = None if score.key is None else key_name((score.key[0] + transposition) % 12, score.key[1])
    truth = Truth(tuple(beat for beat in beats if 0 <= beat <= settings.seconds), key, pitched)
    return {name: waveform * scale for name, waveform in waveforms.items()}, truth


def _our_drums(notes: Sequence[Note]) -> list[Note]:
    return [dataclasses.replace(note, pitch=DRUMS.get(note.pitch, RIM)) for note in notes]


@lru_cache(maxsize=1)
def _kits(folders: tuple[Path, ...]) -> Kits:
    return Kits.below(folders)


def _synthesise(part: Part, notes: Sequence[Note], samples: int, rng: np.random.Generator) -> Waveform:
    if part.is_drums:
        return play_drums(tune_kit(rng), _our_drums(notes), samples, SAMPLE_RATE, rng)
    family = part.instrument
    voices = {
        "bass": BASS_VOICES,
        "strings": PAD_VOICES + LEAD_VOICES,
        "ensemble": PAD_VOICES,
        "synth-pad": PAD_VOICES,
        "reed": LEAD_VOICES,
        "pipe": LEAD_VOICES,
        "brass": LEAD_VOICES,
        "synth-lead": LEAD_VOICES,
    }.get(family, KEYS_VOICES + LEAD_VOICES)
    voice = voices[int(rng.integers(len(voices)))]
    varied = dataclasses.replace(
        voice,
        shape=str(rng.choice(["saw", "square", "triangle", "pluck"])) if rng.random() < 0.4 else voice.shape,
        bright=voice.bright * float(rng.uniform(0.5, 2.0)),
        dark=voice.dark * float(rng.uniform(0.6, 2.0)),
        closing_s=voice.closing_s * float(rng.uniform(0.5, 2.0)),
        attack_s=voice.attack_s * float(rng.uniform(0.5, 1.5)),
        decay_s=voice.decay_s * float(rng.uniform(0.4, 1.6)),
        sustain=float(np.clip(voice.sustain + rng.uniform(-0.3, 0.3), 0.0, 1.0)),
        release_s=voice.release_s * float(rng.uniform(0.5, 1.5)),
        vibrato=voice.vibrato * float(rng.uniform(0.0, 1.5)),
    )
    return play_voice(varied, notes, samples, SAMPLE_RATE, rng)


def _sample(notes: Sequence[Note], samples: int, record: Callable[[Sequence[Note], int], Waveform]) -> Waveform:
    """As a sampler plays them: one recorded note for all, faster for the higher ones, ended when they are released.

    It reads between samples in straight lines, as trackers and early samplers do, and ends with the recording.
    """
    recorded = sorted(note.pitch for note in notes)[len(notes) // 2]
    recording = record([Note(0.0, _SAMPLED_S, recorded, 0.8)], round(_SAMPLED_S * SAMPLE_RATE))
    places = np.arange(len(recording))
    cut = round(_CUT_S * SAMPLE_RATE)
    out = np.zeros(samples, dtype=np.float32)
    for note in notes:
        speed = 2 ** ((note.pitch - recorded) / 12)
        at = round(note.onset_s * SAMPLE_RATE)
        length = min(round(note.duration_s * SAMPLE_RATE) + cut, int((len(recording) - 1) / speed), samples - at)
        if length <= cut:
            continue
        sound = np.interp(np.arange(length) * speed, places, recording) * note.velocity
        sound[-cut:] *= np.linspace(1.0, 0.0, cut)
        out[at : at + length] += sound.astype(np.float32)
    return out


def _play(
    part: Part, notes: Sequence[Note], samples: int, soundfonts: tuple[Path, ...], rng: np.random.Generator
) -> Waveform:
    """By FluidSynth, the font of which is loaded once a process."""
    synth, font = _synth(soundfonts[int(rng.integers(len(soundfonts)))])
    synth.system_reset()
    channel = DRUM_CHANNEL if part.is_drums else _CHANNEL
    if part.is_drums:
        kits = (0, 0, 8, 16, 24, 25, 32, 40)  # standard twice, room, power, electronic, TR-808, jazz, brush
        if synth.program_select(channel, font, _DRUM_BANK, int(rng.choice(kits))) != 0:
            synth.program_select(channel, font, _DRUM_BANK, 0)
    else:
        synth.program_select(channel, font, 0, _another_program(part.program, rng))
    events = sorted(
        event
        for note in notes
        for event in (
            # At one time, off before on: a repeated note must sound twice.
            (round(note.onset_s * PLAYED_HZ), 1, note.pitch, max(1, round(127 * note.velocity))),
            (round((note.onset_s + note.duration_s) * PLAYED_HZ), 0, note.pitch, 0),
        )
    )
    total = -(-samples * PLAYED_HZ // SAMPLE_RATE)
    out, now = np.zeros(total, dtype=np.float32), 0
    for at, kind, pitch, velocity in [*events, (total, 2, 0, 0)]:
        at = min(at, total)
        if at > now:
            stereo = synth.get_samples(at - now).reshape(-1, 2)
            out[now:at] = (stereo[:, 0].astype(np.float32) + stereo[:, 1]) / 65_536
            now = at
        if kind == 1:
            synth.noteon(channel, pitch, velocity)
        elif kind == 0:
            synth.noteoff(channel, pitch)
    synth.all_sounds_off(channel)
    return np.asarray(soxr.resample(out, PLAYED_HZ, SAMPLE_RATE, quality="HQ")[:samples], dtype=np.float32)


@lru_cache(maxsize=8)
def _synth(soundfont: Path) -> tuple[Any, int]:
    import fluidsynth

    # Its reverb and chorus would go on from one part to the next.
    settings = {"synth.reverb.active": 0, "synth.chorus.active": 0}
    synth = fluidsynth.Synth(gain=0.4, samplerate=PLAYED_HZ, channels=16, **settings)
    return synth, synth.sfload(str(soundfont))


def _another_program(program: int, rng: np.random.Generator) -> int:
    """Mostly of the same family; sometimes a melody moves to any other melodic instrument."""
    family = program // 8
    if family >= 14:  # struck and odd sounds: another one of them is no substitute
        return program
    if family != 4 and rng.random() < 0.25:  # a bass stays a bass
        family = int(rng.choice([0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]))
    return 8 * family + int(rng.integers(8))


def _shape(dry: Waveform, room: Room, wettest: float, lowest_hz: float, rng: np.random.Generator) -> Waveform | None:
    """Tone, grit, room and level of a stem; None where it is silent."""
    if is_silent(dry):
        return None
    peak = np.abs(dry).max()
    wave = dry / peak
    if rng.random() < 0.2:  # overdrive
        drive = np.float32(rng.uniform(1.5, 6.0))
        wave = np.tanh(drive * wave) / np.tanh(drive)
    if rng.random() < 0.1:  # an early sampler's 6 to 8 bits
        steps = np.float32(2 ** int(rng.integers(5, 8)))
        wave = np.round(wave * steps) / steps
    low_hz = float(rng.uniform(25.0, lowest_hz))
    high_hz = float(rng.uniform(2_500.0, 7_900.0))
    placed = room.place(wave, float(rng.uniform(0.0, wettest)), low_hz, high_hz)
    loud = placed[np.abs(placed) > 0.02 * np.abs(placed).max()]
    rms = float(np.sqrt(np.mean(loud**2))) if len(loud) else 0.0
    if rms < 1e-6:
        return None
    level_db = float(rng.normal(-20.0, 3.5))  # full scale is 0
    return np.asarray(placed * np.float32(10 ** (level_db / 20) / rms), dtype=np.float32)


def render_scores(scores: Path, out: Path, settings: RenderSettings, jobs: int = 1) -> Iterator[Rendered]:
    """Render every MIDI file below a folder; those that are rendered already are left as they are.

    Args:
        scores: a folder; a track is named for its path below it.
        out: where `<track>/<nn>-<instrument>.flac` go, 16 kHz mono of 16 bits, beside a `track.json`.
        settings: the same for all.
        jobs: processes.

    Yields:
        One Rendered a score and variant as it is done, in the scores' order; first those that another's name hides.

    Raises:
        NoSoundfont: none of the settings' soundfonts exists.
        ImportError: what plays scores is not installed.
    """
    fonts = tuple(path for path in settings.soundfonts if path.is_file())
    if not fonts:
        raise NoSoundfont(", ".join(map(str, settings.soundfonts)))
    settings = dataclasses.replace(settings, soundfonts=fonts)
    named: dict[str, Path] = {}
    for path in score_files(scores):
        track = "__".join(path.relative_to(scores).with_suffix("").parts)
        for name in (track, *(f"{track}@{variant}" for variant in range(1, settings.variants))):
            if named.setdefault(name, path) != path:
                yield Rendered(name, 0, problem=f"{path.name} has the name of {named[name].name}: give it another")
    out.mkdir(parents=True, exist_ok=True)
    yield from map_in_processes(_render, named.values(), named, repeat(out), repeat(settings), jobs=jobs)


def _render(path: Path, name: str, out: Path, settings: RenderSettings) -> Rendered:
    home = out / name
    if home.is_dir():
        return Rendered(name, len(list(home.glob("*.flac"))))
    rng = np.random.default_rng([settings.seed, zlib.crc32(name.encode())])
    try:
        waveforms, truth = render_track(read_score(path), settings, rng)
    except ImportError as error:
        needs = "rendering needs pip install 'phalar-retrieval[train]' and FluidSynth (Debian: libfluidsynth3)"
        raise ImportError(f"{error}: {needs}") from error
    except Exception as error:
        # Any one of thousands of files from anywhere may be broken in its own way; the caller reports it.
        return Rendered(name, 0, problem=f"{type(error).__name__}: {error}")
    if len(waveforms) < 2:
        return Rendered(name, len(waveforms), problem="fewer than two instruments sound")
    scratch = Path(tempfile.mkdtemp(dir=out, prefix="."))
    try:
        for stem, waveform in waveforms.items():
            soundfile.write(scratch / f"{stem}.flac", waveform, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        made = dataclasses.asdict(settings) | {
            "score": path.name,
            "soundfonts": [font.name for font in settings.soundfonts],
            "kits": [folder.name for folder in settings.kits],
        }
        dataclasses.replace(truth, made=made).write(scratch)
        scratch.chmod(0o755)
        os.replace(scratch, home)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return Rendered(name, len(waveforms))
