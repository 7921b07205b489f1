# The commands of the project; CI calls these very ones.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# The tools of the site need nothing of the project, so they have an environment of their own.
DOCS_VENV ?= .venv-docs
# The tools find one another (snakemake calls python and dvc) as in an activated environment.
export PATH := $(abspath $(BIN)):$(PATH)
# A container may have no home for its user, and Snakemake ends at once without one.
ifeq ($(shell [ -d "$$HOME" ] && { [ "$$HOME" != / ] || [ -w / ]; } && echo yes),)
export HOME := $(shell mktemp -d)
endif

# These tests kill jobs and nodes at given moments, so nothing runs beside them.
CLUSTER_TESTS = tests/dag/test_slurm_cluster.py

.PHONY: run smollm2 plan status why check smoke test trl trackers vllm test-vllm lint docs config-docs clean lock image
run: $(VENV)/installed  ## the default run: everything, from data to report
	snakemake --cores all

smollm2: $(VENV)/installed  ## the same on a real language model of 135 M weights, two hours (docs/smollm2.md)
	snakemake --cores all --configfile config/smollm2.yaml

plan: $(VENV)/installed  ## what a run takes: make plan [CONFIG=config/paper.yaml] [TFLOPS=400] [GROUP=main]
	python scripts/plan_run.py --configfile $(CONFIG) $(addprefix --tflops ,$(TFLOPS)) $(addprefix --group ,$(GROUP))

status: $(VENV)/installed  ## where a run is, also while it goes on: make status [CONFIG=config/mine.yaml]
	python scripts/show_status.py $(addprefix --configfile ,$(CONFIG)) $(addprefix --group ,$(GROUP))

why: $(VENV)/installed  ## why jobs are due, and what they cost: make why [CONFIG=config/mine.yaml]
	python scripts/explain_rerun.py $(addprefix --configfile ,$(CONFIG))

check: lint  ## before each commit: linters, and the unit tests that take no model of any size
	pytest -m "not workflow and not slow" -n 2 --dist loadfile

smoke: $(VENV)/installed  ## the whole DAG on the smallest settings, in results/smoke
	snakemake --cores all --configfile config/smoke.yaml

test: lint  ## linters, then all tests; two files at a time, but for those of a cluster
	pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore=$(CLUSTER_TESTS)
	pytest $(CLUSTER_TESTS)

trl: $(VENV)/installed  ## TRL in an environment of its own: the test of our RL step against TRL's then runs too
	python benchmarks/trl_environment.py

trackers: $(VENV)/installed  ## the tests of trackers with mlflow and trackio too, in an environment of its own
	$(PYTHON) -m venv .venv-trackers
	for site in .venv-trackers/lib/python*/site-packages; do \
	  $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $$site/base.pth; done
	.venv-trackers/bin/pip install --quiet --disable-pip-version-check mlflow-skinny==3.17.2 trackio==0.43.0
	PYTHONPATH=workflow .venv-trackers/bin/python -m pytest tests/training/test_trackers.py

vllm: $(VENV)/installed  ## vLLM in an environment of its own, for train_policy.sampler: vllm (docs/vllm.md)
	python benchmarks/vllm_environment.py

test-vllm: vllm  ## the tests of that sampler, in its environment; `make test` has them not
	.venv-vllm/bin/python -m pytest tests/lm/test_vllm_engine.py -rP

lint: $(VENV)/installed
	ruff check .
	ruff format --check .
	mypy
	snakefmt --check Snakefile rules
	python scripts/write_config_docs.py --check

docs: $(DOCS_VENV)/installed  ## the documentation as a site, in site/index.html; a dead link is an error
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict --quiet

config-docs: $(VENV)/installed  ## config.yaml, schema.yaml and README.md of config/ from workflow/warpflow/settings
	python scripts/write_config_docs.py

lock: $(VENV)/installed  ## requirements.lock from what is installed
	( grep '^#' requirements.lock; pip freeze --exclude-editable | sed 's/+cpu//'; \
	  pip freeze --all | grep '^setuptools==' ) > requirements.new
	mv requirements.new requirements.lock

$(VENV)/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	# The rule of .gitattributes for Snakemake's records needs this once in a clone.
	! git rev-parse --git-dir > /dev/null 2>&1 || git config merge.ours.driver true
	touch $@

$(DOCS_VENV)/installed: docs/requirements.lock
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/pip install --quiet --disable-pip-version-check -r docs/requirements.lock
	touch $@

image:  ## the environment as a Docker image, for `--software-deployment-method apptainer`
	docker build --tag warpflow:latest .

clean:  ## the environment and caches; results stay
	rm -rf $(VENV) $(DOCS_VENV) .venv-trl .venv-trackers .venv-vllm site .pytest_cache .ruff_cache .mypy_cache
