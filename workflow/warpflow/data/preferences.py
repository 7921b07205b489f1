"""Split preferences into two shares, one for the reward model of training and one for gold."""

from __future__ import annotations

import json
from collections.abc import Iterable

from warpflow.data.files import Row
from warpflow.seeds import derive_seed


def is_held_out(row: Row, share: float, seed: int) -> bool:
    """Whether a pair belongs to the share that is held out.

    A hash of the prompt decides, so that all pairs of a prompt are on one side. For pairs without a
    prompt a hash of the rejected text decides, because this text may be in several pairs where
    pairs were made from labels.
    """
    text = json.dumps(row["prompt"]) if row["prompt"] else row["rejected"]
    return derive_seed(seed, "held_out_preferences", text) < share * 2**63


def share_of_preferences(rows: Iterable[Row], share: float, seed: int, held_out: bool) -> list[Row]:
    """Return the pairs of one side, in order."""
    return [row for row in rows if is_held_out(row, share, seed) == held_out]
