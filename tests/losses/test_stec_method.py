"""S-TEC and SimCLR as methods: the inverse model's head, labelled images beside the data, S-TEC on BYOL."""

from argparse import Namespace
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from saccade.base.errors import UserError
from saccade.losses.byol import BYOL
from saccade.losses.functional import normalise
from saccade.losses.ntxent import nt_xent
from saccade.losses.recipes.simclr import PUBLISHED, simclr_recipe
from saccade.losses.recipes.stec import stec_byol_recipe, stec_recipe
from saccade.losses.stec import efference_copy
from saccade.losses.stec_targets import bin_changes, manipulation_loss
from saccade.models.gather import rank
from saccade.runs.flags import method_of
from tests.distributed import run_ranks
from tests.losses.method_checks import images_of, learner_of, small, trained_parts
from tests.present import present
from tests.reference_values import assert_close


def test_losses_are_the_pure_functions_of_the_networks_outputs():
    recipe = small(stec_recipe("stl10"), 16)
    learner = learner_of(recipe, classes=10)
    views, params = images_of(recipe)
    label = torch.arange(16) % 10
    losses = learner(views, params, label)
    losses["loss"].backward()
    both = learner.student(torch.cat([views["view_1"], views["view_2"]]))
    contrast, _ = nt_xent(*normalise(both.projection).chunk(2), 0.2)
    values, valid = efference_copy(params["view_1"], params["view_2"])
    assert 0 < valid.sum() < 16  # some pairs are solarised
    logits = learner.objective.manipulation(torch.cat(both.features.chunk(2), 1))
    manipulation, _ = manipulation_loss(logits, values, valid)
    classifier = F.cross_entropy(learner.objective.classifier(both.features), label.repeat(2))
    assert_close(losses["loss"], 2 * contrast + 0.3 * manipulation + classifier, 1e-4)
    assert trained_parts(learner) == {
        "student.backbone",
        "student.projector",
        "objective.manipulation",
        "objective.classifier",
    }


def test_classifier_gradient_stays_out_of_the_backbone():
    recipe = small(simclr_recipe("cifar10"), contrast_weight=0.0)
    learner = learner_of(recipe, classes=10)
    views, params = images_of(recipe)
    learner(views, params, torch.arange(8))["loss"].backward()
    assert trained_parts(learner) == {"objective.classifier"}


def test_labelled_images_train_the_classifier_alone_and_move_the_running_statistics():
    recipe = small(stec_recipe("stl10"))
    learner, twin = learner_of(recipe, classes=10), learner_of(recipe, classes=10)
    views, params = images_of(recipe)
    images, classes = torch.rand(8, 3, 96, 96), torch.arange(8)
    losses = learner(views, params, None, (images, classes))
    losses["loss"].backward()
    without = twin(views, params, None)
    without["loss"].backward()
    assert "classifier" not in without
    assert_close(losses["loss"] - losses["classifier"], without["loss"], 1e-5)
    for (name, p), q in zip(learner.student.named_parameters(), twin.student.parameters(), strict=True):
        assert p.grad is q.grad is None or torch.equal(present(p.grad), present(q.grad)), name
    statistics = [network.student.get_buffer("backbone.bn1.running_mean") for network in (learner, twin)]
    assert not torch.equal(*statistics)
    features = twin.student.backbone(images)
    assert torch.allclose(statistics[0], statistics[1])  # the same second pass
    assert_close(losses["classifier"], F.cross_entropy(learner.objective.classifier(features), classes), 1e-5)


@pytest.mark.parametrize(("hidden", "layers"), [((), 1), ((512,), 2), ((64, 32), 3)])
def test_inverse_model_takes_any_number_of_layers(hidden, layers):
    objective = learner_of(small(stec_recipe("cifar10"), manipulation_hidden=hidden)).objective
    linear = [m for m in objective.manipulation if isinstance(m, torch.nn.Linear)]
    assert len(linear) == layers and linear[0].in_features == 2 * objective.features and linear[-1].out_features == 36


