"""What a policy is worth: its rewards, gold and KL to the SFT policy, and the best that is
possible.

`task` loads what a policy is judged with. `rewards` has reward models and functions. `evaluate`
samples and measures. `optimum` and `sft_samples` estimate the best reward at each KL. `lm_eval`
reads the results of capability benchmarks, and `benchmark_points` names the policies that they run
on. The folder imports `lm` and `data`. Read next: `warpflow.fronts`.
"""
