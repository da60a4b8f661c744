"""LARS as the four papers use it, and the rules that say which parameters decay and adapt."""

# torch._foreach_* is what torch's own optimizers are written in, though not exported:
# pyright: reportPrivateImportUsage=false
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from saccade.base.errors import UserError

RULES = ("all", "ndim", "name")
NORMS = ("separate", "decayed")


class LARS(torch.optim.Optimizer):
    """d = (g + wd p) * trust |p| / denominator; buffer = momentum * buffer + d; p -= lr * buffer.

    A group whose `trust_coefficient` is None is plain SGD with momentum and decay. `norm` names the denominator:
    "separate": |g| + wd |p| + eps (lightning-bolts, S-TEC), where a tensor is neither decayed nor scaled if wd, |p| or
    |g| is 0; "decayed": |g + wd p| (MoCo v3, RSA, CACR-C), where the scale is 1 if either norm is 0. The rate stays
    outside the momentum buffer; no Nesterov. As torch's fused optimizers it changes nothing where `found_inf`, a
    number on the device, is 1. Source: You et al. 2017 (arXiv 1708.03888).
    """

    def __init__(
        self,
        params: Iterable,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float | None = 0.001,
        eps: float = 1e-8,
        norm: str = "separate",
    ) -> None:
        if norm not in NORMS:
            raise UserError(f"LARS norm is {norm!r}; choose one of {', '.join(NORMS)}")
        for name, value in {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eps": eps}.items():
            if value < 0:
                raise UserError(f"LARS {name} is {value}; it must be 0 or above")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"trust_coefficient": trust_coefficient, "eps": eps, "norm": norm})

    found_inf: Tensor | None = None
    _step_supports_amp_scaling = True  # torch's GradScaler then sets found_inf, and waits for nothing

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        """One update of every parameter that has a gradient; gradients are left as they were."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(group, params)
        return loss

    def _update(self, group: dict, params: list[Tensor]) -> None:
        buffers = []
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers.append(self.state[p]["momentum_buffer"])
        torch._fused_sgd_(
            params,
            _directions(group, params, [p.grad for p in params if p.grad is not None]),
            buffers,
            weight_decay=0.0,
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
            grad_scale=None,
            found_inf=self.found_inf,
        )


def _directions(group: dict, params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    """What enters the momentum buffers: decayed and, with a trust coefficient, scaled gradients."""
    decay, trust = group["weight_decay"], group["trust_coefficient"]
    decayed = list(torch._foreach_add(grads, params, alpha=decay)) if decay else grads
    if trust is None or (group["norm"] == "separate" and not decay):
        return decayed
    p_norm = torch.stack(torch._foreach_norm(params))
    if group["norm"] == "decayed":
        g_norm = torch.stack(torch._foreach_norm(decayed))
        scale = trust * p_norm / g_norm
    else:
        g_norm = torch.stack(torch._foreach_norm(grads))
        scale = trust * p_norm / (g_norm + decay * p_norm + group["eps"])
    adapts = (p_norm > 0) & (g_norm > 0)
    scaled = torch._foreach_mul(decayed, list(torch.where(adapts, scale, 1.0).unbind()))
    if group["norm"] == "decayed":
        return list(scaled)
    # p or g is all zeros: bolts leaves the gradient as it is, without decay
    return [torch.where(a, s, g) for a, s, g in zip(adapts.unbind(), scaled, grads, strict=True)]


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    rule: str,
    weight_decay: float,
    *,
    trust_coefficient: float | None = None,
    classifier: str | None = None,
) -> list[dict]:
    """Groups "adapted" (decay, trust), "excluded" (neither), "classifier" (decay, no trust); empty ones are left out.

    rule: "all" excludes nothing (ReSA; RSA and ReSSL on small sets); "ndim" excludes tensors of one dimension or none
    (RSA on ImageNet, MoCo v3); "name" excludes names that contain "bias" or "bn" (S-TEC, ReSSL on ImageNet), which
    decays the gamma of timm's and torchvision's `downsample.1.weight` as the originals do. `classifier`: the name
    prefix of the online classifier, trained by plain SGD, whose bias still follows the rule (S-TEC). Parameters that
    need no gradient are left out. With `trust_coefficient` every group says its own (None outside "adapted"), for LARS;
    without, none mentions it.
    """
    if rule not in RULES:
        raise UserError(f"parameter rule is {rule!r}; choose one of {', '.join(RULES)}")
    members: dict[str, list[nn.Parameter]] = {"adapted": [], "excluded": [], "classifier": []}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        by_ndim = rule == "ndim" and parameter.ndim <= 1
        by_name = rule == "name" and ("bias" in name or "bn" in name)
        if by_ndim or by_name:
            members["excluded"].append(parameter)
        elif classifier is not None and name.startswith(classifier):
            members["classifier"].append(parameter)
        else:
            members["adapted"].append(parameter)
    if classifier is not None and not members["classifier"]:
        raise UserError(f"no trainable parameter's name starts with the classifier's {classifier!r}")
    groups = []
    for name, parameters in members.items():
        group = {"name": name, "params": parameters, "weight_decay": 0.0 if name == "excluded" else weight_decay}
        if trust_coefficient is not None:
            group["trust_coefficient"] = trust_coefficient if name == "adapted" else None
        groups.append(group)
    return [group for group in groups if group["params"]]
