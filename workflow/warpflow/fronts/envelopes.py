"""Envelopes over β: at each KL the best of an arm's β, chosen and evaluated on different data.

The same β is not the same penalty under two anchors, so arms are compared by the best that each can
do at a KL. The largest of several noisy values is too large on average, and more so for an arm with
more β. So the β is chosen on one half of the prompts, by the mean of the other replicates, and
evaluated in this replicate on the other half. Then the halves change places, and the mean of both
counts. With one replicate only the half of the prompts differs, and the chosen run may be a lucky
one. A choice on noisy data is sometimes not the best one, which makes an envelope a little too low.
All draws of the bootstrap use the choices of the sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from warpflow.fronts.bootstrap import Array
from warpflow.fronts.curves import GRID, Compared, Curve, mean_over
from warpflow.fronts.measurements import Measurements

ROWS = 25  # the number of KLs in envelopes.csv for each arm


@dataclass(frozen=True)
class Arm:
    """The runs of one anchor that differ only in β.

    Attributes:
        name: the anchor. betas: its β, rising. experiments: for each β an experiment that has its
            run.
        curves: the curve of each β. halves: the same curves on either half of the prompts.
    """

    name: str
    betas: Sequence[float]
    experiments: Sequence[str]
    curves: Sequence[Curve]
    halves: tuple[Sequence[Curve], Sequence[Curve]]

    def reach(self) -> tuple[Array, Array]:
        """Return the smallest and largest KL, [β] each, that a β has in all replicates, on both
        halves."""
        starts, ends = (
            np.array([[getattr(curve, end)() for curve in half] for half in self.halves])
            for end in ("starts", "ends")
        )
        return starts.max((0, 2)), ends.min((0, 2))

    def is_reached(self, kl: Array) -> NDArray[np.bool_]:
        """Return whether a β has these KLs [k], as [β, k]."""
        starts, ends = self.reach()
        return (starts[:, None] <= kl) & (kl <= ends[:, None])


def choose(arm: Arm, kl: Array) -> NDArray[np.int64]:
    """Return the index [2, R, k] of the β with which half h of the prompts of replicate r is
    evaluated at KLs [k]. At least one β reaches each of these KLs."""
    is_reached = arm.is_reached(kl)
    chosen = []
    for other in (arm.halves[1], arm.halves[0]):
        values = np.stack([curve.at(kl)[0] for curve in other])  # [β, R, k]
        count = values.shape[1]
        if count > 1:  # the mean of the other replicates
            values = (values.sum(1, keepdims=True) - values) / (count - 1)
        chosen.append(np.where(is_reached[:, None], values, -np.inf).argmax(0))
    return np.stack(chosen)


def envelope(arm: Arm, kl: Array) -> Array:
    """Return draws [B + 1, R, k] of the envelope at KLs [k]."""
    parts = []
    for half, chosen in zip(arm.halves, choose(arm, kl), strict=True):
        values = np.stack([curve.at(kl) for curve in half])  # [β, B + 1, R, k]
        parts.append(np.take_along_axis(values, chosen[None, None], 0)[0])
    return (parts[0] + parts[1]) / 2


def common_kls(first: Arm, second: Arm) -> Compared | None:
    """Return the KLs from the smallest to the largest that some β of each arm has in all
    replicates."""
    reaches = [arm.reach() for arm in (first, second)]
    low = max(float(starts.min()) for starts, _ in reaches)
    high = min(float(ends.max()) for _, ends in reaches)
    return Compared(low, high) if low < high else None


def envelope_difference(first: Arm, second: Arm) -> tuple[Array, Compared] | None:
    """Return the first envelope minus the second, [B + 1, R], averaged over the KLs that both have,
    and their range. Return None where there is none. KLs between that no β of an arm reaches are
    left out."""
    between = common_kls(first, second)
    if between is None:
        return None
    kl = covered(np.linspace(between.low, between.high, GRID), first, second)
    return mean_over(envelope(first, kl) - envelope(second, kl)), between


def covered(kl: Array, *arms: Arm) -> Array:
    """Return the KLs that each arm reaches with some β."""
    return kl[np.all([arm.is_reached(kl).any(0) for arm in arms], axis=0)]


# ------------------------------------------------------------------------------ who is compared


def first_runs(measured: Measurements) -> dict[tuple[str, ...], str]:
    """Map every distinct RL run of member 0 from SFT to the first experiment that has it.

    An experiment of one member comes before others, since its front is that of the run alone.
    """
    names = sorted(measured.experiments, key=lambda name: measured.settings(name)["members"] != 1)
    runs: dict[tuple[str, ...], str] = {}
    for name in names:
        runs.setdefault(measured.members(name, 1)[0], name)
    return runs


def anchor_arms(measured: Measurements) -> tuple[dict[str, dict[str, Arm]], str]:
    """Map changes of train_policy (`training_changes`, empty for the base's settings) to anchors
    (ema or sft), and these to their runs by β. Also return what their curves are.

    Curves are LITI fronts where all these runs have one, else trajectories.
    """
    runs = {
        run: (name, measured.settings(name))
        for run, name in first_runs(measured).items()
        if measured.settings(name)["anchor"] in ("ema", "sft")
    }
    have_fronts = all(has_front(measured, name) for name, _ in runs.values())
    found: dict[str, dict[str, dict[float, tuple[str, tuple[str, ...]]]]] = {}
    for run, (name, settings) in runs.items():
        changes = "" if pd.isna(settings["training_changes"]) else settings["training_changes"]
        by_beta = found.setdefault(changes, {}).setdefault(settings["anchor"], {})
        by_beta.setdefault(float(settings["beta"]), (name, run))
    arms = {
        changes: {
            anchor: make_arm(measured, anchor, by_beta, have_fronts)
            for anchor, by_beta in by_anchor.items()
        }
        for changes, by_anchor in found.items()
    }
    return arms, ("LITI fronts" if have_fronts else "trajectories") + " of one run each"


def has_front(measured: Measurements, name: str) -> bool:
    """Whether an experiment has the front of its first run alone."""
    front = measured.front(name, 1)
    return measured.settings(name)["members"] == 1 and front is not None and front.points > 2


def make_arm(
    measured: Measurements,
    anchor: str,
    by_beta: Mapping[float, tuple[str, tuple[str, ...]]],
    have_fronts: bool,
) -> Arm:
    """Return an arm from a mapping of β to (experiment, run)."""
    betas = sorted(by_beta)

    def curves(on: Measurements) -> list[Curve]:
        found = [by_beta[beta] for beta in betas]
        if not have_fronts:
            return [on.trajectory(run) for _, run in found]
        fronts = [on.front(name, 1) for name, _ in found]
        return [front for front in fronts if front is not None]

    names = [by_beta[beta][0] for beta in betas]
    halves = (curves(measured.on_half(0)), curves(measured.on_half(1)))
    return Arm(anchor, betas, names, curves(measured), halves)


# ------------------------------------------------------------------------------------ the table


def envelopes_table(measured: Measurements, confidence: float) -> pd.DataFrame:
    """Return envelopes.csv: the envelope over β of each anchor, and the difference where there are
    two.

    `training_changes` are the runs' changes from the base's settings, empty for none. `arm` is ema,
    sft or ema - sft. `kl` is evenly spaced in √KL as far as the arm reaches. `reward` comes with
    `low` and `high`. `betas` are those of the arm. `beta` is the one that was chosen most often,
    and `agreement` says how often, among 2 halves of the prompts × R replicates. `curves` says
    which curves the envelope is over.
    """
    by_changes, kind = anchor_arms(measured)
    rows: list[dict[str, object]] = []
    for changes, arms in by_changes.items():
        shown: list[tuple[Arm, ...]] = [(arm,) for arm in arms.values()]
        if len(arms) == 2:
            shown.append((arms["ema"], arms["sft"]))
        for parts in shown:
            for row in envelope_rows(measured, confidence, parts):
                rows.append({"training_changes": changes} | row | {"curves": kind})
    columns = ["training_changes", "arm", "kl", "reward", "low", "high", "beta", "agreement"]
    columns += ["betas", "interval_over", "curves"]
    return pd.DataFrame(rows, columns=columns)


def envelope_rows(
    measured: Measurements, confidence: float, arms: tuple[Arm, ...]
) -> Iterator[dict[str, object]]:
    """Yield the rows of one arm, or of the first minus the second."""
    reaches = [arm.reach() for arm in arms]
    low = max(float(starts.min()) for starts, _ in reaches)
    high = min(float(ends.max()) for _, ends in reaches)
    if low > high:
        return
    kl = covered(np.linspace(max(low, 0.0) ** 0.5, high**0.5, ROWS) ** 2, *arms)
    draws = envelope(arms[0], kl)
    if len(arms) == 2:
        draws = draws - envelope(arms[1], kl)
    chosen = choose(arms[0], kl)
    for k, value in enumerate(kl):
        reward, least, most = measured.interval(draws[..., k], confidence)
        row: dict[str, object] = {"arm": " - ".join(arm.name for arm in arms), "kl": value}
        row |= {"reward": reward, "low": least, "high": most}
        if len(arms) == 1:
            votes = np.bincount(chosen[..., k].ravel(), minlength=len(arms[0].betas))
            row |= {"beta": arms[0].betas[int(votes.argmax())]}
            row |= {"agreement": votes.max() / votes.sum()}
            row |= {"betas": " ".join(f"{beta:g}" for beta in arms[0].betas)}
        yield row | {"interval_over": measured.interval_over}
