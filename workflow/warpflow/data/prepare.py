"""Read the user's files, and write the data folder that every later stage reads.

The folder holds sft.jsonl (prompt, completion), preferences.jsonl (prompt, chosen, rejected),
train_prompts.jsonl and eval_prompts.jsonl (prompt, and further columns of the source), and
tokenizer/. A prompt is text or a list of messages (`warpflow.lm.prompts`); all else is text. Later
stages tokenise prompt and completion separately and join the ids. So a completion begins with the
space that separates it from a prompt of text.
"""

import itertools
import json
import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import Field
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from warpflow.data.dataset_formats import (
    Columns,
    columns_of,
    named_columns,
    split_common_start,
)
from warpflow.data.files import (
    Row,
    read_label,
    read_texts,
    require_columns,
    require_whole,
    texts_of,
    write_jsonl,
)
from warpflow.data.sources import read_rows
from warpflow.data.tokenizers import train_tokenizer
from warpflow.lm.models import (
    load_config,
    load_tokenizer,
    location,
    require_attention,
    require_vocabulary,
    tokens_beyond,
)
from warpflow.lm.prompts import (
    Prompt,
    encode_prompts,
    is_messages,
    prompt_tokens,
    user_message,
)
from warpflow.seeds import derive_seed
from warpflow.settings.base import Count, section
from warpflow.settings.prepare_data import PrepareData

TEXT_COLUMNS = ("prompt", "completion", "chosen", "rejected")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model",
    "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip

# ----------------------------------------------------------------------------------- tokenizers


def copy_tokenizer(source: str, folder: Path) -> PreTrainedTokenizerBase:
    """Copy the tokenizer files (not the weights) of a Hugging Face folder, and load the copy.

    A name that is no folder is taken from the hub (or its cache) and saved, and so is the tokenizer
    in a GGUF file. If it comes with a model, the model's config is checked before later stages load
    the weights.
    """
    if not Path(source).is_dir():
        # its error names both possibilities
        AutoTokenizer.from_pretrained(**location(source), trust_remote_code=False).save_pretrained(
            folder
        )
    else:
        found = [name for name in TOKENIZER_FILES if (Path(source) / name).is_file()]
        if not found:
            raise ValueError(
                f"prepare_data: the folder {source} (tokenizer_path or policy.path) holds no "
                "tokenizer file (tokenizer.json, ...); give the folder of a downloaded model or "
                "tokenizer"
            )
        folder.mkdir(parents=True, exist_ok=True)
        for name in found:
            shutil.copyfile(Path(source) / name, folder / name)
    tokenizer = load_tokenizer(folder)
    if has_config(source):
        config = load_config(source)
        require_vocabulary(tokenizer, config, source)
        require_attention(config, source)
    return tokenizer


def count_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """Return the number of tokens of each text, without special tokens."""
    if not texts:
        return []
    return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


def count_prompt_tokens(
    tokenizer: PreTrainedTokenizerBase, prompts: Mapping[int, Prompt], path: str
) -> list[int]:
    """Return the number of tokens of each prompt, without the BOS of texts. Prompts come by row
    number."""
    bos = tokenizer.bos_token_id
    return [
        len(ids) - (isinstance(prompt, str) and ids[:1] == [bos])
        for prompt, ids in zip(
            prompts.values(), by_row(prompt_tokens, tokenizer, prompts, path), strict=True
        )
    ]


def has_config(source: str) -> bool:
    """Whether a tokenizer comes with a model. One that is named on the hub does."""
    return not Path(source).is_dir() or Path(source, "config.json").is_file()


def absent_tokens(tokenizer: PreTrainedTokenizerBase, source: str | None) -> list[str]:
    """Return the special tokens that have no row in the embedding of the model at `source`
    (`require_vocabulary`)."""
    if source is None or not has_config(source):
        return []
    return list(tokens_beyond(tokenizer, load_config(source)))


