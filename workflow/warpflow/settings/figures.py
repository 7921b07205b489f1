"""Section `figures` of the config."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from warpflow.settings.base import Integer, Level, NonNegative, Positive, section


@section
class Figures:
    """How figures look; a change here re-plots and nothing else."""

    palette: str = "okabe_ito"
    """A matplotlib colour map; the default is safe for the colour-blind. A list of distinct colours
    is used in its order, a continuous map is sampled evenly."""
    width: Positive = 9.0
    """The width of the whole figure in inches."""
    height: Positive = 3.8
    """The height of one row of panels in inches; the legend below adds to it."""
    dpi: Annotated[Integer, Field(ge=30)] = 150
    """The resolution of the PNG files."""
    confidence: Level = 0.95
    """The level of the error bars, which span z·se to either side."""
    kl_scale: Literal["linear", "sqrt"] = "linear"
    """The scale of the KL axis of fronts; sqrt makes room for the small KLs. There rewards rise
    with the root of the KL."""
    kl_budget: NonNegative = 0.0
    """The KL to SFT, in nats, within which the summary also recommends a policy; 0 recommends none.
    It takes the largest η within this budget."""
