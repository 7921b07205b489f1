"""Log-probabilities of completions under a causal language model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, PreTrainedModel


@dataclass(frozen=True)
class Completions:
    """A batch of sampled completions: left-padded prompts, right-padded responses.

    Attributes:
        prompt_ids: [B, P] int64.
        is_prompt: [B, P] bool, True on real prompt tokens (pads are on the left).
        response_ids: [B, C] int64, pad after the end.
        is_response: [B, C] bool, True on sampled tokens, the EOS included.
        finished: [B] bool, True where EOS was sampled within the limit.
        sampler_log_probs: [B, C] float32 log μ of the response tokens, 0 on pads, where another
            forward pass drew them than the one that scores; None: they are of π itself.
    """

    prompt_ids: Tensor
    is_prompt: Tensor
    response_ids: Tensor
    is_response: Tensor
    finished: Tensor
    sampler_log_probs: Tensor | None = None

    @property
    def lengths(self) -> Tensor:
        """The number of sampled tokens, with the EOS, [B] int64."""
        return self.is_response.sum(1)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, without those that are not there."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}

    def cpu(self) -> Completions:
        """Return the completions in host memory."""
        return Completions(**{name: tensor.cpu() for name, tensor in self.tensors().items()})

    def rows(self, index: Tensor | slice) -> Completions:
        """Return the completions at `index`, trimmed to the longest prompt and response among
        them."""
        is_prompt, is_response = self.is_prompt[index], self.is_response[index]
        first = self.is_prompt.shape[1] - int(is_prompt.sum(1).max())
        length = int(is_response.sum(1).max())
        return Completions(
            self.prompt_ids[index][:, first:],
            is_prompt[:, first:],
            self.response_ids[index][:, :length],
            is_response[:, :length],
            self.finished[index],
            None if self.sampler_log_probs is None else self.sampler_log_probs[index][:, :length],
        )


def positions(is_token: Tensor) -> Tensor:
    """Return position ids [B, T] that count only real tokens.

    Hugging Face models do not derive them from the attention mask. Without them a left-padded GPT-2
    is scored wrongly.
    """
    return (is_token.long().cumsum(-1) - 1).clamp(min=0)


def mask_arguments(
    is_token: Tensor, is_prompt: Tensor, padded: bool | None = None
) -> dict[str, Tensor]:
    """Return attention mask and position ids for left-padded prompts, or none where no prompt is
    padded. Causal attention hides pads on the right from every real token, and is faster without a
    mask.

    Args:
        padded: whether a prompt is padded, where that is known.
    """
    if not (padded if padded is not None else not bool(is_prompt.all())):
        return {}
    return {"attention_mask": is_token.long(), "position_ids": positions(is_token)}


# A tensor of logits with more numbers (128 MiB in fp32) is taken in parts. With 256,000 words, a
# batch's logits and their softmax would fill a GPU.
LOGITS_AT_ONCE = 2**25


def rows_per_pass(batch: Completions, vocabulary: int) -> int:
    """Return the number of rows whose softmax is taken at once."""
    return max(1, LOGITS_AT_ONCE // (batch.response_ids.shape[1] * vocabulary))


def tokens_per_pass(rows: int, vocabulary: int) -> int:
    """Return the number of tokens in each of `rows` rows whose softmax is taken at once."""
    return max(1, LOGITS_AT_ONCE // (rows * vocabulary))


# The logit of an id that the tokenizer lacks. Its probability is 0 in every precision, while its
# log-ratio is finite, so that their product is 0 in an exact KL.
UNSAMPLED = -3e4


def of_known_ids(logits: Tensor, model: PreTrainedModel) -> Tensor:
    """Return the logits […, V′] of ids that the tokenizer has, from logits [..., V]. An embedding
    may have more rows (Qwen2.5's is padded), and some vocabularies have gaps. Policies are sampled
    and scored as if there were none, so that both use one distribution. `models.note_known_ids_`
    notes V′ where it is less than V, and the gaps below it, in which logits are UNSAMPLED."""
    logits = logits[..., : getattr(model.config, "sampled_vocab_size", None)]
    gaps = getattr(model.config, "unsampled_ids", None)
    return logits.index_fill(-1, _index(tuple(gaps), logits.device), UNSAMPLED) if gaps else logits


@functools.lru_cache(maxsize=8)
def _index(ids: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(ids, device=device)


def predicting_logits(
    model: PreTrainedModel, batch: Completions, masks: dict[str, Tensor] | None = None
) -> Tensor:
    """Return the logits [B, C, V] that predict each response token, as the model gives them.

    Args:
        masks: `mask_arguments`, where they are known.
    """
    # A position predicts the next token, so the very last token need not be read.
    if masks is None:
        is_token = torch.cat([batch.is_prompt, batch.is_response[:, :-1]], 1)
        masks = mask_arguments(is_token, batch.is_prompt)
    ids = torch.cat([batch.prompt_ids, batch.response_ids[:, :-1]], 1)
    length = batch.response_ids.shape[1]
    output = model(input_ids=ids, **masks, use_cache=False, logits_to_keep=length)
    return of_known_ids(output.logits, model)


def response_logits(model: PreTrainedModel, batch: Completions, temperature: float) -> Tensor:
    """Return float32 logits [B, C, V], divided by `temperature`, that predict each response
    token."""
    return predicting_logits(model, batch).float() / temperature


@torch.no_grad()
def logits_by_part(
    model: PreTrainedModel, batch: Completions, temperature: float
) -> Iterator[Tensor]:
    """Yield `response_logits` [B, c, V] for some response tokens after the other, so that there are
    never more than `LOGITS_AT_ONCE` numbers. With its cache the model reads on where it stopped."""
    rows, length = batch.response_ids.shape
    size = tokens_per_pass(rows, model.config.get_text_config().vocab_size)
    if size >= length:
        yield response_logits(model, batch, temperature)
        return
    ids = torch.cat([batch.prompt_ids, batch.response_ids[:, :-1]], 1)
    is_token = torch.cat([batch.is_prompt, batch.is_response[:, :-1]], 1)
    cache, start = DynamicCache(config=model.config), 0
    for first in range(0, length, size):
        count = min(size, length - first)
        end = batch.prompt_ids.shape[1] + first + count - 1
        masks = mask_arguments(is_token[:, :end], batch.is_prompt)
        if masks:
            masks["position_ids"] = masks["position_ids"][:, start:]
        output = model(
            input_ids=ids[:, start:end],
            **masks,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=count,
        )
        yield of_known_ids(output.logits, model).float() / temperature
        start = end


def token_log_probs(
    model: PreTrainedModel, batch: Completions, temperature: float, together: int = 1
) -> Tensor:
    """Return float32 log π(y_t | x, y_<t) at `temperature`, [B, C]. It is 0 on pads, and the EOS
    counts.

    `temperature` must be the one at which the completions were sampled, for the policy and the
    anchor alike. Otherwise the log-ratio is not the one in the paper's r_β.

    Args:
        together: the number of adjacent rows that have one prompt, which is read once for them. Use
            it only where `reads_prompts_once` says so.
    """
    if together > 1:
        return shared_log_probs(model, batch, temperature, together)
    return log_probs_of(predicting_logits(model, batch), batch, temperature)


def log_probs_of(logits: Tensor, batch: Completions, temperature: float) -> Tensor:
    """Return `token_log_probs` from a model's logits [B, C, V]. Where these are many, the softmax
    is taken for some tokens at a time, and once more in the backward pass, so that nothing else of
    the logits' size is kept."""

    def of_tokens(part: Tensor, ids: Tensor) -> Tensor:
        return _gather(part.float() / temperature, ids)

    tensors = logits.flatten(0, 1), batch.response_ids.flatten()
    size = tokens_per_pass(1, logits.shape[-1])
    values = recomputed_in_parts(of_tokens, tensors, [size] * len(tensors))
    return values.view_as(batch.response_ids).masked_fill(~batch.is_response, 0.0)


def recomputed_in_parts(
    function: Callable[..., Tensor], tensors: Sequence[Tensor], sizes: Sequence[int]
) -> Tensor:
    """Return `function` of the tensors. Where the first has more rows than its size, the function
    is computed for so many rows of each at a time, and once more in the backward pass."""
    if sizes[0] >= len(tensors[0]):
        return function(*tensors)
    parts = zip(*(t.split(size) for t, size in zip(tensors, sizes, strict=True)), strict=True)
    return torch.cat([checkpoint(function, *part, use_reentrant=False) for part in parts])


def log_probs_and_kls_of(
    logits: Tensor, others: Tensor, batch: Completions, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return `log_probs_of` [B, C] and KL(π ‖ π_other) [B, C] of each step's whole distribution.
    Both are 0 on pads.

    Args:
        logits: [B, C, V] of π. others: [B, C, V] of the model with which it is compared.
    """

    def of_tokens(part: Tensor, other: Tensor, ids: Tensor) -> Tensor:
        return log_probs_beside_kls(part, other, ids, temperature)

    tensors = logits.flatten(0, 1), others.flatten(0, 1), batch.response_ids.flatten()
    size = tokens_per_pass(1, logits.shape[-1])
    values = recomputed_in_parts(of_tokens, tensors, [size] * len(tensors))
    values = values.view(*batch.response_ids.shape, 2)
    log_probs, kls = values.masked_fill(~batch.is_response[..., None], 0.0).unbind(-1)
    return log_probs, kls


def log_probs_beside_kls(logits: Tensor, others: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Return [N, 2] for N tokens: log π(id), and KL(π ‖ π_other) over all words.

    Args:
        logits, others: [N, V]. ids: [N].
    """
    log_p, log_q = ((x.float() / temperature).log_softmax(-1) for x in (logits, others))
    # − p + q sums to 0. With it no summand is below 0, and equal models have no gradient at all.
    # Even a gradient of rounding errors would become steps in Adam.
    p, q = log_p.exp(), log_q.exp()
    kl = (p * (log_p - log_q) - p + q).sum(-1)
    return torch.stack([log_p.gather(-1, ids[:, None])[:, 0], kl], -1)


def _gather(logits: Tensor, ids: Tensor) -> Tensor:
    return logits.gather(-1, ids[..., None])[..., 0] - logits.logsumexp(-1)


def split_by_length(batch: Completions, size: int | None, together: int = 1) -> list[Tensor]:
    """Return row indices in parts of rows of similar length, so that little time is spent on pads.

    Args:
        size: the largest number of rows of a part. None takes halves, as long as a tenth of a part
            would be pads and its halves have 8 rows or more. Below, starting a pass costs more than
            pads.
        together: so many adjacent rows, the completions of a prompt, share a part, in their order.
    """
    lengths = batch.lengths.view(-1, together).sum(1) + batch.is_prompt[::together].sum(1)
    order = lengths.argsort(stable=True)
    parts = [order] if size is None else list(order.split(size // together))
    while size is None:
        halves = [half for part in parts for half in _halve(part, lengths[part], together)]
        if len(halves) == len(parts):
            break
        parts = halves
    members = torch.arange(together, device=order.device)
    return [(part[:, None] * together + members).flatten() for part in parts]


def _halve(part: Tensor, lengths: Tensor, together: int) -> list[Tensor]:
    pads = 1 - lengths.float().mean() / lengths.max()
    return list(part.chunk(2)) if pads > 0.1 and len(part) * together >= 16 else [part]


# --- one read of a prompt for its K completions -------------------------------------------------

# These architectures take positions and a mask of [B, 1, T, T] as they are given (tested).
READS_BRANCHES = (
    *("gemma", "gemma3_text", "gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3"),
)
MASK_AT_ONCE = 2**27  # entries of a mask, of one or four bytes


def reads_prompts_once(model: PreTrainedModel, batch: Completions, each: int) -> bool:
    """Whether to score the `each` completions of a prompt in one sequence, behind one copy of it.

    The saved copies must be worth more than the attention between completions, which is masked but
    computed. A token costs a layer about as much as 6 · width pairs of tokens (24 width²
    multiply-adds against 4 width).
    """
    config = model.config
    prompts = batch.prompt_ids.view(-1, each, batch.prompt_ids.shape[1])
    longest = prompts.shape[2] + batch.response_ids.shape[1]
    # The softmax after one copy of a prompt is taken for all its completions at once.
    logits = each * batch.response_ids.shape[1] * config.vocab_size
    if (
        each == 1
        or config.model_type not in READS_BRANCHES
        or config._attn_implementation != "sdpa"
        or logits > LOGITS_AT_ONCE
        or (getattr(config, "sliding_window", None) or longest) < longest
        or not bool((prompts == prompts[:, :1]).all())
    ):
        return False
    prompt = batch.is_prompt.sum(1)
    apart = (prompt + batch.lengths).double()
    shared = (prompt.view(-1, each)[:, 0] + batch.lengths.view(-1, each).sum(1)).double()
    pairs = (shared**2).sum() - (apart**2).sum() / 2  # causal attention skips half
    saved = (apart.sum() - shared.sum()) * 6 * config.hidden_size
    return bool(saved > pairs) and len(shared) * float(shared.max()) ** 2 <= MASK_AT_ONCE


def shared_log_probs(
    model: PreTrainedModel, batch: Completions, temperature: float, each: int
) -> Tensor:
    """Return `token_log_probs` by one sequence for each prompt: the prompt, then its completions
    one after the other. Each completion sees only the prompt and itself, and counts its positions
    from the prompt's end."""
    device, width = batch.prompt_ids.device, batch.prompt_ids.shape[1]
    is_read = batch.is_response[:, 1:]  # every token but a row's last is read
    counts = is_read.sum(1).view(-1, each)
    starts = (width + counts.cumsum(1) - counts).flatten()[:, None]
    places = starts + torch.arange(is_read.shape[1], device=device)  # [B, C - 1]
    length = int(counts.sum(1).max())
    group = torch.arange(len(counts), device=device).repeat_interleave(each)[:, None]
    read = (group.expand_as(places)[is_read], places[is_read])

    def laid_out(prompts: Tensor, completions: Tensor, fill: int) -> Tensor:
        sequences = pad(prompts[::each], (0, length), value=fill)
        sequences[read] = completions.expand_as(places)[is_read]
        return sequences

    ids = laid_out(batch.prompt_ids, batch.response_ids[:, :-1], 0)
    after = batch.is_prompt.sum(1, keepdim=True) + places - starts
    position_ids = laid_out(positions(batch.is_prompt), after, 0)
    member = torch.arange(len(places), device=device)[:, None] % each + 1
    branch = laid_out(batch.is_prompt.long() - 1, member, -1)  # -1 pad, 0 prompt, 1 … K completion
    # The prompt's branch becomes 0 and pads -1. A pad sees pads, so that no row of the mask is
    # empty.
    sees = (branch[:, None] == branch[:, :, None]) | (branch[:, None] == 0)
    output = model(
        input_ids=ids,
        attention_mask=sees.tril()[:, None],
        position_ids=position_ids,
        use_cache=False,
        logits_to_keep=length + 1,
    )
    logits = of_known_ids(output.logits, model)
    predicting = torch.cat([torch.zeros_like(starts), places - width + 1], 1)
    return log_probs_at(logits, predicting.clamp(max=length), batch, temperature)


def log_probs_at(logits: Tensor, places: Tensor, batch: Completions, temperature: float) -> Tensor:
    """Return the log-softmax [B, C] at the response tokens, 0 on pads.

    Args:
        logits: [G, S, V], each for B / G adjacent rows. places: [B, C], which of the S predicts a
            token.
    """
    each = len(places) // len(logits)

    def of_groups(part: Tensor, place: Tensor, ids: Tensor, is_response: Tensor) -> Tensor:
        scaled = part.float() / temperature
        group = torch.arange(len(part), device=part.device).repeat_interleave(each)[:, None]
        chosen = scaled[group, place, ids] - scaled.logsumexp(-1)[group, place]
        return chosen.masked_fill(~is_response, 0.0)

    size = max(1, LOGITS_AT_ONCE // logits[0].numel())
    tensors = logits, places, batch.response_ids, batch.is_response
    return recomputed_in_parts(of_groups, tensors, [size, *[size * each] * 3])
