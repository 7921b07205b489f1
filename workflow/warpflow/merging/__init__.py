"""Stages 2 and 3 of WARP: averages of checkpoints on disk, in flat memory.

`methods` has one pure function for each merge method; `streaming` runs them over mapped files chunk
by chunk; `checkpoints` reads and writes the folders; `recipes` are points of a LITI sweep that are
composed while they are loaded; `workers` shares out the work. Imports `lm.models` in `recipes`
only. Next: `warpflow.evaluation`, which measures what was merged.
"""
