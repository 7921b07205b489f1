"""From evaluations to statements: tidy tables, fronts, intervals, and verdicts on claims.

`tables` collects results of a group of experiments. `measurements` reads them by replicate and
prompt. `bootstrap` has the intervals. `curves` compares fronts at equal KL. `envelopes` takes the
best β at each KL. `differences` compares every experiment with the base one. `claims` states the
paper's observations. The folder imports no model code. Read next: `warpflow.figures`, which draws
the tables.
"""
