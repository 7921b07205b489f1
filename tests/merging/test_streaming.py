"""Merging and LITI over files: the scripts against references, bad input, kills; recipes."""

import itertools
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import interpolate_policy
import merge_policies
import pandas as pd
import pytest
import torch
from conftest import MakeModel, Perturb
from project import ROOT
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from warpflow.lm.models import load_policy
from warpflow.merging import chunks, streaming, writing
from warpflow.merging.checkpoints import fingerprint, read_tensors
from warpflow.merging.chunks import interpolate
from warpflow.merging.methods import METHODS, karcher_coefficients, slerp_coefficients
from warpflow.merging.points import Composer, load_point
from warpflow.merging.recipes import compose
from warpflow.merging.workers import share_out
from warpflow.merging.writing import new_folder

Tensors = dict[str, Tensor]
Save = Callable[..., Path]
Parents = Callable[..., list[Path]]


def run_merge(init: Path, policies: list[Path], out: Path, **settings: object) -> Path:
    flags = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    names = [str(policy) for policy in policies]
    merge_policies.main(["--init", str(init), "--policies", *names, "--out", str(out), *flags])
    return out


def run_interpolate(init: Path, policy: Path, out: Path, *etas: float, flags: str = "") -> Path:
    values = ["--eta", *map(str, etas)]
    arguments = ["--init", str(init), "--policy", str(policy), "--out", str(out), *values]
    interpolate_policy.main([*arguments, *flags.split()])
    return out


