"""Files as the papers' own code and other libraries write them, against networks filled by hand."""

import argparse
import io
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from saccade.base.errors import UserError
from saccade.models.layouts import load_foreign
from saccade.models.weights import read_weights

LAYOUTS = json.loads((Path(__file__).parents[1] / "reference" / "layouts.json").read_text())


class AttributeDict(dict):
    """As Lightning's: a class of the writer's, which a reader must not need."""

    def __reduce_ex__(self, protocol):
        return AttributeDict, (), {}, None, iter(self.items())


def value(text, evaluated, generator):
    """A described tensor; one number stretched over its shape where it is not evaluated, so that files are small."""
    kind, _, shape = text.partition("[")
    sizes = [int(n) for n in shape.rstrip("]").split(",") if n.strip()]
    dtype = getattr(torch, kind)
    if not evaluated or not dtype.is_floating_point:
        return torch.zeros((), dtype=dtype).expand(sizes)
    return (
        torch.rand(sizes, generator=generator) * 0.1 + 0.01
        if len(sizes) < 2
        else torch.randn(sizes, generator=generator) * (2 / max(1, torch.Size(sizes[1:]).numel())) ** 0.5
    )


def built(name, prefix, folder):
    """The author's file with random weights behind `prefix`, and those weights."""
    generator = torch.Generator().manual_seed(len(name))

    def fill(described: Any) -> Any:
        if isinstance(described, dict):
            return {k: fill_named(k, v) for k, v in described.items()}
        return fill_named("", described)

    def fill_named(key: str, v: Any) -> Any:
        if isinstance(v, dict):
            return AttributeDict(fill(v)) if key == "hyper_parameters" else fill(v)
        if isinstance(v, str) and v.split("[")[0] in ("float32", "int64", "float16"):
            return value(v, key.startswith(prefix), generator)
        kind, _, text = v.partition(": ") if isinstance(v, str) else ("str", "", "")
        if kind in ("int", "float", "bool"):
            return {"int": int, "float": float, "bool": lambda t: t == "True"}[kind](text)
        return argparse.Namespace(text=text) if kind != "str" else text

    content = fill(LAYOUTS[name])
    file = folder / name
    torch.save(content, file)
    state = next((content[k] for k in ("state_dict", "model") if k in content), content)
    return file, {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def resnet(depth, stem):
    """torchvision's, with the author's stem put in by hand."""
    model = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    model.fc = nn.Identity()
    if stem != "plain":
        model.conv1 = nn.Conv2d(3, 64, 3, 1, 2 if stem == "cifar-pad" else 1, bias=False)
        model.maxpool = nn.Identity()
    return model


def alexnet():
    """CACR's small network, block by block, as its paper's table has it."""
    layers, width = [], 3
    for out, pooled in ((96, True), (192, True), (384, False), (384, False), (192, True)):
        layers.append(nn.Sequential(nn.Conv2d(width, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
                                    *([nn.MaxPool2d(3, 2)] if pooled else [])))  # fmt: skip
        width = out
    layers.append(nn.Sequential(nn.Flatten(), nn.Linear(1728, 4096, bias=False), nn.BatchNorm1d(4096), nn.ReLU()))
    layers.append(nn.Sequential(nn.Linear(4096, 4096, bias=False), nn.BatchNorm1d(4096), nn.ReLU()))
    return nn.Sequential(*layers)


IMAGENET, NONE = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
CIFAR, ROUNDED = (0.4914, 0.4822, 0.4465), ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
FILES = [  # file, prefix, heads to leave out, by hand, timm's name, stem, statistics
    ("resa_cifar.pth.tar", "module.momentum_encoder.", (), lambda: resnet(18, "cifar-pad"), "resnet18", "cifar-pad",
     (CIFAR, (0.2470, 0.2435, 0.2616))),
    ("resa.pth.tar", "module.momentum_encoder.", (), lambda: resnet(50, "plain"), "resnet50", "plain", IMAGENET),
    ("ressl-200.pth", "module.encoder_q.net.", (), lambda: resnet(50, "plain"), "resnet50", "plain", IMAGENET),
    ("rsa_cifar.pth.tar", "encoder_q.", (), lambda: resnet(18, "cifar"), "resnet18", "cifar", ROUNDED),
    ("rsa_in.pth.tar", "module.encoder_q.", (), lambda: resnet(50, "plain"), "resnet50", "plain", IMAGENET),
    ("resnet18_stec_cifar100.ckpt", "encoder.", ("fc.",), lambda: resnet(18, "cifar"), "resnet18", "cifar", NONE),
    ("cacr_small.pth", "blocks.", ("7.",), alexnet, "small_alexnet", "plain", ROUNDED),
    ("cacr_queue_r50.pth.tar", "module.encoder_q.", ("fc.",), lambda: resnet(50, "plain"), "resnet50", "plain",
     IMAGENET),
    ("cacr_r50.pth.tar", "module.base_encoder.", ("fc.",), lambda: resnet(50, "plain"), "resnet50", "plain", IMAGENET),
    ("cacr_vit_b.pth.tar", "module.base_encoder.", ("head.",),
     lambda: timm.create_model("vit_base_patch16_224", num_classes=0), "vit_base_patch16_224", "plain", IMAGENET),
]  # fmt: skip


QUICK = ("resa_cifar", "ressl", "rsa_cifar", "resnet18_stec", "cacr_small")
ROWS = [pytest.param(*row, id=row[0], marks=() if row[0].startswith(QUICK) else pytest.mark.slow) for row in FILES]


@pytest.mark.parametrize(("name", "prefix", "heads", "by_hand", "network", "stem", "statistics"), ROWS)
def test_an_authors_file_gives_the_features_of_a_network_filled_by_hand(
    tmp_path, name, prefix, heads, by_hand, network, stem, statistics
):
    file, weights = built(name, prefix, tmp_path)
    found = load_foreign(file)
    assert (found.spec.name, found.spec.stem, (found.mean, found.std)) == (network, stem, statistics)
    expected = by_hand().eval()
    expected.load_state_dict({k: v for k, v in weights.items() if not k.startswith(heads)} if heads else weights)
    size = 32 if found.image_size == 32 else 224 if "vit" in network else 64
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, features = expected(images), found.backbone(images)
    assert wanted.std() > 0
    torch.testing.assert_close(features, wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))


def as_moco(s):
    return {"epoch": 3, "state_dict": {f"module.encoder_q.{k}": v for k, v in s.items()} | {
        "module.queue": torch.zeros(1), "module.encoder_q.fc.0.weight": torch.zeros(2, 512)}}  # fmt: skip


def as_lightly(s):
    order = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    split = [(*k.partition("."), v) for k, v in s.items()]
    return {
        "state_dict": {f"backbone.{order[a]}.{b}": v for a, _, b, v in split},
        "hyper_parameters": AttributeDict(x=1),
    }


OTHERS = {
    "MoCo": as_moco,
    "DINO": lambda s: {
        "student": {}, "args": argparse.Namespace(arch="resnet18"),
        "teacher": {f"backbone.{k}": v for k, v in s.items()} | {"head.last_layer.weight_g": torch.zeros(2, 1)},
    },
    "SimSiam": lambda s: {"state_dict": {f"module.encoder.{k}": v for k, v in s.items()}
                          | {"module.predictor.0.weight": torch.zeros(2, 2)}},
    "solo-learn": lambda s: {"state_dict": {f"backbone.{k}": v for k, v in s.items()}
                             | {"projector.0.weight": torch.zeros(2, 2), "classifier.weight": torch.zeros(2, 512)}},
    "lightly": as_lightly,
    "VISSL": lambda s: {"classy_state_dict": {"base_model": {"model": {
        "trunk": {f"_feature_blocks.{k}": v for k, v in s.items()}, "heads": {}}}}},
    "behind 'timm_model.'": lambda s: {f"timm_model.{k}": v for k, v in s.items()},
    "torchvision's names": lambda s: {**s, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)},
}  # fmt: skip


