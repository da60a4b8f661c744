"""docs/protocols.md keeps its word: every protocol is on it, with what was measured."""

import json
from pathlib import Path

from benchmarks.protocols import line
from saccade.evaluation.registry import protocols

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "protocols.md").read_text()


def test_every_protocol_is_on_the_page_with_its_source_and_its_number():
    rows = json.loads((DOCS / "measurements/protocols.json").read_text())["rows"]
    assert set(rows) == set(protocols())
    for name, row in rows.items():
        assert PAGE.count(f"`{name}`") >= 2 and line(name, row) in PAGE, name
        assert row["n_test"] == 1000 and row["interval"][0] <= row["top1"] <= row["interval"][1]
