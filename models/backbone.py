"""Any timm backbone, with the stems that small images need. Returns pooled features (N, D)."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import saccade.models.small_alexnet  # noqa: F401  (timm learns its name)
from saccade.base import own
from saccade.base.errors import UserError, out_of_memory

LARGE_IMAGE = 160  # pixels; from here on tests show the central 224/256, as the ImageNet protocols do
SMALL_IMAGE = 64  # pixels; up to here a ResNet's stem is replaced unless the recipe says otherwise
STEMS = {
    "plain": "timm's own",
    "cifar": "3x3 stride 1, no max-pool",
    "cifar-maxpool": "3x3 stride 1, max-pool kept (ReSSL on STL-10 and Tiny-ImageNet)",
    "cifar-pad": "3x3 stride 1 behind one more pixel of zero padding, no max-pool: 34x34 maps (ReSA's own CIFAR runs)",
    "no-maxpool": "timm's own without the max-pool (S-TEC on STL-10)",
}
ENTRY_POINTS = "saccade.backbones"  # NAME = "package.module", a module that registers NAME with timm
RESIZE = "the centre square of crop_fraction of the short side, resized to image_size, antialiased"
FETCHING = ("checkpoint_path", "cache_dir")


@dataclass(frozen=True)
class BackboneSpec:
    """A timm name and what the recipe changes in it."""

    name: str
    stem: str = "auto"  # one of STEMS, or auto: cifar for a ResNet on small images, plain otherwise
    zero_init_last: bool | None = None  # last BatchNorm weight of every ResNet block starts at 0; None = timm's default
    conv_init: str = "default"  # "fan_in_half": normal, variance 1/fan_in (S-TEC)
    options: Mapping[str, object] = field(default_factory=dict)  # more arguments of timm.create_model
    position: str = "default"  # "sincos": a ViT's position embedding is the fixed 2-D sine-cosine one (MoCo v3)
    freeze: int = 0  # of the layers from the input on, a ResNet's stages or a ViT's blocks, stay as they start
    freeze_patches: bool = False  # a ViT's patch projection stays as initialised (MoCo v3's --stop-grad-conv1)

    def resolved(self, image_size: int) -> BackboneSpec:
        """The same with `stem` decided."""
        if self.stem != "auto":
            return self
        small = image_size <= SMALL_IMAGE and is_resnet(self.name)
        return replace(self, stem="cifar" if small else "plain")

    def of_channels(self, channels: int) -> BackboneSpec:
        """The same for images of that many channels."""
        return self if channels == 3 else replace(self, options={**self.options, "in_chans": channels})

    def renamed(self, name: str) -> BackboneSpec:
        """The same for another timm model; what only models of one family understand stays within the family."""
        if name == self.name:
            return self
        if _family(name) == _family(self.name):
            return replace(self, name=name, stem="auto")
        return replace(self, name=name, stem="auto", options={}, position="default", freeze_patches=False)


def create_backbone(spec: BackboneSpec, image_size: int) -> nn.Module:
    """The untrained backbone: (N, 3, image_size, image_size) -> (N, model.num_features); options in_chans: of other
    channels.

    Examples:
        >>> backbone = create_backbone(BackboneSpec("resnet18"), image_size=32)  # its stem is decided by the size
        >>> backbone.conv1.kernel_size, backbone(torch.zeros(2, 3, 32, 32)).shape
        ((3, 3), torch.Size([2, 512]))
    """
    check_backbone(spec.name)
    spec = spec.resolved(image_size)
    options = creation_options(spec, image_size)
    try:
        model = timm.create_model(spec.name, pretrained=False, num_classes=0, **options)
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"--backbone {spec.name} cannot be built for {image_size}-pixel images: {error}.") from error
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if patch and image_size % patch[0]:
        raise UserError(
            f"--backbone {spec.name} cuts patches of {patch[0]} pixels, which do not divide an image of "
            f"{image_size}; give --image-size {max(1, round(image_size / patch[0])) * patch[0]}."
        )
    if spec.stem != "plain":
        replace_stem(model, spec.stem)
    if spec.conv_init == "fan_in_half":
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=math.sqrt(1 / module.weight[0].numel()))
    if spec.position == "sincos" or spec.freeze_patches:
        fix_as_moco_v3(model, spec.position == "sincos", spec.freeze_patches)
    return model


def fix_as_moco_v3(model: nn.Module, position: bool, patches: bool) -> None:
    """Give a timm ViT MoCo v3's patch initialisation; `position`: its fixed positions; `patches`: frozen patches.

    Embedding: sines and cosines of x, then of y, each a quarter of the width, wavelengths 2 pi to 10000 * 2 pi; 0 for
    the class token. Source: Chen et al. 2021 (arXiv 2104.02057), facebookresearch/moco-v3.
    """
    if not isinstance(model, VisionTransformer) or model.pos_embed is None:
        raise UserError(
            f"a fixed position embedding and frozen patches are for timm's ViTs; {type(model).__name__} "
            "has neither; give --set backbone.position=default and --set backbone.freeze_patches=false."
        )
    projection = model.patch_embed.proj
    bound = math.sqrt(6 / (projection.weight[0].numel() + projection.out_channels))
    nn.init.uniform_(projection.weight, -bound, bound)
    nn.init.zeros_(projection.bias)
    if patches:
        projection.requires_grad_(False)
    if position:
        rows, columns = model.patch_embed.grid_size
        width = model.pos_embed.shape[-1]
        if width % 4:
            raise UserError(f"a sine-cosine position embedding needs a width that 4 divides, not {width}.")
        frequency = 10000.0 ** -(torch.arange(width // 4) / (width // 4))
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        angles = [place.flatten()[:, None] * frequency for place in (x, y)]
        table = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)
        with torch.no_grad():
            model.pos_embed.zero_()[0, model.pos_embed.shape[1] - len(table) :] = table
        model.pos_embed.requires_grad_(False)


def _harmless(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a model's shape; UserError for those by which timm would read a file or ask a hub for weights."""
    wrong = [name for name in options if name.startswith("pretrained") or name in FETCHING]
    if wrong:
        names = ", ".join(sorted(wrong))
        raise UserError(f"backbone options {names}: weights are not fetched by way of an option; leave it out.")
    return dict(options)


