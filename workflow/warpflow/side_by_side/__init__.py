"""Answers side by side: contestants, their answers, judges, grades (the paper's Table 1).

`settings` reads the config's section, `answers` the files, `scores` and `chat_judge` judge,
`grades` counts wins, `example_judges` are functions to start from. Next: `docs/side_by_side.md`.
"""
