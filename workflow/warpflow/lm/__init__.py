"""Language models as Hugging Face folders: load, prompt, sample, score.

`models` loads and saves policies and reward models, `prompts` turns text and messages into token
ids, `sampling` draws completions, `log_probs` scores them by the library's forward pass, `scoring`
chooses between that and the layers of `lm.fast`. Imports nothing of the other folders but `seeds`.
Next: `warpflow.training`, which is built on `sampling` and `scoring`.
"""
