"""What the paper claims, and whether it held in this run: six observations and two lemmas.

Each claim is a quantity that is above its reference where the claim is true. It *held* where the
whole interval is above, *did not hold* where the whole interval is below, and is *undecided*
between. With one replicate the verdict is *one run*, whatever the interval is, because another run
of the same settings may give another result. The arms of a comparison are found by their settings
and by the runs they share, never by their names; where an arm is missing the claim is *not
measured*, and the row says what to add.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd

from warpflow.fronts.bootstrap import (
    Array,
    Verdict,
    decide,
    interval,
    means_over_prompts,
    resample,
)
from warpflow.fronts.curves import Curve, mean_difference, second_differences
from warpflow.fronts.differences import singles_of_base
from warpflow.fronts.envelopes import Arm, anchor_arms, envelope_difference
from warpflow.fronts.measurements import MIN_PROMPTS, Measurements

FAR_ANGLE = 45.0  # degrees; beyond it task vectors are nearer to orthogonal than to collinear
COLLINEAR = 0.99  # full weights with a larger cosine are collinear

Row = dict[str, object]


def verdicts_table(measured: Measurements, confidence: float) -> pd.DataFrame:
    """Return verdicts.csv: the paper's six observations in its order, then its lemmas."""
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
    back: Callable[[float], float] = float,
) -> Row:
    """Return a row of verdicts.csv. The verdict is that of the interval unless it is given.

    Args:
        draws: [B + 1, R] over prompts. back: maps their unit to that of the table (exp for a log).
    """
    estimate, low, high = map(back, measured.interval(draws, confidence))
    found = verdict or decide(low, high, reference)
    if not measured.has_enough_prompts:
        found = "undecided"
        compared += f"; {measured.prompts} prompts are too few for an interval ({MIN_PROMPTS})"
    elif measured.replicates == 1 and found != "reported":
        found = "one run"
    return {
        "claim": claim,
        "statement": statement,
        "verdict": found,
        "estimate": estimate,
        "low": low,
        "high": high,
        "reference": reference,
        "prompts": measured.prompts,
        "replicates": measured.replicates,
        "interval_over": measured.interval_over,
        "compared": compared,
    }


def not_measured(claim: str, statement: str, to_add: str) -> Row:
    return {
        "claim": claim,
        "statement": statement,
        "verdict": "not measured",
        "compared": f"to measure it: {to_add}",
    }


# ----------------------------------------------------------------- 1: EMA anchor, SFT anchor


def anchor(measured: Measurements, confidence: float) -> Iterator[Row]:
    """Compare the EMA anchor with the SFT anchor, M = 1, at the same β and by envelopes over β.

    Runs that share other settings than the base's are compared too.
    """
    arms, kind = anchor_arms(measured)
    for changes in sorted({"", *arms}):
        found = arms.get(changes, {})
        if not changes or len(found) == 2:
            yield from anchor_rows(measured, confidence, changes, found, kind)


def anchor_rows(
    measured: Measurements, confidence: float, changes: str, arms: dict[str, Arm], kind: str
) -> Iterator[Row]:
    """Yield the two rows for runs that share all settings but anchor and β."""
    statement = "the EMA anchor gives a better front than the SFT anchor"
    kind += f", {changes}" if changes else ""
    same, envelopes = (
        f"{name}, {changes}" if changes else name for name in ("1 same β", "1 envelopes")
    )
    words = f"{statement} (same β, which is not the same penalty)"
    over_beta = f"{statement} (envelopes over β{at_one_beta(arms)})"
    if len(arms) < 2:
        own = float(measured.settings(measured.base)["beta"])
        missing = next(name for name in ("ema", "sft") if name not in arms)
        arm = f"{{iterations: 1, members: 1, train_policy: {{anchor: {missing}, beta: {own:g}}}}}"
        for claim, text in ((same, words), (envelopes, over_beta)):
            yield not_measured(claim, text, f"an experiment {arm}")
        return
    ema, sft = arms["ema"], arms["sft"]
    yield same_beta(measured, confidence, same, words, (ema, sft), kind)
    found = envelope_difference(ema, sft)
    if found is None:
        yield not_measured(envelopes, over_beta, "runs whose KLs overlap")
        return
    of_betas = " − ".join(
        f"{arm.name} (β {', '.join(f'{beta:g}' for beta in arm.betas)})" for arm in (ema, sft)
    )
    chosen = "other replicates on the other half of the prompts"
    if measured.replicates == 1:
        chosen = "the other half of the prompts"
    compared = f"best reward of {of_betas}, β chosen at each KL by {chosen}; {kind}, {found[1]}"
    yield row(measured, confidence, envelopes, over_beta, compared, found[0])


