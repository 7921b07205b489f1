"""Answers side by side: contestants, their answers, judges, grades (the paper's Table 1).

`settings` reads the config's section, and `answers` the files. `scores` and `chat_judge` judge,
`grades` counts wins, and `example_judges` has functions to start from. Read next:
`docs/side_by_side.md`.
"""
