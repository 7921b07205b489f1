"""Users without a name or a home, as containers start them."""

import getpass
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from warpflow.pipeline.user import provide_user

ROOT = Path(__file__).parents[2]
UID = 54321


@pytest.fixture
def nameless(monkeypatch, tmp_path):
    """This process takes itself for a user without a name; temporary folders are the test's."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: UID)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(autouse=True)
def restored():
    """The environment of other tests is as it was."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def test_a_user_with_name_and_home_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("LOGNAME", "ada")
    monkeypatch.setenv("HOME", str(tmp_path))
    before = dict(os.environ)
    assert provide_user() == []
    assert dict(os.environ) == before


def test_a_user_without_a_name_gets_one(nameless, tmp_path):
    with pytest.raises((KeyError, OSError)):
        getpass.getuser()
    (said,) = provide_user()
    assert getpass.getuser() == os.environ["USER"] == f"user{UID}"
    assert str(UID) in said and f"user{UID}" in said
    assert os.environ["HOME"] == str(tmp_path)
    assert provide_user() == []  # said once


@pytest.mark.parametrize("home", [None, "/nowhere", "not/absolute", ""])
def test_a_user_without_a_home_gets_one_to_write_in(nameless, monkeypatch, home):
    if home is None:
        monkeypatch.delenv("HOME")
    else:
        monkeypatch.setenv("HOME", home)
    _, said = provide_user()
    given = Path.home()
    assert str(given) in said
    assert f"HOME is {'unset' if home is None else home}" in said
    assert oct(given.stat().st_mode & 0o777) == "0o700"
    assert provide_user() == []


def test_a_temporary_home_of_another_user_is_not_taken(nameless, monkeypatch, tmp_path):
    taken = tmp_path / f"temporary/warpflow-home-{UID}"  # of whoever runs the tests, and not of UID
    taken.mkdir()
    monkeypatch.delenv("HOME")
    provide_user()
    assert Path.home() != taken
    assert Path.home().is_dir()


def test_a_home_that_cannot_be_written_is_kept(monkeypatch, tmp_path):
    """What is in it can be read: settings, keys, models."""
    monkeypatch.setenv("HOME", str(tmp_path))
    tmp_path.chmod(0o500)
    provide_user()
    tmp_path.chmod(0o700)
    assert os.environ["HOME"] == str(tmp_path)


@pytest.mark.parametrize("home", [None, "/nowhere"])
def test_make_gives_snakemake_a_home(home):
    """Snakemake ends before it reads any of our files where there is none."""
    environment = {key: value for key, value in os.environ.items() if key != "HOME"}
    environment |= {} if home is None else {"HOME": home}
    said = subprocess.run(
        ["make", "-s", "--eval", "show:; @echo $$HOME", "show"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert said not in ("", home)
    assert Path(said).is_dir()