def require_known_tokens(rows: Mapping[int, Row], absent: Sequence[str], place: str) -> None:
    """Raise ValueError for a text with a token of `absent_tokens`.

    Args:
        rows: the rows by number. place: the file and what its rows are, for the message.
    """
    if not absent:
        return
    for number, row in rows.items():
        for text in texts_of([row.get(column) for column in TEXT_COLUMNS]):
            found = next((token for token in absent if token in text), None)
            if found is not None:
                raise ValueError(
                    f"{place} {number}: a text holds {found}, but the policy's embedding has "
                    "no row for this token: leave it out"
                )


def by_row(
    encode: Callable[[PreTrainedTokenizerBase, Sequence[Prompt]], list[list[int]]],
    tokenizer: PreTrainedTokenizerBase,
    prompts: Mapping[int, Prompt],
    path: str,
) -> list[list[int]]:
    """Encode prompts that come by row number. A ValueError of `encode` then names file and row."""
    try:
        return encode(tokenizer, list(prompts.values()))
    except ValueError:
        for number, prompt in prompts.items():
            try:
                encode(tokenizer, [prompt])
            except ValueError as error:
                raise ValueError(f"{path}, row {number}: {error}") from error
        raise


# ---------------------------------------------------------------------------------- preparation


@section
class PrepareArguments(PrepareData):
    """Section `prepare_data`, and what it needs of other sections. A flag that is left out is None
    and stands for null, "not used".

    A column of prompts holds text or messages. A column of completions may also hold messages,
    which end with the assistant's answer. `max_text_tokens` limits prompt and completion together,
    without BOS and EOS. `max_prompt_tokens` limits a prompt as the policy reads it.
    """

    prompts_path: str = Field(kw_only=True)
    eval_prompts: Count = Field(kw_only=True)
    seed: int = Field(kw_only=True)
    """The base seed of the split and of pairing by label."""
    max_prompt_tokens: Count = Field(kw_only=True)
    """A longer prompt is an error."""
    tokenizer_path: str | None = None
    """The folder or hub name of a tokenizer to copy, where none is trained."""
    held_out_pairs: int = 0
    """train_reward_model.held_out: more pairs than these must be left. It changes no file."""

    def __post_init__(self) -> None:
        if (self.vocab_size is None) == (self.tokenizer_path is None):
            raise ValueError(
                "prepare_data: set either vocab_size (a tokenizer is trained) or tokenizer_path "
                "(or policy.path; it is copied), and leave the other null"
            )
        if self.sft_prompt is not None and self.sft_completion is None:
            raise ValueError("prepare_data: sft_prompt needs sft_completion, a column of that file")
        texts = self.sft_path or self.preferences_path
        if texts is not None and self.max_text_tokens is None:
            raise ValueError(f"prepare_data: {texts} needs max_text_tokens, the limit of its texts")
        if self.preferences_path is not None and named_columns(asdict(self), "preferences"):
            _require_one_preference_form(self)


def _require_one_preference_form(settings: PrepareArguments) -> None:
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
    """Return the completion, with a leading space if nothing else separates it from its prompt."""
    if not prompt or prompt[-1].isspace() or completion[:1].isspace():
        return completion
    return " " + completion


def _read_cells(rows: Sequence[Row], column: str | None, path: str, key: str) -> Sequence[Prompt]:
    """Return a column of texts or messages, or empty texts where no column is named."""
    if column is None:
        return [""] * len(rows)
    require_columns(rows, [column], path, f"prepare_data: {key}")
    for number, row in enumerate(rows, start=1):
        cell = row[column]
        kind = str if isinstance(rows[0][column], str) else list
        if not isinstance(cell, kind) or not (kind is str or is_messages(cell)):
            raise ValueError(
                f"{path}, row {number}: column {column!r} (prepare_data: {key}) must be text in "
                'every row, or messages, [{"role": "user", "content": "…"}, …], in every row; got '
                f"{cell!r:.80}"
            )
        for text in texts_of(cell):
            require_whole(text, f"{path}, row {number}: column {column!r} (prepare_data: {key})")
    return [row[column] for row in rows]


