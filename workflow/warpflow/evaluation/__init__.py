"""What a policy is worth: rewards, gold, KL to the SFT policy, and the best that could be had.

`task` loads what a policy is judged with; `rewards` has reward models and functions; `evaluate`
samples and measures; `optimum` and `sft_samples` estimate the best reward at each KL; `lm_eval`
reads the results of capability benchmarks, and `benchmark_points` names the policies that they run
on. Imports `lm` and `data`. Next: `warpflow.fronts`.
"""
