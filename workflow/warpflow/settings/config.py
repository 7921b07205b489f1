"""The whole config: all sections, in the order of config/config.yaml."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from warpflow.settings.base import Count, Natural, Unique, listed, section
from warpflow.settings.benchmark_policy import BenchmarkPolicy
from warpflow.settings.compare_answers import Comparisons
from warpflow.settings.compare_fronts import CompareFronts
from warpflow.settings.estimate_optimum import EstimateOptimum
from warpflow.settings.evaluate_policy import EvaluatePolicy
from warpflow.settings.experiments import Ablations, Experiments
from warpflow.settings.fetch_policy import FetchPolicy
from warpflow.settings.figures import Figures
from warpflow.settings.generate_data import GenerateData
from warpflow.settings.interpolate_policy import InterpolatePolicy
from warpflow.settings.merge_policies import MergePolicies
from warpflow.settings.policy import Policy
from warpflow.settings.prepare_data import PrepareData
from warpflow.settings.rewards import Rewards
from warpflow.settings.train_policy import TrainPolicy
from warpflow.settings.train_reward_model import TrainRewardModel
from warpflow.settings.train_sft import TrainSft

Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio", "dvclive"]
FOLDER = r"^[^.:][^:]*$"


def is_folder(path: str) -> str:
    if not re.match(FOLDER, path):
        raise ValueError(
            "a folder below the project's root, or an absolute path, without a colon and a dot at "
            "its beginning"
        )
    return path


ResultsFolder = Annotated[
    str, AfterValidator(is_folder), Field(json_schema_extra={"pattern": FOLDER})
]


@section
class Config:
    """The default run is WARP on the embedded synthetic language. It needs no download and no GPU,
    and takes about ten minutes. Unknown keys are errors. A change runs again what it changes and
    nothing else. `snakemake --cores all --configfile config/other.yaml` lays another file's keys
    over these. Write small numbers as 1.0e-4 (YAML reads 1e-4 as text)."""

    results: ResultsFolder = "results"
    """The folder of everything that is made, relative to the project's root. Give each config a
    folder of its own, so that runs lie side by side. Below a symbolic link, or at an absolute path
    outside the project (`~/warp`, `$SCRATCH/warp`), results are not tracked by DVC."""
    seed: Natural = 0
    """The seed from which every random stream is made. The same seed, config and number of threads
    give the same bytes."""
    policy: Policy = Policy()
    fetch_policy: FetchPolicy = FetchPolicy()
    data: Literal["generate_data", "prepare_data"] = "generate_data"
    """Where the data come from: generate_data makes the embedded language, prepare_data reads your
    files."""
    generate_data: GenerateData = GenerateData()
    prepare_data: PrepareData = PrepareData()
    train_sft: TrainSft = TrainSft()
    train_reward_model: TrainRewardModel = TrainRewardModel()
    rewards: Rewards = Field(default_factory=lambda: Rewards({"reward_model": 1.0}))
    """The reward r(x, y) of training and evaluation: the sum of these terms, each times its weight.
    With weight 0 the reward model is not trained, loaded or reported, and preferences are not
    needed. Beside `reward_model` there may be any `package.module:function: weight`; the function
    is called by keyword with prompts, completions, finished and columns, and returns a float for
    each completion. Any `name: {url: http://…, weight: 1.0}` is an endpoint
    (docs/your_rewards.md)."""
    iterations: Count = 2
    """I, the number of iterations of the WARP loop. Paper: 5."""
    replicates: Count = 1
    """R, the number of repeats of RL, merge and LITI with other seeds; take 3 or more for verdicts.
    Data, SFT policy and reward model are shared. With 1 there are no verdicts; intervals over runs
    are of use from 3 on. Paper: 5."""
    members: Count = 4
    """M, the number of RL runs in an iteration. They differ in the order of prompts and in
    sampling. Paper: 2."""
    member_rewards: list[Rewards] = listed()
    """What each member changes of `rewards`; an empty list changes nothing. It has one entry for
    each of the M members, such as [{my_rewards:short: 1.0}, {my_rewards:polite: 1.0}]. Weight 0
    leaves a term out. So members specialise, and the merge joins them (rewarded soups, arXiv
    2306.04488). All policies are measured by `rewards` (docs/knobs.md)."""
    train_policy: TrainPolicy = TrainPolicy()
    report_to: Annotated[list[Tracker], *Unique] = listed("tensorboard")
    """The trackers that RL runs report to (docs/trackers.md): tensorboard, wandb, mlflow, trackio,
    dvclive. They write below `results`/logs, and to a server only where the environment names one.
    A change here computes nothing again."""
    merge_policies: MergePolicies = MergePolicies()
    interpolate_policy: InterpolatePolicy = InterpolatePolicy()
    evaluate_policy: EvaluatePolicy = EvaluatePolicy()
    estimate_optimum: EstimateOptimum = EstimateOptimum()
    compare_fronts: CompareFronts = CompareFronts()
    experiments: Experiments = Field(default_factory=dict)
    """Named differences from the settings above. Stages that are the same are computed once. null
    drops an experiment of the file below. config/ablations.yaml has more of them, in groups with a
    report each (`snakemake ablations`)."""
    ablations: Ablations = Field(default_factory=dict)
    """Groups of such experiments beyond the default run. `snakemake NAME` makes the tables, figures
    and report of one group, `snakemake ablations` those of all. The base experiment is in each.
    null drops a group."""
    compare_answers: Comparisons = Field(default_factory=dict)
    """Comparisons by name, of answers to the same prompts, judged in pairs (docs/side_by_side.md).
    `snakemake compare_answers` makes them, and so does the whole run. null drops one of the file
    below."""
    benchmark_policy: BenchmarkPolicy = BenchmarkPolicy()
    figures: Figures = Figures()


# The default config leaves these empty or to config/ablations.yaml: none of their keys is required.
LEFT_OUT = ("fetch_policy", "prepare_data", "ablations")
