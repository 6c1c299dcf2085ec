"""The notes of each stem, written over the plan of its track."""

from __future__ import annotations

import itertools

import numpy as np

from model.audio.harmony import nearest_pitch, voice_chord
from model.demo.patterns import ACCENTS, BASS_RHYTHMS, BASS_STYLES, CELLS, COMPS, Metre
from model.demo.plan import BARS_PER_SECTION, Bar, Plan
from model.demo.synthesis import CRASH, HAT, KICK, OPEN_HAT, RIDE, RIM, SNARE, TOM_HIGH, TOM_LOW, TOM_MID, Note


def _hits(lane: str) -> list[int]:
    return [i for i, c in enumerate(lane) if c != "."]


def write_drums(plan: Plan) -> tuple[list[Note], dict[int, list[int]]]:
    """Drum notes, and the ticks of each bar's kicks, to which the bass locks."""
    rng = plan.rng("drums")
    metre = plan.metre
    notes: list[Note] = []
    kicks: dict[int, list[int]] = {}
    chosen: dict[tuple[str, int], str] = {}
    for bar in plan.bars:
        # One alternative of each lane a section; a second visit may bring another.
        for drum, lanes in plan.pattern.lanes.items():
            if bar.within == 0:
                chosen[bar.section, drum] = lanes[int(rng.integers(len(lanes)))]
        filled = metre.ticks
        if bar.within == BARS_PER_SECTION - 1:
            filled -= metre.ticks_per_beat * int(rng.integers(1, 3)) if metre.beats > 2 else metre.ticks_per_beat
        elif bar.within == 1 and rng.random() < 0.35:
            filled -= metre.ticks_per_beat // 2
        kicks[bar.index] = []
        for drum in plan.pattern.lanes:
            for tick in _hits(chosen[bar.section, drum]):
                mark = chosen[bar.section, drum][tick]
                dice = rng.random(2)
                if tick >= filled and drum != KICK:
                    continue
                if mark == "?" and dice[0] > 0.35 * bar.intensity + 0.15:
                    continue
                if mark == "o" and dice[0] > 0.55 + 0.45 * bar.intensity:
                    continue
                played = drum
                if drum == HAT and tick == metre.ticks - 2 and dice[1] < 0.3:
                    played = OPEN_HAT
                if drum == KICK:
                    kicks[bar.index].append(bar.start + tick)
                velocity = ACCENTS[mark] * (0.72 + 0.28 * bar.intensity)
                notes.append(plan.note(rng, bar.start + tick, 1, played, velocity))
        if bar.within == 0 and rng.random() < (0.5 if bar.index == 0 else 0.8):
            notes.append(plan.note(rng, bar.start, 4, CRASH, 0.5 + 0.3 * bar.intensity))
        notes += _drum_fill(plan, rng, bar, filled)
    return sorted(notes, key=lambda note: note.onset_s), kicks


