"""Model folders of every layout: the tensors that merging reads are those that `from_pretrained`
loads; what a merge takes along from its initialisation."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import MakeModel, Perturb
from safetensors.torch import load_file, save_file
from test_streaming import run_interpolate, run_merge, same_bits, tensors_of
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
)

from warpflow.merging.checkpoints import fingerprint, read_tensors
from warpflow.merging.layouts import INDEX, SINGLE, embedding_of, is_tied

Tensors = dict[str, Tensor]
Save = Callable[..., Path]
Layout = Callable[[Path], None]


def edit(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Rewrite the weights of a folder of one file."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / SINGLE).items()}
    save_file(change(tensors), folder / SINGLE, metadata={"format": "pt"})


def set_config(folder: Path, **changes: object) -> None:
    """Change config.json; None takes a key away."""
    config = json.loads((folder / "config.json").read_text()) | changes
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


def without_prefix(folder: Path) -> None:
    edit(
        folder,
        lambda tensors: {
            n.partition(".")[2] if n.startswith(("transformer.", "model.", "gpt_neox.")) else n: t
            for n, t in tensors.items()
        },
    )


def with_masks(folder: Path) -> None:
    """Add what GPT-2 and Pythia store beside their weights on the hub."""

    def add(tensors: Tensors) -> Tensors:
        mask = torch.ones(1, 1, 8, 8).tril().bool()
        for name in list(tensors):
            if name.endswith((".attn.c_attn.weight", ".attention.query_key_value.weight")):
                layer = name.rpartition(".")[0].rpartition(".")[0]
                tensors[f"{layer}.bias"] = mask.clone()
                tensors[f"{layer}.masked_bias"] = torch.tensor(-1e9)
                tensors[f"{layer}.rotary_emb.inv_freq"] = torch.rand(4)
        return tensors

    edit(folder, add)


def as_gpt2_on_the_hub(folder: Path) -> None:
    with_masks(folder)
    without_prefix(folder)
    set_config(folder, tie_word_embeddings=None)  # which is GPT-2's default


def with_tied_head(folder: Path) -> None:
    edit(folder, lambda tensors: tensors | {"lm_head.weight": embedding(tensors).clone()})


def with_head_alone(folder: Path) -> None:
    edit(
        folder,
        lambda tensors: {
            "lm_head.weight" if tensor is embedding(tensors) else name: tensor
            for name, tensor in tensors.items()
        },
    )


def with_head_of_its_own(folder: Path) -> None:
    edit(folder, lambda tensors: tensors | {"lm_head.weight": embedding(tensors) + 1})


def embedding(tensors: Tensors) -> Tensor:
    (name,) = (
        n for n in tensors if n.endswith(("embed_tokens.weight", "wte.weight", "embed_in.weight"))
    )
    return tensors[name]


def with_further_tokens(folder: Path) -> None:
    """Layers that predict further tokens: DeepSeek stores them behind the last, Qwen as mtp."""
    extra = {"model.layers.2.mlp.up_proj.weight": torch.rand(2), "mtp.fc.weight": torch.rand(2)}
    edit(folder, lambda tensors: tensors | extra)


def sharded(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / SINGLE).unlink()
    model.save_pretrained(folder, max_shard_size="6KB")


def single_beside_an_index(folder: Path) -> None:
    """The rest of an earlier, sharded save: transformers reads the single file."""
    other = folder.with_name("other")
    shutil.copytree(folder, other)
    edit(other, lambda tensors: {name: tensor + 1 for name, tensor in tensors.items()})
    sharded(other)
    for file in (*other.glob("model-*"), other / INDEX):
        shutil.copy(file, folder)


def named_by_the_config(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "weights.safetensors")
    set_config(folder, transformers_weights="weights.safetensors")


def plain(folder: Path) -> None:
    pass


LAYOUTS: dict[str, tuple[str, Layout]] = {
    f"{model}, {layout.__name__}": (model, layout)
    for model, layouts in {
        "llama": (
            plain,
            without_prefix,
            sharded,
            single_beside_an_index,
            named_by_the_config,
            with_further_tokens,
        ),
        "gpt2": (plain, without_prefix, with_masks, as_gpt2_on_the_hub, sharded, with_tied_head),
        "gpt_neox": (plain, without_prefix, with_masks, sharded),
        "qwen2": (plain, with_tied_head, with_head_alone, with_head_of_its_own, without_prefix),
        "qwen3": (plain, sharded, without_prefix),
        "gemma3_text": (with_tied_head, with_head_alone),
    }.items()
    for layout in layouts
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_tensors_are_those_that_transformers_loads_by_the_names_it_saves(
    name: str, make_model: MakeModel, save: Save, tmp_path: Path
) -> None:
    model, layout = LAYOUTS[name]
    folder = save(make_model(model), "A")
    layout(folder)
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "again")
    again = tensors_of(tmp_path / "again")
    found = read_tensors(folder)
    assert same_bits(dict(found), again)
    assert fingerprint(found) == fingerprint(again)
    assert set(found.files) == set(found)
    assert all(path.is_file() for path in found.files.values())


UNLIKE = {
    "gpt2 of the hub": ("gpt2", as_gpt2_on_the_hub, plain),
    "pythia": ("gpt_neox", with_masks, sharded),
    "the init stores its tied head": ("qwen2", with_tied_head, plain),
    "a policy stores its tied head": ("qwen2", plain, with_tied_head),
    "a policy stores the head alone": ("qwen2", sharded, with_head_alone),
    "the init predicts further tokens": ("llama", with_further_tokens, without_prefix),
}


@pytest.mark.parametrize("case", UNLIKE)
def test_a_merge_of_unlike_layouts_is_that_of_all_saved_by_transformers(
    case: str, make_model: MakeModel, perturb: Perturb, save: Save, tmp_path: Path
) -> None:
    name, of_init, of_policy = UNLIKE[case]
    model = make_model(name)
    folders = [
        save(m, "ABC"[k]) for k, m in enumerate([model, perturb(model, 1), perturb(model, 2)])
    ]
    of_init(folders[0])
    of_policy(folders[1])
    again = [tmp_path / f"{folder.name} again" for folder in folders]
    for folder, saved in zip(folders, again, strict=True):
        AutoModelForCausalLM.from_pretrained(folder).save_pretrained(saved)
    merged = run_merge(folders[0], folders[1:], tmp_path / "merged")
    expected = run_merge(again[0], again[1:], tmp_path / "expected")
    assert same_bits(tensors_of(merged), tensors_of(expected))
    point = run_interpolate(folders[0], merged, tmp_path / "point", 0.3)
    assert same_bits(
        tensors_of(point), tensors_of(run_interpolate(again[0], expected, tmp_path / "x", 0.3))
    )
    _, report = AutoModelForCausalLM.from_pretrained(point, output_loading_info=True)
    assert not any(report.values())


def test_a_head_of_its_own_is_not_merged_with_a_tied_one(
    make_model: MakeModel, perturb: Perturb, save: Save, tmp_path: Path
) -> None:
    model = make_model("qwen2")
    init, policy = save(model, "A"), save(perturb(model, 1), "B")
    with_head_of_its_own(policy)
    with pytest.raises(SystemExit, match=r"B is not of .*lm_head.weight.*tied to its embedding"):
        run_merge(init, [policy], tmp_path / "out")


def test_what_is_left_out_is_said(
    make_model: MakeModel, save: Save, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save(make_model("gpt2"), "A")
    read_tensors(folder)
    assert not caplog.records
    as_gpt2_on_the_hub(folder)
    with caplog.at_level(logging.WARNING):
        read_tensors(folder)
    assert "6 tensors that transformers does not load" in caplog.text


def quantised(folder: Path) -> None:
    set_config(folder, quantization_config={"quant_method": "fp8"})


def with_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"")


def twice(folder: Path) -> None:
    edit(folder, lambda tensors: tensors | {"norm.weight": torch.ones(16)})
    edit(
        folder,
        lambda tensors: {name.replace("model.embed", "embed"): t for name, t in tensors.items()},
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (quantised, r"B is quantised \(fp8\)"),
        (with_adapter, r"B holds an adapter \(adapter_model.safetensors\) beside"),
        (twice, r"model.norm.weight and norm.weight are both the tensor model.norm.weight"),
    ],
)
def test_folders_that_transformers_makes_more_of_are_refused(
    spoil: Layout, message: str, make_model: MakeModel, save: Save, tmp_path: Path
) -> None:
    init, policy = save(make_model(), "A"), save(make_model(), "B")
    spoil(policy)
    with pytest.raises(SystemExit, match=message):
        run_merge(init, [policy], tmp_path / "out")


# Parts of models that read or see, and encoders' decoders: no policies of their own.
NO_POLICIES = {
    *("bart", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp", "pegasus", "plbart"),
    *("fuyu", "gemma3", "gemma3n", "gemma4", "gemma4_unified", "got_ocr2"),
    *("moss_transcribe_diarize", "prophetnet", "ctrl"),
}


def test_embeddings_and_ties_are_those_of_transformers_classes() -> None:
    known, found, expected = 0, {}, {}
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() - NO_POLICIES:
        kind = CONFIG_MAPPING[model_type]
        tied = getattr(MODEL_FOR_CAUSAL_LM_MAPPING[kind], "_tied_weights_keys", None) or {}
        source = tied.get("lm_head.weight") or tied.get("embed_out.weight")
        if source is None:
            continue
        try:
            is_tied_there = kind().get_text_config().tie_word_embeddings
        except Exception:  # a config that cannot do without arguments
            continue
        known += 1
        found[model_type] = embedding_of(model_type), is_tied({"model_type": model_type})
        expected[model_type] = source, is_tied_there
    assert found == expected
    assert known > 100


# --- vocabularies -------------------------------------------------------------------------------


def add_token(folder: Path, name: str, number: int, *, rows: int = 0) -> None:
    """Add a pad token as trainers do. `rows` are those that resize_token_embeddings adds."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    added = {"id": number, "content": name, "special": True, "single_word": False}
    tokenizer["added_tokens"].append(
        added | dict.fromkeys(("lstrip", "rstrip", "normalized"), False)
    )
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    if rows:
        model = AutoModelForCausalLM.from_pretrained(folder)
        model.resize_token_embeddings(model.config.vocab_size + rows)
        model.save_pretrained(folder)


