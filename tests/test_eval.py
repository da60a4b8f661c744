"""eval.py on small run folders: what it prints, every protocol, and one clear sentence for bad input."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from scipy import stats
from torch import nn

from saccade import eval as evaluate
from saccade.evaluation.groups import grouped, read_groups
from saccade.evaluation.registry import protocols
from saccade.models.backbone import BackboneSpec, create_backbone, export_backbone, feature_size
from saccade.runs.checkpoint import load_checkpoint, save_checkpoint

SIZE, MEAN, STD = 16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def write_images(path, count, seed, labelled=True):
    """Four classes of noisy colour, easy for anything."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    colours = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [180, 180, 60]])
    images = np.clip(colours[labels][:, None, None] + generator.normal(0, 25, (count, SIZE, SIZE, 3)), 0, 255).astype(
        np.uint8
    )
    np.savez(path, images=images, **({"labels": labels} if labelled else {}))
    return str(path)


def write_run(folder: Path, data: str, method: str = "stec") -> Path:
    """A run folder as train.py leaves it, of untrained networks, student and teacher different."""
    torch.manual_seed(0)
    spec = BackboneSpec("test_resnet", "cifar")
    student, teacher = create_backbone(spec, SIZE), create_backbone(spec, SIZE)
    config = {
        "data": data,
        "val_data": None,
        "data_dir": "data",
        "recipe": {
            "method": method,
            "data": "custom",
            "batch_size": 256,
            "image_size": SIZE,
            "views": {"mean": MEAN, "std": STD},
            "backbone": asdict(spec),
        },
    }
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name, content in export_backbone(student, spec, SIZE, {"mean": MEAN, "std": STD}).items():
        (folder / name).write_bytes(content)
    classifier = nn.Linear(feature_size(student, SIZE), 4)
    state = {
        f"{prefix}{name}": tensor
        for prefix, module in (
            ("student.backbone.", student),
            ("teacher.network.backbone.", teacher),
            ("objective.classifier.", classifier),
        )
        for name, tensor in module.state_dict().items()
    }
    save_checkpoint(folder, 1, {"step": 1, "learner": state}, keep=1)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    data = write_images(folder / "train.npz", 64, 0)
    write_images(folder / "test.npz", 32, 1)
    return write_run(folder / "run", data)


def measure(capsys, *arguments) -> tuple[dict, str]:
    code = evaluate.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out.splitlines()[-1]), out


def refuse(capsys, *arguments) -> str:
    code = evaluate.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err.startswith("eval.py: ") and len(err.splitlines()) == 1, err
    return err


def test_the_last_line_is_one_json_object(run, capsys):
    result, out = measure(capsys, run)
    assert result["protocol"] == "knn" and result["n_train"] == 64 and result["n_test"] == 32 and result["classes"] == 4
    assert result["top1"] > 60 and result["top5"] == 100  # colours alone, of an untrained network
    assert result["deviations"] == [] and "kNN, k = 20" in out


@pytest.mark.parametrize("name", protocols())
def test_every_protocol_runs(run, capsys, name):
    kinds = {type(measure).__name__: measure for measure in protocols()[name].measures}
    small = ["--k", 10] if "KNN" in kinds else []
    result, _ = measure(capsys, run, "--protocol", name, "--epochs", 1, "--no-baselines", *small)
    assert 0 <= result["top1"] <= result["top5"] == 100 and result["protocol"] == name
    assert ("knn" in result) == ("KNN" in kinds)
    if "Linear" in kinds:
        assert result["paper_reports"] == kinds["Linear"].printed
        assert result["top1"] == result[f"{result['paper_reports']}_top1"]
    trained = any("epochs" in measure.takes() for measure in kinds.values())
    assert trained == ("epochs = 1" in result["deviations"])
    assert trained != ("--epochs changes nothing in this protocol" in result["notes"])
    assert result["network"] == protocols()[name].encoder.replace("method", "student")


def test_a_linear_probe_learns_the_colours(run, capsys):
    for name in ("linear", "linear-aug"):
        assert measure(capsys, run, "--protocol", name, "--epochs", 30)[0]["last_top1"] == 100


def test_student_and_teacher_are_different_networks(run, capsys, tmp_path):
    features = {}
    for name in ("ressl", "resa-cifar"):
        measure(capsys, run, "--protocol", name, "--epochs", 1, "--features-out", tmp_path / f"{name}.npz")
        with np.load(tmp_path / f"{name}.npz", allow_pickle=False) as arrays:
            features[name] = arrays["test_features"]
            assert arrays["train_names"].tolist() == [f"{i:02d}" for i in range(64)]
            assert arrays["train_features"].shape == (64, 96) and arrays["test_labels"].tolist() == [0, 1, 2, 3] * 8
    assert not np.allclose(*features.values())


