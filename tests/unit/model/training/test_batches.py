"""A batch in beat time: equally many beats, on the beat, every choice from the seed, decoys where they do not fit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from model.audio import SAMPLE_RATE
from model.audio.harmony import tonic_of
from model.audio.truth import Truth
from model.checkpoints import load_phalar
from model.cqt import MOST_SEMITONES
from model.demo import compose_track, write_track
from model.phalar import PhalarConfig
from model.training import batches
from model.training.batches import BEAT_SHIFTS, BeatWindow, beat_clips, draw_batch, draw_beat_decoy, draw_beat_pair
from model.training.examples import TooFewTracks
from model.training.recipe import AugmentSettings, DataSettings, LossSettings, Recipe
from model.training.stems import StemBank, load_bank
from service.work.models import DEFAULT_CHECKPOINT

TRACKS = 6
RECIPE = Recipe(
    batch=4,
    data=DataSettings(matched=1.0, fewest_beats=4, most_beats=6),
    augment=AugmentSettings(gain_db=0.0, noise=0.0),
    loss=LossSettings(beat_decoys=1.0),
)


def seed(purpose: int, number: int) -> int:
    return 1000 * purpose + number


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> StemBank:
    folder = tmp_path_factory.mktemp("music") / "composed"
    for number in range(TRACKS):
        write_track(compose_track(number, 9.0, SAMPLE_RATE), folder / f"{number}")
    return load_bank([folder], folder.parent / "cache")


def test_a_batch_follows_from_its_seeds(bank: StemBank) -> None:
    first, again, other = (draw_batch(bank, range(TRACKS), RECIPE, step, seed) for step in (3, 3, 4))
    assert first.sizes == [4, 4, 4]
    assert torch.equal(first.clips.waveforms, again.clips.waveforms)
    assert torch.equal(first.clips.transpose, again.clips.transpose)
    assert not torch.equal(first.clips.waveforms[0, :1000], other.clips.waveforms[0, :1000])


def test_processes_share_a_batch(bank: StemBank) -> None:
    whole = draw_batch(bank, range(TRACKS), RECIPE, 0, seed)
    halves = [draw_batch(bank, range(TRACKS), RECIPE, 0, seed, rank, 2) for rank in (0, 1)]
    assert [half.sizes for half in halves] == [[2, 2, 2]] * 2
    for rank, half in enumerate(halves):
        length = half.clips.waveforms.shape[1]
        of_whole = whole.clips.waveforms[2 * rank : 2 * rank + 2, :length]
        assert torch.equal(half.clips.waveforms[:2], of_whole)


def test_decoys_are_their_positives_at_another_beat_or_where_both_sides_play_notes_in_another_key(
    bank: StemBank,
) -> None:
    rng, drawn = np.random.default_rng(0), []
    loss = LossSettings(key_decoys=0.5)
    for track in range(TRACKS):
        for _ in range(5):
            anchor, positive = draw_beat_pair(bank, track, 4, rng, MOST_SEMITONES, unpitched=0.3)
            drawn += [(anchor, positive, draw_beat_decoy(bank, anchor, positive, loss, MOST_SEMITONES, rng))] * 4
    transposed = {d.transpose - p.transpose for _, p, d in drawn if d.transpose != p.transpose}
    shifted = {abs(d.first - p.first) for _, p, d in drawn if d.transpose == p.transpose}
    assert transposed <= set(range(-MOST_SEMITONES, MOST_SEMITONES + 1)) - {0}
    assert shifted <= set(BEAT_SHIFTS)
    assert len(transposed) > 6
    assert len(shifted) > 4
    for anchor, positive, decoy in drawn:
        assert (decoy.track, decoy.stems) == (positive.track, positive.stems)
        assert abs(decoy.transpose) <= MOST_SEMITONES
        if not all(plays_notes(bank, side) for side in (anchor, positive)):
            assert decoy.transpose == positive.transpose, "drums have no key"


def plays_notes(bank: StemBank, window: BeatWindow) -> bool:
    return any(bank.tracks[window.track].pitched[stem] for stem in window.stems)


@pytest.mark.parametrize("unpitched", [0.0, 0.5, 1.0])
def test_so_many_pairs_have_a_side_that_plays_no_notes(bank: StemBank, unpitched: float) -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_beat_pair(bank, number % TRACKS, 4, rng, unpitched=unpitched) for number in range(200)]
    struck = [[not plays_notes(bank, side) for side in pair] for pair in drawn if pair is not None]
    share = np.mean([any(pair) for pair in struck])
    assert unpitched <= share + 0.1
    assert share < unpitched + 0.5
    assert unpitched < 1 or {pair[0] for pair in struck} == {False, True}, "either side"


def test_one_key_brings_every_track_to_it(bank: StemBank) -> None:
    for track in range(TRACKS):
        tonic = tonic_of(bank.tracks[track].key)
        anchor, positive = draw_beat_pair(bank, track, 4, np.random.default_rng(track), MOST_SEMITONES, one_key=7)
        assert (tonic + anchor.transpose) % 12 == 7
        assert anchor.transpose == positive.transpose
        assert not set(anchor.stems) & set(positive.stems)


def test_tracks_without_a_grid_are_said_to_be_too_many(tmp_path: Path) -> None:
    for number in range(3):
        home = tmp_path / "noise" / f"{number}"
        home.mkdir(parents=True)
        for stem in ("a", "b"):
            noise = np.random.default_rng(number).normal(0, 0.1, 4 * SAMPLE_RATE)
            soundfile.write(home / f"{stem}.flac", noise, SAMPLE_RATE)
    Truth((0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0), None, {}).write(tmp_path / "noise" / "0")
    bank = load_bank([tmp_path / "noise"], tmp_path / "cache")
    with pytest.raises(TooFewTracks, match="1 of the 3 tracks to train on have a beat grid"):
        draw_batch(bank, range(3), RECIPE, 0, seed)


def test_the_stems_of_a_mix_are_balanced_anew_within_the_limit(bank: StemBank) -> None:
    both = tuple(range(2))
    window = BeatWindow(0, 2, 4, both)
    apart = [beat_clips(bank, [replace(window, stems=(stem,))]).waveforms[0].double() for stem in both]
    gains = [0.5, 2.0]
    mixed = beat_clips(bank, [window], [gains]).waveforms[0].double()
    torch.testing.assert_close(mixed, gains[0] * apart[0] + gains[1] * apart[1], atol=1e-6, rtol=0)
    balanced = replace(RECIPE, augment=AugmentSettings(gain_db=0.0, noise=0.0, balance_db=6.0))
    plain, moved = (draw_batch(bank, range(TRACKS), recipe, 0, seed).clips for recipe in (RECIPE, balanced))
    level_db = 20 * torch.log10(moved.waveforms.norm(dim=1) / plain.waveforms.norm(dim=1))
    assert 0.1 < float(level_db.abs().max()) < 8


def test_positives_and_their_decoys_are_the_same_music_once_a_stretcher_played_them_otherwise(bank: StemBank) -> None:
    stretching = replace(RECIPE, augment=AugmentSettings(gain_db=0.0, noise=0.0, stretched=1.0))
    plain, moved = (draw_batch(bank, range(TRACKS), recipe, 1, seed).clips for recipe in (RECIPE, stretching))
    pairs = RECIPE.batch
    assert moved.samples[:pairs].equal(plain.samples[:pairs]), "anchors are as recorded"
    speed = plain.samples[pairs:] / moved.samples[pairs:]
    assert ((speed.log().abs() > 0.019) & (speed.log().abs() < 0.114)).all()
    torch.testing.assert_close(speed[:pairs], speed[pairs:], atol=1e-3, rtol=0)
    assert (moved.transpose != plain.transpose).any()
    assert (moved.transpose.abs() <= MOST_SEMITONES).all()
    phalar = load_phalar(DEFAULT_CHECKPOINT)
    one, other = (phalar.embed_in_beat_time(clips) for clips in (plain, moved))
    torch.testing.assert_close(one[:pairs], other[:pairs], atol=1e-3, rtol=0)
    assert ((one.conj() * other).sum(dim=1).real[pairs:] > 0.6).all()


def test_all_of_a_batch_is_tuned_alike_and_its_beats_stay(bank: StemBank) -> None:
    tuned = replace(RECIPE, augment=AugmentSettings(gain_db=0.0, noise=0.0, tuning_cents=50.0, apart_cents=4.0))
    found = []
    for step in range(8):
        plain, moved = (draw_batch(bank, range(TRACKS), recipe, step, seed).clips for recipe in (RECIPE, tuned))
        cents = 1200 * torch.log2(plain.samples / moved.samples)
        found.append(float(cents.mean()))
        assert float((cents - cents.mean()).abs().max()) < 16
        ends_s = [clips.places[:, -1] / (clips.samples // PhalarConfig().hop) for clips in (plain, moved)]
        torch.testing.assert_close(ends_s[0], ends_s[1], atol=0.01, rtol=0)
    assert max(found) > 20
    assert min(found) < -20
    one, other = (load_phalar(DEFAULT_CHECKPOINT).embed_in_beat_time(clips) for clips in (plain, moved))
    assert ((one.conj() * other).sum(dim=1).real > 0.6).all()


def test_a_batch_as_recorded_is_tuned_alike_too(bank: StemBank) -> None:
    recorded = replace(RECIPE, data=replace(RECIPE.data, matched=0.0))
    tuned = replace(recorded, augment=replace(recorded.augment, tuning_cents=50.0))
    plain, moved = (draw_batch(bank, range(TRACKS), recipe, 2, seed).clips for recipe in (recorded, tuned))
    assert len(plain) == len(moved)
    assert 0 < abs(1200 * np.log2(plain.shape[1] / moved.shape[1])) <= 51


def test_tracks_of_a_batch_may_be_of_like_tempo_alone(bank: StemBank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "TEMPO_CHOICE", 1)  # there are few tracks

    def octaves_apart(one_tempo: float) -> float:
        recipe = replace(RECIPE, batch=2, data=replace(RECIPE.data, one_tempo=one_tempo))
        found = []
        for step in range(24):
            clips = draw_batch(bank, range(TRACKS), recipe, step, seed).clips
            apart = (
                abs(float(torch.log2(clips.samples[0] / clips.samples[1]))) % 1
            )  # of two anchors, equally many beats
            found.append(min(apart, 1 - apart))
        return float(np.mean(found))

    assert octaves_apart(1.0) < 0.6 * octaves_apart(0.0)