@pytest.mark.parametrize("layout", OTHERS)
def test_other_libraries_files_are_recognised(tmp_path, layout):
    expected = resnet(18, "plain").eval()
    torch.save(OTHERS[layout](expected.state_dict()), tmp_path / "theirs.pth")
    found = load_foreign(tmp_path / "theirs.pth")
    assert layout in found.layout and (found.spec.name, found.spec.stem) == ("resnet18", "plain")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(found.backbone(images), expected(images), rtol=1e-5, atol=1e-5)


def saved_by_transformers(kind, folder):
    """(the folder, features of the saved model for images) of a model of theirs with random weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small: dict[str, float] = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3}
    small |= {"intermediate_size": 768, "layer_norm_eps": 1e-6}  # theirs of 1e-12 shows on random weights
    if kind == "ResNet":
        config = transformers.ResNetConfig(
            layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], embedding_size=64
        )
        model = transformers.ResNetForImageClassification(config)
        features = lambda x: model.resnet(x).pooler_output.flatten(1)  # noqa: E731
    elif kind == "DINOv2":
        config = transformers.Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=56)
        model = transformers.Dinov2Model(config)
        features = lambda x: model(x).last_hidden_state[:, 0]  # noqa: E731
    elif kind == "MAE":
        model = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**small, mask_ratio=0.0))
        encoder = transformers.ViTModel(transformers.ViTConfig(**small), add_pooling_layer=False).eval()
        encoder.load_state_dict({k.removeprefix("vit."): v for k, v in model.state_dict().items() if k[:4] == "vit."})
        features = lambda x: encoder(x).last_hidden_state[:, 0]  # noqa: E731
    else:
        bare = kind == "ViT, bare"
        config = transformers.ViTConfig(**small)
        model = transformers.ViTModel(config) if bare else transformers.ViTForImageClassification(config)
        inner = model if bare else model.vit
        features = lambda x: inner(x).last_hidden_state[:, 0]  # noqa: E731
    model.eval().save_pretrained(folder)
    return folder, features


@pytest.mark.parametrize("kind", ["ViT", "ViT, bare", "MAE", "DINOv2", "ResNet"])
def test_what_transformers_saved_gives_its_own_features(tmp_path, kind):
    folder, features = saved_by_transformers(kind, tmp_path / "theirs")
    size, network = (56, "vit_small_patch14_dinov2") if kind == "DINOv2" else (224, None)
    found = load_foreign(folder, network, image_size=size)
    assert found.layout == f"Hugging Face's {kind.partition(',')[0]}" and len(found.said) == 1
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(found.backbone(images), features(images), rtol=1e-4, atol=1e-4)


def test_the_statistics_that_transformers_keeps_beside_its_weights_are_taken(tmp_path):
    folder, _ = saved_by_transformers("ResNet", tmp_path / "theirs")
    assert load_foreign(folder).mean == IMAGENET[0]
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}')
    found = load_foreign(folder)
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)) and not found.said
    (folder / "preprocessor_config.json").write_text("[[")
    assert load_foreign(folder).mean == IMAGENET[0]


def test_a_small_stem_that_nothing_tells_is_asked_for(tmp_path):
    torch.save(resnet(18, "cifar").state_dict(), tmp_path / "bare.pth")
    with pytest.raises(UserError, match=r"3x3 stem.*cifar, cifar-maxpool and cifar-pad.*--stem"):
        load_foreign(tmp_path / "bare.pth")
    assert load_foreign(tmp_path / "bare.pth", stem="cifar-pad").spec.stem == "cifar-pad"
    with pytest.raises(UserError, match="--stem plain"):
        load_foreign(tmp_path / "bare.pth", stem="plain")


def test_a_stem_that_the_authors_never_used_is_refused(tmp_path):
    file, _ = built("rsa_cifar.pth.tar", "encoder_q.", tmp_path)
    with pytest.raises(UserError, match=r"--stem cifar-pad: .*use cifar\."):
        load_foreign(file, stem="cifar-pad")


@pytest.mark.parametrize(("kernel", "maxpool", "stem"), [(3, False, "cifar"), (3, True, "cifar-maxpool"),
                                                         (7, False, "no-maxpool"), (7, True, "plain")])  # fmt: skip
def test_a_lightning_files_own_options_tell_its_stem(tmp_path, kernel, maxpool, stem):
    state = {f"encoder.{k}": v for k, v in resnet(18, "cifar" if kernel == 3 else "plain").state_dict().items()}
    state |= {"projection.model.hidden.weight": torch.zeros(2, 2), "binned_prediction_model.x": torch.zeros(1)}
    torch.save({"state_dict": state, "hyper_parameters": AttributeDict(maxpool1=maxpool)}, tmp_path / "a.ckpt")
    assert load_foreign(tmp_path / "a.ckpt").spec.stem == stem


def test_positions_of_another_image_size_are_resampled_and_said(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    found = load_foreign(tmp_path / "vit.pth", image_size=96)
    assert found.said == ("position embedding resampled from 196 to 36 patches (bicubic)",)
    from timm.models.vision_transformer import checkpoint_filter_fn

    small: Any = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=96)
    expected = checkpoint_filter_fn(model.state_dict(), small)["pos_embed"]
    torch.testing.assert_close(found.backbone.get_parameter("pos_embed").data, expected)


def test_weights_of_nothing_we_know_name_what_was_seen(tmp_path):
    torch.save({"tower.up.weight": torch.zeros(2), "tower.down.weight": torch.zeros(2)}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"names begin with tower\.down, tower\.up.*--backbone"):
        load_foreign(tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"2 unknown \(tower"):
        load_foreign(tmp_path / "a.pth", backbone="resnet18")


WHOLE = io.BytesIO()
torch.save({"state_dict": {"conv1.weight": torch.zeros(2, 3)}, "args": argparse.Namespace(x=1)}, WHOLE)
TABLE = safetensors.torch.save({"conv1.weight": torch.zeros(2, 3)})


@given(
    st.sampled_from([WHOLE.getvalue(), TABLE, b"root:x:0:0"]),
    st.data(),
    st.sampled_from(["pth", "ckpt", "safetensors"]),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_weights_or_one_sentence(tmp_path, whole, data, ending):
    content = bytearray(whole)
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    file = tmp_path / f"theirs.{ending}"
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with suppress(UserError):
        load_foreign(file, backbone="resnet18")


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran-it",)


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_that_a_file_names_is_run(tmp_path, monkeypatch, legacy):
    monkeypatch.chdir(tmp_path)
    state = resnet(18, "plain").state_dict()
    torch.save({"state_dict": state, "evil": Evil()}, "evil.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"evil\.pth cannot be read as weights"):
        read_weights(Path("evil.pth"))
    assert not Path("ran-it").exists()


def test_a_classifier_beside_the_backbone_is_evaluated(tmp_path, capsys):
    """S-TEC's own file: `eval.py FILE --protocol stec-online` gives what its two parts give by hand."""
    import numpy as np

    from saccade import eval as program

    file, weights = built("resnet18_stec_cifar100.ckpt", "encoder.", tmp_path)
    content = read_weights(file)["state_dict"]
    head = torch.randn(100, 512, generator=torch.Generator().manual_seed(3))
    torch.save({"state_dict": {**content, "supervised_head.linear_layer.weight": head}}, file)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    model = resnet(18, "cifar").eval()
    model.load_state_dict({k: v for k, v in weights.items() if not k.startswith("fc.")})
    with torch.no_grad():
        scores = model(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255.0) @ head.T
    labels = scores.argmax(1).numpy()
    labels[:10] = (labels[:10] + 1) % 100
    np.savez(tmp_path / "images.npz", images=pixels, labels=labels)
    images = str(tmp_path / "images.npz")
    assert program.main([str(file), "--protocol", "stec-online", "--data", images, "--val-data", images]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed.splitlines()[-1])["top1"] == 75.0 and "S-TEC (NeuromorphicComputing" in printed
