"""warpflow: the library behind the WARP pipeline (arXiv 2406.16768).

Read it in this order: `lm` (models, sampling, scores), `training` (stage 1: the RL step and its
anchor), `merging` (stages 2 and 3: SLERP and LITI on files of any size), `evaluation` (reward,
gold, KL), `fronts` (tables, intervals, claims), `figures`. `data` reads what goes in. `experiments`
names every result, and `pipeline` makes each once. Imports go one way, in the order lm → data →
training, merging → evaluation → fronts → figures, which tests/test_imports.py checks.
"""
