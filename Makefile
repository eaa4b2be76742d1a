# `make demo` and `make test` do all the set-up from a bare Python ≥ 3.11; both create .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORES ?= 2
# One thread per process: two jobs share two cores. Determinism on one machine needs a fixed number of threads.
export OMP_NUM_THREADS ?= 1
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo validate test test-fast test-slurm lint format clean

demo: $(VENV)/.installed
	$(BIN)/snakemake --cores $(CORES) --rerun-incomplete --show-failed-logs
	@echo "Open results/demo/report.html"

# G against retraining: about half an hour of CPU time, resumable. The last line puts the numbers into the page.
validate: $(VENV)/.installed
	$(BIN)/snakemake validate --configfile config/validation.yaml --cores $(CORES) --rerun-incomplete --show-failed-logs
	$(BIN)/python -m po_dynamics.validation results/validation docs/validation.md

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The loop while you write: no runs of the whole workflow, nothing that is killed and resumed.
test-fast: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not e2e and not slurm"

# The cluster profile on a real Slurm of one node; needs root and Debian's slurm-wlm and munge.
test-slurm: $(VENV)/.installed
	$(BIN)/python -m pytest -m slurm

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(BIN)/snakemake --lint
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow/rules

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf results/demo results/smoke .snakemake
