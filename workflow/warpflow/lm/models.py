"""Policies, reward models and tokenizers as Hugging Face folders."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from warpflow.file_modes import make_readable
from warpflow.lm.log_probs import LOGITS_AT_ONCE
from warpflow.lm.prompts import end_of_turn, warn_once
from warpflow.weight_files import gguf_problem, is_gguf

RECIPE = "recipe.json"  # in place of weights in a folder that `warpflow.merging.recipes` wrote


def pick_device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_device(model: PreTrainedModel) -> PreTrainedModel:
    """Put the model on the device of `pick_device`, in evaluation mode."""
    return model.eval().to(pick_device())  # type: ignore[arg-type]


def matrices(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    """Return the weights that autocast rounds for each matrix product. They are all but norms,
    biases, embeddings and what is tied to these."""
    embeddings = [m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    looked_up = {id(weight) for weight in embeddings}
    return [p for p in model.parameters() if p.dim() > 1 and id(p) not in looked_up]


def round_matrices_(model: PreTrainedModel) -> None:
    """Store in bf16 what autocast would round to it. This takes half the memory, and under autocast
    gives the same bits."""
    for weight in matrices(model):
        weight.data = weight.data.bfloat16()


def compute_in(dtype: str, device: torch.device) -> torch.autocast:
    """Compute matrix products in `dtype`. Weights, gradients, optimiser and EMA stay fp32 masters,
    since at lr 1e-6 and μ = 0.01 their steps round to nothing in bf16."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


@contextmanager
def lent(
    model: PreTrainedModel, kept: Sequence[torch.Tensor], device: torch.device
) -> Iterator[None]:
    """Have the model's weights on the device while the context lasts. They are kept elsewhere."""
    for parameter, weight in zip(model.parameters(), kept, strict=True):
        parameter.data = weight.to(device, non_blocking=True)
    try:
        yield
    finally:
        for parameter, weight in zip(model.parameters(), kept, strict=True):
            parameter.data = weight


def keep_in_host_memory_(model: PreTrainedModel) -> list[torch.Tensor]:
    """Move a model's weights to host memory. `lent` brings them to the device when needed."""
    kept = [in_host_memory(parameter.data) for parameter in model.parameters()]
    for parameter, weight in zip(model.parameters(), kept, strict=True):
        parameter.data = weight
    return kept


