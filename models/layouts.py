"""Where other people's training code puts a backbone: a table of layouts, and the network that fits the weights.

A layout says more than names: `cifar` and `cifar-pad`, a plain stem and one without max-pool, have tensors of the same
shapes, and the pixels' mean and std are in no tensor at all; only who wrote the file tells them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from saccade.base.errors import UserError
from saccade.models.backbone import STEMS, BackboneSpec, check_backbone, create_backbone, is_resnet, load_backbone
from saccade.models.names import alexnet_names, resnet_names, torchvision_names, vit_names
from saccade.models.weights import read_weights, tensors

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
ROUNDED = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))  # as RSA's and CACR's code has it, for both CIFARs
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NONE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
HEADS = ("fc.", "head.", "heads.", "head_dist.", "classifier.", "decoder_", "mask_token", "projection_head.")
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "teacher", "model", "network", "student")
OUTER = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
FIRST = ("conv1.", "patch_embed.", "stem.", "cls_token", "layers.conv_0", "blocks.0.")  # how networks begin
PREFIXES = (
    *("", "backbone.", "model.", "timm_model.", "encoder.", "trunk.", "visual.", "base_model."),
    *("encoder_q.", "base_encoder.", "net.", "encoder_k.", "momentum_encoder."),
)
STATISTICS = tuple[tuple[float, float, float], tuple[float, float, float]]
LOOSE = ("conv1.weight", "pos_embed", "layers.fc6.weight")  # parameters whose shapes go with the size of the images
NETWORKS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "resnext50_32x4d"),
    *(f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")),
    *("vit_small_patch8_224", "vit_base_patch8_224", "vit_small_patch32_224", "vit_base_patch32_224"),
    *("convnext_tiny", "convnext_small", "convnext_base", "swin_tiny_patch4_window7_224", "small_alexnet"),
)


HUGGING, PATCHES = "Hugging Face's", "embeddings.patch_embeddings.projection."


@dataclass(frozen=True)
class Layout:
    """A row: `marks` are beginnings of names that must all be there; the weights are those behind `prefix`.

    stems: of a ResNet with a 3x3 and with a 7x7 stem, the likeliest first; small, large: mean and std of the pixels by
    the same two; classifier: beginning of the names of a classifier trained beside the backbone.
    """

    name: str
    marks: tuple[str, ...]
    prefix: str
    small_stems: tuple[str, ...] = ()
    large_stems: tuple[str, ...] = ("plain",)
    small: STATISTICS = CIFAR10
    large: STATISTICS = IMAGENET
    classifier: str | None = None
    heads: tuple[str, ...] = HEADS
    renamed: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None  # to timm's names, where they are others


LAYOUTS = (  # the first that fits
    Layout(
        "ReSA (winci-ai): the momentum encoder",
        ("encoder.", "projector.", "momentum_encoder.", "momentum_projector."),
        "momentum_encoder.",
        ("cifar-pad", "cifar-maxpool"),
    ),
    Layout("ReSSL (KyleZheng1997)", ("encoder_q.net.", "encoder_q.head."), "encoder_q.net."),
    Layout("RSA (tmllab)", ("encoder_q.", "encoder_q_head.", "pred."), "encoder_q.", ("cifar",), small=ROUNDED),
    *(
        Layout(
            f"{method} (NeuromorphicComputing/S-TEC, Lightning)",
            ("encoder.", "projection.model.", *mark),
            "encoder.",
            ("cifar", "cifar-maxpool"),
            ("plain", "no-maxpool"),
            NONE,
            NONE,
            "supervised_head.linear_layer.",
        )
        for method, mark in (("S-TEC", ("binned_prediction_model.",)), ("SimCLR", ("supervised_head.",)))
    ),
    Layout(
        "CACR's small networks (align_uniform)",
        ("blocks.0.0.weight", "blocks.5.1.weight", "blocks.7.0."),
        "blocks.",
        small=ROUNDED,
        large=ROUNDED,
        heads=("7.",),
        renamed=alexnet_names,
    ),
    Layout("MoCo v1 or v2, or CACR with a queue", ("encoder_q.", "queue"), "encoder_q."),
    Layout("MoCo v3, or CACR beside its momentum encoder", ("base_encoder.", "momentum_encoder."), "base_encoder."),
    Layout("DINO", ("backbone.", "head.last_layer."), "backbone."),
    Layout("SimSiam", ("encoder.", "predictor."), "encoder."),
    Layout(
        "lightly (a Sequential of torchvision's ResNet)",
        ("backbone.0.weight", "backbone.4.0."),
        "backbone.",
        renamed=torchvision_names,
    ),
    Layout("solo-learn", ("backbone.", "projector."), "backbone.", ("cifar-pad",)),
    Layout("VISSL", ("_feature_blocks.",), "_feature_blocks."),
    *(
        Layout(f"{HUGGING} {name}", (f"{task}{mark}", *also), task, large=statistics, renamed=renamed)
        for name, mark, also, tasks, statistics, renamed in (
            ("MAE", PATCHES, ("decoder.",), ("vit.",), IMAGENET, vit_names),
            ("DINOv2", PATCHES, ("encoder.layer.0.layer_scale1.",), ("",), IMAGENET, vit_names),
            ("DINOv2", PATCHES, (), ("dinov2.",), IMAGENET, vit_names),
            ("ViT", PATCHES, (), ("vit.", ""), HALF, vit_names),
            ("ResNet", "embedder.embedder.convolution.", (), ("resnet.", ""), IMAGENET, resnet_names),
        )
        for task in tasks
    ),
)


@dataclass(frozen=True)
class Foreign:
    """A backbone out of somebody's file, loaded and in eval mode. `said`: what was taken for granted, one line each."""

    backbone: nn.Module
    spec: BackboneSpec
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    layout: str
    classifier: Mapping[str, Tensor] = field(default_factory=dict)  # weight (C, D) and bias (C,), or empty
    said: tuple[str, ...] = ()


