"""Each data set's own layout is read, what cannot be used is said, and submixes are disjoint."""

import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from model.audio import SAMPLE_RATE
from model.checkpoints.heard import HEARD, Heard, encode_heard, heard_of
from model.training.examples import Example, TooFewTracks, draw_decoys, draw_example, draw_examples, mix_examples
from model.training.stems import StemBank, load_bank
from model.training.tracks import find_tracks, split_of

SIXTEEN_BITS = 2**-14  # two steps of the bank's 16 bits
RESAMPLED = 2e-2  # a resampler's ripple on a tone, its edges left out
SHARES = 0.02  # of 80, 10 and 10 % over 20,000 names: four deviations


def tone(hz: float, seconds: float, rate: int = SAMPLE_RATE, level: float = 0.25) -> np.ndarray:
    return level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


def write(path: Path, hz: float, seconds: float = 3.0, rate: int = SAMPLE_RATE, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = tone(hz, seconds, rate)
    soundfile.write(path, np.repeat(wave[:, None], channels, axis=1), rate)


def bank_of(root: Path) -> StemBank:
    return load_bank([root], root.parent / "cache")


def test_moisesdb_stems_are_the_sums_of_their_folders(tmp_path: Path) -> None:
    track = tmp_path / "moisesdb" / "5a9e4e1b"
    write(track / "bass" / "one.wav", 110)
    write(track / "drums" / "kick.wav", 60, channels=2, rate=44_100)
    write(track / "drums" / "snare.wav", 200, channels=2, rate=44_100)
    (track / "data.json").write_text("{}")
    bank = bank_of(tmp_path / "moisesdb")
    assert bank.tracks[0].stems == ("bass", "drums")
    inside = slice(4_000, 40_000)
    both = tone(60, 3.0) + tone(200, 3.0)
    assert np.abs(bank.waveforms(0)[1][inside] - both[inside]).max() < RESAMPLED


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_slakh_is_read_in_its_original_and_its_redux_layout(tmp_path: Path, suffix: str) -> None:
    home = tmp_path / "slakh"
    for split in ("train", "validation", "omitted"):
        track = home / split / "Track00001"
        for number in range(2):
            write(track / "stems" / f"S{number:02d}.{suffix}", 110 * (number + 1))
        write(track / f"mix.{suffix}", 440)
        (track / "metadata.yaml").write_text("UUID: x\n")
    tracks, dropped = find_tracks(home)
    assert [track.name for track in tracks] == ["train/Track00001", "validation/Track00001"]
    assert list(tracks[0].stems) == ["S00", "S01"], "the mix is no stem"
    assert [str(entry) for entry in dropped if "omits" in entry.reason], "left out, and said so"


def test_cocochorales_stems_lie_in_stems_audio(tmp_path: Path) -> None:
    track = tmp_path / "coco" / "train" / "string_track000001"
    for number, name in enumerate(("violin", "cello")):
        write(track / "stems_audio" / f"{number + 1}_{name}.wav", 220 * (number + 1))
    write(track / "mix.wav", 440)
    (tracks, dropped) = find_tracks(tmp_path / "coco")
    assert [(track.name, list(track.stems)) for track in tracks] == [
        ("train/string_track000001", ["1_violin", "2_cello"])
    ]
    assert not dropped


def test_any_folder_of_tracks_is_read_and_a_mix_beside_the_stems_is_none(tmp_path: Path) -> None:
    for path in ("a/bass.wav", "a/lead.flac", "a/mixture.wav", "disc 2/b/drums.wav", "disc 2/b/keys.wav"):
        write(tmp_path / "mine" / path, 220)
    tracks, _ = find_tracks(tmp_path / "mine")
    assert [(t.name, sorted(t.stems)) for t in tracks] == [("a", ["bass", "lead"]), ("disc 2/b", ["drums", "keys"])]
    (tmp_path / "mine").rename(tmp_path / "stems")
    assert [track.name for track in find_tracks(tmp_path)[0]] == ["stems/a", "stems/disc 2/b"]


def test_stems_of_unequal_length_are_padded_with_silence(tmp_path: Path) -> None:
    write(tmp_path / "mine" / "a" / "long.wav", 220, seconds=4.0)
    write(tmp_path / "mine" / "a" / "short.wav", 330, seconds=2.0)
    bank = bank_of(tmp_path / "mine")
    assert bank.waveforms(0).shape == (2, 4 * SAMPLE_RATE)
    assert not bank.waveforms(0)[1, 2 * SAMPLE_RATE :].any()
    assert np.abs(bank.waveforms(0)[0] - tone(220, 4.0)).max() < SIXTEEN_BITS


def test_nothing_is_dropped_in_silence(tmp_path: Path) -> None:
    home = tmp_path / "mine"
    write(home / "good" / "bass.wav", 110)
    write(home / "good" / "lead.wav", 220)
    soundfile.write(home / "good" / "empty take.wav", np.zeros(SAMPLE_RATE * 3), SAMPLE_RATE)
    (home / "good" / "broken.wav").write_bytes(b"RIFF and nothing more")
    write(home / "lonely" / "bass.wav", 110)
    write(home / "good" / "lead.flac", 220)
    write(home / "good" / "takes" / "lead 2.wav", 220)
    write(home / "loose.wav", 110)
    (home / "no audio").mkdir()
    bank = bank_of(home)
    assert [track.name for track in bank.tracks] == ["mine/good"]
    assert bank.tracks[0].stems == ("bass", "lead")
    said = {(entry.track, entry.stem) for entry in bank.dropped}
    assert said == {
        ("mine/good", "empty take"),
        ("mine/good", "broken"),
        ("mine/good", "lead"),
        ("mine/good/takes", None),
        ("mine/loose.wav", None),
        ("mine/lonely", None),
        ("mine/no audio", None),
    }


def test_a_single_file_beside_folders_of_tracks_hides_none_of_them(tmp_path: Path) -> None:
    write(tmp_path / "album" / "trailer.wav", 110)
    for song in ("one", "two"):
        for stem in ("bass", "lead"):
            write(tmp_path / "album" / song / f"{stem}.wav", 110)
    tracks, dropped = find_tracks(tmp_path)
    assert [track.name for track in tracks] == ["album/one", "album/two"]
    assert [entry.track for entry in dropped] == ["album/trailer.wav"]


def test_a_link_up_the_tree_and_a_folder_that_cannot_be_read_end_no_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stem in ("bass", "lead"):
        write(tmp_path / "song" / f"{stem}.wav", 110)
    (tmp_path / "latest").symlink_to(".")
    (tmp_path / "lost+found").mkdir()
    listed = Path.iterdir

    def iterdir(folder: Path) -> Iterator[Path]:
        if folder.name == "lost+found":  # as to anybody but root
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    tracks, dropped = find_tracks(tmp_path)
    assert [track.name for track in tracks] == ["song"]
    assert list(map(str, dropped)) == ["lost+found: cannot be read: Permission denied"]


def test_a_bank_is_made_once_and_made_anew_when_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "mine" / "a" / "bass.wav", 110)
    write(tmp_path / "mine" / "a" / "lead.wav", 220)
    bank_of(tmp_path / "mine")
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    monkeypatch.chdir(tmp_path)
    bank_of(Path("mine"))
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    write(tmp_path / "mine" / "a" / "lead.wav", 330, seconds=3.5)
    assert bank_of(tmp_path / "mine").tracks[0].samples == round(3.5 * SAMPLE_RATE)


