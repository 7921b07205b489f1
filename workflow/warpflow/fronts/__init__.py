"""From evaluations to statements: tidy tables, fronts, intervals, and what is claimed.

`tables` collects results of a group of experiments, `measurements` reads them by replicate and
prompt, `bootstrap` has the intervals, `differences` compares fronts at equal KL, `claims` states
the paper's observations. Imports no model code. Next: `warpflow.figures`, which draws the tables.
"""
