"""A device that cannot be used is refused in one sentence; nothing runs on another one in silence."""

from pathlib import Path

import pytest
import torch

from model.checkpoints import load_phalar
from model.device import DeviceUnavailable, best_device, facts_of, open_device, why_no_card
from tests.command import phalar, phalar_alone

ROOT = Path(__file__).parents[3]
needs_no_card = pytest.mark.skipif(why_no_card() is None, reason="there is a card here")


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch shows a machine with two cards: there is none to ask."""
    monkeypatch.setattr("model.device.why_no_card", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: torch.ones(1))


@needs_no_card
@pytest.mark.parametrize("wanted", ["cuda", "cuda:0"])
def test_a_card_that_is_not_there_is_refused_with_the_reason(wanted: str) -> None:
    with pytest.raises(DeviceUnavailable, match=f"{wanted}.*cannot be used: .*(without CUDA|driver|card)"):
        open_device(wanted)
    with pytest.raises(DeviceUnavailable):
        load_phalar(ROOT / "model" / "default.safetensors", wanted)


@pytest.mark.parametrize(
    "said",
    [
        "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver.",
        "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver.",
    ],
)
def test_what_torch_says_of_the_driver_is_said_and_what_torch_needs(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    """With torch's own words: no such driver is at hand."""

    def init() -> None:
        raise RuntimeError(f"{said}\nmore")

    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(DeviceUnavailable) as refused:
        open_device("cuda")
    assert said in str(refused.value)
    assert "CUDA 12.6" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_name_that_torch_does_not_know_is_refused() -> None:
    with pytest.raises(DeviceUnavailable, match="knows no device"):
        open_device("cuad")


def test_each_process_takes_a_card_of_its_own(two_cards: None) -> None:
    assert [open_device("cuda", place, 2) for place in (0, 1)] == [torch.device("cuda:0"), torch.device("cuda:1")]
    assert best_device(1, 2) == (torch.device("cuda:1"), None)
    assert open_device("cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize(
    ("wanted", "place", "of", "said"),
    [
        ("cuda:7", 0, 1, "2 cards, cuda:0 to cuda:1"),
        ("cuda", 2, 3, "process 3 of 3 has none: start 2 at most"),
        ("cuda:1", 0, 2, "2 processes would share it"),
    ],
)
def test_a_card_too_many_is_refused(two_cards: None, wanted: str, place: int, of: int, said: str) -> None:
    with pytest.raises(DeviceUnavailable, match=said):
        open_device(wanted, place, of)


@needs_no_card
def test_where_there_is_no_card_the_cpu_is_taken_and_the_reason_given() -> None:
    device, reason = best_device()
    assert device.type == "cpu"
    assert reason == why_no_card()
    assert "cpu" in str(facts_of(device))


@pytest.mark.slow
@needs_no_card
def test_training_on_a_card_that_is_not_there_ends_with_one_sentence(tmp_path: Path) -> None:
    ran = phalar_alone("train", "smoke", "--device", "cuda", "--out", str(tmp_path / "run"), "--cache", str(tmp_path))
    assert ran.returncode == 1
    assert ran.stderr.strip().count("\n") == 0
    assert "'cuda' cannot be used" in ran.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@needs_no_card
def test_training_says_what_it_is_done_on_and_that_bfloat16_is_not(tmp_path: Path) -> None:
    recipe = tmp_path / "half.toml"
    smoke = f'extends = "{ROOT}/model/training/recipes/smoke.toml"\n'
    small = "[encoder]\nchannels = 2\ngrowth = 1.0\ndepth = 2\npooled_channels = 16\ndimension = 32\n"
    recipe.write_text(smoke + 'precision = "bfloat16"\nbatch = 2\n[data]\ncomposed = 4\n' + small)
    ran = phalar("train", str(recipe), "--stop-at", "1", "--out", str(tmp_path / "run"), "--cache", str(tmp_path))
    assert ran.exit_code == 0, ran.stderr
    assert "on cpu" in ran.stderr
    assert why_no_card() in ran.stderr
    assert "here it is float32" in ran.stderr
