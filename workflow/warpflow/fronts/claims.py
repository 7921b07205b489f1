"""What the paper claims, and whether it held in this run: six observations and two lemmas.

Each claim is a quantity that is above its reference where the claim is true. It *held* where the
whole interval is above, *did not hold* where the whole interval is below, and is *undecided*
between. The arms of a comparison are found by their settings and by the runs they share, never by
their names; where an arm is missing the claim is *not measured*, and the row says what to add.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from warpflow.fronts.bootstrap import (
    Array,
    Curve,
    Verdict,
    decide,
    envelope,
    interval,
    mean_difference,
    resample,
    second_differences,
)
from warpflow.fronts.measurements import MIN_PROMPTS, Measurements

FAR_ANGLE = 45.0  # degrees: task vectors at more are nearer to orthogonal than to collinear
COLLINEAR = 0.99  # cosine: full weights above it are collinear

Row = dict[str, object]


def verdicts_table(measured: Measurements, confidence: float) -> pd.DataFrame:
    """verdicts.csv, the paper's six observations in its order, then its lemmas."""
    claims = (anchor, slerp_over_lerp, lerp, geometry, front_over_run, iterating, lemmas)
    return pd.DataFrame([row for claim in claims for row in claim(measured, confidence)])


# -------------------------------------------------------------------------------------- rows


def row(
    measured: Measurements,
    confidence: float,
    claim: str,
    statement: str,
    compared: str,
    draws: Array,
    reference: float = 0.0,
    verdict: Verdict | None = None,
    units: str = "prompts",
) -> Row:
    """A row of verdicts.csv; the verdict is that of the interval unless it is given."""
    estimate, low, high = interval(draws, confidence)
    if measured.replicates == 1:
        compared += f"; one replicate: the interval is over {units} alone, not over runs"
    found = verdict or decide(low, high, reference)
    if units == "prompts" and not measured.has_enough_prompts:
        found = "undecided"
        compared += f"; {measured.prompts} prompts are too few for an interval ({MIN_PROMPTS})"
    return {
        "claim": claim,
        "statement": statement,
        "verdict": found,
        "estimate": estimate,
        "low": low,
        "high": high,
        "reference": reference,
        "prompts": measured.prompts if units == "prompts" else None,
        "replicates": measured.replicates,
        "compared": compared,
    }


def not_measured(claim: str, statement: str, to_add: str) -> Row:
    return {
        "claim": claim,
        "statement": statement,
        "verdict": "not measured",
        "compared": f"to measure it: {to_add}",
    }


def over(between: tuple[float, float]) -> str:
    low, high = between
    return f"over KL {low:.3g} to {high:.3g}" if high > low else f"at KL {high:.3g}"


# ----------------------------------------------------------------- 1: EMA anchor, SFT anchor


def first_runs(measured: Measurements) -> dict[tuple[str, ...], str]:
    """Every distinct RL run from SFT by member 0 → the first experiment that has it.

    An experiment of one member comes before others, since its front is that of the run alone.
    """
    names = sorted(measured.experiments, key=lambda name: measured.settings(name)["members"] != 1)
    runs: dict[tuple[str, ...], str] = {}
    for name in names:
        runs.setdefault(measured.members(name, 1)[0], name)
    return runs


def anchor(measured: Measurements, confidence: float) -> Iterator[Row]:
    """The EMA anchor against the SFT anchor, M = 1: at the same β, and the best of all β."""
    statement = "the EMA anchor gives a better front than the SFT anchor"
    names = first_runs(measured)
    own = measured.members(measured.base, 1)[0]
    # Of equal length: a run with the compute of all of WARP is another comparison.
    alike = [run for run in names if measured.last_step(run) == measured.last_step(own)]
    settings = {run: measured.settings(names[run]) for run in alike}
    of_ema, of_sft = (
        [run for run in alike if settings[run]["anchor"] == anchor] for anchor in ("ema", "sft")
    )
    if not of_ema:
        yield not_measured("1", statement, "an experiment {train_policy: {anchor: ema}}")
        return
    ema = own if own in of_ema else of_ema[0]
    beta = settings[ema]["beta"]
    for claim, against, words in (
        ("1", [run for run in of_sft if settings[run]["beta"] == beta], "same β"),
        ("1 best β", of_sft, "best of its β at each KL"),
    ):
        words = f"{statement} ({words})"
        curves, kind = run_curves(measured, [ema, *against], names)
        found = mean_difference(curves[:1], [envelope(curves[1:])]) if against else None
        if found is None:
            arm = f"{{iterations: 1, members: 1, train_policy: {{anchor: sft, beta: {beta:g}}}}}"
            yield not_measured(claim, words, f"an experiment {arm} whose KLs overlap with EMA's")
            continue
        others = ", ".join(f"{names[run]} (β {settings[run]['beta']:g})" for run in against)
        compared = f"reward of {names[ema]} (β {beta:g}) − {others}, {kind}, {over(found[1])}"
        yield row(measured, confidence, claim, words, compared, found[0])


