"""Print what the run of a config takes before anything runs: jobs, hours, memory, disk.

    python scripts/plan_run.py --configfile config/paper.yaml --tflops 400

Only configs are loaded, and the user's files are not opened. Once the run has made some results,
times are its own (benchmark files in RESULTS/logs/). Before, they follow from the operations of a
job and `--tflops`; without that they are unknown. Sampling has its own rate where
`--sampling-tokens-per-second` gives it. `snakemake -n` says what would run now. Next in reading
order: warpflow.estimates.costs.jobs_of.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from warpflow.estimates.costs import (
    USES_GPU,
    Job,
    Measured,
    chat_requests,
    estimate_memory,
    is_made,
    jobs_of,
    measured,
    seconds_of,
)
from warpflow.estimates.memory import in_units
from warpflow.experiments import MAIN, Plan, make_plan, policy_settings
from warpflow.pipeline.config import check_config
from warpflow.pipeline.config_files import DEFAULTS, read_config

# The memory of train_policy depends on these settings.
MEMORY = (
    *("batch_size", "samples_per_prompt", "micro_batch_size", "anchor", "anchor_memory"),
    *("frozen_memory", "sampling_batch_size"),
    *("gradient_checkpointing", "compute_dtype", "lora_rank", "evaluate_prompts"),
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configfile", nargs="*", default=[], help="laid over config/config.yaml")
    parser.add_argument("--group", default=MAIN, help="of experiments (config/ablations.yaml)")
    parser.add_argument("--tflops", type=float, help="10^12 operations per second of one device")
    parser.add_argument(
        "--utilisation", type=float, default=0.3, help="share of them that is reached (0.3)"
    )
    parser.add_argument(
        "--sampling-tokens-per-second",
        type=positive,
        help="completion tokens of a whole batch that one device samples in a second; default: "
        "sampling goes by --tflops and --utilisation too",
    )
    arguments = parser.parse_args(argv)
    if arguments.sampling_tokens_per_second and not arguments.tflops:
        parser.error("--sampling-tokens-per-second: give --tflops too, for all but sampling")
    config = read_config((*DEFAULTS, *arguments.configfile))
    check_config(config, files=False)
    plan = make_plan(config)
    if arguments.group not in plan.groups:
        parser.error(f"--group {arguments.group}: expected one of {', '.join(plan.groups)}")
    speed = arguments.tflops and arguments.tflops * 1e12 * arguments.utilisation
    sampling_speed = arguments.sampling_tokens_per_second
    print("\n".join(describe(config, plan, arguments.group, speed, sampling_speed)))
    if speed:
        drawn = f", sampling at {sampling_speed:g} tokens/s" if sampling_speed else ""
        print(
            f"Times not measured: at {arguments.utilisation:.0%} of {arguments.tflops:g} TFLOP/s"
            f"{drawn}."
        )


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text}, expected a number above 0")
    return value


def describe(
    config: Mapping[str, Any],
    plan: Plan,
    group: str,
    speed: float | None,
    sampling_speed: float | None = None,
) -> list[str]:
    """Return the plan for readers, line by line."""
    jobs = jobs_of(config, plan, group)
    results = Path(config["results"])
    known = {job: found for job in jobs if (found := measured(results, job))}
    times = {job: seconds_of(job, known, speed, sampling_speed) for job in jobs}
    lines = [f"group {group} of {results}: {len(jobs)} jobs, {len(known)} of them measured", ""]
    lines.append(f"{'rule':20}{'jobs':>6}{'made':>6}{'hours':>10}{'to go':>10}{'host MB':>10}")
    for rule in dict.fromkeys(job.rule for job in jobs):
        lines.append(
            describe_rule(rule, [j for j in jobs if j.rule == rule], times, known, results)
        )
    lines += ["", *describe_hours(jobs, times, results), *describe_memory(config, plan, group)]
    size = max(job.checkpoint for job in jobs)
    lines.append(
        f"disk: {in_units(sum(job.checkpoint for job in jobs))} of checkpoints (DVC's cache shares "
        f"their bytes); while an RL run trains, up to {in_units(8 * size)} of states"
    )
    return lines + (describe_requests(config) if group == MAIN else [])


def describe_rule(
    rule: str,
    jobs: Sequence[Job],
    times: Mapping[Job, float | None],
    known: Mapping[Job, Measured],
    results: Path,
) -> str:
    made = [job for job in jobs if is_made(results, job)]
    to_go = [job for job in jobs if job not in made]
    largest = max((known[job].megabytes for job in jobs if job in known), default=None)
    return (
        f"{rule:20}{len(jobs):>6}{len(made):>6}{hours(jobs, times):>10}{hours(to_go, times):>10}"
        f"{'?' if largest is None else f'{largest:.0f}':>10}"
    )


def hours(jobs: Sequence[Job], times: Mapping[Job, float | None]) -> str:
    """Return the hours of all jobs one after the other, with a ? where the times of some are not
    known."""
    known = [seconds for job in jobs if (seconds := times[job]) is not None]
    total = f"{sum(known) / 3600:.{3 if sum(known) < 36000 else 0}f}"
    if len(known) == len(jobs):
        return total
    return f"{total}+?" if known else "?"


def describe_hours(
    jobs: Sequence[Job], times: Mapping[Job, float | None], results: Path
) -> list[str]:
    lines = []
    for title, chosen in (
        ("GPU-hours (core-hours without GPUs)", [j for j in jobs if j.rule in USES_GPU]),
        ("core-hours of the other jobs", [j for j in jobs if j.rule not in USES_GPU]),
    ):
        to_go = [job for job in chosen if not is_made(results, job)]
        lines.append(f"{title}: {hours(chosen, times)}, to go {hours(to_go, times)}")
    return lines


def describe_memory(config: Mapping[str, Any], plan: Plan, group: str) -> list[str]:
    """Return the memory of a device in the RL runs with the least and the most."""
    peaks: dict[tuple[Any, ...], int] = {}
    for name in plan.groups[group]:
        training = policy_settings(plan.experiments[name], 1)
        key = tuple(training[name] for name in MEMORY)
        if key not in peaks:
            peaks[key] = estimate_memory(config, training).peak
    least, most = in_units(min(peaks.values())), in_units(max(peaks.values()))
    return [f"memory of an RL run's device: {least if least == most else f'{least} to {most}'}"]


def describe_requests(config: Mapping[str, Any]) -> list[str]:
    """Return how many requests chat judges would get, which are paid for."""
    return [
        f"chat judge {judge}: {each} requests for each "
        + (f"of {prompts} prompts, {each * prompts} in all" if prompts else "stored instruction")
        for judge, (each, prompts) in chat_requests(config).items()
    ]


if __name__ == "__main__":
    main()
