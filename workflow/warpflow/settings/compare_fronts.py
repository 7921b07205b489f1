"""Section `compare_fronts` of the config."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from warpflow.settings.base import Integer, Level, section


@section
class CompareFronts:
    """Verdicts on the paper's claims and comparisons of fronts, with intervals over prompts and
    runs."""

    resamples: Annotated[Integer, Field(ge=100)] = 2000
    """The number of resamples of the bootstrap over prompts. Take 2000 or more for intervals that
    you report."""
    confidence: Level = 0.95
    """The level of the intervals, each by itself."""
