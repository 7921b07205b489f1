"""Checkpoints under DVC, as users of two branches, two machines and a kill switch meet them."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import yaml
from project import (
    SMOKE,
    commit,
    copy_files,
    copy_finished,
    copy_project,
    dvc,
    environment,
    execute,
    git,
    planned,
    plans_nothing,
    pointers,
    set_config,
    snakemake,
)

from warpflow.pipeline.code_files import file_hash
from warpflow.pipeline.contents import file_md5, read_pointer
from warpflow.pipeline.dvc_cache import Out
from warpflow.pipeline.jobs import PACKAGES

pytestmark = pytest.mark.workflow

TABLE = "results/collect_evaluations/main/evaluations.csv"
SFT = "results/train_sft/checkpoint.dvc"
HEAVY = ("train_*", "merge_policies", "interpolate_policy", "generate_data")


@dataclass(frozen=True)
class TwoBetas:
    """A project with two commits: `main` at the default β, `beta` at another one."""

    folder: Path
    seconds: float  # that the run of the second took


@pytest.fixture(scope="module")
def two_betas(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> TwoBetas:
    """Both commits run, committed and pushed to a local remote; tests leave it as it is."""
    home = tmp_path_factory.mktemp("two_betas")
    folder = copy_finished(finished, home / "project")
    dvc(folder, "remote", "add", "--default", "store", str(home / "store"))
    commit(folder, "default beta")
    git(folder, "checkout", "-q", "-b", "beta")
    set_config(folder, train_policy={"beta": 0.2})
    started = time.time()
    snakemake(folder, *SMOKE)
    seconds = time.time() - started
    commit(folder, "another beta")
    dvc(folder, "push", "--run-cache", "--all-commits")
    return TwoBetas(folder, seconds)


def clone(two_betas: TwoBetas, target: Path) -> Path:
    """A colleague's clone, without any byte of DVC's."""
    git(two_betas.folder, "clone", "-q", "--branch", "main", str(two_betas.folder), str(target))
    return target


def figures(folder: Path) -> dict[str, bytes]:
    """Return the figures that are stages of dvc.yaml. Envelopes are drawn from a table of
    compare_fronts."""
    found = sorted((folder / "results/figures/main").glob("*.[sp][vn]g"))
    return {path.name: path.read_bytes() for path in found if path.stem != "envelopes"}


def cached(folder: Path, md5: str) -> Path:
    return folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:]


def objects(folder: Path) -> list[Path]:
    return sorted(p for p in (folder / ".dvc/cache/files").rglob("*") if p.is_file())


def heavy_files(folder: Path) -> Iterator[tuple[Path, Path]]:
    """(file in the workspace, object in the cache) of all that pointers name."""
    for name, text in pointers(folder).items():
        out: Out = yaml.safe_load(text)["outs"][0]
        for row in json.loads(cached(folder, out["md5"]).read_text()):
            yield (folder / name).with_suffix("") / row["relpath"], cached(folder, row["md5"])


def computed_since(folder: Path, started: float) -> list[str]:
    """Heavy jobs and evaluations that ran after `started` and computed, by their logs."""
    logs = [
        path
        for rule in (*HEAVY, "evaluate_front", "estimate_optimum")
        for pattern in (f"{rule}.log", f"{rule}/**/*.log")
        for path in (folder / "results/logs").glob(pattern)
    ]
    recent = [path for path in logs if path.stat().st_mtime > started]
    assert recent
    return [str(path) for path in recent if "not computed again" not in path.read_text()]


def is_clean(folder: Path) -> bool:
    return "up to date" in dvc(folder, "status")


# --- what is kept where ------------------------------------------------------------------------


def test_heavy_bytes_go_to_the_cache_and_small_text_to_git(finished):
    for rule in HEAVY:
        for provenance in (finished / "results").glob(f"{rule}/**/provenance.json"):
            if provenance.parent.name == "checkpoint":  # a merge's own, part of what is tracked
                continue
            found = {pointer.stem for pointer in provenance.parent.glob("*.dvc")}
            assert found in ({"data"}, {"checkpoint"}, {"checkpoint", "tables"})
            assert ("tables" in found) == (rule == "train_*" and "train_policy" in str(provenance))
            for pointer in provenance.parent.glob("*.dvc"):
                assert cached(finished, read_pointer(pointer)["md5"]).is_file(), pointer
    assert all(file.samefile(stored) for file, stored in heavy_files(finished))
    added = re.findall(r"^add '(.*)'$", git(finished, "add", "-A", "-n"), re.M)
    assert SFT in added
    assert TABLE in added
    for name in added:
        assert not {"checkpoint", "data", "tables", "cache"} & set(Path(name).parts[:-1]), name
        assert (finished / name).stat().st_size < 1_000_000, name


def test_one_copy_on_disk_that_no_link_can_write_through(finished):
    def disk_use(*paths: Path) -> int:
        files = [p for path in paths for p in path.rglob("*") if p.is_file()]
        return sum({(s := p.stat()).st_ino: s.st_size for p in files}.values())

    for file, stored in heavy_files(finished):
        assert file.samefile(stored), file  # a hard or symbolic link
        assert not file.stat().st_mode & 0o222, file
    cache = finished / ".dvc/cache/files"
    heavy = sum(file.stat().st_size for file, _ in heavy_files(finished))
    light = sum(
        p.stat().st_size
        for p in (finished / "results").rglob("*")
        if p.is_file() and "checkpoint" not in p.parts and "data" not in p.parts
    )
    assert heavy > 1_000_000
    # All of the checkpoints on disk once: nothing beyond the cache but the small text.
    both = disk_use(finished / "results", cache)
    assert both - disk_use(cache) <= light


def test_a_rerun_leaves_the_objects_of_the_earlier_run_alone(finished, two_betas):
    later = {path.relative_to(two_betas.folder): path for path in objects(two_betas.folder)}
    for path in objects(finished):
        assert path.relative_to(finished) in later
    for name, path in later.items():
        md5 = (name.parent.name + name.name).removesuffix(".dir")
        assert file_md5(path) == md5, name


# --- set back, switched, cloned ----------------------------------------------------------------


def test_beta_set_back_brings_the_first_results_without_computing(finished, two_betas, tmp_path):
    folder = copy_finished(two_betas.folder, tmp_path / "back")
    assert (folder / TABLE).read_bytes() != (finished / TABLE).read_bytes()
    set_config(folder, train_policy={"beta": 0.3})
    started = time.time()
    snakemake(folder, *SMOKE)
    seconds = time.time() - started
    print(f"β changed: {two_betas.seconds:.1f} s; set back: {seconds:.1f} s")
    assert computed_since(folder, started) == []
    assert (folder / TABLE).read_bytes() == (finished / TABLE).read_bytes()
    assert figures(folder) == figures(finished)
    assert pointers(folder) == pointers(finished)
    assert is_clean(folder)


def test_branches_switch_with_nothing_to_do(two_betas, tmp_path):
    folder = copy_finished(two_betas.folder, tmp_path / "branches")
    for branch in ("main", "beta"):
        git(folder, "checkout", "-q", branch)
        dvc(folder, "checkout")
        assert plans_nothing(folder)
        assert is_clean(folder)


def test_a_clone_that_pulls_has_nothing_to_do(finished, two_betas, tmp_path):
    folder = clone(two_betas, tmp_path / "clone")
    dvc(folder, "pull")
    assert plans_nothing(folder)
    assert "up to date" in dvc(folder, "repro")
    assert is_clean(folder)
    generator = random.Random(0)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and ".git" not in path.parts:
            os.utime(path, (1.6e9 + generator.randrange(10**8),) * 2)
    assert plans_nothing(folder)
    assert "up to date" in dvc(folder, "repro")
    assert is_clean(folder)
    assert git(folder, "status", "--porcelain") == ""
    # The other β too comes from the remote: runs and bytes of every commit.
    dvc(folder, "pull", "--run-cache", "--all-commits")
    set_config(folder, train_policy={"beta": 0.2})
    started = time.time()
    snakemake(folder, *SMOKE)
    assert computed_since(folder, started) == []
    assert (folder / TABLE).read_bytes() == (two_betas.folder / TABLE).read_bytes()
    assert pointers(folder) == pointers(two_betas.folder)


# --- dvc repro, metrics, params, plots ---------------------------------------------------------


def test_dvc_repro_draws_figures_from_the_tables_alone(finished, two_betas, tmp_path):
    folder = clone(two_betas, tmp_path / "clone")  # no pull
    for _ in range(2):
        shutil.rmtree(folder / "results/figures/main")
        dvc(folder, "repro")
        assert figures(folder) == figures(finished)
    assert not list(folder.glob("results/**/checkpoint/"))
    shutil.rmtree(folder / "results/collect_evaluations/main")
    output = dvc(folder, "repro", succeeds=False)
    assert "results/collect_evaluations/" in output
    assert "snakemake --cores all" in output  # what to run
    assert not list(folder.glob("results/**/checkpoint/"))
    assert figures(folder) == figures(finished)


def test_a_palette_replots_and_nothing_else(finished, tmp_path):
    folder = copy_finished(finished, tmp_path / "palette")
    commit(folder, "finished")
    set_config(folder, figures={"palette": "Set2"})
    dvc(folder, "repro")
    assert figures(folder).keys() == figures(finished).keys()
    same = {name for name, drawn in figures(folder).items() if drawn == figures(finished)[name]}
    assert not same
    changed = set(git(folder, "diff", "--name-only").split())
    names = {f"results/figures/main/{name}" for name in figures(finished).keys() - same}
    assert changed == {"config/config.yaml", "dvc.lock"} | names
    drawn = {f"plot_{Path(name).stem}" for name in figures(finished)}
    assert set(planned(folder, *SMOKE)) <= drawn | {"plot_envelopes", "write_summary"}


def test_dvc_compares_commits(two_betas, tmp_path):
    folder = two_betas.folder
    table = pd.read_csv(folder / TABLE)
    warp = table.query("experiment == 'warp' and iteration == 2 and eta == 1")
    (point,) = warp[warp.stage == "interpolate_policy"].itertuples()
    path = "results/collect_evaluations/main/metrics/warp.iteration2.json"
    shown = json.loads(dvc(folder, "metrics", "show", "--json"))[""]["data"][path]["data"]
    assert shown["reward"] == pytest.approx(point.reward, rel=1e-5)
    assert shown["kl_exact"] == pytest.approx(point.kl_exact, rel=1e-5)
    compared = json.loads(dvc(folder, "metrics", "diff", "main", "beta", "--json"))
    assert compared[path]["kl_exact"]["new"] == shown["kl_exact"]
    assert compared[path]["kl_exact"]["diff"] != 0
    compared = json.loads(dvc(folder, "params", "diff", "main", "beta", "--json"))
    changed = {key: (d["old"], d["new"]) for key, d in compared["config/config.yaml"].items()}
    assert changed == {"train_policy.beta": (0.3, 0.2)}
    dvc(folder, "plots", "diff", "main", "beta", "-o", str(tmp_path / "plots"))
    page = (tmp_path / "plots/index.html").read_text()
    assert "kl_exact" in page
    assert str(point.kl_exact) in page


# --- kills -------------------------------------------------------------------------------------

KILLS = [  # signal, to the whole process group or Snakemake alone, what it waits for
    (signal.SIGKILL, "group", "rule train_sft:"),
    (signal.SIGINT, "group", "rule train_policy:"),
    (signal.SIGTERM, "alone", "rule track:"),
    (signal.SIGKILL, "group", "rule track:"),
    (signal.SIGKILL, "group", "rule merge_policies:"),
    (signal.SIGKILL, "alone", "rule evaluate_front:"),
    (signal.SIGKILL, "group", "rule plot_"),
    (signal.SIGTERM, "group", "rule plot_"),
    (signal.SIGINT, "alone", "rule report:"),
]


def kill_when(folder: Path, kill: tuple[signal.Signals, str, str], delay: float) -> int:
    """Start a run, kill it `delay` seconds after the first sign of what the kill waits for, and
    return its exit status."""
    number, whom, sign = kill
    log = folder.parent / "killed.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            ["snakemake", "--cores", "2", *SMOKE],
            cwd=folder,
            env=environment(folder),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # Ignored where pytest itself was started in the background, and that is inherited.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    while sign not in log.read_text() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(delay)
    if process.poll() is None:
        (os.killpg if whom == "group" else os.kill)(process.pid, number)
    status = process.wait(timeout=120)
    print(f"{number.name} to {whom}, {delay:.2f} s after {sign!r}: exit status {status}")
    return status


def test_killed_at_any_moment_the_next_run_goes_on(finished, tmp_path):
    """A run that starts from scratch elsewhere and is killed twice has the bytes of one that was
    not."""
    folder = copy_project(tmp_path / "killed")
    seed = random.randrange(10**6)
    print("seed", seed)
    generator = random.Random(seed)
    for kill in KILLS:
        assert kill_when(folder, kill, delay=generator.uniform(0, 1.5)) != 0
        if kill[0] == signal.SIGKILL:
            snakemake(folder, "--unlock", *SMOKE)
    snakemake(folder, *SMOKE)
    for table in (finished / TABLE).parent.glob("*.csv"):
        name = table.relative_to(finished)
        assert (folder / name).read_bytes() == table.read_bytes(), name
    assert figures(folder) == figures(finished)
    assert pointers(folder) == pointers(finished)
    for stored in objects(folder):
        md5 = (stored.parent.name + stored.name).removesuffix(".dir")
        assert file_md5(stored) == md5
    assert is_clean(folder)
    assert plans_nothing(folder)


# --- bad input ---------------------------------------------------------------------------------


def test_gc_keeps_what_the_commit_names(two_betas, tmp_path):
    folder = copy_finished(two_betas.folder, tmp_path / "gc")
    before = len(objects(folder))
    dvc(folder, "gc", "--workspace", "--force")
    assert len(objects(folder)) < before  # what only the other commit names
    assert is_clean(folder)
    assert plans_nothing(folder)


def test_an_edited_or_missing_checkpoint_is_refused(finished, tmp_path, overlay):
    folder = copy_finished(finished, tmp_path / "edited")
    path = folder / "results/train_sft/checkpoint/config.json"
    text = path.read_text() + "\n"
    path.unlink()
    path.write_text(text)
    new_eta = overlay(interpolate_policy={"etas": [0.25, 0.5, 1]})
    target = "results/interpolate_policy/warp/replicate1/iteration1/sft/eta0.25/checkpoint.dvc"
    output = snakemake(folder, target, *new_eta, succeeds=False)
    hashes = set(re.findall(r"[0-9a-f]{32}\.dir", output))
    assert len(hashes) == 2
    assert read_pointer(folder / SFT)["md5"] in hashes
    assert path.read_text() == text
    shutil.rmtree(path.parent)
    assert f"dvc checkout {SFT}" in snakemake(folder, target, *new_eta, succeeds=False)
    dvc(folder, "checkout", SFT)
    snakemake(folder, target, *new_eta)


def test_without_git_and_dvc_everything_runs(tmp_path):
    folder = copy_files(tmp_path / "plain")
    shutil.rmtree(folder / ".dvc")
    output = snakemake(folder, SFT, *SMOKE)
    assert output.count("not tracked by DVC") == 1
    assert read_pointer(folder / SFT)["nfiles"] >= 3
    assert "Nothing to be done" in snakemake(folder, SFT, *SMOKE)


def test_a_full_disk_while_caching_keeps_the_result(tmp_path):
    folder, disk = copy_project(tmp_path / "full"), tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "none", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small file system here")
    try:
        (folder / ".dvc/config.local").write_text(f"[cache]\n    dir = {disk}/cache\n")
        target = "results/generate_data/data.dvc"
        assert "No space left" in snakemake(folder, target, *SMOKE, succeeds=False)
        sentences = folder / "results/generate_data/data/sft.jsonl"
        assert len(sentences.read_text().splitlines()) == 300
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        output = snakemake(folder, target, *SMOKE)
        assert "rule track:" in output
        assert "rule generate_data:" not in output
        assert len(sentences.read_text().splitlines()) == 300
        assert "up to date" in dvc(folder, "status", target)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# --- S3 ----------------------------------------------------------------------------------------


def test_push_and_pull_with_s3(finished, tmp_path):
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("dvc_s3")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    secret = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "not-to-be-found"}
    try:
        url = f"http://{host}:{port}"
        make_bucket = urllib.request.Request(f"{url}/bucket", method="PUT")
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(make_bucket)
        folder = copy_finished(finished, tmp_path / "one")
        dvc(folder, "remote", "add", "--default", "s3", "s3://bucket/warp")
        dvc(folder, "remote", "modify", "s3", "endpointurl", url)
        commit(folder, "finished")
        dvc(folder, "push", extra=secret)
        other = tmp_path / "two"
        git(folder, "clone", "-q", str(folder), str(other))
        dvc(other, "pull", extra=secret)
        assert plans_nothing(other)
        assert is_clean(other)
        for file, stored in heavy_files(other):
            assert file.samefile(stored)
        found = execute(folder, "grep", "-rl", secret["AWS_SECRET_ACCESS_KEY"], ".", succeeds=False)
        assert found == ""
    finally:
        server.stop()


# --- provenance --------------------------------------------------------------------------------


def test_provenance_says_what_made_a_result(finished):
    folder = "results/merge_policies/warp/replicate1/iteration2"
    record = json.loads((finished / folder / "provenance.json").read_text())
    members = [
        f"results/train_policy/warp/replicate1/iteration2/member{m}/checkpoint.dvc" for m in (0, 1)
    ]
    for member in members:
        assert record["inputs"][member] == read_pointer(finished / member)["md5"]
    for path, found in record["code"]["files"].items():
        assert found == file_hash(finished / path)
    short = record["code"]["hash"][:16]
    kept = json.loads((finished / f"results/code/{short}.json").read_text())
    assert set(kept) == set(record["code"]["files"])
    assert "main" in kept["scripts/merge_policies.py"]
    assert "scripts/merge_policies.py" in record["code"]["files"]
    assert record["parameters"]["method"] == "slerp"
    made_in = record["environment"]
    assert set(made_in["packages"]) == set(PACKAGES)
    assert made_in["threads"] == "1"
    assert made_in["device"]
    assert made_in["git_commit"] == git(finished, "rev-parse", "HEAD").strip()
    assert record["seconds"] > 0


def trace(folder: Path, path: str, succeeds: bool = True) -> str:
    command = ("python", "scripts/trace_provenance.py", path)
    return execute(folder, *command, succeeds=succeeds)


@pytest.mark.parametrize(
    "path",
    [
        "results/merge_policies/warp/replicate1/iteration2",
        "results/merge_policies/warp/replicate1/iteration2/checkpoint/model.safetensors",
        "results/evaluate_policy/interpolate_policy/warp/replicate1/iteration2/sft/eta1/evaluation.json",
        TABLE,
        "results/figures/main/fronts.svg",
    ],
)
def test_trace_draws_the_tree_of_what_made_it(finished, path):
    lines = trace(finished, path).splitlines()
    assert path.startswith(lines[0].split()[0])
    for part in ("scripts/merge_policies.py", "scripts/train_policy.py", "results/generate_data"):
        assert any(part in line for line in lines), part
    assert not any("CHANGED" in line for line in lines)


def test_trace_marks_changed_inputs_and_refuses_foreign_paths(finished, two_betas, tmp_path):
    folder = copy_finished(finished, tmp_path / "trace")
    member = "results/train_policy/warp/replicate1/iteration2/member0/checkpoint.dvc"
    shutil.copyfile(two_betas.folder / member, folder / member)
    lines = trace(folder, "results/merge_policies/warp/replicate1/iteration2").splitlines()
    assert "CHANGED SINCE" in lines[0]
    assert member in lines[0]
    assert not any("CHANGED" in line for line in lines[1:])
    for foreign in ("README.md", str(tmp_path)):
        message = trace(folder, foreign, succeeds=False)
        assert "no provenance.json" in message
        assert "Traceback" not in message
