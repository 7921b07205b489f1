"""The first page: self-contained, escaped, and with what the tables say."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import altair
import numpy as np
import pandas as pd
import pytest
import vl_convert
import write_summary
from example_tables import make_tables
from matplotlib.image import imread

from warpflow.figures.cli import TABLE_COLUMNS
from warpflow.figures.interactive_front import front_chart
from warpflow.figures.style import FigureStyle, experiment_looks
from warpflow.figures.summary import Tables, script_json, summary_page

EVIL = "</script><script>alert(1)</script> & <b>bold</b>"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


class Page(HTMLParser):
    """What a browser would find: addresses to fetch, scripts, and the text of tables by class."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.scripts: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.rows: list[list[str]] | None = None
        self.in_script = False
        self.texts: list[str] = []
        self.policy = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.addresses += [str(given[key]) for key in ("src", "href", "data") if key in given]
        self.in_script = tag == "script"
        if self.in_script:
            self.scripts.append("")
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(given["content"])
        if tag == "table":
            self.rows = self.tables.setdefault(str(given.get("class")), [])
        elif tag == "tr" and self.rows is not None:
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.in_script = False
        if tag == "table":
            self.rows = None

    def handle_data(self, data: str) -> None:
        if self.in_script:
            self.scripts[-1] += data
        else:
            self.texts.append(data)
            if self.rows and self.rows[-1]:
                self.rows[-1][-1] = f"{self.rows[-1][-1]}{data}".strip()

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def chart(self) -> dict:
        [call] = re.findall(r'vegaEmbed\("#front", (.*), \{actions', self.scripts[-1])
        return json.loads(call)


def example(replicates: int = 5, **changes: pd.DataFrame) -> Tables:
    made = make_tables()
    evaluations = made["evaluations"].assign(length=21.0, n_prompts=400)
    completions = pd.DataFrame(
        [
            {"policy": policy, "prompt": f"prompt {i}", "completion": f"{policy} {EVIL}"}
            | {"reward": 1.0, "gold": 0.5, "finished": i > 0}
            for policy in evaluations["policy"].unique()
            for i in range(7)
        ]
    )
    optimum = {"kind": "optimum", "kl": [0.0, 4.0], "reward": [0.0, 3.0], "gold": [0.0, 2.0]}
    verdict = {"claim": "2", "statement": "SLERP has more reward than LERP", "verdict": "held"}
    verdict |= {"estimate": 0.11, "low": 0.08, "high": 0.13, "reference": 0.0, "compared": "a − b"}
    compared = {"experiment": "lerp", "iteration": 2, "against": "warp", "against_iteration": 2}
    compared |= {"measure": "mean reward", "kl_low": 0.2, "kl_high": 7.0, "estimate": -0.12}
    compared |= {"low": -0.2, "high": -0.04, "result": "below"}
    shares = evaluations[evaluations["stage"] == "interpolate_policy"]
    shares = shares[["experiment", "stage", "iteration", "towards", "eta"]]
    shares = shares.assign(gain=0.9, gain_low=0.8, gain_high=1.0, share=0.7, low=0.6, high=0.8)
    tables = {
        "evaluations": evaluations,
        "trajectories": made["trajectories"],
        "completions": completions,
        "optimum": pd.DataFrame({**optimum, "reliable": True}),
        "verdicts": pd.DataFrame([verdict | {"replicates": replicates}]),
        "comparisons": pd.DataFrame([compared | {"replicates": replicates}]),
        "shares": shares.assign(interval_over="prompts and 5 runs"),
        "costs": pd.DataFrame(
            [["train_policy", 4, 0, 1.5, 1.2, 0.5]],
            columns=["rule", "jobs", "restored", "hours", "cpu_hours", "largest_gb"],
        ),
    }
    return Tables(**tables | changes)


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(summary_page(example(), "main", FigureStyle(kl_budget=3.0)))


def test_the_page_fetches_nothing(page: Page) -> None:
    assert page.addresses == []
    assert page.policy.startswith("default-src 'none'")
    assert "http" not in page.policy
    assert "window.vegaEmbed" in page.scripts[0]


