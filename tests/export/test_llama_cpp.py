"""`--gguf`: the converter of a llama.cpp checkout is found, run, and its result checked."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from test_export_point import export
from transformers import AutoModelForCausalLM, PreTrainedModel

from warpflow.export import llama_cpp
from warpflow.export.llama_cpp import CHECKOUT, SCRIPT, find_converter, read_gguf, write_gguf

pytest_plugins = ["export_fixtures"]
pytestmark = pytest.mark.usefixtures("in_project")
gguf = pytest.importorskip("gguf")

# Writes the model's tensors under their own names: what is tested is how it is run and read.
STUB = """
import argparse
from pathlib import Path

from gguf import GGUFWriter
from safetensors.torch import load_file

parser = argparse.ArgumentParser()
parser.add_argument("model", type=Path)
parser.add_argument("--outfile")
parser.add_argument("--outtype", choices=["f32", "f16", "bf16"])
given = parser.parse_args()
writer = GGUFWriter(given.outfile, "llama")
writer.add_name(given.outtype)
tensors = load_file(given.model / "model.safetensors")
for name in list(tensors)[SKIPPED:]:
    writer.add_tensor(name, tensors[name].float().numpy())
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""


def checkout(folder: Path, text: str = STUB.replace("SKIPPED", "0")) -> Path:
    folder.mkdir()
    (folder / SCRIPT).write_text(text)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "out_type"), [(None, "f32"), ("bfloat16", "bf16")])
def test_a_file_in_gguf_lies_beside_the_weights(
    run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    dtype: str | None,
    out_type: str,
) -> None:
    out = tmp_path / "point"
    words = ["--dtype", dtype] if dtype else []
    export(run, out, "--gguf", "--llama_cpp", str(checkout(tmp_path / "llama.cpp")), *words)
    reader = gguf.GGUFReader(out / "point.gguf")
    assert reader.get_field("general.name").contents() == out_type
    count = AutoModelForCausalLM.from_pretrained(out).num_parameters()
    assert read_gguf(out / "point.gguf").parameters == count
    said = capsys.readouterr().out
    assert f"point.gguf: architecture llama, 21 tensors (21 in F32), {count:,} parameters" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama.cpp", "point"]


def test_the_checkout_may_be_named_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkout(tmp_path / "llama.cpp")
    monkeypatch.setenv(CHECKOUT, str(folder))
    assert find_converter(None) == folder / SCRIPT
    other = checkout(tmp_path / "other")
    assert find_converter(str(other)) == other / SCRIPT


def test_without_a_converter_no_work_is_done(
    run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(CHECKOUT, raising=False)
    out = tmp_path / "point"
    with pytest.raises(SystemExit, match=r"git clone .*--llama_cpp FOLDER or in .* LLAMA_CPP"):
        export(run, out, "--gguf")
    with pytest.raises(SystemExit, match=rf"no {SCRIPT} in {tmp_path}: expected a checkout"):
        export(run, out, "--gguf", "--llama_cpp", str(tmp_path))
    monkeypatch.setattr(llama_cpp, "reads_gguf", lambda: False)
    with pytest.raises(SystemExit, match="pip install --no-deps gguf=="):
        export(run, out, "--gguf", "--llama_cpp", str(checkout(tmp_path / "llama.cpp")))
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "import sys; print('one'); sys.exit('no such tokenizer')",
            r"failed with exit status 1; the model is in .*point(.|\n)*one\nno such tokenizer",
        ),
        ("", r"failed with exit status 0"),
        (
            STUB.replace("SKIPPED", "1"),
            r"20 tensors .*, expected an architecture and at least the [\d,]+ parameters",
        ),
    ],
    ids=["fails", "writes nothing", "leaves out a tensor"],
)
def test_what_a_converter_spoils_is_said_and_not_kept(
    run,
    tmp_path: Path,
    text: str,
    said: str,
) -> None:
    out, folder = tmp_path / "point", checkout(tmp_path / "llama.cpp", text)
    with pytest.raises(SystemExit, match=said):
        export(run, out, "--gguf", "--llama_cpp", str(folder))
    assert (out / "model.safetensors").is_file() and not list(tmp_path.rglob("*.gguf"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama.cpp", "point"]


@pytest.mark.skipif(not os.environ.get(CHECKOUT), reason="$LLAMA_CPP names no llama.cpp")
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-6)], ids=str
)
def test_llama_cpp_itself_writes_a_file_with_the_logits_of_the_model(
    make_model, tmp_path: Path, dtype: torch.dtype, tolerance: float
) -> None:
    """Read back by transformers; the tolerance is a share of the largest logit."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path / "tiny"
    model: PreTrainedModel = make_model("llama")
    pieces = tmp_path / "pieces"
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"a word and word {i} of many" for i in range(200)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(pieces), vocab_size=40, model_type="bpe"
    )
    model.resize_token_embeddings(40)
    model.to(dtype).save_pretrained(folder)
    shutil.copy(f"{pieces}.model", folder / "tokenizer.model")
    file, words = write_gguf(find_converter(None), folder, {dtype})
    assert words.startswith("architecture llama, 21 tensors")
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
    ids = torch.tensor([[1, 5, 9, 12, 3]])
    found, expected = read(ids).logits, model.float()(ids).logits
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
