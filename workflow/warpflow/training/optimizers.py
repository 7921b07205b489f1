"""The optimiser of an RL run.

`OPTIMIZERS` lists all optimisers. Those with 8 bits need the package bitsandbytes, which is
imported only where they are asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from warpflow.settings.train_policy import ReinforceSettings


def by_bitsandbytes(name: str, parameters: list[Tensor], **settings: Any) -> torch.optim.Optimizer:
    """Return the optimiser of that name in `bitsandbytes.optim`. Its two moments are 8-bit numbers
    with a scale for each 256 of them (arXiv 2110.02861). A tensor of less than 4096 weights keeps
    fp32 moments.

    Raises:
        ModuleNotFoundError: the package is not installed. The check of the config says so earlier.
    """
    made: torch.optim.Optimizer = getattr(importlib.import_module("bitsandbytes.optim"), name)(
        parameters, **settings
    )
    return made


CARRIED = "optimizer.pt"  # a file beside the weights, which transformers also names so

# A new optimiser needs one line here, and a name in warpflow.settings.train_policy.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),
    "adamw": partial(torch.optim.AdamW, fused=True),
    "adam_8bit": partial(by_bitsandbytes, "Adam8bit"),
    "adamw_8bit": partial(by_bitsandbytes, "AdamW8bit"),
}


def make_optimizer(
    parameters: Iterable[Tensor], settings: ReinforceSettings
) -> torch.optim.Optimizer:
    """Return a fresh optimiser for the parameters that a run trains."""
    return OPTIMIZERS[settings.optimizer](
        list(parameters), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )


def save_optimizer(optimizer: torch.optim.Optimizer, checkpoint: str | Path) -> None:
    """Write the optimiser's state into a checkpoint folder."""
    torch.save(optimizer.state_dict(), Path(checkpoint, CARRIED))


def carry_optimizer_(optimizer: torch.optim.Optimizer, checkpoint: str | Path) -> None:
    """Give a fresh optimiser the state that a run left in its checkpoint folder.

    Raises:
        FileNotFoundError: that run did not keep its optimiser.
    """
    path = Path(checkpoint, CARRIED)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there: the run of {checkpoint} kept no optimiser; train it with "
            "train_policy.carry_optimizer: true"
        )
    optimizer.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
