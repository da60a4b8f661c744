"""Other libraries' names of a network's parameters, as timm's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

ALEXNET = {f"{i}.{j}.": f"layers.{kind}_{i}." for i in range(5) for j, kind in enumerate(("conv", "bn"))}
ALEXNET |= {"5.1.": "layers.fc6.", "5.2.": "layers.bn_fc6.", "6.0.": "layers.fc7.", "6.1.": "layers.bn_fc7."}
RESNET = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
VIT = (  # transformers' (4, then 5) to timm's
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.", ""),
    ("encoder.layer.", "blocks."),
    ("layers.", "blocks."),
    (".attention.output.dense.", ".attn.proj."),
    (".attention.o_proj.", ".attn.proj."),
    (".attention.attention.", ".attn."),
    (".attention.", ".attn."),
    ("q_proj.", "query."),
    ("k_proj.", "key."),
    ("v_proj.", "value."),
    (".layernorm_before.", ".norm1."),
    (".layernorm_after.", ".norm2."),
    (".intermediate.dense.", ".mlp.fc1."),
    (".output.dense.", ".mlp.fc2."),
    (".layer_scale1.lambda1", ".ls1.gamma"),
    (".layer_scale2.lambda1", ".ls2.gamma"),
    ("layernorm.", "norm."),
)


def alexnet_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """align_uniform's blocks.I.J. to those of small_alexnet: convolutions 0 to 4, then two linear layers."""
    renamed = {}
    for name, value in weights.items():
        old = ".".join(name.split(".")[:2]) + "."
        renamed[ALEXNET.get(old, old) + name.removeprefix(old)] = value
    return renamed


def torchvision_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """0.weight, 4.1.conv1.weight ... of Sequential(*resnet.children()) to conv1.weight, layer1.1.conv1.weight ..."""
    split = ((*name.partition("."), value) for name, value in weights.items())
    return {f"{RESNET.get(first, first)}.{rest}": value for first, _, rest, value in split}


def vit_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' ViT, MAE and DINOv2: query, key, value become one `qkv`; the pooler and the heads stay behind."""
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.startswith(("embeddings.", "encoder.layer.", "layers.", "layernorm.")) and "mask_token" not in name:
            for old, new in VIT:
                name = name.replace(old, new)
            found[name] = value
    for name in [n for n in found if ".attn.query." in n]:
        parts = [found.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        found[name.replace("query", "qkv")] = torch.cat(parts)
    return found


def resnet_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' ResNet: embedder, then encoder.stages.S.layers.B.layer.I, where B's shortcut is `downsample`."""
    found = {}
    for name, value in weights.items():
        words = name.replace("normalization", "bn").replace("convolution", "conv").split(".")
        if words[:2] == ["embedder", "embedder"]:
            found[".".join([f"{words[2]}1", *words[3:]])] = value
        elif words[:2] == ["encoder", "stages"]:
            stage, block, rest = f"layer{int(words[2]) + 1}", words[4], words[5:]
            if rest[0] == "shortcut":
                inner = ["downsample", "0" if rest[1] == "conv" else "1", *rest[2:]]
            else:
                inner = [f"{rest[2]}{int(rest[1]) + 1}", *rest[3:]]
            found[".".join([stage, block, *inner])] = value
    return found
