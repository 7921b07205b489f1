"""Section `compare_fronts` of the config."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from warpflow.settings.base import Integer, Level, section


@section
class CompareFronts:
    """Verdicts on the paper's claims, with intervals over prompts and runs. Comparisons of
    fronts, too."""

    resamples: Annotated[Integer, Field(ge=100)] = 2000
    """Of the bootstrap over prompts; 2000 or more for intervals to report."""
    confidence: Level = 0.95
    """Level of the intervals, each by itself."""