def test_a_number_stands_beside_chance_raw_pixels_and_the_untrained_network(run, capsys):
    result, printed = measure(capsys, run, "--protocol", "linear", "--epochs", 2)
    found = result["beside"]["knn"]
    assert result["beside"]["chance"] == 25 and "chance, the commonest class" in printed
    assert found["raw pixels"]["top1"] == 100 and found["raw pixels"]["images"] == 32  # colours alone
    knn, _ = measure(capsys, run, "--protocol", "knn", "--no-baselines")
    assert found["this backbone"]["top1"] == pytest.approx(knn["top1"], abs=0.01) and "beside" not in knn
    spec = BackboneSpec("test_resnet", "cifar")
    torch.manual_seed(0)
    safetensors.torch.save_file(create_backbone(spec, SIZE).state_dict(), run.parent / "untrained.safetensors")
    data = ("--data", run.parent / "train.npz", "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25")
    how = ("--backbone", "test_resnet", "--stem", "cifar", "--image-size", SIZE, "--protocol", "knn")
    alone, _ = measure(capsys, run.parent / "untrained.safetensors", *how, *data)
    assert found["untrained"]["top1"] == pytest.approx(alone["top1"], abs=0.01)
    low, high = stats.binomtest(round(0.32 * result["top1"]), 32).proportion_ci(0.95, method="wilson")
    assert result["interval"] == pytest.approx([100 * low, 100 * high], abs=0.01)


def test_a_result_is_kept_in_the_run_folder(tmp_path, capsys):
    folder = write_run(tmp_path / "run", write_images(tmp_path / "train.npz", 32, 0))
    result, _ = measure(capsys, folder, "--protocol", "knn", "--k", 5)
    kept = json.loads((folder / "evaluations/knn.json").read_text())
    assert kept.items() >= result.items() and kept["versions"]["torch"]
    measure(capsys, folder, "--data", write_images(tmp_path / "other.npz", 32, 1), "--protocol", "knn", "--k", 5)
    assert (folder / "evaluations/knn-other.json").exists()


def test_several_runs_are_one_table(run, tmp_path, capsys):
    data = ("--data", run.parent / "train.npz", "--protocol", "knn")
    other = write_run(tmp_path / "other", str(run.parent / "train.npz"), method="simclr")
    found, printed = measure(capsys, run, other, *data)
    assert list(found["runs"]) == [str(run), str(other)] and found["runs"][str(run)]["protocol"] == "knn"
    rows = [line for line in printed.splitlines() if line.startswith((str(run) + " ", str(other) + " "))]
    assert len(rows) == 2 and all(
        f"{r['top1']:.2f}" in row for r, row in zip(found["runs"].values(), rows, strict=True)
    )
    assert "give one run" in refuse(capsys, run, other, "--plot", tmp_path / "p.png")


def test_a_missing_teacher_is_said(tmp_path, capsys):
    data = write_images(tmp_path / "train.npz", 32, 0)
    folder = write_run(tmp_path / "run", data)
    (folder / "checkpoints" / "step-00000001.safetensors").unlink()
    result, _ = measure(capsys, folder, "--val-data", data, "--protocol", "resa-cifar", "--epochs", 1)
    assert "evaluates the teacher, of which the run holds no weights; this is its student" in result["notes"][0]
    assert result["network"] == "student"


def test_the_online_classifier_is_the_checkpoints(run, capsys):
    result, _ = measure(capsys, run, "--protocol", "stec-online")
    state = load_checkpoint(run)["learner"]
    backbone = create_backbone(BackboneSpec("test_resnet", "cifar"), SIZE)
    backbone.load_state_dict(
        {k.removeprefix("student.backbone."): v for k, v in state.items() if k.startswith("student")}
    )
    with np.load(run.parent / "test.npz") as arrays:
        images, labels = (
            torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2) / 255,
            torch.from_numpy(arrays["labels"]),
        )
    with torch.no_grad():
        scores = backbone.eval()((images - 0.5) / 0.25) @ state["objective.classifier.weight"].T
    predicted = (scores + state["objective.classifier.bias"]).argmax(1)
    assert result["top1"] == pytest.approx(100 * (predicted == labels).float().mean().item(), abs=1e-3)


