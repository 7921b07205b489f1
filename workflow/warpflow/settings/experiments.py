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
    """Makes one run with the compute of all runs of the base experiment. `steps` gives it M·ΣT
    steps, `batch_size` gives it ΣT steps with M times the completions."""
    policies_of: Annotated[list[str], Field(min_length=2)]
    """Merges policies of other experiments and trains none. From the m-th of these experiments it
    takes member m of iteration 1."""
    rewards: Rewards
    """What the experiment changes of the base rewards; weight 0 leaves a term out. Its runs are
    trained on the result, while all policies are measured by the base rewards (docs/knobs.md)."""
    member_rewards: list[Rewards]
    """What each member of the experiment changes of the rewards."""
    iterations: Count
    members: Count
    train_policy: TrainPolicy
    merge_policies: MergePolicies
    interpolate_policy: InterpolatePolicy


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$"), AfterValidator(is_free)]
Group = Annotated[str, Field(pattern=r"^[A-Za-z]\w*$"), AfterValidator(is_free)]
Experiments = dict[Name, Difference | None]
Ablations = dict[Group, Experiments | None]
