"""The formats of `saccade export`: how each is written, and how the library it is for loads it and answers."""

from __future__ import annotations

import importlib
import json
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from saccade.base.errors import UserError
from saccade.models.backbone import is_resnet
from saccade.tools.exporting.network import Exported, Outputs

OUR_OWN = ("small_alexnet",)  # what only `import saccade` registers with timm


class Format(ABC):
    """packages: what is imported, beside what Saccade needs; usage: Python for the model card, after `folder = ...`;
    inside: a sentence on what of the preprocessing the files hold."""

    packages: ClassVar[tuple[str, ...]] = ()
    file: ClassVar[str]
    usage: ClassVar[str]
    inside: ClassVar[str]

    def refusal(self, model: Exported) -> str | None:
        """Why such a network cannot be written so, and the way out."""
        return None

    def loading(self, model: Exported) -> str:
        """Lines of Python, for the model card."""
        return self.usage

    @abstractmethod
    def write(self, model: Exported, folder: Path) -> None: ...

    @abstractmethod
    def answers(self, model: Exported, folder: Path, pixels: Tensor) -> Outputs:
        """What the library the format is for says of pixels of 0 to 1, from the files alone."""


class Onnx(Format):
    packages = ("onnx", "onnxscript", "onnxruntime")
    file = "model.onnx"
    inside = "pixels of 0 to 1 in, the mean and std are inside; the rest is in the file's metadata"
    usage = """import json, onnxruntime
session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
preprocessing = json.loads(session.get_modelmeta().custom_metadata_map["preprocessing"])
outputs = dict(zip([o.name for o in session.get_outputs()], session.run(None, {"images": pixels})))"""

    def write(self, model: Exported, folder: Path) -> None:
        with quiet():
            program: Any = torch.onnx.export(
                model.whole(),
                (model.pixels(2),),
                dynamo=True,
                input_names=["images"],
                output_names=list(model.names),
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                verbose=False,
            )
        program.model.metadata_props.update(texts(model))
        program.save(str(folder / self.file))

    def answers(self, model: Exported, folder: Path, pixels: Tensor) -> Outputs:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(folder / self.file), providers=["CPUExecutionProvider"])
        found = session.run(list(model.names), {"images": pixels.numpy()})
        return {name: torch.as_tensor(value) for name, value in zip(model.names, found, strict=True)}


class TorchScript(Format):
    file = "model.pt"
    inside = "pixels of 0 to 1 in, the mean and std are inside; the rest is in the file's extra files"
    usage = """import json, torch
extra = {"preprocessing": "", "classes": ""}
model = torch.jit.load(f"{folder}/model.pt", _extra_files=extra)
preprocessing = json.loads(extra["preprocessing"])
outputs = model(torch.from_numpy(pixels))  # a tuple: features, and logits where there is a classifier"""

    def write(self, model: Exported, folder: Path) -> None:
        with quiet(), torch.no_grad():
            traced = torch.jit.trace(model.whole(), model.pixels(2))
            torch.jit.save(traced, str(folder / self.file), _extra_files=texts(model))

    def answers(self, model: Exported, folder: Path, pixels: Tensor) -> Outputs:
        with quiet(), torch.no_grad():
            return dict(zip(model.names, torch.jit.load(str(folder / self.file))(pixels), strict=True))


class Torchvision(Format):
    file = "model.safetensors"
    inside = "preprocessing.json holds how images are shown"
    usage = ""

    def refusal(self, model: Exported) -> str | None:
        name = model.spec.name.split(".")[0]
        if not is_resnet(name) or not hasattr(importlib.import_module("torchvision.models"), name):
            return (
                f"torchvision has no {model.spec.name}, only timm's plain ResNets can go there; use --to onnx or timm"
            )
        return None

    def write(self, model: Exported, folder: Path) -> None:
        weights = dict(model.subject.backbone.state_dict())
        if model.classifier:
            weights |= {f"fc.{name}": value for name, value in model.classifier.layer().state_dict().items()}
        save_file({name: value.contiguous() for name, value in weights.items()}, folder / self.file)
        (folder / "preprocessing.json").write_text(json.dumps(described(model), indent=2) + "\n")

    def answers(self, model: Exported, folder: Path, pixels: Tensor) -> Outputs:
        network, found = self.network(model), {}
        network.load_state_dict(load_file(folder / self.file))
        network.eval().avgpool.register_forward_hook(lambda _, __, out: found.update(features=out.flatten(1)))
        with torch.no_grad():
            last = network(model.normalised(pixels))
        return {**found, "logits": last} if model.classifier else {"features": last}

    def network(self, model: Exported) -> Any:
        """torchvision's own, with the stem of ours; `loading` are the same lines as text."""
        import torchvision

        name, first = model.spec.name.split(".")[0], self._first(model)
        network = getattr(torchvision.models, name)(num_classes=len(model.classes) or 1)
        network.conv1 = nn.Conv2d(*self._numbers(first), first.padding[0], bias=False)
        if not model.classifier:
            network.fc = nn.Identity()
        if isinstance(model.subject.backbone.get_submodule("maxpool"), nn.Identity):
            network.maxpool = nn.Identity()
        return network

    @staticmethod
    def _first(model: Exported) -> Any:
        return model.subject.backbone.get_submodule("conv1")

    @staticmethod
    def _numbers(first: Any) -> tuple[int, int, int, int]:
        return first.in_channels, first.out_channels, first.kernel_size[0], first.stride[0]

    def loading(self, model: Exported) -> str:
        first = self._first(model)
        lines = [
            "import torch, torchvision",
            "from safetensors.torch import load_file",
            f"model = torchvision.models.{model.spec.name.split('.')[0]}(num_classes={len(model.classes) or 1})",
        ]
        if not model.classifier:
            lines.append("model.fc = torch.nn.Identity()")
        if model.spec.stem.startswith("cifar") or first.in_channels != 3:
            numbers = ", ".join(map(str, self._numbers(first)))
            lines.append(f"model.conv1 = torch.nn.Conv2d({numbers}, {first.padding[0]}, bias=False)")
        if isinstance(model.subject.backbone.get_submodule("maxpool"), nn.Identity):
            lines.append("model.maxpool = torch.nn.Identity()")
        return "\n".join([*lines, 'model.load_state_dict(load_file(f"{folder}/model.safetensors"))'])


