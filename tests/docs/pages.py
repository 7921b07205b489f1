"""The pages of the documentation, and what they contain."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def pages() -> list[Path]:
    """Return all Markdown pages but the log, which is dated and stays as it was written."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [page for page in found if page.name != "log.md"]


def prose(text: str) -> str:
    """Return a page without its blocks of code, with as many lines."""
    return FENCE.sub(lambda found: "\n" * found[0].count("\n"), text)


def anchors(page: Path) -> set[str]:
    """Return what a link may name after `#`: the headings as GitHub and MkDocs write them."""
    headings = re.findall(r"^#+ (.*)$", prose(page.read_text(encoding="utf-8")), re.MULTILINE)
    words = (re.sub(r"[^\w\s-]", "", heading.lower()) for heading in headings)
    return {re.sub(r"\s", "-", heading.strip()) for heading in words}


def commands(page: Path) -> Iterator[str]:
    """Return the commands in the blocks without a language, one a line, without comments and a
    prompt `$ `. In a block with prompts the other lines are output."""
    for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        if language:
            continue
        lines = block.replace("\\\n", " ").splitlines()
        if any(line.startswith("$ ") for line in lines):
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        for line in lines:
            command = re.sub(r"(^|\s+)# .*$", "", line).strip()
            if command:
                yield command
