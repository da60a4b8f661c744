"""Letters in pictures: a font that has them, and where this machine has none, their numbers instead of boxes."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path


def drawable(text: str) -> tuple[str, Path]:
    """The text as it can be drawn, and the font file to draw it with: matplotlib's DejaVu, or one that fontconfig knows
    and that has all its letters. Those that no font has become numbers, such as \\u732b."""
    odd = frozenset(map(ord, text)) - _letters_of(_dejavu())
    odd = frozenset(c for c in odd if not chr(c).isspace())
    other = _of_the_system(odd, frozenset(map(ord, text))) if odd else None
    if other:
        return text, other
    numbered = (c.encode("ascii", "backslashreplace").decode() if ord(c) in odd else c for c in text)
    return "".join(numbered), _dejavu()


def _dejavu() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@cache
def _letters_of(file: Path) -> frozenset[int]:
    """None of a file that is no scalable font: pictures of letters come in one size."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(str(file))
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError):
        return frozenset()


@cache
def _of_the_system(odd: frozenset[int], whole: frozenset[int]) -> Path | None:
    asked = ":charset=" + " ".join(f"{c:x}" for c in sorted(odd))
    try:
        told = subprocess.run(["fc-list", asked, "file"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    files = sorted(Path(line.strip().removesuffix(":").strip()) for line in told.splitlines() if line.strip())
    return next((file for file in files if whole <= _letters_of(file)), None)
