"""Trackers: what comes to them, where it stays, and that none of them can stop a run."""

from __future__ import annotations

import csv
import json
import sqlite3
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from accelerate import PartialState
from accelerate.tracking import TensorBoardTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from warpflow.settings.config import Config
from warpflow.training import trackers
from warpflow.training.trackers import OPENERS, RunName, tracking

RUN = RunName("warp/replicate1/iteration2/member0")
SETTINGS = {"beta": 0.1, "anchor": "ema", "evaluate_weights": ["policy"], "lora_rank": None}
KEYS = (
    *("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "TRACKIO_DIR"),
    *("MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID", "MLFLOW_ALLOW_FILE_STORE"),
)


@pytest.fixture(autouse=True)
def without_keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Act as on a machine where nobody has logged in. What is set here ends with the test."""
    for key in KEYS:
        monkeypatch.setenv(key, "")  # so that it is put back at the end
        monkeypatch.delenv(key)
    PartialState(cpu=True)
    yield


def track(folder: Path, *names: str) -> None:
    """Three steps of a run."""
    with tracking(names, folder, RUN, SETTINGS) as log:
        for step in (1, 2, 3):
            log(step, {"train/reward": 0.5 * step, "train/length": 7})


def test_a_run_belongs_to_an_experiment_an_iteration_and_a_member() -> None:
    assert (RUN.experiment, RUN.group, RUN.member) == (
        "warp",
        "warp/replicate1/iteration2",
        "member0",
    )


def test_the_config_knows_the_trackers_that_can_be_opened() -> None:
    annotation = Config.__pydantic_fields__["report_to"].annotation
    assert set(annotation.__args__[0].__args__) == set(OPENERS)
    assert Config().report_to == ["tensorboard"]


def test_tensorboard(tmp_path: Path) -> None:
    track(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard" / RUN.path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/reward")] == [
        (1, 0.5), (2, 1.0), (3, 1.5),
    ]  # fmt: skip
    files = {path.name[:6] for path in (tmp_path / "tensorboard").rglob("*") if path.is_file()}
    assert files == {"events", ".start"}, "one run, and no other beside it"


def test_dvclive(tmp_path: Path) -> None:
    """No commit, report or dvc.yaml: the project's repository stays as it is."""
    pytest.importorskip("dvclive")
    track(tmp_path, "dvclive")
    folder = tmp_path / "dvclive" / RUN.path
    with open(folder / "plots/metrics/train/reward.tsv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [(row["step"], row["reward"]) for row in rows] == [
        ("1", "0.5"),
        ("2", "1.0"),
        ("3", "1.5"),
    ]
    assert json.loads((folder / "metrics.json").read_text())["step"] == 3
    assert "anchor: ema" in (folder / "params.yaml").read_text()
    assert not list(tmp_path.rglob("dvc.yaml"))


def test_mlflow(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    track(tmp_path, "mlflow")
    [run] = (tmp_path / "mlflow").glob("*/*/metrics")
    run = run.parent
    values = [line.split()[1:] for line in (run / "metrics/train/reward").read_text().splitlines()]
    assert values == [["0.5", "1"], ["1.0", "2"], ["1.5", "3"]]
    assert (run / "tags/mlflow.runName").read_text() == RUN.path
    assert (run / "tags/group").read_text() == RUN.group
    assert (run / "params/anchor").read_text() == "ema"


@pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio(tmp_path: Path) -> None:
    """trackio reads on import where to write, so it must not be imported before."""
    track(tmp_path, "trackio")
    [file] = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(file) as base:
        rows = base.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    assert [(name, step) for name, step, _ in rows] == [(RUN.path, step) for step in (1, 2, 3)]
    assert json.loads(rows[2][2])["train/reward"] == 1.5


def test_wandb_is_offline_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = trackers.wandb(tmp_path, RUN)
    assert (given["mode"], given["group"], given["name"]) == ("offline", RUN.group, RUN.path)
    monkeypatch.setenv("WANDB_API_KEY", "a key")
    assert trackers.wandb(tmp_path, RUN)["mode"] is None  # wandb's own choice
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY")
    track(tmp_path, "wandb")
    assert list((tmp_path / "wandb").glob("wandb/offline-run-*/*.wandb"))


def test_several_at_once(tmp_path: Path) -> None:
    pytest.importorskip("dvclive")
    track(tmp_path, "tensorboard", "dvclive")
    assert {path.name for path in tmp_path.iterdir()} == {"tensorboard", "dvclive"}


# --- failures ----------------------------------------------------------------------------------


class Failing(TensorBoardTracker):
    """Fails at the step or in the method that a test says."""

    at = ""

    def start(self) -> None:
        self.fail("start")

    def log(self, values: dict, step: int | None = None, **kwargs: object) -> None:
        self.fail("log" if step == 2 else "")

    def finish(self) -> None:
        self.fail("finish")

    def fail(self, method: str) -> None:
        if method == self.at:
            raise OSError("no space left")


@pytest.mark.parametrize("method", ["start", "log", "finish"])
def test_a_tracker_that_fails_is_named_once_and_the_others_go_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
) -> None:
    monkeypatch.setitem(trackers.LOGGER_TYPE_TO_CLASS, "failing", Failing)
    monkeypatch.setitem(OPENERS, "failing", trackers.tensorboard)
    monkeypatch.setattr(Failing, "at", method)
    monkeypatch.setattr(Failing, "store_init_configuration", lambda self, values: None)
    track(tmp_path, "failing", "tensorboard")
    warnings = [record.message for record in caplog.records if "WARNING" in record.message]
    assert warnings == [
        f"WARNING: the tracker failing failed to {method} (OSError: no space left); the run goes "
        "on without it"
    ]
    events = EventAccumulator(str(tmp_path / "tensorboard" / RUN.path)).Reload()
    assert len(events.Scalars("train/reward")) == 3


def test_a_tracker_that_is_not_installed_stops_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node may have another environment than the machine that read the config."""
    monkeypatch.setitem(sys.modules, "dvclive", None)
    track(tmp_path, "dvclive")
    assert "the tracker dvclive failed to start (ModuleNotFoundError" in caplog.text


def test_an_error_of_the_run_is_the_runs_and_trackers_are_finished(tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        tracking(["tensorboard"], tmp_path, RUN, SETTINGS) as log,
    ):
        log(1, {"train/reward": 1.0})
        raise ZeroDivisionError
    events = EventAccumulator(str(tmp_path / "tensorboard" / RUN.path)).Reload()
    assert len(events.Scalars("train/reward")) == 1
