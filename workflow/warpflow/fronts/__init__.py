"""From evaluations to statements: tidy tables, fronts, intervals, and what is claimed.

`tables` collects results of a group of experiments, `measurements` reads them by replicate and
prompt, `bootstrap` has the intervals, `curves` compares fronts at equal KL, `envelopes` takes the
best β at each KL, `differences` sets every experiment against the base one, `claims` states the
paper's observations. Imports no model code. Next: `warpflow.figures`, which draws the tables.
"""
