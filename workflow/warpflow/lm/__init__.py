"""Language models as Hugging Face folders: load, prompt, sample, score.

`models` loads and saves policies and reward models. `prompts` turns text and messages into token
ids, and `texts` turns ids into text. `reward_models` scores sequences. `sampling` draws
completions, `log_probs` scores them by the library's forward pass, and `scoring` chooses between
that and the layers of `lm.fast`. The folder imports no other folder. Read next:
`warpflow.training`, which is built on `sampling` and `scoring`.
"""