def test_an_unfinished_run_is_measured_at_its_checkpoint(tmp_path, run, capsys):
    folder = write_run(tmp_path / "run", str(run.parent / "train.npz"))
    (folder / "backbone.json").unlink()
    expected, _ = measure(capsys, run)
    for path in (folder, folder / "checkpoints" / "step-00000001.safetensors"):
        assert measure(capsys, path)[0]["top1"] == expected["top1"]


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_any_timm_checkpoint_with_its_name(run, tmp_path, capsys, kind):
    model = timm.create_model("test_resnet", num_classes=7)
    if kind == "pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "m.pth")
    else:
        safetensors.torch.save_file(model.state_dict(), tmp_path / "m.safetensors")
    result, _ = measure(
        capsys,
        tmp_path / f"m.{kind}",
        "--backbone",
        "test_resnet",
        "--data",
        run.parent / "train.npz",
        "--image-size",
        32,
        "--stem",
        "plain",
    )
    assert result["backbone"] == "test_resnet" and result["network"] == "given" and result["image_size"] == 32
    says = refuse(
        capsys,
        tmp_path / f"m.{kind}",
        "--backbone",
        "test_resnet",
        "--data",
        run.parent / "train.npz",
        "--image-size",
        32,
        "--stem",
        "cifar",
    )
    assert "begins with no 3x3 convolution; use plain" in says


def test_a_timm_name_stands_for_timms_own_weights(run, capsys, monkeypatch):
    made = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **more: made(name, **more))  # no network
    data = ("--data", run.parent / "train.npz")
    result, printed = measure(capsys, "test_resnet.r160_in1k", *data, "--image-size", 32, "--protocol", "knn")
    assert (result["backbone"], result["image_size"], result["crop_fraction"]) == ("test_resnet.r160_in1k", 32, 1.0)
    assert result["std"] == list(timm.get_pretrained_cfg("test_resnet").std) and "timm's own for" in printed
    assert "nor a model that timm knows" in refuse(capsys, "test_resnot", *data)


def test_an_export_says_how_images_are_shown_to_it(run):
    said = json.loads((run / "backbone.json").read_text())
    assert (said["crop_fraction"], said["interpolation"]) == (1.0, "bilinear") and "centre square" in said["resize"]
    assert (said["mean"], said["stem"], said["image_size"]) == (list(MEAN), "cifar", SIZE)
    large = export_backbone(nn.Identity(), BackboneSpec("resnet18"), 224, {})["backbone.json"]
    assert json.loads(large)["crop_fraction"] == 0.875


def test_the_same_seed_gives_the_same_line(run, capsys):
    lines = [measure(capsys, run, "--protocol", "linear-aug", "--epochs", 2, "--seed", seed)[0] for seed in (1, 1, 2)]
    for line in lines:
        del line["seconds"]
    assert lines[0] == lines[1] != lines[2]


def test_batch_norm_drift_changes_the_probe_but_not_the_backbone(run, capsys):
    still, drifting = (
        measure(capsys, run, "--protocol", "rsa-small", "--epochs", 2, *flags)[0]
        for flags in ((), ("--batch-norm-drift",))
    )
    assert still["train_loss"] != drifting["train_loss"] and "train mode" in drifting["notes"][-1]
    assert still["feature_std"] == drifting["feature_std"]  # measured before the drift


def test_a_plot_is_a_picture(run, tmp_path, capsys):
    measure(capsys, run, "--plot", tmp_path / "features.png")
    assert (tmp_path / "features.png").read_bytes().startswith(b"\x89PNG")


