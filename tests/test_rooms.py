"""docs/development.md's table of rooms is the import contract that a linter checks, row by row."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_table_of_rooms_is_the_import_contract():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    checked = [{name.strip().split(".")[-1] for name in re.split(r"[:|]", layer)} for layer in layers]
    page = (ROOT / "docs" / "development.md").read_text()
    table = page[page.index("| layer |") :].split("\n\n")[0].splitlines()[2:]
    written = [set(re.findall(r"`(\w+)`", row.split("|")[1])) for row in table]
    assert [row for row in written if row != {"benchmarks"}][::-1] == [row for row in checked if row != {"benchmarks"}]
