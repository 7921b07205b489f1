"""Section `interpolate_policy` of the config."""

from __future__ import annotations

from typing import Annotated, Literal

from warpflow.settings.base import Eta, NonEmpty, Unique, listed, section


@section
class InterpolatePolicy:
    """Stage 3, LITI."""

    etas: Annotated[list[Eta], NonEmpty, *Unique] = listed(0, 0.3, 0.5, 0.7, 0.85, 1, 1.3)
    """The η of the LITI front towards SFT, from 0 to 2. The front is (1 − η) θ_sft + η θ_merged;
    above 1 it extrapolates."""
    towards: Literal["sft", "init"] = "sft"
    """Where the front starts: sft, as in the paper, or init, the start of the iteration."""
    next_eta: Eta = 0.5
    """The η of the next iteration's start. It lies between this iteration's own start and its
    merge. Paper: 0.3."""
    write: Literal["recipes", "weights"] = "recipes"
    """Whether points are recipes, which are composed while they are loaded, or weights on disk. A
    recipe names two checkpoints and η, and gives the same bits. What an iteration starts from is
    always written."""