def padded(make_model: MakeModel) -> PreTrainedModel:
    """20 tokens and 24 rows: embeddings are padded to round numbers."""
    model = make_model()
    model.resize_token_embeddings(24)
    return model


def test_a_pad_token_inside_the_padded_embedding_is_no_other_vocabulary(
    make_model: MakeModel,
    perturb: Perturb,
    save: Save,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = padded(make_model)
    init, a, b = (save(m, "ABC"[k]) for k, m in enumerate([model, perturb(model, 1), model]))
    expected = tensors_of(run_merge(init, [a, b], tmp_path / "before"))
    add_token(a, "<pad_of_a_trainer>", 20)
    with caplog.at_level(logging.WARNING):
        merged = run_merge(init, [a, b], tmp_path / "out")
    assert same_bits(tensors_of(merged), expected)
    assert (merged / "tokenizer.json").read_bytes() == (init / "tokenizer.json").read_bytes()
    assert "B: its tokenizer has 1 tokens" in caplog.text and "<pad_of_a_trainer>" in caplog.text


def test_an_added_row_is_another_vocabulary(
    make_model: MakeModel, perturb: Perturb, save: Save, tmp_path: Path
) -> None:
    init, policy = save(make_model(), "A"), save(make_model(), "B")
    add_token(policy, "<pad_of_a_trainer>", 20, rows=1)
    with pytest.raises(SystemExit, match=r"has shape \(21, 16\), expected \(20, 16\)"):
        run_merge(init, [policy], tmp_path / "out")


def test_two_policies_with_unlike_tokens_at_one_id_are_refused(
    make_model: MakeModel, save: Save, tmp_path: Path
) -> None:
    init, a, b = (save(padded(make_model), name) for name in "ABC")
    add_token(a, "<pad_of_a_trainer>", 20)
    add_token(b, "<tool>", 20)
    with pytest.raises(SystemExit, match=r"C: its tokenizer.*2 differ, e.g. '<pad_of_a_trainer>'"):
        run_merge(init, [a, b], tmp_path / "out")


# --- what comes along --------------------------------------------------------------------------

STRAYS = (
    *("model-q8_0.gguf", "tf_model.h5", "flax_model.msgpack", "rust_model.ot", "model.onnx"),
    *("consolidated.00.pth", "pytorch_model.bin", "optimizer.pt", "training_args.bin"),
    *("adapter_config.json", "pytorch_model.bin.index.json", "trainer_state.json", "README.md"),
    *("original/consolidated.safetensors", "onnx/model.onnx", ".gitattributes", "params.json"),
    *("consolidated.safetensors", "model-00001-of-00002.safetensors"),
)
BELONGS = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("tokenizer.model", "chat_template.jinja", "preprocessor_config.json", "LICENSE"),
)


