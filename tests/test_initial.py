"""--init: a run that starts from weights which exist."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from saccade import train
from saccade.base.errors import UserError
from saccade.models.backbone import BackboneSpec, create_backbone
from saccade.models.layers import freeze, layers, slower_below
from tests.models.test_layouts import ROUNDED, built

SHORT = ["--recipe", "cifar10", "--method", "simclr", "--batch-size", "16", "--eval-every", "0"]
STILL = ["--lr", "1e-30"]  # a step that moves no weight


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A few images without labels."""
    file = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(file, images=np.random.default_rng(0).integers(0, 256, (48, 32, 32, 3), dtype=np.uint8))
    return ["--data", str(file)]


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    out = tmp_path_factory.mktemp("first") / "run"
    assert train.main([*SHORT, *data, "--backbone", "test_resnet", "--steps", "2", "--out", str(out)]) == 0
    return out


def weights(folder):
    """But for BatchNorm's statistics, which follow the batches."""
    found = load_file(folder / "backbone.safetensors")
    return {name: value for name, value in found.items() if "running" not in name and "num_batches" not in name}


def test_a_run_starts_from_a_runs_weights_and_resumes_without_them(run, data, tmp_path, capsys):
    first, out = tmp_path / "first", tmp_path / "run"
    shutil.copytree(run, first)
    flags = [*SHORT, *data, *STILL, "--init", str(first), "--steps", "2", "--checkpoint-every", "1", "--out", str(out)]
    assert train.main(flags) == 0
    assert f"from {first}" in capsys.readouterr().out
    for name, value in weights(first).items():
        torch.testing.assert_close(weights(out)[name], value, rtol=0, atol=0)
    before = (out / "backbone.safetensors").read_bytes()
    shutil.rmtree(first)
    max((out / "checkpoints").iterdir()).unlink()
    assert train.main(["--resume", str(out)]) == 0
    assert (out / "backbone.safetensors").read_bytes() == before


def test_an_authors_file_brings_its_stem_and_statistics(data, tmp_path):
    file, theirs = built("rsa_cifar.pth.tar", "encoder_q.", tmp_path)
    out = tmp_path / "run"
    assert train.main([*SHORT, *data, *STILL, "--init", str(file), "--steps", "1", "--out", str(out)]) == 0
    recipe = json.loads((out / "config.json").read_text())["recipe"]
    assert (recipe["backbone"]["name"], recipe["backbone"]["stem"]) == ("resnet18", "cifar")
    assert (tuple(recipe["views"]["mean"]), tuple(recipe["views"]["std"])) == ROUNDED
    for name, value in weights(out).items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=0)


def test_what_is_no_weights_is_refused_before_a_folder_is_made(data, tmp_path, capsys):
    out = tmp_path / "run"
    (tmp_path / "empty").mkdir()
    for flags, says in (
        (["--init", str(tmp_path / "nowhere")], "no such run folder or file of weights"),
        (["--init", str(tmp_path / "empty")], "no backbone can be loaded from it"),
        (["--init", ""], "--init is empty; give a folder, a file or timm"),
        (["--init", "/etc/passwd"], "cannot be read as weights"),
        (["--allow-changes"], "goes with --resume"),
        (["--set", "backbone.freeze=99"], "layers; give 0 to"),
        (["--set", "optimizer.layer_decay=0"], "above 0, up to 1"),
    ):
        assert train.main([*SHORT, *data, *flags, "--steps", "1", "--out", str(out)]) == 2
        assert says in capsys.readouterr().err
    assert not out.exists()


def test_frozen_layers_stay_and_others_move(run, data, tmp_path):
    out = tmp_path / "run"
    warm = ["--lr", "0.1", "--set", "schedule.options.warmup_epochs=0", "--set", "backbone.freeze=2"]
    assert train.main([*SHORT, *data, *warm, "--init", str(run), "--steps", "2", "--out", str(out)]) == 0
    found = layers(create_backbone(BackboneSpec("test_resnet"), 32), coarse=True)
    old, new = weights(run), weights(out)
    assert {found[n] for n in old if torch.equal(old[n], new[n])} == {0, 1}
    assert {found[n] for n in old if not torch.equal(old[n], new[n])} == set(found.values()) - {0, 1}


def test_the_rate_falls_by_the_layer():
    """ViT: embedding, 12 blocks, norm, as timm numbers them; what is no backbone keeps the whole rate."""
    backbone, head = create_backbone(BackboneSpec("vit_tiny_patch16_224"), 32), nn.Linear(192, 8)
    groups = slower_below([{"name": "a", "params": [*backbone.parameters(), *head.parameters()]}], backbone, 0.5)
    scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    assert scale[id(head.weight)] == 1
    top = scale[id(backbone.get_parameter("blocks.11.mlp.fc1.weight"))]
    assert scale[id(backbone.get_parameter("blocks.0.mlp.fc1.weight"))] == top * 0.5**11
    assert scale[id(backbone.get_parameter("patch_embed.proj.weight"))] == top * 0.5**12
    assert len(scale) == sum(1 for m in (backbone, head) for _ in m.parameters())
    with pytest.raises(UserError, match="leave out freezing"):
        freeze(nn.Linear(2, 2), 1)
