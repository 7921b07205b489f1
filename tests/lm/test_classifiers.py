"""Reward models as they are published: they read a conversation as they were trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import train_reward_model
from conftest import BOS, LLAMA_LIKE, PAD
from test_prompts import DIALOGUE, USER, make_chat_tokenizer
from test_scripts import supervised
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from warpflow.evaluation.rewards import index_rows, model_reward
from warpflow.lm.classifiers import load_classifier
from warpflow.lm.log_probs import Completions
from warpflow.lm.models import load_reward_tokenizer, load_tokenizer
from warpflow.lm.prompts import Prompt, encode_prompts
from warpflow.lm.reward_models import sequence_scores
from warpflow.lm.sampling import pad_left
from warpflow.lm.texts import tokens_of_prompts

ANSWERS = ["good", "The film was bad.", ""]


def publish(folder: Path, template: str, kind: Any, **changes: Any) -> Path:
    """A reward model as its authors would save it, with a chat template."""
    tokenizer = make_chat_tokenizer(template, folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        **LLAMA_LIKE, vocab_size=len(tokenizer), pad_token_id=PAD, num_labels=1, **changes
    )
    model = kind.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if name == "score.bias":  # not drawn at random: without it nobody would miss it
            torch.nn.init.constant_(parameter, 0.7)
    model.save_pretrained(folder)
    return folder


def sampled(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], answers: Sequence[str]
) -> Completions:
    """Answers that ended, as a policy with this tokenizer samples them."""
    ids, is_prompt = pad_left(encode_prompts(tokenizer, prompts), PAD)
    rows = [[*tokenizer(answer)["input_ids"], tokenizer.eos_token_id] for answer in answers]
    reversed_ids, reversed_mask = pad_left([row[::-1] for row in rows], PAD)
    finished = torch.ones(len(rows), dtype=torch.bool)
    return Completions(ids, is_prompt, reversed_ids.flip(1), reversed_mask.flip(1), finished)


LAYOUTS = [
    ("llama", AutoModelForSequenceClassification, {"model_type": "llama"}),
    ("gemma", AutoModelForSequenceClassification, {"model_type": "gemma", "head_dim": 8}),
    ("chatml", AutoModelForTokenClassification, {"model_type": "qwen2"}),
    ("llama", AutoModelForTokenClassification, {"model_type": "llama"}),
]


def as_trained(kind: Any, folder: Path, messages: list[dict[str, str]]) -> float:
    """Return the score by the authors' own recipe: the template's ids, and the head at the last
    token."""
    tokenizer, model = load_reward_tokenizer(folder), kind.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=False)
    logits = model.float()(ids).logits
    return (logits[0, -1, 0] if logits.dim() == 3 else logits[0, 0]).item()


@pytest.mark.parametrize(("template", "kind", "changes"), LAYOUTS)
def test_a_published_reward_model_reads_the_conversation_as_it_was_trained(
    tmp_path: Path, template: str, kind: Any, changes: dict[str, Any]
) -> None:
    """This holds for any template and vocabulary of the policy. There is one BOS where its template
    has one."""
    folder = publish(tmp_path / "reward", template, kind, **changes)
    policy = make_chat_tokenizer("gemma" if template != "gemma" else "chatml", tmp_path / "policy")
    policy.add_tokens(["<another>"])
    model, tokenizer = load_classifier(folder), load_reward_tokenizer(folder)
    prompts = [USER, DIALOGUE, USER]
    batch = sampled(policy, prompts, ANSWERS)
    rows = index_rows(tokens_of_prompts(batch), [{"prompt": prompt} for prompt in prompts])
    seen: list[torch.Tensor] = []
    model.register_forward_pre_hook(
        lambda module, args, given: seen.append(given["input_ids"]), with_kwargs=True
    )
    scores = model_reward(model, tokenizer, policy, rows)(batch)
    expected = [
        as_trained(kind, folder, [*prompt, {"role": "assistant", "content": answer}])
        for prompt, answer in zip(prompts, ANSWERS, strict=True)
    ]
    torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-5, rtol=1e-5)
    assert (seen[0] == BOS).sum(1).tolist() == [int(template != "chatml")] * 3


@pytest.mark.parametrize("template", ["llama", "chatml"])
def test_a_rendered_prompt_gets_no_second_bos(tmp_path: Path, template: str) -> None:
    """Where policy and reward model share a tokenizer, the sampled ids are read as they are."""
    folder = publish(
        tmp_path / "reward", template, AutoModelForSequenceClassification, model_type="llama"
    )
    policy = load_tokenizer(folder)
    rendered = str(policy.apply_chat_template(USER, tokenize=False, add_generation_prompt=True))
    batch = sampled(policy, [rendered], ["good"])
    model = load_classifier(folder)
    seen: list[torch.Tensor] = []
    model.register_forward_pre_hook(
        lambda module, args, given: seen.append(given["input_ids"]), with_kwargs=True
    )
    model_reward(model, load_reward_tokenizer(folder), policy, {})(batch)
    assert (seen[0] == BOS).sum().item() == (template == "llama")


def test_a_head_on_every_token_is_stored_whole(tmp_path: Path) -> None:
    """train_reward_model stores the user's model for later stages."""
    kind = AutoModelForTokenClassification
    folder = publish(tmp_path / "given", "chatml", kind, model_type="qwen2")
    stored = tmp_path / "stored"
    given = supervised(data=tmp_path, sft=tmp_path, out=stored, seed=0, held_out=2, path=folder)
    train_reward_model.main(given)
    rows = [[5, 6, 7], [8, 9]]
    assert torch.equal(scores_of(stored, rows), scores_of(folder, rows))
    assert kind.from_pretrained(stored).score.bias.item() == pytest.approx(0.7)


def scores_of(folder: Path, rows: list[list[int]]) -> torch.Tensor:
    model: PreTrainedModel = load_classifier(folder)
    return sequence_scores(model.requires_grad_(False), rows)
