"""What an RL run reports to experiment trackers, those that accelerate ships, beside its results.

A tracker is no part of a result, and its failure never stops a run. The failure is logged once, and
the run goes on without the tracker. Nothing is sent anywhere unless the environment has a key or an
address for it. `scripts/train_policy.py` loads this module by name, so that it is in no key.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from filelock import FileLock

Log = Callable[[int, Mapping[str, float]], None]  # a step, and its values by name
PROJECT = "warpflow"


@dataclass(frozen=True)
class RunName:
    """Where a run belongs: ``warp/replicate1/iteration2/member0`` and the like.

    Attributes:
        path: the run's name. Its first part is the experiment, its last one the member.
    """

    path: str

    @property
    def experiment(self) -> str:
        return self.path.partition("/")[0]

    @property
    def group(self) -> str:
        """The runs that are merged together."""
        return self.path.rpartition("/")[0] or self.path

    @property
    def member(self) -> str:
        return self.path.rpartition("/")[2]


@contextmanager
def tracking(
    names: Sequence[str], folder: Path, run: RunName, settings: Mapping[str, Any]
) -> Iterator[Log]:
    """Start trackers, and finish them at the end. This yields what logs a step to all of them.

    Args:
        names: keys of `OPENERS`.
        folder: each tracker writes locally into a folder of its name below this one.
        settings: the run's settings, for trackers that keep them.
    """
    active: dict[str, GeneralTracker] = {}

    def guarded(name: str, does: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:
            active.pop(name, None)
            logging.warning(
                "WARNING: the tracker %s failed to %s (%s: %s); the run goes on without it",
                *(name, does, type(error).__name__, error),
            )
            return None

    def log(step: int, values: Mapping[str, float]) -> None:
        for name, tracker in list(active.items()):
            guarded(name, "log", partial(tracker.log, dict(values), step=step))

    for name in names:
        started = guarded(name, "start", partial(start, name, folder, run, settings))
        active |= {name: started} if started else {}
    try:
        yield log
    finally:
        for name, tracker in list(active.items()):
            guarded(name, "finish", tracker.finish)


def start(name: str, folder: Path, run: RunName, settings: Mapping[str, Any]) -> GeneralTracker:
    """Return a tracker that has begun the run. One run starts after another, since two at once
    might make the same project twice."""
    own = folder.resolve() / name
    own.mkdir(parents=True, exist_ok=True)
    with FileLock(own / ".starting.lock", timeout=60):
        tracker = LOGGER_TYPE_TO_CLASS[name](**OPENERS[name](own, run))
        tracker.start()
        if name != "tensorboard":  # there it would be one more run, named after the time
            tracker.store_init_configuration(dict(settings))
    return tracker


# --- what each is told: nothing leaves the machine unless the environment says where to -----------


def tensorboard(folder: Path, run: RunName) -> dict[str, Any]:
    return {"run_name": run.path, "logging_dir": folder}


def wandb(folder: Path, run: RunName) -> dict[str, Any]:
    mode = None if has_any("WANDB_API_KEY", "WANDB_MODE") else "offline"
    return {
        "run_name": os.environ.get("WANDB_PROJECT", PROJECT),
        "name": run.path,
        "group": run.group,
        "job_type": run.experiment,
        "dir": str(folder),
        "mode": mode,
    }


def mlflow(folder: Path, run: RunName) -> dict[str, Any]:
    if not has_any("MLFLOW_TRACKING_URI"):
        import mlflow as module

        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        module.set_tracking_uri(folder.as_uri())
    tags = {"experiment": run.experiment, "group": run.group, "member": run.member}
    return {"experiment_name": PROJECT, "run_name": run.path, "tags": tags}


def trackio(folder: Path, run: RunName) -> dict[str, Any]:
    os.environ.setdefault("TRACKIO_DIR", str(folder))  # read when the module is imported
    return {"run_name": PROJECT, "name": run.path, "group": run.group}


def dvclive(folder: Path, run: RunName) -> dict[str, Any]:
    # It writes no commit, no report and no dvc.yaml: they would change the repository.
    quiet = {"save_dvc_exp": False, "report": None, "dvcyaml": None}
    return {"dir": str(folder / run.path), **quiet}


OPENERS: dict[str, Callable[[Path, RunName], dict[str, Any]]] = {
    "tensorboard": tensorboard,
    "wandb": wandb,
    "mlflow": mlflow,
    "trackio": trackio,
    "dvclive": dvclive,
}


def has_any(*variables: str) -> bool:
    return any(os.environ.get(variable) for variable in variables)