def disk_used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("stage", ["merge", "recipe"])
def test_strays_of_a_snapshot_cost_nothing_and_are_named(
    stage: str,
    make_model: MakeModel,
    perturb: Perturb,
    save: Save,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A snapshot with 1 GB of files that are no part of the model."""
    model = make_model()
    init, policy = save(model, "A"), save(perturb(model, 1), "B")
    for name in STRAYS:
        (init / name).parent.mkdir(exist_ok=True)
        (init / name).write_text("{}")
        os.truncate(init / name, (1 << 30) // len(STRAYS) + 1)
    for name in BELONGS:
        (init / name).touch()
    assert disk_used(init) > 1 << 30
    with caplog.at_level(logging.WARNING):
        if stage == "merge":
            out = run_merge(init, [policy], tmp_path / "out")
        else:
            out = run_interpolate(init, policy, tmp_path / "out", 0.5, flags="--recipe")
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    made = {"merge": {"model.safetensors", "geometry.csv", "provenance.json"}}
    assert names == {*BELONGS, *made.get(stage, {"recipe.json"})}
    assert disk_used(out) < 1 << 20
    (said,) = [record.message for record in caplog.records if "not taken over" in record.message]
    for name in STRAYS:
        assert name.partition("/")[0] in said
    assert " model.safetensors" not in said


def test_a_merge_loads_though_its_init_had_a_stray_adapter_config(
    make_model: MakeModel, perturb: Perturb, save: Save, tmp_path: Path
) -> None:
    model = make_model()
    init, policy = save(model, "A"), save(perturb(model, 1), "B")
    (init / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    out = run_merge(init, [policy], tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert same_bits(dict(loaded.state_dict()), tensors_of(policy))


def test_a_merge_does_not_name_files_that_only_its_init_has(
    make_model: MakeModel, perturb: Perturb, save: Save, tmp_path: Path
) -> None:
    model = make_model()
    init, policy = save(model, "A"), save(perturb(model, 1), "B")
    named_by_the_config(init)
    out = run_merge(init, [policy], tmp_path / "out")
    assert same_bits(
        dict(AutoModelForCausalLM.from_pretrained(out).state_dict()), tensors_of(policy)
    )
