"""The loss, the optimisers, recipes and variants: each does what it says."""

import math
import os
import signal
import subprocess
import sys
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from model.checkpoints import CheckpointError
from model.cqt import BeatClips
from model.phalar import Phalar, PhalarConfig
from model.similarity import COSINE_SCALE
from model.training.batches import Ahead, Batch, embed_in_passes
from model.training.loss import contrastive_loss
from model.training.optimiser import Buckets, Gradients, optimisers, orthogonal, rate_at
from model.training.processes import ProcessDied, map_in_processes
from model.training.recipe import RECIPES, BadRecipe, LossSettings, OptimiserSettings, load_recipe
from model.training.variants import VARIANTS, build_model, load_trained, save_model

ROUNDING = 1e-5
PATIENCE_S = 30
PADDING = 1e-3  # Muon's quintic magnifies what other sums round where singular values are near zero
SINGULAR = (0.6, 1.3)  # what five rounds of Muon's quintic leave
CLIP = 24_000  # samples
SMALL = PhalarConfig(channels=4, growth=1.0, depth=2, pooled_channels=16, dimension=64)
HALF_PRECISION = 0.9  # of a cosine of 1: eight bits of mantissa, through a network of random weights


def dot(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x @ y.T


def test_the_loss_of_equal_scores_is_that_of_guessing() -> None:
    zeros = torch.zeros(8, 4)
    for settings, others in (
        (LossSettings(), 8),
        (LossSettings(direction="one"), 8),
        (LossSettings(negatives="all"), 15),
    ):
        loss, _ = contrastive_loss(zeros, zeros, dot, settings)
        assert abs(float(loss) - math.log(others)) < ROUNDING


def test_the_loss_is_least_where_the_positive_has_its_target() -> None:
    """Cross-entropy with a target is least at the target itself: 0.9 for the positive, the rest spread evenly."""
    n, positive = 5, 0.9
    margin = math.log(positive / ((1 - positive) / (n - 1)))

    def loss_at(scale: float) -> float:
        eye = torch.eye(n)
        return float(contrastive_loss(scale * eye, eye, dot, LossSettings(positive=positive))[0])

    assert loss_at(margin) < min(loss_at(margin - 0.1), loss_at(margin + 0.1))


def test_all_negatives_count_the_other_tracks_anchors_and_never_a_row_itself() -> None:
    """Anchors alike and positives alike: each row's only rivals are of its own side, which only `all` looks at."""
    anchors = torch.nn.functional.one_hot(torch.arange(4), 8).float()
    anchors[1] = anchors[0]
    positives = 2 * anchors
    across = contrastive_loss(anchors, positives, dot, LossSettings())[1]
    everywhere = contrastive_loss(anchors, positives, dot, LossSettings(negatives="all"))[1]
    assert across < 1, "rows 0 and 1 cannot be told apart"
    assert everywhere < 1
    alone = contrastive_loss(anchors[1:], positives[1:], dot, LossSettings(negatives="all"))
    assert alone[1] == 1, "a row's own score, the highest of all for positives, is no candidate"


@pytest.mark.parametrize("negatives", ["positives", "all"])
def test_a_decoy_that_outscores_the_positive_makes_the_anchors_row_wrong(negatives: str) -> None:
    eye = torch.eye(3)
    settings = LossSettings(negatives=negatives)
    plain, right = contrastive_loss(eye, eye, dot, settings)
    worse, wrong = contrastive_loss(eye, eye, dot, settings, decoys=2 * eye[1:2], decoys_of=torch.tensor([1]))
    assert right == 1
    assert worse > plain
    assert wrong == pytest.approx(5 / 6), "row 1's anchor is misled; its positive is not asked about itself"


def test_a_partner_in_another_key_is_a_negative_where_both_play_notes() -> None:
    eye, settings = torch.eye(3), LossSettings(negatives="all")
    in_keys = torch.zeros(6, 2, 3)
    in_keys[4, 1] = 2 * eye[1]  # the positive of row 1, in one of its other keys
    plain, right = contrastive_loss(eye, eye, dot, settings)
    worse, wrong = contrastive_loss(eye, eye, dot, settings, in_keys=in_keys, pitched=torch.ones(6) > 0)
    assert right == 1
    assert worse > plain
    assert wrong == pytest.approx(5 / 6), "row 1's anchor is misled; its positive is not asked about itself"
    for struck in (1, 4):  # either side of that pair
        pitched = torch.arange(6) != struck
        assert contrastive_loss(eye, eye, dot, settings, in_keys=in_keys, pitched=pitched)[1] == 1
    none, _ = contrastive_loss(eye, eye, dot, settings, in_keys=in_keys, pitched=torch.zeros(6) > 0)
    torch.testing.assert_close(none, plain)


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 64, 24), (1, 8, 120)])
def test_muons_updates_have_singular_values_near_one(shape: tuple[int, int, int], *, rounds: bool) -> None:
    given = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(given, rounds=rounds))
    assert values.min() > SINGULAR[0]
    assert values.max() < SINGULAR[1]