def split_answer(prompt: Prompt, answer: Prompt, place: str) -> tuple[Prompt, str]:
    """Return prompt and completion. Messages of an answer end with one of the assistant, which is
    the completion. The messages before it belong to the prompt."""
    if isinstance(answer, str):
        return prompt, _join_space(prompt, answer) if isinstance(prompt, str) else answer
    *before, last = answer
    messages = [*([] if prompt == "" else prompt), *before]
    if last["role"] != "assistant" or not is_messages(messages):
        raise ValueError(
            f"{place}: expected messages that end with one of the assistant, after a prompt of "
            f"messages in a column of its own or in front; got prompt {prompt!r:.80}, answer "
            f"{answer!r:.200}"
        )
    return messages, last["content"]


def read_sft(settings: PrepareArguments) -> list[Row]:
    """Return rows of prompt and completion from sft_path, or no rows where there is no such
    file."""
    path = settings.sft_path
    if path is None:
        return []
    rows = read_rows(path)
    columns = columns_of(asdict(settings), "sft", rows[0], path)
    prompts, answers = (
        _read_cells(rows, columns[key], path, key) for key in ("sft_prompt", "sft_completion")
    )
    result = []
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True), start=1):
        prompt, completion = split_answer(prompt, answer, f"{path}, row {number}")
        result.append({"prompt": prompt, "completion": completion})
    return result


def pair_by_label(
    texts: Sequence[str], is_preferred: Sequence[bool], rng: random.Random
) -> list[Row]:
    """Pair each preferred text, in order, with a random text that is not preferred. All of these
    are used before one is used again, so that few pairs, if any, share a text."""
    others = [text for text, preferred in zip(texts, is_preferred, strict=True) if not preferred]
    if not others or len(others) == len(texts):
        raise ValueError("labels must hold both 1 and 0 so that pairs can be made")
    rng.shuffle(others)
    chosen = [text for text, preferred in zip(texts, is_preferred, strict=True) if preferred]
    return [
        {"prompt": "", "chosen": text, "rejected": other}
        for text, other in zip(chosen, itertools.cycle(others), strict=False)
    ]


def read_preferences(settings: PrepareArguments) -> list[Row]:
    """Return rows of prompt, chosen and rejected from preferences_path, in either form. There are
    none where there is no such file."""
    path = settings.preferences_path
    if path is None:
        return []
    rows = read_rows(path)
    if settings.preferences_text is not None and settings.preferences_label is not None:
        column = settings.preferences_label
        texts = read_texts(rows, settings.preferences_text, path, "prepare_data: preferences_text")
        require_columns(rows, [column], path, "prepare_data: preferences_label")
        labels = [
            read_label(row[column], f"{path}, row {number}: column {column!r}")
            for number, row in enumerate(rows, start=1)
        ]
        rng = random.Random(derive_seed(settings.seed, "prepare_data", "preferences"))
        try:
            return pair_by_label(texts, labels, rng)
        except ValueError as error:
            raise ValueError(f"{path}, column {column!r} (preferences_label): {error}") from error
    is_named = bool(named_columns(asdict(settings), "preferences"))
    columns = columns_of(asdict(settings), "preferences", rows[0], path)
    return _read_pairs(rows, path, columns, is_named)


def _read_pairs(rows: Sequence[Row], path: str, columns: Columns, is_named: bool) -> list[Row]:
    prompts, chosen, rejected = (
        _read_cells(rows, columns[key], path, key)
        for key in ("preferences_prompt", "preferences_chosen", "preferences_rejected")
    )
    is_implicit = columns["preferences_prompt"] is None and not is_named
    result = []
    for number, (prompt, yes, no) in enumerate(zip(prompts, chosen, rejected, strict=True), 1):
        place = f"{path}, row {number}"
        if is_implicit and isinstance(yes, str) and isinstance(no, str):
            prompt, yes, no = split_common_start(yes, no)
        (start, better), (other, worse) = (split_answer(prompt, a, place) for a in (yes, no))
        if start != other:
            raise ValueError(
                f"{place}: the chosen and the rejected dialogue differ before their last message: "
                f"{start!r:.200} and {other!r:.200}"
            )
        result.append({"prompt": start, "chosen": better, "rejected": worse})
    return result


