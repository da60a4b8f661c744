"""python -m tools.export RUN --to onnx: a backbone in the form that other software takes, loaded back and compared."""

from __future__ import annotations

import argparse
import importlib.metadata
import shutil
import tempfile
from pathlib import Path

from saccade.base.command import run_command
from saccade.base.errors import UserError
from saccade.base.program import command_parser
from saccade.base.text import printable
from saccade.evaluation.options import add_model_flags, chosen_subject
from saccade.models.backbone import STEMS
from saccade.tools.exporting.card import card
from saccade.tools.exporting.formats import FORMATS, Format, check_installed
from saccade.tools.exporting.network import Exported, exported

EXAMPLES = {
    "outputs/RUN --to onnx": "RUN/exports/onnx: model.onnx for onnxruntime, and a model card",
    "outputs/RUN --to timm --out my-backbone": 'timm.create_model("local-dir:my-backbone", pretrained=True)',
    "outputs/FINETUNED --to hf-folder --licence cc-by-4.0": "with its classifier and class names, for transformers",
}
ALLOWED, IMAGES = 1e-5, 5  # the largest difference of an output, as a share of its largest value where that exceeds 1
READ_BY = {"onnx": "onnxruntime", "torchscript": "torch", "hf-folder": "transformers"}  # else the format's own name


def parser() -> argparse.ArgumentParser:
    command = command_parser("python -m tools.export", main.__doc__ or "", EXAMPLES)
    command.add_argument(
        "path", metavar="RUN", help="a run folder, a fine-tuned one, a checkpoint, a file of weights or a timm name"
    )
    command.add_argument("--to", required=True, choices=list(FORMATS), help="the format")
    command.add_argument("--out", help="a folder that is made (default: RUN/exports/FORMAT)")
    command.add_argument(
        "--licence", help="under which the weights may be used, for the model card, such as cc-by-4.0 (default: unsaid)"
    )
    add_model_flags(command.add_argument_group("the model"))
    return command


def main(argv: list[str] | None = None) -> int:
    """Write a backbone, with its classifier where it was fine-tuned, for another library; load it with that library,
    compare all outputs, and only then give the folder its name. Preprocessing and class names are inside, and a model
    card, README.md, beside."""
    flags = parser().parse_args(argv)
    if flags.stem not in ("auto", *STEMS):
        raise UserError(f"--stem {flags.stem} is unknown; use auto or one of {', '.join(STEMS)}.")
    check_installed(flags.to)
    model = exported(chosen_subject(flags, flags.path))
    form = FORMATS[flags.to]()
    if reason := form.refusal(model):
        raise UserError(f"--to {flags.to}: {reason}.")
    out = chosen_folder(flags, model)
    checked = written(form, model, out, flags)
    print(printable(f"{out}: {form.file}, README.md; outputs {', '.join(model.names)}"))
    print(f"{'checked':>10}  {checked}")
    return 0


def chosen_folder(flags: argparse.Namespace, model: Exported) -> Path:
    """Where the export goes; UserError where something is there, or nothing can be made there."""
    if flags.out is None and model.subject.folder is None:
        raise UserError(f"{model.subject.name} is no run folder, which could hold the export; give --out FOLDER.")
    out = Path(flags.out).expanduser() if flags.out else model.subject.folder / "exports" / flags.to  # type: ignore[operator]
    if out.exists():
        raise UserError(f"--out {out} exists already; remove it, or give another folder.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be made ({error.strerror}); give another folder.") from error
    return out


def written(form: Format, model: Exported, out: Path, flags: argparse.Namespace) -> str:
    """Write all of it, or nothing: the sentence on how it was checked."""
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as place:
            folder = Path(place) / "export"
            folder.mkdir()
            form.write(model, folder)
            checked = compared(form, model, folder, flags.to)
            page = card(model, flags.to, form.loading(model), form.inside, checked, flags.licence)
            (folder / "README.md").write_text(page)
            shutil.move(folder, out)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}); give another folder.") from error
    return checked


def compared(form: Format, model: Exported, folder: Path, to: str) -> str:
    """Load it with the library it is for, on batches of two sizes; UserError where an output differs."""
    worst = 0.0
    for pixels in (model.pixels(IMAGES), model.pixels(1)):
        ours, theirs = model.outputs(pixels), form.answers(model, folder, pixels)
        for name, value in ours.items():
            if theirs[name].shape != value.shape:
                shapes = f"{tuple(theirs[name].shape)}, not {tuple(value.shape)}"
                raise UserError(f"--to {to}: {name} come back as {shapes}; use another format.")
            share = (theirs[name] - value).abs().max() / value.abs().max().clamp(min=1)
            worst = max(worst, share.item())
    library = READ_BY.get(to, to)
    told = f"loaded back by {library} {importlib.metadata.version(library)}, outputs differ by at most {worst:.1e}"
    if not worst <= ALLOWED:
        raise UserError(f"--to {to}: {told}, more than {ALLOWED:g}; nothing was written.")
    return f"{told} (allowed {ALLOWED:g})"


if __name__ == "__main__":
    run_command("tools.export", main)
