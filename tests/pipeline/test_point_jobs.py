"""Points of a front: computed in one process, each under a key of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from warpflow.pipeline import point_jobs
from warpflow.pipeline.freshness import Records
from warpflow.pipeline.point_jobs import Front, listed_files

pytestmark = pytest.mark.slow  # each test starts jobs, Git or DVC

# Writes each point's η, one second after the other where it is told to; η = 9 cannot be made.
SCRIPT = """\
import json, pathlib, sys, time
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
failed = 0
for point in json.loads(flags["--points"]):
    pathlib.Path("runs.log").open("a").write(f"{point.get('eta')}\\n")
    if point.get("eta") == 9:
        print("eta 9: cannot be composed")
        failed = 1
        continue
    text = f"{flags['--value']} {point.get('eta')} {point['policy']}"
    pathlib.Path(point["out"]).write_text(text)
    if "--slow" in sys.argv:
        time.sleep(60)
sys.exit(failed)
"""
INDEX = Path("results/evaluate_front/warp/evaluations.json")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with two tracked checkpoints, as pointers without DVC, and the script."""
    monkeypatch.chdir(tmp_path)
    Path("make.py").write_text(SCRIPT)
    for name in ("sft", "merged"):
        made = Path("results", name, "checkpoint")
        made.mkdir(parents=True)
        (made / "model.txt").write_text(name)
        point_jobs.write_atomically(made.with_name("checkpoint.dvc"), pointer_text(made).encode())
    return tmp_path


def pointer_text(made: Path) -> str:
    from warpflow.pipeline.contents import folder_out

    return json.dumps({"outs": [folder_out(made)]})  # JSON is YAML


