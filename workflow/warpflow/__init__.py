"""warpflow: the library behind the WARP pipeline (arXiv 2406.16768).

Reading order: `averaging` (the paper's three weight averages), `streaming` and `checkpoints` (the
same over files of any size), `sampling`, `log_probs` and `reinforce` (the RL step), `prompts` and
`rewards`, `evaluation` (reward, KL, gold), then `plan` and `jobs` (how Snakemake's rules name, run
and track results).
"""
