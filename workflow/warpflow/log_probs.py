"""Log-probabilities of completions under a causal language model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Completions:
    """A batch of sampled completions: left-padded prompts, right-padded responses.

    Attributes:
        prompt_ids: [B, P] int64.
        is_prompt: [B, P] bool, True on real prompt tokens (pads are on the left).
        response_ids: [B, C] int64, pad after the end.
        is_response: [B, C] bool, True on sampled tokens, the EOS included.
        finished: [B] bool, True where EOS was sampled within the limit.
    """

    prompt_ids: Tensor
    is_prompt: Tensor
    response_ids: Tensor
    is_response: Tensor
    finished: Tensor

    @property
    def lengths(self) -> Tensor:
        """[B] int64: sampled tokens, the EOS included."""
        return self.is_response.sum(1)

    def rows(self, index: Tensor | slice) -> Completions:
        """The completions at `index`, trimmed to the longest prompt and response among them."""
        is_prompt, is_response = self.is_prompt[index], self.is_response[index]
        first = self.is_prompt.shape[1] - int(is_prompt.sum(1).max())
        length = int(is_response.sum(1).max())
        return Completions(
            self.prompt_ids[index][:, first:],
            is_prompt[:, first:],
            self.response_ids[index][:, :length],
            is_response[:, :length],
            self.finished[index],
        )


def positions(is_token: Tensor) -> Tensor:
    """[B, T] position ids that count real tokens only.

    Hugging Face models do not derive them from the attention mask: without them a left-padded
    GPT-2 is scored wrongly.
    """
    return (is_token.long().cumsum(-1) - 1).clamp(min=0)


def mask_arguments(is_token: Tensor, is_prompt: Tensor) -> dict[str, Tensor]:
    """Attention mask and position ids for left-padded prompts; none where no prompt is padded:
    causal attention keeps pads on the right from every real token, and does it faster unmasked."""
    if bool(is_prompt.all()):
        return {}
    return {"attention_mask": is_token.long(), "position_ids": positions(is_token)}


# Numbers in a tensor of logits, from which on it is taken in parts (128 MiB in fp32): with 256,000
# words, a batch's logits and their softmax would fill a GPU.
LOGITS_AT_ONCE = 2**25


def rows_per_pass(batch: Completions, vocabulary: int) -> int:
    """Rows of which the softmax is taken at once."""
    return max(1, LOGITS_AT_ONCE // (batch.response_ids.shape[1] * vocabulary))


def predicting_logits(
    model: PreTrainedModel, batch: Completions, masks: dict[str, Tensor] | None = None
) -> Tensor:
    """[B, C, V] logits that predict each response token, as the model gives them.

    Args:
        masks: `mask_arguments`, where they are known.
    """
    if masks is None:
        is_token = torch.cat([batch.is_prompt, batch.is_response], 1)
        masks = mask_arguments(is_token, batch.is_prompt)
    length = batch.response_ids.shape[1]
    ids = torch.cat([batch.prompt_ids, batch.response_ids], 1)
    output = model(input_ids=ids, **masks, use_cache=False, logits_to_keep=length + 1)
    # Position t predicts token t + 1, so C tokens need C + 1 positions and the last is unused.
    return output.logits[:, -length - 1 : -1]


def response_logits(model: PreTrainedModel, batch: Completions, temperature: float) -> Tensor:
    """[B, C, V] float32 logits, divided by `temperature`, that predict each response token."""
    return predicting_logits(model, batch).float() / temperature


def token_log_probs(model: PreTrainedModel, batch: Completions, temperature: float) -> Tensor:
    """[B, C] float32 log π(y_t | x, y_<t) at `temperature`; 0 on pads, the EOS counts.

    `temperature` must be the one the completions were sampled at, for the policy and the anchor
    alike: otherwise the log-ratio is not the one in the paper's r_β.
    """
    return log_probs_of(predicting_logits(model, batch), batch, temperature)


def log_probs_of(logits: Tensor, batch: Completions, temperature: float) -> Tensor:
    """`token_log_probs` of a model's logits [B, C, V]. Where these are many, the softmax is taken
    of some rows at a time, and once more in the backward pass, so that nothing else of the logits'
    size is kept."""

    def of_rows(part: Tensor, ids: Tensor, is_response: Tensor) -> Tensor:
        return _gather(part.float() / temperature, ids, is_response)

    tensors = logits, batch.response_ids, batch.is_response
    size = rows_per_pass(batch, logits.shape[-1])
    if size >= len(logits):
        return of_rows(*tensors)
    parts = zip(*(tensor.split(size) for tensor in tensors), strict=True)
    return torch.cat([checkpoint(of_rows, *part, use_reentrant=False) for part in parts])


def gather_log_probs(logits: Tensor, batch: Completions) -> Tensor:
    """[B, C] log-softmax of `logits` [B, C, V] at the response tokens; 0 on pads."""
    return _gather(logits, batch.response_ids, batch.is_response)


def _gather(logits: Tensor, ids: Tensor, is_response: Tensor) -> Tensor:
    chosen = logits.gather(2, ids[..., None])[..., 0]
    return (chosen - logits.logsumexp(-1)).masked_fill(~is_response, 0.0)
