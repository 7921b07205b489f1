"""How η is written in paths."""

from __future__ import annotations


def eta_text(eta: float) -> str:
    """Write η as in paths, to six digits: 0.3, 1, and never both 1.0 and 1."""
    return f"{eta:.6f}".rstrip("0").rstrip(".")