def test_a_folder_whose_name_is_no_utf_8_is_read(tmp_path: Path) -> None:
    write(tmp_path / "a" / "bass.wav", 110)
    write(tmp_path / "a" / "lead.wav", 220)
    (tmp_path / "a").rename(tmp_path / os.fsdecode(b"a\xff"))  # as older systems wrote names
    assert bank_of(tmp_path).tracks[0].stems == ("bass", "lead")


def test_an_interrupted_decoding_leaves_nothing_behind(tmp_path: Path) -> None:
    for stem in ("bass", "lead"):
        write(tmp_path / "mine" / "a" / f"{stem}.wav", 110)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_bank([tmp_path / "mine"], tmp_path / "cache", progress=interrupt)
    (lock,) = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    (lock.parent / "samples.i16.partial").write_bytes(b"of a process that was killed")
    bank_of(tmp_path / "mine")
    assert {path.name for path in lock.parent.iterdir()} == {".lock", "activity.npy", "samples.i16", "tracks.json"}


def test_a_folder_is_decoded_once_by_those_that_ask_for_it_at_once(tmp_path: Path) -> None:
    for stem in ("bass", "lead"):
        write(tmp_path / "mine" / "a" / f"{stem}.wav", 110)
    decoded: list[int] = []

    def ask(_: int) -> StemBank:
        return load_bank([tmp_path / "mine"], tmp_path / "cache", progress=lambda done, total: decoded.append(done))

    with ThreadPoolExecutor(3) as threads:
        banks = list(threads.map(ask, range(3)))
    assert decoded == [1]
    assert all(bank.tracks == banks[0].tracks for bank in banks)


