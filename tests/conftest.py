"""Tiny models made on the spot, their tokenizer, exact enumeration of what they can say; and a
finished smoke run."""

import quick_imports  # noqa: F401  # first: see there

import gc
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from project import SMOKE, copy_project, snakemake
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from warpflow.lm.log_probs import Completions
from warpflow.lm.models import build_policy, to_device

os.environ["HF_HUB_OFFLINE"] = "1"  # tests load local folders only
torch.set_num_threads(1)  # same sums in the same order on every machine, and no over-subscription
os.environ["OMP_NUM_THREADS"] = "1"  # the same for the processes that tests start

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]
PAD, BOS, EOS = 0, 1, 2
WORDS = [f"w{i}" for i in range(16)]

LLAMA_LIKE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "initializer_range": 0.4,  # far from uniform predictions, so that mistakes show
}
# Both tied (the gemmas, gpt2, qwen2) and untied; windows are shorter than the sequences here, in
# every layer (mistral) or in every other one (gemma2, gemma3_text).
ARCHITECTURES: dict[str, dict[str, object]] = {
    "gemma": {**LLAMA_LIKE, "model_type": "gemma", "head_dim": 8},
    "gemma2": {**LLAMA_LIKE, "model_type": "gemma2", "head_dim": 8, "sliding_window": 4},
    "gemma3_text": {
        **LLAMA_LIKE,
        "model_type": "gemma3_text",
        "head_dim": 8,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "llama": {**LLAMA_LIKE, "model_type": "llama", "tie_word_embeddings": False},
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 256,
        "initializer_range": 0.4,
    },
    "qwen2": {**LLAMA_LIKE, "model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {**LLAMA_LIKE, "model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": False},
    "gpt_neox": {
        **{key: value for key, value in LLAMA_LIKE.items() if key != "num_key_value_heads"},
        "model_type": "gpt_neox",
    },
    "mistral": {**LLAMA_LIKE, "model_type": "mistral", "sliding_window": 4},
}

# What warpflow.lm.fast.layers computes: grouped heads, biases, tied and untied, and what configs
# change.
COVERED: dict[str, dict[str, object]] = {
    "llama": {},
    "llama with biases": {"attention_bias": True, "tie_word_embeddings": True},
    "llama, angles of Llama 3": {
        "rope_parameters": {
            **{"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0},
            **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
            "original_max_position_embeddings": 16,
        }
    },
    "llama, one key head for each head": {"num_key_value_heads": 2},
    "mistral": {"sliding_window": None},
    "mistral, a window longer than the text": {"sliding_window": 64},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma3_text, windows longer than the text": {"sliding_window": 64, "initializer_range": 0.2},
    "gemma3_text, other angles in some layers, capped logits": {
        "sliding_window": 64,
        "final_logit_softcapping": 1.5,
        "query_pre_attn_scalar": 5,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0},
        },
    },
}

MakeTokenizer = Callable[..., PreTrainedTokenizerBase]
MakeModel = Callable[..., PreTrainedModel]
Perturb = Callable[..., PreTrainedModel]
Enumerate = Callable[..., Completions]


def pytest_configure(config: pytest.Config) -> None:
    """Use the CPU, since exact comparisons hold there. `pytest -m gpu` puts the models of
    `make_model` on the GPU in tests that are marked for it."""
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files of tests that run Snakemake first. They take minutes, and two processes that
    share the files end together where the short ones come last."""
    long = {item.path for item in items if item.get_closest_marker("workflow")}
    items.sort(key=lambda item: item.path not in long)


def pytest_collection_finish() -> None:
    """Look for garbage from now on, but not among what was imported."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Each test draws the same numbers whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    """Each architecture in turn."""
    return request.param


@pytest.fixture(scope="session")
def make_tokenizer() -> MakeTokenizer:
    """A word-level tokenizer of the special tokens and `words`, saved nowhere."""

    def make(words: Sequence[str] = WORDS) -> PreTrainedTokenizerBase:
        vocabulary = {word: index for index, word in enumerate([*SPECIAL, *words])}
        model = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
        model.pre_tokenizer = WhitespaceSplit()
        names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
        return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", **names)

    return make


@pytest.fixture(scope="session")
def make_model(make_tokenizer: MakeTokenizer) -> MakeModel:
    """A random two-layer model of an architecture, for the tokenizer of `words`."""

    def make(
        name: str = "llama", seed: int = 0, words: Sequence[str] = WORDS, **changes: object
    ) -> PreTrainedModel:
        model = build_policy(ARCHITECTURES[name] | changes, make_tokenizer(words), seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():  # biases and norms start equal everywhere: no test could miss them
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        return to_device(model)

    return make


@pytest.fixture(params=COVERED)
def covered(request: pytest.FixtureRequest, make_model: MakeModel) -> PreTrainedModel:
    """A model of each kind that `warpflow.lm.fast.layers` computes."""
    return make_model(request.param.replace(",", "").split()[0], **COVERED[request.param])


@pytest.fixture(scope="session")
def perturb() -> Perturb:
    """Return a copy of a model whose parameters moved by random steps, in place of RL."""

    def copy_moved(model: PreTrainedModel, seed: int, scale: float = 0.05) -> PreTrainedModel:
        moved = type(model)(model.config).eval()
        moved.load_state_dict(model.state_dict())
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in moved.parameters():
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
        return to_device(moved)

    return copy_moved


@pytest.fixture(scope="session")
def enumerate_completions() -> Enumerate:
    """Return every completion that a model can sample for one prompt, each once.

    A completion ends with its first EOS or at `limit` tokens; the whole vocabulary counts, the
    special tokens included, since the sampler draws from all of it.
    """

    def enumerate_all(prompt: Sequence[int], vocabulary: int, limit: int) -> Completions:
        rows = []
        for length in range(1, limit + 1):
            for ids in itertools.product(range(vocabulary), repeat=length):
                if EOS not in ids[:-1] and (ids[-1] == EOS or length == limit):
                    rows.append(ids)
        response = torch.tensor([[*ids, *[PAD] * (limit - len(ids))] for ids in rows])
        lengths = torch.tensor([len(ids) for ids in rows])
        prompt_ids = torch.tensor([list(prompt)] * len(rows))
        return Completions(
            prompt_ids,
            torch.ones_like(prompt_ids, dtype=torch.bool),
            response,
            torch.arange(limit)[None] < lengths[:, None],
            torch.tensor([ids[-1] == EOS for ids in rows]),
        )

    return enumerate_all


@pytest.fixture
def save(tmp_path: Path, make_tokenizer: MakeTokenizer) -> Callable[..., Path]:
    """Save a model with its tokenizer below tmp_path; small `max_shard_size` shards it."""

    def save_model(model: PreTrainedModel, name: str, max_shard_size: str = "1GB") -> Path:
        folder = tmp_path / name
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        make_tokenizer().save_pretrained(folder)
        return folder

    return save_model


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with a finished smoke run; tests must leave it as it is.

    The workers of pytest-xdist share it: the first one makes it, and the others wait.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, done = shared / "finished/project", shared / "finished/done"
    with FileLock(shared / "finished.lock"):
        if not done.exists():
            folder.mkdir(parents=True)
            copy_project(folder)
            snakemake(folder, *SMOKE)
            done.touch()
    return folder


@pytest.fixture
def overlay(tmp_path: Path) -> Callable[..., tuple[str, ...]]:
    """Arguments that lay changes over the smoke configuration."""

    def write(**changes: object) -> tuple[str, ...]:
        path = tmp_path / "changes.yaml"
        path.write_text(yaml.safe_dump(changes))
        return (*SMOKE, str(path))

    return write
