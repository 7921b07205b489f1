"""Users' own model folders: what is refused, before any compute, and with what words."""

import json
from collections.abc import Callable
from pathlib import Path

import evaluate_front
import pytest
import torch
import train_reward_model
import train_sft
from conftest import EOS, LLAMA_LIKE, MakeModel, MakeTokenizer
from test_rewards import ROWS, batch, classifier
from test_scripts import MODEL, SAMPLING, flags, make_inputs, supervised
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from warpflow.data.files import write_jsonl
from warpflow.data.prepare import PrepareArguments, prepare_data
from warpflow.evaluation.rewards import model_reward
from warpflow.evaluation.task import JudgeArguments, load_judges
from warpflow.lm import models
from warpflow.lm.log_probs import Completions, response_logits
from warpflow.lm.models import (
    build_policy,
    load_policy,
    load_reward_model,
    load_reward_tokenizer,
    load_tokenizer,
    require_context,
    require_room,
    require_vocabulary,
    save_checkpoint,
)
from warpflow.lm.reward_models import sequence_scores


def test_code_that_comes_with_a_model_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "modeling_mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    auto_map = {"AutoConfig": "modeling_mine.Mine", "AutoModelForCausalLM": "modeling_mine.Model"}
    config = {"model_type": "mine", "auto_map": auto_map}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"model type 'mine' needs Python code .*is never run"):
        load_policy(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_code_is_left_alone_where_transformers_has_the_architecture(
    make_model: MakeModel, save: Callable[..., Path]
) -> None:
    """Many folders on the hub are older than the support of their architecture."""
    model = make_model("llama")
    folder = save(model, "policy")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_absent.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    assert type(load_policy(folder)) is type(model)


def test_a_reward_model_is_no_policy(tmp_path: Path) -> None:
    """Hugging Face would draw the head at random."""
    classifier().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks 1 weights of LlamaForCausalLM, lm_head.weight"):
        load_policy(tmp_path)


def test_a_policy_is_no_reward_model(make_model: MakeModel, save: Callable[..., Path]) -> None:
    model = make_model("llama")
    with pytest.raises(ValueError, match=r"2 labels, expected 1: .* no classifier"):
        load_reward_model(save(model, "policy"))
    model.config.num_labels = 1
    with pytest.raises(ValueError, match=r"lacks 1 weights of LlamaForSequence.*, score.weight"):
        load_reward_model(save(model, "labelled"))


def test_a_tokenizer_larger_than_the_embedding_is_refused_by_the_first_job(
    make_model: MakeModel, make_tokenizer: MakeTokenizer, save: Callable[..., Path], tmp_path: Path
) -> None:
    folder = save(make_model("llama"), "policy")
    tokenizer = make_tokenizer()
    require_vocabulary(tokenizer, load_policy(folder).config, folder)
    tokenizer.add_tokens(["one", "two"])
    tokenizer.save_pretrained(folder)
    expected = r"policy: the tokenizer has ids up to 21, but the model's embedding has 20 rows"
    write_jsonl(tmp_path / "rows.jsonl", [{"text": "w0"}, {"text": "w1"}])
    settings = PrepareArguments(
        prompts_path=str(tmp_path / "rows.jsonl"),
        prompts_column="text",
        eval_prompts=1,
        seed=0,
        max_text_tokens=9,
        max_prompt_tokens=9,
        tokenizer_path=str(folder),
    )
    with pytest.raises(ValueError, match=expected):
        prepare_data(settings, tmp_path / "data")
    with pytest.raises(ValueError, match=expected):
        train_sft.main(supervised(data=tmp_path, out=tmp_path / "sft", seed=0, policy=folder))


def test_ids_that_the_tokenizer_lacks_are_noted_where_a_policy_is_saved(
    make_model: MakeModel, make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    """Qwen2.5's embedding has more rows than its tokenizer has ids."""
    model, tokenizer = make_model("qwen2"), make_tokenizer()
    save_checkpoint(model, tokenizer, tmp_path / "equal")
    assert "sampled_vocab_size" not in json.loads((tmp_path / "equal/config.json").read_text())
    model.resize_token_embeddings(32)
    save_checkpoint(model, tokenizer, tmp_path / "padded")
    policy = load_policy(tmp_path / "padded")
    ids = torch.ones(1, 2, dtype=torch.int64)
    batch = Completions(ids, ids.bool(), ids, ids.bool(), ids[:, 0].bool())
    assert policy(ids).logits.shape[-1] == 32
    assert response_logits(policy, batch, 1.0).shape[-1] == 20


def test_a_reward_model_smaller_than_its_tokenizer_is_refused_before_the_run(
    tmp_path: Path,
) -> None:
    """An id beyond its embedding would be an IndexError in mid-run."""
    folder = make_inputs(tmp_path)
    data, sft, reward = folder / "data", folder / "sft", folder / "reward_model"
    tokenizer = load_tokenizer(reward)
    tokenizer.add_tokens(["one"])
    tokenizer.save_pretrained(reward)
    given = JudgeArguments(str(sft), str(data), 16, MODEL, str(reward))
    with pytest.raises(ValueError, match=r"reward_model: the tokenizer has ids up to"):
        load_judges(given, 6)


def test_recurrent_policies_are_refused(make_tokenizer: MakeTokenizer) -> None:
    """They cannot have left pads, nor rows that leave the batch."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
    with pytest.raises(ValueError, match=r"policy.architecture: layers of model type 'mamba' keep"):
        build_policy({"model_type": "mamba", **sizes}, make_tokenizer(), 0)
    hybrid = {**LLAMA_LIKE, "model_type": "lfm2", "layer_types": ["conv", "full_attention"]}
    with pytest.raises(ValueError, match="'lfm2' keep a state other than keys and values"):
        build_policy(hybrid, make_tokenizer(), 0)


def test_prompt_and_completion_fit_into_the_context(make_model: MakeModel) -> None:
    for name in ("llama", "gpt2"):  # max_position_embeddings and n_positions
        config = make_model(name).config
        require_context(config, 256, "mine")
        with pytest.raises(ValueError, match=r"= 257 exceed the context of mine .* = 256"):
            require_context(config, 257, "mine")


def test_what_no_batch_can_hold_is_said_with_the_number(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_model("llama").config  # 2 layers, a key head of 8: 128 bytes a token
    monkeypatch.setattr(models, "device_memory", lambda: 128 * 1000)
    require_room(config, 1000, "mine")
    with pytest.raises(ValueError, match=r"mine: keys and values of one completion of 1001 tokens"):
        require_room(config, 1001, "mine")
    config.vocab_size = 2**26
    with pytest.raises(ValueError, match=r"logits of one token are 67,108,864 numbers"):
        require_room(config, 8, "mine")


def test_an_encoder_without_eos_is_a_reward_model(
    make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    """BERT has other special tokens, which its tokenizer puts around a text."""
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *[f"w{i}" for i in range(16)]]
    backend = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    given = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]",
    )  # fmt: skip
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=20, num_labels=1, intermediate_size=16, **sizes)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    given.save_pretrained(tmp_path / "bert")
    arguments = {"data": tmp_path, "sft": tmp_path, "out": tmp_path / "stored", "seed": 0}
    train_reward_model.main(supervised(**arguments, held_out=2, path=tmp_path / "bert"))
    model = load_reward_model(tmp_path / "stored").requires_grad_(False)
    tokenizer = load_reward_tokenizer(tmp_path / "stored")
    assert tokenizer.eos_token is None
    scores = model_reward(model, tokenizer, make_tokenizer(), {})(batch())
    texts = ["w0 w3", "w1 w2 w4 w5", ""]
    alone = torch.cat([sequence_scores(model, [tokenizer(text)["input_ids"]]) for text in texts])
    torch.testing.assert_close(scores, alone, atol=1e-5, rtol=1e-5)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "stored")
    with pytest.raises(ValueError, match="stored has no pad token: set pad_token in its"):
        load_reward_tokenizer(tmp_path / "stored")


def test_a_trained_reward_model_sees_the_end_of_a_text_where_pad_is_eos(
    make_model: MakeModel, make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    """GPT-2 has no pad token. Hugging Face's classifiers score the last token that is no pad, and
    EOS would be one."""
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    model = make_model("gpt2")
    model.config.pad_token_id = EOS
    model.save_pretrained(tmp_path / "sft")
    tokenizer.save_pretrained(tmp_path / "sft")
    assert load_tokenizer(tmp_path / "sft").pad_token_id == EOS
    rows = [{"prompt": "w0", "chosen": "w1", "rejected": f"w{2 + i % 9}"} for i in range(12)]
    write_jsonl(tmp_path / "preferences.jsonl", rows)
    paths = {"data": tmp_path, "sft": tmp_path / "sft", "out": tmp_path / "reward"}
    train_reward_model.main(supervised(**paths, seed=0, held_out=4))
    model = load_reward_model(tmp_path / "reward").requires_grad_(False)
    ended, open_ended = sequence_scores(model, [ROWS[1], ROWS[1][:-1]])
    assert ended != open_ended
    whole = sequence_scores(model, ROWS)
    alone = torch.cat([sequence_scores(model, [row]) for row in ROWS])
    torch.testing.assert_close(whole, alone, atol=1e-5, rtol=1e-5)


def test_a_policy_shorter_than_prompt_and_completion_is_refused_before_sampling(
    tmp_path: Path,
) -> None:
    folder = make_inputs(tmp_path)
    config = json.loads((folder / "sft/config.json").read_text())
    (folder / "sft/config.json").write_text(json.dumps(config | {"max_position_embeddings": 20}))
    paths = {name: folder / name for name in ("sft", "reward_model", "data")}
    sizes = {"prompts": 8, "samples_per_prompt": 2, "batch_size": 4, "completions": 3}
    with pytest.raises(ValueError, match=r"max_prompt_tokens \+ max_new_tokens = 22 exceed"):
        evaluate_front.main(
            flags(policy=folder / "sft", out=tmp_path / "e.json", seed=0, rewards=MODEL)
            + flags(**paths, **sizes, **SAMPLING)
        )
