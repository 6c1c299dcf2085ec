import numpy as np
import pytest

from service.work.fitting import TRANSPOSITIONS, Fitting, Samples, StartBeyondEnd, fit, frames_needed

RATE = 44_100
SPEEDS = (0.6, 0.7, 0.8, 0.9, 0.96, 1.0, 1.04, 1.1, 1.2, 1.3, 1.45, 1.6)
STARTS = (0.0, 0.25, 0.5, 0.7331, 1.0, 1.2345, 1.5, 1.75, 2.0, 2.111, 2.5, 3.0)
ONSET_S = 0.002  # what a hit promises
CENTS = 5.0
CLICKS_S = np.arange(0.5, 9, 0.5)


def clicks(rate: int = RATE) -> Samples:
    """A tick every half second, on two channels."""
    at = np.arange(600)
    tick = (np.exp(-at / 80) * np.sin(at * 0.3 + 0.7)).astype(np.float32)
    samples = np.zeros((2, 9 * rate), np.float32)
    for second in CLICKS_S:
        first = round(second * rate)
        samples[:, first : first + len(tick)] += tick
    return samples


def sine(hertz: float, seconds: float, rate: int = RATE) -> Samples:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)[None]


def onset_near(samples: Samples, second: float, rate: int) -> float:
    around = np.abs(samples[0, round((second - 0.1) * rate) : round((second + 0.1) * rate)])
    return second - 0.1 + int(np.argmax(around > 0.4 * around.max())) / rate


def frequency_of(samples: Samples, rate: int) -> float:
    """Hz of the strongest partial, between the bins of a long transform."""
    bins = 8 * samples.shape[1]
    spectrum = np.log(np.abs(np.fft.rfft(samples[0] * np.hanning(samples.shape[1]), bins)) + 1e-9)
    peak = int(spectrum.argmax())
    left, middle, right = spectrum[peak - 1 : peak + 2]
    return (peak + 0.5 * (left - right) / (left - 2 * middle + right)) * rate / bins


@pytest.mark.parametrize(("speed", "start_s"), list(zip(SPEEDS, STARTS, strict=True)))
@pytest.mark.parametrize(("transpose", "rate"), [(0, None), (-2, 48_000)])
def test_onsets_lie_where_the_speed_and_the_start_put_them(
    speed: float, start_s: float, transpose: float, rate: int | None
) -> None:
    fitted = fit(clicks(), RATE, Fitting(speed, transpose, start_s, 3.0, rate=rate))
    out_rate = rate or RATE
    assert fitted.shape == (2, 3 * out_rate)
    places = (CLICKS_S - start_s) / speed
    places = places[(places > 0.1) & (places < 2.9)]
    assert len(places) > 2
    assert [onset_near(fitted, second, out_rate) for second in places] == pytest.approx(places, abs=ONSET_S)


@pytest.mark.parametrize("transpose", range(-12, 13))
def test_a_sine_rises_by_the_semitones_asked_at_any_speed(transpose: int) -> None:
    for hertz, speed in ((82.4, 1.0), (440.0, 1.2)):
        fitted = fit(sine(hertz, 4), RATE, Fitting(speed, transpose, 0.5, 2.0))
        wanted = hertz * 2 ** (transpose / 12)
        assert abs(1200 * np.log2(frequency_of(fitted, RATE) / wanted)) < CENTS


@pytest.mark.parametrize("duration_s", [0.001, 0.5, 1.23456, 2.0, 5.5])
@pytest.mark.parametrize("fitting", [Fitting(), Fitting(1.07), Fitting(rate=22_050), Fitting(0.9, 3, rate=32_000)])
def test_the_length_is_exact_to_a_sample(fitting: Fitting, duration_s: float) -> None:
    asked = Fitting(fitting.speed, fitting.transpose, 0.4, duration_s, rate=fitting.rate)
    assert fit(sine(440, 3), RATE, asked).shape == (1, round(duration_s * (fitting.rate or RATE)))


def test_without_a_duration_the_rest_is_fitted() -> None:
    assert fit(sine(440, 3), RATE, Fitting(1.25, start_s=0.5)).shape == (1, 2 * RATE)