def test_what_the_inverse_model_predicts_is_an_option():
    views = stec_recipe("cifar10").views
    predicts = ("flip", "jitter.brightness", "jitter.hue")
    recipe = small(stec_recipe("cifar10"), predicts=predicts)
    learner = learner_of(recipe)
    images, params = images_of(recipe)
    losses = learner(images, params)
    losses["loss"].backward()
    assert learner.objective.manipulation[-1].out_features == 6 * (6 + 2)
    a, b = params["view_1"], params["view_2"]
    values, _ = efference_copy(a, b, crop=False)
    assert torch.equal(values[:, 0, 0], torch.where(a.flip ^ b.flip, -1.0, 1.0)) and (values[:, 1, 1] == 1).all()
    # by hand: the same rule in bins over [-1, 1], for the change in shares of the range the recipe gives
    span = 2 * views["view_1"]["jitter"].hue
    change = (b.drawn["jitter"]["hue"] - a.drawn["jitter"]["hue"]) / span
    expected = ((change.double() + 1) * 3 - 0.5).round().clamp(0, 5).long()
    assert torch.equal(bin_changes(change), expected) and len(expected.unique()) > 2
    with pytest.raises(UserError, match=r"'blur\.sigma'; use some of crop, flip, jitter\.brightness"):
        learner_of(small(stec_recipe("cifar10"), predicts=("blur.sigma",)))
    with pytest.raises(UserError, match="predicts is empty"):
        learner_of(small(stec_recipe("cifar10"), predicts=()))


def test_a_hidden_layer_without_units_is_refused():
    with pytest.raises(UserError, match=r"\(\) is a linear head"):
        learner_of(small(stec_recipe("cifar10"), manipulation_hidden=(0,)))


def _masked_loss(rows: slice | None = None) -> dict:
    rows = rows or slice(rank() * 4, rank() * 4 + 4)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 36, generator=generator, dtype=torch.float64)[rows].requires_grad_()
    values = (torch.rand(8, 2, 3, generator=generator, dtype=torch.float64) - 0.5)[rows]
    valid = torch.tensor([True, False, False, False, True, True, True, False])[rows]
    loss, _ = manipulation_loss(logits, values, valid)
    loss.backward()
    return {"loss": loss.detach(), "grad": logits.grad}


def test_solarised_pairs_are_counted_over_both_processes():
    """1 pair counts on rank 0, 3 on rank 1: an average of local means would weigh them wrongly."""
    whole = _masked_loss(slice(0, 8))
    ranks = run_ranks(_masked_loss)
    assert_close(sum(r["loss"] for r in ranks) / 2, whole["loss"], 1e-12)
    assert_close(torch.cat([r["grad"] for r in ranks]) / 2, whole["grad"], 1e-12)


def test_stec_on_byol_adds_the_inverse_model_and_leaves_byol_alone():
    recipe = small(stec_byol_recipe("cifar10"))
    assert recipe.proposals["method"].startswith("ours")
    learner = learner_of(recipe)
    views, params = images_of(recipe)
    learner.begin_step(0)
    losses = learner(views, params)
    losses["loss"].backward()
    assert isinstance(learner.objective, BYOL) and learner.teacher is not None
    base = replace(recipe, method="byol")
    alone = learner_of(base)
    alone.load_state_dict({k: v for k, v in learner.state_dict().items() if "manipulation" not in k})
    assert_close(losses["loss"] - 0.5 * losses["manipulation"], alone(views, params)["loss"], 1e-5)
    assert trained_parts(learner) == {
        "student.backbone",
        "student.projector",
        "student.predictor",
        "objective.manipulation",
    }


def test_stec_base_names_the_extension_and_nothing_else():
    assert method_of(Namespace(method="stec", stec_base="simclr")).name == "stec"
    assert method_of(Namespace(method="stec", stec_base="byol")).name == "stec-byol"
    with pytest.raises(UserError, match="use simclr or byol"):
        method_of(Namespace(method="stec", stec_base="relic"))
    with pytest.raises(UserError, match="goes with --method stec"):
        method_of(Namespace(method="simclr", stec_base="byol"))


@pytest.mark.parametrize(
    ("name", "projector", "weight"),
    [
        ("cifar10", (512, 64), 1.0),
        ("cifar100-resnet50", (1024, 64), 1.0),
        ("stl10", (512, 128), 0.3),
        ("stl10-resnet50", (2048, 128), 0.3),
        ("imagenet", (2048, 128), 0.6),
    ],
)
def test_authors_recipes(name, projector, weight):
    recipe = stec_recipe(name)
    assert name in PUBLISHED and not recipe.proposals
    assert (recipe.options.projector_hidden, recipe.options.projector_dim) == projector
    assert recipe.options.manipulation_weight == weight and recipe.options.contrast_weight == 2.0
    assert ("blur" in recipe.views["view_1"]) == (recipe.data in ("stl10", "imagenet"))
    labelled = recipe.companion["labelled"]
    assert list(labelled.keyed) == ["jitter", "grey"] and labelled["jitter"] == recipe.views["view_1"]["jitter"]
