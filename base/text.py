"""Text from outside on its way to a terminal, a list or JSON: whatever bytes a name has, one printable line."""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` with line breaks, terminal escapes and bytes that are no UTF-8 written as \\n, \\x1b, \\xfb; the rest
    as it is."""
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    if 0xDC80 <= ord(character) <= 0xDCFF:  # a byte that the file system's encoding could not read (PEP 383)
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
