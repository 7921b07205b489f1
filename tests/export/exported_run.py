"""A finished run to export points of."""

import json
from pathlib import Path

import pandas as pd
import yaml
from conftest import MakeModel, MakeTokenizer

ROOT = Path(__file__).parents[2]
MERGED = "merge_policies/warp/replicate1/iteration1"
POINT = "interpolate_policy/warp/replicate1/iteration1/sft/eta0.5"


def make_run(folder: Path, make_model: MakeModel, make_tokenizer: MakeTokenizer) -> Path:
    """Write a finished run of one iteration: SFT, the merge, and the evaluations of its front."""
    results = folder / "results"
    for result, seed in (("train_sft", 0), (MERGED, 1)):
        model = make_model("llama", seed)
        model.save_pretrained(results / result / "checkpoint")
        make_tokenizer().save_pretrained(results / result / "checkpoint")
    default = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    overlay = {
        "results": str(results),
        "iterations": 1,
        "members": 2,
        "interpolate_policy": {"etas": [0, 0.5, 1]},
        "experiments": dict.fromkeys(default["experiments"]),
    }
    (folder / "overlay.yaml").write_text(yaml.safe_dump(overlay))
    rows = []
    for eta in (0.0, 0.5, 1.0):
        policy = POINT.replace("0.5", f"{eta:g}")
        metrics = {"n_prompts": 40, "reward": eta, "reward_se": 0.1, "gold": 2 * eta}
        metrics |= {"gold_se": 0.1, "kl_exact": eta**2, "kl_exact_se": 0.01, "length": 9.0}
        document = {"metrics": metrics, "completions": [{"prompt": "w1 w2", "completion": "w3"}]}
        file = results / "evaluate_policy" / policy / "evaluation.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(document))
        keys = {"experiment": "warp", "replicate": 1, "stage": "interpolate_policy", "iteration": 1}
        keys |= {"member": None, "towards": "sft", "eta": eta, "anchor": "ema", "beta": 0.3}
        keys |= {"mu": 0.03, "members": 2, "merge_method": "slerp", "merge_weight": None}
        rows.append({**keys, "policy": policy, **metrics})
    tables = results / "collect_evaluations/main"
    tables.mkdir(parents=True)
    pd.DataFrame(rows).to_csv(tables / "evaluations.csv", index=False)
    step = {"experiment": "warp", "replicate": 1, "iteration": 1, "member": 0, "step": 0}
    step |= {"weights": "policy", "reward": 0.0, "reward_se": 0.1, "kl_exact": 0.0}
    pd.DataFrame([{**step, "kl_exact_se": 0.0, "gold": 0.0, "gold_se": 0.1}]).to_csv(
        tables / "trajectories.csv", index=False
    )
    best = {"kind": "optimum", "kl": [0.0, 1.0], "reward": [0.0, 2.0], "gold": [0.0, 1.0]}
    pd.DataFrame({**best, "reliable": True}).to_csv(tables / "optimum.csv", index=False)
    return folder