def run_curves(
    measured: Measurements, runs: Sequence[tuple[str, ...]], names: dict[tuple[str, ...], str]
) -> tuple[list[Curve], str]:
    """The LITI fronts of single runs where all have one, else their trajectories."""
    fronts = [
        measured.front(names[run], 1) if measured.settings(names[run])["members"] == 1 else None
        for run in runs
    ]
    whole = [front for front in fronts if front is not None and front.kl.shape[1] > 2]
    if len(whole) == len(runs):
        return whole, "LITI fronts of one run each"
    return [measured.trajectory(run) for run in runs], "trajectories of one run each"


# ------------------------------------------------------------------------ 2 and 3: the merge


def merges(measured: Measurements, method: str) -> Iterator[str]:
    """Experiments that merge so, most members first, and those of equal weights before others."""
    rows = [measured.settings(name) for name in measured.experiments]
    chosen = [s for s in rows if s["merge_method"] == method and s["members"] > 1]
    chosen.sort(key=lambda s: (-s["members"], not pd.isna(s["merge_weight"])))
    for settings in chosen:
        if measured.point(settings["experiment"], 1, 1.0):
            yield str(settings["experiment"])


def slerp_over_lerp(measured: Measurements, confidence: float) -> Iterator[Row]:
    """Two merges of the very same members, at η = 1 of iteration 1."""
    statement = "SLERP has more reward than LERP of the same policies"
    for slerp in merges(measured, "slerp"):
        for lerp in merges(measured, "lerp"):
            weights = [measured.settings(name)["merge_weight"] for name in (slerp, lerp)]
            same_weight = all(map(pd.isna, weights)) or weights[0] == weights[1]
            if not same_weight or measured.members(slerp, 1) != measured.members(lerp, 1):
                continue
            points = [measured.point(name, 1, 1.0) for name in (slerp, lerp)]
            for claim, words, quantity in (
                ("2", statement, "reward"),
                ("2 KL", "… and slightly more KL", "kl_exact"),
            ):
                a, b = (measured.mean(point or (), quantity) for point in points)
                compared = f"{quantity} of {slerp} − {lerp}, merges of iteration 1"
                yield row(measured, confidence, claim, words, compared, a - b)
            return
    to_add = "an experiment {iterations: 1, merge_policies: {method: lerp}} beside one of slerp"
    yield not_measured("2", statement, to_add)


def lerp(measured: Measurements, confidence: float) -> Iterator[Row]:
    """LERP against the mean of the policies it merges."""
    statement = "LERP has less KL than its members have on average"
    name = next(merges(measured, "lerp"), None)
    if name is None:
        to_add = (
            "an experiment {iterations: 1, merge_policies: {method: lerp}} of members 2 or more"
        )
        yield not_measured("3", statement, to_add)
        return
    point, members = measured.point(name, 1, 1.0) or (), measured.members(name, 1)
    kl, reward = (
        measured.mean(point, quantity) - np.mean([measured.mean(m, quantity) for m in members], 0)
        for quantity in ("kl_exact", "reward")
    )
    where = f"{name} and its {len(members)} members, iteration 1"
    yield row(measured, confidence, "3", statement, f"mean KL of the members − KL: {where}", -kl)
    words = "… and the reward changes by (no claim)"
    compared = f"reward − mean reward of the members: {where}"
    yield row(measured, confidence, "3 reward", words, compared, reward, verdict="reported")


# ------------------------------------------------------------------------------ 4: geometry


def geometry(measured: Measurements, confidence: float) -> Iterator[Row]:
    """Angles between task vectors, cosines of full weights, over the layers of the base."""
    far = f"task vectors of the runs are far from collinear (angle above {FAR_ANGLE:g}°)"
    near = f"their full weights are collinear (cosine above {COLLINEAR:g})"
    table = measured.geometry
    table = table[table["experiment"] == measured.base].dropna(subset="cosine_task_vectors")
    if table.empty:
        for claim, words in (("4", far), ("4 weights", near)):
            yield not_measured(claim, words, "members: 2 or more in the base experiment")
        return
    degrees = np.degrees(np.arccos(table["cosine_task_vectors"].clip(-1, 1)))
    for claim, words, column, reference in (
        ("4", far, degrees, FAR_ANGLE),
        ("4 weights", near, table["cosine_weights"], COLLINEAR),
    ):
        by_layer = table.assign(value=column).pivot_table(
            index="replicate", columns="group", values="value", aggfunc="mean"
        )
        layers = by_layer.to_numpy(float)
        weights = resample(layers.shape[1], measured.replicates, len(measured.resamples.prompts), 0)
        compared = f"mean over {layers.shape[1]} layers and all pairs of members of {measured.base}"
        draws = weights.mean(layers)
        yield row(measured, confidence, claim, words, compared, draws, reference, units="layers")


# ------------------------------------------------------------------- 5 and 6: fronts and runs


