"""Jobs computed once per content, and results handed to DVC."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from warpflow.pipeline import jobs
from warpflow.pipeline.code_files import file_hash
from warpflow.pipeline.contents import folder_listing, listing_md5
from warpflow.pipeline.dvc_cache import cached_object, cached_run, remove_broken_lock

pytestmark = pytest.mark.slow  # each test starts jobs, Git or DVC

SCRIPT = """\
import pathlib, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
pathlib.Path("runs.log").open("a").write("run\\n")
out = pathlib.Path(flags["--out"])
text = flags["--value"]
if "--init" in flags:
    text += pathlib.Path(flags["--init"], "model.txt").read_text()
if "evaluation" in out.name:
    out.write_bytes(text.encode())
else:
    (out / "deep").mkdir(parents=True)
    (out / "model.txt").write_text(text)
    (out / "deep" / "tokenizer.txt").write_text("the same in every checkpoint")
if flags["--value"] == "fail":
    sys.exit(3)
"""

# Links, as on the file systems of clusters; reflinks of some others would hide what links do.
CONFIG = '[core]\n    analytics = false\n[cache]\n    type = "hardlink,symlink"\n'
CHECKPOINT = Path("results/train/checkpoint")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project with the script, in the working directory; no Git, no DVC."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    Path("make.py").write_text(SCRIPT)
    return tmp_path


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty Git and DVC repository, made once."""
    path = tmp_path_factory.mktemp("template")
    program = shutil.which("dvc", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("the command dvc is not installed")
    subprocess.run(["git", "init", "--quiet"], cwd=path, check=True)
    subprocess.run([program, "init", "--quiet"], cwd=path, check=True)
    (path / ".dvc" / "config").write_text(CONFIG)
    return path


@pytest.fixture
def repository(folder: Path, template: Path) -> Path:
    """The project as a Git and DVC repository."""
    shutil.copytree(template, folder, dirs_exist_ok=True)
    return folder


def run(
    made: Path = CHECKPOINT, *flags: str, inputs: tuple[str, ...] = (), runtime_args: str = ""
) -> None:
    command = [sys.executable, "make.py", "--out", str(made), *(flags or ("--value", "1"))]
    jobs.main(
        ["run", "--makes", str(made), "--log", "job.log", "--inputs", *inputs]
        + ([f"--runtime_args={runtime_args}"] if runtime_args else [])
        + ["--", *command]
    )


def pointer_of(made: Path = CHECKPOINT) -> Path:
    return made.with_name(f"{made.name}.dvc")


def provenance_of(made: Path = CHECKPOINT) -> Path:
    return made.parent / "provenance.json"


def track(made: Path = CHECKPOINT) -> None:
    jobs.main(["track", str(provenance_of(made)), str(pointer_of(made))])


def make_and_track(made: Path = CHECKPOINT, *flags: str, inputs: tuple[str, ...] = ()) -> None:
    run(made, *flags, inputs=inputs)
    track(made)


def runs() -> int:
    """How often the script ran."""
    log = Path("runs.log")
    return len(log.read_text().splitlines()) if log.exists() else 0


def outs(pointer: Path) -> dict[str, object]:
    return yaml.safe_load(pointer.read_text())["outs"][0]


def contents(made: Path) -> dict[str, str]:
    return {str(p.relative_to(made)): p.read_text() for p in made.rglob("*") if p.is_file()}


def overwrite(path: Path, text: str) -> None:
    """Write like an editor: a new file replaces the read-only link into the cache."""
    path.unlink()
    path.write_text(text)


def key(*command: str, inputs: tuple[str, ...] = (), made: str = "r/checkpoint") -> str:
    return str(jobs.make_record([Path(made)], inputs, command)["key"])


# --- run and track -----------------------------------------------------------------------------


def test_a_result_is_tracked_as_dvc_would(repository: Path) -> None:
    make_and_track()
    elsewhere = Path("elsewhere/checkpoint")
    shutil.copytree(CHECKPOINT, elsewhere)
    subprocess.run(["dvc", "add", "--quiet", str(elsewhere)], check=True)
    assert outs(pointer_of()) == outs(pointer_of(elsewhere))
    status = subprocess.run(["dvc", "status"], capture_output=True, text=True, check=True)
    assert "up to date" in status.stdout
    assert not jobs.seal_path(CHECKPOINT).exists()


def test_two_folders_of_a_result_are_tracked_in_one_call(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, ...]] = []
    call = jobs.dvc
    monkeypatch.setattr(jobs, "dvc", lambda *words: (calls.append(words), call(*words)))
    tables = CHECKPOINT.with_name("tables")
    Path("both.py").write_text(
        "import pathlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    pathlib.Path(name).mkdir()\n"
        "    pathlib.Path(name, 'text').write_text(name.split('.tmp')[0])\n"
    )
    made = [str(CHECKPOINT), str(tables)]
    words = ["--makes", *made, "--log", "job.log", "--", sys.executable, "both.py", *made]
    pointers = [str(pointer_of(folder)) for folder in (CHECKPOINT, tables)]
    for _ in range(2):  # made, then taken from the cache
        jobs.main(["run", *words])
        jobs.main(["track", str(provenance_of()), *pointers])
        assert [outs(Path(pointer))["nfiles"] for pointer in pointers] == [1, 1]
        shutil.rmtree("results")
    assert [words[0] for words in calls] == ["add", "checkout", "checkout"]
    assert calls[0] == ("add", *made)