@pytest.fixture
def repository(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project as a Git and DVC repository."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    subprocess.run(["dvc", "init", "--quiet"], cwd=folder, check=True)
    return folder


def out_of(eta: str) -> str:
    return f"results/evaluate_policy/point/eta{eta}/evaluation.json"


def words(*etas: str, value: str = "1", slow: bool = False) -> list[str]:
    points = [
        {
            "out": out_of(eta),
            "policy": "results/merged/checkpoint.dvc",
            "init": "results/sft/checkpoint.dvc",
            "eta": eta,
        }
        for eta in etas
    ]
    return [
        *("--results", "results", "--points", json.dumps(points), "--index", str(INDEX)),
        *("--log", "job.log", "--inputs", "results/sft/checkpoint.dvc"),
        *(["--runtime_args=--slow"] if slow else []),
        *("--", sys.executable, "make.py", "--value", value),
    ]


def run(*etas: str, value: str = "1") -> None:
    point_jobs.main(words(*etas, value=value))


def computed() -> list[str]:
    """The η that were computed since the last call."""
    log = Path("runs.log")
    lines = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def index() -> dict[str, str]:
    return json.loads(INDEX.read_text())


@pytest.mark.parametrize("project", ["folder", "repository"])
def test_a_new_eta_is_computed_alone(project: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(project)
    run("0.3", "0.5")
    assert computed() == ["0.3", "0.5"]
    first = index()
    run("0.3", "0.4", "0.5")
    assert computed() == ["0.4"]
    assert first.items() < index().items()
    assert Path(out_of("0.4")).read_text() == "1 0.4 results/merged/checkpoint"
    run("0.5")
    assert computed() == []
    assert list(index()) == ["evaluate_policy/point/eta0.5/evaluation.json"]


def test_a_setting_that_was_set_back_comes_from_the_cache(repository: Path) -> None:
    run("0.3")
    run("0.3", value="2")
    assert Path(out_of("0.3")).read_text().startswith("2")
    computed()
    run("0.3")
    assert computed() == []
    assert Path(out_of("0.3")).read_text().startswith("1")
    assert json.loads(INDEX.with_name("provenance.json").read_text())["restored"] is True


def test_a_look_up_of_the_shared_policy_is_no_restored_front(repository: Path) -> None:
    """`make plan` then takes the times of fronts, all of which begin at the SFT policy."""
    note = INDEX.with_name("provenance.json")

    def run_with_start(*etas: str) -> bool:
        given = words(*etas)
        points = json.loads(given[given.index("--points") + 1])
        start = {"out": out_of("0"), "policy": "results/sft/checkpoint.dvc"}
        given[given.index("--points") + 1] = json.dumps([start, *points])
        point_jobs.main(given)
        return "restored" in json.loads(note.read_text())

    assert not run_with_start()  # the job of the SFT policy alone
    assert not run_with_start("0.3")
    assert computed() == ["None", "0.3"]
    assert run_with_start("0.3", "0.5")
    assert run_with_start()


def test_provenance_is_that_of_the_point_alone(folder: Path) -> None:
    run("0.3", "0.5")
    record = json.loads(Path(out_of("0.5")).with_name("provenance.json").read_text())
    assert record["command"][-8:] == [
        *("--policy", "results/merged/checkpoint.dvc", "--init", "results/sft/checkpoint.dvc"),
        *("--eta", "0.5", "--out", out_of("0.5")),
    ]
    assert record["parameters"]["eta"] == "0.5"
    assert set(record["inputs"]) == {f"results/{n}/checkpoint.dvc" for n in ("sft", "merged")}


def run_with_model(model: str) -> str:
    """Evaluate η = 0.3 with a model of the user's, and return the point's key."""
    told = words("0.3", value=model)
    told[told.index("--inputs") : told.index("--inputs")] = ["--models", model]
    point_jobs.main(told)
    return json.loads(Path(out_of("0.3")).with_name("provenance.json").read_text())["key"]


def due() -> str:
    """Return why the front is due, as Snakemake is told."""
    return Records(folder=Path("none"), results=Path("results")).inputs_of(str(INDEX))


def test_the_content_of_a_users_model_is_in_the_points_keys(repository: Path) -> None:
    """A gold reward model that is overwritten under its name makes the front due; back again, or
    under another name, it is known."""
    for name in ("gold", "renamed"):
        Path(name).mkdir()
        Path(name, "model.safetensors").write_text("weights")
    first = run_with_model("gold")
    assert due() == "inputs: made first"
    Path("gold/model.safetensors").write_text("Weights")
    assert due().startswith("inputs: gold ")
    assert run_with_model("gold") != first
    assert due() == "inputs: made first"
    assert len(computed()) == 2
    Path("gold/model.safetensors").write_text("weights")
    assert run_with_model("gold") == run_with_model("renamed") == first
    assert computed() == []


def test_a_model_of_the_hub_is_known_by_its_commit_once_it_was_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    loads = (
        "import pathlib\n"
        "refs = pathlib.Path('hub/models--owner--name/refs')\n"
        "refs.mkdir(parents=True)\n"
        "(refs / 'main').write_text('abc')\n"
    )
    Path("make.py").write_text(loads + SCRIPT)
    first = run_with_model("owner/name")
    record = json.loads(Path(out_of("0.3")).with_name("provenance.json").read_text())
    assert record["models"] == {"owner/name": "abc"}
    assert computed() == ["0.3"]
    assert run_with_model("owner/name") == first
    assert computed() == []
    Path("hub/models--owner--name/refs/main").write_text("def")
    assert due() == "inputs: owner/name abc → def"


def test_points_of_equal_weights_are_computed_once(folder: Path) -> None:
    given = words("0.3")
    points = [
        {"out": f"results/{name}/evaluation.json", "policy": "results/merged/checkpoint.dvc"}
        for name in ("a", "b")
    ]
    given[given.index("--points") + 1] = json.dumps(points)
    point_jobs.main(given)
    assert computed() == ["None"]
    texts = [Path(point["out"]).read_text() for point in points]
    assert texts[0] == texts[1]


def test_a_point_that_fails_is_named_and_the_others_are_kept(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run("0.3", "9", "0.5")
    assert "eta 9: cannot be composed" in capsys.readouterr().err
    assert computed() == ["0.3", "9.0", "0.5"]
    assert Path(out_of("0.5")).is_file()
    assert not INDEX.exists()
    run("0.3", "0.5")
    assert computed() == []


@pytest.mark.parametrize("project", ["folder", "repository"])
def test_finished_points_survive_a_kill(project: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(project)
    given = [sys.executable, "-m", "warpflow.pipeline.point_jobs", *words("0.3", "0.5", slow=True)]
    job = subprocess.Popen(given, start_new_session=True)
    left = Path(out_of("0.3")).parent
    until = time.monotonic() + 60
    while not list(left.glob("evaluation.*.json")):
        assert time.monotonic() < until
        time.sleep(0.05)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    computed()
    run("0.3", "0.5")
    assert computed() == ["0.5"]
    assert [path.name for path in sorted(left.iterdir())] == ["evaluation.json", "provenance.json"]


def test_what_was_altered_or_removed_is_noticed_and_made_again(repository: Path) -> None:
    run("0.3", "0.5")
    records = Records(results=Path("results"))
    assert records.altered(INDEX) == []
    Path(out_of("0.3")).write_text("better")
    Path(out_of("0.5")).unlink()
    assert Records(results=Path("results")).altered(INDEX) == [
        f"{out_of('0.3')} was altered",
        f"{out_of('0.5')} was removed",
    ]
    computed()
    run("0.3", "0.5")
    assert computed() == []
    assert Records(results=Path("results")).altered(INDEX) == []


def test_an_altered_file_is_not_taken_for_the_result_without_dvc(folder: Path) -> None:
    run("0.3")
    Path(out_of("0.3")).write_text("better")
    computed()
    run("0.3")
    assert computed() == ["0.3"]


def test_only_an_index_lists_files(folder: Path) -> None:
    run("0.3")
    assert [path for path, _ in listed_files(INDEX, Path("results"))] == [out_of("0.3")]
    assert list(listed_files(Path(out_of("0.3")), Path("results"))) == []


def test_a_changed_parent_is_refused_before_anything_runs(folder: Path) -> None:
    shutil.rmtree("results/merged/checkpoint")
    with pytest.raises(SystemExit, match="results/merged/checkpoint/ is missing"):
        run("0.3")
    assert computed() == []


def test_a_command_line_without_a_command_is_refused() -> None:
    with pytest.raises(SystemExit, match="expected --"):
        Front.of(["--results", "results"])
