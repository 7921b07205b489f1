"""What of sampling by vLLM needs no vLLM: seeds, tensors, refusals, and what it is asked for.
tests/lm/test_vllm_engine.py has the engine itself."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import BOS, EOS, PAD, MakeModel
from transformers import AutoConfig

from warpflow.lm.log_probs import of_known_ids
from warpflow.lm.sampling import completed, draw_uniforms, pad_left
from warpflow.lm.vllm_sampler import (
    BLOCK,
    Engine,
    cache_bytes,
    check_names,
    require_architecture,
    require_head_width,
    require_room,
    row_seeds,
    sample_by_vllm,
    sampled_ids,
    unchanged_process,
)

PROMPTS = [[BOS, 5, 6], [BOS, 7]]


def test_a_row_has_a_seed_of_its_own_which_its_uniforms_give() -> None:
    uniforms = draw_uniforms(64, 6, "cpu", 0, "sampling", 1)
    seeds = row_seeds(uniforms)
    assert seeds == row_seeds(draw_uniforms(64, 6, "cpu", 0, "sampling", 1))
    assert row_seeds(uniforms[7:9]) == seeds[7:9]
    others = row_seeds(draw_uniforms(64, 6, "cpu", 0, "sampling", 2))
    assert len({*seeds, *others}) == 128
    assert min(seeds) >= 0 and max(seeds) < 2**53
    assert [seed / 2**53 for seed in seeds] == uniforms[:, 0].tolist()  # no digit is lost


class Recorder:
    """Stands for vLLM: notes what it is asked, and answers what it was told to."""

    def __init__(self, answers: list[list[int]]) -> None:
        self.answers, self.asked, self.calls = answers, [], []

    def collective_rpc(self, name: str, kwargs: dict[str, Any]) -> None:
        self.calls.append(name)
        self.weights = {name: tensor.clone() for name, tensor in kwargs["weights_iterator"]}

    def apply_model(self, function: Any) -> None:
        self.calls.append(function.__name__)

    def reset_prefix_cache(self) -> bool:
        self.calls.append("reset_prefix_cache")
        return True

    def generate(self, prompts: Any, params: Any, use_tqdm: bool) -> list[Any]:
        self.calls.append("generate")
        self.asked = list(zip(prompts, params, strict=True))
        return [
            SimpleNamespace(
                outputs=[
                    SimpleNamespace(
                        token_ids=ids,
                        logprobs=[{token: SimpleNamespace(logprob=-token / 8)} for token in ids],
                    )
                ]
            )
            for ids in self.answers
        ]


def sample(recorder: Recorder, model: Any, eos_ids: list[int], **changes: Any) -> Any:
    prompt_ids, is_prompt = pad_left(PROMPTS, PAD)
    given = {
        "max_new_tokens": 3,
        "temperature": 0.9,
        "eos_ids": eos_ids,
        "pad_id": PAD,
        "uniforms": draw_uniforms(4, 3, "cpu", 0),
        "samples_per_prompt": 2,
    }
    engine = Engine(recorder, lambda **settings: settings)
    return sample_by_vllm(engine, model, prompt_ids, is_prompt, **given | changes)


def test_completions_are_those_of_our_sampler(make_model: MakeModel) -> None:
    """The EOS is a token of its completion; one that is cut off has none; pads stand after it."""
    answers = [[5, 6, 7], [5, EOS], [EOS], [5, 6, 8]]
    found = sample(Recorder(answers), make_model("llama"), [EOS, 8])
    filled = torch.tensor([[*ids, *[PAD] * (3 - len(ids))] for ids in answers])
    expected = completed(
        *(rows.repeat_interleave(2, 0) for rows in pad_left(PROMPTS, PAD)),
        filled,
        torch.tensor([EOS, 8]),
    )
    for name, tensor in vars(expected).items():
        if name != "sampler_log_probs":
            assert torch.equal(getattr(found, name), tensor), name
    assert found.finished.tolist() == [False, True, True, True]
    assert torch.equal(found.sampler_log_probs, -filled / 8 * found.is_response)


def test_all_weights_are_given_and_the_cache_forgotten_before_anything_is_drawn(
    make_model: MakeModel,
) -> None:
    model, recorder = make_model("gemma"), Recorder([[5]] * 4)
    sample(recorder, model, [EOS])
    order = ["reload_weights", "renew_output_layer_", "reset_prefix_cache", "generate"]
    assert recorder.calls == order
    assert recorder.weights.keys() == dict(model.named_parameters()).keys()
    for name, weight in model.named_parameters():
        assert torch.equal(recorder.weights[name], weight)


def test_it_draws_from_the_whole_distribution_with_the_rows_seed(make_model: MakeModel) -> None:
    recorder = Recorder([[5]] * 4)
    sample(recorder, make_model("llama"), [EOS, 8])
    prompts = [prompt["prompt_token_ids"] for prompt, _ in recorder.asked]
    assert prompts == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2  # without pads
    seeds = row_seeds(draw_uniforms(4, 3, "cpu", 0))
    for (_, asked), seed in zip(recorder.asked, seeds, strict=True):
        assert (asked["seed"], asked["temperature"], asked["max_tokens"]) == (seed, 0.9, 3)
        assert (asked["top_k"], asked["top_p"], asked["min_p"]) == (0, 1.0, 0.0)
        assert asked["ignore_eos"] and asked["stop_token_ids"] == [EOS, 8]
        assert asked["allowed_token_ids"] is None


def test_ids_that_the_tokenizer_lacks_are_not_drawn(make_model: MakeModel) -> None:
    model = make_model("llama")
    assert sampled_ids(model) is None
    model.config.sampled_vocab_size, model.config.unsampled_ids = 18, [4, 9]
    ours = of_known_ids(torch.zeros(1, 20), model)[0]
    assert sampled_ids(model) == (ours == 0).nonzero()[:, 0].tolist()


def test_a_temperature_that_vllm_would_raise_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match=r"policy\.temperature: got 0\.001, but vLLM samples at"):
        sample(Recorder([]), make_model("llama"), [EOS], temperature=0.001)


def test_random_numbers_and_threads_are_as_before() -> None:
    """Whatever runs inside seeds all generators and replaces torch's function."""
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(()).item()

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    expected = draw()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    with pytest.raises(KeyError), unchanged_process():
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(0)
        torch.set_num_threads = lambda count: None
        raise KeyError  # also where it fails
    assert draw() == expected
    assert torch.set_num_threads is set_threads
    assert torch.get_num_threads() == threads