def test_splits_take_80_10_and_10_percent_and_an_added_track_moves_none() -> None:
    names = [f"track {number}" for number in range(20_000)]
    drawn = [split_of(name) for name in names]
    for split, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        assert abs(drawn.count(split) / len(names) - share) < SHARES
    assert [split_of(name) for name in [*names, "one more"]][:-1] == drawn
    assert [split_of(name, seed=1) for name in names] != drawn


def test_renderings_of_one_piece_share_a_split() -> None:
    assert all(split_of(f"piece {number}") == split_of(f"piece {number}@3") for number in range(100))


def test_a_track_is_called_the_same_beside_other_folders(tmp_path: Path) -> None:
    """Or it would be held out in evaluation, of one folder, and trained on beside a second."""
    for folder in ("mine", "others"):
        write(tmp_path / folder / "a" / "bass.wav", 110)
        write(tmp_path / folder / "a" / "lead.wav", 220)
    alone = bank_of(tmp_path / "mine")
    together = load_bank([tmp_path / "mine", tmp_path / "others"], tmp_path / "cache")
    assert [track.name for track in alone.tracks] == ["mine/a"]
    assert [track.name for track in together.tracks] == ["mine/a", "others/a"]
    twice = load_bank([tmp_path / "mine", tmp_path / "others" / ".." / "mine"], tmp_path / "cache")
    assert [track.name for track in twice.tracks] == ["mine/a"], "or it were its own negative"


def test_a_folder_is_decoded_once_for_every_bank_that_it_is_in(tmp_path: Path) -> None:
    for number, folder in enumerate(("mine", "others")):
        write(tmp_path / folder / "a" / "bass.wav", 110 * (number + 1))
        write(tmp_path / folder / "a" / "lead.wav", 330 * (number + 1))
    (tmp_path / "none").mkdir()
    decoded: list[tuple[int, int]] = []

    def bank(*folders: str) -> StemBank:
        roots = [tmp_path / folder for folder in folders]
        return load_bank(roots, tmp_path / "cache", progress=lambda done, total: decoded.append((done, total)))

    alone = bank("others")
    assert decoded == [(1, 1)]
    together = bank("none", "mine", "others")
    assert decoded == [(1, 1), (1, 1)], "only the other folder's"
    assert [track.name for track in together.tracks] == ["mine/a", "others/a"]
    np.testing.assert_array_equal(together.waveforms(1), alone.waveforms(0))
    assert not np.array_equal(together.waveforms(0), together.waveforms(1))
    example = Example(1, 800, (0,), (1,))
    sides = mix_examples(together, [example], SAMPLE_RATE)
    for side, expected in zip(sides, alone.waveforms(0, 800, SAMPLE_RATE), strict=True):
        np.testing.assert_array_equal(side[0].numpy(), expected)