def read_prompts(settings: PrepareArguments) -> tuple[dict[int, Row], int]:
    """Return the different prompts, and how many rows were dropped as too short. A prompt comes
    with the other columns of its first row, by that row's number in the file.

    With prompts_first_words = k a prompt is the first k words of a row that has more than k, joined
    by single spaces. A last message of the assistant is left out of a prompt. A source column
    "prompt" is replaced where another one is chosen.
    """
    path, k = settings.prompts_path, settings.prompts_first_words
    rows = read_rows(path)
    column = columns_of(asdict(settings), "prompts", rows[0], path)["prompts_column"]
    found: dict[int, Row] = {}
    seen: set[str] = set()
    short = 0
    for number, (row, cell) in enumerate(
        zip(rows, _read_cells(rows, column, path, "prompts_column"), strict=True), start=1
    ):
        prompt = cell
        if not isinstance(prompt, str):
            if k is not None:
                raise ValueError(
                    "prepare_data: prompts_first_words is for texts, but column "
                    f"{column!r} of {path} holds messages; set it to null"
                )
            if prompt[-1]["role"] == "assistant":
                prompt, _ = split_answer("", prompt, f"{path}, row {number}")
        elif k is not None:
            words = prompt.split()
            if len(words) <= k:
                short += 1
                continue
            prompt = " ".join(words[:k])
        prompt = user_message(prompt, settings.prompts_as_messages)
        extra = {name: value for name, value in row.items() if name != column}
        if (text := json.dumps(prompt)) not in seen:
            seen.add(text)
            found[number] = {**extra, "prompt": prompt}
    return found, short


def drop_alike(
    prompts: Mapping[int, Row], encoded: Sequence[Sequence[int]], path: str
) -> tuple[list[Row], list[str]]:
    """Return the prompts whose tokens differ, and a message for each of the others. Chat templates
    and some tokenizers trim spaces. Then neither the policy could tell such prompts apart, nor a
    reward that finds a prompt's row by its tokens.

    Args:
        prompts: the prompts by row number. encoded: their token ids.
    """
    first: dict[tuple[int, ...], int] = {}
    said = []
    for number, ids in zip(prompts, encoded, strict=True):
        other = first.setdefault(tuple(ids), number)
        if other != number:
            said.append(
                f"{path}, row {number}: left out, because its prompt has the same tokens as that "
                f"of row {other}: {prompts[number]['prompt']!r:.80}"
            )
    return [prompts[number] for number in first.values()], said


def without_long_prompts(
    prompts: Mapping[int, Row], encoded: Mapping[int, Sequence[int]], limit: int
) -> dict[int, Row]:
    """Return the prompts of at most `limit` tokens. Prompts and token ids come by row number."""
    return {number: row for number, row in prompts.items() if len(encoded[number]) <= limit}


def require_short_prompts(
    prompts: Sequence[Row], encoded: Sequence[Sequence[int]], settings: PrepareArguments
) -> None:
    """Raise ValueError for the longest prompt if it has more than max_prompt_tokens."""
    lengths = [len(ids) for ids in encoded]
    longest = max(lengths, default=0)
    if longest > settings.max_prompt_tokens:
        count = sum(length > settings.max_prompt_tokens for length in lengths)
        raise ValueError(
            f"{settings.prompts_path}: {count} prompts are longer than policy.max_prompt_tokens = "
            f"{settings.max_prompt_tokens}; the longest has {longest} tokens: "
            f"{prompts[lengths.index(longest)]['prompt']!r:.60}... Raise policy.max_prompt_tokens, "
            "lower prepare_data.prompts_first_words, or shorten the prompts."
        )


