"""Every file of reference values is compared with by some test, which spells its name."""

from pathlib import Path

from tests.reference_values import FOLDER


def test_reference_files_are_all_named_by_a_test():
    sources = "\n".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
    names = sorted(path.stem for path in FOLDER.glob("*.npz"))
    assert names, f"no reference values in {FOLDER}"
    unused = [name for name in names if f'"{name}"' not in sources]
    assert not unused, f"no test reads {', '.join(unused)}"
