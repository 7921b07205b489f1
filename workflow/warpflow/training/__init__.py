"""What changes weights by gradients: supervised fine-tuning, reward model, reinforcement learning.

`reinforce` is stage 1 of WARP (Algorithm 1) and reads top to bottom; `anchors` holds what the KL is
measured to, with the moving average, and `kl` how; `optimizers` makes Adam and its kin; `adapters`
is LoRA; `distributed` shares a run among processes; `resume` saves and loads a run; `supervised`
trains the SFT policy and the reward model.
Imports `lm`, never `merging`. Next: `warpflow.merging`, stages 2 and 3.
"""
