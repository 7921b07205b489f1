"""Datasets of the Hugging Face hub as the config names them: ``hub:org/name?split=train``.

A dataset is read at one commit, which the cache of Hugging Face (HF_HOME) remembers. A branch is
looked up on the hub when it is first asked for. From then on no network is needed.
`warpflow.pipeline.model_contents` puts the commit into the job's key and provenance.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import parse_qsl

HUB = "hub:"
NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
INSTALL = "`pip install datasets==5.2.0` (or the project's extra `hub`)"


@dataclass(frozen=True)
class HubDataset:
    """The dataset that ``hub:org/name?config=…&revision=…&split=…`` names. All but the name may be
    left out.

    Attributes:
        name: the name on the hub.
        config: the hub's name of a subset; None where the dataset has only one.
        revision: a branch, tag or commit.
        split: a split such as train, test, or train[:1000].
    """

    name: str
    config: str | None = None
    revision: str = "main"
    split: str = "train"


def is_hub(path: str) -> bool:
    """Whether a path of the config names a dataset of the hub and not a file."""
    return path.startswith(HUB)


def parse_hub(path: str) -> HubDataset:
    """Return the dataset that a path of the config names.

    Raises:
        ValueError: the path has another form. The message names the wrong part.
    """
    name, _, query = path.removeprefix(HUB).partition("?")
    expected = f"expected {HUB}org/name, or {HUB}org/name?split=train&config=…&revision=…"
    if not NAME.fullmatch(name):
        raise ValueError(f"{path}: got {name!r} for the name of a dataset on the hub; {expected}")
    known = [field.name for field in fields(HubDataset)][1:]
    try:
        given = parse_qsl(query, strict_parsing=True, keep_blank_values=True) if query else []
    except ValueError:
        raise ValueError(f"{path}: {query!r} is no list of key=value; {expected}") from None
    for key, value in given:
        if key not in known or not value or [k for k, _ in given].count(key) > 1:
            raise ValueError(
                f"{path}: got {key}={value}; expected each of {', '.join(known)} once at most, and "
                "with a value"
            )
    return HubDataset(name, **dict(given))


def hub_problem(path: str) -> str | None:
    """Say why a dataset of the hub cannot be read, as far as that is known without the network."""
    try:
        parse_hub(path)
    except ValueError as error:
        return str(error)
    if importlib.util.find_spec("datasets") is None:
        return f"{path}: datasets of the hub are read by a package that is missing: {INSTALL}"
    return None


def cached_commit(dataset: HubDataset) -> str | None:
    """Return the commit that the cache of Hugging Face has for a dataset's revision, or None where
    the revision was never looked up on this machine."""
    if COMMIT.fullmatch(dataset.revision):
        return dataset.revision
    from huggingface_hub import constants  # only where a dataset of the hub is named

    repository = Path(constants.HF_HUB_CACHE, f"datasets--{dataset.name.replace('/', '--')}")
    reference = repository / "refs" / dataset.revision
    return reference.read_text(encoding="utf-8").strip() if reference.is_file() else None


def dataset_folder(path: str) -> Path:
    """Return the folder of a dataset's files at its commit, in the cache of Hugging Face. The
    network is used where the cache lacks some of them.

    Raises:
        OSError: the files are not available. The message repeats what the hub said and says what to
            do.
    """
    from huggingface_hub import snapshot_download

    dataset = parse_hub(path)
    commit = cached_commit(dataset)
    try:
        folder = snapshot_download(
            dataset.name, repo_type="dataset", revision=commit or dataset.revision
        )
    except (OSError, ValueError) as error:
        raise OSError(
            f"{path}: the dataset is neither on the hub nor in the cache below HF_HOME: "
            f"{error} Check its name and revision. For a private or gated one, run `hf auth "
            "login`. Without network, copy HF_HOME from a machine that has read it"
        ) from error
    return Path(folder)