def at_one_beta(arms: dict[str, Arm]) -> str:
    """Return words for the statement that say where an arm has only one β."""
    lonely = [f"{arm.name} at one β" for arm in arms.values() if len(arm.betas) == 1]
    return f"; {' and '.join(lonely)}, unlike penalties" if lonely else ""


def same_beta(
    measured: Measurements,
    confidence: float,
    claim: str,
    words: str,
    arms: tuple[Arm, Arm],
    kind: str,
) -> Row:
    """Return the row of both anchors' runs at one β, with the penalty that each of them paid."""
    both = [beta for beta in arms[0].betas if beta in arms[1].betas]
    own = float(measured.settings(measured.base)["beta"])
    if not both:
        return not_measured(claim, words, f"runs of both anchors with the same β, such as {own:g}")
    beta = own if own in both else both[0]
    places = [list(arm.betas).index(beta) for arm in arms]
    a, b = (arm.curves[place] for arm, place in zip(arms, places, strict=True))
    found = mean_difference([a], [b])
    if found is None:
        return not_measured(claim, words, "runs whose KLs overlap")
    names = [arm.experiments[place] for arm, place in zip(arms, places, strict=True)]
    paid = [f"{beta * measured.kl_to_anchor(name):.2g} in {name}" for name in names]
    compared = (
        f"reward of {names[0]} − {names[1]}, β {beta:g}, {kind}, {found[1]}; penalty that a run "
        f"pays, β · KL to its anchor: {' and '.join(paid)}"
    )
    return row(measured, confidence, claim, words, compared, found[0])


# ------------------------------------------------------------------------ 2 and 3: the merge


def merges(measured: Measurements, method: str) -> Iterator[str]:
    """Yield the experiments that merge by this method. Those with most members come first, and
    equal weights before others."""
    rows = [measured.settings(name) for name in measured.experiments]
    chosen = [s for s in rows if s["merge_method"] == method and s["members"] > 1]
    chosen.sort(key=lambda s: (-s["members"], not pd.isna(s["merge_weight"])))
    for settings in chosen:
        if measured.point(settings["experiment"], 1, 1.0):
            yield str(settings["experiment"])


def slerp_over_lerp(measured: Measurements, confidence: float) -> Iterator[Row]:
    """Compare two merges of the very same members, at η = 1 of iteration 1."""
    statement = "SLERP has more reward than LERP of the same policies"
    for slerp in merges(measured, "slerp"):
        for lerp in merges(measured, "lerp"):
            weights = [measured.settings(name)["merge_weight"] for name in (slerp, lerp)]
            same_weight = all(map(pd.isna, weights)) or weights[0] == weights[1]
            if not same_weight or measured.members(slerp, 1) != measured.members(lerp, 1):
                continue
            points = [measured.point(name, 1, 1.0) for name in (slerp, lerp)]
            reward, kl = (
                [measured.mean(point or (), quantity) for point in points]
                for quantity in ("reward", "kl_exact")
            )
            compared = f"reward of {slerp} − {lerp}, merges of iteration 1"
            yield row(measured, confidence, "2", statement, compared, reward[0] - reward[1])
            yield kl_ratio(measured, confidence, f"{slerp} / {lerp}", *kl)
            return
    to_add = "an experiment {iterations: 1, merge_policies: {method: lerp}} beside one of slerp"
    yield not_measured("2", statement, to_add)


def kl_ratio(measured: Measurements, confidence: float, names: str, a: Array, b: Array) -> Row:
    """Return the row that says whether SLERP has more KL, by the geometric mean ratio over
    replicates."""
    with np.errstate(divide="ignore", invalid="ignore"):  # without any KL there is no interval
        draws = np.log(a) - np.log(b)
    estimate, low, high = map(np.exp, measured.interval(draws, confidence))
    words = (
        f"… and more KL (ratio {estimate:.3g} [{low:.3g}, {high:.3g}]; the paper: slightly more)"
    )
    compared = f"KL of {names}, merges of iteration 1"
    return row(measured, confidence, "2 KL", words, compared, draws, 1.0, back=math.exp)


def lerp(measured: Measurements, confidence: float) -> Iterator[Row]:
    """Compare LERP with the mean of the policies that it merges."""
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
    """Yield the rows of angles between task vectors and cosines of full weights, over the base's
    layers."""
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
        layers = by_layer.to_numpy(float)  # [R, layers]
        yield layers_row(measured, confidence, claim, words, layers, reference)