def creation_options(spec: BackboneSpec, image_size: int) -> dict[str, Any]:
    options = _harmless(spec.options)
    if spec.zero_init_last is not None and is_resnet(spec.name):
        options["zero_init_last"] = spec.zero_init_last
    if _takes_image_size(spec.name):
        options["img_size"] = image_size
    return options


def replace_stem(model: nn.Module, stem: str) -> nn.Module:
    """Give a timm ResNet one of STEMS in place, its new convolution freshly initialised. Returns the model.

    A backbone trained with a small-image stem loads in timm by
    `replace_stem(timm.create_model(name, num_classes=0), stem).load_state_dict(load_file("backbone.safetensors"))`.
    """
    if stem not in STEMS:
        raise UserError(f"the stem {stem!r} is unknown; use one of {', '.join(STEMS)}.")
    if stem == "plain":
        return model
    if not isinstance(model, ResNet):
        raise UserError(f"the stem {stem!r} is for timm's ResNets; {type(model).__name__} has only 'plain'.")
    if stem.startswith("cifar"):
        width = next(model.bn1.parameters()).numel()
        channels = next(model.conv1.parameters()).shape[1]
        model.conv1 = nn.Conv2d(channels, width, 3, stride=1, padding=2 if stem == "cifar-pad" else 1, bias=False)
    if stem != "cifar-maxpool":
        model.maxpool = nn.Identity()
    return model


def known_backbone(name: str) -> str:
    """timm's name of a model; path/to/file.py:NAME or package.module:NAME is executed first, and registers NAME there.

    Take such a place from the user alone, never from something received.
    """
    place, colon, wanted = own.split(name)
    if not colon or timm.is_model(name):
        return name
    own.load_code(place, f"--backbone {name}")
    if not timm.is_model(wanted):
        raise UserError(
            f"--backbone {name}: {place} registers no {wanted} (@timm.models.register_model above it does)."
        )
    return wanted


@cache
def _offered() -> dict[str, object]:
    """Names of backbones that installed packages offer, whose modules have registered them with timm when this ends."""
    return dict(own.offered(ENTRY_POINTS, _registered))


def _registered(module: object, place: str) -> object:
    return module


def check_backbone(name: str) -> None:
    """Raise UserError with the nearest names unless timm knows the model."""
    if not (timm.is_model(name) or name in _offered()):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise UserError(
            f"--backbone {name}: timm has no such model"
            + (f"; the nearest are {', '.join(near)}." if near else "; timm.list_models() names them.")
            + " One of your own: --backbone path/to/file.py:NAME."
        )


