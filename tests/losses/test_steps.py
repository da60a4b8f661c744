"""Training steps of the originals on tiny networks, through Objective and Learner: loss, teacher, queue, optimizer."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.losses.functional import normalise
from saccade.losses.ntxent import nt_xent
from saccade.losses.objective import Objective
from saccade.losses.recipe import TrainingRecipe
from saccade.losses.recipes.resa import resa_recipe
from saccade.losses.recipes.ressl import ressl_recipe
from saccade.losses.recipes.rsa import rsa_recipe
from saccade.losses.resa import ReSA, ReSAOptions
from saccade.losses.ressl import ReSSL, ReSSLOptions
from saccade.losses.rsa import RSA, RSAOptions
from saccade.losses.stec_targets import manipulation_loss
from saccade.models.learner import Learner
from saccade.models.optimizers import parameter_groups
from saccade.models.schedules import schedule
from tests.reference_values import assert_close, load_reference

STEPS = 1e-10  # the tolerance of float64 training sequences


HEADS = {"projector", "predictor"}


def _reference_name(ours: str, names: dict[str, str], hidden: dict[str, int]) -> str:
    """`projector.linear_0.weight` -> the reference's `<its projector>.0.weight`: linear, batch norm, ReLU repeat."""
    part, layer, rest = ours.split(".", 2)
    if part in HEADS:
        kind, _, number = layer.partition("_")
        place = 3 * (hidden[part] if number == "out" else int(number)) + (kind == "bn")
        layer = str(place)
    return f"{names[part]}.{layer}.{rest}"


def _load(module: nn.Module, r: dict, prefix: str, names: dict[str, str], hidden: dict[str, int]) -> None:
    module.load_state_dict({k: r[f"{prefix}/{_reference_name(k, names, hidden)}"] for k in module.state_dict()})


def _assert_state(module: nn.Module, r: dict, prefix: str, names: dict[str, str], hidden: dict[str, int]) -> None:
    for ours, value in module.state_dict().items():
        assert_close(value, r[f"{prefix}/{_reference_name(ours, names, hidden)}"], STEPS)


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def _encoder(d_in: int, d_out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(d_in, d_out), nn.BatchNorm1d(d_out), nn.ReLU())


def _learner(
    objective: type[Objective], recipe: TrainingRecipe, backbone: nn.Module, features: int, steps: int
) -> Learner:
    return Learner(backbone, objective(recipe, features, None, steps, steps)).double()


def _sgd(learner: Learner, rule: str, weight_decay: float, momentum: float, lr: float = 0.0) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameter_groups(learner.named_parameters(), rule, weight_decay), lr=lr, momentum=momentum)


def _step(learner: Learner, optimizer: torch.optim.Optimizer, step: int, views: dict[str, Tensor]) -> dict[str, Tensor]:
    """One optimizer step in the order of train.training_step; returns the losses."""
    learner.begin_step(step)
    losses = learner(views, {})
    losses["loss"].backward()
    optimizer.step()
    optimizer.zero_grad()
    learner.end_step()
    return losses


@pytest.mark.parametrize("name", ["resa_steps_cifar_nopred", "resa_steps_imagenet_pred"])
def test_reference_resa_training(name):
    r = load_reference(name)
    steps = int(r["n_steps"])
    options = ReSAOptions(
        float(r["temperature"]),
        float(r["sinkhorn_eps"]),
        int(r["sinkhorn_iters"]),
        "row",
        float(r["ema_schedule"][0]),
        projector_hidden=10,
        projector_dim=8,
        predictor_hidden=10 if "init/predictor.0.weight" in r else None,
    )
    recipe = replace(resa_recipe("cifar10"), options=options)
    learner = _learner(ReSA, recipe, _encoder(12, 16), 16, steps)
    names = {"backbone": "encoder", "projector": "projector", "predictor": "predictor"}
    taught = {"backbone": "momentum_encoder", "projector": "momentum_projector"}
    hidden = {"projector": 2, "predictor": 1}
    _load(learner.student, r, "init", names, hidden)
    _load(learner.teacher.network, r, "init", taught, hidden)
    optimizer = _sgd(learner, "all", float(r["weight_decay"]), float(r["sgd_momentum"]))
    for step in range(steps):
        assert_close(learner.objective.momentum(step), r["ema_schedule"][step], STEPS)
        _set_lr(optimizer, float(r["lr_schedule"][step]))
        losses = _step(learner, optimizer, step, {"weak": r[f"x_step{step}_view0"], "strong": r[f"x_step{step}_view1"]})
        assert_close(losses["loss"], r["losses"][step], STEPS)
        if step + 1 in (1, steps):
            _assert_state(learner.student, r, f"after_step{step + 1}", names, hidden)
            _assert_state(learner.teacher.network, r, f"after_step{step + 1}", taught, hidden)