class Timm(Format):
    file = "model.safetensors"
    inside = "config.json holds how images are shown, and the classes, as timm and transformers read them"
    usage = """import timm
model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))  # of a PIL image"""

    def refusal(self, model: Exported) -> str | None:
        if model.spec.stem != "plain":
            return (
                f"timm has no option for the stem {model.spec.stem} of small images; use --to onnx, torchscript or "
                "torchvision, or train with --set backbone.stem=plain"
            )
        if model.spec.name.split(".")[0] in OUR_OWN or ":" in model.spec.name:
            return f"{model.spec.name} is none of timm's own models; use --to onnx or torchscript"
        return None

    def write(self, model: Exported, folder: Path) -> None:
        save_file({k: v.contiguous() for k, v in self.network(model).state_dict().items()}, folder / self.file)
        (folder / "config.json").write_text(json.dumps(self.config(model), indent=2) + "\n")

    def network(self, model: Exported) -> nn.Module:
        """timm's own, with the classifier in its place."""
        name = model.spec.name.split(".")[0]
        network: Any = timm.create_model(name, pretrained=False, num_classes=len(model.classes), **model.options)
        network.load_state_dict(model.subject.backbone.state_dict(), strict=model.classifier is None)
        if model.classifier:
            head: Any = network.get_classifier()
            if not isinstance(head, nn.Linear) or head.weight.shape != model.classifier.weight.shape:
                raise UserError(f"timm's {name} has no linear classifier of these features; use --to onnx.")
            head.load_state_dict(model.classifier.layer().state_dict())
        return network.eval()

    def config(self, model: Exported) -> dict[str, Any]:
        network: Any = self.network(model)
        usual, shown = network.pretrained_cfg, model.preprocessing()
        size = [len(model.subject.mean), shown["image_size"], shown["image_size"]]
        options = {k: list(v) if isinstance(v, tuple) else v for k, v in model.options.items()}
        return {
            "architecture": model.spec.name.split(".")[0],
            "num_classes": len(model.classes),
            "num_features": network.num_features,
            **({"label_names": list(model.classes)} if model.classes else {}),
            **({"model_args": options} if options else {}),
            "pretrained_cfg": {
                "custom_load": False,
                "input_size": size,
                "fixed_input_size": bool(usual.get("fixed_input_size")),
                "interpolation": shown["interpolation"],
                "crop_pct": shown["crop_fraction"],
                "crop_mode": "center",
                "mean": shown["mean"],
                "std": shown["std"],
                "num_classes": len(model.classes),
                "pool_size": None,
                "first_conv": usual.get("first_conv"),
                "classifier": usual.get("classifier"),
            },
        }

    def answers(self, model: Exported, folder: Path, pixels: Tensor) -> Outputs:
        network: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        with torch.no_grad():
            found = network.forward_features(model.normalised(pixels))
            outputs = {"features": network.forward_head(found, pre_logits=True).flatten(1)}
            return {**outputs, "logits": network(model.normalised(pixels))} if model.classifier else outputs


class HuggingFace(Timm):
    """timm's own folder, which transformers reads as a TimmWrapper."""

    packages = ("transformers",)
    usage = """from transformers import AutoImageProcessor, TimmWrapperForImageClassification, TimmWrapperModel
model = TimmWrapperModel.from_pretrained(folder)  # .pooler_output; with a classifier also ...ForImageClassification
processor = AutoImageProcessor.from_pretrained(folder)  # of PIL images"""

    def answers(self, model: Exported, folder: Path, pixels: Tensor) -> Outputs:
        import transformers

        with quiet(), torch.no_grad():
            shown = model.normalised(pixels)
            network: Any = transformers.TimmWrapperModel.from_pretrained(folder).eval()
            outputs: Outputs = {"features": network(shown).pooler_output.flatten(1)}
            if model.classifier:
                network = transformers.TimmWrapperForImageClassification.from_pretrained(folder).eval()
                outputs["logits"] = network(shown).logits
                if tuple(network.config.id2label.values()) != model.classes:
                    raise RuntimeError(f"transformers reads other class names: {network.config.id2label}")
        return outputs


FORMATS: dict[str, type[Format]] = {
    "onnx": Onnx,
    "torchscript": TorchScript,
    "torchvision": Torchvision,
    "hf-folder": HuggingFace,
    "timm": Timm,
}


def described(model: Exported) -> dict[str, Any]:
    return {**model.preprocessing(), "classes": list(model.classes)}


def texts(model: Exported) -> dict[str, str]:
    """The same for files that hold texts beside a network."""
    return {"preprocessing": json.dumps(model.preprocessing()), "classes": json.dumps(list(model.classes))}


def check_installed(name: str) -> None:
    """UserError where the library that must read the export back is missing."""
    for package in FORMATS[name].packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(f"--to {name} needs {package}; pip install 'saccade[export]'.") from error


@contextmanager
def quiet() -> Iterator[None]:
    """What the libraries say of themselves is no news for the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
