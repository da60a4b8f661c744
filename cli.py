"""The command `saccade`: saccade train, saccade eval, saccade convert, ... each with a --help of its own.

A row of COMMANDS is all that a command needs here. Its module has `main(argv) -> exit code`, and `parser()` for the
shell's completion, made by base/program.py's command_parser, which knows its name and its examples. It is imported
when it is called, so that `saccade --help` is instant.
"""

from __future__ import annotations

import signal
import sys
from importlib import import_module

from saccade import __version__
from saccade.base.command import run_command
from saccade.base.text import did_you_mean

COMMANDS = {  # name: the module, what it does
    "train": ("saccade.train", "pre-train a backbone on your images, or continue a run"),
    "eval": ("saccade.eval", "measure a backbone: kNN, linear probes, each paper's own protocol"),
    "transfer": ("saccade.tools.transfer", "measure backbones on several labelled data sets, in one table"),
    "segment": ("saccade.tools.segment", "a linear segmentation probe over folders of images and masks: mean IoU"),
    "embed": ("saccade.tools.embed", "a vector of every image, with names and classes, as parquet, npy or csv"),
    "neighbours": ("saccade.tools.neighbours", "the images that are most like these: a table and a sheet of pictures"),
    "duplicates": ("saccade.tools.duplicates", "groups of images that are all but the same"),
    "cluster": ("saccade.tools.cluster", "groups of images of a kind, found without labels"),
    "finetune": ("saccade.tools.finetune", "a classifier of your images out of a backbone, and how good it is"),
    "predict": ("saccade.tools.predict", "what each image is, and how sure that is, as a CSV"),
    "export": ("saccade.tools.export", "a backbone for onnxruntime, torchvision, timm or transformers, compared"),
    "report": ("saccade.tools.report", "one offline page of what a run learned: verdict, map, neighbours, odd ones"),
    "convert": ("saccade.tools.convert", "bring images into a fast format, or back, and verify them"),
    "inspect": (
        "saccade.tools.inspect",
        "what is in a data set: counts, sizes, types, duplicates, a sheet of thumbnails",
    ),
    "preview": ("saccade.tools.preview", "see what a recipe does to your images"),
    "recipes": ("saccade.tools.recipes", "the published recipes, every value with its source"),
    "survey": ("saccade.tools.survey", "a few steps of every method on the same images: does each one learn?"),
    "doctor": ("saccade.tools.doctor", "what holds your training back on this machine"),
    "bench": ("saccade.tools.bench", "how fast loaders, model and whole run are here"),
    "parity": ("saccade.tools.parity", "every executor against the reference, pixel by pixel"),
    "completion": ("saccade.tools.completion", "a script by which the shell completes commands and flags"),
}


def usage() -> str:
    rows = "\n".join(f"  {name:<12}{summary}" for name, (_, summary) in COMMANDS.items())
    return (
        "usage: saccade COMMAND [FLAGS]\n\n"
        "Pre-train vision backbones without labels, the data pipeline first.\n\n"
        f"{rows}\n\n"
        "  saccade COMMAND --help    its flags and an example\n"
        "  saccade --version         the version\n\n"
        "start with:\n"
        "  saccade train --method stec            an embedded data set, two minutes on two CPU cores\n"
        "  saccade train --method stec --data PHOTOS"
    )


def main(argv: list[str] | None = None) -> None:
    """Leave the process with the command's exit code: 0 when done, 2 on bad input, 130 when interrupted."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load ends without a traceback
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
    elif name == "--version":
        print(f"saccade {__version__}")
    elif name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS)
        print(f"saccade: there is no command {name}; use one of {', '.join(COMMANDS)}{hint}.", file=sys.stderr)
        sys.exit(2)
    else:
        sys.argv = [f"saccade {name}", *rest]  # how the command names itself in its usage and its errors
        run_command(sys.argv[0], lambda: import_module(COMMANDS[name][0]).main(rest))
    sys.exit(0)


if __name__ == "__main__":
    main()