def test_muon_moves_each_matrix_as_it_would_by_itself() -> None:
    """Stacked with others, of other shapes too, and padded: zeros change nothing but the rounding."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 8, 3, 1), (16, 8, 1, 1), (8, 16, 1, 1), (60, 60, 1, 3), (80, 96), (8, 8, 3, 1)]
    given = [torch.randn(shape, generator=generator) for shape in shapes]
    for matrix, update in zip(given, Buckets(shapes, torch.device("cpu")).levelled(given), strict=True):
        rows, columns = matrix.flatten(1).shape
        alone = orthogonal(matrix.flatten(1)[None])[0] * max(1.0, rows / columns) ** 0.5
        torch.testing.assert_close(update.flatten(1), alone, atol=PADDING, rtol=0)


@pytest.mark.parametrize("norm", [0.5, 7.0])
def test_gradients_are_cut_to_their_norm_and_no_shorter_ones_touched(norm: float) -> None:
    weights = [
        torch.nn.Parameter(torch.zeros(3, 2)),
        torch.nn.Parameter(torch.zeros(5)),
        torch.nn.Parameter(torch.ones(1)),
    ]
    vector = torch.randn(11, generator=torch.Generator().manual_seed(0))
    vector *= norm / vector.norm()
    weights[0].grad, weights[1].grad = vector[:6].view(3, 2).clone(), vector[6:].clone()
    assert float(Gradients(weights).cut(1.0)) == pytest.approx(norm)
    left = torch.cat([weights[0].grad.flatten(), weights[1].grad])
    torch.testing.assert_close(left, vector * min(1.0, 1.0 / norm), atol=ROUNDING, rtol=0)
    assert weights[2].grad is None


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_nothing_is_left_of_gradients_that_are_not_finite(wrong: float) -> None:
    weight = torch.nn.Parameter(torch.zeros(4))
    weight.grad = torch.tensor([1.0, wrong, 2.0, 3.0])
    assert not torch.isfinite(Gradients([weight]).cut(1.0))
    assert torch.equal(weight.grad, torch.zeros(4))


def test_batches_come_in_the_order_asked_for_and_were_begun_before() -> None:
    made: list[int] = []

    def make(step: int) -> Batch:
        made.append(step)
        if step == 9:
            raise ValueError("no such batch")
        return Batch(torch.full((1, 1), float(step)), 1, torch.arange(0))

    ahead = Ahead(make, 2)
    assert [float(ahead.of(step).clips) for step in (5, 6, 7)] == [5.0, 6.0, 7.0]
    ahead.of(8)
    with pytest.raises(ValueError, match="no such batch"):
        ahead.of(9)
    ahead.close()
    assert sorted(made)[:5] == [5, 6, 7, 8, 9]
    assert len(set(made)) == len(made), "each is made once"


def test_muon_takes_matrices_and_convolutions_and_adam_the_rest() -> None:
    model = Phalar()
    muon, adam = optimisers(model, OptimiserSettings())
    of_muon = {id(p) for group in muon.param_groups for p in group["params"]}
    of_adam = {id(p) for group in adam.param_groups for p in group["params"]}
    assert not of_muon & of_adam
    assert of_muon | of_adam == {id(p) for p in model.parameters()}
    named = dict(model.named_parameters())
    assert id(named["similarity.form.weight"]) in of_muon
    assert id(named["backbone.blocks.0.along_time.spread.weight"]) in of_muon
    assert id(named["backbone.blocks.0.along_time.spread.bias"]) in of_adam
    assert id(named["backbone.input_projection.weight"]) in of_adam, "one input: a vector"
    muon, adam = optimisers(model, OptimiserSettings(matrices="adamw"))
    assert [len(group["params"]) for group in adam.param_groups] == [len(named)]
    muon.step()  # has nothing to do


def test_rates_rise_stay_and_fall_to_zero() -> None:
    settings = OptimiserSettings(warmup=10, decay=0.5)
    rates = [rate_at(step, 100, settings) for step in range(100)]
    assert rates[0] == 0.1
    assert rates[9:50] == [1.0] * 41
    assert all(later < earlier for earlier, later in pairwise(rates[50:]))
    assert 0 < rates[-1] < 0.03


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_of_ours_can_be_read_and_names_a_model(path: Path) -> None:
    assert load_recipe(path).model in {"phalar", "cocola", *VARIANTS}


def test_a_recipe_changes_only_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "below.toml").write_text("steps = 10\n[data]\ncomposed = 3\nshortest_s = 2.5\n")
    (tmp_path / "above.toml").write_text('extends = "below.toml"\nbatch = 8\n[data]\ncomposed = 4\n')
    recipe = load_recipe(tmp_path / "above.toml")
    assert (recipe.steps, recipe.batch, recipe.data.composed, recipe.data.shortest_s) == (10, 8, 4, 2.5)
    (tmp_path / "of ours.toml").write_text('extends = "default"\nbatch = 8\n')
    assert load_recipe(tmp_path / "of ours.toml") == load_recipe(Path("default"), batch=8)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("setps = 3", "setps"),
        ("steps = 'many'", "steps"),
        ("data = 3", "data"),
        ("[loss]\ndirection = 'up'", "direction"),
        ("extends = 'bad.toml'", "extends itself"),
        ("steps =", "bad.toml"),
        ("[data]\nmatched = 1.5", "data.matched"),
        ("[data]\nfewest_beats = 9\nmost_beats = 8", "data.fewest_beats"),
        ("[data]\nfewest_beats = 1", "data.fewest_beats"),
        ("[data]\nsemitones = 7", "data.semitones"),
        ("model = 'mel'\n[data]\nmatched = 0.5", "data.semitones"),
        ("[loss]\nkey_decoys = -0.5", "loss.key_decoys"),
        ("[loss]\nkeys = 6", "loss.keys"),
        ("[loss]\nkeys = 2", "loss.negatives"),
        ("model = 'mel'\n[data]\nmatched = 0.5\nsemitones = 0\n[loss]\nkeys = 2\nnegatives = 'all'", "loss.keys"),
        ("[encoder]\ndepth = 99", "encoder.depth"),
        ("model = 'cocola'\n[encoder]\ndepth = 2", "encoder"),
        ("validate_every = 0", "validate_every is from 1"),
        ("[data]\nshortest_s = 3.0\nlongest_s = 2.0", "data.shortest_s is 3"),
        ("extends = 3", "extends is 3"),
        ("# für zwei Kerne", "utf-8"),
    ],
)
def test_a_wrong_recipe_says_which_entry(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "bad.toml").write_text(text, encoding="latin-1")
    with pytest.raises(BadRecipe, match=said):
        load_recipe(tmp_path / "bad.toml")


@pytest.fixture(params=["phalar", "cocola", *VARIANTS])
def model(request: pytest.FixtureRequest) -> nn.Module:
    if request.param == "cocola":
        pytest.importorskip("efficientnet_pytorch", reason="the extra `baselines` is not installed")
    torch.manual_seed(0)
    return build_model(request.param, SMALL)


def test_every_model_trains_in_half_precision_too(model: nn.Module) -> None:
    """As on a GPU, whose autocast a CPU has as well: the same scores, nearly, and gradients for every weight."""
    clips = 0.1 * torch.randn(4, 2 * CLIP)
    full, half = (embed_in_passes(model.eval(), clips, 4, half) for half in (False, True))
    assert full.dtype == half.dtype
    cosine = (_unit_rows(full) * _unit_rows(half)).sum(dim=1)
    assert cosine.min() > HALF_PRECISION
    embedded = embed_in_passes(model.train(), clips, 4, half=True)
    loss, _ = contrastive_loss(embedded[:2], embedded[2:], model.similarity, LossSettings())
    loss.backward()
    for weight_name, weight in model.named_parameters():
        assert weight.grad is not None, weight_name
        assert torch.isfinite(weight.grad).all(), weight_name


def test_every_model_hears_a_clip_at_120_bpm_in_beat_time_as_it_is(model: nn.Module) -> None:
    model.eval()
    waveforms = 0.1 * torch.randn(2, CLIP)
    places = torch.arange(1 + CLIP // 160, dtype=torch.float32).expand(2, -1)
    clips = BeatClips(waveforms, torch.full((2,), CLIP), places, torch.zeros(2, dtype=torch.long))
    assert torch.allclose(_unit_rows(model.in_beat_time(clips)), _unit_rows(model(waveforms)), atol=1e-4)


def _unit_rows(embedded: torch.Tensor) -> torch.Tensor:
    real = (torch.view_as_real(embedded) if embedded.is_complex() else embedded).flatten(1)
    return real / real.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_embeds_scores_and_comes_back_from_its_file(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, SMALL).eval()
    assert isinstance(model, Phalar)
    clips = 0.1 * torch.randn(3, CLIP)
    embedding = model.embed(clips)
    forward = model(clips)
    assert torch.allclose(embedding, forward / forward.norm(dim=1, keepdim=True), atol=1e-5), (
        "measured as it is trained"
    )
    score = model.score(embedding, embedding)
    assert torch.allclose(score, score.T, atol=ROUNDING)
    assert torch.allclose(score, model.similarity(embedding, embedding), atol=1e-4), "trained as it is used"
    save_model(model, tmp_path / "variant.safetensors", {"steps": "1"})
    again = load_trained(tmp_path / "variant.safetensors")
    assert type(again) is (Phalar if name == "cosine" else VARIANTS[name])  # the cosine is Phalar with W = exp(s) I
    assert again.notes == {"steps": "1"}
    assert torch.equal(again.embed(clips), embedding)


def test_variants_differ_from_phalar_in_what_they_leave_out() -> None:
    """Half a second later, or backwards in time: average pooling and magnitudes cannot tell, Phalar can."""
    torch.manual_seed(0)
    features = torch.randn(1, 4, 6, 32)
    later = features.roll(5, dims=3)
    shape = (6, 4, 3, 8)
    from model.pooling import SpectralPooling
    from model.training.variants import AveragePooling, MagnitudePooling

    spectral = SpectralPooling(*shape)
    for kind, blind in ((SpectralPooling, False), (AveragePooling, True), (MagnitudePooling, True)):
        pooling = kind(*shape)
        pooling.load_state_dict(spectral.state_dict())
        assert torch.allclose(pooling(features), pooling(later), atol=1e-4) is blind


def test_a_positive_form_has_no_negative_eigenvalue_and_phalars_has() -> None:
    torch.manual_seed(0)
    positive, indefinite = build_model("psd", SMALL), build_model("phalar", SMALL)
    assert torch.linalg.eigvalsh(positive.similarity.hermitian_form.detach()).min() > -ROUNDING
    assert torch.linalg.eigvalsh(indefinite.similarity.hermitian_form.detach()).min() < 0


@pytest.mark.parametrize("name", ["phalar", "mel", "psd", "cosine"])
def test_every_form_can_start_as_the_cosine(name: str) -> None:
    model = build_model(name, SMALL)
    model.similarity.start_as_cosine()
    cosine = COSINE_SCALE * torch.eye(model.config.dimension, dtype=torch.complex64)
    torch.testing.assert_close(model.similarity.hermitian_form.detach(), cosine)


def test_cocolas_score_can_start_as_the_plain_product() -> None:
    similarity = build_model("cocola").similarity
    similarity.start_as_cosine()
    x, y = torch.randn(2, 512), torch.randn(3, 512)
    squashed = [torch.tanh(similarity.norm(side)) for side in (x, y)]
    torch.testing.assert_close(similarity(x, y), 0.05 * squashed[0] @ squashed[1].T)


def test_a_file_of_an_unknown_variant_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({}, tmp_path / "x.safetensors", {"format": "phalar-variant-1", "variant": "nothing we know"})
    with pytest.raises(CheckpointError, match="nothing we know"):
        load_trained(tmp_path / "x.safetensors")
    newer = {"format": "phalar-variant-1", "variant": "mel", "config": '{"an entry of later": 1}'}
    save_file({}, tmp_path / "x.safetensors", newer)
    with pytest.raises(CheckpointError, match="an entry of later"):
        load_trained(tmp_path / "x.safetensors")


def test_no_model_has_an_unknown_name() -> None:
    with pytest.raises(ValueError, match="average-pooling"):
        build_model("transformer")


def test_a_folder_of_a_recipes_name_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "smoke").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_recipe(Path("smoke")) == load_recipe(RECIPES / "smoke.toml")


def test_processes_end_with_the_one_that_began_them() -> None:
    """Killed, so that it cannot tell them."""
    task = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    program = f"from model.training.processes import map_in_processes as m; list(m(exec, [{task!r}] * 2, jobs=2))"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        working = [int(parent.stdout.readline()) for _ in range(2)]
        parent.kill()
        try:
            parent.communicate(timeout=PATIENCE_S)  # until nobody holds its end of the pipe
        finally:
            for process in working:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)


def test_a_process_that_is_killed_ends_the_work_in_a_sentence() -> None:
    with pytest.raises(ProcessDied, match="one of 2 processes was killed"):
        list(map_in_processes(os._exit, [1, 1], jobs=2))