def split_prompts(
    prompts: Sequence[Row], eval_prompts: int, train_prompts: int | None, seed: int
) -> tuple[list[Row], list[Row]]:
    """Split prompts into train and eval prompts by a seeded shuffle. `train_prompts` caps the
    former.

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
    rows: Sequence[Row],
    text_columns: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    path: str,
) -> tuple[list[Row], int, int]:
    """Return the rows whose texts are not blank and not too long, and how many were blank and long.

    Raises ValueError if no row is left.
    """
    numbered = dict(enumerate(rows, start=1))
    numbered = {n: row for n, row in numbered.items() if all(row[c].strip() for c in text_columns)}
    filled = list(numbered.values())
    asked = {number: row["prompt"] for number, row in numbered.items()}
    prompts = count_prompt_tokens(tokenizer, asked, path)
    texts = [count_tokens(tokenizer, [row[column] for row in filled]) for column in text_columns]
    longest = [prompt + max(lengths) for prompt, *lengths in zip(prompts, *texts, strict=True)]
    kept = [row for row, length in zip(filled, longest, strict=True) if length <= max_tokens]
    if not kept:
        raise ValueError(
            f"{path}: all {len(rows)} rows are blank or longer than max_text_tokens = {max_tokens};"
            " raise prepare_data: max_text_tokens"
        )
    return kept, len(rows) - len(filled), len(filled) - len(kept)


def begins_with(prompts: Sequence[Row]) -> Callable[[Prompt, str], bool]:
    """Return a function that says whether prompt and completion together begin with one of
    `prompts`. It compares texts by words and messages as they are."""
    dialogues = {json.dumps(row["prompt"]) for row in prompts if not isinstance(row["prompt"], str)}
    starts = {tuple(row["prompt"].split()) for row in prompts if isinstance(row["prompt"], str)}
    lengths = {len(words) for words in starts}

    def begins(prompt: Prompt, completion: str) -> bool:
        if not isinstance(prompt, str):
            return json.dumps(prompt) in dialogues
        words = (prompt + completion).split()
        return any(tuple(words[:length]) in starts for length in lengths)

    return begins


def without_eval_texts(
    rows: Sequence[Row], text_columns: Sequence[str], evaluation: Sequence[Row]
) -> list[Row]:
    """Return the rows in which no text begins with a held-out prompt."""
    begins = begins_with(evaluation)
    return [row for row in rows if not any(begins(row["prompt"], row[c]) for c in text_columns)]


def require_pairs(pairs: int, held_out: int, path: str) -> None:
    """Raise ValueError where no pair is left to train on besides the held-out ones."""
    if pairs <= held_out:
        raise ValueError(
            f"{path}: {pairs} pairs can be used, but train_reward_model.held_out is {held_out}: "
            "nothing is left to train on; lower it, raise prepare_data.max_text_tokens, or give "
            "more pairs"
        )


def make_tokenizer(
    settings: PrepareArguments, sft: Sequence[Row], preferences: Sequence[Row], folder: Path
) -> PreTrainedTokenizerBase:
    """Copy the user's tokenizer to `folder`, or train one on all texts."""
    if settings.tokenizer_path is not None:
        return copy_tokenizer(settings.tokenizer_path, folder)
    assert settings.vocab_size is not None
    texts = [row["prompt"] + row["completion"] for row in sft]
    texts += [row["prompt"] + row[c] for row in preferences for c in ("chosen", "rejected")]
    return train_tokenizer(texts, settings.vocab_size, folder)


def file_of_messages(files: Iterable[tuple[str | None, Sequence[Row]]]) -> str | None:
    """Return the first file whose prompts are messages."""
    for path, rows in files:
        if not all(isinstance(row["prompt"], str) for row in rows):
            return path
    return None


def require_template(has_template: bool, path: str) -> None:
    """Raise ValueError where a file's prompts are messages and there is no chat template."""
    if not has_template:
        raise ValueError(
            f"{path} has prompts of messages, but the policy's tokenizer has no chat template (one "
            "that is trained here never has): set policy.path to a model whose tokenizer has one, "
            "put a chat_template.jinja into its folder, or give prompts of text"
        )


