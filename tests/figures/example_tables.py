"""Tables as a run leaves them, of made-up numbers: what the tests of figures draw."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

ETAS = (0.0, 0.3, 0.5, 1.0)
STEPS = (0, 10, 20, 30)
BETAS = (0.1, 0.3)
Tables = dict[str, pd.DataFrame]


def measured(kl: float, boost: float, gold: bool) -> dict[str, float]:
    """A reward that grows with the root of KL, and a gold reward that turns down again."""
    reward = boost * np.sqrt(kl)
    gold_reward = reward - 0.06 * kl if gold else np.nan
    return {
        "reward": reward,
        "reward_se": 0.02,
        "gold": gold_reward,
        "gold_se": 0.03 if gold else np.nan,
        "kl_exact": kl,
        "kl_exact_se": 0.04 + 0.01 * kl,
    }


def liti_rows(name: str, settings: dict, iterations: int, gold: bool) -> Iterator[dict]:
    for iteration in range(1, iterations + 1):
        for eta in ETAS:
            kl = (3 + 2 * iteration) * eta**1.6
            boost = 0.75 + 0.08 * iteration - (0.06 if name == "lerp" else 0)
            yield {
                **settings,
                **measured(kl, boost, gold),
                "experiment": name,
                "stage": "interpolate_policy",
                "iteration": iteration,
                "towards": "sft",
                "eta": eta,
                "policy": f"interpolate/{name}/{iteration}/{eta}" if eta else "sft",
            }


def member_rows(name: str, run: str, settings: dict, iterations: int, gold: bool) -> Iterator[dict]:
    for iteration in range(1, iterations + 1):
        for member in range(settings["members"]):
            kl = 5 + 2 * iteration + member - (0.3 if run == "lerp" else 0)
            if settings["anchor"] == "sft":
                kl -= 10 * settings["beta"]
            yield {
                **settings,
                **measured(kl, 0.7 + 0.03 * iteration, gold),
                "experiment": name,
                "stage": "train_policy",
                "iteration": iteration,
                "member": member,
                "policy": f"train/{run}/{iteration}/{member}",
            }


def lambda_rows(base: dict, weights: tuple[float, ...], gold: bool) -> Iterator[dict]:
    for method in ("slerp", "lerp"):
        for weight in weights:
            bend = weight * (1 - weight)
            kl = 7 + weight - (1.0 if method == "slerp" else 4.0) * bend
            yield {
                **base,
                **measured(kl, 0.73 + (0.25 if method == "slerp" else 0.3) * bend, gold),
                "experiment": f"{method}_lambda_{weight}",
                "stage": "interpolate_policy",
                "iteration": 1,
                "towards": "sft",
                "eta": 1.0,
                "merge_method": method,
                "merge_weight": weight,
                "policy": f"interpolate/{method}/{weight}",
            }


def evaluation_rows(iterations: int, weights: tuple[float, ...], gold: bool) -> Iterator[dict]:
    base: dict = {
        "replicate": 1,
        "anchor": "ema",
        "beta": 0.1,
        "mu": 0.03,
        "members": 2,
        "merge_method": "slerp",
    }
    changes: tuple[tuple[str, dict, int], ...] = (
        ("warp", {}, iterations),
        ("lerp", {"merge_method": "lerp"}, iterations),
        ("one_run", {"members": 1}, 1),
    )
    for name, change, count in changes:
        yield from liti_rows(name, base | change, count, gold)
        # Iteration 2 starts elsewhere for LERP, iteration 1 does not.
        yield from member_rows(name, "warp", base | change, 1, gold)
        later = member_rows(name, name, base | change, count, gold)
        yield from (row for row in later if row["iteration"] > 1)
    for beta in BETAS:
        settings = base | {"anchor": "sft", "beta": beta, "mu": np.nan, "members": 1}
        name = f"sft_anchor_beta_{beta}"
        yield from member_rows(name, name, settings, 1, gold)
        end = next(member_rows(name, name, settings, 1, gold))
        yield end | {
            "stage": "interpolate_policy",
            "member": np.nan,
            "towards": "sft",
            "eta": 1.0,
            "policy": f"interpolate/{name}",
        }
    yield from lambda_rows(base, weights, gold)


def step_tables(evaluations: pd.DataFrame, gold: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Trajectories that end at the trained policies, and a noisy log of the same runs."""
    rng = np.random.default_rng(0)
    trajectories, training = [], []
    noise: dict[str, np.ndarray] = {}
    for run in evaluations[evaluations["stage"] == "train_policy"].to_dict("records"):
        key = {name: run[name] for name in ("experiment", "replicate", "iteration", "member")}
        start = 2.0 * (run["iteration"] - 1)
        for step in STEPS:
            kl = start + (run["kl_exact"] - start) * step / STEPS[-1]
            boost = run["reward"] / np.sqrt(run["kl_exact"])
            trajectories.append(
                {**key, "step": step, "weights": "policy", **measured(kl, boost, gold)}
            )
        jitter = noise.setdefault(run["policy"], rng.normal(0, 0.15, STEPS[-1]))
        for step in range(STEPS[-1]):
            share = (step + 1) / STEPS[-1]
            training.append(
                {
                    **key,
                    "step": step,
                    "reward": run["reward"] * np.sqrt(share) + jitter[step],
                    "kl_to_anchor": 2 * np.sqrt(share) + 0.5 * abs(jitter[step]),
                }
            )
    return pd.DataFrame(trajectories), pd.DataFrame(training)


def geometry_table(iterations: int, layers: int) -> pd.DataFrame:
    groups = ["embed_tokens", *(f"layer {i}" for i in range(layers)), "norm"]
    rows = [
        {
            "experiment": name,
            "replicate": 1,
            "iteration": iteration,
            "group": group,
            "member_a": 0,
            "member_b": 1,
            "cosine_task_vectors": 0.7 - 0.4 * np.sin(3 * i / len(groups)) + 0.05 * iteration,
            "cosine_weights": 0.999,
            "norm_a": 2.0 + i,
            "norm_b": 2.1 + i * (1 + 0.05 * iteration),
        }
        for name in ("warp", "lerp")
        for iteration in range(1, iterations + 1)
        for i, group in enumerate(groups)
    ]
    table = pd.DataFrame(rows)
    later = table["experiment"].eq("lerp") & (table["iteration"] > 1)
    table.loc[later, "cosine_task_vectors"] += 0.1
    return table


def make_tables(
    iterations: int = 2,
    weights: tuple[float, ...] = (0.25, 0.75),
    gold: bool = True,
    layers: int = 3,
) -> Tables:
    evaluations = pd.DataFrame(evaluation_rows(iterations, weights, gold))
    if "merge_weight" not in evaluations:
        evaluations["merge_weight"] = np.nan
    trajectories, training = step_tables(evaluations, gold)
    return {
        "evaluations": evaluations,
        "trajectories": trajectories,
        "training": training,
        "geometry": geometry_table(iterations, layers),
    }


def write_tables(tables: Tables, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    return folder
