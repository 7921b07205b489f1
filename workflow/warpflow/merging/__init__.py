"""Stages 2 and 3 of WARP: averages of checkpoints on disk, in flat memory.

`methods` has one pure function for each merge method. `streaming` runs them over mapped files, and
`liti` interpolates files. Both do so chunk by chunk (`chunks`) in several processes (`workers`).
`checkpoints` reads folders of any layout (`layouts`), and `writing` writes them. `recipes` are
points of a LITI sweep without weights, and `points` composes them while it loads them as models.
Only `points` imports `lm.models`. Read next: `warpflow.evaluation`, which measures what was merged.
"""