def front_over_run(measured: Measurements, confidence: float) -> Iterator[Row]:
    """Each iteration's LITI front against its own RL runs; and that of a single run."""
    statement = "the LITI front lies above the trajectory of RL"
    arms = [(measured.base, i) for i in measured.iterations(measured.base)]
    arms += [(name, 1) for name in singles_of_base(measured)]
    for name, i in arms:
        alone = name != measured.base
        claim = "5 one run" if alone else f"5 iteration {i}"
        words = statement + (" of the one run that it interpolates" if alone else "")
        front = measured.front(name, i)
        if front is None or front.kl.shape[1] < 3:
            yield not_measured(claim, words, f"several η from 0 to 1 in the etas of {name}")
            continue
        runs = [measured.trajectory(run) for run in measured.members(name, i)]
        found = mean_difference([front], runs)
        if found is None:
            yield not_measured(claim, words, f"a front of {name} that has its runs' KL")
            continue
        compared = (
            f"reward of the front − mean of the {len(runs)} trajectories of {name}, "
            f"iteration {i}, {over(found[1])}"
        )
        yield row(measured, confidence, claim, words, compared, found[0])


def singles_of_base(measured: Measurements) -> list[str]:
    """The first experiment of one member that is the base's own first run."""
    own = measured.members(measured.base, 1)[0]
    return [
        name
        for name in measured.experiments
        if name != measured.base and measured.members(name, 1) == [own]
    ][:1]


def iterating(measured: Measurements, confidence: float) -> Iterator[Row]:
    """The front of each iteration of the longest experiment against the one before."""
    statement = "iterating moves the front up"
    # The first of them, so the base experiment where none is longer.
    name = max(measured.experiments, key=lambda name: len(measured.iterations(name)))
    fronts = [measured.front(name, i) for i in measured.iterations(name)]
    curves = [front for front in fronts if front is not None and front.kl.shape[1] > 2]
    if len(curves) < len(fronts) or len(fronts) < 2:
        yield not_measured("6", statement, "iterations: 2 or more, and several etas from 0 to 1")
        return
    for i in range(1, len(curves)):
        found = mean_difference([curves[i]], [curves[i - 1]])
        claim, words = f"6 iteration {i + 1}", f"{statement}: iteration {i + 1} over {i}"
        if found is None:
            yield not_measured(claim, words, "fronts of KLs in common")
            continue
        compared = f"reward of {name}, iteration {i + 1} − {i}, {over(found[1])}"
        yield row(measured, confidence, claim, words, compared, found[0])
    yield from diminishing(measured, confidence, name, curves)


def diminishing(
    measured: Measurements, confidence: float, name: str, curves: Sequence[Curve]
) -> Iterator[Row]:
    """The last gain against the first one, over the KLs that all four fronts have."""
    claim, words = "6 diminishing", "… with diminishing returns: the last gain is below the first"
    if len(curves) < 3:
        yield not_measured(claim, words, "iterations: 3 or more")
        return
    # gain of 2 over 1, minus gain of the last over the one before
    found = mean_difference([curves[1], curves[-2]], [curves[0], curves[-1]])
    if found is None:
        yield not_measured(claim, words, "fronts of KLs in common")
        return
    n = len(curves)
    compared = f"gain of {name}, iteration 2 over 1 − {n} over {n - 1}, {over(found[1])}"
    yield row(measured, confidence, claim, words, compared, 2 * found[0])


# --------------------------------------------------------------------------------- the lemmas


def lemmas(measured: Measurements, confidence: float) -> Iterator[Row]:
    """Second differences along the base's fronts: mean over triples of neighbouring η."""
    for claim, words, quantity, sign in (
        ("lemma KL", "KL is convex in η", "kl_exact", 1.0),
        ("lemma reward", "the reward is concave in η", "reward", -1.0),
    ):
        for i in measured.iterations(measured.base):
            rows = measured.front_rows(measured.base, i)
            etas = np.sort(rows["eta"].unique().astype(float))
            front = measured.front(measured.base, i)
            name = f"{claim}, iteration {i}"
            if front is None or len(etas) < 3:
                yield not_measured(name, words, "three or more etas from 0 to 1")
                continue
            values = front.kl if quantity == "kl_exact" else front.value
            curvature = sign * second_differences(etas, values)
            yield curvature_row(measured, confidence, name, words, curvature, etas)


def curvature_row(
    measured: Measurements,
    confidence: float,
    claim: str,
    words: str,
    curvature: Array,
    etas: Array,
) -> Row:
    """Held where the mean is above 0 and no triple is below it beyond noise; a single triple
    below beyond noise (at the level divided by their number) is a counterexample."""
    count = curvature.shape[1]
    level = 1 - (1 - confidence) / count
    violated = [interval(curvature[:, k], level)[2] < 0 for k in range(count)]
    worst = int(np.argmin(curvature[0]))
    _, low, high = interval(curvature[:, worst], level)
    mean = curvature.mean(1)
    verdict = "did not hold" if any(violated) else decide(*interval(mean, confidence)[1:])
    compared = (
        f"mean second derivative along {measured.base}, towards the claim; {sum(violated)} of "
        f"{count} triples violate it beyond noise; worst at η = {etas[worst + 1]:g}: "
        f"{curvature[0, worst]:.3g} ({low:.3g} to {high:.3g})"
    )
    return row(measured, confidence, claim, words, compared, mean, verdict=verdict)