def test_the_cache_holds_all_rows_and_one_more() -> None:
    config = AutoConfig.for_model(
        "llama",
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=8,
    )
    token = 2 * 3 * 2 * 16 * 4  # keys and values, layers, heads, width, bytes
    assert cache_bytes(config, 7, 33, "float32") == 8 * 2 * BLOCK * token
    assert cache_bytes(config, 7, 32, "bfloat16") == 8 * BLOCK * token // 2


def test_too_small_a_gpu_is_named_with_what_to_do() -> None:
    require_room(10**9, 10**9)
    with pytest.raises(MemoryError, match=r"takes 3\.0 GB .* has 1\.0 GB left: set sampler to own"):
        require_room(3 * 10**9, 10**9)


def test_an_architecture_that_vllm_lacks_is_refused(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("warpflow.lm.vllm_sampler.version", lambda: "0.32.0")
    model = make_model("llama")
    require_architecture(model, {"LlamaForCausalLM"})
    with pytest.raises(ValueError, match=r"vLLM 0\.32\.0 has no architecture LlamaForCausalLM"):
        require_architecture(model, {"OPTForCausalLM"})


def test_heads_that_vllm_has_not_on_a_cpu_are_refused(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("warpflow.lm.vllm_sampler.version", lambda: "0.32.0")
    config = make_model("llama").config
    require_head_width(config, [8, 32])
    with pytest.raises(ValueError, match=r"heads are 8 wide, and those of vLLM .* CPU 32, 64: set"):
        require_head_width(config, [32, 64])


def test_weights_with_other_names_in_the_files_are_refused(
    make_model: MakeModel, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"has no \*\.safetensors: give --init such a folder"):
        check_names(make_model("qwen2"), tmp_path)
    make_model("qwen2").save_pretrained(tmp_path / "tied")
    check_names(make_model("qwen2"), tmp_path / "tied")
    with pytest.raises(ValueError, match=r"have another name in memory, lm_head\.weight among"):
        check_names(make_model("qwen2", tie_word_embeddings=False), tmp_path / "tied")