def write_texts(
    settings: PrepareArguments,
    texts: Sequence[tuple[str, Sequence[Row], list[str], str | None]],
    evaluation: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
) -> Iterator[str]:
    """Write the usable rows of corpus and preferences to `out`, and yield a line about each file.

    Args:
        texts: for each file its name, rows, columns of completions, and the file they come from.
        evaluation: the held-out prompts.
    """
    for name, rows, columns, path in texts:
        limit = settings.max_text_tokens
        if path is None or limit is None:
            continue
        apart = without_eval_texts(rows, columns, evaluation) if settings.drop_eval_texts else rows
        kept, blank, long = drop_unusable(apart, columns, tokenizer, limit, path)
        if name == "preferences":
            require_pairs(len(kept), settings.held_out_pairs, path)
        write_jsonl(out / f"{name}.jsonl", kept)
        seen = len(rows) - len(apart)
        yield (
            f"{name}.jsonl: {len(kept)} rows; dropped {blank} blank and {long} longer than "
            f"max_text_tokens = {limit}"
            + (f", {seen} that begin with a held-out prompt" if settings.drop_eval_texts else "")
        )


def describe_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a line with the number of tokens and the special ones that matter to a run."""
    special = {"BOS": "bos_token", "EOS": "eos_token", "pad": "pad_token"}
    found = [
        f"{name} is {getattr(tokenizer, key)} ({getattr(tokenizer, f'{key}_id')})"
        for name, key in special.items()
        if getattr(tokenizer, key) is not None
    ]
    return ", ".join([f"tokenizer: {len(tokenizer)} tokens", *found])


def show_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str:
    """Return a line with a prompt as the policy reads it: its chat template applied, with the
    special tokens shown, so that a doubled BOS token or a wrong template is seen."""
    [ids] = encode_prompts(tokenizer, [prompt])
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return f"the first held-out prompt as the policy reads it, {len(ids)} tokens: {text!r}"


def prepare_data(settings: PrepareArguments, out: Path) -> list[str]:
    """Write the data folder `out` from the user's files, and return a report with a line for each
    file."""
    sft, preferences = read_sft(settings), read_preferences(settings)
    numbered, short = read_prompts(settings)
    prompts = list(numbered.values())
    paths = (settings.sft_path, settings.preferences_path, settings.prompts_path)
    chats = file_of_messages(zip(paths, (sft, preferences, prompts), strict=True))
    if chats is not None:
        require_template(settings.tokenizer_path is not None, chats)
    tokenizer = make_tokenizer(settings, sft, preferences, out / "tokenizer")
    if chats is not None:
        require_template(tokenizer.chat_template is not None, chats)
    kind = "pair" if settings.preferences_label else "row"
    absent = absent_tokens(tokenizer, settings.tokenizer_path)
    require_known_tokens(numbered, absent, f"{settings.prompts_path}, row")
    require_known_tokens(dict(enumerate(sft, 1)), absent, f"{settings.sft_path}, row")
    pairs = dict(enumerate(preferences, 1))
    require_known_tokens(pairs, absent, f"{settings.preferences_path}, {kind}")
    asked = {number: row["prompt"] for number, row in numbered.items()}
    encoded = dict(
        zip(asked, by_row(encode_prompts, tokenizer, asked, settings.prompts_path), strict=True)
    )
    found = len(numbered)
    if settings.drop_long_prompts:
        numbered = without_long_prompts(numbered, encoded, settings.max_prompt_tokens)
    too_long = found - len(numbered)
    kept = [encoded[number] for number in numbered]
    require_short_prompts(list(numbered.values()), kept, settings)
    prompts, report = drop_alike(numbered, kept, settings.prompts_path)
    train, evaluation = split_prompts(
        prompts, settings.eval_prompts, settings.train_prompts, settings.seed
    )
    texts = (
        ("sft", sft, ["completion"], settings.sft_path),
        ("preferences", preferences, ["chosen", "rejected"], settings.preferences_path),
    )
    report += write_texts(settings, texts, evaluation, tokenizer, out)
    write_jsonl(out / "train_prompts.jsonl", train)
    write_jsonl(out / "eval_prompts.jsonl", evaluation)
    return [
        *report,
        f"train_prompts.jsonl: {len(train)} rows; eval_prompts.jsonl: {len(evaluation)} rows; "
        f"{len(prompts)} different prompts; dropped {short} rows too short for a prompt"
        + (f" and {too_long} prompts too long" if settings.drop_long_prompts else ""),
        describe_tokenizer(tokenizer),
        show_prompt(tokenizer, evaluation[0]["prompt"]),
    ]