def test_reference_rsa_training():
    r = load_reference("rsa_steps")
    d_in, d_enc, d_hidden, d_out = (int(r[k]) for k in ("d_in", "d_enc", "d_hidden", "d_out"))
    options = RSAOptions(float(r["tau_base"]), d_hidden, d_out, d_hidden, beta=float(r["beta_base"]))
    recipe = replace(rsa_recipe("cifar10"), options=options)
    learner = _learner(RSA, recipe, _encoder(d_in, d_enc), d_enc, int(r["max_step"]))
    names = {"backbone": "encoder_q", "projector": "encoder_q_head", "predictor": "pred"}
    taught, hidden = {"backbone": "encoder_k", "projector": "encoder_k_head"}, {"projector": 1, "predictor": 1}
    _load(learner.student, r, "init", names, hidden)
    _load(learner.teacher.network, r, "init", taught, hidden)
    optimizer = _sgd(learner, "all", float(r["weight_decay"]), float(r["sgd_momentum"]), float(r["lr"]))
    views = {"weak_1": "w1", "weak_2": "w2", "aggressive_1": "a1", "aggressive_2": "a2"}
    for step in range(int(r["n_steps"])):
        losses = _step(learner, optimizer, step, {ours: r[f"x_{view}_step{step}"] for ours, view in views.items()})
        assert_close(losses["loss"], r["loss"][step], STEPS)
        assert_close(losses["weak"], r["loss_weak_sum"][step], STEPS)
        assert_close(losses["aggressive"], r["loss_aggr_sum"][step], STEPS)
        if step + 1 in (1, 5):
            _assert_state(learner.student, r, f"after_step{step + 1}", names, hidden)
            _assert_state(learner.teacher.network, r, f"after_step{step + 1}", taught, hidden)


class _LinearReSSL(ReSSL):
    """The reference's network is one linear layer."""

    def projector(self) -> nn.Module:
        return nn.Linear(self.features, self.options.projector_dim)


def test_reference_ressl_training_with_a_queue_that_wraps():
    r = load_reference("ressl_queue_steps")
    per_epoch, batch = int(r["iters_per_epoch"]), len(r["x_student_step0"])
    options = ReSSLOptions(
        float(r["t_student"]),
        float(r["t_teacher"]),
        float(r["ema_m"]),
        projector_dim=int(r["D"]),
        queue_size=int(r["K"]),
    )
    recipe = replace(ressl_recipe("cifar10"), options=options, batch_size=batch)
    learner = _learner(_LinearReSSL, recipe, nn.Identity(), int(r["d_in"]), int(r["n_steps"]))
    student, teacher = learner.student.projector, learner.teacher.network.projector
    queue = learner.objective.queue
    for network in (student, teacher):
        network.load_state_dict({"weight": r["W_init"], "bias": r["b_init"]})
    queue.keys.copy_(r["queue_init"].t())
    optimizer = _sgd(learner, "name", float(r["wd_weight"]), float(r["sgd_momentum"]))
    lr = schedule(
        "warmup_cosine",
        float(r["base_lr"]),
        total_steps=int(r["epochs"]) * per_epoch,
        steps_per_epoch=per_epoch,
        warmup_epochs=int(r["warmup_epochs"]),
    )
    for step in range(int(r["n_steps"])):
        assert_close(lr(step), r["lr_used"][step], STEPS)
        _set_lr(optimizer, lr(step))
        views = {"contrastive": r[f"x_student_step{step}"], "weak": r[f"x_teacher_step{step}"]}
        assert_close(normalise(student(views["contrastive"])) @ queue.columns, r[f"logits_student_step{step}"], STEPS)
        losses = _step(learner, optimizer, step, views)
        assert_close(losses["loss"], r["losses"][step], STEPS)
        for letter, network in (("q", student), ("k", teacher)):
            assert_close(network.get_parameter("weight"), r[f"W_{letter}_after{step}"], STEPS)
            assert_close(network.get_parameter("bias"), r[f"b_{letter}_after{step}"], STEPS)
        assert_close(queue.columns, r[f"queue_after{step}"], STEPS)
        assert int(queue.pointer) == int(r[f"ptr_after{step}"])


