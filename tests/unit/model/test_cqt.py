"""Facts of the decibel-scaled CQT."""

import copy

import numpy as np
import pytest
import torch

from model.audio import SAMPLE_RATE
from model.audio.windows import TOO_SHORT
from model.cqt import BeatClips, CQTSettings, FastCQT, ScaledCQT, plain_cqt, scale_decibels

ROUNDING = 1e-4  # of the scaled range: the logarithm of a float32 magnitude of a quiet bin
MAGNITUDE_TOLERANCE = 2e-6  # of the clip's peak or largest magnitude, from double precision; nnAudio itself: 5e-6
NORM_TOLERANCE = 2e-6  # of the norm of music's magnitudes; nnAudio itself is 1e-6 from double precision
ROUNDED = 3e-5  # of a clip's peak: 90 dB under it, float32 rounds a tenth of a decibel away
DECIBEL_TOLERANCE = 2e-3  # of the scaled range, 0.16 dB: what the parity with the authors asks
A440_BIN = 57  # 12 log2(440 / 16.35) = 57.0
EDGE_FRAMES = 5  # at the ends a kernel sees the tone reflected, and its phase broken


SETTINGS = CQTSettings(sample_rate=SAMPLE_RATE, hop=160, lowest_hz=16.35, bins=96, bins_per_octave=12)


@pytest.fixture(scope="module")
def cqt() -> ScaledCQT:
    return ScaledCQT(SETTINGS, 80.0)


def tone(frequency: float, seconds: float = 2.0, amplitude: float = 0.5) -> torch.Tensor:
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return torch.from_numpy(amplitude * np.sin(2 * np.pi * frequency * time)).float()[None]


def loudest_bins(cqt: ScaledCQT, clip: torch.Tensor) -> torch.Tensor:
    return cqt(clip)[0, :, EDGE_FRAMES:-EDGE_FRAMES].argmax(dim=0)


def test_cqt_puts_a440_in_bin_57(cqt: ScaledCQT) -> None:
    assert (loudest_bins(cqt, tone(440.0)) == A440_BIN).all()


def test_cqt_puts_an_octave_twelve_bins_higher(cqt: ScaledCQT) -> None:
    assert (loudest_bins(cqt, tone(880.0)) == A440_BIN + 12).all()


