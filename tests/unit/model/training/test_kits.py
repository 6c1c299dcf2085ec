"""Kits of recorded hits: which file is which drum, and where a hit sounds."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from model.audio import SAMPLE_RATE
from model.demo.synthesis import CLAP, CRASH, HAT, KICK, OPEN_HAT, RIDE, RIM, SNARE, TOM_LOW, Note
from model.training.kits import Kits, drum_of

HIGH, LOW = 3_000.0, 200.0


def write_hit(path: Path, hz: float, rate: int = 44_100, before_s: float = 0.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(0.2 * rate)) / rate
    hit = np.sin(2 * np.pi * hz * time) * np.exp(-20 * time)
    soundfile.write(path, np.concatenate([np.zeros(round(before_s * rate)), 0.3 * hit]), rate)


@pytest.mark.parametrize(
    ("name", "drum"),
    [
        ("Kick-3.wav", KICK),
        ("BD_05.aiff", KICK),
        ("bd_haus.flac", KICK),
        ("EE_Snare_Ring.flac", SNARE),
        ("sn_dub.flac", SNARE),
        ("SnareOffRim-2.wav", RIM),
        ("HandClap-Hard.wav", CLAP),
        ("HiHatClosed-0.wav", HAT),
        ("HiHatOpen-0.wav", OPEN_HAT),
        ("ride_04.flac", RIDE),
        ("Crash18-1.wav", CRASH),
        ("PearlTomFloor-Soft.wav", TOM_LOW),
        ("loop_amen.flac", None),
        ("guit_em9.flac", None),
        ("drumkit.xml", None),
        ("Kick.txt", None),
    ],
)
def test_a_files_name_tells_its_drum(name: str, drum: int | None) -> None:
    assert drum_of(name) == drum


def test_hits_sound_where_their_notes_are_and_louder_where_they_are_struck_harder(tmp_path: Path) -> None:
    write_hit(tmp_path / "one" / "Kick-Hard.wav", LOW, before_s=0.3)
    write_hit(tmp_path / "one" / "Kick-Soft.wav", LOW, rate=48_000)
    write_hit(tmp_path / "two" / "closed_hat.flac", HIGH)
    kits = Kits.below([tmp_path])
    assert {drum: len(same) for drum, same in kits.hits.items()} == {KICK: 1, HAT: 1}
    notes = [Note(0.25, 0.1, KICK, 1.0), Note(0.75, 0.1, HAT, 0.5), Note(1.25, 0.1, HAT, 1.0)]
    assert kits.have(notes)
    assert not kits.have([*notes, Note(1.75, 0.1, SNARE, 1.0)])
    for seed in range(5):
        played = kits.play(notes, 2 * SAMPLE_RATE, np.random.default_rng(seed))
        level = [np.abs(played[round(at * SAMPLE_RATE) :][:1600]).max() for at in (0.25, 0.75, 1.25)]
        assert np.flatnonzero(np.abs(played) > 0.02 * level[0])[0] == pytest.approx(0.25 * SAMPLE_RATE, abs=32)
        assert level[2] == pytest.approx(level[1] * 2**1.2, rel=1e-3)
        kick = np.abs(np.fft.rfft(played[: SAMPLE_RATE // 2]))
        assert 2 * np.argmax(kick) == pytest.approx(LOW, rel=0.5), "a hit is a little higher or lower"


def test_without_hits_no_drum_is_played_from_them(tmp_path: Path) -> None:
    assert not Kits.below([tmp_path]).have([Note(0.0, 0.1, KICK, 1.0)])
