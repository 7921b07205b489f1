"""The scripts plot_*: flags, missing tables, and the same bytes for the same rows."""

import importlib
from pathlib import Path

import plot_eta_sweep
import plot_geometry
import pytest
from drawn import FIGURES, draw
from example_tables import make_tables, write_tables

from warpflow.figures.cli import TABLE_COLUMNS, read_tables, save_figure


@pytest.mark.parametrize("name", FIGURES)
def test_scripts_write_the_same_bytes_twice(name: str, tmp_path: Path) -> None:
    tables = make_tables()
    folder = write_tables(tables, tmp_path / "tables")
    script = importlib.import_module(f"plot_{name}")
    written = []
    for run in ("a", "b"):
        script.main(["--tables", str(folder), "--out", str(tmp_path / run), "--dpi", "60"])
        assert sorted(p.name for p in (tmp_path / run).iterdir()) == [f"{name}.png", f"{name}.svg"]
        written.append(
            [(tmp_path / run / f"{name}.{kind}").read_bytes() for kind in ("png", "svg")]
        )
    assert written[0] == written[1]
    png, svg = written[0]
    assert png.startswith(b"\x89PNG") and b"Software" not in png
    assert b"<svg" in svg and str(tmp_path).encode() not in svg


def test_the_flags_reach_the_figure(tmp_path: Path) -> None:
    tables = make_tables()
    folder = write_tables(tables, tmp_path / "tables")
    flags = {"width": "6", "height": "3", "dpi": "50", "palette": "viridis", "confidence": "0.9"}
    arguments = ["--tables", str(folder), "--out", str(tmp_path / "out")]
    for key, value in flags.items():
        arguments += [f"--{key}", value]
    plot_eta_sweep.main(arguments)
    header = (tmp_path / "out" / "eta_sweep.png").read_bytes()[16:24]
    width, height = (int.from_bytes(header[i : i + 4], "big") for i in (0, 4))
    assert width == 6 * 50
    assert 3 * 50 < height < 5 * 50  # the legend adds to the panels


def test_saving_replaces_a_read_only_file_by_rename(tmp_path: Path) -> None:
    tables = make_tables()
    cached = tmp_path / "cached.png"
    cached.write_bytes(b"bytes of the cache")
    (tmp_path / "eta_sweep.png").hardlink_to(cached)
    cached.chmod(0o444)
    save_figure(draw("eta_sweep", tables), tmp_path, "eta_sweep")
    assert cached.read_bytes() == b"bytes of the cache"


def test_missing_tables_say_what_to_run(tmp_path: Path) -> None:
    tables = make_tables()
    del tables["geometry"]
    folder = write_tables(tables, tmp_path / "tables")
    with pytest.raises(ValueError, match=r"geometry\.csv.*snakemake.*dvc pull"):
        plot_geometry.main(["--tables", str(folder), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_missing_columns_and_empty_files_name_the_file(tmp_path: Path) -> None:
    tables = make_tables()
    tables["geometry"] = tables["geometry"].drop(columns="norm_a")
    folder = write_tables(tables, tmp_path / "tables")
    with pytest.raises(ValueError, match=r"geometry\.csv.*norm_a"):
        read_tables(folder, ["geometry"])
    (folder / "training.csv").write_text("")
    with pytest.raises(ValueError, match=r"training\.csv.*header"):
        read_tables(folder, ["training"])


def test_tables_that_hold_only_a_header_are_drawn_as_messages(tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    for name, columns in TABLE_COLUMNS.items():
        (folder / f"{name}.csv").write_text(",".join(columns) + "\n")
    for name in FIGURES:
        arguments = ["--tables", str(folder), "--out", str(tmp_path / "out"), "--dpi", "40"]
        importlib.import_module(f"plot_{name}").main(arguments)
    assert len(list((tmp_path / "out").iterdir())) == 2 * len(FIGURES)
