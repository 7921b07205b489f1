"""What a model folder may be beside a plain model. It is read before any job, without model
code."""

from __future__ import annotations

ADAPTER = "adapter_config.json"
# Quantisers whose numbers transformers turns back into float32, with the package that it needs.
DEQUANTISED = {"bitsandbytes": "bitsandbytes", "fp8": None, "mxfp4": None}
# Text parts of multimodal models for which transformers has no causal language model: the type that
# they have once positions are those of a text.
TEXT_TYPES = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}
