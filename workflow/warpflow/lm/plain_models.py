"""Turn models that are more than their weights into plain ones, which training and merging take.

A folder of the hub may hold an adapter for another model, quantised weights, or a language model
inside a multimodal one. `pipeline.given_models` says which, before any job. This file makes a
folder of one causal language model, or of one classifier.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from warpflow.lm.models import load_config, require_whole
from warpflow.model_kinds import ADAPTER, TEXT_TYPES


def plain_model(path: str | Path, is_reward: bool = False) -> PreTrainedModel:
    """Return the causal language model of a folder or hub name, or its classifier with one label.

    An adapter is merged in float32, and quantised weights become float32, because small differences
    would round to nothing in bfloat16. A part that is only taken out keeps its dtype.

    Raises:
        ValueError, ImportError: it cannot be dequantised, or its quantiser is not installed.
    """
    if Path(path, ADAPTER).is_file():
        kind = AutoPeftModelForSequenceClassification if is_reward else AutoPeftModelForCausalLM
        labels: dict[str, Any] = {"num_labels": 1} if is_reward else {}
        model = kind.from_pretrained(path, dtype=torch.float32, **labels).merge_and_unload()
    else:
        model = load_stored(path, is_reward)
    return model if is_reward else language_model(model)


def load_stored(path: str | Path, is_reward: bool) -> PreTrainedModel:
    """Load a model as it is stored, in float32 where it was quantised."""
    config = load_config(path)
    quantisation = getattr(config, "quantization_config", None)
    kind: Any = AutoModelForSequenceClassification if is_reward else AutoModelForCausalLM
    if not is_reward and type(config) not in kind._model_mapping:
        kind = AutoModelForImageTextToText
    if quantisation is None:
        model, report = kind.from_pretrained(
            path, dtype="auto", config=config, output_loading_info=True
        )
        return require_whole(model, report, path)
    quantisation["dequantize"] = True  # while it is read; quantisers that cannot do so ignore it
    model = kind.from_pretrained(path, dtype=torch.float32, config=config)
    if getattr(model, "hf_quantizer", None) is not None:  # this was not possible while reading
        model = model.dequantize(dtype=torch.float32)
    del config.quantization_config
    # This model does not know how its weights were read. The other one would be saved under the
    # names of a quantiser.
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict(model.float().state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain


def language_model(model: PreTrainedModel) -> PreTrainedModel:
    """Return the causal language model in a multimodal model, with the same weights and dtypes. A
    causal language model itself is returned as it is.

    Raises:
        ValueError: transformers has no causal language model for this part.
    """
    config = model.config.get_text_config()
    if config is model.config:
        return model
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    config = causal_config(config)
    config.tie_word_embeddings = head.weight is embedding
    with torch.device("meta"):  # it takes the weights that are there
        text: Any = AutoModelForCausalLM.from_config(config)
    text.base_model.load_state_dict(model.get_decoder().base_model.state_dict(), assign=True)
    text.get_output_embeddings().load_state_dict(head.state_dict(), assign=True)
    text.tie_weights()
    text.generation_config = model.generation_config
    return text


def causal_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config of a text part as that of a causal language model."""
    if config.model_type in TEXT_TYPES:
        given = {key: value for key, value in config.to_dict().items() if key != "model_type"}
        config = AutoConfig.for_model(TEXT_TYPES[config.model_type], **given)
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ValueError(
            f"transformers has no causal language model of type {config.model_type!r}: take the "
            "language model that this one was made from"
        )
    return config


def plain_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Return a model's tokenizer, or that of the model for which an adapter is."""
    folder = Path(path)
    if (folder / ADAPTER).is_file() and not (folder / "tokenizer_config.json").is_file():
        path = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
    return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
