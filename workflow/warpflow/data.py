"""Read the user's files, prepare the data folder that every later stage reads.

The folder holds sft.jsonl (prompt, completion), preferences.jsonl (prompt, chosen, rejected),
train_prompts.jsonl and eval_prompts.jsonl (prompt, and further columns of the source), and
tokenizer/. Later stages tokenise prompt and completion separately and put the ids together, so a
completion carries the space that separates it from its prompt.
"""

import random
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from warpflow.rows import (
    Row,
    read_rows,
    read_texts,
    require_columns,
    write_jsonl,
)
from warpflow.seeds import derive_seed

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")  # ids 0 to 3 of our own tokenizers
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model",
    "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip

# ----------------------------------------------------------------------------------- tokenizers


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> PreTrainedTokenizerBase:
    """Save as a Hugging Face folder; the tokenizer must know SPECIAL_TOKENS as ids 0 to 3.

    Adds no token by itself (transformers writes an identity post-processor), and decodes without
    "cleaning" spaces, which would not round-trip.
    """
    pad, bos, eos, unk = SPECIAL_TOKENS
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        clean_up_tokenization_spaces=False,
    )
    folder.mkdir(parents=True, exist_ok=True)
    wrapped.save_pretrained(folder)
    return wrapped


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE on the texts and save it to `folder`.

    Without a prefix space, so that tokens(prompt) + tokens(completion) = tokens(whole text) where
    the completion begins with its space.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = len(SPECIAL_TOKENS) + len(alphabet)
    if vocab_size < smallest:
        raise ValueError(
            f"prepare_data: vocab_size is {vocab_size}; expected at least {smallest} "
            "(256 bytes and 4 special tokens)"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return save_tokenizer(tokenizer, folder)


def copy_tokenizer(source: str, folder: Path) -> PreTrainedTokenizerBase:
    """Copy the tokenizer files (not the weights) of a Hugging Face folder, and load the copy.

    A name that is no folder is taken from the hub (or its cache) and saved.
    """
    if not Path(source).is_dir():
        tokenizer = AutoTokenizer.from_pretrained(source)  # its error names both possibilities
        tokenizer.save_pretrained(folder)
        return tokenizer
    found = [name for name in TOKENIZER_FILES if (Path(source) / name).is_file()]
    if not found:
        raise ValueError(
            f"prepare_data: the folder {source} (tokenizer_path or policy.path) holds no tokenizer "
            "file (tokenizer.json, ...); give the folder of a downloaded model or tokenizer"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in found:
        shutil.copyfile(Path(source) / name, folder / name)
    return AutoTokenizer.from_pretrained(folder)


def count_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """Number of tokens of each text, without special tokens."""
    if not texts:
        return []
    return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


# ---------------------------------------------------------------------------------- preparation


def _flag(text: str, default: Any = MISSING) -> Any:
    """A dataclass field with the help text of its command-line flag."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class PrepareData:
    """The config section `prepare_data`; None, a flag left out, stands for null, "not used".

    Text lengths are in tokens without bos and eos; `max_text_tokens` bounds prompt + completion.
    """

    sft_path: str = _flag("texts to imitate: .jsonl, .json or .csv, also with .gz")
    sft_completion: str = _flag("column of the text to learn")
    preferences_path: str = _flag("pairs, or texts with labels, for the reward model")
    prompts_path: str = _flag("prompts for reinforcement learning and evaluation")
    prompts_column: str = _flag("column of the prompt, or of the text that it is taken from")
    eval_prompts: int = _flag("prompts that are split off for evaluation")
    seed: int = _flag("base seed of the split and of pairing by label")
    max_text_tokens: int = _flag("rows whose prompt + text is longer are dropped")
    max_prompt_tokens: int = _flag("a longer prompt is an error")
    sft_prompt: str | None = _flag("column; else the prompt is empty", None)
    preferences_prompt: str | None = _flag("column; else the prompt is empty", None)
    preferences_chosen: str | None = _flag("column, with preferences_rejected", None)
    preferences_rejected: str | None = _flag("column, with preferences_chosen", None)
    preferences_text: str | None = _flag("column, with preferences_label", None)
    preferences_label: str | None = _flag("column: 1 preferred, 0 not", None)
    prompts_first_words: int | None = _flag("prompt = first k words of the column", None)
    train_prompts: int | None = _flag("at most so many; else all", None)
    vocab_size: int | None = _flag("train a byte-level BPE tokenizer of this size", None)
    tokenizer_path: str | None = _flag("or copy it from this folder or hub name", None)

    def __post_init__(self) -> None:
        for key in (
            "eval_prompts", "max_text_tokens", "max_prompt_tokens", "train_prompts",
            "prompts_first_words",
        ):  # fmt: skip
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"prepare_data: {key} is {value}; expected at least 1")
        if (self.vocab_size is None) == (self.tokenizer_path is None):
            raise ValueError(
                "prepare_data: set either vocab_size (a tokenizer is trained) or tokenizer_path "
                "(or policy.path; it is copied), and leave the other null"
            )
        _require_one_preference_form(self)


def _require_one_preference_form(settings: PrepareData) -> None:
    pair = (settings.preferences_chosen, settings.preferences_rejected)
    label = (settings.preferences_text, settings.preferences_label)
    by_pair = None not in pair and label == (None, None)
    by_label = None not in label and pair == (None, None)
    if not by_pair and not by_label:
        raise ValueError(
            "prepare_data: set either preferences_chosen and preferences_rejected, or "
            "preferences_text and preferences_label, and leave the other two null; got chosen "
            f"{pair[0]}, rejected {pair[1]}, text {label[0]}, label {label[1]}"
        )
    if by_label and settings.preferences_prompt is not None:
        raise ValueError(
            "prepare_data: preferences_prompt must be null with preferences_text, because a text "
            "is paired with a random other one, which has another prompt"
        )


def _join_space(prompt: str, completion: str) -> str:
    """The completion with a leading space if nothing else separates it from its prompt."""
    if not prompt or prompt[-1].isspace() or completion[:1].isspace():
        return completion
    return " " + completion


def _prompts_or_empty(rows: Sequence[Row], column: str | None, path: str, key: str) -> list[str]:
    return [""] * len(rows) if column is None else read_texts(rows, column, path, key)


def read_sft(settings: PrepareData) -> list[dict[str, str]]:
    """Rows of prompt and completion from sft_path."""
    path = settings.sft_path
    rows = read_rows(path)
    prompts = _prompts_or_empty(rows, settings.sft_prompt, path, "prepare_data: sft_prompt")
    texts = read_texts(rows, settings.sft_completion, path, "prepare_data: sft_completion")
    return [
        {"prompt": prompt, "completion": _join_space(prompt, text)}
        for prompt, text in zip(prompts, texts, strict=True)
    ]


def _read_label(value: Any, place: str) -> bool:
    """True for 1, "1" or true; False for 0, "0" or false; CSV gives strings."""
    if str(value).lower() in ("1", "true", "1.0"):
        return True
    if str(value).lower() in ("0", "false", "0.0"):
        return False
    raise ValueError(f"{place} must be 1 (preferred) or 0 (not), got {value!r}")


def pair_by_label(
    texts: Sequence[str], is_preferred: Sequence[bool], rng: random.Random
) -> list[dict[str, str]]:
    """Each preferred text, in order, as chosen against a random text that is not preferred."""
    others = [text for text, preferred in zip(texts, is_preferred, strict=True) if not preferred]
    if not others or len(others) == len(texts):
        raise ValueError("labels must hold both 1 and 0 so that pairs can be made")
    return [
        {"prompt": "", "chosen": text, "rejected": rng.choice(others)}
        for text, preferred in zip(texts, is_preferred, strict=True)
        if preferred
    ]


def read_preferences(settings: PrepareData) -> list[dict[str, str]]:
    """Rows of prompt, chosen and rejected from preferences_path, in either form."""
    path = settings.preferences_path
    rows = read_rows(path)
    if settings.preferences_text is not None and settings.preferences_label is not None:
        column = settings.preferences_label
        texts = read_texts(rows, settings.preferences_text, path, "prepare_data: preferences_text")
        require_columns(rows, [column], path, "prepare_data: preferences_label")
        labels = [
            _read_label(row[column], f"{path}, row {number}: column {column!r}")
            for number, row in enumerate(rows, start=1)
        ]
        rng = random.Random(derive_seed(settings.seed, "prepare_data", "preferences"))
        try:
            return pair_by_label(texts, labels, rng)
        except ValueError as error:
            raise ValueError(f"{path}, column {column!r} (preferences_label): {error}") from error
    return _read_pairs(rows, settings)


def _read_pairs(rows: Sequence[Row], settings: PrepareData) -> list[dict[str, str]]:
    path = settings.preferences_path
    assert settings.preferences_chosen is not None and settings.preferences_rejected is not None
    prompts = _prompts_or_empty(
        rows, settings.preferences_prompt, path, "prepare_data: preferences_prompt"
    )
    chosen = read_texts(rows, settings.preferences_chosen, path, "prepare_data: preferences_chosen")
    rejected = read_texts(
        rows, settings.preferences_rejected, path, "prepare_data: preferences_rejected"
    )
    return [
        {"prompt": prompt, "chosen": _join_space(prompt, yes), "rejected": _join_space(prompt, no)}
        for prompt, yes, no in zip(prompts, chosen, rejected, strict=True)
    ]


def read_prompts(settings: PrepareData) -> tuple[list[Row], int]:
    """Different prompts with the other columns of their first row, and the rows dropped as short.

    With prompts_first_words = k a prompt is the first k words, joined by single spaces, of rows
    that have more than k. A source column "prompt" is replaced where another one is chosen.
    """
    path, column, k = settings.prompts_path, settings.prompts_column, settings.prompts_first_words
    rows = read_rows(path)
    texts = read_texts(rows, column, path, "prepare_data: prompts_column")
    found: dict[str, Row] = {}
    short = 0
    for row, text in zip(rows, texts, strict=True):
        prompt = text
        if k is not None:
            words = text.split()
            if len(words) <= k:
                short += 1
                continue
            prompt = " ".join(words[:k])
        extra = {name: value for name, value in row.items() if name != column}
        found.setdefault(prompt, {**extra, "prompt": prompt})
    return list(found.values()), short


def require_short_prompts(
    prompts: Sequence[Row], tokenizer: PreTrainedTokenizerBase, settings: PrepareData
) -> None:
    """Raise ValueError for the longest prompt if it has more than max_prompt_tokens."""
    lengths = count_tokens(tokenizer, [row["prompt"] for row in prompts])
    longest = max(lengths, default=0)
    if longest > settings.max_prompt_tokens:
        count = sum(length > settings.max_prompt_tokens for length in lengths)
        raise ValueError(
            f"{settings.prompts_path}: {count} prompts are longer than max_prompt_tokens = "
            f"{settings.max_prompt_tokens}; the longest has {longest} tokens: "
            f"{prompts[lengths.index(longest)]['prompt'][:60]!r}... Raise prepare_data: "
            "max_prompt_tokens, lower prompts_first_words, or shorten the prompts."
        )


def split_prompts(
    prompts: Sequence[Row], eval_prompts: int, train_prompts: int | None, seed: int
) -> tuple[list[Row], list[Row]]:
    """Disjoint train and eval prompts by a seeded shuffle; `train_prompts` caps the former.

    Eval prompts do not depend on the cap.
    """
    if eval_prompts >= len(prompts):
        raise ValueError(
            f"prepare_data: eval_prompts is {eval_prompts}, but there are only {len(prompts)} "
            "different prompts and some must remain for training; lower it"
        )
    shuffled = list(prompts)
    random.Random(derive_seed(seed, "prepare_data", "prompts")).shuffle(shuffled)
    rest = shuffled[eval_prompts:]
    return rest[:train_prompts], shuffled[:eval_prompts]


def drop_unusable(
    rows: Sequence[dict[str, str]],
    text_columns: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    path: str,
) -> tuple[list[dict[str, str]], int, int]:
    """Rows whose texts are not blank and fit with their prompt; how many were blank, how many long.

    Raises ValueError if no row is left.
    """
    filled = [row for row in rows if all(row[column].strip() for column in text_columns)]
    prompts = count_tokens(tokenizer, [row["prompt"] for row in filled])
    texts = [count_tokens(tokenizer, [row[column] for row in filled]) for column in text_columns]
    longest = [prompt + max(lengths) for prompt, *lengths in zip(prompts, *texts, strict=True)]
    kept = [row for row, length in zip(filled, longest, strict=True) if length <= max_tokens]
    if not kept:
        raise ValueError(
            f"{path}: all {len(rows)} rows are blank or longer than max_text_tokens = {max_tokens};"
            " raise prepare_data: max_text_tokens"
        )
    return kept, len(rows) - len(filled), len(filled) - len(kept)


def make_tokenizer(
    settings: PrepareData,
    sft: Sequence[Mapping[str, str]],
    preferences: Sequence[Mapping[str, str]],
    folder: Path,
) -> PreTrainedTokenizerBase:
    """The user's tokenizer copied to `folder`, or one trained on all texts."""
    if settings.tokenizer_path is not None:
        return copy_tokenizer(settings.tokenizer_path, folder)
    assert settings.vocab_size is not None
    texts = [row["prompt"] + row["completion"] for row in sft]
    texts += [row["prompt"] + row[c] for row in preferences for c in ("chosen", "rejected")]
    return train_tokenizer(texts, settings.vocab_size, folder)


def prepare_data(settings: PrepareData, out: Path) -> list[str]:
    """Write the data folder `out` from the user's files; returns a report, one line per file."""
    sft, preferences = read_sft(settings), read_preferences(settings)
    prompts, short = read_prompts(settings)
    tokenizer = make_tokenizer(settings, sft, preferences, out / "tokenizer")
    limit = settings.max_text_tokens
    sft, sft_blank, sft_long = drop_unusable(
        sft, ["completion"], tokenizer, limit, settings.sft_path
    )
    preferences, pair_blank, pair_long = drop_unusable(
        preferences, ["chosen", "rejected"], tokenizer, limit, settings.preferences_path
    )
    require_short_prompts(prompts, tokenizer, settings)
    train, evaluation = split_prompts(
        prompts, settings.eval_prompts, settings.train_prompts, settings.seed
    )
    write_jsonl(out / "sft.jsonl", sft)
    write_jsonl(out / "preferences.jsonl", preferences)
    write_jsonl(out / "train_prompts.jsonl", train)
    write_jsonl(out / "eval_prompts.jsonl", evaluation)
    dropped = "dropped {} blank and {} longer than max_text_tokens = {}"
    return [
        f"sft.jsonl: {len(sft)} rows; " + dropped.format(sft_blank, sft_long, limit),
        f"preferences.jsonl: {len(preferences)} rows; "
        + dropped.format(pair_blank, pair_long, limit),
        f"train_prompts.jsonl: {len(train)} rows; eval_prompts.jsonl: {len(evaluation)} rows; "
        f"{len(prompts)} different prompts; dropped {short} rows too short for a prompt",
        f"tokenizer: {len(tokenizer)} tokens",
    ]