@pytest.mark.parametrize("samples", [16_385, 16_479, 16_480, 80_000, 116_800])
def test_cqt_has_a_frame_every_hop_and_one_more(cqt: ScaledCQT, samples: int) -> None:
    assert cqt(torch.zeros(1, samples)).shape == (1, 96, samples // 160 + 1)


def test_a_clip_must_be_longer_than_the_reflection(cqt: ScaledCQT) -> None:
    assert cqt.padding == TOO_SHORT


def test_floor_lies_80_db_under_the_clips_own_maximum(cqt: ScaledCQT) -> None:
    scaled = cqt(tone(440.0))
    assert scaled.max() - scaled.min() == pytest.approx(1.0, abs=ROUNDING)


def test_ten_times_louder_is_a_quarter_of_the_range_higher(cqt: ScaledCQT) -> None:
    quiet, loud = cqt(tone(440.0, amplitude=0.05)), cqt(tone(440.0, amplitude=0.5))
    assert (loud - quiet - 20 / 80).abs().max() < ROUNDING


def test_silence_is_one_finite_constant(cqt: ScaledCQT) -> None:
    assert torch.equal(cqt(torch.zeros(1, 20_000)), torch.full((1, 96, 126), -1.5))  # -200 dB of an 80 dB range


def test_a_quiet_clip_keeps_its_own_floor_beside_a_loud_one() -> None:
    quiet, loud = torch.tensor([[[1e-6, 1e-5]]]), torch.tensor([[[1.0, 1e-9]]])
    alone = scale_decibels(quiet, 80.0)
    together = scale_decibels(torch.cat([quiet, loud]), 80.0)
    assert torch.equal(together[:1], alone)
    assert together[1, 0].tolist() == [1.0, 0.0]


def test_kernels_are_no_weights_and_are_never_saved(cqt: ScaledCQT) -> None:
    assert cqt.state_dict() == {}
    assert list(cqt.parameters()) == []


# -- the fast transform against nnAudio's own -----------------------------------------------------------------------


def signal(kind: str, samples: int = 80_000) -> torch.Tensor:
    """Signals that a fast transform could get wrong; float32 (1, samples), at full scale."""
    generator = torch.Generator().manual_seed(samples)
    time = torch.arange(samples) / SAMPLE_RATE
    clip = {
        "noise": lambda: 2 * torch.rand(samples, generator=generator) - 1,
        "noise then silence": lambda: (2 * torch.rand(samples, generator=generator) - 1) * (time < time[samples // 2]),
        "low tone": lambda: torch.sin(2 * torch.pi * 40 * time),
        "high tone": lambda: torch.sin(2 * torch.pi * 3000 * time),
        "tone above the top bin": lambda: torch.sin(2 * torch.pi * 7000 * time),
        "square wave": lambda: torch.sign(torch.sin(2 * torch.pi * 220 * time)),
        "click": lambda: (torch.arange(samples) == samples // 2).float(),
        "constant": lambda: torch.ones(samples),
        "quiet noise": lambda: 1e-6 * torch.randn(samples, generator=generator),
        "silence": lambda: torch.zeros(samples),
    }[kind]()
    return clip[None]


KINDS = [
    "noise", "noise then silence", "low tone", "high tone", "tone above the top bin",
    "square wave", "click", "constant", "quiet noise", "silence",
]  # fmt: skip


def assert_equal_to_nnaudio(clip: torch.Tensor) -> None:
    fast, plain = FastCQT(SETTINGS)(clip), plain_cqt(SETTINGS)(clip)
    exact = copy.deepcopy(plain_cqt(SETTINGS)).double()(clip.double())
    assert fast.shape == plain.shape
    assert (fast - exact).abs().max() <= MAGNITUDE_TOLERANCE * max(exact.max(), clip.abs().max())
    heard = exact >= ROUNDED * clip.abs().max()
    apart = (scale_decibels(fast, 80.0) - scale_decibels(plain, 80.0)).abs()
    assert torch.where(heard, apart, 0.0).max() < DECIBEL_TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_fast_cqt_equals_nnaudio_on(kind: str) -> None:
    assert_equal_to_nnaudio(signal(kind, 32_000))


@pytest.mark.parametrize("samples", [16_385, 16_479, 31_999, 80_000, 116_800])
def test_fast_cqt_equals_nnaudio_at_any_length(samples: int) -> None:
    clip = signal("noise", samples)
    assert_equal_to_nnaudio(clip)
    plain = plain_cqt(SETTINGS)(clip)
    assert (FastCQT(SETTINGS)(clip) - plain).norm() < NORM_TOLERANCE * plain.norm()


@pytest.mark.parametrize("frames", [200, 201, 400, 401])
def test_fast_cqt_cuts_long_clips_without_a_seam(monkeypatch: pytest.MonkeyPatch, frames: int) -> None:
    monkeypatch.setattr("model.cqt.FRAMES_AT_ONCE", 200)
    clip = torch.cat([signal(kind, (frames - 1) * 160 + 17) for kind in ("noise", "low tone")])
    fast, plain = FastCQT(SETTINGS)(clip), plain_cqt(SETTINGS)(clip)
    assert fast.shape == plain.shape == (2, 96, frames)
    assert (fast - plain).norm() < NORM_TOLERANCE * plain.norm()
    assert (scale_decibels(fast, 80.0) - scale_decibels(plain, 80.0)).abs().max() < DECIBEL_TOLERANCE


def test_fast_cqt_has_the_gradient_of_the_transform_and_a_finite_one_at_silence() -> None:
    fast = FastCQT(SETTINGS)
    clip, weights = signal("noise", 17_000), torch.rand(1, 96, 107, generator=torch.Generator().manual_seed(0))
    gradients = []
    for transform in (fast, plain_cqt(SETTINGS)):
        leaf = clip.clone().requires_grad_()
        (transform(leaf) * weights).sum().backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[1].norm()  # float32 through two transforms
    silence = torch.zeros(1, 17_000, requires_grad=True)
    fast(silence).sum().backward()
    assert silence.grad is not None
    assert torch.isfinite(silence.grad).all()


def test_its_kernels_are_nnaudios_to_the_last_bit() -> None:
    plain, ours = plain_cqt(SETTINGS), FastCQT(SETTINGS).direct_kernels.T.float()
    theirs = torch.stack([plain.cqt_kernels_real[:, 0], plain.cqt_kernels_imag[:, 0]]).double()
    theirs = (theirs * plain.lenghts.double().sqrt()[:, None]).float()  # (2, bins, taps)
    bins, centre, reach = len(ours) // 2, theirs.shape[2] // 2, ours.shape[1] // 2
    assert torch.equal(ours, theirs[:, -bins:, centre - reach : centre + reach].flatten(0, 1))


def test_fast_cqt_first_used_for_inference_still_trains_and_ignores_mixed_precision() -> None:
    settings = CQTSettings(sample_rate=SAMPLE_RATE, hop=160, lowest_hz=17.0, bins=96, bins_per_octave=12)
    clip = signal("noise", 17_000)
    with torch.inference_mode():
        plain_cqt(settings), FastCQT(settings)
    fast = FastCQT(settings)
    with torch.inference_mode():
        expected = fast(clip)
    leaf = clip.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        magnitudes = fast(leaf)
    magnitudes.sum().backward()
    assert torch.equal(magnitudes.detach(), expected)
    plain_cqt(settings)(leaf).sum().backward()


BASS_HZ = (55.0, 82.41, 65.41, 110.0, 61.74, 92.5)
RISEN = 0.3  # of the range, 24 dB, under a note's loudest


def bass_line(speed: float, semitones: int) -> torch.Tensor:
    """Six notes, half a second apart, played so much faster and higher: float32 (samples,)."""
    time = np.arange(round(4.0 / speed * SAMPLE_RATE)) / SAMPLE_RATE
    wave = np.zeros_like(time)
    for number, hz in enumerate(BASS_HZ):
        since = np.maximum(0.0, time * speed - 0.25 - 0.5 * number)
        envelope = np.minimum(1.0, since / 0.005) * np.exp(-4 * since)
        wave += envelope * np.sin(2 * np.pi * hz * 2 ** (semitones / 12) * time)
    return torch.from_numpy((0.2 * wave).astype(np.float32))


def rises(scaled: torch.Tensor, semitones: int) -> np.ndarray:
    """When each note's bin rises, frames: (6,), between frames on a straight line."""
    found = []
    for number, hz in enumerate(BASS_HZ):
        note = scaled[0, round(12 * np.log2(hz / 16.35)) + semitones].numpy()
        begin = 25 + 50 * number
        floor = note[begin : begin + 25].max() - RISEN
        at = begin - 24 + int(np.argmax(note[begin - 24 : begin + 20] > floor))
        found.append(at - (note[at] - floor) / (note[at] - note[at - 1]))
    return np.array(found)


@pytest.mark.parametrize(("speed", "semitones"), [(1.25, 0), (0.8, 0), (1.0, 3), (1.0, -4), (1.1, 2)])
def test_kernel_fronts_meet_onsets_where_music_played_so_has_them(speed: float, semitones: int) -> None:
    off_ms = []
    for kernel_fronts in (False, True):
        cqt = ScaledCQT(SETTINGS, 80.0, kernel_fronts)
        played = bass_line(speed, 0)
        places = (torch.arange(401) / speed).clamp_max(len(played) // SETTINGS.hop)[None]
        clips = BeatClips(played[None], torch.tensor([len(played)]), places, torch.tensor([semitones]))
        there, wanted = cqt.in_beat_time(clips), cqt(bass_line(1.0, semitones)[None])
        off_ms.append(10 * np.abs(rises(there, semitones) - rises(wanted, semitones)).mean())
    assert off_ms[0] > 10, "a kernel's centre moves, and its front meets the onset too early or too late"
    assert off_ms[1] < 0.7 * off_ms[0], off_ms


@pytest.mark.parametrize("semitones", [1, -2])
def test_faster_and_as_much_higher_is_the_same_frames_by_either_end_of_the_kernels(semitones: int) -> None:
    speed = 2 ** (semitones / 12)
    recorded, played = bass_line(1.0, 0), bass_line(speed, semitones)
    places = (torch.arange(401) / speed).clamp_max(len(played) // SETTINGS.hop)[None]
    clips = BeatClips(played[None], torch.tensor([len(played)]), places, torch.tensor([-semitones]))
    for kernel_fronts in (False, True):
        cqt = ScaledCQT(SETTINGS, 80.0, kernel_fronts)
        wanted = cqt(recorded[None])
        apart = (cqt.in_beat_time(clips) - wanted).abs()[wanted > 0.5]
        assert apart.mean() < 0.02
