"""python -m tools.preview --method stec --data PATH --out views.png: see what a recipe does to your images."""

from __future__ import annotations

import argparse
from pathlib import Path

from saccade.base.command import run_command
from saccade.base.errors import UserError
from saccade.base.program import command_parser
from saccade.base.text import printable
from saccade.evaluation.options import Usual, add_overwrite_flag, check_out
from saccade.pipelines.data import open_data
from saccade.pipelines.sources.options import add_flags, options_of
from saccade.runs import flags as train_flags
from saccade.runs.config import resolve
from saccade.runs.flags import check_flags
from saccade.runs.pictures import save_png, view_grid

EXAMPLES = {
    "--method rsa --data PHOTOS --out views.png": "four of your images in the views of RSA's recipe",
    "--method resa --data cifar10 --set views.view_1.crop.scale=0.5,1.0": "with one value of the recipe changed",
}


def parser() -> argparse.ArgumentParser:
    command = command_parser("python -m tools.preview", main.__doc__ or "", EXAMPLES)
    command.add_argument("--method", help="(default: the recipe file's, or stec)")
    command.add_argument(
        "--data", default="textures", help="a folder, an .npz or a data set's name (default: textures)"
    )
    command.add_argument("--data-dir", default="data")
    add_flags(command)
    command.add_argument("--recipe", help="the recipe that is shown, or a recipe file (default: as train.py chooses)")
    command.add_argument(
        "--operation", action="append", default=[], metavar="FILE.py:CLASS", help="an operation of your own in the file"
    )
    command.add_argument("--image-size", type=int)
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    command.add_argument("--rows", type=int, default=4, help="images shown (default: 4)")
    command.add_argument("--epoch", type=int, default=0, help="the epoch whose draws are shown (default: 0)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--out", default=Usual("views.png"), help="the picture (default: views.png)")
    add_overwrite_flag(command)
    return command


def main(argv: list[str] | None = None) -> int:
    """A grid: one row per image, one column per view, the drawn parameters under each."""
    wanted = parser().parse_args(argv)
    if wanted.rows < 1:
        raise UserError(f"--rows {wanted.rows} shows nothing; give 1 or more.")
    if wanted.epoch < 0:
        raise UserError(f"--epoch {wanted.epoch} is negative; give 0 or more.")
    check_out(wanted, out=(".png",))
    flags = train_flags.parser().parse_args([])
    vars(flags).update({k: v for k, v in vars(wanted).items() if k in vars(flags)})
    check_flags(flags)
    source, _ = open_data(flags.data, None, flags.data_dir, options=options_of(flags))
    print(printable(f"{source.name}: {source.describe()}"))
    source.account.show()
    recipe = resolve(flags, source, Path(".")).recipe
    grid = view_grid(source, recipe.views, wanted.seed, wanted.epoch, wanted.rows)
    save_png(grid, Path(wanted.out))
    print(
        f"{wanted.out}: {min(wanted.rows, len(source))} images of {source.name}, views "
        f"{', '.join(recipe.views.names)} of {recipe.method} on {recipe.data}"
    )
    return 0


if __name__ == "__main__":
    run_command("tools.preview", main)