def tensors_of(folder: Path) -> Tensors:
    """Read the tensors by safetensors itself, in one go."""
    files = sorted(folder.glob("*.safetensors"))
    assert files
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def same_bits(a: Tensors, b: Tensors) -> bool:
    return set(a) == set(b) and all(
        a[name].dtype == b[name].dtype
        and torch.equal(
            a[name].reshape(-1).view(torch.uint8), b[name].reshape(-1).view(torch.uint8)
        )
        for name in a
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


@pytest.fixture
def parents(make_model: MakeModel, perturb: Perturb, save: Save) -> Parents:
    """An init and policies from it: folders A, B, C …, the policies of unlike shards."""

    def make(name: str = "llama", policies: int = 2, shards: bool = False) -> list[Path]:
        model = make_model(name)
        sizes = ("10KB", "1GB", "4KB", "6KB") if shards else ("1GB",) * 4
        moved = [model, *(perturb(model, seed) for seed in range(1, policies + 1))]
        names = "ABCDEFG"
        return [save(m, names[k], sizes[k % 4]) for k, m in enumerate(moved)]

    return make


# --- what comes out ----------------------------------------------------------------------------


def reference_slerp(init: Tensors, policies: list[Tensors], names: list[str]) -> Tensor:
    """Eq. 26 over the tensors `names` end to end, in fp64: SLERP one after another with 1/m."""
    flat = [torch.cat([t[n].double().flatten() for n in names]) for t in (init, *policies)]
    merged = flat[1] - flat[0]
    for m, policy in enumerate(flat[2:], start=2):
        delta = policy - flat[0]
        omega = torch.acos(merged @ delta / (merged.norm() * delta.norm()))
        merged = (
            torch.sin((1 - 1 / m) * omega) * merged + torch.sin(omega / m) * delta
        ) / torch.sin(omega)
    return flat[0] + merged


@pytest.mark.parametrize("shards", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("name", ["gemma", "llama", "gpt2"])
@pytest.mark.parametrize("chunk", [7, 1 << 16])
def test_merged_checkpoints_match_an_fp64_reference(
    name: str,
    shards: bool,
    chunk: int,
    parents: Parents,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chunks, "CHUNK", chunk)
    folders = parents(name, policies=3, shards=shards)
    merged = tensors_of(run_merge(folders[0], folders[1:], tmp_path / "out"))
    init, *policies = map(tensors_of, folders)
    assert set(merged) == set(init)
    groups: dict[str, list[str]] = {}
    for key in init:
        numbers = [part for part in key.split(".") if part.isdigit()]
        groups.setdefault(numbers[0] if numbers else key, []).append(key)
    assert len([group for group in groups if group.isdigit()]) == 2
    for names in groups.values():
        expected = reference_slerp(init, policies, names)
        ours = torch.cat([merged[key].double().flatten() for key in names])
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


def test_two_policies_by_tensor_are_mergekits_nuslerp(tmp_path: Path) -> None:
    """Recorded by benchmarks/merge.py: task-vector SLERP by another hand, one angle a tensor."""
    recorded = json.loads((ROOT / "tests/merging/mergekit_nuslerp.json").read_text())
    folders = {name: tmp_path / name for name in ("init", "a", "b")}
    for name, folder in folders.items():
        folder.mkdir()
        tensors = {key: torch.tensor(values) for key, values in recorded[name].items()}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    init, *policies = folders.values()
    for weight in ("0.5", "0.25"):
        settings = {"weight": weight, "granularity": "tensor"}
        merged = tensors_of(run_merge(init, policies, tmp_path / weight, **settings))
        assert set(merged) == set(recorded[weight])
        for key, values in recorded[weight].items():
            torch.testing.assert_close(merged[key], torch.tensor(values), atol=1e-7, rtol=0)
        by_layer = tensors_of(run_merge(init, policies, tmp_path / f"{weight}layer", weight=weight))
        query = "model.layers.0.self_attn.q_proj.weight"
        far = (by_layer[query] - torch.tensor(recorded[weight][query])).abs().max()
        assert far > 1e-5, "angles are too alike to tell tensor from layer"


@pytest.mark.parametrize("method", METHODS)
def test_merge_of_one_policy_is_its_tensors_bit_for_bit(
    method: str, parents: Parents, tmp_path: Path
) -> None:
    init, policy = parents("gpt2", policies=1)
    out = run_merge(init, [policy], tmp_path / "out", method=method)
    assert same_bits(tensors_of(out), tensors_of(policy))


def test_lambda_and_eta_0_and_1_are_the_endpoints_bit_for_bit(
    parents: Parents, tmp_path: Path
) -> None:
    init, a, b = parents("gemma")
    for weight, policy in ((0, a), (1, b)):
        out = run_merge(init, [a, b], tmp_path / f"merged{weight}", weight=weight)
        assert same_bits(tensors_of(out), tensors_of(policy))
    points = run_interpolate(init, a, tmp_path / "points", 0, 1)
    assert same_bits(tensors_of(points / "eta0"), tensors_of(init))
    assert same_bits(tensors_of(points / "eta1"), tensors_of(a))


def test_several_etas_in_one_pass_are_those_of_single_runs(
    parents: Parents, tmp_path: Path
) -> None:
    init, policy = parents("gemma", policies=1)
    points = run_interpolate(init, policy, tmp_path / "points", 0, 0.3, 1.3)
    assert sorted(path.name for path in points.iterdir()) == ["eta0", "eta0.3", "eta1.3"]
    for eta in (0, 0.3, 1.3):
        single = run_interpolate(init, policy, tmp_path / f"single{eta}", eta)
        assert contents(single) == contents(points / f"eta{eta}")
    moved = {n: t.double() for n, t in tensors_of(points / "eta1.3").items()}
    start, end = tensors_of(init), tensors_of(policy)
    for name, tensor in moved.items():
        expected = -0.3 * start[name].double() + 1.3 * end[name].double()
        torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=0)


def test_merged_models_load_with_every_weight_and_ties_kept(
    architecture: str, parents: Parents, tmp_path: Path
) -> None:
    init, a, b = parents(architecture, shards=True)
    out = run_merge(init, [a, b], tmp_path / "out", method="lerp")
    loading: Any = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    loaded, report = loading
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    tied = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert tied == (architecture in ("gemma", "gemma2", "gemma3_text", "gpt2", "qwen2"))
    # A tied head is in the file once, or it would come untied.
    assert len(tensors_of(out)) == len(list(loaded.parameters()))
    ours, *members = (
        AutoModelForCausalLM.from_pretrained(folder).parameters() for folder in (out, a, b)
    )
    for parameter, x, y in zip(ours, *members, strict=True):
        torch.testing.assert_close(parameter, (x + y) / 2, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_outputs_get_the_mode_the_umask_asks_for(
    umask: int, mode: int, parents: Parents, tmp_path: Path
) -> None:
    """safetensors always writes 0600, so colleagues could not read a shared cache."""
    init, a, b = parents()
    before = os.umask(umask)
    try:
        out = run_merge(init, [a, b], tmp_path / "out")
        assert os.umask(umask) == umask, "the process's umask was changed"
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {mode}


def test_everything_else_of_the_init_comes_along(parents: Parents, tmp_path: Path) -> None:
    init, a, b = parents()
    (init / "chat_template.jinja").write_text("{{ messages }}")
    (init / "additional_chat_templates").mkdir()
    (init / "additional_chat_templates/tool.jinja").write_text("tools")
    for name in ("training.csv", "training_args.bin", "optimizer.pt", "recipe.json"):
        (init / name).write_text("{}")
    out = run_merge(init, [a, b], tmp_path / "out")
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert names == {
        "additional_chat_templates/tool.jinja",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "geometry.csv",
        "model.safetensors",
        "provenance.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    templates = {"default": "{{ messages }}", "tool": "tools"}
    assert AutoTokenizer.from_pretrained(out).chat_template == templates


def test_the_output_is_sharded_with_an_index_when_large(
    parents: Parents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init, a, b = parents("gpt2")
    whole = run_merge(init, [a, b], tmp_path / "whole")
    monkeypatch.setattr(writing, "SHARD_BYTES", 9000)
    sharded = run_merge(init, [a, b], tmp_path / "sharded")
    files = sorted(sharded.glob("*.safetensors"))
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert len(files) > 2
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert same_bits(tensors_of(whole), tensors_of(sharded))
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (whole, sharded)]
    assert same_bits(*(dict(model.state_dict()) for model in models))


def test_output_dtype_is_the_policies_or_the_given_one(
    parents: Parents, perturb: Perturb, make_model: MakeModel, save: Save, tmp_path: Path
) -> None:
    init, a, b = parents()
    assert {t.dtype for t in tensors_of(run_merge(init, [a, b], tmp_path / "wide")).values()} == {
        torch.float32
    }
    narrow = run_merge(init, [a, b], tmp_path / "narrow", dtype="bfloat16")
    wide = tensors_of(tmp_path / "wide")
    assert same_bits(tensors_of(narrow), {n: t.bfloat16() for n, t in wide.items()})
    assert json.loads((narrow / "config.json").read_text())["dtype"] == "bfloat16"
    # A bf16 init with fp32 policies: rounding to the init's dtype would lose the task vectors.
    half = save(make_model("llama").bfloat16(), "half")
    mixed = run_merge(half, [a, b], tmp_path / "mixed", method="lerp")
    means = {n: (t + tensors_of(b)[n]) / 2 for n, t in tensors_of(a).items()}
    for name, tensor in tensors_of(mixed).items():
        torch.testing.assert_close(tensor, means[name], atol=1e-6, rtol=0)
    assert json.loads((mixed / "config.json").read_text())["dtype"] == "float32"


def test_a_merge_in_half_precision_says_what_rounding_loses(
    parents: Parents, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init, a, b = parents()
    wide = run_merge(init, [a, b], tmp_path / "wide")
    assert "rounding" not in capsys.readouterr().out
    narrow = run_merge(init, [a, b], tmp_path / "narrow", dtype="bfloat16")
    start, exact, rounded = (
        torch.cat([t.flatten().double() for _, t in sorted(tensors_of(folder).items())])
        for folder in (init, wide, narrow)
    )
    loss = (rounded - exact).norm() / (exact - start).norm()
    (said,) = re.findall(r"rounding moves its weights by ([\d.]+)%", capsys.readouterr().out)
    assert float(said) == pytest.approx(100 * loss.item(), abs=0.06)


def test_bytes_depend_on_contents_alone(parents: Parents, tmp_path: Path) -> None:
    """They depend neither on paths, nor on the number of threads and processes."""
    folders = parents("llama")
    first = contents(run_merge(folders[0], folders[1:], tmp_path / "one", workers=1))
    moved = [folder.rename(tmp_path / f"moved{k}") for k, folder in enumerate(folders)]
    torch.set_num_threads(2)
    try:
        second = contents(run_merge(moved[0], moved[1:], tmp_path / "two", workers=3))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert first == second


def test_provenance_names_parents_by_content_in_file_and_metadata(
    parents: Parents, tmp_path: Path
) -> None:
    init, a, b = parents(shards=True)
    out = run_merge(init, [a, b], tmp_path / "out", weight=0.25)
    document = json.loads((out / "provenance.json").read_text())
    assert document["method"] == "slerp"
    assert document["weight"] == 0.25
    roles = {"init": init, "policy 0": a, "policy 1": b}
    assert document["parents"] == {role: fingerprint(read_tensors(f)) for role, f in roles.items()}
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert json.loads(file.metadata()["provenance"]) == document


def test_a_fingerprint_is_that_of_the_tensors_whatever_the_shards(
    make_model: MakeModel, perturb: Perturb, save: Save
) -> None:
    model = make_model("gpt2")
    whole, sharded = save(model, "whole"), save(model, "sharded", "10KB")
    moved = save(perturb(model, 1, scale=1e-6), "moved")
    prints = [fingerprint(read_tensors(folder)) for folder in (whole, sharded, moved)]
    assert prints[0] == prints[1] != prints[2]


def test_geometry_csv_has_a_row_per_group_and_pair(parents: Parents, tmp_path: Path) -> None:
    folders = parents("gemma", policies=3)
    table = pd.read_csv(run_merge(folders[0], folders[1:], tmp_path / "out") / "geometry.csv")
    groups = ["layer 0", "layer 1", "model.embed_tokens.weight", "model.norm.weight"]
    assert sorted(set(table.group)) == groups
    assert len(table) == len(groups) * 3
    assert ((table.omega.map(math.cos) - table.cosine_task_vectors).abs() < 1e-12).all()
    alone = run_merge(folders[0], folders[1:2], tmp_path / "alone")
    assert pd.read_csv(alone / "geometry.csv").empty


@pytest.mark.slow
@pytest.mark.parametrize("method", ["slerp", "ties"])
def test_memory_does_not_grow_with_the_model(method: str, tmp_path: Path) -> None:
    """3 × 120 MB of fp32 in two tensors: what the merge allocates beyond its mapped files."""
    for seed, name in enumerate("ABC"):
        generator = torch.Generator().manual_seed(seed)
        tensors = {f"model.layers.{k}.w": torch.zeros(15_000_000) for k in (0, 1)}
        for tensor in tensors.values():
            tensor[:1000].normal_(generator=generator)
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    del tensors

    def anonymous() -> int:
        return int(re.findall(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[0])

    init, a, b = (read_tensors(tmp_path / name) for name in "ABC")
    before, peaks = anonymous(), [0]
    streaming.merge_into(lambda *piece: peaks.append(anonymous()), init, [a, b], method)
    assert len(peaks) > 400
    assert max(peaks) - before < 10_000  # KiB


@pytest.mark.parametrize("density", [1e-4, 0.2, 1.0])
@pytest.mark.parametrize("chunk", [7, 1000, 1 << 16])
def test_thresholds_are_the_kth_largest_magnitudes_exactly(
    chunk: int, density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Magnitudes span many orders, with many equal ones and zeros, for all sizes of chunks."""
    monkeypatch.setattr(chunks, "CHUNK", chunk)
    deltas = torch.randn(3, 5000) * 10.0 ** torch.randint(-30, 3, (3, 5000))
    deltas[1, ::2] = 0.125
    deltas[2, 100:] = 0.0
    init = {"a": torch.zeros(4000), "b": torch.zeros(10, 100)}
    sources = [init, *({"a": d[:4000], "b": d[4000:].view(10, 100)} for d in deltas)]
    found = streaming.magnitude_thresholds(
        sources, ["a", "b"], density, chunks.new_scratch(sources)
    )
    rank = math.ceil(density * 5000)
    assert torch.equal(found, deltas.abs().sort(descending=True).values[:, rank - 1])


def test_ties_does_not_depend_on_chunks_or_processes(
    parents: Parents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init, *policies = parents("llama", policies=3, shards=True)
    whole = run_merge(init, policies, tmp_path / "whole", method="ties", workers=1)
    monkeypatch.setattr(chunks, "CHUNK", 7)
    parts = run_merge(init, policies, tmp_path / "parts", method="ties", workers=2)
    assert same_bits(tensors_of(parts), tensors_of(whole))
    assert json.loads((whole / "provenance.json").read_text())["method"] == "ties"


# --- the symmetric mean ------------------------------------------------------------------------


def gram_of(*vectors: Tensor) -> Tensor:
    stack = torch.stack(vectors).double()
    return stack @ stack.T


@pytest.mark.parametrize("members", [2, 3, 5])
def test_karcher_does_not_depend_on_the_order_and_sequential_slerp_does(members: int) -> None:
    vectors = [(1 + 0.3 * m) * torch.randn(200) for m in range(members)]
    symmetric, sequential = [], []
    for order in itertools.permutations(range(members)):
        chosen = [vectors[m].double() for m in order]
        for method, results in (
            (karcher_coefficients, symmetric),
            (slerp_coefficients, sequential),
        ):
            results.append(torch.stack(chosen).T @ method(gram_of(*chosen)))
    for result in symmetric:
        torch.testing.assert_close(result, symmetric[0], rtol=0, atol=1e-9)
    spread = max(float((r - sequential[0]).norm() / r.norm()) for r in sequential)
    assert (spread > 0.05) == (members > 2)


@pytest.mark.parametrize("weight", [None, 0.2, 0.7])
@pytest.mark.parametrize("degrees", [1, 60, 90, 140])
def test_karcher_of_two_of_equal_norm_is_slerp(degrees: float, weight: float | None) -> None:
    omega = math.radians(degrees)
    gram = gram_of(torch.tensor([1.0, 0.0]), torch.tensor([math.cos(omega), math.sin(omega)]))
    torch.testing.assert_close(
        karcher_coefficients(gram, weight), slerp_coefficients(gram, weight), atol=1e-6, rtol=0
    )


def test_karcher_is_at_the_least_sum_of_squared_angles_and_of_mean_norm() -> None:
    vectors = [torch.randn(6).double() * scale for scale in (1, 2, 5)]
    coefficients = karcher_coefficients(gram_of(*vectors))
    mean = torch.stack(vectors).T @ coefficients
    assert mean.norm().item() == pytest.approx(sum(v.norm().item() for v in vectors) / 3)

    def cost(point: Tensor) -> float:
        return sum(float(torch.acos(point @ v / point.norm() / v.norm())) ** 2 for v in vectors)

    for _ in range(50):
        assert cost(mean) <= cost(mean + 0.01 * torch.randn(6).double())


def test_karcher_of_orthogonal_members_weighs_them_alike() -> None:
    coefficients = karcher_coefficients(torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(coefficients, torch.full((4,), 0.5, dtype=torch.float64))


# --- recipes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0, 0.3, 1, 1.7])
@pytest.mark.parametrize("name", ["gemma", "llama", "gpt2"])
def test_a_loaded_recipe_is_the_loaded_weights_bit_for_bit(
    name: str, eta: float, parents: Parents, tmp_path: Path
) -> None:
    init, policy = parents(name, policies=1, shards=True)
    written = run_interpolate(init, policy, tmp_path / "written", eta)
    recipe = run_interpolate(init, policy, tmp_path / "recipe", eta, flags="--recipe")
    assert not list(recipe.glob("*.safetensors"))
    a, b = load_policy(written), load_point(recipe)
    assert same_bits(dict(a.state_dict()), dict(b.state_dict()))
    tied = a.get_input_embeddings().weight is a.get_output_embeddings().weight
    assert (b.get_input_embeddings().weight is b.get_output_embeddings().weight) == tied
    assert a.generation_config.to_dict() == b.generation_config.to_dict()
    assert not b.training


def test_a_recipe_has_no_weights_to_load(parents: Parents, tmp_path: Path) -> None:
    """The error says what loads it. `lm` must not import merging, which training does not need."""
    init, policy = parents(policies=1)
    recipe = run_interpolate(init, policy, tmp_path / "recipe", 0.3, flags="--recipe")
    with pytest.raises(ValueError, match=r"is a recipe .*merging\.points\.load_point"):
        load_policy(recipe)


def test_an_exported_recipe_is_the_written_checkpoint(parents: Parents, tmp_path: Path) -> None:
    init, policy = parents("gemma", policies=1)
    written = run_interpolate(init, policy, tmp_path / "written", 0.3, flags="--dtype bfloat16")
    flags = "--dtype bfloat16 --recipe contents"
    recipe = run_interpolate(init, policy, tmp_path / "recipe", 0.3, flags=flags)
    exported = tmp_path / "exported"
    moved = policy.rename(tmp_path / "elsewhere")
    arguments = ["--export", str(recipe), "--out", str(exported)]
    with pytest.raises(SystemExit, match="names its parents by content alone"):
        interpolate_policy.main(arguments)
    interpolate_policy.main([*arguments, "--parents", str(moved), str(init)])
    assert contents(exported) == contents(written)
    composed = load_point(recipe, [init, moved]).state_dict()
    assert same_bits(dict(composed), dict(load_policy(written).state_dict()))


def test_a_recipe_moves_along_with_its_parents(parents: Parents, tmp_path: Path) -> None:
    parents("llama", policies=1)
    (tmp_path / "project").mkdir()
    init, policy = ((tmp_path / name).rename(tmp_path / "project" / name) for name in ("A", "B"))
    run_interpolate(init, policy, tmp_path / "project/points/half", 0.5, flags="--recipe")
    (tmp_path / "project").rename(tmp_path / "clone")
    assert compose(tmp_path / "clone/points/half")


def test_a_recipe_whose_parents_are_gone_or_others_is_refused(
    parents: Parents, tmp_path: Path
) -> None:
    init, policy, other = parents("llama")
    recipe = run_interpolate(init, policy, tmp_path / "recipe", 0.5, flags="--recipe")
    with pytest.raises(ValueError, match=r"parent policy is sampled-sha256.*changed since"):
        compose(recipe, [init, other])
    policy.rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"its parent .*/B is missing"):
        compose(recipe)
    with pytest.raises(FileNotFoundError, match=r"it is a recipe: .*--export"):
        read_tensors(recipe)


def test_recipes_by_content_have_the_same_bytes_wherever_the_parents_lie(
    parents: Parents, tmp_path: Path
) -> None:
    init, policy = parents("llama", policies=1)
    flags = "--recipe contents"
    here = run_interpolate(init, policy, tmp_path / "here", 0.5, flags=flags)
    moved = policy.rename(tmp_path / "elsewhere")
    there = run_interpolate(init, moved, tmp_path / "below/there", 0.5, flags=flags)
    assert contents(here) == contents(there)


# --- bad input ---------------------------------------------------------------------------------


def edit_tensors(folder: Path, edit: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def drop(tensors: Tensors) -> None:
    del tensors["model.norm.weight"]


def widen(tensors: Tensors) -> None:
    tensors["model.embed_tokens.weight"] = torch.zeros(21, 16)


def spoil(value: float) -> Callable[[Tensors], None]:
    def edit(tensors: Tensors) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = value

    return edit


def quantise(tensors: Tensors) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float8_e4m3fn)


def edited(edit: Callable[[Tensors], object]) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder, edit)


def cut(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 5000)


def cut_header(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 100)


def garble(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 9)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def rename_token(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"w3"', '"other"'))


def lose(folder: Path) -> None:
    shutil.rmtree(folder)


Bad = namedtuple("Bad", ["damage", "message"])
BAD_POLICIES = {
    "key": Bad(edited(drop), r"B is not of the .*missing=\['model.norm.weight'\]"),
    "shape": Bad(edited(widen), r"B/model.safetensors: tensor model.embed.*\(21, 16\), .*\(20, 16"),
    "vocabulary": Bad(rename_token, r"/B: its tokenizer has 20 tokens.*2 differ, e.g. 'other'"),
    "nan": Bad(edited(spoil(math.nan)), r"B/model.safetensors: tensor model.layers.1.mlp.up.* NaN"),
    "inf": Bad(edited(spoil(-math.inf)), r"B/model.safetensors: tensor model.layers.1.mlp.* Inf"),
    "float8": Bad(edited(quantise), r"B/.*model.norm.weight is torch.float8.*cannot be averaged"),
    "cut short": Bad(cut, r"B/model.safetensors: 5000 bytes, but its header says \d+"),
    "header cut": Bad(
        cut_header, r"B/model.safetensors: no complete safetensors header in its 100"
    ),
    "no safetensors": Bad(garble, r"B/model.safetensors: no complete safetensors header"),
    "pickle": Bad(pickled, r"pytorch_model.bin is a pickle.*from_pretrained\(FOLDER\)"),
    "no folder": Bad(lose, r"/B: missing .*there is no such folder"),
}


@pytest.fixture
def untouched(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Call it before what must fail: afterwards nothing below tmp_path may have changed."""
    before: list[dict[Path, bytes]] = []

    def files() -> dict[Path, bytes]:
        return {p: p.read_bytes() if p.is_file() else b"" for p in tmp_path.rglob("*")}

    yield lambda: before.append(files())
    assert before == [files()]
    assert not list(tmp_path.glob("**/*.tmp*"))


def test_nan_in_half_precision_is_named_by_file_too(parents: Parents, tmp_path: Path) -> None:
    init, a, b = parents()
    for folder in (init, a, b):
        edit_tensors(
            folder, lambda tensors: tensors.update({n: t.half() for n, t in tensors.items()})
        )
    edit_tensors(b, spoil(math.nan))
    with pytest.raises(
        SystemExit, match=r"C/model.safetensors: tensor model.layers.1.mlp.up.* NaN"
    ):
        run_merge(init, [a, b], tmp_path / "out")


@pytest.mark.parametrize("case", BAD_POLICIES)
@pytest.mark.parametrize("stage", ["merge", "interpolate"])
def test_bad_policies_are_refused_and_nothing_is_written(
    case: str, stage: str, parents: Parents, tmp_path: Path, untouched: Callable[[], None]
) -> None:
    init, a, b = parents()
    BAD_POLICIES[case].damage(a)
    untouched()
    with pytest.raises(SystemExit, match=BAD_POLICIES[case].message):
        if stage == "merge":
            run_merge(init, [a, b], tmp_path / "out")
        else:
            run_interpolate(init, a, tmp_path / "out", 0.3, 0.5)


def test_a_missing_shard_is_named(
    parents: Parents, tmp_path: Path, untouched: Callable[[], None]
) -> None:
    init, a, b = parents(shards=True)
    lost = sorted(b.glob("*.safetensors"))[1]
    lost.unlink()
    untouched()
    with pytest.raises(SystemExit, match=rf"/C: missing .*{lost.name}"):
        run_merge(init, [a, b], tmp_path / "out")


def test_an_adapter_is_refused(
    parents: Parents, tmp_path: Path, untouched: Callable[[], None]
) -> None:
    init, a, b = parents()
    (a / "model.safetensors").rename(a / "adapter_model.safetensors")
    (a / "adapter_config.json").write_text("{}")
    untouched()
    with pytest.raises(SystemExit, match=r"/B: missing .*/model\.safetensors; it is an adapter"):
        run_merge(init, [a, b], tmp_path / "out")


@pytest.mark.parametrize("name", ["A", "B", "sub/../C", "full"])
def test_an_output_that_is_an_input_or_there_already_is_refused(
    name: str, parents: Parents, tmp_path: Path, untouched: Callable[[], None]
) -> None:
    init, a, b = parents()
    for folder in ("sub", "full"):
        (tmp_path / folder).mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    untouched()
    message = "is there already" if name == "full" else "is an input"
    with pytest.raises(SystemExit, match=message):
        run_merge(init, [a, b], tmp_path / name)


def test_too_little_room_is_said_before_anything_is_written(
    parents: Parents,
    tmp_path: Path,
    untouched: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    init, a, b = parents()
    untouched()
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(9, 9, 1000))
    with pytest.raises(SystemExit, match=r"GB are to be written, but the disk has 0\.0 GB left"):
        run_merge(init, [a, b], tmp_path / "out")


def test_a_disk_that_fills_up_leaves_nothing(
    parents: Parents,
    tmp_path: Path,
    untouched: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    init, a, b = parents()
    untouched()
    calls = itertools.count()

    def pwrite(*arguments: object) -> int:
        if next(calls) == 4:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(SystemExit, match="No space left"):
        run_merge(init, [a, b], tmp_path / "out")


@pytest.mark.parametrize("flags", ["", "--recipe"])
@pytest.mark.parametrize(
    ("etas", "message"),
    [([-0.1], "expected 0 <= eta"), ([0, 2.1], "eta <= 2"), ([0.3, 0.5, 0.3], "0.3 comes twice")],
)
def test_etas_out_of_range_or_twice_are_refused(
    etas: list[float],
    message: str,
    flags: str,
    parents: Parents,
    tmp_path: Path,
    untouched: Callable[[], None],
) -> None:
    init, policy = parents(policies=1)
    untouched()
    with pytest.raises(SystemExit, match=message):
        run_interpolate(init, policy, tmp_path / "out", *etas, flags=flags)


# --- several processes -------------------------------------------------------------------------


def test_several_processes_do_each_piece_of_work_once_in_order() -> None:
    pids = share_out(lambda number: (number, os.getpid()), 20, 3)
    assert [number for number, _ in pids] == list(range(20))
    assert os.getpid() not in {pid for _, pid in pids}
    assert share_out(lambda number: os.getpid(), 2, 1) == [os.getpid()] * 2


@pytest.mark.parametrize("number", [0, 5])
def test_an_error_or_a_kill_of_one_process_ends_all(number: int) -> None:
    def fail(item: int) -> None:
        if item == number:
            raise ValueError(f"item {item}")
        time.sleep(0.01)

    def die(item: int) -> None:
        if item == number:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ValueError, match=f"item {number}"):
        share_out(fail, 1000, 3)
    with pytest.raises(ChildProcessError, match="-9"):
        share_out(die, 20, 3)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [1, 2])
def test_interpolation_by_several_processes_is_that_of_one(
    workers: int, parents: Parents, tmp_path: Path
) -> None:
    init, policy = parents("gemma", policies=1)
    flags = f"--workers {workers}"
    points = run_interpolate(init, policy, tmp_path / "points", 0.3, 0.5, flags=flags)
    expected = interpolate(read_tensors(init), read_tensors(policy), 0.5)
    assert same_bits(tensors_of(points / "eta0.5"), expected)


# --- kills -------------------------------------------------------------------------------------

# A merge that stops for good in the middle of its writing, and says so.
STALLED = """
import sys, time, merge_policies
from warpflow.merging import writing
real, calls = writing.write_at, []
def write_at(*arguments):
    calls.append(1)
    if len(calls) == 4:
        print("writing", flush=True)
        time.sleep(60)
    real(*arguments)
writing.write_at = write_at
merge_policies.main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "workers"),
    [
        (signal.SIGTERM, 1),
        (signal.SIGINT, 1),
        (signal.SIGHUP, 1),
        (signal.SIGKILL, 1),
        (signal.SIGTERM, 2),
        (signal.SIGKILL, 2),
    ],
)
def test_a_killed_merge_leaves_no_output_and_the_next_one_cleans_up(
    number: signal.Signals, workers: int, parents: Parents, tmp_path: Path
) -> None:
    init, a, b = parents()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    out = tmp_path / "out"
    flags = ["--init", init, "--policies", a, b, "--out", out]
    flags += ["--workers", str(workers)]
    path = f"{ROOT / 'scripts'}:{ROOT / 'workflow'}"
    process = subprocess.Popen(
        [sys.executable, "-c", STALLED, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
        # Where the tests themselves run in a shell's background, SIGINT comes ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"writing")
    assert list(tmp_path.glob("out.tmp*"))
    process.send_signal(number)
    assert process.wait(timeout=30) != 0
    assert not out.exists()
    assert bool(list(tmp_path.glob("out.tmp*"))) == (number == signal.SIGKILL)
    assert {p: p.read_bytes() for p in before} == before
    run_merge(init, [a, b], out)
    assert not list(tmp_path.glob("out.tmp*"))
    assert (out / "model.safetensors").is_file()


def test_left_overs_of_living_processes_and_like_names_are_left_alone(tmp_path: Path) -> None:
    kept = [tmp_path / f"out.tmp{os.getppid()}", tmp_path / "out.tmpl"]
    gone = tmp_path / "out.tmp4194305"  # beyond any process id
    for folder in (*kept, gone):
        folder.mkdir()
    with new_folder(tmp_path / "out", []) as folder:
        (folder / "file").write_text("")
    assert all(folder.is_dir() for folder in kept)
    assert not gone.exists()


def test_signal_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with new_folder(tmp_path / "out", []):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


# --- the points of a front, one after the other ------------------------------------------------


@pytest.mark.parametrize("name", ["gemma", "llama", "gpt2"])
def test_a_front_is_composed_in_one_model_bit_for_bit(
    name: str, parents: Parents, tmp_path: Path
) -> None:
    init, policy = parents(name, policies=1, shards=True)
    composer = Composer(init, policy)
    first = composer.compose(0.5)
    for eta in (0.0, 0.3, 0.85, 1.0, 1.3):
        model = composer.compose(eta)
        assert model is first  # written over in place
        written = run_interpolate(init, policy, tmp_path / f"eta{eta}", eta)
        assert same_bits(dict(model.state_dict()), dict(load_policy(written).state_dict()))


def test_parents_of_other_shapes_are_named_with_their_tensor(
    make_model: MakeModel, save: Save
) -> None:
    init, wide = save(make_model("llama"), "init"), save(make_model("gemma"), "wide")
    with pytest.raises(ValueError, match="wide"):
        Composer(init, wide)
