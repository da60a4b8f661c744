"""The table of docs/reliability.md: every row is whole, and its tests exist."""

import re
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]


def test_every_row_of_the_fault_table_names_tests_that_exist():
    page = (HERE / "docs/reliability.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ")][1:]
    sources = {path: path.read_text() for path in (HERE / "tests").rglob("test_*.py")}
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert len(cells) == 5 and all(cells), row
        names = re.findall(r"`([^`]+)`", cells[-1])
        assert names, row
        for name in names:
            here = HERE / name in sources if "/" in name else any(f"def {name}(" in text for text in sources.values())
            assert here, f"{name} of: {cells[0]}"
    assert len(rows) > 35
