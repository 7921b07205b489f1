"""How η is written in paths."""

from __future__ import annotations


def eta_text(eta: float) -> str:
    """η as it stands in paths: 0.3, 1, never 1.0 and 1 side by side; to six digits."""
    return f"{eta:.6f}".rstrip("0").rstrip(".")