def test_bad_input_is_one_sentence(run, tmp_path, capsys):
    unlabelled = write_images(tmp_path / "plain.npz", 8, 0, labelled=False)
    alone = write_images(tmp_path / "alone.npz", 8, 0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    cases = (
        ((tmp_path / "absent",), "no such run folder or checkpoint"),
        ((tmp_path / "empty",), "is no run folder: it needs backbone.safetensors"),
        ((tmp_path / "weights.pth",), "cannot be read as weights"),
        ((tmp_path / "weights.pth", "--backbone", "test_resnet"), "cannot be read as weights"),
        ((tmp_path / "weights.pth", "--backbone", "test_resnt"), "the nearest are test_resnet"),
        ((run, "--protocol", "linaer"), "did you mean linear"),
        ((run, "--data", unlabelled, "--val-data", alone), "has no labels"),
        ((run, "--data", unlabelled), "nor a validation split beside it; give --labels CSV, or the images to test on"),
        ((run, "--data", tmp_path / "nowhere"), "no such file or folder"),
        ((run, "--k", 1000), "k = 1000, but there are 64 training images"),
        ((run, "--protocol", "linear", "--epochs", 0), "--epochs 0 is not positive"),
        ((run, "--batch-norm-drift"), "--protocol rsa-small"),
        ((run, "--protocol", "linear", "--batch-norm-drift"), "--protocol rsa-small"),
        ((run, "--protocol", "linear", "--lr", "inf"), "--lr inf is no learning rate"),
        ((run, "--device", "tpu"), "use auto, cpu or cuda"),
        ((run, "--plot", tmp_path / "no" / "such.png"), "in a folder that exists"),
        ((run, "--workers", -1), "--workers -1 is negative"),
        ((run, "--backbone", "resnet18"), "is of a test_resnet; leave the flag out"),
    )
    for arguments, says in cases:
        assert says in refuse(capsys, *arguments), arguments


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(run, capsys):
    assert "needs a GPU" in refuse(capsys, run, "--precision", "fp16")
    assert "no usable GPU" in refuse(capsys, run, "--device", "cuda")


def test_a_diverged_backbone_is_said(run, tmp_path, capsys):
    folder = write_run(tmp_path / "run", str(run.parent / "train.npz"))
    weights = safetensors.torch.load_file(folder / "backbone.safetensors")
    weights["conv1.weight"].fill_(float("nan"))
    safetensors.torch.save_file(weights, folder / "backbone.safetensors")
    assert "its checksum is wrong" in refuse(capsys, folder)
    description = json.loads((folder / "backbone.json").read_text())
    del description["checksum"]  # as version 0.1 wrote it
    (folder / "backbone.json").write_text(json.dumps(description))
    assert "the backbone has diverged" in refuse(capsys, folder)


def test_unreadable_images_are_counted_and_named(run, tmp_path, capsys):
    for split, count in (("train", 24), ("val", 12)):
        pixels = np.load(write_images(tmp_path / f"{split}.npz", count, 0))
        for i, (image, label) in enumerate(zip(pixels["images"], pixels["labels"], strict=True)):
            path = tmp_path / "photos" / split / f"class{label}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    (tmp_path / "photos" / "val" / "class1" / "5.png").write_bytes(b"broken")
    result, printed = measure(
        capsys, run, "--data", tmp_path / "photos", "--k", 5, "--workers", 0, "--pipeline", "reference"
    )
    assert (result["unreadable"], result["n_test"]) == (1, 11) and "class1/5.png" in printed


def test_a_run_is_measured_as_its_recipes_paper_does(capsys, tmp_path):
    run = write_run(tmp_path / "run", write_images(tmp_path / "train.npz", 64, 0))
    write_images(tmp_path / "test.npz", 32, 1)

    def named(protocol, *flags):
        config = json.loads((run / "config.json").read_text())
        config["recipe"]["protocol"] = protocol
        (run / "config.json").write_text(json.dumps(config))
        return measure(capsys, run, *flags)[0]["protocol"]

    assert named("stec-online") == "stec-online"
    assert named("ressl", "--epochs", 1) == "ressl"
    assert named("ressl", "--protocol", "knn") == "knn"
    assert named("stec-online", "--data", write_images(tmp_path / "other.npz", 32, 5)) == "knn"
    for weights in (run / "checkpoints").iterdir():
        weights.unlink()
    assert named("stec-online") == "knn", "no checkpoint, no online classifier"
    code = tmp_path / "code.py"
    code.write_text("open('executed', 'w')")
    assert named(str(code)) == "knn" and not Path("executed").exists(), "nothing that a run folder names is executed"


def test_features_are_drawn_by_neighbourhood_and_by_coarser_classes(run, capsys, tmp_path):
    drawn = {}
    for by in ("pca", "tsne"):
        measure(capsys, run, "--plot", tmp_path / f"{by}.png", "--plot-by", by)
        drawn[by] = np.asarray(Image.open(tmp_path / f"{by}.png"))
    assert not np.array_equal(drawn["pca"], drawn["tsne"])
    (tmp_path / "groups.csv").write_text("a,warm\nb,cold\n")
    err = refuse(capsys, run, "--plot", tmp_path / "x.png", "--plot-groups", tmp_path / "groups.csv")
    assert "the groups of --plot-groups need classes with names" in err
    assert "cannot be read" in refuse(capsys, run, "--plot", tmp_path / "x.png", "--plot-groups", "nowhere.csv")


def test_cifar100s_hundred_classes_are_in_twenty_groups_of_five():
    groups = read_groups("cifar100")
    assert len(groups) == 100 and sorted(Counter(groups.values()).values()) == [5] * 20
    labels, names = grouped(torch.tensor([0, 1, 2]), ["beaver", "tulip", "otter"], groups)
    assert [names[i] for i in labels.tolist()] == ["aquatic mammals", "flowers", "aquatic mammals"]
