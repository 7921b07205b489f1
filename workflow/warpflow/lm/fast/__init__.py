"""Layers of our own for common architectures: faster scoring and decoding of the same numbers.

`layers` has the layers, `packing` scores all tokens of a batch side by side, `decoding` reads
prompts. Both are compared with the library's forward pass before they are used. The folder may be
deleted as one: `lm.scoring` and `lm.sampling` are all that imports it. Imports `lm.log_probs` only.
Next: `warpflow.lm.scoring`, where the way is chosen.
"""
