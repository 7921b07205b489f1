"""Our own layers for common architectures: faster scoring and decoding of the same numbers.

`layers` has the layers, `packing` scores all tokens of a batch side by side, and `decoding` reads
prompts. Both are compared with the library's forward pass before they are used. The folder may be
deleted as a whole, because only `lm.scoring` and `lm.sampling` import it. It imports only
`lm.log_probs`. Read next: `warpflow.lm.scoring`, which chooses between the two.
"""