def test_a_checkpoint_tells_which_tracks_were_heard_whatever_their_folder_is_called() -> None:
    notes = {HEARD: encode_heard(["rendered/one", "rendered/two@1"])}
    assert heard_of(notes, ["rendered/one", "rendered/two", "rendered/three"]) == Heard(2, 3)
    assert heard_of(notes, ["again/one@2", "again/four"]) == Heard(1, 2)
    notes[HEARD] = encode_heard(["others/four"], notes[HEARD])
    assert heard_of(notes, ["again/one@2", "again/four"]) == Heard(2, 2)
    assert heard_of({}, ["again/one@2", "again/four"]) == Heard(None, 2)
    assert "does not tell" in str(heard_of({}, ["again/one"]))
    assert str(heard_of(notes, ["again/six"])) == "none of the 1 tracks were heard in training"


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> StemBank:
    """Twelve tracks of five stems; the last stem of each sounds only in its first half."""
    root = tmp_path_factory.mktemp("tracks") / "mine"
    for track in range(12):
        for stem in range(5):
            path = root / f"{track:02d}" / f"{stem}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            wave = tone(110 * (stem + 1) + track, 6.0, level=0.1)
            if stem == 4:
                wave[len(wave) // 2 :] = 0
            soundfile.write(path, wave, SAMPLE_RATE)
    return bank_of(root)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), seconds=st.floats(0.5, 5.5))
def test_submixes_are_disjoint_never_empty_and_never_silent(bank: StemBank, seed: int, seconds: float) -> None:
    length = round(seconds * SAMPLE_RATE)
    example = draw_example(bank, seed % 12, length, np.random.default_rng(seed))
    assert example.anchor
    assert example.positive
    assert not set(example.anchor) & set(example.positive)
    assert 0 <= example.start <= bank.tracks[example.track].samples - length
    for side in mix_examples(bank, [example], length):
        assert side.square().mean().sqrt() > 1e-3, "-60 dBFS"


def test_submixes_have_every_size(bank: StemBank) -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_example(bank, 0, SAMPLE_RATE, rng) for _ in range(400)]
    assert {len(example.anchor) for example in drawn if example} == {1, 2, 3, 4}
    assert {len(example.positive) for example in drawn if example} == {1, 2, 3, 4}


def test_a_batch_has_no_track_twice(bank: StemBank) -> None:
    examples = draw_examples(bank, range(12), 12, SAMPLE_RATE, np.random.default_rng(0))
    assert len({example.track for example in examples}) == 12
    with pytest.raises(TooFewTracks, match=r"12 of the 12 tracks .* a window of 1 s .* a batch needs 13"):
        draw_examples(bank, range(12), 13, SAMPLE_RATE, np.random.default_rng(0))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_decoy_is_the_positive_at_another_time(bank: StemBank, seed: int) -> None:
    rng = np.random.default_rng(seed)
    examples = draw_examples(bank, range(12), 6, SAMPLE_RATE, rng)
    decoys = draw_decoys(bank, examples, 4, SAMPLE_RATE, (800, 8_000), rng)
    assert len(decoys) == 4
    for decoy, example in zip(decoys, examples, strict=False):
        assert (decoy.track, decoy.positive, decoy.anchor) == (example.track, example.positive, ())
        assert 800 <= abs(decoy.start - example.start) <= 8_000
        assert 0 <= decoy.start <= bank.tracks[decoy.track].samples - SAMPLE_RATE


def test_an_example_is_the_sum_of_its_stems(bank: StemBank) -> None:
    example = draw_example(bank, 3, SAMPLE_RATE, np.random.default_rng(1))
    anchors, positives = mix_examples(bank, [example], SAMPLE_RATE)
    stems = bank.waveforms(3, example.start, SAMPLE_RATE)
    assert np.abs(anchors[0].numpy() - stems[list(example.anchor)].sum(axis=0)).max() < SIXTEEN_BITS
    assert np.abs(positives[0].numpy() - stems[list(example.positive)].sum(axis=0)).max() < SIXTEEN_BITS
