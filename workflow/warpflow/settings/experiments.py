"""Sections `experiments` and `ablations` of the config: named differences from the others."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, with_config
from typing_extensions import TypedDict

from warpflow.settings.base import MODEL_CONFIG, Count
from warpflow.settings.interpolate_policy import InterpolatePolicy
from warpflow.settings.merge_policies import MergePolicies
from warpflow.settings.rewards import Rewards
from warpflow.settings.train_policy import TrainPolicy


def is_free(name: str) -> str:
    if name in ("warp", "main", "all", "ablations"):
        raise ValueError(f"{name!r} is a name of ours: choose another")
    return name


@with_config(MODEL_CONFIG)
class Difference(TypedDict, total=False):
    """What an experiment changes; all that it does not name is as in the sections above."""

    match_compute: Literal["steps", "batch_size"]
    """One run with the compute of all runs of the base experiment: M·ΣT steps, or ΣT steps with M
    times the completions."""
    policies_of: Annotated[list[str], Field(min_length=2)]
    """Merge the policies of iteration 1 of these experiments, member m of the m-th, and train
    none."""
    rewards: Rewards
    """Laid over the base rewards: weight 0 leaves a term out. It is what the runs are trained on;
    all policies are measured by the base rewards (docs/knobs.md)."""
    member_rewards: list[Rewards]
    """What each of its members changes of its rewards."""
    iterations: Count
    members: Count
    train_policy: TrainPolicy
    merge_policies: MergePolicies
    interpolate_policy: InterpolatePolicy


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$"), AfterValidator(is_free)]
Group = Annotated[str, Field(pattern=r"^[A-Za-z]\w*$"), AfterValidator(is_free)]
Experiments = dict[Name, Difference | None]
Ablations = dict[Group, Experiments | None]
