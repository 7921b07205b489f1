# WARP as a DAG: data → SFT → reward model → (M × RL → merge → LITI) × I → evaluation → figures.
# Read next: rules/common.smk (names and paths), then the rules in the order of the flow.
import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.0")
# The library is found where it is not installed, so that tools that only read the workflow (lists,
# lint) need no environment.
sys.path.insert(0, str(Path(str(workflow.current_basedir)) / "workflow"))

from warpflow.utf8 import restart_in_utf8

restart_in_utf8()


# Every job runs in this image with `snakemake --software-deployment-method apptainer`. `make image`
# builds it.
container: "docker-daemon://warpflow:latest"


configfile: "config/config.yaml"
configfile: "config/ablations.yaml"


report: "docs/captions/workflow.rst"


include: "rules/common.smk"
include: "rules/track.smk"
include: "rules/fetch.smk"
include: "rules/data.smk"
include: "rules/supervised.smk"
include: "rules/warp.smk"
include: "rules/evaluate.smk"
include: "rules/compare.smk"
include: "rules/benchmark.smk"
include: "rules/figures.smk"
include: "rules/start.smk"


# These rules write what belongs to the whole run (DVC's state, tables, figures), never on a compute
# node.
localrules:
    all,
    track,
    track_run,
    collect_evaluations,
    report,


rule all:
    default_target: True
    input:
        f"{RESULTS}/report/{MAIN}.html",
