"""How a rule becomes a job: settings, keys, runs, DVC, provenance, devices, SLURM.

`config` checks the settings; `code_files` says which code a rule runs; `jobs` runs a command once
for each content and hands its result to DVC (`dvc_cache`, `contents`); `freshness` and `provenance`
say what is due and why; `gpus`, `launch`, `slurm` and `user` are about where it runs. No model
code. Next: `docs/how_reruns_work.md`.
"""
