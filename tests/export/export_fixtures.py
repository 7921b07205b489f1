"""Fixtures of the tests that export points; a plugin, since there is one conftest.py."""

from pathlib import Path

import pytest
from conftest import MakeModel, MakeTokenizer
from exported_run import ROOT, make_run


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, make_model: MakeModel, make_tokenizer: MakeTokenizer
) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), make_model, make_tokenizer)


@pytest.fixture
def in_project(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be in the project's folder, as users are."""
    monkeypatch.chdir(ROOT)