def test_as_recorded_the_samples_are_the_recordings_own() -> None:
    noise = np.random.default_rng(0).standard_normal((2, RATE)).astype(np.float32)
    given = np.asfortranarray(noise)
    given.flags.writeable = False
    assert np.array_equal(fit(given, RATE, Fitting(start_s=0.25, duration_s=0.5)), noise[:, RATE // 4 : RATE * 3 // 4])


def test_views_and_read_only_samples_sound_like_copies() -> None:
    both = np.random.default_rng(0).standard_normal((3 * RATE, 2)).astype(np.float32)
    both.flags.writeable = False
    asked = Fitting(1.1, -2, 0.5, 1.0)
    assert np.array_equal(fit(both.T, RATE, asked), fit(both.T.copy(), RATE, asked))


def test_the_same_asked_twice_gives_the_same_samples() -> None:
    asked = Fitting(0.5, 12, 0.5, 1.0)  # so slow that the stretcher draws phases
    assert np.array_equal(fit(clicks(), RATE, asked), fit(clicks(), RATE, asked))


def test_a_negative_start_is_silence_until_the_stem_enters() -> None:
    fitted = fit(np.ones((1, RATE), np.float32), RATE, Fitting(start_s=-0.25, duration_s=1.5))
    edges = np.flatnonzero(np.diff(fitted[0]))
    assert edges.tolist() == [RATE // 4 - 1, RATE * 5 // 4 - 1]
    assert onset_near(fit(clicks(), RATE, Fitting(1.25, 0, -1.0, 3.0)), 1.2, RATE) == pytest.approx(1.2, abs=ONSET_S)


def test_a_start_at_the_end_is_refused() -> None:
    with pytest.raises(StartBeyondEnd) as caught:
        fit(sine(440, 2), RATE, Fitting(start_s=2.0))
    assert caught.value.facts == {"start_s": 2.0, "seconds": 2.0}


@pytest.mark.parametrize("fitting", [Fitting(1.3, 2, 2.0, 1.5), Fitting(start_s=2.0, duration_s=1.5, rate=16_000)])
def test_the_frames_needed_are_enough(fitting: Fitting) -> None:
    samples = clicks()
    first, count = frames_needed(fitting, RATE)
    assert first > 0
    part = samples[:, first : first + count]
    assert np.array_equal(fit(part, RATE, fitting, first=first), fit(samples, RATE, fitting))


def test_a_loop_goes_on_in_time() -> None:
    loop = clicks()[:, : 2 * RATE]
    fitted = fit(loop, RATE, Fitting(1.1, 0, 0.25, 8.0, loop=True))
    places = (np.arange(0.5, 9, 0.5)[:16] - 0.25) / 1.1
    places = places[~np.isclose((places * 1.1 + 0.25) % 2, 0)]  # the loop has no tick on its first beat
    assert [onset_near(fitted, second, RATE) for second in places] == pytest.approx(places, abs=ONSET_S)


@pytest.mark.parametrize("start_s", [-9.75, -1.75, 8.25])
def test_a_loop_goes_round_before_its_beginning_and_after_its_end(start_s: float) -> None:
    loop = clicks()[:, : 2 * RATE]
    within = fit(loop, RATE, Fitting(1.1, 0, 0.25, 3.0, loop=True))
    assert np.array_equal(fit(loop, RATE, Fitting(1.1, 0, start_s, 3.0, loop=True)), within)
    assert fit(loop, RATE, Fitting(1.0, 0, start_s, loop=True)).shape == (2, round(1.75 * RATE)), "up to its end"


@pytest.mark.parametrize("speed", [1.0, 1.1])
def test_a_loops_ends_meet_without_a_click(speed: float) -> None:
    """A sine that is cut where it stands highest: what is heard at the join stays near what is heard elsewhere."""
    seconds = 1 + 1 / 4 / 110
    fitted = fit(sine(110, seconds), RATE, Fitting(speed, 0, 0.3, 3.0, loop=True))
    steps = np.abs(np.diff(fitted[0]))
    plain = np.abs(np.diff(fit(sine(110, 4), RATE, Fitting(speed, 0, 0.3, 1.0))[0])).max()
    assert steps.max() < 12 * plain  # unjoined: half of full scale at once, 64 times as much


def test_transposing_reaches_as_far_as_it_says() -> None:
    low, high = TRANSPOSITIONS
    for transpose in (low, high):
        assert np.abs(fit(sine(440, 2), RATE, Fitting(1.0, transpose, 0.5, 0.5))).max() > 0.1
