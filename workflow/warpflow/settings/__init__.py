"""The settings of the config: type, default, range and description of each, in one place.

One file for each section of the config, and `config` for the whole of it. A script imports the file
of its own section alone, so that another section's new key re-runs nothing of it. From these models
come config/config.yaml, config/schema.yaml and config/README.md (`make docs`), the flags of the
scripts (`warpflow.cli`) and the checks before a run (`warpflow.pipeline.config`). A description is
the docstring below a field. These files import pydantic, one another and nothing else: Snakemake
reads them at every start. Read next: train_policy.py, then config.py.
"""
