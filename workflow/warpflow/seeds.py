"""Independent random streams derived from one base seed."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(base: int, *purpose: str | int) -> int:
    """Return a 63-bit seed for one purpose, e.g. ``derive_seed(0, "train_policy", 1, 0,
    "sampling")``.

    Hashing rather than adding keeps streams apart. ``base + member`` would make member 1 of seed 0
    the same stream as member 0 of seed 1.
    """
    text = "/".join(str(part) for part in (base, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def make_generator(device: torch.device | str, base: int, *purpose: str | int) -> torch.Generator:
    """Return a `torch.Generator` on `device`, seeded by `derive_seed(base, *purpose)`."""
    return torch.Generator(device=device).manual_seed(derive_seed(base, *purpose))
