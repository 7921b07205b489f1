"""Links, paths and anchors in the documentation lead somewhere; its lines are not too long."""

import re
from pathlib import Path

import pytest
from pages import ROOT, anchors, pages, prose

LINK = re.compile(r"!?\[[^\]\n]*\]\(([^)\s]+)\)")
# Paths in backticks, from the root; not patterns, nor what a run makes.
FOLDERS = "workflow|rules|scripts|config|docs|tests|benchmarks|slurm|profiles"
PATH = re.compile(rf"`((?:{FOLDERS})/[\w./-]+)`")
YOURS = {"config/mine.yaml"}  # what the reader is to write
EVERY_PAGE = pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)


@EVERY_PAGE
def test_links_lead_somewhere(page: Path) -> None:
    for address in LINK.findall(prose(page.read_text(encoding="utf-8"))):
        path, _, anchor = address.partition("#")
        if re.match(r"[a-z]+:", address):
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {address} is not there"
        assert not anchor or anchor in anchors(target), f"{page.name}: no heading for {address}"


@EVERY_PAGE
def test_paths_are_those_of_files(page: Path) -> None:
    for path in PATH.findall(prose(page.read_text(encoding="utf-8"))):
        is_example = path in YOURS or "NAME" in path
        assert is_example or (ROOT / path).exists(), f"{page.name}: {path} is not there"


@EVERY_PAGE
def test_lines_of_prose_have_at_most_100_columns(page: Path) -> None:
    lines = prose(page.read_text(encoding="utf-8")).splitlines()
    long = [
        f"{page.name}:{number}: {len(line)} columns"
        for number, line in enumerate(lines, start=1)
        if len(line) > 100 and not line.lstrip().startswith(("|", "<!--", "!["))
    ]
    assert not long, "\n".join(long)


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    named = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    missing = {page.name for page in (ROOT / "docs").glob("*.md")} - named
    assert not missing, f"mkdocs.yml, nav: add {', '.join(sorted(missing))}"


def test_the_tools_of_the_site_have_the_same_pins_in_both_places() -> None:
    lock = (ROOT / "docs/requirements.lock").read_text(encoding="utf-8").splitlines()
    extra = re.search(r"^docs = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert extra and set(re.findall(r'"(.*?)"', extra[1])) <= set(lock)
