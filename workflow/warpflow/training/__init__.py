"""What changes weights by gradients: supervised fine-tuning, reward model, reinforcement learning.

`reinforce` is stage 1 of WARP (Algorithm 1) and reads top to bottom. `anchors` holds the policy
that the KL is measured to, with its moving average, and `kl` the estimators of the KL. `optimizers`
makes Adam and its variants, `adapters` is LoRA, `distributed` shares a run among processes,
`resume` saves and loads a run, and `supervised` trains the SFT policy and the reward model. It
imports `lm`, never `merging`. Read next: `warpflow.merging`, stages 2 and 3.
"""