def test_without_dvc_the_pointer_is_what_dvc_would_write(folder: Path, template: Path) -> None:
    make_and_track()
    untracked = outs(pointer_of())
    shutil.copytree(template, folder, dirs_exist_ok=True)
    subprocess.run(["dvc", "add", "--quiet", str(CHECKPOINT)], check=True)
    assert outs(pointer_of()) == untracked


def test_the_same_key_computes_nothing_and_comes_back_from_the_cache(repository: Path) -> None:
    make_and_track()
    before, pointer = contents(CHECKPOINT), pointer_of().read_text()
    first = json.loads(provenance_of().read_text())
    shutil.rmtree("results")
    make_and_track()
    assert runs() == 1
    assert contents(CHECKPOINT) == before
    assert pointer_of().read_text() == pointer
    again = json.loads(provenance_of().read_text())
    assert again == first | {"restored": True}


def test_the_same_work_under_another_name_computes_nothing(repository: Path) -> None:
    make_and_track()
    other = Path("results/other/name/checkpoint")
    make_and_track(other)
    assert runs() == 1
    assert outs(pointer_of(other)) == outs(pointer_of())
    assert contents(other) == contents(CHECKPOINT)


def test_changing_a_flag_back_brings_the_old_result_back(repository: Path) -> None:
    results: dict[str, list[tuple[object, dict[str, str]]]] = {}
    for value in ("1", "2", "1"):
        make_and_track(CHECKPOINT, "--value", value)
        results.setdefault(value, []).append((outs(pointer_of())["md5"], contents(CHECKPOINT)))
    assert runs() == 2
    assert results["1"][0] == results["1"][1]
    assert results["2"][0] != results["1"][0]
    assert results["1"][0][1]["model.txt"] == "1"


def test_provenance_says_what_went_in(repository: Path) -> None:
    run(CHECKPOINT, "--value", "1", "--method", "slerp")
    record = json.loads(provenance_of().read_text())
    assert record["inputs"] == {}
    assert record["code"]["files"] == {"make.py": file_hash(Path("make.py"))}
    assert record["parameters"] == {"out": str(CHECKPOINT), "value": "1", "method": "slerp"}
    assert record["command"][1:4] == ["make.py", "--out", str(CHECKPOINT)]
    assert set(record["environment"]["packages"]) == set(jobs.installed_packages())
    assert str(repository) not in json.dumps(record["inputs"])
    assert "restored" not in record