def in_host_memory(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy in host memory, pinned where it will be sent to a GPU."""
    copied = tensor.to("cpu", copy=True)
    return copied.pin_memory() if tensor.is_cuda else copied


def build_policy(
    architecture: dict[str, Any], tokenizer: PreTrainedTokenizerBase, seed: int
) -> PreTrainedModel:
    """Return a randomly initialised causal language model for `tokenizer`'s vocabulary.

    Args:
        architecture: keyword arguments of a Hugging Face config, `model_type` among them, e.g.
            ``{"model_type": "gemma", "hidden_size": 96, ...}``.
    """
    config = AutoConfig.for_model(
        **architecture,
        vocab_size=max(tokenizer.get_vocab().values()) + 1,  # more than its length if it has gaps
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    require_attention(config, "policy.architecture")
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def location(path: str | Path) -> dict[str, Any]:
    """Return where a model is, as arguments of `from_pretrained`. It is a folder, a name on the
    hub, or a GGUF file (folder/file.gguf), which also holds the tokenizer.

    Raises:
        ValueError: the GGUF file cannot be read here (`weight_files.gguf_problem`).
    """
    if not is_gguf(path):
        return {"pretrained_model_name_or_path": path}
    if problem := gguf_problem(path):
        raise ValueError(problem)
    file = Path(path)
    return {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}


def load_config(path: str | Path) -> PreTrainedConfig:
    """Load the config of a Hugging Face model, or the one that a GGUF file implies.

    Raises:
        ValueError: the model comes with its own Python code, which is never run.
    """
    place = location(path)
    try:
        return AutoConfig.from_pretrained(**place, trust_remote_code=False)
    except ValueError as error:
        given, _ = PreTrainedConfig.get_config_dict(path)
        if "auto_map" not in given:
            raise
        raise ValueError(
            f"{path}: model type {given.get('model_type')!r} needs Python code that comes with the "
            "model (auto_map in its config.json); such code is never run here (trust_remote_code "
            "is off): take a model of an architecture that transformers has itself"
        ) from error


def load_whole(kind: Any, path: str | Path, attention: str | None = None) -> PreTrainedModel:
    """Load a model of an Auto class in fp32 on the device, with every weight from the files.

    Args:
        attention: `attn_implementation` of transformers. None leaves the choice to transformers.

    Raises:
        ValueError: a weight is not in the files, and Hugging Face would draw it at random; or the
            weights are quantised. Those of a GGUF file are turned into float32 here.
    """
    quantisation = getattr(load_config(path), "quantization_config", None)
    if quantisation and not is_gguf(path):
        raise ValueError(
            f"{path} is quantised ({quantisation.get('quant_method', 'quantization_config')}), and "
            "models are loaded in float32 here: take the model as it was before it was quantised, "
            "or see docs/your_models.md"
        )
    model, report = kind.from_pretrained(
        **location(path),
        dtype=torch.float32,
        trust_remote_code=False,
        output_loading_info=True,
        **({"attn_implementation": attention} if attention else {}),
    )
    if is_gguf(path):
        forget_quantisation_(model)
        logging.info("%s: weights of a GGUF file, rounded when it was made, in float32 now", path)
    return to_device(require_whole(model, report, path))


def require_whole(
    model: PreTrainedModel, report: Mapping[str, Any], path: str | Path
) -> PreTrainedModel:
    """Return the model. Raises ValueError where a weight was not in the files.

    Args:
        report: what ``from_pretrained(…, output_loading_info=True)`` says about loading it.
    """
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} weights of {type(model).__name__}, {missing[0]} among "
            "them, which would be random: expected a policy (causal language model) for "
            "policy.path, a reward model (sequence classifier) for train_reward_model.path"
        )
    return model


def forget_quantisation_(model: PreTrainedModel) -> None:
    """Remove from a model what says that it is quantised. transformers dequantises the weights of a
    GGUF file, but would still refuse to save the model."""
    said = {"hf_quantizer": None, "is_quantized": False, "quantization_method": None}
    for name, value in said.items():
        setattr(model, name, value)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def load_policy(path: str | Path, attention: str | None = None) -> PreTrainedModel:
    """Load a causal language model with fp32 masters, without dropout, on the device.

    Without `dtype` a bf16 checkpoint would stay bf16, where steps of lr 1e-6 round to nothing.

    Args:
        attention: see `load_whole`.

    Raises:
        ValueError: the folder is a recipe, which has no weights. See also `load_whole`.
    """
    if Path(path, RECIPE).is_file():
        raise ValueError(
            f"{path} is a recipe of two checkpoints ({RECIPE}) and has no weights of its own: load "
            "it with warpflow.merging.points.load_point, or write its weights first with "
            f"`python scripts/interpolate_policy.py --export {path} --out FOLDER`"
        )
    return load_whole(AutoModelForCausalLM, path, attention)


def warn_of_half_precision(path: str | Path) -> None:
    """Warn where a policy is stored in bf16 or fp16. This rounding stays in θ_init, and small task
    vectors vanish when merges are stored in such a type. Training and merging here are fp32."""
    dtype = load_config(path).dtype
    if dtype in (torch.bfloat16, torch.float16):
        logging.warning(
            "WARNING: %s is stored in %s. It is trained, averaged and stored in float32 from here "
            "on; do not round it back before the last export.",
            path,
            dtype,
        )


def load_reward_model(path: str | Path) -> PreTrainedModel:
    """Load a sequence classifier with one label, in fp32, on the device.

    Raises:
        ValueError: more than one label, or no such head.
    """
    labels = load_config(path).num_labels
    if labels != 1:
        raise ValueError(
            f"reward model {path} has {labels} labels, expected 1: a reward is one number; pick a "
            "model trained with num_labels=1 (2 is also what a config without labels means, that "
            "of a model that is no classifier)"
        )
    return load_whole(AutoModelForSequenceClassification, path)


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Load a policy's tokenizer, which has an EOS token. A missing pad token becomes the EOS token.

    Raises:
        ValueError: it has no EOS token, so that no completion could ever end.
    """
    tokenizer = AutoTokenizer.from_pretrained(**location(path), trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"tokenizer {path} has no EOS token: set eos_token in its tokenizer_config.json"
        )
    closing = template_closing(tokenizer)
    if closing is not None and not is_special(tokenizer, closing):
        # It is special, as in the template. Otherwise it would be in the text of every answer.
        tokenizer.add_special_tokens({"additional_special_tokens": [closing]}, False)
    return with_pad(tokenizer, path)


def is_special(tokenizer: PreTrainedTokenizerBase, token: str) -> bool:
    """Whether decoding leaves a token out."""
    given = tokenizer.added_tokens_decoder.values()
    return token in tokenizer.all_special_tokens or any(
        added.special for added in given if added.content == token
    )


def ending_ids(path: str | Path, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end a completion of the policy at `path`: its tokenizer's EOS token, the
    token with which its chat template closes an answer, and those of its generation config (Llama
    3, Gemma and Qwen list several)."""
    try:
        listed = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:  # there is no such file, and the model's config says what it would hold
        listed = GenerationConfig.from_model_config(load_config(path)).eos_token_id
    ids = {tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed])}
    closing = template_closing(tokenizer)
    if closing is not None and (end := tokenizer.convert_tokens_to_ids(closing)) not in ids:
        ids.add(end)
        warn_once(
            f"completions end with {closing} too, with which the chat template closes an answer "
            f"({path} lists {', '.join(sorted(map(str, ids - {None, end})))} as its EOS ids)"
        )
    return sorted(ids - {None})


def template_closing(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the token with which a chat template closes an answer to a user. Return None where
    there is none, or where the template takes no such dialogue."""
    if tokenizer.chat_template is None:
        return None
    try:
        return end_of_turn(tokenizer, [{"role": "user", "content": "A question?"}])
    except (TemplateError, ValueError):  # ValueError: several templates, and no default
        return None


def load_reward_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Load a reward model's tokenizer. That of an encoder (BERT) has no EOS token and needs
    none."""
    return with_pad(AutoTokenizer.from_pretrained(**location(path), trust_remote_code=False), path)


def with_pad(tokenizer: PreTrainedTokenizerBase, path: str | Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer, which pads with its EOS token where it has no pad token. Raises
    ValueError where it has neither, because texts could not be scored together."""
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        raise ValueError(
            f"tokenizer {path} has no pad token: set pad_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def pad_id_beside_eos(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id with which a classifier's texts are padded. Hugging Face's causal classifiers
    score a text at its last token that is not the pad. If the pad were the EOS token, they could
    not tell a text that ended from one that did not."""
    eos = tokenizer.eos_token_id
    return tokenizer.pad_token_id if tokenizer.pad_token_id != eos else int(eos == 0)


def tokens_beyond(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> dict[str, int]:
    """Return the tokenizer's tokens, with their ids, for which the model's embedding has no row."""
    rows = config.get_text_config().vocab_size
    return {token: i for token, i in tokenizer.get_vocab().items() if i >= rows}


def require_vocabulary(
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    path: str | Path,
    sampled_rows: int = 0,
) -> None:
    """Raise ValueError where the tokenizer has ids beyond the model's embedding.

    A special token beyond it is ignored (Gemma 3 of 1B has one, for images), because no ordinary
    text holds it. The tokens that are put into every batch must have a row.

    Args:
        sampled_rows: ids below this number come from a policy with such a tokenizer, special tokens
            too.
    """
    beyond, rows = tokens_beyond(tokenizer, config), config.get_text_config().vocab_size
    used = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    passed = [
        token
        for token, i in beyond.items()
        if is_special(tokenizer, token) and i >= sampled_rows and i not in used
    ]
    if len(passed) < len(beyond):
        raise ValueError(
            f"{path}: the tokenizer has ids up to {max(beyond.values())}, but the model's "
            f"embedding has {rows} rows (vocab_size in config.json): expected a tokenizer and a "
            "model that belong together; call model.resize_token_embeddings(len(tokenizer)) and "
            "save both"
        )
    if passed:
        warn_once(
            f"{path}: the model's embedding has no row for {', '.join(sorted(passed)[:3])}, "
            f"{len(passed)} special tokens of its tokenizer: they are never sampled, and no text "
            "may hold them"
        )


def require_attention(config: PreTrainedConfig, path: str | Path) -> None:
    """Raise ValueError for a policy with recurrent or convolutional layers (Mamba, Jamba). Pads on
    the left go through their states, and completions that ended cannot leave them."""
    layers = {type(layer) for layer in DynamicCache(config=config).layers}
    if layers - {DynamicLayer, DynamicSlidingWindowLayer}:
        raise ValueError(
            f"{path}: layers of model type {config.model_type!r} keep a state other than keys and "
            "values, which batches of prompts of several lengths would spoil: expected a policy "
            "whose layers are attention, full or in a window"
        )


def require_context(config: PreTrainedConfig, tokens: int, path: str | Path) -> None:
    """Raise ValueError where prompt and completion may be longer than a policy's context."""
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is not None and tokens > context:
        raise ValueError(
            f"policy: max_prompt_tokens + max_new_tokens = {tokens} exceed the context of {path} "
            f"(max_position_embeddings = {context} in its config.json): lower them"
        )


def head_width(config: PreTrainedConfig) -> int:
    """Return the width of an attention head."""
    config = config.get_text_config()
    given: int | None = getattr(config, "head_dim", None)
    return given or config.hidden_size // config.num_attention_heads


def cached_numbers(config: PreTrainedConfig) -> int:
    """Return how many numbers the keys and values of one token are, in all layers."""
    config = config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    count: int = 2 * config.num_hidden_layers * heads * head_width(config)
    return count


def require_room(config: PreTrainedConfig, tokens: int, path: str | Path) -> None:
    """Raise ValueError where no batch is small enough, because the logits of a single token, or the
    keys and values of a single completion, do not fit."""
    config = config.get_text_config()
    if config.vocab_size > LOGITS_AT_ONCE:
        raise ValueError(
            f"{path}: the logits of one token are {config.vocab_size:,} numbers (vocab_size), "
            f"expected at most {LOGITS_AT_ONCE:,}: no part of a batch can be smaller"
        )
    cache = 4 * cached_numbers(config) * tokens
    room = device_memory()
    if cache > room:
        raise ValueError(
            f"{path}: keys and values of one completion of {tokens} tokens (max_prompt_tokens + "
            f"max_new_tokens) take {cache / 1e9:.1f} GB, but the device has {room / 1e9:.1f} GB: "
            "no batch can be smaller; lower the limits"
        )


def device_memory() -> int:
    """Return the bytes of memory of the device of `pick_device`."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def note_known_ids_(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Note in a model's config for which rows of its embedding the tokenizer has no id. They are
    never sampled (`log_probs.of_known_ids`). The first time a message says so."""
    ids, rows = set(tokenizer.get_vocab().values()), config.get_text_config().vocab_size
    known = max(ids) + 1
    gaps = sorted(set(range(min(known, rows))) - ids)
    if known < rows and getattr(config, "sampled_vocab_size", None) != known:
        config.sampled_vocab_size = known
        logging.info(
            "the embedding has %d rows, the tokenizer ids up to %d: those beyond are never sampled",
            *(rows, known - 1),
        )
    if gaps and getattr(config, "unsampled_ids", None) != gaps:
        config.unsampled_ids = gaps
        logging.info("the tokenizer lacks %d ids below: they are never sampled", len(gaps))


def save_checkpoint(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Save weights (safetensors), config and tokenizer, readable by all who may read the folder.

    Args:
        weights: the gathered weights, where the model is sharded.

    A model without a pad token (GPT-2) gets the tokenizer's, because a reward model that starts
    from it could not score batches otherwise. Its config says which ids are never sampled
    (`note_known_ids_`).
    """
    note_known_ids_(model.config, tokenizer)
    config = model.config.get_text_config()  # a classifier may be multimodal, too
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
    save_model(model, folder, weights)
    tokenizer.save_pretrained(folder)
    make_readable(folder)


def save_model(
    model: PreTrainedModel, folder: str | Path, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """Save weights and configs as they are, also a generation config that transformers calls
    invalid: models of the hub have a temperature without do_sample. transformers reads it, but
    would stop here, after all training, once a token was changed in it."""
    given = model.generation_config if model.can_generate() else None
    if given is None:
        model.save_pretrained(folder, state_dict=weights)
        return
    model.generation_config = GenerationConfig()
    try:
        model.save_pretrained(folder, state_dict=weights)
    finally:
        model.generation_config = given
    given.to_json_file(Path(folder, "generation_config.json"), keys_to_pop=["compile_config"])