def load_foreign(path: Path, backbone: str | None = None, stem: str = "auto", image_size: int | None = None) -> Foreign:
    """The backbone in a file of weights that other code wrote. UserError, naming what it saw, where none is recognised.

    backbone: a timm name, where the weights alone do not tell; stem: one of STEMS, which must be possible for the
    layout; image_size: pixels, where it is not the network's own (a ViT's position embedding is resampled, and that is
    said).

    Sources: the authors' training scripts; MoCo, DINO, SimSiam, solo-learn, lightly, VISSL, transformers as they save.
    """
    if path.is_dir() and weights_in(path) == path:
        return _exported(path, image_size)
    path = weights_in(path)
    if backbone:
        check_backbone(backbone)
    found = read_weights(path)
    weights, layout, prefix, heads = _find(found, path)
    if layout and layout.renamed:
        weights = layout.renamed(weights)
    weights = {name: value for name, value in weights.items() if not name.startswith(heads)}
    name = backbone or _network(weights, path, prefix)
    small = _has_small_stem(weights)
    size = image_size or _image_size(name, weights, small)
    spec = BackboneSpec(name, _stem(layout, stem, small, found, name, path))
    model = create_backbone(spec, size)
    said = _fill(model, weights, path)
    mean, std = _statistics(layout, small, model)
    if layout and layout.name.startswith(HUGGING):
        told = _preprocessor(path)
        mean, std = told or (mean, std)
        said += () if told else (f"mean {mean} and std {std}: no preprocessor_config.json beside the file says others",)
    source = layout.name if layout else f"plain names behind {prefix!r}" if prefix else "timm's or torchvision's names"
    classifier = _part(_unwrapped(found)[0], layout.classifier) if layout and layout.classifier else {}
    return Foreign(model.eval(), spec, size, mean, std, source, classifier, said)


def weights_in(path: Path) -> Path:
    """The file itself, or the weights in a folder that transformers saved."""
    inner = path / "model.safetensors"
    return inner if inner.exists() and not (path / "backbone.json").exists() else path