def test_track_twice_changes_nothing_and_does_not_call_dvc_again(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_and_track()
    before = pointer_of().read_bytes()
    monkeypatch.setattr(jobs, "dvc", lambda *arguments: pytest.fail(f"dvc {arguments}"))
    track()
    assert pointer_of().read_bytes() == before


def test_without_dvc_track_may_be_repeated(folder: Path) -> None:
    """Snakemake deletes the pointer of an interrupted `track` and calls it again."""
    make_and_track()
    before = pointer_of().read_bytes()
    pointer_of().unlink()
    track()
    assert pointer_of().read_bytes() == before
    run()
    assert runs() == 1


def test_track_interrupted_after_dvc_add_may_be_repeated(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC has replaced files by links to equal ones (the tokenizer), so times have changed."""
    make_and_track(Path("results/earlier/checkpoint"), "--value", "earlier")
    run()

    add = jobs.dvc

    def add_and_be_killed(*arguments: str) -> None:
        add(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "dvc", add_and_be_killed)
        with pytest.raises(KeyboardInterrupt):
            track()
    assert (CHECKPOINT / "deep" / "tokenizer.txt").stat().st_nlink > 1
    pointer_of().unlink()  # as Snakemake does
    track()
    assert runs() == 2
    assert contents(CHECKPOINT)["model.txt"] == "1"


def test_a_finished_result_that_is_not_tracked_yet_is_not_computed_again(repository: Path) -> None:
    """Killed before its provenance was written, or Snakemake deleted that as incomplete."""
    run()
    first = json.loads(provenance_of().read_text())
    provenance_of().unlink()
    run()
    assert runs() == 1
    assert json.loads(provenance_of().read_text()) == first | {"restored": True}
    track()
    assert contents(CHECKPOINT)["model.txt"] == "1"


def test_an_edit_between_run_and_track_is_not_taken_for_the_result(repository: Path) -> None:
    run()
    overwrite(CHECKPOINT / "model.txt", "edited")
    with pytest.raises(SystemExit, match=r"delete .*provenance.json to compute it again"):
        track()
    assert not pointer_of().exists()


def test_a_result_that_left_the_cache_is_computed_again(repository: Path) -> None:
    make_and_track()
    shutil.rmtree("results")
    shutil.rmtree(".dvc/cache/files")
    make_and_track()
    assert runs() == 2
    assert outs(pointer_of())["nfiles"] == 2


def test_an_entry_half_written_into_the_run_cache_is_ignored(repository: Path) -> None:
    """Killed between writing aside and renaming."""
    make_and_track()
    record = json.loads(provenance_of().read_text())
    (cached_run(record["key"]) / "0000.tmp123").write_text('{"outs": [{"md')
    shutil.rmtree("results")
    make_and_track()
    assert runs() == 1


# --- inputs changed by hand --------------------------------------------------------------------


NEXT = Path("results/next/checkpoint")


def run_next() -> None:
    pointer = str(pointer_of())
    run(NEXT, "--value", "next", "--init", pointer, inputs=(pointer,))


def test_a_pointer_in_the_command_stands_for_its_folder(repository: Path) -> None:
    make_and_track()
    run_next()
    assert contents(NEXT)["model.txt"] == "next1"


@pytest.mark.parametrize("with_dvc", [True, False])
@pytest.mark.parametrize("change", ["edit", "add", "remove"])
def test_an_input_changed_by_hand_is_refused_with_both_hashes(
    with_dvc: bool, change: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("repository" if with_dvc else "folder")
    make_and_track()
    if change == "edit":
        overwrite(CHECKPOINT / "model.txt", "edited")
    elif change == "add":
        (CHECKPOINT / "extra.txt").write_text("more")
    else:
        (CHECKPOINT / "model.txt").unlink()
    expected = outs(pointer_of())["md5"]
    found = listing_md5(folder_listing(CHECKPOINT))
    with pytest.raises(SystemExit) as stopped:
        run_next()
    for part in (str(expected), found, "changed by hand"):
        assert part in str(stopped.value)
    assert expected != found
    assert runs() == 1
    assert not NEXT.exists()
    assert not provenance_of(NEXT).exists()


@pytest.mark.parametrize(("cached", "command"), [(True, "checkout"), (False, "pull")])
def test_a_missing_input_is_refused_with_the_command_that_brings_it(
    repository: Path, cached: bool, command: str
) -> None:
    make_and_track()
    shutil.rmtree(CHECKPOINT)
    if not cached:
        shutil.rmtree(".dvc/cache/files")
    pointer = "results/train/checkpoint.dvc"
    with pytest.raises(SystemExit, match=f"is missing: run `dvc {command} {pointer}`"):
        run_next()


# --- failures ----------------------------------------------------------------------------------


def test_a_failed_command_leaves_nothing_and_its_exit_status(repository: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(CHECKPOINT, "--value", "fail")
    assert stopped.value.code == 3
    assert runs() == 1
    assert list(CHECKPOINT.parent.iterdir()) == []


def test_a_failed_command_keeps_the_earlier_result(repository: Path) -> None:
    make_and_track()
    before, pointer = contents(CHECKPOINT), pointer_of().read_text()
    with pytest.raises(SystemExit):
        run(CHECKPOINT, "--value", "fail")
    assert contents(CHECKPOINT) == before
    assert pointer_of().read_text() == pointer


def test_a_command_that_writes_nothing_is_an_error_and_keeps_the_earlier_result(
    folder: Path,
) -> None:
    run()
    with pytest.raises(SystemExit, match="nothing was written"):
        jobs.main(
            ["run", "--makes", str(CHECKPOINT), "--log", "job.log", "--", sys.executable, "-c", ""]
        )
    assert contents(CHECKPOINT)["model.txt"] == "1"


def test_what_a_killed_run_left_behind_is_removed(folder: Path) -> None:
    left = CHECKPOINT.with_name("checkpoint.tmp999")
    left.mkdir(parents=True)
    (left / "half").write_text("half")
    run()
    names = sorted(path.name for path in CHECKPOINT.parent.iterdir())
    assert names == ["checkpoint", "checkpoint.seal", "provenance.json"]


def test_a_second_job_on_a_state_leaves_at_once_and_touches_nothing(folder: Path) -> None:
    command = [sys.executable, "make.py", "--out", str(CHECKPOINT), "--value", "1"]
    key = jobs.make_record([CHECKPOINT], [], command)["key"]
    unfinished = CHECKPOINT.with_name("checkpoint.tmp999")
    unfinished.mkdir(parents=True)

    def second() -> None:
        jobs.run([CHECKPOINT], [], command, Path("job.log"), states=Path("states"))

    with jobs.alone(Path("states", key)), pytest.raises(SystemExit, match="is in use"):
        second()
    assert unfinished.is_dir()
    assert runs() == 0
    second()
    assert runs() == 1
    assert not list(Path("states").iterdir())


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (75, "exit status 75"),
        (-15, "killed by SIGTERM"),
        (-9, "killed by SIGKILL (out of memory?)"),
    ],
)
def test_how_a_command_ended_in_words(status: int, words: str) -> None:
    assert jobs.describe_status(status) == words


# --- keys --------------------------------------------------------------------------------------


def write_pointer(name: str, md5: str) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"outs": [{"md5": md5, "path": "checkpoint"}]}))
    return name


def test_keys_do_not_depend_on_names_and_places(folder: Path) -> None:
    a, b = write_pointer("a/checkpoint.dvc", "1.dir"), write_pointer("b/checkpoint.dvc", "1.dir")
    keys = {
        key("python", "make.py", "--init", p, "--out", m, inputs=("make.py", p), made=m)
        for p in (a, b)
        for m in ("x/checkpoint", "y/z/checkpoint")
    }
    assert len(keys) == 1


def test_keys_depend_on_flags_code_and_contents(folder: Path) -> None:
    a = write_pointer("a/checkpoint.dvc", "1.dir")
    command, inputs = ("python", "make.py", "--beta", "0.1", "--init", a), ("make.py", a)
    keys = [key(*command, inputs=inputs)]
    keys.append(key(*command[:3], "0.2", *command[4:], inputs=inputs))
    keys.append(key(*command, "--extra", "1", inputs=inputs))
    write_pointer(a, "2.dir")
    keys.append(key(*command, inputs=inputs))
    Path("make.py").write_text(SCRIPT + "# a comment\n")
    keys.append(key(*command, inputs=inputs))
    assert len(set(keys)) == len(keys)
    Path("make.py").write_text(SCRIPT)
    write_pointer(a, "1.dir")
    assert key(*command, inputs=inputs) == keys[0]


def test_keys_depend_on_contents_that_the_command_does_not_name(folder: Path) -> None:
    Path("library.py").write_text("one = 1")
    inputs = ("make.py", "library.py")
    before = key("python", "make.py", inputs=inputs)
    Path("library.py").write_text("one = 2")
    assert key("python", "make.py", inputs=inputs) != before


def test_keys_depend_on_the_role_of_each_input(folder: Path) -> None:
    a, b = write_pointer("a/checkpoint.dvc", "1.dir"), write_pointer("b/checkpoint.dvc", "2.dir")
    one = key("python", "--init", a, "--policy", b, inputs=(a, b))
    other = key("python", "--init", b, "--policy", a, inputs=(a, b))
    assert one != other


def test_runtime_args_arguments_reach_the_command_but_not_the_key(repository: Path) -> None:
    make_and_track()
    assert runs() == 1
    run(CHECKPOINT, "--value", "1", runtime_args="--trackers logs/1")
    run(CHECKPOINT, "--value", "2", runtime_args="--value 3")
    assert runs() == 2
    assert contents(CHECKPOINT)["model.txt"] == "3"


# --- small files, places -----------------------------------------------------------------------


@pytest.mark.parametrize("value", ["text", "lines\r\nof\rWindows\n", "η = 0.3"])
def test_small_files_come_back_byte_for_byte(repository: Path, value: str) -> None:
    made = Path("results/evaluate/evaluation.json")
    run(made, "--value", value)
    before = made.read_bytes()
    assert before == value.encode()
    shutil.rmtree("results")
    run(made, "--value", value)
    assert runs() == 1
    assert made.read_bytes() == before
    assert os.access(made, os.W_OK)


def test_small_files_edited_by_hand_are_restored(repository: Path) -> None:
    made = Path("results/evaluate/evaluation.json")
    run(made)
    made.write_text("edited")
    run(made)
    assert made.read_text() == "1"


def test_without_dvc_small_files_are_made_every_time(folder: Path) -> None:
    made = Path("results/evaluate/evaluation.json")
    run(made)
    run(made)
    assert runs() == 2
    assert not Path(".dvc").exists()


def test_the_cache_is_where_dvc_has_it(repository: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared cache"
    Path(".dvc/config.local").write_text(f"[cache]\n    dir = {shared}\n")
    make_and_track()
    assert cached_object(str(outs(pointer_of())["md5"])).is_relative_to(shared)
    shutil.rmtree("results")
    make_and_track()
    assert runs() == 1


def test_it_is_said_why_results_are_not_tracked(
    folder: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "dvc init" in str(jobs.tracking_problem())
    shutil.copytree(template / ".dvc", ".dvc")
    assert "git init" in str(jobs.tracking_problem())
    shutil.copytree(template / ".git", ".git")
    assert jobs.tracking_problem() is None
    monkeypatch.setenv("PATH", "")
    assert "PATH" in str(jobs.tracking_problem())


def test_half_a_lock_file_of_dvc_is_removed_and_a_whole_one_kept(folder: Path) -> None:
    remove_broken_lock()  # none there
    path = folder / ".dvc/tmp/rwlock"
    path.parent.mkdir(parents=True)
    path.write_text('{"a": {"write": {"pid": 1}}}')
    remove_broken_lock()
    assert path.is_file()
    for left in ('{"a": {"wri', ""):
        path.write_text(left)
        remove_broken_lock(pause=0)
        assert not path.exists()
