"""Verdicts on made-up measurements in which each claim is true, false, and neither."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import compare_fronts
import numpy as np
import pandas as pd
import pytest

from warpflow.evaluation.optimum import optimum_at
from warpflow.experiments import trajectory_of
from warpflow.fronts.claims import verdicts_table
from warpflow.fronts.differences import comparisons_table, shares_table
from warpflow.fronts.measurements import Measurements, make_measurements

ETAS = (0.0, 0.2, 0.5, 0.8, 1.0)
FAR = 4.0  # KL at η = 1


@dataclass
class World:
    """True values of policies, and prompts that measure them with noise of zero mean.

    Prompts differ by far more than policies do, so only what is paired can be decided. Runs of the
    replicates differ by noise that has zero mean too, so estimates are the true values.
    """

    prompts: int = 60
    replicates: int = 3
    noise: float = 0.2
    run_noise: float = 0.01
    rows: list[dict] = field(default_factory=list)
    policies: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    runs: dict[str, dict[int, dict[str, np.ndarray]]] = field(default_factory=dict)
    geometry: list[dict] = field(default_factory=list)
    kl_to_anchor: dict[str, float] = field(default_factory=dict)
    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __post_init__(self) -> None:
        self.level = 3 * self.centred()

    def centred(self) -> np.ndarray:
        noise = self.generator.standard_normal(self.prompts)
        return noise - noise.mean()

    def of_runs(self) -> np.ndarray:
        """[R] what makes the runs of the replicates differ."""
        noise = self.run_noise * self.generator.standard_normal(self.replicates)
        return noise - noise.mean()

    def values(self, kl: float, reward: float) -> dict[str, np.ndarray]:
        value = self.level + reward + self.noise * self.centred()
        spread = 0.05 * kl * self.centred()
        return {"kl_exact": kl + spread, "reward": value, "gold": value - 0.1 * kl}

    def add(self, settings: dict, name: str, kl: float, reward: float, **use: object) -> None:
        shifts = self.of_runs()
        for r in range(1, self.replicates + 1):
            policy = f"{name}/replicate{r}/member0"
            self.policies.setdefault(policy, self.values(kl, reward + shifts[r - 1]))
            self.rows.append(settings | {"replicate": r, "policy": policy} | use)

    def add_run(
        self, settings: dict, name: str, gain: float, start: float = 0.0, steps: int = 100, **use
    ) -> None:
        """A run that ends a little beyond KL `FAR`, its reward `gain · (KL / FAR)^¼`; measured at
        the KLs of a front too, since lines between fewer points would lie below."""
        kls = [start, *(FAR * eta**2 for eta in ETAS if FAR * eta**2 > start), 1.1 * FAR]
        points = {steps * i // (len(kls) - 1): kl for i, kl in enumerate(kls)}
        shifts = self.of_runs()
        for r in range(1, self.replicates + 1):
            values = {
                step: self.values(kl, gain * (kl / FAR) ** 0.25 + shifts[r - 1])
                for step, kl in points.items()
            }
            self.runs.setdefault(f"{name}/replicate{r}/member0", values)
        self.add(settings, name, points[steps], gain * 1.1**0.25, stage="train_policy", **use)

    def add_front(
        self, settings: dict, iteration: int, gain: float, curves: tuple[float, float] = (2, 0.5)
    ) -> None:
        """KL `FAR · η^p` and reward `gain · η^q`; where q / p = ¼, as a run of that gain."""
        for eta in ETAS:
            name = f"interpolate_policy/{settings['experiment']}/{iteration}/{eta}"
            use = {"stage": "interpolate_policy", "iteration": iteration, "towards": "sft"}
            kl, reward = FAR * eta ** curves[0], gain * eta ** curves[1]
            self.add(settings, name, kl, reward, eta=eta, **use)

    def measured(self) -> Measurements:
        columns = ["experiment", "replicate", "stage", "iteration", "member", "towards", "eta"]
        columns += ["anchor", "beta", "mu", "training_changes", "members", "merge_method"]
        columns += ["merge_weight", "policy"]
        evaluations = pd.DataFrame(self.rows).reindex(columns=columns)
        columns = ["experiment", "replicate", "iteration", "group"]
        columns += ["cosine_task_vectors", "cosine_weights"]
        geometry = pd.DataFrame(self.geometry, columns=columns)
        columns = ["experiment", "replicate", "iteration", "member", "step", "kl_to_anchor"]
        training = pd.DataFrame(
            [
                [name, r, 1, 0, step, kl * (step > 50)]
                for name, kl in self.kl_to_anchor.items()
                for r in range(1, self.replicates + 1)
                for step in (25, 50, 75, 100)
            ],
            columns=columns,
        )
        return make_measurements(evaluations, self.policies, self.runs, geometry, training, 500, 0)


def settings_of(experiment: str, **changes: object) -> dict:
    """Columns of an experiment. Names are arbitrary: nothing may depend on them."""
    base = {"anchor": "ema", "beta": 0.1, "mu": 0.03, "members": 2, "merge_method": "slerp"}
    return {"experiment": experiment} | base | changes


def make_world(
    ema: float = 1.0,
    sft: float = 1.0,
    other_sft: float = 0.5,
    fronts: tuple[float, ...] = (1.0, 1.0, 1.0),
    lerp: tuple[float, float] = (1.0, FAR),
    degrees: float = 45.0,
    cosine: float = 0.99,
    curves: tuple[float, float] = (2, 0.5),
    **options: float,
) -> World:
    """A base of two members and three iterations, a single run of it, two SFT-anchored runs, and a
    LERP of the base's members.

    Args:
        ema, sft, other_sft: gains of the runs (and of the fronts of the single ones).
        fronts: gains of the base's fronts by iteration. lerp: reward and KL of the LERP.
    """
    world = World(**options)  # type: ignore[arg-type]
    base = settings_of("x1")
    for i, gain in enumerate(fronts, 1):
        start = 0.0 if i == 1 else 0.5
        for m in (0, 1):
            world.add_run(base, f"run/{i}/{m}", ema, start, iteration=i, member=m)
        world.add_front(base, i, gain, curves)
    one = settings_of("x2", members=1)
    world.add_run(one, "run/1/0", ema, iteration=1, member=0)
    world.add_front(one, 1, ema)
    for name, beta, gain in (("x3", 0.1, sft), ("x4", 0.3, other_sft)):
        arm = settings_of(name, members=1, anchor="sft", beta=beta)
        world.add_run(arm, f"run/{name}", gain, iteration=1, member=0)
        world.add_front(arm, 1, gain)
    linear = settings_of("x5", merge_method="lerp")
    for m in (0, 1):
        world.add_run(linear, f"run/1/{m}", ema, iteration=1, member=m)
    use = {"stage": "interpolate_policy", "iteration": 1, "towards": "sft", "eta": 1.0}
    world.add(linear, "lerp", lerp[1], lerp[0], **use)
    spread = np.linspace(-8, 8, 12)
    for r in range(1, world.replicates + 1):
        world.geometry += [
            {
                "experiment": "x1",
                "replicate": r,
                "iteration": 1,
                "group": f"layer {layer}",
                "cosine_task_vectors": math.cos(math.radians(degrees + spread[layer])),
                "cosine_weights": cosine + (spread[layer] + r) * 1e-4,
            }
            for layer in range(12)
        ]
    return world


def verdicts(world: World) -> pd.DataFrame:
    table = verdicts_table(world.measured(), 0.95).set_index("claim")
    assert table.index.is_unique
    return table


CLAIMS: dict[str, tuple[Callable[[float], dict], float]] = {
    # claim: (knobs that make it true at +1, false at −1, neither at 0), estimate at +1
    "1 same β": (lambda s: {"ema": 1 + 0.3 * s}, 0.2),
    "1 envelopes": (lambda s: {"ema": 1 + 0.3 * s, "sft": 0.5, "other_sft": 1.0}, 0.2),
    "2": (lambda s: {"lerp": (1 - 0.2 * s, FAR)}, 0.2),
    "2 KL": (lambda s: {"lerp": (1.0, FAR - 0.5 * s)}, 1.1),
    "3": (lambda s: {"lerp": (1.0, 1.1 * FAR - 0.5 * s)}, 0.5),
    "4": (lambda s: {"degrees": 45 + 15 * s}, 60.0),
    "4 weights": (lambda s: {"cosine": 0.99 + 0.005 * s}, 0.995),
    "5 iteration 1": (lambda s: {"fronts": (1 + 0.3 * s, 1, 1)}, 0.2),
    "5 iteration 3": (lambda s: {"fronts": (1, 1, 1 + 0.3 * s)}, 0.2),
    "6 iteration 2": (lambda s: {"fronts": (1, 1 + 0.3 * s, 1)}, 0.2),
    "6 iteration 3": (lambda s: {"fronts": (1, 1, 1 + 0.3 * s)}, 0.2),
    "6 diminishing": (lambda s: {"fronts": (1, 1.4, 1.8 - 0.3 * s)}, 0.2),
    "lemma KL, iteration 1": (lambda s: {"curves": (2**s, 0.5)}, 2 * FAR),
    "lemma reward, iteration 2": (lambda s: {"curves": (2, 0.5**s)}, 0.5),
}


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize(("sign", "verdict"), [(1, "held"), (-1, "did not hold"), (0, "undecided")])
def test_each_claim_where_it_is_true_false_and_neither(claim: str, sign: int, verdict: str) -> None:
    knobs, size = CLAIMS[claim]
    row = verdicts(make_world(**knobs(sign))).loc[claim]
    assert row.verdict == verdict, row.compared
    assert row.low <= row.estimate <= row.high
    if sign == 1:
        assert row.estimate > size / 2


def test_estimates_are_the_true_differences() -> None:
    table = verdicts(make_world(lerp=(0.7, 3.0), degrees=70))
    assert table.estimate["2"] == pytest.approx(0.3, abs=1e-9)
    assert table.estimate["2 KL"] == pytest.approx(4 / 3), "the ratio of KLs"
    assert table.reference["2 KL"] == 1
    assert table.statement["2 KL"].startswith("… and more KL (ratio 1.33 [1.3")
    assert table.estimate["3"] == pytest.approx(1.1 * FAR - 3.0)
    assert table.estimate["3 reward"] == pytest.approx(0.7 - 1.1**0.25)
    assert table.verdict["3 reward"] == "reported"
    assert table.estimate["4"] == pytest.approx(70)
    assert table.estimate["lemma KL, iteration 1"] == pytest.approx(2 * FAR)


def test_rows_name_what_was_compared() -> None:
    world = make_world()
    world.kl_to_anchor = {"x2": 0.12, "x3": 2.0}
    table = verdicts(world)
    assert "x2 − x3, β 0.1" in table.compared["1 same β"]
    assert "0.012 in x2 and 0.2 in x3" in table.compared["1 same β"], "penalties, of the late steps"
    assert "not the same penalty" in table.statement["1 same β"]
    assert "ema (β 0.1) − sft (β 0.1, 0.3)" in table.compared["1 envelopes"]
    assert "ema at one β, unlike penalties" in table.statement["1 envelopes"]
    assert "x1 − x5" in table.compared["2"]
    assert "over KL 0 to 4" in table.compared["6 iteration 2"]
    assert table.interval_over["2"] == "prompts and 3 runs (t, 2 df for the runs)"
    assert (table.prompts.dropna() == 60).all()


def test_one_replicate_gives_no_verdict() -> None:
    """This holds however far its interval is from the reference."""
    world = make_world(ema=9.0, fronts=(1, 5, 9), replicates=1)
    table = verdicts(world)
    measured = table[table.verdict != "not measured"]
    assert set(measured.verdict) == {"one run", "reported"}
    over = measured.interval_over
    assert set(over) == {"prompts of this one run", "layers of this one run"}
    assert measured.low["6 iteration 2"] > 0, "the interval is there"
    assert "by the other half of the prompts" in table.compared["1 envelopes"]
    results = comparisons_table(world.measured(), 0.95).result
    assert set(results) == {"one run"}


def test_two_replicates_have_an_interval_with_one_degree_of_freedom() -> None:
    two, three = (
        verdicts(make_world(replicates=r, lerp=(0.7, 3.0), noise=0.0)).loc["2"] for r in (2, 3)
    )
    assert two.interval_over == "prompts and 2 runs (t, 1 df for the runs)"
    assert two.high - two.low > 2 * (three.high - three.low)


def test_one_triple_against_a_lemma_is_a_counterexample() -> None:
    """KL is convex on the whole, but not at η = 0.8."""
    world = make_world(noise=0.01)
    for policy, values in world.policies.items():
        if policy.startswith("interpolate_policy/x1/1/0.8"):
            values["kl_exact"] += 0.8
    row = verdicts(world).loc["lemma KL, iteration 1"]
    assert row.verdict == "did not hold" and row.estimate > 0
    assert "1 of 3 triples" in row.compared and "η = 0.8" in row.compared


def test_replicates_that_disagree_leave_a_claim_undecided() -> None:
    """Every prompt is certain, but half of the replicates say the contrary."""
    world = make_world(replicates=4, lerp=(0.9, FAR))
    sure = verdicts(world).loc["2"]
    assert sure.verdict == "held" and sure.replicates == 4
    for policy, values in world.policies.items():
        if policy in ("lerp/replicate1/member0", "lerp/replicate2/member0"):
            values["reward"] += 0.3
    torn = verdicts(world).loc["2"]
    assert torn.verdict == "undecided"
    assert torn.high - torn.low > 2 * (sure.high - sure.low)


def test_missing_arms_are_not_measured_and_say_what_to_add() -> None:
    world = World()
    base = settings_of("only")
    world.add_run(base, "run", 1.0, iteration=1, member=0)
    world.add(base, "point", 1.0, 1.0, stage="interpolate_policy", iteration=1, eta=1.0)
    table = verdicts(world)
    assert (table.verdict == "not measured").all()
    assert "anchor: sft, beta: 0.1" in table.compared["1 same β"]
    assert "method: lerp" in table.compared["2"]
    assert "iterations: 2" in table.compared["6"]
    assert "members: 2" in table.compared["4"]


def test_longer_runs_are_no_arm_of_the_anchor() -> None:
    """A run with the compute of all of WARP is compared elsewhere."""
    world = make_world(ema=1.3)
    strong = settings_of("x6", members=1, anchor="sft", training_changes="steps 600")
    world.add_run(strong, "long", 9.0, steps=600, iteration=1, member=0)
    world.add_front(strong, 1, 9.0)
    table = verdicts(world)
    assert table.verdict["1 same β"] == table.verdict["1 envelopes"] == "held"


def test_runs_with_other_settings_are_compared_with_one_another() -> None:
    """Both anchors without clipping have their own rows, in which only the anchor differs."""
    world = make_world(ema=1.3)
    for name, anchor, gain in (("x6", "ema", 0.5), ("x7", "sft", 1.0)):
        arm = settings_of(name, members=1, anchor=anchor, training_changes="max_grad_norm 1e9")
        world.add_run(arm, f"run/{name}", gain, iteration=1, member=0)
        world.add_front(arm, 1, gain)
    table = verdicts(world)
    assert table.verdict["1 same β"] == "held"
    assert table.verdict["1 same β, max_grad_norm 1e9"] == "did not hold"
    assert table.verdict["1 envelopes, max_grad_norm 1e9"] == "did not hold"
    assert "x6 − x7" in table.compared["1 same β, max_grad_norm 1e9"]


def test_trajectories_are_compared_where_an_arm_has_no_front() -> None:
    world = make_world(sft=0.7)
    world.rows = [
        row for row in world.rows if row["experiment"] != "x3" or row["stage"] == "train_policy"
    ]
    row = verdicts(world).loc["1 same β"]
    assert row.verdict == "held"
    assert "trajectories" in row.compared
    assert "over KL 0 to 4.4" in row.compared


def test_too_few_prompts_decide_nothing() -> None:
    world = make_world(ema=9.0, prompts=4, fronts=(1, 5, 9), lerp=(1, 2))
    table = verdicts(world)
    of_prompts = table[table.prompts.notna() & (table.verdict != "not measured")]
    assert set(of_prompts.verdict) == {"undecided"}
    assert of_prompts.compared.str.contains("4 prompts are too few").all()
    results = comparisons_table(world.measured(), 0.95).result
    assert set(results) == {"too few prompts"}


def test_a_front_without_its_start_has_that_of_the_base() -> None:
    """η = 0 towards SFT is SFT itself in every experiment. A single point stays single."""
    world = make_world()
    kept = [
        row
        for row in world.rows
        if not (row["experiment"] == "x3" and row.get("eta") == 0.0)
        and not (row["experiment"] == "x4" and row.get("eta", 1.0) < 1)
    ]
    assert len(kept) < len(world.rows)
    whole = world.measured().front("x3", 1)
    world.rows = kept
    measured = world.measured()
    front, base, point = (measured.front(name, 1) for name in ("x3", "x1", "x4"))
    assert whole is not None and front is not None and base is not None and point is not None
    assert front.points == whole.points and point.points == 1
    np.testing.assert_array_equal(front.value[..., 0], base.value[..., 0])
    np.testing.assert_array_equal(front.value[..., 1:], whole.value[..., 1:])


def test_unequal_prompts_and_missing_replicates_are_errors() -> None:
    world = make_world(replicates=2)
    world.policies["lerp/replicate1/member0"]["reward"] = np.zeros(7)
    with pytest.raises(ValueError, match="evaluated on 7 and 60 prompts"):
        world.measured()
    world = make_world(replicates=2)
    world.rows.pop()
    with pytest.raises(ValueError, match="has 1 replicates, expected 2"):
        world.measured()


# ------------------------------------------------------------------------------- comparisons


def test_comparisons_of_every_experiment_with_the_base() -> None:
    table = comparisons_table(make_world(sft=0.7, fronts=(1, 1.5)).measured(), 0.95)
    assert set(table.experiment) == {"x2", "x3", "x4", "x5"}
    of_sft = table[(table.experiment == "x3") & (table.against == "x1")].set_index(
        ["against_iteration", "measure"]
    )
    first = of_sft.loc[1]
    assert first.result["mean reward"] == first.result["mean gold"] == "below"
    assert first.estimate["mean reward"] == pytest.approx(-0.3 * 0.8, rel=0.1)  # ∫ x^¼ = 0.8
    at = first.loc[["reward"]]
    assert at.kl_low.tolist() == [1, 2, 3]
    expected = [-0.3 * (kl / FAR) ** 0.25 for kl in (1, 2, 3)]
    assert at.estimate.tolist() == pytest.approx(expected, abs=0.03)
    assert (at.low < at.estimate).all() and (at.estimate < at.high).all()
    assert first.estimate["hypervolume"] == pytest.approx(-0.3 * 0.8 * FAR, rel=0.1)
    later = of_sft.loc[2]
    assert later.estimate["mean reward"] < first.estimate["mean reward"]
    equal = table[(table.experiment == "x2") & (table.against_iteration == 1)]
    assert set(equal.result) == {"undecided"}
    of_single = table[(table.experiment == "x3") & (table.against == "x2")]
    assert of_single.set_index("measure").result["mean reward"] == "below", "one run and one run"


def test_a_single_point_is_compared_at_its_kl_without_a_hypervolume() -> None:
    table = comparisons_table(make_world(lerp=(1.5, 2.0)).measured(), 0.95)
    point = table[(table.experiment == "x5") & (table.against_iteration == 1)]
    assert point.measure.tolist() == ["mean reward", "end KL", "mean gold"]
    assert point.estimate.iloc[1] == pytest.approx(2.0 - FAR)
    point = point[point.measure != "end KL"]
    for end in (point.kl_low, point.kl_high):
        assert end.tolist() == pytest.approx([2.0, 2.0])
    assert point.estimate.iloc[0] == pytest.approx(1.5 - 0.5**0.25, abs=0.03)
    assert (point.result == "above").all()


def test_fronts_without_a_common_kl_say_so() -> None:
    table = comparisons_table(make_world(lerp=(1.5, 99.0)).measured(), 0.95)
    means = table[(table.experiment == "x5") & table.measure.str.startswith("mean")]
    assert set(means.result) == {"no KL in common"}


# -------------------------------------------------------------------------- share of optimum


def optimum_of(gain: float, end: float, error: float = 0.01) -> pd.DataFrame:
    """An optimal front of reward `gain · (KL / FAR)^¼` over SFT, up to KL `end`."""
    kl = np.linspace(0, end, 200)
    return pd.DataFrame(
        {
            "kind": "optimum",
            "beta": 1.0,
            "kl": kl,
            "reward": 5 + gain * (kl / FAR) ** 0.25,
            "gain": gain * (kl / FAR) ** 0.25,
            "gain_se": error,
            "reliable": True,
        }
    )


def test_share_of_the_optimum() -> None:
    table = shares_table(make_world().measured(), optimum_of(2.0, 3.0), 0.95, seed=0)
    front = table[(table.experiment == "x1") & (table.iteration == 1) & table.eta.notna()]
    front = front.set_index("eta")
    assert front.share[[0.5, 0.8]].tolist() == pytest.approx([0.5, 0.5], abs=0.01)
    assert (front.low < front.share)[[0.5, 0.8]].all()
    assert front.share[[0.0, 1.0]].isna().all(), "KL 0, and beyond the reliable end"
    assert front.optimal_gain[0.5] == pytest.approx(2 * 0.25**0.25, rel=0.01)


def test_errors_of_the_optimum_widen_the_share() -> None:
    measured = make_world().measured()
    widths = []
    for error in (1e-6, 0.3):
        table = shares_table(measured, optimum_of(2.0, 5.0, error), 0.95, seed=0)
        row = table[(table.experiment == "x1") & (table.eta == 0.8)].iloc[0]
        widths.append(row.high - row.low)
    assert widths[1] > 2 * widths[0]


def test_unreliable_points_are_no_part_of_the_front() -> None:
    table = optimum_of(2.0, 3.0)
    table.loc[table.kl > 2, "reliable"] = False
    assert np.isnan(optimum_at(table, np.array([1.9, 2.5]))).tolist() == [False, True]


# ------------------------------------------------------------------------------- the script


def write_world(world: World, folder: Path) -> None:
    """Write what the jobs leave behind, as files."""
    measured = world.measured()
    measured.evaluations.to_csv(folder / "evaluations.csv", index=False)
    measured.geometry.to_csv(folder / "geometry.csv", index=False)
    measured.training.to_csv(folder / "training.csv", index=False)
    for policy, values in world.policies.items():
        path = folder / "evaluate_policy" / policy / "evaluation.json"
        path.parent.mkdir(parents=True)
        prompts = {name: list(array) for name, array in values.items()} | {"gold": None}
        path.write_text(json.dumps({"metrics": {}, "prompts": prompts}))
    for run, steps in world.runs.items():
        result, member = trajectory_of(run)
        path = folder / result / "trajectories.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        document = json.loads(path.read_text()) if path.is_file() else {"prompts": []}
        document["prompts"] += [
            {"member": member, "step": step, "weights": weights}
            | {name: list(array) for name, array in values.items()}
            for step, values in steps.items()
            for weights in ("policy", "ema")
        ]
        path.write_text(json.dumps(document))


def test_script_reads_what_the_jobs_wrote(tmp_path: Path) -> None:
    world = make_world(ema=1.3)
    write_world(world, tmp_path)
    optimum_of(2.0, 5.0).to_csv(tmp_path / "optimum.csv", index=False)
    flags: dict[str, object] = {"results": tmp_path, "tables": tmp_path, "out": tmp_path / "out"}
    flags |= {"resamples": 500, "confidence": 0.95, "seed": 0}
    compare_fronts.main([text for key, value in flags.items() for text in (f"--{key}", str(value))])
    written = pd.read_csv(tmp_path / "out/verdicts.csv").set_index("claim")
    expected = verdicts(world)
    assert written.verdict.to_dict() == expected.verdict.to_dict()
    np.testing.assert_allclose(written.estimate, expected.estimate.astype(float), rtol=1e-4)
    comparisons = pd.read_csv(tmp_path / "out/comparisons.csv")
    assert "mean gold" not in set(comparisons.measure), "there is none here"
    assert pd.read_csv(tmp_path / "out/shares.csv").share.notna().any()
    assert set(pd.read_csv(tmp_path / "out/envelopes.csv").arm) == {"ema", "sft", "ema - sft"}
