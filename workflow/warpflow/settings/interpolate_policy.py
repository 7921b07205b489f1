"""Section `interpolate_policy` of the config."""

from __future__ import annotations

from typing import Annotated, Literal

from warpflow.settings.base import Eta, NonEmpty, Unique, listed, section


@section
class InterpolatePolicy:
    """Stage 3, LITI."""

    etas: Annotated[list[Eta], NonEmpty, *Unique] = listed(0, 0.3, 0.5, 0.7, 0.85, 1, 1.3)
    """η of the LITI front towards SFT; up to 2. The front is (1 − η) θ_sft + η θ_merged; above 1
    it extrapolates."""
    towards: Literal["sft", "init"] = "sft"
    """What the front interpolates to: sft (the paper's), or init, the iteration's own start."""
    next_eta: Eta = 0.5
    """η of the next iteration's start. It lies between this iteration's own start and its merge.
    Paper: 0.3."""
    write: Literal["recipes", "weights"] = "recipes"
    """Points as recipes, composed while loading, or as weights on disk. A recipe is two checkpoints
    and η, bit for bit the same. What an iteration starts from is always written."""