def _drum_fill(plan: Plan, rng: np.random.Generator, bar: Bar, filled: int) -> list[Note]:
    """A run over snare and toms from tick `filled` of a bar to its end."""
    length = plan.metre.ticks - filled
    if length <= 0:
        return []
    soft = RIM if RIM in plan.pattern.lanes or RIDE in plan.pattern.lanes else SNARE
    drums = ((soft, TOM_HIGH, TOM_MID, TOM_LOW), (SNARE, SNARE, TOM_MID, TOM_LOW), (soft, soft, SNARE, SNARE))[
        int(rng.integers(3))
    ]
    notes = []
    for tick in range(length):
        on_eighth = tick % 2 == 0
        if rng.random() < (0.92 if on_eighth else 0.25 + 0.4 * bar.intensity):
            drum = drums[min(3, tick * 4 // length)]
            velocity = (0.45 + 0.4 * (tick + 1) / length) * (1.0 if on_eighth else 0.75)
            notes.append(plan.note(rng, bar.start + filled + tick, 1, drum, velocity))
    return notes


_EIGHTH = 2  # ticks


def _bass_rhythm(plan: Plan, kicks: dict[int, list[int]], style: str) -> list[tuple[int, float, bool]]:
    """When the bass plays: tick, the share of the time to the next note, whether a chord or bar starts there."""
    rhythm = plan.rng("bass rhythm")
    metre = plan.metre
    rhythms = {s: _hits(str(rhythm.choice(BASS_RHYTHMS[plan.metre_name]))) for s in "ABC"}
    events: list[tuple[int, float, bool]] = []
    for bar in plan.bars:
        ticks: set[int]
        gate = 0.9
        if style == "locked":
            ticks = set(kicks[bar.index])
            if rhythm.random() < 0.5 * bar.intensity:
                ticks.add(bar.start + metre.ticks - _EIGHTH)
        elif style == "eighths":
            ticks = {t for t in range(bar.start, bar.start + metre.ticks, _EIGHTH) if rhythm.random() < 0.94}
            gate = 0.72
        elif style == "octaves":
            ticks = set(range(bar.start, bar.start + metre.ticks, _EIGHTH))
            gate = 0.6
        elif style == "walking":
            ticks = set(range(bar.start, bar.start + metre.ticks, metre.ticks_per_beat))
            if rhythm.random() < 0.35:
                ticks.add(bar.start + int(rhythm.integers(metre.beats)) * metre.ticks_per_beat + _EIGHTH)
        elif style == "riff":
            ticks = {bar.start + t for t in rhythms[bar.section] if t == 0 or rhythm.random() < 0.9}
            gate = 0.8
        else:
            ticks = {bar.start + metre.ticks - metre.ticks_per_beat // 2} if rhythm.random() < 0.5 else set()
            if rhythm.random() < 0.4:
                ticks.add(bar.start + metre.ticks // 2)
        roots = {s.start for s in plan.spans if bar.start <= s.start < bar.start + metre.ticks}
        for tick in sorted(ticks | roots | {bar.start}):
            events.append((tick, gate, tick in roots or tick == bar.start))
    return events


def write_bass(plan: Plan, kicks: dict[int, list[int]]) -> list[Note]:
    """Bass notes: chord roots where the kick falls, fifths and octaves between, steps of the scale into the next."""
    rng = plan.rng("bass")
    metre = plan.metre
    styles = BASS_STYLES[plan.metre_name]
    style = "walking" if plan.pattern.style == "swing" else styles[int(rng.integers(len(styles)))]
    events = _bass_rhythm(plan, kicks, style)
    notes: list[Note] = []
    pitch = 38.0
    end = plan.bars[-1].start + metre.ticks
    for i, (tick, gate, anchored) in enumerate(events):
        following = events[i + 1][0] if i + 1 < len(events) else end
        span = plan.span_at(tick)
        chord = span.chord
        root = nearest_pitch(0.6 * pitch + 0.4 * 36.0, [chord.root], 28, 45)
        leads = following == span.end and tick > span.start and following < end
        dice = rng.random()
        if anchored:
            played = root
        elif style == "octaves":
            played = root + 12 * ((tick - span.start) // _EIGHTH % 2)
        elif leads and (style == "walking" or dice < 0.55):
            target = nearest_pitch(root, [plan.span_at(following).chord.root], 28, 45)
            side = -1 if rng.random() < 0.5 else 1
            played = nearest_pitch(target + 2 * side, set(span.scale) - {target % 12}, 28, 48)
        elif style == "walking":
            played = nearest_pitch(pitch + float(rng.choice((-4, 3, 4, 5))), chord.pitch_classes, 28, 48)
        elif dice < 0.62:
            played = root
        elif dice < 0.8:
            played = nearest_pitch(root + 7, chord.pitch_classes[2:3], 28, 48)
        else:
            played = root + 12
        beat = tick % metre.ticks_per_beat == 0
        velocity = (0.92 if anchored else 0.8 if beat else 0.7) * (0.8 + 0.2 * plan.bars[tick // metre.ticks].intensity)
        notes.append(plan.note(rng, tick, gate * min(following - tick, metre.ticks), played, velocity))
        pitch = played if played < root + 12 else root
    return notes


def write_pads(plan: Plan) -> list[Note]:
    """Each chord in four voices that move as little as they can; restruck within long chords now and then."""
    rng = plan.rng("pads")
    restrike = rng.random() < 0.5
    notes: list[Note] = []
    voicing: tuple[int, ...] | None = None
    for span in plan.spans:
        if voicing is not None and span.start % (BARS_PER_SECTION * plan.metre.ticks) == 0:
            # Each section starts in another inversion, so that its return is no copy.
            shift = int(rng.integers(-4, 5))
            voicing = tuple(pitch + shift for pitch in voicing)
        voicing = voice_chord(span.chord, voicing)
        bar = plan.bars[span.start // plan.metre.ticks]
        cuts = [span.start, span.end]
        length = span.end - span.start
        if restrike and length == plan.metre.ticks and rng.random() < 0.6:
            late = plan.metre.ticks // 2 + int(rng.choice((0, -2, 2)))
            cuts.insert(1, span.start + late)
        for start, end in itertools.pairwise(cuts):
            moved = list(voicing)
            if start != span.start:  # the top voice answers with another tone of the chord
                moved[-1] = nearest_pitch(
                    voicing[-1] + float(rng.choice((-4, 4))), span.chord.pitch_classes, voicing[-2] + 1, 81
                )
            for voice, pitch in enumerate(moved):
                velocity = (0.62, 0.58, 0.6, 0.7)[voice] * (0.8 + 0.25 * bar.intensity)
                notes.append(plan.note(rng, start, 0.97 * (end - start), pitch, velocity))
    return notes


def write_keys(plan: Plan) -> list[Note]:
    """Arpeggios, comping or broken chords over the progression, another figure for each section."""
    rng = plan.rng("keys")
    metre = plan.metre
    figures = {s: str(rng.choice(("arpeggio", "arpeggio", "comp", "broken"))) for s in "ABC"}
    order = "up"
    comps = {s: _hits(str(rng.choice(COMPS[plan.metre_name]))) for s in "ABC"}
    sixteenths = plan.tick_s > 0.15 or (plan.tick_s > 0.115 and rng.random() < 0.5)
    notes: list[Note] = []
    voicing: tuple[int, ...] | None = None
    last_start = -1
    position = 0
    for bar in plan.bars:
        figure = figures[bar.section]
        if bar.within % 2 == 0:
            order = str(rng.choice(("up", "down", "swing", "skip")))
        rate = 1 if figure == "arpeggio" and sixteenths and bar.intensity > 0.6 else 2
        ticks = comps[bar.section] if figure == "comp" else list(range(0, metre.ticks, rate))
        for i, offset in enumerate(ticks):
            tick = bar.start + offset
            span = plan.span_at(tick)
            if voicing is None or span.start != last_start:
                voicing = voice_chord(span.chord, voicing, 57, 79)
                last_start, position = span.start, 0
            beat = offset % metre.ticks_per_beat == 0
            velocity = (0.82 if beat else 0.64) * (0.78 + 0.22 * bar.intensity)
            dice = rng.random()
            if figure == "comp":
                following = ticks[i + 1] if i + 1 < len(ticks) else metre.ticks
                if dice < 0.1 and i > 0:
                    continue
                length = min(following - offset, 3) * (0.55 if dice < 0.6 else 0.9)
                notes += [plan.note(rng, tick, length, pitch, velocity * 0.8) for pitch in voicing]
                continue
            if dice < 0.1 and not beat:
                position += 1
                continue
            ladder = (*voicing, voicing[0] + 12, voicing[1] + 12)
            if figure == "broken":
                pitch = ladder[(0, 2, 1, 3, 2, 4, 1, 3)[position % 8]]
            else:
                pitch = ladder[_arpeggio_step(order, position, len(ladder))]
            notes.append(plan.note(rng, tick, rate * (1.6 if figure == "broken" else 0.95), pitch, velocity))
            position += 1
    return notes


def _arpeggio_step(order: str, position: int, n: int) -> int:
    if order == "up":
        return position % n
    if order == "down":
        return n - 1 - position % n
    if order == "swing":
        around = position % (2 * n - 2)
        return around if around < n else 2 * n - 2 - around
    return (position * 2 + position // 3) % n


Motif = list[tuple[int, int, int]]  # tick within the phrase, ticks, steps away from the phrase's centre


def _write_motif(rng: np.random.Generator, metre: Metre) -> Motif:
    """Two bars of melody without its pitches: rhythm, an arch, and a rest to breathe at the end."""
    beats = 2 * metre.beats
    cells = CELLS[metre.ticks_per_beat]
    bank = [cells[int(i)] for i in rng.integers(len(cells), size=3)]  # few cells, so that the ear finds a pattern
    last = beats - int(rng.integers(1, 3)) if metre.beats > 2 else beats - 1
    motif: Motif = []
    peak = rng.uniform(0.3, 0.8) * beats
    height = rng.uniform(4.0, 9.0)
    for beat in range(last):
        final = beat == last - 1
        cell = (metre.ticks_per_beat,) if final else bank[int(rng.integers(len(bank)))]
        tick = beat * metre.ticks_per_beat
        for ticks in cell:
            if ticks > 0:
                arch = height * (1.0 - abs(tick / metre.ticks_per_beat - peak) / beats * 2.0) - height / 3.0
                motif.append((tick, ticks, round(arch + float(rng.normal(0.0, 2.2)))))
            tick += abs(ticks)
    if motif[-1][0] + motif[-1][1] < beats * metre.ticks_per_beat and rng.random() < 0.6:
        tick, ticks, step = motif[-1]
        motif[-1] = (tick, ticks + metre.ticks_per_beat // 2, step)
    return motif


def write_lead(plan: Plan) -> list[Note]:
    """A melody of two-bar phrases: a section's motif, its answer, and at each return a little more."""
    rng = plan.rng("lead")
    metre = plan.metre
    motifs = {(s, half): _write_motif(rng, metre) for s in "ABC" for half in (0, 1)}
    for s in "ABC":  # most answers start as the call did
        if rng.random() < 0.65:
            cut = metre.ticks
            call, answer = motifs[s, 0], motifs[s, 1]
            motifs[s, 1] = [n for n in call if n[0] < cut] + [n for n in answer if n[0] >= cut]
    centre = float(rng.uniform(69.0, 75.0))
    low, high = 60, 86
    notes: list[Note] = []
    pitch = round(centre)
    for bar in plan.bars:
        if bar.within % 2:
            continue
        motif = motifs[bar.section, bar.within // 2]
        lift = 2.0 * (bar.intensity - 0.75) * 5.0
        for i, (offset, ticks, step) in enumerate(motif):
            tick = bar.start + offset
            span = plan.span_at(tick)
            strong = offset % metre.ticks_per_beat == 0 or ticks >= metre.ticks_per_beat or i == len(motif) - 1
            dice = rng.random(3)
            if bar.visit and dice[0] < 0.12 and 0 < i < len(motif) - 1:
                continue
            target = 0.75 * (centre + lift + step) + 0.25 * pitch
            if bar.visit and dice[1] < 0.2:
                target += float(rng.choice((-4, -3, 3, 4)))
            classes = span.chord.pitch_classes if strong else span.scale
            pitch = nearest_pitch(target, classes, low, high)
            if len(notes) > 1 and notes[-1].pitch == pitch == notes[-2].pitch:  # three in a row is enough
                pitch = nearest_pitch(target + (3 if dice[1] < 0.5 else -3), set(classes) - {pitch % 12}, low, high)
            velocity = (0.85 if strong else 0.7) * (0.82 + 0.18 * bar.intensity)
            gate = 0.92 if dice[2] < 0.8 else 0.6
            if ticks >= 4 and dice[2] < 0.15:  # a grace step first
                grace = nearest_pitch(pitch - 2, set(span.scale) - {pitch % 12}, low - 3, high)
                notes.append(plan.note(rng, tick, 0.9, grace, 0.75 * velocity))
                notes.append(plan.note(rng, tick + 1, (ticks - 1) * gate, pitch, velocity))
            else:
                notes.append(plan.note(rng, tick, ticks * gate, pitch, velocity))
    return notes