def test_texts_of_a_model_stay_texts(page: Page) -> None:
    assert len(page.scripts) == 2
    assert EVIL in page.text
    [first] = {v["completion"] for v in values(page.chart) if v.get("policy") == "x"} or {None}
    assert first is None  # policies have no column in the chart
    assert any(EVIL in str(v.get("completion")) for v in values(page.chart))
    assert "<" not in script_json(EVIL) and json.loads(script_json(EVIL)) == EVIL


def values(chart: dict) -> list[dict]:
    """All rows of data in a specification."""
    found = list(chart.get("data", {}).get("values", []))
    for dataset in chart.get("datasets", {}).values():
        found += dataset
    for layer in chart.get("layer", []):
        found += values(layer)
    return found


def test_points_have_their_numbers_and_the_budget_its_point(page: Page) -> None:
    head, *rows = page.tables["points"]
    assert head[:5] == ["which", "point", "reward", "gold", "KL to SFT"]
    assert [row[1].strip() for row in rows] == ["warp/2/1", "warp/2/0.5", "warp/2/0.5"]
    assert "within 3 nats" in rows[2][0]
    assert "+0.90 [+0.80, +1.00]" in rows[0] and "70% [60%, 80%]" in rows[0]
    assert "python scripts/export_point.py POINT --out FOLDER" in page.text


def test_completions_stand_side_by_side(page: Page) -> None:
    head, *rows = page.tables["completions"]
    assert head == ["prompt", "SFT", "warp/2/1", "warp/2/0.5"]
    assert [row[0] for row in rows] == [f"prompt {i}" for i in range(5)]
    assert rows[0][1].startswith("sft ") and rows[0][2].startswith("interpolate/warp/2/1.0 ")
    assert "cut at the limit" in rows[0][1] and "cut at the limit" not in rows[1][1]


def test_verdicts_baselines_and_costs_are_said(page: Page) -> None:
    assert "SLERP yes SLERP has more reward than LERP: +0.11 [+0.08, +0.13]." in page.text
    [[name, answer, text, where]] = page.tables["baselines"]
    assert (name, answer, where) == ("lerp, iteration 2", "worse", "over KL 0.2 to 7")
    assert "−0.12 [−0.20, −0.04]" in text
    assert page.tables["costs"][-1] == ["all", "4", "0", "1.500", "1.200", "0.50"]


def test_with_one_replicate_that_is_said() -> None:
    page = Page(summary_page(example(replicates=1), "main", FigureStyle()))
    assert "With one replicate nothing is said of other runs" in page.text
    assert (
        "nothing is said of other runs"
        not in Page(summary_page(example(), "main", FigureStyle())).text
    )


def test_what_is_missing_is_said_and_not_made_up() -> None:
    nothing = {name: example().__dict__[name].iloc[:0] for name in ("verdicts", "comparisons")}
    tables = example(
        **nothing,
        completions=example().completions.iloc[:0],
        costs=example().costs.iloc[:0],
        shares=example().shares.iloc[:0],
    )
    page = Page(summary_page(tables, "main", FigureStyle()))
    for sentence in (
        "No claim was compared.",
        "No completions are stored",
        "no other experiment to compare with",
        "No benchmark file of a job is on this machine.",
    ):
        assert sentence in page.text
    with pytest.raises(ValueError, match="nothing was evaluated"):
        summary_page(example(evaluations=example().evaluations.iloc[:0]), "main", FigureStyle())


# ------------------------------------------------------------------------------ the chart alone


def chart_of(style: FigureStyle, **changes: pd.DataFrame) -> dict:
    t = example(**changes)
    return front_chart(t.evaluations, t.trajectories, t.completions, style, t.optimum)


def parameters(chart: dict) -> dict[str, dict]:
    return {parameter["name"]: parameter for parameter in chart["params"]}