def _stec_forward(p: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The stub encoder and the original's heads: features, unit embeddings, manipulation logits, class logits."""

    def batch_norm(x: Tensor, name: str) -> Tensor:
        return F.batch_norm(x, None, None, p[f"{name}__weight"], p.get(f"{name}__bias"), training=True)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, p[f"{name}__weight"], p.get(f"{name}__bias"))

    h = F.relu(images.flatten(1) @ p["encoder__w"])
    z = F.relu(batch_norm(linear(h, "projection__model__hidden"), "projection__model__bn_hidden"))
    z = normalise(batch_norm(linear(z, "projection__model__output"), "projection__model__bn_output"))
    head = "binned_prediction_model__model__"
    pairs = torch.cat(h.chunk(2), 1)
    m = linear(F.relu(batch_norm(linear(pairs, f"{head}linear_0"), f"{head}bn_0")), f"{head}linear_final")
    return h, z, m, linear(h.detach(), "supervised_head__linear_layer")


@pytest.mark.parametrize("name", ["stec_step_case1", "stec_step_case2", "stec_step_case4"])
def test_reference_stec_step_and_every_gradient(name):
    r = load_reference(name)
    p = {key.removeprefix("param__"): r[key].requires_grad_() for key in r if key.startswith("param__")}
    images, valid = torch.cat([r["img_i"], r["img_j"]]), None
    if "solarized_selection" in r:
        images = r["images_after_solarize"]
        valid = ~r["solarized_selection"].view(2, -1).any(0)
    _, z, m, classes = _stec_forward(p, images)
    discrimination, d_metrics = nt_xent(*z.chunk(2), float(r["temperature"]))
    manipulation, m_metrics = manipulation_loss(m, r["from_i_to_j"], valid)
    labels = r["labels"].repeat(2)
    supervised = F.cross_entropy(classes, labels)
    weights = (float(r[f"{part}_lambda"]) for part in ("discrimination", "manip", "supervised"))
    total = sum(w * part for w, part in zip(weights, (discrimination, manipulation, supervised), strict=True))
    total.backward()

    assert_close(total, r["loss_total_f64_independent"], 1e-10)
    assert_close(p["encoder__w"].grad, r["grad_encoder_w_f64_independent"], 1e-10)
    assert_close(manipulation, r["loss_manipulation"], 1e-12)
    assert_close(supervised, r["loss_supervised"], 1e-12)
    assert_close(discrimination, r["loss_discrimination"], 1e-6)  # the original computes it in float32
    assert_close(total, r["loss_total"], 1e-6)
    for key, parameter in p.items():
        expected = r[f"grad__{key}"]
        if expected.numel() == 0 or parameter.grad is None:
            assert parameter.grad is None or not parameter.grad.any()
            assert not expected.any()
        else:
            assert_close(parameter.grad, expected, 1e-6)
    assert_close(d_metrics["accuracy"], r["acc_discrimination"], 1e-6)
    assert_close(m_metrics["manipulation_accuracy"], r["acc_manipulation"], 1e-6)
    assert_close((classes.argmax(1) == labels).double().mean(), r["acc_supervised"], 1e-6)
