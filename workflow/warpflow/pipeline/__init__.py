"""How a rule becomes a job: settings, keys, runs, DVC, provenance, devices, SLURM.

`config` checks the settings. `code_files` says which code a rule runs. `jobs` runs a command once
for each content and hands its result to DVC (`dvc_cache`, `contents`). `freshness` and `provenance`
say what is due and why. `gpus`, `launch`, `slurm` and `user` deal with where a job runs. The folder
has no model code. Read next: `docs/how_reruns_work.md`.
"""
