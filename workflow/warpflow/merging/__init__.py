"""Stages 2 and 3 of WARP: averages of checkpoints on disk, in flat memory.

`methods` has one pure function for each merge method; `streaming` runs them over mapped files, and
`liti` interpolates them; both do so chunk by chunk (`chunks`) in several processes (`workers`).
`checkpoints` reads the folders, of whatever layout (`layouts`), and `writing` writes them.
`recipes` are points of a LITI sweep without weights, and `points` composes them while it loads them
as models: it alone imports `lm.models`. Next: `warpflow.evaluation`, which measures what was
merged.
"""