def test_the_chart_is_drawn_by_the_version_that_the_page_has() -> None:
    svg = vl_convert.vegalite_to_svg(chart_of(FigureStyle()))
    assert svg.count("<path") > 20 and "KL to SFT (nats)" in svg
    assert (
        altair.SCHEMA_VERSION.rpartition(".")[0].removeprefix("v")
        in vl_convert.get_vegalite_versions()
    )


def test_colours_are_those_of_the_other_figures() -> None:
    tables, style = example(), FigureStyle()
    looks = experiment_looks(tables.evaluations, tables.trajectories, style.palette)
    scales = [
        layer["encoding"]["color"]["scale"]
        for layer in chart_of(style)["layer"]
        if "color" in layer["encoding"]
    ]
    assert scales
    for scale in scales:
        assert scale["range"] == [looks[name].color for name in scale["domain"]]


def test_the_axis_may_begin_as_a_root_and_runs_far_away_are_cut() -> None:
    params = parameters(chart_of(FigureStyle(kl_scale="sqrt")))
    assert {name: params[name]["value"] for name in ("quantity", "root_axis", "runs")} == {
        "quantity": "reward",
        "root_axis": True,
        "runs": True,
    }
    assert params["shown"]["bind"] == "legend"
    far = example().trajectories.assign(kl_exact=lambda t: t["kl_exact"] * 10)
    text = json.dumps(chart_of(FigureStyle(), trajectories=far))
    assert "root_axis ? sqrt(10.5) : 10.5" in text  # fronts end at 7


def test_golds_by_name_are_choices_too() -> None:
    named = example().evaluations.rename(columns={"gold": "gold.a", "gold_se": "gold.a_se"})
    runs = example().trajectories.rename(columns={"gold": "gold.a", "gold_se": "gold.a_se"})
    chart = chart_of(FigureStyle(), evaluations=named, trajectories=runs)
    assert parameters(chart)["quantity"]["bind"]["options"] == ["reward", "gold.a"]
    assert r"gold\\.a" in json.dumps(chart)
    assert "<svg" in vl_convert.vegalite_to_svg(chart)


# ---------------------------------------------------------------------------------- the script


def test_the_script_reads_the_tables_and_writes_one_file(tmp_path: Path) -> None:
    tables = example()
    for name in ("evaluations", "trajectories", "completions", "optimum"):
        getattr(tables, name).to_csv(tmp_path / f"{name}.csv", index=False)
    for name in ("verdicts", "comparisons", "shares"):
        getattr(tables, name).to_csv(tmp_path / f"{name}.csv", index=False)
    out = tmp_path / "deep/main.html"
    words = ["--results", tmp_path, "--tables", tmp_path, "--comparisons", tmp_path, "--out", out]
    write_summary.main([str(word) for word in words])
    assert [path.name for path in out.parent.iterdir()] == ["main.html"]
    assert "warp/2/0.5" in Page(out.read_text()).text
    (tmp_path / "shares.csv").unlink()
    with pytest.raises(SystemExit, match=r"shares\.csv not found; run `snakemake`"):
        write_summary.main([str(word) for word in words])
    empty = ",".join(TABLE_COLUMNS["evaluations"])
    (tmp_path / "evaluations.csv").write_text(f"{empty}\n")
    tables.shares.to_csv(tmp_path / "shares.csv", index=False)
    with pytest.raises(SystemExit, match="nothing was evaluated"):
        write_summary.main([str(word) for word in words])


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium: put one on PATH, or its file into $CHROMIUM")
def test_a_browser_shows_the_page(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(summary_page(example(), "main", FigureStyle()))
    shot = tmp_path / "page.png"
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--window-size=1280,900", "--virtual-time-budget=8000", f"--screenshot={shot}"]
    subprocess.run([*command, str(tmp_path / "page.html")], check=True, timeout=120)
    pixels = np.asarray(imread(shot))
    assert pixels.shape[:2] == (900, 1280)
    plane = pixels[110:500, 60:600, :3]
    assert (np.ptp(plane, axis=-1) > 0.2).sum() > 200, "the chart has no coloured line"
