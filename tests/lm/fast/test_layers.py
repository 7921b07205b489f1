"""What our layers cover, and that it is compared with the library's forward pass (their numbers:
test_decoding.py, test_packing.py)."""

import logging

import pytest
import torch
from conftest import MakeModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from warpflow.lm.fast.layers import agrees, is_covered
from warpflow.training.adapters import add_adapters


def quantised(model: PreTrainedModel) -> None:
    class Other(nn.Linear):
        pass

    model.model.layers[0].mlp.up_proj.__class__ = Other


@pytest.mark.parametrize(
    "change",
    [
        lambda model: add_adapters(model, 2, 4, seed=0),
        lambda model: model.train(),
        lambda model: model.bfloat16(),
        lambda model: model.model.layers[1].register_forward_hook(lambda *_: None),
        lambda model: setattr(model.model.norm, "forward", lambda x: x),
        lambda model: setattr(model.model.rotary_emb, "rope_type", "dynamic"),
        lambda model: model.set_attn_implementation("eager"),
        quantised,
    ],
    ids=["adapters", "dropout", "dtype", "hook", "patch", "angles", "attention", "quantised"],
)
def test_what_would_be_passed_over_is_left_to_the_library(
    make_model: MakeModel, change: object
) -> None:
    model = make_model("llama")
    assert is_covered(model)
    change(model)  # type: ignore[operator]
    assert not is_covered(model)


def test_a_model_is_compared_once_and_the_answer_kept(
    make_model: MakeModel, caplog: pytest.LogCaptureFixture
) -> None:
    model, calls = make_model("llama"), []

    def compute(difference: float) -> tuple[Tensor, Tensor]:
        calls.append(difference)
        return torch.tensor([1.0, -4.0 - difference]), torch.tensor([1.0, -4.0])

    for _ in range(3):
        assert agrees(model, "sampling", lambda: compute(0.003))
        with caplog.at_level(logging.WARNING):
            assert not agrees(model, "scoring", lambda: compute(0.005))
    assert calls == [0.003, 0.005]
    (record,) = caplog.records
    assert record.message.startswith("scoring by the library's forward pass, which is slower")
    assert "1.3e-03 of the largest value (expected 1e-03 at most)" in record.message
    assert agrees(make_model("llama"), "scoring", lambda: compute(0.0)), "another model"
    with torch.autocast("cpu", torch.bfloat16):
        assert agrees(make_model("llama"), "scoring", lambda: compute(0.1)), "bf16 rounds more"
