"""The papers' ablations by name: each starts, and each means what its paper or its code says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from saccade.base.errors import UserError
from saccade.losses.registry import find_method, methods
from saccade.losses.resa import resa_assignment
from saccade.losses.ressl import ressl_loss
from saccade.pipelines.sources import ArraySource
from saccade.pipelines.sources.imbalance import imbalanced
from saccade.runs.config import resolve
from saccade.runs.flags import parse_flags
from saccade.runs.session import Session, start_accelerator
from tests.losses.method_checks import images_of, learner_of, small, trained_parts

EACH = [(name, a) for name, method in methods().items() for a in method.ablations]


def test_the_ablations_that_the_papers_print_have_names():
    names = {f"{method} {a.name}" for method, a in EACH}
    wanted = """ressl contrastive-teacher, ressl jitter-teacher, ressl grey-teacher, ressl no-flip-teacher,
        ressl strong, ressl weak-student, ressl t-teacher-0, resa no-sinkhorn, resa assign-embeddings,
        resa assign-momentum,
        rsa fixed-beta, byol aw, byol ww, stec bins-3, stec stop-gradient-0, stec stop-gradient-2, stec adam,
        stec no-last-norm, cacr imbalanced-linear, cacr imbalanced-exponential"""
    assert {" ".join(w.split()) for w in wanted.split(",")} <= names
    assert {f"cacr k{k}" for k in range(1, 9)} <= names and {f"cacr-queue k{k}" for k in range(1, 9)} <= names
    assert methods()["cacr-queue"].knows("imagenet22k") and methods()["cacr-queue"].knows("webvision")


def test_every_ablation_starts_for_two_steps(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (80, 32, 32, 3), dtype=np.uint8)
    source = ArraySource("noise", images, np.arange(80) % 10)
    accelerator = start_accelerator("cpu", "fp32")
    for name, ablation in EACH:
        written = ["--method", name, "--recipe", f"textures-{ablation.name}", "--backbone", "test_resnet"]
        flags = parse_flags([*written, "--batch-size", "4", "--steps", "2", "--device", "cpu"])
        config = resolve(flags, source, tmp_path)
        assert config.recipe.variant == ablation.name and ablation.summary in config.recipe.sources["ablation"]
        with Session(config, accelerator, source) as session:
            session.prepare()
            losses = [session.step(batch)["loss"] for _, batch in zip(range(2), session.pipeline, strict=False)]
        assert (len(session.source) < len(source)) == (config.recipe.imbalance != "none")
        assert len(losses) == 2 and all(loss.isfinite() for loss in losses), (name, ablation.name)


def test_an_unknown_ablation_is_answered_with_the_nearest(capsys):
    from saccade import train

    assert train.main(["--method", "resa", "--recipe", "cifar10-no-sinkhron"]) == 2
    assert "did you mean cifar10-no-sinkhorn?" in capsys.readouterr().err


def test_ressls_targets_at_temperature_0_are_the_nearest_key_of_each_image():
    q, k, queue = (torch.nn.functional.normalize(torch.randn(n, 6, dtype=torch.float64), dim=1) for n in (5, 5, 9))
    by_hand = 0.0
    for i in range(5):
        scores = [float(q[i] @ queue[j]) / 0.1 for j in range(9)]
        nearest = max(range(9), key=lambda j: float(k[i] @ queue[j]))
        by_hand -= (scores[nearest] - float(torch.tensor(scores, dtype=torch.float64).logsumexp(0))) / 5
    found = ressl_loss([q], k, queue.T, 0.1, 0.0)
    assert found.item() == pytest.approx(by_hand, rel=1e-12)
    assert ressl_loss([q], k, queue.T, 0.1, 1e-4).item() == pytest.approx(by_hand, rel=1e-6)  # and it is the limit


def test_resa_without_sinkhorn_is_a_softmax_of_each_row():
    h, taught = (torch.nn.functional.normalize(torch.randn(6, 4, dtype=torch.float64), dim=1) for _ in range(2))
    by_hand = torch.stack([(h[i] @ taught.T / 0.05).exp() for i in range(6)])
    torch.testing.assert_close(resa_assignment(h, taught, 0.05, 0), by_hand / by_hand.sum(1, keepdim=True))


def test_rsas_beta_stays_where_it_is_fixed():
    recipe = small(find_method("rsa").recipe("cifar10-fixed-beta", None))
    objective = learner_of(recipe).objective
    for step in (0, 4, 9):
        objective.begin_step(step)
        assert objective.beta == 0.5
    assert recipe.sources["ablation"].endswith("published: linear 91.5")


def test_byol_aw_shows_the_teacher_the_same_crops_in_their_own_colours():
    recipe = find_method("byol").recipe("cifar10-aw", None)
    objective = learner_of(small(recipe)).objective
    assert objective.student_views == ("aggressive_1", "aggressive_2")
    assert objective.teacher_views == ("weak_1", "weak_2")
    _, params = images_of(small(recipe))
    assert torch.equal(params["weak_1"].box, params["aggressive_1"].box)
    assert not recipe.views["weak_1"].operations and recipe.views["aggressive_1"].operations


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        (
            "stop-gradient-0",
            {"student.backbone", "student.projector", "objective.classifier", "objective.manipulation"},
        ),
        ("stop-gradient-2", {"objective.classifier"}),
    ],
)
def test_what_s_tecs_stop_gradient_lets_learn(name, trained):
    recipe = small(find_method("stec").recipe(f"cifar10-{name}", None))
    learner = learner_of(replace(recipe, views=recipe.views), classes=4).train()
    before = {k: v.clone() for k, v in learner.student.named_buffers()}
    learner(*images_of(recipe), torch.arange(8) % 4)["loss"].backward()
    assert trained_parts(learner) == trained
    still = all(torch.equal(v, dict(learner.student.named_buffers())[k]) for k, v in before.items())
    assert still == (name == "stop-gradient-2")  # the frozen backbone's statistics do not move either


def test_labels_reach_the_backbone_with_stop_gradient_0_alone():
    grads = []
    for value in (0, 1):
        recipe = small(find_method("simclr").recipe("cifar10", None), stop_gradient=value, contrast_weight=0.0)
        learner = learner_of(recipe, classes=4)
        learner(*images_of(recipe), torch.arange(8) % 4)["loss"].backward()
        grads.append(
            sum(float(p.grad.abs().sum()) for p in learner.student.backbone.parameters() if p.grad is not None)
        )
    assert grads[0] > 0 and grads[1] == 0


@pytest.mark.parametrize(("kind", "shares"), [("linear", lambda b: b / 10), ("exponential", lambda b: np.exp(b - 10))])
def test_imbalanced_sets_hold_the_codes_share_of_each_class(kind, shares):
    source = ArraySource("set", np.zeros((10_000, 4, 4, 3), np.uint8), np.arange(10_000) % 20)
    subset = imbalanced(source, kind)
    counts = np.bincount(np.asarray(subset.labels), minlength=20)
    assert counts.tolist() == [int(500 * shares(c // 2 + 1) + 1e-9) for c in range(20)]
    for labels in (None, np.array([*range(9), -1])):  # of none, of all but one
        with pytest.raises(UserError, match="images without a label"):
            imbalanced(ArraySource("bare", np.zeros((10, 4, 4, 3), np.uint8), labels), kind)
