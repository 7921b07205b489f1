"""The data that go in: the users' files and the embedded language.

`files` reads rows of JSON lines, JSON and CSV. `prepare` checks them and writes the data folder
that all other stages read. `tokenizers` makes a tokenizer where none is given. `toy_reviews` is the
synthetic language of the default run, with its gold score. The folder imports `lm`, whose tokens
`prepare` counts. Read next: `warpflow.training`.
"""
