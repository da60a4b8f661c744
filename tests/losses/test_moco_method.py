"""--method moco-v2 and moco-v3: wiring, teacher, queue, and the networks of their recipes."""

from typing import Any

import pytest
import torch

from saccade.base.errors import UserError
from saccade.losses.functional import normalise
from saccade.losses.moco import moco_v2_loss, moco_v3_loss
from saccade.losses.recipes.moco import V2_RECIPES, V3_RECIPES, moco_v2_recipe, moco_v3_recipe
from saccade.models.backbone import create_backbone
from tests.losses.method_checks import images_of, learner_of, small, trained_parts
from tests.reference_values import assert_close


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_v2_compares_view_1_with_the_teachers_view_2_and_the_queue():
    recipe = small(V2_RECIPES["textures"], queue_size=16)
    learner = learner_of(recipe)
    views, params = images_of(recipe)
    before = learner.objective.queue.keys.clone()
    learner.begin_step(0)
    losses = learner(views, params)
    losses["loss"].backward()
    query = normalise(learner.student(views["view_1"]).projection)
    key = normalise(learner.teacher(views["view_2"]).projection)
    assert_close(losses["loss"], moco_v2_loss(query, key, before.t(), 0.2), 1e-6)
    assert torch.equal(learner.objective.queue.keys, before)  # its own keys come after the step
    learner.end_step()
    assert_close(learner.objective.queue.keys[:8], key, 1e-6)
    assert torch.equal(learner.objective.queue.keys[8:], before[8:])
    assert trained_parts(learner) == {"student.backbone", "student.projector"}


def test_v3_compares_each_prediction_with_the_other_views_key():
    recipe = small(V3_RECIPES["textures"])
    learner = learner_of(recipe)
    views, params = images_of(recipe)
    learner.begin_step(0)
    losses = learner(views, params)
    losses["loss"].backward()
    q1, q2 = (normalise(learner.student(views[name]).prediction) for name in ("view_1", "view_2"))
    k1, k2 = (normalise(learner.teacher(views[name]).projection) for name in ("view_1", "view_2"))
    assert_close(losses["loss"], moco_v3_loss(q1, q2, k1, k2, 0.2), 1e-5)
    assert trained_parts(learner) == {"student.backbone", "student.projector", "student.predictor"}
    momenta = [learner.objective.momentum(step) for step in range(11)]
    assert momenta[0] == pytest.approx(0.99) and momenta[10] == 1.0 and momenta == sorted(momenta)


def test_heads_have_the_papers_sizes():
    """Multiply the widths: v2 2048-2048-128 with biases; v3 as MoCo v3 prints them, without biases."""
    v2: Any = learner_of(small(moco_v2_recipe("imagenet"))).objective
    v2.features = 2048
    assert _count(v2.projector()) == 2048 * 2048 + 2048 + 2048 * 128 + 128
    assert not any(isinstance(m, torch.nn.BatchNorm1d) for m in v2.projector())
    v3: Any = learner_of(small(moco_v3_recipe("imagenet"))).objective
    v3.features = 2048
    assert _count(v3.projector()) == 2048 * 4096 + 2 * 4096 + 4096 * 256
    assert _count(v3.predictor()) == 256 * 4096 + 2 * 4096 + 4096 * 256
    vit: Any = learner_of(small(moco_v3_recipe("imagenet-vit"))).objective
    vit.features = 768
    assert _count(vit.projector()) == 768 * 4096 + 4096 * 4096 + 4 * 4096 + 4096 * 256
    assert isinstance(vit.predictor()[-1], torch.nn.BatchNorm1d) and not vit.predictor()[-1].affine


def test_vit_has_fixed_positions_and_a_frozen_patch_projection():
    spec = moco_v3_recipe("imagenet-vit").backbone
    assert spec.name == "vit_base_patch16_224"
    tiny = create_backbone(spec.renamed("vit_tiny_patch16_224"), 224)
    assert not tiny.pos_embed.requires_grad and not tiny.patch_embed.proj.weight.requires_grad
    table = tiny.get_parameter("pos_embed")[0, 1:].view(14, 14, 192).double()
    assert not tiny.get_parameter("pos_embed")[0, 0].any()
    for row, column, k in ((0, 0, 0), (3, 5, 7), (13, 2, 47)):
        x, y = column * 10000 ** (-k / 48), row * 10000 ** (-k / 48)
        expected = torch.tensor([x, x, y, y], dtype=torch.float64)
        expected[::2], expected[1::2] = expected[::2].sin(), expected[1::2].cos()
        assert_close(table[row, column, k::48], expected, 1e-5)
    assert tiny(torch.rand(1, 3, 96, 96)).shape == (1, 192)  # local crops


def test_a_renamed_backbone_keeps_what_its_family_understands():
    spec = moco_v3_recipe("imagenet-vit").backbone
    assert spec.renamed("vit_small_patch16_224").options == spec.options
    resnet = spec.renamed("resnet18")
    assert resnet.options == {} and resnet.position == "default" and not resnet.freeze_patches


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"teacher_momentum": 1.5}, "teacher_momentum is 1.5"),
        ({"queue_size": 30}, "queue of 30 keys"),
    ],
)
def test_bad_options_are_one_sentence(options, says):
    with pytest.raises(UserError, match=says):
        learner_of(small(V2_RECIPES["textures"], **options))


def test_a_position_embedding_for_a_resnet_is_refused():
    with pytest.raises(UserError, match="for timm's ViTs; ResNet has neither"):
        create_backbone(type(moco_v3_recipe("imagenet").backbone)("resnet18", "cifar", position="sincos"), 32)