def _preprocessor(path: Path) -> STATISTICS | None:
    """Mean and std as transformers keeps them beside its weights."""
    try:
        told = json.loads((path.parent / "preprocessor_config.json").read_text())
        mean, std = (tuple(float(v) for v in told[name]) for name in ("image_mean", "image_std"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return ((mean[0], mean[1], mean[2]), (std[0], std[1], std[2])) if len(mean) == len(std) == 3 else None


def _exported(folder: Path, image_size: int | None) -> Foreign:
    """What a run of ours left in its folder, for images of another size if need be."""
    _, said = load_backbone(folder)
    spec = BackboneSpec(said["architecture"], said["stem"], options=said["options"])
    size = image_size or said["image_size"]
    model = create_backbone(spec, size)
    lines = _fill(model, load_file(folder / "backbone.safetensors"), folder)
    return Foreign(model.eval(), spec, size, tuple(said["mean"]), tuple(said["std"]), "a run of ours", said=lines)


def _find(found: Mapping[str, Any], path: Path) -> tuple[dict[str, Tensor], Layout | None, str, tuple[str, ...]]:
    """The weights behind their prefix, the layout and the prefix. UserError if there are no tensors at all."""
    state, _ = _unwrapped(found)
    if not state:
        raise UserError(f"{path} holds no weights by name (it has {', '.join(map(str, list(found)[:8]))}).")
    for layout in LAYOUTS:
        if all(any(name.startswith(mark) for name in state) for mark in layout.marks):
            return _part(state, layout.prefix), layout, layout.prefix, layout.heads
    prefix = next((p for p in PREFIXES if any(name.startswith(p + mark) for name in state for mark in FIRST)), "")
    return _part(state, prefix), None, prefix, HEADS


def _unwrapped(found: Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """The tensors inside whatever a training script wrapped around them, without `module.`, and the wrapper's key."""
    inner: Any = found
    for key in ("classy_state_dict", "base_model", "model", "trunk"):
        inner = inner.get(key, {}) if isinstance(inner, Mapping) else {}
    nested = [("classy_state_dict", inner), *((key, found.get(key)) for key in WRAPPERS), ("", found)]
    key, state = next(((k, tensors(s)) for k, s in nested if isinstance(s, Mapping) and tensors(s)), ("", {}))
    for outer in OUTER:
        if state and all(name.startswith(outer) for name in state):
            state = {name.removeprefix(outer): value for name, value in state.items()}
    return state, key


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _has_small_stem(weights: Mapping[str, Tensor]) -> bool:
    first = weights.get("conv1.weight", weights.get("layers.conv_0.weight"))
    return first is not None and first.ndim == 4 and first.shape[-1] == 3


def _network(weights: Mapping[str, Tensor], path: Path, prefix: str) -> str:
    """The first of NETWORKS whose parameters are these, but for the stem and the number of positions."""
    shapes = {name: tuple(value.shape) for name, value in weights.items() if _told(name)}
    for name in NETWORKS:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0)
        own = {key: tuple(value.shape) for key, value in model.state_dict().items() if _told(key)}
        if shapes.items() >= own.items():
            return name
    seen = sorted({".".join(key.split(".")[:2]) for key in weights})[:8]
    behind = f" behind {prefix!r}" if prefix else ""
    raise UserError(
        f"{path}: no layout and no network of ours fits its weights{behind} (names begin with {', '.join(seen)}); give "
        "--backbone with the timm name, or save the backbone's own state_dict()."
    )


def _told(name: str) -> bool:
    return name not in LOOSE and not name.endswith("num_batches_tracked")


def _image_size(name: str, weights: Mapping[str, Tensor], small: bool) -> int:
    """Pixels of the images: 32 behind a 3x3 stem (64 where the small AlexNet's linear layer is wider), else timm's."""
    if name == "small_alexnet":
        return next((s for s in (32, 64) if _alexnet_width(s) == weights["layers.fc6.weight"].shape[1]), 32)
    config = timm.get_pretrained_cfg(name)
    own = config.input_size[-1] if config else 224
    return 32 if small else own


def _alexnet_width(size: int) -> int:
    with torch.device("meta"):
        return timm.create_model("small_alexnet", img_size=size).get_parameter("layers.fc6.weight").shape[1]


def _stem(layout: Layout | None, given: str, small: bool, found: Mapping[str, Any], name: str, path: Path) -> str:
    """The stem that the layout's author used; the caller's, where the layout allows it. UserError if none is told."""
    if given not in ("auto", *STEMS):
        raise UserError(f"--stem {given} is unknown; use auto or one of {', '.join(STEMS)}.")
    possible = (layout.small_stems if small else layout.large_stems) if layout else () if small else ("plain",)
    if not is_resnet(name):
        return given if given != "auto" else "plain"
    if given != "auto":
        if small != given.startswith("cifar") or (layout and possible and given not in possible):
            allowed = ", ".join(possible or [s for s in STEMS if s.startswith("cifar") == small])
            raise UserError(
                f"--stem {given}: {path} begins with {'a' if small else 'no'} 3x3 convolution; use {allowed}."
            )
        return given
    if not possible:
        raise UserError(
            f"{path} has a 3x3 stem, and nothing in it says which one: cifar, cifar-maxpool and cifar-pad "
            "have the same shapes and give other features; give --stem."
        )
    options = found.get("hyper_parameters")
    if isinstance(options, Mapping) and "maxpool1" in options:  # S-TEC's Lightning files say it
        pooled = ("cifar-maxpool", "plain") if options["maxpool1"] else ("cifar", "no-maxpool")
        return next((stem for stem in possible if stem in pooled), possible[0])
    return possible[0]


def _statistics(layout: Layout | None, small: bool, model: nn.Module) -> STATISTICS:
    if layout:
        return layout.small if small else layout.large
    own: Any = getattr(model, "pretrained_cfg", {})
    return (tuple(own.get("mean", IMAGENET[0])), tuple(own.get("std", IMAGENET[1])))


def _fitted(model: nn.Module, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A ViT's position embedding at the model's own number of patches (timm's resampling), and a line that says it."""
    old = weights.get("pos_embed")
    if old is None or not isinstance(model, VisionTransformer) or model.pos_embed is None:
        return weights, ()
    if old.shape == model.pos_embed.shape:
        return weights, ()
    tokens = model.num_prefix_tokens if model.pos_embed.shape[1] > model.patch_embed.num_patches else 0
    rows, columns = model.patch_embed.grid_size
    resample: Any = resample_abs_pos_embed  # which torch 2.11 types as a string
    new = resample(old, [rows, columns], num_prefix_tokens=tokens)
    patches = old.shape[1] - tokens
    line = f"position embedding resampled from {patches} to {rows * columns} patches (bicubic)"
    return {**weights, "pos_embed": new}, (line,)


def _fill(model: nn.Module, weights: dict[str, Tensor], path: Path) -> tuple[str, ...]:
    """Load all of them, or a UserError that counts what is missing or unknown; returns what must be said."""
    weights, said = _fitted(model, weights)
    own = model.state_dict()
    weights = {**{n: v for n, v in own.items() if n.endswith("num_batches_tracked")}, **weights}  # old files lack them
    missing, more = [n for n in own if n not in weights], [n for n in weights if n not in own]
    wrong = [n for n in own if n in weights and own[n].shape != weights[n].shape]
    if missing or more or wrong:
        facts = [f"{len(what)} {kind} ({', '.join(what[:3])})" for what, kind in
                 ((missing, "missing"), (more, "unknown"), (wrong, "of another shape")) if what]  # fmt: skip
        raise UserError(f"{path}: the weights are not those of the model: {'; '.join(facts)}; check --backbone.")
    model.load_state_dict(weights)
    return said
