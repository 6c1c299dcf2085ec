"""What names say: a table in the styles of sample packs, DJs, DAWs and people."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.audio.harmony import key_name
from model.audio.said.facts import FACTS, FASTEST_BPM, SLOWEST_BPM
from model.audio.said.name import said_of_name

KEYS = {key_name(tonic, mode) for tonic in range(12) for mode in ("major", "minor")}
NOTHING = [
    "808.wav", "808 Clap.wav", "909_Hat_Open.wav", "Juno-106 Chord.wav", "Track 120.mp3", "take 2.wav",
    "Vocals v2.wav", "Summer 1999.mp3", "90s House Piano.wav", "Piano 16bit 44100.wav", "Piano 24 bit 96 kHz.wav",
    "Podcast 128 kbps.mp3", "Piano_C3_100.wav", "Snare_127.wav", "Chord_Am7.wav", "Cmaj9 stab.wav",
    "B Min 7 chord.wav", "Benjamin Gems.wav", "Emma_Diamond.wav", "Here I Am.mp3", "Am I Wrong.mp3",
    "3 Am Freestyle.mp3", "Get Em.mp3", "this is a minor problem.wav", "FM Bell.wav", "Verse 2B.wav",
    "Kick 70-140 Hz.wav", "808bpm.wav", "0bpm.wav", "bpm.wav", "2024-03-12 rehearsal.wav", "Audio 1_03.wav",
    "vocals.wav", "Untitled.wav", ".wav", "", "\u26a1\ufe0f\U0001f941.wav",
]  # fmt: skip
SAID = [
    # name, tempo, key, root, kind
    # a tempo with its mark
    ("120bpm.wav", 120, None, None, None),
    ("Warehouse Lead 120 BPM.wav", 120, None, None, None),
    ("warehouse-lead-120-bpm.wav", 120, None, None, None),
    ("DnB_175_bpm.wav", 175, None, None, None),
    ("BPM128 Shaker.wav", 128, None, None, None),
    ("bpm_95_keys.wav", 95, None, None, None),
    ("Dusty Keys [87.5 bpm].aif", 87.5, None, None, None),
    ("dusty keys 92,25bpm.flac", 92.25, None, None, None),
    ("dusty_keys_93.312bpm_Am.wav", 93.312, "A minor", None, None),
    ("dusty keys 117.45383522727273 BPM.wav", 117.45383522727273, None, None, None),
    ("01.120bpm.wav", 120, None, None, None),  # a number, then a tempo
    ("tempo 104 congas.wav", 104, None, None, None),
    ("Loop_01_bpm_120.wav", 120, None, None, "loop"),
    ("Loop_25_BPM_140_Cm.wav", 140, "C minor", None, "loop"),  # the loop's number comes first
    ("Loop 140 BPM 25.wav", 140, None, None, "loop"),
    ("Slow 45 BPM Pad 2.wav", 45, None, None, None),
    ("03_120Bpm_HatLoop.wav", 120, None, None, "loop"),
    ("Track 12 140BPM.mp3", 140, None, None, None),
    ("80s_synthwave_arp_118bpm_Em.wav", 118, "E minor", None, None),
    ("808_Sub_140bpm_F#m.wav", 140, "F# minor", None, None),
    ("Speedcore 260bpm kick.wav", 260, None, None, None),
    ("Ambient_40bpm_Cmaj.wav", 40, "C major", None, None),
    ("drums 90bpm (180bpm).wav", 180, None, None, None),
    ("\uff11\uff12\uff10bpm pad.wav", 120, None, None, None),
    ("Café_Guitare_110BPM_La.wav", 110, None, None, None),
    # a tempo by its place
    ("NBX_120_Am_Lead.wav", 120, "A minor", None, None),
    ("_120_Am_.wav", 120, "A minor", None, None),
    ("Loop_92_Dmin.wav", 92, "D minor", None, "loop"),
    ("174 drum break.wav", 174, None, None, None),
    ("QX_RIV_100_electric_guitar_sunday_Dmaj.wav", 100, "D major", None, None),
    ("QX_RIV_96_pad_harbour_Ebmin.wav", 96, "Eb minor", None, None),
    ("VLT_124_percussion_loop_market.wav", 124, None, None, "loop"),
    ("DrumLoop_120_01.wav", 120, None, None, "loop"),
    ("Gm 84 rhodes.wav", 84, "G minor", None, None),
    ("Rhodes 84 Gm.wav", 84, "G minor", None, None),
    ("half-time 70-140.wav", 140, None, None, None),
    ("8A - 128 - Some Artist - Some Title.mp3", 128, "A minor", None, None),
    ("Some Artist - Some Title (11B) 126 BPM.mp3", 126, "A major", None, None),
    ("MEL_Loop_05_127.5_C#min.wav", 127.5, "C# minor", None, "loop"),
    # keys
    ("Amin.wav", None, "A minor", None, None),
    ("Pluck F#m.wav", None, "F# minor", None, None),
    ("Pluck_Bbmaj.wav", None, "Bb major", None, None),
    ("pad (Gm).wav", None, "G minor", None, None),
    ("Choir Cminor.wav", None, "C minor", None, None),
    ("Choir_D#_minor.wav", None, "Eb minor", None, None),
    ("choir c minor.wav", None, "C minor", None, None),
    ("Strings A Minor.wav", None, "A minor", None, None),
    ("Strings-A-Major.wav", None, "A major", None, None),
    ("Organ in the key of A.wav", None, "A major", None, None),
    ("organ, key of a minor.wav", None, "A minor", None, None),
    ("Organ key of Eb.wav", None, "Eb major", None, None),
    ("Bass F\u266fm.wav", None, "F# minor", None, None),
    ("Bass B\u266d Major.wav", None, "Bb major", None, None),
    ("Bass F Sharp Minor.wav", None, "F# minor", None, None),
    ("Bass E flat major.wav", None, "Eb major", None, None),
    ("8A.wav", None, "A minor", None, None),
    ("Vocal 11B.wav", None, "A major", None, None),
    ("Vocal [2A].wav", None, "Eb minor", None, None),
    ("Vocal_128bpm_2A.wav", 128, "Eb minor", None, None),
    ("bbmin strings.wav", None, "Bb minor", None, None),
    ("GBMAJ_STRINGS.WAV", None, "F# major", None, None),
    ("Guitar_03_Am.wav", None, "A minor", None, None),
    ("Guitar Em.wav", None, "E minor", None, None),
    ("Abm_Keys_One_Shot.wav", None, "G# minor", None, "one-shot"),
    # a letter alone: the note at most
    ("kick_01_C.wav", None, None, 0, None),
    ("XY_808_gravel_E.wav", None, None, 4, None),
    ("XY_808_gravel_A#.wav", None, None, 10, None),
    ("Synth_A_120bpm_Stab.wav", 120, None, 9, None),
    ("Syn_120_A_loop.wav", 120, None, 9, "loop"),
    ("_A_120_.wav", None, None, None, None),  # a note and a velocity as likely as a key and a tempo
    ("Tom F#.wav", None, None, 6, None),
    ("Clarinet in Bb section.wav", None, None, None, None),
    ("Vox_Take_A.wav", None, None, None, None),
    ("Drums B.wav", None, None, None, None),
    ("Key B.wav", None, None, None, None),
    # a loop, and neither
    ("SH-101 Loop.wav", None, None, None, "loop"),
    ("Track 120 Am.mp3", None, "A minor", None, None),
    ("Drum Loop 92.wav", None, None, None, "loop"),
    ("100 Drum Loops.zip", None, None, None, "loop"),
    ("100% Loop.wav", None, None, None, "loop"),
    ("Room 101 Loop.wav", None, None, None, "loop"),
    ("Loop 1A.wav", None, None, None, "loop"),
    # kinds
    ("Kick One-Shot 3.wav", None, None, None, "one-shot"),
    ("oneshots_snare.wav", None, None, None, "one-shot"),
    ("Loops and One Shots.wav", None, None, None, None),
    ("Sloped hill.wav", None, None, None, None),
    # paths
    ("Packs/Techno 130bpm/Am/kick.wav", None, None, None, None),
    (r"C:\loops\bass_90bpm.wav", 90, None, None, None),
    *((name, None, None, None, None) for name in NOTHING),
]
CONTRADICTORY = ["90-95bpm break.wav", "Lead 120bpm 133bpm.wav", "Lead Am Cmaj.wav", "8A - Dm - Title.mp3"]
LONGEST_SECONDS = 0.5  # of 4,000 characters; one step more than linear takes minutes


@pytest.mark.parametrize(("name", "tempo", "key", "root", "kind"), SAID, ids=[row[0] or "nothing" for row in SAID])
def test_said_of_name_reads_names_as_musicians_mean_them(
    name: str, tempo: float | None, key: str | None, root: int | None, kind: str | None
) -> None:
    said = said_of_name(name)
    assert (said.tempo_bpm, said.key, said.root, said.kind) == (tempo, key, root, kind)
    assert said.beats is None
    assert said.warnings == ()
    assert dict(said.sources) == {fact: "name" for fact in FACTS if getattr(said, fact) is not None}


@pytest.mark.parametrize("name", CONTRADICTORY)
def test_said_of_name_takes_neither_of_two_that_contradict_each_other(name: str) -> None:
    said = said_of_name(name)
    assert len(said.warnings) == 1
    assert said.tempo_bpm is None or said.key is None


@pytest.mark.parametrize(
    "piece",
    ["1", "a", "#", "_", "1.", "1,1", "A", "8A_", "Am ", "120bpm ", "120 bpm ", "bpm", "sharp ", "F sharp min "],
)
def test_said_of_name_takes_time_linear_in_a_name(piece: str) -> None:
    began = time.process_time()  # a busy machine's clock would go on
    said_of_name((piece * 4000)[:4000])
    assert time.process_time() - began < LONGEST_SECONDS


PIECES = st.sampled_from(
    [*"_- .,()#b/", "A", "Am", "min", "bpm", "120", "8A", "loop", "key", "of", "12.5", "one", "shot"]
)


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.text(), st.lists(PIECES, max_size=12).map("".join)))
def test_said_of_name_gives_only_what_music_has(name: str) -> None:
    said = said_of_name(name)
    assert said.tempo_bpm is None or SLOWEST_BPM <= said.tempo_bpm <= FASTEST_BPM
    assert said.key is None or said.key in KEYS
    assert said.root is None or (said.root in range(12) and said.key is None)