def layers_row(
    measured: Measurements,
    confidence: float,
    claim: str,
    words: str,
    layers: Array,
    reference: float,
) -> Row:
    """Return a row with an interval over layers in place of prompts, from values [R, layers]."""
    count = layers.shape[1]
    weights = resample(count, len(measured.weights) - 1, 0)
    estimate, low, high = interval(means_over_prompts(weights, layers), confidence, count)
    one_run = measured.replicates == 1
    return {
        "claim": claim,
        "statement": words,
        "verdict": "one run" if one_run else decide(low, high, reference),
        "estimate": estimate,
        "low": low,
        "high": high,
        "reference": reference,
        "replicates": measured.replicates,
        "interval_over": measured.interval_over.replace("prompts", "layers"),
        "compared": f"mean over {count} layers and all pairs of members of {measured.base}",
    }


# ------------------------------------------------------------------- 5 and 6: fronts and runs


def front_over_run(measured: Measurements, confidence: float) -> Iterator[Row]:
    """Compare each iteration's LITI front with its own RL runs, and the front of a single run with
    it."""
    statement = "the LITI front lies above the trajectory of RL"
    arms = [(measured.base, i) for i in measured.iterations(measured.base)]
    arms += [(name, 1) for name in singles_of_base(measured)]
    for name, i in arms:
        alone = name != measured.base
        claim = "5 one run" if alone else f"5 iteration {i}"
        words = statement + (" of the one run that it interpolates" if alone else "")
        front = measured.front(name, i)
        if front is None or front.points < 3:
            yield not_measured(claim, words, f"several η from 0 to 1 in the etas of {name}")
            continue
        runs = [measured.trajectory(run) for run in measured.members(name, i)]
        found = mean_difference([front], runs)
        if found is None:
            yield not_measured(claim, words, f"a front of {name} that has its runs' KL")
            continue
        compared = (
            f"reward of the front − mean of the {len(runs)} trajectories of {name}, "
            f"iteration {i}, {found[1]}"
        )
        yield row(measured, confidence, claim, words, compared, found[0])


def iterating(measured: Measurements, confidence: float) -> Iterator[Row]:
    """Compare the front of each iteration of the longest experiment with the one before."""
    statement = "iterating moves the front up"
    # It is the first of the longest, so the base experiment where none is longer.
    name = max(measured.experiments, key=lambda name: len(measured.iterations(name)))
    fronts = [measured.front(name, i) for i in measured.iterations(name)]
    curves = [front for front in fronts if front is not None and front.points > 2]
    if len(curves) < len(fronts) or len(fronts) < 2:
        yield not_measured("6", statement, "iterations: 2 or more, and several etas from 0 to 1")
        return
    for i in range(1, len(curves)):
        found = mean_difference([curves[i]], [curves[i - 1]])
        claim, words = f"6 iteration {i + 1}", f"{statement}: iteration {i + 1} over {i}"
        if found is None:
            yield not_measured(claim, words, "fronts of KLs in common")
            continue
        compared = f"reward of {name}, iteration {i + 1} − {i}, {found[1]}"
        yield row(measured, confidence, claim, words, compared, found[0])
    yield from diminishing(measured, confidence, name, curves)


def diminishing(
    measured: Measurements, confidence: float, name: str, curves: Sequence[Curve]
) -> Iterator[Row]:
    """Compare the last gain with the first one, over the KLs that all four fronts have."""
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
    compared = f"gain of {name}, iteration 2 over 1 − {n} over {n - 1}, {found[1]}"
    yield row(measured, confidence, claim, words, compared, 2 * found[0])


# --------------------------------------------------------------------------------- the lemmas


def lemmas(measured: Measurements, confidence: float) -> Iterator[Row]:
    """Yield the rows of second differences along the base's fronts, averaged over triples of
    neighbouring η."""
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
    """Return the row of a lemma about second derivatives [B + 1, R, triples]. It held where the
    mean is above 0 and no triple is below 0 beyond noise. A single triple below 0 beyond noise (at
    the level divided by their number) is a counterexample."""
    count = curvature.shape[-1]
    level = 1 - (1 - confidence) / count
    found = [measured.interval(curvature[..., k], level) for k in range(count)]
    violated = [high < 0 for _, _, high in found]
    worst = min(range(count), key=lambda k: found[k][0])
    estimate, low, high = found[worst]
    mean = curvature.mean(-1)
    verdict: Verdict | None = "did not hold" if any(violated) else None
    compared = (
        f"mean second derivative along {measured.base}, towards the claim; {sum(violated)} of "
        f"{count} triples violate it beyond noise; worst at η = {etas[worst + 1]:g}: "
        f"{estimate:.3g} ({low:.3g} to {high:.3g})"
    )
    return row(measured, confidence, claim, words, compared, mean, verdict=verdict)
