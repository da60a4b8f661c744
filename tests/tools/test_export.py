"""saccade export: what each library reads back, by the lines of the model card, is the network that went in."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from saccade.base.errors import UserError
from saccade.evaluation.classifier import Classifier, write_classifier
from saccade.models.backbone import BackboneSpec, create_backbone, export_backbone, load_backbone
from saccade.tools import predict
from saccade.tools.export import main
from saccade.tools.exporting import formats

MEAN, STD, SIZE, CLASSES = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), 32, ("ant", "bee", "cat")
PIXELS = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


PLAIN = BackboneSpec("test_resnet", "plain")


def made(folder: Path, spec=PLAIN, tuned=True) -> tuple[Path, dict[str, torch.Tensor]]:
    """A run folder, fine-tuned or not, and what its network says of PIXELS, by hand."""
    folder.mkdir()
    torch.manual_seed(0)
    for name, content in export_backbone(create_backbone(spec, SIZE), spec, SIZE, {"mean": MEAN, "std": STD}).items():
        (folder / name).write_bytes(content)
    with torch.no_grad():
        shown = (PIXELS - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        features = load_backbone(folder)[0](shown)
        if not tuned:
            return folder, {"features": features}
        weight, bias = torch.randn(3, features.shape[1]), torch.randn(3)
        write_classifier(folder, Classifier(weight, bias, CLASSES, 2.0))
        return folder, {"features": features, "logits": (features @ weight.T + bias) / 2}


def card_names(folder: Path, monkeypatch) -> dict:
    """The names that the Python of the model card makes, run in its folder."""
    monkeypatch.chdir(folder)
    *_, code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    names = {"pixels": PIXELS.numpy()}
    exec(code, names)
    return names


def close(found, wanted):
    torch.testing.assert_close(torch.as_tensor(found).detach(), wanted, rtol=1e-5, atol=1e-5)


def shown(pixels):
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@pytest.mark.slow  # torch.onnx.export takes 6 s
def test_onnxruntime_reads_the_network_its_preprocessing_and_its_classes(tmp_path, monkeypatch):
    folder, wanted = made(tmp_path / "run", BackboneSpec("test_resnet", "cifar"))
    assert main([str(folder), "--to", "onnx"]) == 0
    names = card_names(folder / "exports/onnx", monkeypatch)
    for name, value in wanted.items():
        close(names["outputs"][name], value)
    assert names["preprocessing"]["std"] == list(STD) and names["preprocessing"]["image_size"] == SIZE
    assert json.loads(names["session"].get_modelmeta().custom_metadata_map["classes"]) == list(CLASSES)


def test_torchscript_needs_no_code_of_ours(tmp_path, monkeypatch):
    folder, wanted = made(tmp_path / "run", BackboneSpec("test_resnet", "cifar"))
    assert main([str(folder), "--to", "torchscript"]) == 0
    names = card_names(folder / "exports/torchscript", monkeypatch)
    for found, value in zip(names["outputs"], wanted.values(), strict=True):
        close(found, value)
    assert names["preprocessing"]["mean"] == list(MEAN) and json.loads(names["extra"]["classes"]) == list(CLASSES)


@pytest.mark.parametrize(
    ("stem", "tuned"),
    [("cifar", True), *(pytest.param(*case, marks=pytest.mark.slow) for case in (("plain", False), ("no-maxpool", 1)))],
)
def test_torchvisions_resnet_takes_the_weights(tmp_path, monkeypatch, stem, tuned):
    folder, wanted = made(tmp_path / "run", BackboneSpec("resnet18", stem), tuned)
    assert main([str(folder), "--to", "torchvision", "--out", str(tmp_path / "out")]) == 0
    model = card_names(tmp_path / "out", monkeypatch)["model"].eval()
    close(model(shown(PIXELS)), wanted["logits" if tuned else "features"])
    assert json.loads((tmp_path / "out/preprocessing.json").read_text())["classes"] == (list(CLASSES) if tuned else [])


@pytest.mark.parametrize("tuned", [True, False])
@pytest.mark.parametrize("spec", [BackboneSpec("test_resnet", "plain"), BackboneSpec("test_vit", "plain")])
def test_timm_makes_it_from_its_folder(tmp_path, monkeypatch, spec, tuned):
    folder, wanted = made(tmp_path / "run", spec, tuned)
    assert main([str(folder), "--to", "timm"]) == 0
    names = card_names(folder / "exports/timm", monkeypatch)
    close(names["model"](shown(PIXELS)), wanted["logits" if tuned else "features"])
    found = timm.data.resolve_model_data_config(names["model"])
    assert [tuple(found[name]) for name in ("input_size", "mean", "std")] == [(3, SIZE, SIZE), MEAN, STD]
    assert (found["crop_pct"], found["interpolation"]) == (1.0, "bilinear")
    if tuned:
        assert json.loads((folder / "exports/timm/config.json").read_text())["label_names"] == list(CLASSES)


@pytest.mark.slow  # importing transformers takes 3 s
def test_transformers_reads_the_same_folder(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    folder, wanted = made(tmp_path / "run")
    assert main([str(folder), "--to", "hf-folder", "--licence", "cc-by-4.0"]) == 0
    out = folder / "exports/hf-folder"
    names = card_names(out, monkeypatch)
    close(names["model"](shown(PIXELS)).pooler_output.flatten(1), wanted["features"])
    classifier = transformers.AutoModelForImageClassification.from_pretrained(out).eval()
    close(classifier(shown(PIXELS)).logits, wanted["logits"])
    assert classifier.config.id2label == dict(enumerate(CLASSES))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
    close(names["processor"](image)["pixel_values"][0], shown(torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255))
    assert (out / "README.md").read_text().startswith("---\nlicense: cc-by-4.0\nlibrary_name: timm\n")


LARGER = [pytest.param(size, marks=pytest.mark.slow) for size in ((40, 57), (300, 301))]


@pytest.mark.parametrize("size", [(90, 61), *LARGER])
def test_a_photo_by_the_cards_own_code_is_what_predict_says(tmp_path, monkeypatch, size):
    folder, _ = made(tmp_path / "run", BackboneSpec("test_resnet", "plain"))
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    (tmp_path / "photos").mkdir()
    photo.getexif()[0x0112] = 6  # lies on its side
    photo.save(tmp_path / "photos" / "photo.jpg", exif=photo.getexif())
    out = tmp_path / "found.csv"
    assert predict.main([str(tmp_path / "photos"), "--from", str(folder), "--out", str(out), "--workers", "1"]) == 0
    assert main([str(folder), "--to", "torchscript"]) == 0
    monkeypatch.chdir(tmp_path / "photos")
    names = {}
    for code in re.findall(r"```python\n(.*?)```", (folder / "exports/torchscript/README.md").read_text(), re.DOTALL):
        exec(code.replace('folder = "."', f"folder = {str(folder / 'exports/torchscript')!r}"), names)
    shares = names["outputs"][1].softmax(1)[0]
    _, label, confidence = out.read_text().splitlines()[1].split(",")
    assert label == CLASSES[int(shares.argmax())] and float(confidence) == pytest.approx(float(shares.max()), abs=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_a_photographic_size_goes_to_every_format(tmp_path, monkeypatch, name):
    pytest.importorskip("transformers")
    pixels = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    monkeypatch.setitem(globals(), "SIZE", 224)
    monkeypatch.setitem(globals(), "PIXELS", pixels)
    folder, wanted = made(tmp_path / "run", BackboneSpec(name, "plain"))
    found = {}
    for kind in ("onnx", "torchscript", "timm", "hf-folder"):
        assert main([str(folder), "--to", kind]) == 0
        found[kind] = card_names(folder / "exports" / kind, monkeypatch)
    close(found["onnx"]["outputs"]["logits"], wanted["logits"])
    close(found["torchscript"]["outputs"][1], wanted["logits"])
    close(found["timm"]["model"](shown(pixels)), wanted["logits"])
    close(found["hf-folder"]["model"](shown(pixels)).pooler_output.flatten(1), wanted["features"])


def test_the_card_says_data_method_recipe_and_numbers(tmp_path):
    folder, _ = made(tmp_path / "run")
    recipe = {"data": "cifar10", "method": "rsa", "epochs": 9, "batch_size": 64, "schedule": {"kind": "cosine"}}
    recipe["optimizer"] = {"name": "sgd", "lr": 0.5}
    record = {"data": "my|photos", "recipe": recipe, "account": {"taken": 1640}}
    (folder / "config.json").write_text(json.dumps(record))
    (folder / "evaluations").mkdir()
    (folder / "evaluations/linear.json").write_text(json.dumps({"protocol": "linear", "top1": 61.5, "n_test": 200}))
    from saccade.evaluation.subject import Subject
    from saccade.tools.exporting.card import card
    from saccade.tools.exporting.network import exported

    backbone, _ = load_backbone(folder)
    subject = Subject("run", backbone, "test_resnet", SIZE, MEAN, STD, spec=PLAIN, folder=folder)
    page = card(exported(subject), "timm", "pass", "inside", "checked", None)
    for text in ("my\\|photos, 1,640 images", "| rsa |", "9 epochs, 64 images a step, sgd at 0.5", "61.5 %"):
        assert text in page
    assert "linear, top-1 on 200 images" in page and "license: other" in page and "ant, bee, cat" in page


def test_an_export_that_answers_otherwise_is_not_written(tmp_path, monkeypatch):
    folder, _ = made(tmp_path / "run")
    true = formats.TorchScript.answers
    wrong = lambda *given: {name: value + 1e-3 for name, value in true(*given).items()}  # noqa: E731
    monkeypatch.setattr(formats.TorchScript, "answers", wrong)
    with pytest.raises(UserError, match=r"outputs differ by at most 1\.0e-03, more than 1e-05; nothing was written"):
        main([str(folder), "--to", "torchscript"])
    assert list((folder / "exports").iterdir()) == []


def test_what_cannot_be_written_is_one_sentence(tmp_path):
    small, _ = made(tmp_path / "small", BackboneSpec("test_resnet", "cifar"))
    plain, _ = made(tmp_path / "plain")
    file = tmp_path / "weights.safetensors"
    file.write_bytes((plain / "backbone.safetensors").read_bytes())
    cases = (
        ([str(small), "--to", "timm"], "no option for the stem cifar"),
        ([str(small), "--to", "hf-folder"], "no option for the stem cifar"),
        ([str(small), "--to", "torchvision"], "torchvision has no test_resnet"),
        ([str(tmp_path / "none"), "--to", "timm"], "no such run folder"),
        ([str(file), "--backbone", "test_resnet", "--stem", "plain", "--to", "timm"], "give --out FOLDER"),
        ([str(plain), "--to", "timm", "--out", str(small)], "exists already"),
        ([str(plain), "--to", "timm", "--out", str(file / "x")], "cannot be made"),
    )
    for flags, says in cases:
        with pytest.raises(UserError, match=says):
            main(flags)
    (plain / "classifier.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="fine-tune again"):
        main([str(plain), "--to", "timm"])
