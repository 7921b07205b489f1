"""The settings of the config: type, default, range and description of each, in one place.

Each section of the config has a file, and `config` has the whole of it. A script imports the file
of its own section alone, so that another section's new key re-runs nothing of it. `make
config-docs` writes config/config.yaml, config/schema.yaml and config/README.md from these models.
The flags of the scripts (`warpflow.cli`) and the checks before a run (`warpflow.pipeline.config`)
come from them too. A description is the docstring below a field. These files import pydantic, one
another and nothing else, because Snakemake reads them at every start. Read next: train_policy.py,
then config.py.
"""