def load_backbone(folder: Path | str) -> tuple[nn.Module, dict]:
    """The backbone of a run folder (backbone.safetensors + backbone.json), in eval mode on the CPU: (N, 3, S, S) ->
    (N, D), and its description: architecture, image_size, mean and std of its input, method, data.

    Nothing in the folder is executed: where the architecture is of your own, import the module that registers it with
    timm before.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of a run or a backbone.")
    description_file, weights = folder / "backbone.json", folder / "backbone.safetensors"
    try:
        description = json.loads(description_file.read_text())
        name = description["architecture"]
        if not (timm.is_model(name) or name in _offered()):  # a hub's address is no model's name
            raise UserError(
                f"{folder}: timm has no such model as its {name}; if it is of your own, name the file that registers "
                f"it, --backbone path/to/file.py:{name} (in Python: import that first)."
            )
        options = _harmless(description["options"])
        content = weights.read_bytes()
        check_export(content, description)
        model = timm.create_model(name, pretrained=False, num_classes=0, **options)
        replace_stem(model, description["stem"])
        model.load_state_dict(load(content))
    except UserError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
        raise UserError(f"{folder}: no backbone can be loaded from it ({error}).") from error
    return model.eval(), description


def shown_share(image_size: int) -> float:
    """Share of an image's short side that its centre crop shows where nothing else is said."""
    return 224 / 256 if image_size >= LARGE_IMAGE else 1.0


def is_resnet(name: str) -> bool:
    return timm.is_model(name) and timm.models.model_entrypoint(name).__module__ == "timm.models.resnet"


def _family(name: str) -> str:
    """timm's module of the model, e.g. "resnet" or "vision_transformer"."""
    return timm.models.model_entrypoint(name).__module__.rpartition(".")[2]


def _takes_image_size(name: str) -> bool:
    return _family(name) in (
        "vision_transformer",
        "deit",
        "beit",
        "eva",
        "swin_transformer",
        "swin_transformer_v2",
        "volo",
        "cait",
        "xcit",
        "mlp_mixer",
        "vision_transformer_hybrid",
        "crossvit",
        "twins",
        "small_alexnet",
    )


def feature_size(model: nn.Module, image_size: int, channels: int = 3) -> int:
    """D of the (N, D) features, asked of the model itself: timm's num_features differs from it for some heads."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        try:
            device = next((p.device for p in model.parameters()), None)
            features = model(torch.zeros(1, channels, image_size, image_size, device=device))
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            raise UserError(f"the backbone cannot take {image_size}-pixel images: {error}.") from error
    model.train(was_training)
    if features.ndim != 2:
        raise UserError(f"the backbone gives features of shape {tuple(features.shape)}, not (N, D); choose another.")
    return features.shape[1]


def export_backbone(
    model: nn.Module, spec: BackboneSpec, image_size: int, description: Mapping[str, object]
) -> dict[str, bytes]:
    """The files backbone.safetensors (timm's own parameter names) and backbone.json, which `load_backbone` reads.

    With a plain stem `timm.create_model(architecture, num_classes=0, checkpoint_path=...)` loads the weights strictly;
    for other stems see `replace_stem`.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    described = {
        "architecture": spec.name,
        "stem": spec.stem,
        "options": creation_options(spec, image_size),
        "image_size": image_size,
        "resize": RESIZE,
        "crop_fraction": shown_share(image_size),
        "interpolation": "bilinear",
        **description,
    }
    content = save(weights)
    described["checksum"] = export_checksum(content, described)
    return {"backbone.safetensors": content, "backbone.json": (json.dumps(described, indent=2) + "\n").encode()}


def export_checksum(weights: bytes, description: Mapping[str, object]) -> str:
    """SHA-256 of the bytes of backbone.safetensors, then of what backbone.json says beside this checksum."""
    said = {name: value for name, value in description.items() if name != "checksum"}
    return hashlib.sha256(hashlib.sha256(weights).digest() + json.dumps(said, sort_keys=True).encode()).hexdigest()


def check_export(weights: bytes, description: Mapping[str, object]) -> None:
    """Raise ValueError if an export was changed after it was written; one of version 0.1 has no checksum."""
    if description.get("checksum") not in (None, export_checksum(weights, description)):
        raise ValueError(
            "its checksum is wrong: backbone.safetensors or backbone.json was changed after it was written; export or "
            'copy it again, or take the line "checksum" out of backbone.json if the change is yours'
        )
