"""Every file of reference values is compared with by some test, which spells its name."""

from pathlib import Path

from tests.reference import FOLDER, needs_reference


@needs_reference
def test_reference_files_are_all_named_by_a_test():
    sources = "\n".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
    unused = sorted(p.stem for p in FOLDER.glob("*.npz") if f'"{p.stem}"' not in sources)
    assert not unused, f"no test reads {', '.join(unused)}"
