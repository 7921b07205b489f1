"""docs/your_files.md says of each input what is done with it, and which test shows it."""

import re

from project import ROOT


def test_every_row_names_tests_that_are_there() -> None:
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    there = set(re.findall(r"^def (test_\w+)", sources, re.M))
    page = (ROOT / "docs/your_files.md").read_text(encoding="utf-8")
    heads = ("| What", "| Where", "|---")
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    rows = [line for line in rows if not line.startswith(heads)]
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row.rstrip("|").rpartition("|")[2])
        assert named and set(named) <= there, row
