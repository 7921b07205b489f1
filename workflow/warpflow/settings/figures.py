"""Section `figures` of the config."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from warpflow.settings.base import Integer, Level, NonNegative, Positive, section


@section
class Figures:
    """How figures look; a change here re-plots and nothing else."""

    palette: str = "okabe_ito"
    """A matplotlib colour map; this one is safe for the colour-blind. A list of distinct colours is
    used in its order, a continuous map is sampled evenly."""
    width: Positive = 9.0
    """Inches, of the whole figure."""
    height: Positive = 3.8
    """Inches, of one row of panels; the legend below adds to it."""
    dpi: Annotated[Integer, Field(ge=30)] = 150
    """Of the PNG files."""
    confidence: Level = 0.95
    """Level of the error bars, which span z·se to either side."""
    kl_scale: Literal["linear", "sqrt"] = "linear"
    """Of the KL axis of fronts; sqrt makes room for the small KLs. There rewards rise with the root
    of the KL."""
    kl_budget: NonNegative = 0.0
    """Nats of KL to SFT that a policy may cost: the summary recommends the largest η within them
    too; 0: no such point."""
